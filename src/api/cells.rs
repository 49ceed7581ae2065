//! Cells: added, run, edited, cancelled, shown with their outputs.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::error::Problem;
use super::events::{self, Form};
use super::large::{self, LIGHT, Making};
use super::sessions::check_timeout;
use super::{Api, Body, Caller, CellInPath, InPath, Query, User, given, guard, view};
use crate::ids::SessionId;
use crate::manager::{EventRow, TooHeavy, names_artifacts};
use crate::session::{Cell, CellEdit, CellPhase, CellType, NewCell, RunOptions, SessionHandle};
use crate::wire::json as wire_json;

/// Seconds that a client may wait in one request.
const MAX_WAIT: f64 = 3600.0;
/// Bytes of events that are shown without asking whether there is memory for them.
const FEW: usize = 64 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    source: String,
    cell_type: Option<String>,
    run: Option<bool>,
    timeout_seconds: Option<f64>,
    allow_stdin: Option<bool>,
    metadata: Option<Box<RawValue>>,
    id: Option<String>,
    after: Option<String>,
}

/// How a client wants to be answered.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Seconds until it is answered even if the cell has not ended.
    wait: Option<f64>,
    outputs: Option<String>,
}

impl Asked {
    fn form(&self) -> Result<Form, Problem> {
        Form::parse(self.outputs.as_deref())
    }

    fn wait(&self) -> Result<Option<Duration>, Problem> {
        wait_time(self.wait)
    }
}

/// How long a client waits, if it does.
pub(super) fn wait_time(seconds: Option<f64>) -> Result<Option<Duration>, Problem> {
    let fits = |seconds: f64| (0.0..=MAX_WAIT).contains(&seconds).then(|| Duration::from_secs_f64(seconds));
    match seconds.map(fits) {
        None => Ok(None),
        Some(None) => Err(Problem::bad_request("bad_wait", format!("wait is 0 to {MAX_WAIT} seconds")).field("wait")),
        Some(wait) => Ok(wait),
    }
}

fn cell_type(name: Option<&str>) -> Result<Option<CellType>, Problem> {
    name.map(|name| {
        let detail = || format!("{name:?} is no cell type; code, markdown and raw are");
        CellType::parse(name).ok_or_else(|| Problem::unprocessable("bad_cell_type", detail()).field("cell_type"))
    })
    .transpose()
}

/// What clients nest in a cell is read by our own parser: serde's would give a meaning to some keys.
fn metadata(raw: Option<&RawValue>) -> Result<Option<Map<String, Value>>, Problem> {
    raw.map(|raw| match wire_json::parse_lenient(raw.get().as_bytes()) {
        Ok(Value::Object(metadata)) => Ok(metadata),
        Ok(_) => Err(Problem::unprocessable("bad_field", "metadata is an object").field("metadata")),
        Err(error) => Err(Problem::unprocessable("bad_field", error.to_string()).field("metadata")),
    })
    .transpose()
}

/// How a cell is run: as it says, else as its session says.
pub(super) fn run_options(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    timeout: Option<f64>,
    allow_stdin: Option<bool>,
) -> Result<RunOptions, Problem> {
    let timeout_seconds = match check_timeout(timeout)? {
        Some(seconds) => Some(seconds),
        None => api.keeper.cell_timeout(id, caller.sees())?,
    };
    Ok(RunOptions { timeout_seconds, allow_stdin: allow_stdin.unwrap_or(false), ..RunOptions::default() })
}

pub(super) async fn add(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    Body(add): Body<Add>,
) -> Result<Response, Problem> {
    let (form, wait) = (asked.form()?, asked.wait()?);
    let _place = guard::place_to_wait(&api, &caller.0, wait)?;
    let handle = api.keeper.handle_for_work(&id, caller.sees())?;
    let new = NewCell {
        id: add.id,
        cell_type: cell_type(add.cell_type.as_deref())?,
        source: add.source,
        metadata: metadata(add.metadata.as_deref())?.unwrap_or_default(),
        options: run_options(&api, &id, &caller, add.timeout_seconds, add.allow_stdin)?,
        after: add.after,
        run: add.run.unwrap_or(true),
        outputs: Vec::new(),
    };
    let cell = handle.add_cell(new).await?;
    answer(&api, (&id, &handle), &caller, cell, (StatusCode::CREATED, form, wait), &headers).await
}

/// Answers at once, when the cell has ended, or with its events.
async fn answer(
    api: &Api,
    (id, handle): (&SessionId, &SessionHandle),
    caller: &Caller,
    cell: Cell,
    (status, form, wait): (StatusCode, Form, Option<Duration>),
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // What does not run has no events to come.
    if given::accepts(headers, "text/event-stream") && cell.run.phase != CellPhase::Finished {
        return events::of_cell(api, id, caller, &cell, form);
    }
    let mut seen = None;
    if let Some(wait) = wait.filter(|_| cell.run.phase != CellPhase::Finished) {
        // Time that is up is no error: the cell is shown as it stands. And where it is over or gone, the store knows.
        if let Ok(Ok(ended)) = tokio::time::timeout(wait, handle.ended(&cell)).await {
            seen = show_held(api, id, caller, &ended, form).await?;
        }
    }
    let (body, turn) = match seen {
        Some(body) => (body, None),
        None => show_done(api, id, caller, &cell.id, form).await?,
    };
    let location = format!("/v1/sessions/{id}/cells/{}", cell.id);
    Ok(large::with_turn(turn, (status, [(header::LOCATION, location)], Json(body))))
}

fn no_cell(cell: &str) -> Problem {
    Problem::not_found("no_cell", format!("there is no cell {cell:?} in this session"))
}

/// A cell as it is written, and the turn of its answer where that is a large one.
async fn show(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &str,
    form: Form,
) -> Result<(Value, Option<Making>), Problem> {
    if form == Form::None {
        let found = api.keeper.cell(id, caller.sees(), cell).await?;
        return Ok((view::cell(&found.ok_or_else(|| no_cell(cell))?, None), None));
    }
    let look = async |most| {
        let found = api.keeper.cell_and_events(id, caller.sees(), cell, most).await?;
        found.ok_or_else(|| no_cell(cell))
    };
    let (found, turn) = match look(LIGHT).await? {
        (cell, Ok(told)) => ((cell, told), None),
        (cell, Err(TooHeavy { bytes })) => {
            let turn = api.large.make(bytes).await?;
            // Whatever it weighs by now.
            ((cell, look(u64::MAX).await?.1.unwrap_or_default()), turn)
        }
    };
    Ok((with_outputs(api, &found.0, &found.1, form).await?, turn))
}

/// A cell that has just ended: what is still held of its events need not be asked of the store. `None` where that is not all that
/// is to be shown.
async fn show_held(api: &Api, id: &SessionId, caller: &Caller, cell: &Cell, form: Form) -> Result<Option<Value>, Problem> {
    let Some(held) = api.keeper.held_after(id, caller.sees(), events::before(cell))? else { return Ok(None) };
    // Others may have run it again meanwhile, which this answer does not tell of.
    let is_told = |event: &&EventRow| event.cell.as_deref() == Some(&cell.id) && event.seq <= cell.run.last_seq;
    let told: Vec<&EventRow> = held.iter().map(AsRef::as_ref).filter(is_told).collect();
    // A plot is read from its file and is larger than its event says.
    if told.iter().any(|event| names_artifacts(event)) || told.iter().map(|event| event.body.len()).sum::<usize>() > FEW {
        return Ok(None);
    }
    Ok(Some(with_outputs(api, cell, told, form).await?))
}

/// The same of a cell to which something has been done. Nobody is told to try that again because its outputs cannot be told now:
/// then the cell is told without them.
async fn show_done(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &str,
    form: Form,
) -> Result<(Value, Option<Making>), Problem> {
    match show(api, id, caller, cell, form).await {
        Err(problem) if problem.is_busy() => show(api, id, caller, cell, Form::None).await,
        shown => shown,
    }
}

/// A cell with the outputs that its events tell, in the form that was asked for.
async fn with_outputs<'a>(
    api: &Api,
    cell: &Cell,
    told: impl IntoIterator<Item = &'a EventRow>,
    form: Form,
) -> Result<Value, Problem> {
    if form == Form::None {
        return Ok(view::cell(cell, None));
    }
    // A cell that is no code any more shows nothing of what it was.
    let told = told.into_iter().filter(|_| cell.cell_type == CellType::Code);
    let outputs = view::outputs(told, api.keeper.blobs(), form == Form::Refs).await?;
    Ok(view::cell(cell, Some(outputs)))
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let form = asked.form()?;
    let (mut cells, mut turn) = (Vec::new(), None);
    if form == Form::None {
        cells.extend(api.keeper.cells(&id, caller.sees()).await?.iter().map(|cell| view::cell(cell, None)));
    } else {
        turn = api.large.make(api.keeper.weight(&id, caller.sees()).await?).await?;
        for (cell, told) in api.keeper.cells_and_events(&id, caller.sees()).await? {
            cells.push(with_outputs(&api, &cell, &told, form).await?);
        }
    }
    Ok(large::with_turn(turn, Json(json!({"cells": cells}))))
}

pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    CellInPath(cell): CellInPath,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let (cell, turn) = show(&api, &id, &caller, &cell, asked.form()?).await?;
    Ok(large::with_turn(turn, Json(cell)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    source: Option<String>,
    cell_type: Option<String>,
    metadata: Option<Box<RawValue>>,
    /// The id of the cell that it moves behind; an empty one for the beginning.
    after: Option<String>,
}

pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    CellInPath(cell): CellInPath,
    Body(edit): Body<Edit>,
) -> Result<Response, Problem> {
    let handle = api.keeper.handle_for_work(&id, caller.sees())?;
    let edit = CellEdit {
        source: edit.source,
        cell_type: cell_type(edit.cell_type.as_deref())?,
        metadata: metadata(edit.metadata.as_deref())?,
        after: edit.after.map(|after| (!after.is_empty()).then_some(after)),
    };
    let cell = handle.edit_cell(&cell, edit).await?;
    let (cell, turn) = show_done(&api, &id, &caller, &cell.id, Form::Inline).await?;
    Ok(large::with_turn(turn, Json(cell)))
}

pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    CellInPath(cell): CellInPath,
) -> Result<StatusCode, Problem> {
    api.keeper.handle(&id, caller.sees())?.delete_cell(&cell).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    timeout_seconds: Option<f64>,
    allow_stdin: Option<bool>,
}

pub(super) async fn run(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    CellInPath(cell): CellInPath,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    Body(run): Body<Run>,
) -> Result<Response, Problem> {
    let (form, wait) = (asked.form()?, asked.wait()?);
    let _place = guard::place_to_wait(&api, &caller.0, wait)?;
    let handle = api.keeper.handle_for_work(&id, caller.sees())?;
    let options = match (run.timeout_seconds, run.allow_stdin) {
        // As it was run before.
        (None, None) => None,
        (timeout, allow_stdin) => Some(run_options(&api, &id, &caller, timeout, allow_stdin)?),
    };
    let cell = handle.run_cell(&cell, options).await?;
    answer(&api, (&id, &handle), &caller, cell, (StatusCode::OK, form, wait), &headers).await
}

pub(super) async fn cancel(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    CellInPath(cell): CellInPath,
) -> Result<Response, Problem> {
    let cell = api.keeper.handle(&id, caller.sees())?.cancel_cell(&cell).await?;
    Ok((StatusCode::ACCEPTED, Json(view::cell(&cell, None))).into_response())
}

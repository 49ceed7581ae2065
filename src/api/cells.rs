//! Requests about cells: add, run, edit, cancel, delete, and read with outputs.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::cell_response::{
    CellBody, CellForm, CellViewName, Reply, respond, view_after_effect, view_stored, view_with_outputs,
};
use super::error::Problem;
use super::events::OutputForm;
use super::execution_options::RequestedOptions;
use super::response_spool;
use super::view::{CellList, CellTypeName, CellView, EventView};
use super::{Api, Body, Caller, CellInPath, Query, SessionInPath, User, guard, paging};
use crate::session::{CellEdit, CellType, NewCell};
use crate::wire::json as wire_json;

/// The largest value of `wait` in seconds.
const MAX_WAIT: f64 = 3600.0;
/// Sources and outputs of a page of cells, in bytes. A page with one cell may be larger.
const MAX_PAGE_BYTES: u64 = 16 << 20;

/// The position of a page: the bits of a cell's place, and its number.
type PagePosition = (u64, u32);

/// A new cell.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewCell, examples(json!({"source": "6*7", "id": "answer"})))]
pub(super) struct Add {
    source: String,
    #[schema(value_type = Option<CellTypeName>, default = "code")]
    cell_type: Option<String>,
    /// Whether a code cell is executed.
    #[schema(default = true)]
    run: Option<bool>,
    /// The timeout in seconds. The default is the one of the session.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
    /// Whether the code may request input.
    #[schema(default = false)]
    allow_stdin: Option<bool>,
    /// Files that are kept as artifacts if the execution creates or modifies them: `*.csv` (in any folder), `plots/*.png`, or
    /// `output/` for everything in that folder. At most 32, without braces.
    artifacts: Option<Vec<String>>,
    /// Whether the SHA-256 of each changed file is computed.
    hash_files: Option<bool>,
    /// Environment variables for the time of the execution, at most 8 KB. They are stored with the cell, unlike those of the session.
    env: Option<HashMap<String, String>>,
    /// The working folder for the time of the execution, relative to the workspace.
    cwd: Option<String>,
    /// The metadata of the cell in the notebook.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// 1 to 64 letters, digits, `-` and `_`. A second request with the same id gets 409 `cell_exists`, so requests can be
    /// retried.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    id: Option<String>,
    /// The id of the cell after which this cell is inserted. The default is the last cell.
    after: Option<String>,
}

/// The query of requests that read one cell.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OneCellQuery {
    /// The form of outputs: `inline` embeds binary data as base64, `refs` replaces large binary data by the hash of its
    /// artifact, `none` leaves outputs out.
    #[param(inline, value_type = Option<OutputForm>)]
    outputs: Option<String>,
    /// The form of the cell. `model` is a summary for language models: plain text whose long parts are shortened, tables as
    /// markdown, images by reference.
    #[param(inline, value_type = Option<CellViewName>)]
    view: Option<String>,
    /// For `view=model`: the largest text of all outputs in bytes.
    #[param(minimum = 1, maximum = 1048576, default = 16384)]
    max_bytes: Option<usize>,
    /// For `view=model`: the largest text of one output in bytes.
    #[param(minimum = 1, maximum = 1048576, default = 6144)]
    max_output_bytes: Option<usize>,
}

/// The query of requests that run a cell.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CellQuery {
    /// Seconds that the response may wait for the end of the execution. When they are over, the response has the current
    /// state of the cell.
    #[param(minimum = 0, maximum = 3600)]
    wait: Option<f64>,
    /// The form of outputs: `inline` embeds binary data as base64, `refs` replaces large binary data by the hash of its
    /// artifact, `none` leaves outputs out.
    #[param(inline, value_type = Option<OutputForm>)]
    outputs: Option<String>,
    /// The form of the cell. `model` is a summary for language models: plain text whose long parts are shortened, tables as
    /// markdown, images by reference.
    #[param(inline, value_type = Option<CellViewName>)]
    view: Option<String>,
    /// For `view=model`: the largest text of all outputs in bytes.
    #[param(minimum = 1, maximum = 1048576, default = 16384)]
    max_bytes: Option<usize>,
    /// For `view=model`: the largest text of one output in bytes.
    #[param(minimum = 1, maximum = 1048576, default = 6144)]
    max_output_bytes: Option<usize>,
}

impl CellQuery {
    fn form(&self) -> Result<CellForm, Problem> {
        CellForm::parse(self.view.as_deref(), self.outputs.as_deref(), self.max_bytes, self.max_output_bytes)
    }

    fn wait(&self) -> Result<Option<Duration>, Problem> {
        parse_wait(self.wait)
    }
}

/// Parses the `wait` field of a query.
pub(super) fn parse_wait(seconds: Option<f64>) -> Result<Option<Duration>, Problem> {
    let fits = |seconds: f64| (0.0..=MAX_WAIT).contains(&seconds).then(|| Duration::from_secs_f64(seconds));
    match seconds.map(fits) {
        None => Ok(None),
        Some(None) => Err(Problem::bad_request("bad_wait", format!("wait must be 0 to {MAX_WAIT} seconds")).field("wait")),
        Some(wait) => Ok(wait),
    }
}

fn cell_type(name: Option<&str>) -> Result<Option<CellType>, Problem> {
    name.map(|name| {
        let detail = || format!("{name:?} is not a cell type; use code, markdown or raw");
        CellType::parse(name).ok_or_else(|| Problem::unprocessable("bad_cell_type", detail()).field("cell_type"))
    })
    .transpose()
}

/// Metadata is arbitrary JSON, so our own parser reads it: serde's would interpret some keys.
fn metadata(raw: Option<&RawValue>) -> Result<Option<Map<String, Value>>, Problem> {
    raw.map(|raw| match wire_json::parse_lenient(raw.get().as_bytes()) {
        Ok(Value::Object(metadata)) => Ok(metadata),
        Ok(_) => Err(Problem::unprocessable("bad_field", "metadata must be an object").field("metadata")),
        Err(error) => Err(Problem::unprocessable("bad_field", error.to_string()).field("metadata")),
    })
    .transpose()
}

/// Add a cell, and run it
///
/// Code cells run unless `run` is false. With `Accept: text/event-stream`, the response is the events of the cell until its
/// execution ends.
#[utoipa::path(
    post, path = "/cells", operation_id = "add_cell", tag = "cells",
    params(SessionInPath, CellQuery), request_body = Add,
    responses(
        (status = 200, description = "The events of the cell, if the client accepts them", body = EventView,
            content_type = "text/event-stream"),
        (status = 201, description = "The cell", body = CellBody,
            headers(("Location" = String, description = "The path of the cell")))),
)]
pub(super) async fn add(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Query(query): Query<CellQuery>,
    headers: HeaderMap,
    Body(add): Body<Add>,
) -> Result<Response, Problem> {
    let (form, wait) = (query.form()?, query.wait()?);
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let handle = api.sessions.handle_for_write(&id, &caller.access())?;
    let requested = RequestedOptions {
        timeout_seconds: add.timeout_seconds,
        allow_stdin: add.allow_stdin,
        artifacts: add.artifacts,
        hash_files: add.hash_files,
        env: add.env,
        cwd: add.cwd,
    };
    let new = NewCell {
        id: add.id,
        cell_type: cell_type(add.cell_type.as_deref())?,
        source: add.source,
        metadata: metadata(add.metadata.as_deref())?.unwrap_or_default(),
        options: requested.resolve(&api, &id, &caller.access()).await?,
        after: add.after,
        run: add.run.unwrap_or(true),
        outputs: Vec::new(),
    };
    if new.run && new.cell_type.unwrap_or(CellType::Code) == CellType::Code {
        api.sessions.admit_executions(&id, &caller.access(), 1)?;
    }
    let cell = handle.add_cell(new).await?;
    let reply = Reply { status: StatusCode::CREATED, form, wait };
    respond(&api, (&id, &handle), &caller, cell, reply, &headers).await
}

/// The query of the list of cells.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The form of outputs: `inline` embeds binary data as base64, `refs` replaces large binary data by the hash of its
    /// artifact, `none` leaves outputs out.
    #[param(inline, value_type = Option<OutputForm>)]
    outputs: Option<String>,
    /// The largest number of cells. A page with large outputs has fewer.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// List the cells
#[utoipa::path(
    get, path = "/cells", operation_id = "list_cells", tag = "cells",
    params(SessionInPath, ListQuery),
    responses((status = 200, description = "A page of the cells", body = CellList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let form = OutputForm::parse(query.outputs.as_deref())?;
    let after = paging::position::<PagePosition>(query.cursor.as_deref())?;
    let after = after.map(|(place, number)| (f64::from_bits(place), number));
    let limit = paging::limit(query.limit)?;
    api.reader.check_visible(&id, &caller.access())?;
    let page = api.reader.store().cells_page(&id, after, limit, MAX_PAGE_BYTES, form != OutputForm::None).await?;
    let last = page.rows.last().filter(|_| page.has_more);
    let next_cursor = last.map(|row| paging::cursor(&(row.place.to_bits(), row.number)));
    let permit = api.spool.acquire(page.bytes).await?;
    let mut cells = Vec::new();
    for row in page.rows {
        // A cell that is removed meanwhile is left out.
        let Some((cell, events)) = api.reader.cell_and_events(&id, &caller.access(), &row.id, max_bytes(form)).await? else {
            continue;
        };
        let mut view = view_with_outputs(&api, &cell, &events.unwrap_or_default(), form).await?;
        if caller.is_share() {
            view.hide_files();
        }
        cells.push(view);
    }
    Ok(response_spool::with_permit(permit, Json(CellList { cells, next_cursor })))
}

/// The bytes of events that are read of each cell of a page. The sum is limited before.
fn max_bytes(form: OutputForm) -> u64 {
    if form == OutputForm::None { 0 } else { u64::MAX }
}

/// Get a cell with its outputs
#[utoipa::path(
    get, path = "/cells/{cell}", operation_id = "get_cell", tag = "cells",
    params(SessionInPath, CellInPath, OneCellQuery),
    responses((status = 200, description = "The cell", body = CellBody)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    CellInPath(cell): CellInPath,
    Query(query): Query<OneCellQuery>,
) -> Result<Response, Problem> {
    let OneCellQuery { outputs, view, max_bytes, max_output_bytes } = query;
    let form = CellForm::parse(view.as_deref(), outputs.as_deref(), max_bytes, max_output_bytes)?;
    let (cell, permit) = view_stored(&api, &id, &caller, &cell, form).await?;
    Ok(response_spool::with_permit(permit, Json(cell)))
}

/// Changes of a cell. Absent fields stay as they are.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CellPatch, examples(json!({"source": "6*9"})))]
pub(super) struct Edit {
    source: Option<String>,
    #[schema(value_type = Option<CellTypeName>)]
    cell_type: Option<String>,
    /// Replaces all metadata.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// The id of the cell after which this one moves. An empty id moves it to the beginning.
    after: Option<String>,
}

/// Change a cell
///
/// A running execution continues with the previous source.
#[utoipa::path(
    patch, path = "/cells/{cell}", operation_id = "update_cell", tag = "cells",
    params(SessionInPath, CellInPath), request_body = Edit,
    responses((status = 200, description = "The cell", body = CellView)),
)]
pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    CellInPath(cell): CellInPath,
    Body(edit): Body<Edit>,
) -> Result<Response, Problem> {
    let handle = api.sessions.handle_for_write(&id, &caller.access())?;
    let edit = CellEdit {
        source: edit.source,
        cell_type: cell_type(edit.cell_type.as_deref())?,
        metadata: metadata(edit.metadata.as_deref())?,
        after: edit.after.map(|after| (!after.is_empty()).then_some(after)),
    };
    let cell = handle.edit_cell(&cell, edit).await?;
    let (cell, permit) = view_after_effect(&api, &id, &caller, &cell.id, CellForm::Full(OutputForm::Inline)).await?;
    Ok(response_spool::with_permit(permit, Json(cell)))
}

/// Delete a cell
///
/// A queued cell is cancelled. A running cell cannot be deleted: 409 `cell_in_progress`.
#[utoipa::path(
    delete, path = "/cells/{cell}", operation_id = "delete_cell", tag = "cells",
    params(SessionInPath, CellInPath),
    responses((status = 204, description = "Deleted")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    CellInPath(cell): CellInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.delete_cell(&cell).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How a cell runs again. Without any field, it runs as the last time.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RunCell, examples(json!({"timeout_seconds": 300})))]
pub(super) struct Run {
    /// The timeout in seconds.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
    /// Whether the code may request input.
    allow_stdin: Option<bool>,
    /// Files that are kept as artifacts if the execution creates or modifies them: `*.csv` (in any folder), `plots/*.png`, or
    /// `output/` for everything in that folder. At most 32, without braces.
    artifacts: Option<Vec<String>>,
    /// Whether the SHA-256 of each changed file is computed.
    hash_files: Option<bool>,
    /// Environment variables for the time of the execution, at most 8 KB. They are stored with the cell, unlike those of the session.
    env: Option<HashMap<String, String>>,
    /// The working folder for the time of the execution, relative to the workspace.
    cwd: Option<String>,
}

impl Run {
    fn options(self) -> RequestedOptions {
        let Self { timeout_seconds, allow_stdin, artifacts, hash_files, env, cwd } = self;
        RequestedOptions { timeout_seconds, allow_stdin, artifacts, hash_files, env, cwd }
    }
}

/// Run a cell again
///
/// Its previous outputs are removed. With `Accept: text/event-stream`, the response is the events of the cell until its
/// execution ends.
#[utoipa::path(
    post, path = "/cells/{cell}/run", operation_id = "run_cell", tag = "cells",
    params(SessionInPath, CellInPath, CellQuery), request_body = Option<Run>,
    responses((status = 200, description = "The cell",
        content((CellBody = "application/json"), (EventView = "text/event-stream")),
        headers(("Location" = String, description = "The path of the cell")))),
)]
pub(super) async fn run(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    CellInPath(cell): CellInPath,
    Query(query): Query<CellQuery>,
    headers: HeaderMap,
    Body(run): Body<Run>,
) -> Result<Response, Problem> {
    let (form, wait) = (query.form()?, query.wait()?);
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let handle = api.sessions.handle_for_write(&id, &caller.access())?;
    let options = run.options();
    let options = match options == RequestedOptions::default() {
        // The options of its latest execution stay.
        true => None,
        false => Some(options.resolve(&api, &id, &caller.access()).await?),
    };
    api.sessions.admit_executions(&id, &caller.access(), 1)?;
    let cell = handle.run_cell(&cell, options).await?;
    let reply = Reply { status: StatusCode::OK, form, wait };
    respond(&api, (&id, &handle), &caller, cell, reply, &headers).await
}

/// Cancel a queued cell, or interrupt a running one
#[utoipa::path(
    post, path = "/cells/{cell}/cancel", operation_id = "cancel_cell", tag = "cells",
    params(SessionInPath, CellInPath),
    responses((status = 202, description = "The current state of the cell", body = CellView)),
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    CellInPath(cell): CellInPath,
) -> Result<Response, Problem> {
    let cell = api.sessions.handle(&id, &caller.access())?.cancel_cell(&cell).await?;
    Ok((StatusCode::ACCEPTED, Json(CellView::new(&cell, None))).into_response())
}

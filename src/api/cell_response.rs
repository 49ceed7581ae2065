//! Cells in responses: in full or as a summary for models, at once or when an execution has ended.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::Problem;
use super::events::{self, OutputForm};
use super::response_spool::{self, MAX_SMALL, ProducePermit};
use super::view::{self, CellView, ModelView};
use super::{Api, Caller, extract};
use crate::ids::{Access, SessionId};
use crate::manager::{EventRow, OverByteLimit, changed_files, may_reference_artifacts};
use crate::render::summary::SummaryLimits;
use crate::session::{Cell, CellPhase, CellType, SessionHandle};

/// Cached events up to this size are returned without a permit. Bytes.
const MAX_CACHED_BYTES: usize = 64 << 10;
/// The largest summary that can be requested, bytes.
const MAX_SUMMARY: usize = 1 << 20;

/// The form of a cell in a response.
#[derive(Clone, Copy, Debug)]
pub(super) enum CellForm {
    Full(OutputForm),
    Model(SummaryLimits),
}

/// How a cell is shown.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case", default = "full")]
#[expect(dead_code, reason = "a schema")]
pub(super) enum CellViewName {
    /// The cell with its outputs.
    Full,
    /// A summary of the outputs as text, for language models.
    Model,
}

impl CellForm {
    pub fn parse(
        view: Option<&str>,
        outputs: Option<&str>,
        max_bytes: Option<usize>,
        max_output_bytes: Option<usize>,
    ) -> Result<Self, Problem> {
        match view {
            None | Some("full") => match (max_bytes, max_output_bytes) {
                (None, None) => Ok(Self::Full(OutputForm::parse(outputs)?)),
                (Some(_), _) => Err(only_for_models("max_bytes")),
                (None, Some(_)) => Err(only_for_models("max_output_bytes")),
            },
            Some("model") => {
                let default = SummaryLimits::default();
                let total_bytes = limit("max_bytes", max_bytes, default.total_bytes)?;
                let output_bytes = limit("max_output_bytes", max_output_bytes, default.output_bytes.min(total_bytes))?;
                Ok(Self::Model(SummaryLimits { total_bytes, output_bytes, image_bytes: u64::MAX }))
            }
            Some(other) => {
                let detail = format!("{other:?} is not a view of a cell; use full or model");
                Err(Problem::bad_request("bad_view", detail).field("view"))
            }
        }
    }
}

fn only_for_models(field: &'static str) -> Problem {
    Problem::bad_request("bad_view", format!("{field} applies to view=model")).field(field)
}

fn limit(field: &'static str, value: Option<usize>, default: usize) -> Result<usize, Problem> {
    match value {
        None => Ok(default),
        Some(value) if (1..=MAX_SUMMARY).contains(&value) => Ok(value),
        Some(_) => Err(Problem::bad_request("bad_query", format!("{field} must be 1 to {MAX_SUMMARY}")).field(field)),
    }
}

/// A cell in the form that was requested.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = CellOrModelView)]
pub(super) enum CellBody {
    Full(Box<CellView>),
    Model(Box<ModelView>),
}

impl From<CellView> for CellBody {
    fn from(view: CellView) -> Self {
        Self::Full(Box::new(view))
    }
}

/// How to respond to a request that has queued a cell.
pub(super) struct Reply {
    pub status: StatusCode,
    pub form: CellForm,
    pub wait: Option<Duration>,
}

/// Responds with the events of the cell as SSE, if the client accepts that, or with the cell: at once, or when its execution
/// has ended.
pub(super) async fn respond(
    api: &Api,
    (id, handle): (&SessionId, &SessionHandle),
    caller: &Caller,
    cell: Cell,
    Reply { status, form, wait }: Reply,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // A cell that is finished has no further events.
    if extract::accepts(headers, "text/event-stream") && cell.execution.phase != CellPhase::Finished {
        let form = match form {
            CellForm::Full(form) => form,
            CellForm::Model(_) => OutputForm::Refs,
        };
        return events::stream_cell(api, id, caller, &cell, events::cursor_before(&cell), form);
    }
    let mut cached = None;
    if let Some(wait) = wait.filter(|_| cell.execution.phase != CellPhase::Finished) {
        // A timeout is not an error: the response has the current state of the cell. If the session or the cell is gone, the
        // store has that state.
        if let Ok(Ok(ended)) = tokio::time::timeout(wait, handle.ended(&cell)).await {
            cached = match form {
                CellForm::Full(form) => view_from_cache(api, id, caller, &ended, form).await?,
                CellForm::Model(_) => None,
            };
        }
    }
    let (body, permit) = match cached {
        Some(body) => (CellBody::from(body), None),
        None => view_after_effect(api, id, caller, &cell.id, form).await?,
    };
    let location = format!("/v1/sessions/{id}/cells/{}", cell.id);
    Ok(response_spool::with_permit(permit, (status, [(header::LOCATION, location)], Json(body))))
}

pub(super) fn no_cell(cell: &str) -> Problem {
    Problem::not_found("no_cell", format!("there is no cell {cell:?} in this session"))
}

/// A cell from the store as the caller may see it, with the permit of its response if that is large.
pub(super) async fn view_stored(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &str,
    form: CellForm,
) -> Result<(CellBody, Option<ProducePermit>), Problem> {
    let (mut body, permit) = read_stored(api, id, caller, cell, form).await?;
    if caller.is_share() {
        match &mut body {
            CellBody::Full(view) => view.hide_files(),
            CellBody::Model(view) => view.hide_files(),
        }
    }
    Ok((body, permit))
}

async fn read_stored(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &str,
    form: CellForm,
) -> Result<(CellBody, Option<ProducePermit>), Problem> {
    let form = match form {
        CellForm::Full(form) if form != OutputForm::None => form,
        form => {
            let cell = api.reader.cell(id, &caller.access(), cell).await?.ok_or_else(|| no_cell(cell))?;
            return Ok((view_without_outputs(api, id, &cell, form).await?, None));
        }
    };
    let (cell, events, permit) = read_with_events(api, id, &caller.access(), cell, 0).await?;
    Ok((view_with_outputs(api, &cell, &events, form).await?.into(), permit))
}

/// A cell with the events of its latest execution, and the permit of a response with them and `more_bytes` if that is large.
pub(super) async fn read_with_events(
    api: &Api,
    id: &SessionId,
    access: &Access,
    cell: &str,
    more_bytes: u64,
) -> Result<(Cell, Vec<EventRow>, Option<ProducePermit>), Problem> {
    let read = async |max_bytes| {
        let found = api.reader.cell_and_events(id, access, cell, max_bytes).await?;
        found.ok_or_else(|| no_cell(cell))
    };
    match read(MAX_SMALL).await? {
        (cell, Ok(events)) => Ok((cell, events, api.spool.acquire(more_bytes).await?)),
        (_, Err(OverByteLimit { bytes })) => {
            let permit = api.spool.acquire(bytes.saturating_add(more_bytes)).await?;
            // The outputs may have grown meanwhile.
            let (cell, events) = read(u64::MAX).await?;
            Ok((cell, events.unwrap_or_default(), permit))
        }
    }
}

/// A cell in a form for which its outputs need not be read as a whole.
async fn view_without_outputs(api: &Api, id: &SessionId, cell: &Cell, form: CellForm) -> Result<CellBody, Problem> {
    let CellForm::Model(limits) = form else { return Ok(CellView::new(cell, None).into()) };
    let outputs = match cell.cell_type {
        CellType::Code => api.reader.output_ends(id, cell).await?,
        _ => Vec::new(),
    };
    let artifacts = api.reader.artifact_infos(id).await?;
    let files = api.reader.changed_files(id, cell).await?;
    Ok(CellBody::Model(Box::new(ModelView::new(cell, &outputs, &artifacts, files, limits))))
}

/// A cell that has just ended, from cached events, which saves reading the store. `None` if the cache does not have all of
/// its events, or if they are large.
async fn view_from_cache(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &Cell,
    form: OutputForm,
) -> Result<Option<CellView>, Problem> {
    let Some(cached) = api.reader.cached_events_after(id, &caller.access(), events::cursor_before(cell))? else {
        return Ok(None);
    };
    // The cell may have been queued again meanwhile. Those events are left out.
    let belongs = |event: &&EventRow| event.cell.as_deref() == Some(&cell.id) && event.seq <= cell.execution.last_seq;
    let events: Vec<&EventRow> = cached.iter().map(AsRef::as_ref).filter(belongs).collect();
    // Artifacts are read from files, and are larger than their events.
    if events.iter().any(|event| may_reference_artifacts(event))
        || events.iter().map(|event| event.body.len()).sum::<usize>() > MAX_CACHED_BYTES
    {
        return Ok(None);
    }
    Ok(Some(view_with_outputs(api, cell, events, form).await?))
}

/// Like [`view_stored`], after a request had its effect. The client must not retry the request because the server is busy,
/// so the cell is returned without outputs then.
pub(super) async fn view_after_effect(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &str,
    form: CellForm,
) -> Result<(CellBody, Option<ProducePermit>), Problem> {
    match view_stored(api, id, caller, cell, form).await {
        Err(problem) if problem.is_busy() => view_stored(api, id, caller, cell, CellForm::Full(OutputForm::None)).await,
        result => result,
    }
}

/// A cell with the outputs after these events.
pub(super) async fn view_with_outputs<'a>(
    api: &Api,
    cell: &Cell,
    events: impl IntoIterator<Item = &'a EventRow>,
    form: OutputForm,
) -> Result<CellView, Problem> {
    if form == OutputForm::None {
        return Ok(CellView::new(cell, None));
    }
    // A cell that is no longer a code cell has no outputs.
    let events: Vec<&EventRow> = events.into_iter().filter(|_| cell.cell_type == CellType::Code).collect();
    let files = changed_files(events.iter().copied());
    let outputs = view::outputs(events, api.reader.blobs(), form == OutputForm::Refs).await?;
    Ok(CellView::new(cell, Some((outputs, files))))
}

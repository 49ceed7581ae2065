//! Requests about the notebook of a session: import, run, and export in several formats.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use utoipa::{IntoParams, ToSchema};

use super::cells::parse_wait;
use super::error::Problem;
use super::new_session::check_timeout;
use super::view::{self, CellState, CellStatus, ExecutionMetrics, NotebookFile};
use super::{Api, Body, Caller, Query, SessionInPath, User, extract, guard, response_spool};
use crate::export::{ExportOptions, Format, ScriptStyle, Theme};
use crate::ids::{Seq, SessionId};
use crate::manager::{EventKind, NotebookRun, first_failure};
use crate::notebook::Notebook;
use crate::session::{Cell, CellPhase, ExecutionStatus, metrics};
use crate::wire::json as wire_json;

/// The content security policy of an exported page. Scripts of its plots run in an opaque origin, without access to the
/// storage or the API of this server, and pages of other sites cannot frame it.
const EXPORT_POLICY: &str = "sandbox allow-scripts allow-popups allow-downloads; frame-ancestors 'self'";

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// The format of the document.
    #[param(inline, value_type = Option<FormatName>)]
    to: Option<String>,
    /// The colour theme of an HTML page.
    #[param(inline, value_type = Option<ThemeName>)]
    theme: Option<String>,
    /// The form of a script: a plain program, or cells that begin with `# %%`.
    #[param(inline, value_type = Option<ScriptForm>)]
    script: Option<String>,
    /// Whether the document contains the code.
    #[param(default = true)]
    inputs: Option<bool>,
    /// Whether the document contains the outputs.
    #[param(default = true)]
    outputs: Option<bool>,
}

/// Declares the names that a field of a query may have, as a schema.
macro_rules! query_names {
    ($name:ident, $default:literal { $($value:ident),* }) => {
        #[derive(ToSchema)]
        #[schema(rename_all = "snake_case", default = $default)]
        #[expect(dead_code, reason = "a schema")]
        enum $name { $($value),* }
    };
}
query_names! { FormatName, "ipynb" { Ipynb, Html, Markdown, Script } }
query_names! { ThemeName, "auto" { Auto, Light, Dark } }
query_names! { ScriptForm, "plain" { Plain, Percent } }

impl ExportQuery {
    fn format(&self) -> Result<Format, Problem> {
        match self.to.as_deref() {
            None | Some("ipynb") => Ok(Format::Ipynb),
            Some("html") => Ok(Format::Html),
            Some("markdown" | "md") => Ok(Format::Markdown),
            Some("script") => Ok(Format::Script),
            Some(other) => Err(unknown_value("to", other, "use ipynb, html, markdown or script")),
        }
    }

    fn options(&self, name: String) -> Result<ExportOptions, Problem> {
        let theme = match self.theme.as_deref() {
            None | Some("auto") => Theme::Auto,
            Some("light") => Theme::Light,
            Some("dark") => Theme::Dark,
            Some(other) => return Err(unknown_value("theme", other, "use auto, light or dark")),
        };
        let script_style = match self.script.as_deref() {
            None | Some("plain") => ScriptStyle::Plain,
            Some("percent") => ScriptStyle::Percent,
            Some(other) => return Err(unknown_value("script", other, "use plain or percent")),
        };
        let (inputs, outputs) = (self.inputs.unwrap_or(true), self.outputs.unwrap_or(true));
        // A response cannot have files beside it.
        Ok(ExportOptions { name, theme, script_style, inputs, outputs, inline_files: true, ..ExportOptions::default() })
    }
}

fn unknown_value(field: &'static str, value: &str, known: &str) -> Problem {
    Problem::bad_request("bad_query", format!("{field}={value:?} is unknown; {known}")).field(field)
}

/// Export the cells as a notebook, an HTML page, Markdown or a script
///
/// An HTML page has a content security policy with `sandbox`. The media type of a script depends on the language: for example
/// `text/x-python`, or `text/plain` if the language has none.
#[utoipa::path(
    get, path = "/notebook", operation_id = "export_notebook", tag = "notebooks",
    params(SessionInPath, ExportQuery),
    responses((status = 200, description = "The document", content(
        (NotebookFile = "application/x-ipynb+json"), (String = "text/html"), (String = "text/markdown"), (String = "text/*")))),
)]
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Problem> {
    export(&api, &caller, id, &query).await
}

/// Exports the cells of a session, which may be that of a job.
pub(super) async fn export(api: &Api, caller: &Caller, id: SessionId, query: &ExportQuery) -> Result<Response, Problem> {
    let format = query.format()?;
    let row = api.reader.row(&id, &caller.access()).await?;
    let name = row.name.unwrap_or_else(|| format!("session-{}", &id.as_str()[..8]));
    let options = query.options(name.clone())?;
    let permit = api.spool.acquire(api.reader.output_bytes(&id, &caller.access()).await?).await?;
    let mut notebook = api.reader.notebook(&id, &caller.access()).await?;
    // The state of widgets comes from all executions, also from those that a share cannot see.
    if caller.identity.only.is_some() {
        notebook.metadata_mut().remove("widgets");
    }
    let exported = process(move || crate::export::export(&notebook, format, &options)).await?;
    let mut response = response_spool::with_permit(permit, exported.body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(exported.mime));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(EXPORT_POLICY));
    let disposition = if format == Format::Html { "inline" } else { "attachment" };
    let disposition = format!("{disposition}; filename=\"{}.{}\"", safe_file_name(&name), exported.extension);
    if let Ok(disposition) = HeaderValue::from_str(&disposition) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// A file name that is valid on every system.
fn safe_file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).take(100).collect()
}

/// The most JSON values of an uploaded notebook, which take about 200 MB.
const MAX_VALUES: usize = 2_000_000;
/// The notebooks that are processed at once. Others wait: each can take several times its size in memory.
static PROCESSED: Semaphore = Semaphore::const_new(2);

/// Parses or renders a notebook. The work goes on if the request ends, and so does its permit.
async fn process<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let permit = PROCESSED.acquire().await;
    run_blocking(move || {
        let _permit = permit;
        work()
    })
    .await
}

/// Work that takes long runs outside of the runtime's threads.
pub(super) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "processing a notebook failed");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "notebook_failed",
            "processing the notebook failed; the log of the server has the reason",
        )
    })
}

/// Reads a notebook file.
pub(super) async fn parse(bytes: Bytes) -> Result<Notebook, Problem> {
    let parsed = process(move || Notebook::parse_within(&bytes, MAX_VALUES)).await?;
    parsed.map_err(|error| Problem::unprocessable("bad_notebook", error.to_string()).field("notebook"))
}

/// The result of an import.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"cells": 12, "warnings": []})))]
#[schema(as = ImportResult)]
pub(super) struct Imported {
    /// The number of cells.
    cells: usize,
    /// Defects of the file that were repaired.
    warnings: Vec<String>,
}

/// Import a notebook file
///
/// Its cells and outputs replace those of the session; nothing is run. The file may have any content type.
#[utoipa::path(
    put, path = "/notebook", operation_id = "import_notebook", tag = "notebooks",
    params(SessionInPath), request_body = NotebookFile,
    responses((status = 200, description = "The result of the import", body = Imported)),
)]
pub(super) async fn put(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    request: Request,
) -> Result<Json<Imported>, Problem> {
    let bytes = extract::read_body(request).await?;
    let notebook = parse(bytes).await?;
    api.sessions.import_notebook(&id, &caller.access(), &notebook).await?;
    let warnings = notebook.warnings().iter().map(ToString::to_string).collect();
    Ok(Json(Imported { cells: notebook.len(), warnings }))
}

/// How the cells of a session run. All fields are optional.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RunNotebook, examples(json!({"parameters": {"year": 2026}})))]
pub(super) struct Run {
    /// Values of the notebook's parameters. They are set in a cell tagged `injected-parameters`, which is inserted after the
    /// cell tagged `parameters`.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Box<RawValue>>,
    /// The id of the first cell to run.
    from: Option<String>,
    /// Whether cells after a failed cell run.
    #[serde(default)]
    #[schema(default = false)]
    allow_errors: bool,
    /// The timeout of each cell in seconds. The default is the one of the session.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Seconds that the response may wait for the end. When they are over, the response has the current state.
    #[param(minimum = 0, maximum = 3600)]
    wait: Option<f64>,
}

impl WaitQuery {
    pub fn duration(&self) -> Result<Option<Duration>, Problem> {
        parse_wait(self.wait)
    }
}

/// Parameters are arbitrary JSON, so our own parser reads them.
pub(super) fn parameters(raw: Option<&str>) -> Result<Map<String, Value>, Problem> {
    let Some(raw) = raw else { return Ok(Map::new()) };
    match wire_json::parse_lenient(raw.as_bytes()) {
        Ok(Value::Object(parameters)) => Ok(parameters),
        Ok(Value::Null) => Ok(Map::new()),
        _ => {
            Err(Problem::unprocessable("bad_parameters", "parameters must be an object of names and values")
                .field("parameters"))
        }
    }
}

/// Run the code cells of the session in order
///
/// A cell that fails cancels the cells after it, unless `allow_errors` is set.
#[utoipa::path(
    post, path = "/notebook/run", operation_id = "run_notebook", tag = "notebooks",
    params(SessionInPath, WaitQuery), request_body = Option<Run>,
    responses(
        (status = 200, description = "All cells have ended", body = RunOutcome),
        (status = 202, description = "Cells are queued or running", body = RunOutcome)),
)]
pub(super) async fn run(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Query(query): Query<WaitQuery>,
    Body(run): Body<Run>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let timeout_seconds = match check_timeout(api.sessions.ceilings(), run.timeout_seconds)? {
        Some(seconds) => Some(seconds),
        None => api.sessions.cell_timeout(&id, &caller.access())?,
    };
    let run = NotebookRun {
        parameters: parameters(run.parameters.as_deref().map(RawValue::get))?,
        from: run.from,
        allow_errors: run.allow_errors,
        timeout_seconds,
        ..NotebookRun::default()
    };
    let before = api.reader.row(&id, &caller.access()).await?.last_seq;
    let cells = api.sessions.run_notebook(&id, &caller.access(), run).await?;
    if let Some(wait) = wait {
        let ended = until_ended(&api, &id, &caller, before, &cells);
        // A timeout is not an error: the response has the current state of the cells.
        if let Ok(ended) = tokio::time::timeout(wait, ended).await {
            ended?;
        }
    }
    let outcome = RunOutcome::read(&api, &id, &caller, &cells).await?;
    let status = match outcome.state {
        RunState::Finished => StatusCode::OK,
        RunState::Running => StatusCode::ACCEPTED,
    };
    Ok((status, Json(outcome)).into_response())
}

/// Waits until each of these cells has ended at least once after an event.
pub(super) async fn until_ended(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    after: Seq,
    cells: &[String],
) -> Result<(), Problem> {
    let mut waiting: HashSet<&str> = cells.iter().map(String::as_str).collect();
    let mut subscription = api.reader.subscribe(id, &caller.access(), after)?;
    while !waiting.is_empty() {
        let Some(events) = subscription.next().await? else { break };
        for event in events.iter().filter(|event| event.kind == EventKind::CellFinished) {
            event.cell.as_deref().map(|cell| waiting.remove(cell));
        }
    }
    Ok(())
}

/// The state of cells that were queued together.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "state": "finished", "cells": [{"id": "ae18a2f3", "state": "finished", "status": "ok", "metrics": {"wall_ms": 12.4}}],
    "cells_total": 1, "cells_done": 1, "status": "ok"
})))]
pub(super) struct RunOutcome {
    state: RunState,
    /// In the order of the notebook.
    cells: Vec<CellSummary>,
    cells_total: usize,
    /// The number of cells that have ended.
    cells_done: usize,
    /// `ok`, or the status of the first cell that failed. Absent while no cell has failed and not all have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<CellStatus>,
    /// The error of the first cell that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<RunError>,
}

/// Whether all cells have ended.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RunState {
    Running,
    Finished,
}

/// A cell of a run, without its outputs.
#[derive(Serialize, ToSchema)]
struct CellSummary {
    id: String,
    state: CellState,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<CellStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ExecutionMetrics, nullable = false)]
    metrics: Option<Value>,
}

/// The error of the cell that ended a run.
#[derive(Serialize, ToSchema)]
struct RunError {
    /// The id of the cell.
    cell: String,
    /// The class of the error, for example `ValueError`.
    ename: String,
    /// The message.
    evalue: String,
    /// Lines for a terminal, with ANSI colours.
    traceback: Vec<String>,
    /// Whether the variables of the session are gone.
    state_lost: bool,
}

impl RunOutcome {
    pub async fn read(api: &Api, id: &SessionId, caller: &Caller, ids: &[String]) -> Result<Self, Problem> {
        let all = api.reader.cells(id, &caller.access()).await?;
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let cells: Vec<Cell> = all.into_iter().filter(|cell| ids.contains(cell.id.as_str())).collect();
        Ok(Self::of(&cells))
    }

    fn of(cells: &[Cell]) -> Self {
        let cells_done = cells.iter().filter(|cell| cell.execution.phase == CellPhase::Finished).count();
        let is_over = cells_done == cells.len();
        let failure = first_failure(cells);
        let status = failure.and_then(|cell| cell.execution.status()).unwrap_or(ExecutionStatus::Ok);
        Self {
            state: if is_over { RunState::Finished } else { RunState::Running },
            cells: cells.iter().map(CellSummary::of).collect(),
            cells_total: cells.len(),
            cells_done,
            status: (is_over || failure.is_some()).then(|| status.into()),
            error: failure.and_then(RunError::of),
        }
    }
}

impl CellSummary {
    fn of(cell: &Cell) -> Self {
        let result = cell.execution.result.as_ref();
        let (status, metrics) = (result.map(|result| result.status.into()), result.map(metrics));
        Self { id: cell.id.clone(), state: cell.execution.phase.into(), status, metrics }
    }
}

impl RunError {
    fn of(cell: &Cell) -> Option<Self> {
        let view::ExecutionError { ename, evalue, traceback, state_lost } = view::error(cell.execution.result.as_ref()?)?;
        Some(Self { cell: cell.id.clone(), ename, evalue, traceback, state_lost })
    }
}

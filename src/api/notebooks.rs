//! Requests about the notebook of a session: import, run, and export in several formats.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::cells::parse_wait;
use super::error::Problem;
use super::sessions::check_timeout;
use super::{Api, Body, Caller, Query, SessionInPath, User, extract, guard, response_spool};
use crate::export::{self, ExportOptions, Format, ScriptStyle, Theme};
use crate::ids::{Seq, SessionId};
use crate::manager::{EventKind, NotebookRun, first_failure};
use crate::notebook::Notebook;
use crate::session::{Cell, CellPhase, ExecutionStatus};
use crate::wire::json as wire_json;

/// The content security policy of an exported page. Scripts of its plots run in an opaque origin, without access to the
/// storage or the API of this server, and pages of other sites cannot frame it.
const EXPORT_POLICY: &str = "sandbox allow-scripts allow-popups allow-downloads; frame-ancestors 'self'";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportQuery {
    to: Option<String>,
    theme: Option<String>,
    script: Option<String>,
    inputs: Option<bool>,
    outputs: Option<bool>,
}

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

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Problem> {
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
    let exported = run_blocking(move || export::export(&notebook, format, &options)).await?;
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

/// Large notebooks take long to parse and render, so this work runs outside of the runtime's threads.
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
    let parsed = run_blocking(move || Notebook::parse(&bytes)).await?;
    parsed.map_err(|error| Problem::unprocessable("bad_notebook", error.to_string()).field("notebook"))
}

pub(super) async fn put(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let bytes = extract::read_body(request).await?;
    let notebook = parse(bytes).await?;
    api.sessions.import_notebook(&id, &caller.access(), &notebook).await?;
    let warnings: Vec<String> = notebook.warnings().iter().map(ToString::to_string).collect();
    Ok(Json(json!({"cells": notebook.len(), "warnings": warnings})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Run {
    parameters: Option<Box<RawValue>>,
    from: Option<String>,
    allow_errors: bool,
    timeout_seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
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

pub(super) async fn run(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Query(query): Query<WaitQuery>,
    Body(run): Body<Run>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let timeout_seconds = match check_timeout(run.timeout_seconds)? {
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
    let status = if outcome.is_over { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(outcome.to_json())).into_response())
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
pub(super) struct RunOutcome {
    cells: Vec<Cell>,
    /// Whether all cells have ended.
    pub is_over: bool,
}

impl RunOutcome {
    pub async fn read(api: &Api, id: &SessionId, caller: &Caller, ids: &[String]) -> Result<Self, Problem> {
        let all = api.reader.cells(id, &caller.access()).await?;
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let cells: Vec<Cell> = all.into_iter().filter(|cell| ids.contains(cell.id.as_str())).collect();
        let is_over = cells.iter().all(|cell| cell.execution.phase == CellPhase::Finished);
        Ok(Self { cells, is_over })
    }

    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "state": if self.is_over { "finished" } else { "running" },
            "cells": self.cells.iter().map(summary).collect::<Vec<_>>(),
            "cells_total": self.cells.len(),
            "cells_done": self.cells.iter().filter(|cell| cell.execution.phase == CellPhase::Finished).count(),
        });
        let failure = first_failure(&self.cells);
        if self.is_over || failure.is_some() {
            let status = failure.and_then(|cell| cell.execution.status()).unwrap_or(ExecutionStatus::Ok);
            json["status"] = status.name().into();
        }
        if let Some((cell, error)) = failure.and_then(|cell| Some((cell, cell.execution.result.as_ref()?.error.as_ref()?))) {
            json["error"] =
                json!({"cell": cell.id, "ename": error.ename, "evalue": error.evalue, "traceback": error.traceback});
        }
        json
    }
}

fn summary(cell: &Cell) -> Value {
    let mut summary = json!({"id": cell.id, "state": cell.execution.phase.name()});
    if let Some(result) = &cell.execution.result {
        summary["status"] = result.status.name().into();
        summary["metrics"] = crate::session::metrics(result);
    }
    summary
}

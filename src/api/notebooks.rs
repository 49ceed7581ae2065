//! A session's notebook as a file: in, run, and out in any form.

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

use super::cells::wait_time;
use super::error::Problem;
use super::sessions::check_timeout;
use super::{Api, Body, Caller, InPath, Query, User, given, guard, large};
use crate::export::{self, ExportOptions, Format, ScriptStyle, Theme};
use crate::ids::{Seq, SessionId};
use crate::manager::{NotebookRun, failure_of};
use crate::notebook::Notebook;
use crate::session::{Cell, CellPhase, RunStatus};
use crate::wire::json as wire_json;

/// What a served page may do: its plots' scripts run, in an origin of nobody. It is not to be framed by other sites' pages, nor
/// to reach our cookies, storage or interface.
const PAGE_POLICY: &str = "sandbox allow-scripts allow-popups allow-downloads; frame-ancestors 'self'";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Form {
    to: Option<String>,
    theme: Option<String>,
    script: Option<String>,
    inputs: Option<bool>,
    outputs: Option<bool>,
}

impl Form {
    fn format(&self) -> Result<Format, Problem> {
        match self.to.as_deref() {
            None | Some("ipynb") => Ok(Format::Ipynb),
            Some("html") => Ok(Format::Html),
            Some("markdown" | "md") => Ok(Format::Markdown),
            Some("script") => Ok(Format::Script),
            Some(other) => Err(no_such("to", other, "ipynb, html, markdown and script are")),
        }
    }

    fn options(&self, name: String) -> Result<ExportOptions, Problem> {
        let theme = match self.theme.as_deref() {
            None | Some("auto") => Theme::Auto,
            Some("light") => Theme::Light,
            Some("dark") => Theme::Dark,
            Some(other) => return Err(no_such("theme", other, "auto, light and dark are")),
        };
        let script_style = match self.script.as_deref() {
            None | Some("plain") => ScriptStyle::Plain,
            Some("percent") => ScriptStyle::Percent,
            Some(other) => return Err(no_such("script", other, "plain and percent are")),
        };
        let (inputs, outputs) = (self.inputs.unwrap_or(true), self.outputs.unwrap_or(true));
        // There is no place beside an answer.
        Ok(ExportOptions { name, theme, script_style, inputs, outputs, inline_files: true, ..ExportOptions::default() })
    }
}

fn no_such(field: &'static str, value: &str, known: &str) -> Problem {
    Problem::bad_request("bad_query", format!("{field}={value:?} is not known; {known}")).field(field)
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    Query(form): Query<Form>,
) -> Result<Response, Problem> {
    let format = form.format()?;
    let row = api.keeper.row(&id, caller.sees()).await?;
    let name = row.name.unwrap_or_else(|| format!("session-{}", &id.as_str()[..8]));
    let options = form.options(name.clone())?;
    let turn = api.large.make(api.keeper.weight(&id, caller.sees()).await?).await?;
    let mut notebook = api.keeper.notebook((&id, caller.sees())).await?;
    // What widgets hold is of all runs, also of those that are shown no more.
    if caller.0.only.is_some() {
        notebook.metadata_mut().remove("widgets");
    }
    let exported = blocking(move || export::export(&notebook, format, &options)).await?;
    let mut response = large::with_turn(turn, exported.body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(exported.mime));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    let shown = if format == Format::Html { "inline" } else { "attachment" };
    let disposition = format!("{shown}; filename=\"{}.{}\"", plain(&name), exported.extension);
    if let Ok(disposition) = HeaderValue::from_str(&disposition) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// A name that is one everywhere.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).take(100).collect()
}

/// Large notebooks take a while to read and to draw: not on the threads that answer everybody.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a notebook could not be worked on");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "notebook_failed",
            "the notebook could not be worked on; see the log",
        )
    })
}

/// Reads a notebook file.
pub(super) async fn parse(bytes: Bytes) -> Result<Notebook, Problem> {
    let parsed = blocking(move || Notebook::parse(&bytes)).await?;
    parsed.map_err(|error| Problem::unprocessable("bad_notebook", error.to_string()).field("notebook"))
}

pub(super) async fn put(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let bytes = given::whole(request).await?;
    let notebook = parse(bytes).await?;
    api.keeper.import_notebook((&id, caller.sees()), &notebook).await?;
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
pub(super) struct Wait {
    wait: Option<f64>,
}

impl Wait {
    /// How long the client waits, if it does.
    pub fn time(&self) -> Result<Option<Duration>, Problem> {
        wait_time(self.wait)
    }
}

/// Names with values, read by our own parser: they are anybody's JSON.
pub(super) fn parameters(raw: Option<&str>) -> Result<Map<String, Value>, Problem> {
    let Some(raw) = raw else { return Ok(Map::new()) };
    match wire_json::parse_lenient(raw.as_bytes()) {
        Ok(Value::Object(parameters)) => Ok(parameters),
        Ok(Value::Null) => Ok(Map::new()),
        _ => {
            Err(Problem::unprocessable("bad_parameters", "parameters are an object of names and values").field("parameters"))
        }
    }
}

pub(super) async fn run(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    Query(wait): Query<Wait>,
    Body(run): Body<Run>,
) -> Result<Response, Problem> {
    let wait = wait.time()?;
    let _place = guard::place_to_wait(&api, &caller.0, wait)?;
    let timeout_seconds = match check_timeout(run.timeout_seconds)? {
        Some(seconds) => Some(seconds),
        None => api.keeper.cell_timeout(&id, caller.sees())?,
    };
    let run = NotebookRun {
        parameters: parameters(run.parameters.as_deref().map(RawValue::get))?,
        from: run.from,
        allow_errors: run.allow_errors,
        timeout_seconds,
        ..NotebookRun::default()
    };
    let before = api.keeper.row(&id, caller.sees()).await?.last_seq;
    let cells = api.keeper.run_notebook((&id, caller.sees()), run).await?;
    if let Some(wait) = wait {
        let ended = until_ended(&api, &id, &caller, before, &cells);
        // Time that is up is no error: the cells are shown as they stand.
        if let Ok(ended) = tokio::time::timeout(wait, ended).await {
            ended?;
        }
    }
    let told = Outcome::of(&api, &id, &caller, &cells).await?;
    let status = if told.is_over { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(told.json())).into_response())
}

/// Waits until all of these cells have ended, each at least once after an event.
pub(super) async fn until_ended(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    after: Seq,
    cells: &[String],
) -> Result<(), Problem> {
    let mut waiting: HashSet<&str> = cells.iter().map(String::as_str).collect();
    let mut follower = api.keeper.follow(id, caller.sees(), after)?;
    while !waiting.is_empty() {
        let Some(events) = follower.next().await? else { break };
        for event in events.iter().filter(|event| event.kind == "cell.finished") {
            event.cell.as_deref().map(|cell| waiting.remove(cell));
        }
    }
    Ok(())
}

/// What has become of cells that were queued together.
pub(super) struct Outcome {
    cells: Vec<Cell>,
    /// Whether all of them have ended.
    pub is_over: bool,
}

impl Outcome {
    pub async fn of(api: &Api, id: &SessionId, caller: &Caller, ids: &[String]) -> Result<Self, Problem> {
        let all = api.keeper.cells(id, caller.sees()).await?;
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let cells: Vec<Cell> = all.into_iter().filter(|cell| ids.contains(cell.id.as_str())).collect();
        let is_over = cells.iter().all(|cell| cell.run.phase == CellPhase::Finished);
        Ok(Self { cells, is_over })
    }

    pub fn json(&self) -> Value {
        let mut told = json!({
            "state": if self.is_over { "finished" } else { "running" },
            "cells": self.cells.iter().map(line).collect::<Vec<_>>(),
            "cells_total": self.cells.len(),
            "cells_done": self.cells.iter().filter(|cell| cell.run.phase == CellPhase::Finished).count(),
        });
        let failure = failure_of(&self.cells);
        if self.is_over || failure.is_some() {
            let status = failure.and_then(|cell| cell.run.status()).unwrap_or(RunStatus::Ok);
            told["status"] = status.name().into();
        }
        if let Some((cell, error)) = failure.and_then(|cell| Some((cell, cell.run.result.as_ref()?.error.as_ref()?))) {
            told["error"] =
                json!({"cell": cell.id, "ename": error.ename, "evalue": error.evalue, "traceback": error.traceback});
        }
        told
    }
}

fn line(cell: &Cell) -> Value {
    let mut line = json!({"id": cell.id, "state": cell.run.phase.name()});
    if let Some(result) = &cell.run.result {
        line["status"] = result.status.name().into();
        line["metrics"] = crate::session::metrics(result);
    }
    line
}

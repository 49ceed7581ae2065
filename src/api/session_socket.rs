//! The WebSocket of a session: its events to the client, commands from the client.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::error::Problem;
use super::events::{EventReader, EventsQuery};
use super::execution_options::RequestedOptions;
use super::socket::{self, Done, Feed, Upgrade, missing};
use super::{Api, Caller, Query, SessionInPath, audit};
use crate::audit::AuditRecord;
use crate::auth::Scope;
use crate::ids::{Access, SessionId};
use crate::session::{NewCell, SessionHandle};
use crate::telemetry::traces;

/// Open a WebSocket
///
/// The server sends the events of the session as JSON text, as `GET /v1/sessions/{session}/events` does. The client sends
/// commands (`SocketCommand`) as JSON text of at most 4 MB, and the server answers each with a `SocketReply`.
#[utoipa::path(
    get, path = "/socket", operation_id = "open_socket", tag = "events",
    params(SessionInPath, EventsQuery),
    responses((status = 101, description = "The connection is a WebSocket")),
)]
pub(super) async fn open(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    // A socket that can only read does not count as a use of the session.
    let handle = match caller.identity.scope {
        Scope::Read => api.sessions.peek(&id, &caller.access())?,
        _ => api.sessions.handle(&id, &caller.access())?,
    };
    upgrade.check()?;
    let subscription = api.reader.subscribe(&id, &caller.access(), query.seq())?;
    let reader = EventReader::new(&api, &caller, id.clone(), subscription, query.form()?);
    let trace = headers.get("traceparent").and_then(|parent| traces::current_in(parent.to_str().ok()?));
    let session = SocketSession { api: api.clone(), id, access: caller.access(), handle, trace };
    upgrade.serve(api, caller, reader, session)
}

impl Feed for EventReader {
    async fn next(&mut self) -> Option<String> {
        Some(EventReader::next(self).await?.1)
    }

    fn has_more(&self) -> bool {
        EventReader::has_more(self)
    }

    fn end(&self) -> &'static str {
        "the session was deleted"
    }
}

/// The session of a socket.
struct SocketSession {
    api: Api,
    id: SessionId,
    access: Access,
    handle: SessionHandle,
    /// The default parent of executions: the request that opened the socket, if that was part of a trace. Otherwise
    /// executions have no common parent, because a socket may stay open for days.
    trace: Option<String>,
}

/// A command that a client sends over the WebSocket of a session.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SocketCommand, examples(
    json!({"id": 1, "op": "run", "source": "6*7"}), json!({"id": 2, "op": "input", "value": "yes"})
))]
pub(super) struct Command {
    /// Any JSON. The reply has the same.
    #[schema(value_type = Option<Value>)]
    id: Option<Box<RawValue>>,
    #[schema(value_type = SocketOperation)]
    op: String,
    /// For `run`: the code of a new cell.
    source: Option<String>,
    /// For `run`: the id of the new cell, or without `source` the id of the cell that runs again. For `cancel`: the id of the
    /// cell.
    cell: Option<String>,
    /// For `input`: the text.
    value: Option<String>,
    /// For `run`: the timeout in seconds.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
    /// For `run`: whether the code may request input.
    allow_stdin: Option<bool>,
    /// For `run`: files that are kept as artifacts, as for a new cell.
    artifacts: Option<Vec<String>>,
    /// For `run`: whether the SHA-256 of each changed file is computed.
    hash_files: Option<bool>,
    /// For `run`: environment variables for the time of the execution.
    env: Option<HashMap<String, String>>,
    /// For `run`: the working folder for the time of the execution, relative to the workspace.
    cwd: Option<String>,
    /// For `run`: the trace that the execution belongs to.
    traceparent: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema")]
enum SocketOperation {
    Run,
    Cancel,
    Interrupt,
    Restart,
    Input,
}

impl socket::Command for Command {
    fn id(&self) -> Option<&RawValue> {
        self.id.as_deref()
    }

    fn op(&self) -> &str {
        &self.op
    }

    fn target(&self) -> Option<String> {
        self.cell.clone()
    }
}

impl socket::Commands for SocketSession {
    type Command = Command;

    async fn execute(&self, command: Command) -> Result<Done, Problem> {
        Ok(Done { cell: Some(self.cell_of(command).await?), ..Done::default() })
    }

    fn record(&self, caller: &Caller, op: &str, target: Option<String>, result: &str) -> Option<AuditRecord> {
        let session = Some(self.id.to_string());
        Some(AuditRecord { session, target, ..audit::of_command(op, &caller.identity, result) })
    }
}

impl SocketSession {
    /// Carries out a command. Returns the id of the cell that it runs.
    async fn cell_of(&self, command: Command) -> Result<Option<String>, Problem> {
        let Self { api, id, access, handle, .. } = self;
        match command.op.as_str() {
            "run" => {
                let trace = command.traceparent.as_deref().and_then(traces::parse_foreign).or_else(|| self.trace.clone());
                let handle = api.sessions.handle_for_write(id, access)?.traced(trace);
                let Command { timeout_seconds, allow_stdin, artifacts, hash_files, env, cwd, .. } = command;
                let requested = RequestedOptions { timeout_seconds, allow_stdin, artifacts, hash_files, env, cwd };
                let has_options = requested != RequestedOptions::default();
                let options = requested.resolve(api, id, access).await?;
                api.sessions.admit_executions(id, access, 1)?;
                let cell = match (command.source, command.cell) {
                    (Some(source), id) => {
                        handle.add_cell(NewCell { id, source, options, run: true, ..NewCell::default() }).await?
                    }
                    (None, Some(cell)) => handle.run_cell(&cell, has_options.then_some(options)).await?,
                    (None, None) => return Err(missing("source")),
                };
                return Ok(Some(cell.id));
            }
            "cancel" => drop(handle.cancel_cell(&command.cell.ok_or_else(|| missing("cell"))?).await?),
            "interrupt" => handle.interrupt().await?,
            "restart" => handle.restart().await?,
            "input" => handle.input(&command.value.ok_or_else(|| missing("value"))?).await?,
            other => {
                let detail = format!("{other:?} is not a command; use run, cancel, interrupt, restart or input");
                return Err(Problem::unprocessable("bad_op", detail).field("op"));
            }
        }
        Ok(None)
    }
}

//! The WebSocket of a session: events to the client, commands from the client, both as JSON text.

use std::collections::HashMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::error::{Problem, ProblemView};
use super::events::{EventReader, EventsQuery};
use super::execution_options::RequestedOptions;
use super::rate_limit::OpenStream;
use super::{Api, Caller, ConnectionInput, OpenConnection, Query, SessionInPath, audit, extract, guard};
use crate::auth::Scope;
use crate::ids::SessionId;
use crate::session::{NewCell, SessionHandle};
use crate::telemetry::traces;
use crate::wire::json as wire_json;

/// The largest command in bytes, and that of a client that may only read, whose commands are all refused.
const MAX_COMMAND: usize = 4 << 20;
const MAX_READERS_COMMAND: usize = 4 << 10;
/// The read buffer of a socket in bytes.
const READ_BUFFER: usize = 8 << 10;
/// How often it is checked whether a message has been arriving for too long.
const INPUT_CHECK: Duration = Duration::from_secs(10);

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
    connection: Option<Extension<OpenConnection>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    // A socket that can only read does not count as a use of the session.
    let handle = match caller.identity.scope {
        Scope::Read => api.sessions.peek(&id, &caller.access())?,
        _ => api.sessions.handle(&id, &caller.access())?,
    };
    let upgrade = upgrade.map_err(|rejection| {
        Problem::bad_request(
            "bad_upgrade",
            format!("this path accepts WebSocket connections only: {}", rejection.body_text()),
        )
    })?;
    let subscription = api.reader.subscribe(&id, &caller.access(), query.seq())?;
    let reader = EventReader::new(&api, &caller, id.clone(), subscription, query.form()?);
    let open = guard::open_stream(&api, &caller.identity)?;
    let trace = headers.get("traceparent").and_then(|parent| traces::current_in(parent.to_str().ok()?));
    let most = if caller.identity.scope < Scope::Use { MAX_READERS_COMMAND } else { MAX_COMMAND };
    let upgrade = upgrade.max_message_size(most).max_frame_size(most).read_buffer_size(READ_BUFFER);
    let input = connection.as_ref().map(|Extension(open)| open.input.clone()).unwrap_or_default();
    input.begin_socket(api.input.lease(&caller.identity.rate_key()));
    let client = Client { _open: (open, connection), api, id, caller, handle, trace, input };
    Ok(upgrade.on_upgrade(move |socket| serve(socket, reader, client)))
}

/// The client of a socket, and its session.
struct Client {
    api: Api,
    id: SessionId,
    caller: Caller,
    handle: SessionHandle,
    /// The default parent of executions: the request that opened the socket, if that was part of a trace. Otherwise
    /// executions have no common parent, because a socket may stay open for days.
    trace: Option<String>,
    input: ConnectionInput,
    _open: (OpenStream, Option<Extension<OpenConnection>>),
}

/// The frame that closes a socket.
fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

async fn serve(socket: WebSocket, mut reader: EventReader, client: Client) {
    let (mut sender, mut receiver) = socket.split();
    let tokens = client.api.tokens.clone();
    let invalid = tokens.until_invalid(client.caller.token);
    tokio::pin!(invalid);
    let mut input_check = tokio::time::interval(INPUT_CHECK);
    loop {
        let sent = tokio::select! {
            () = &mut invalid => {
                let _ = sender.send(close(1008, "the token has been revoked or has expired")).await;
                return;
            }
            _ = input_check.tick() => {
                if client.input.is_overdue() {
                    let _ = sender.send(close(1008, "the message came too slowly")).await;
                    return;
                }
                Ok(())
            }
            event = reader.next() => match event {
                // Events that are available together are sent together.
                Some((_, json)) if reader.has_more() => sender.feed(Message::text(json)).await,
                Some((_, json)) => sender.send(Message::text(json)).await,
                None => {
                    let _ = sender.send(close(1000, "the session was deleted")).await;
                    return;
                }
            },
            message = receiver.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    client.input.end_message();
                    let reply = handle_command(text.as_str(), &client).await;
                    sender.send(reply.message()).await
                }
                Some(Ok(Message::Binary(_))) => {
                    client.input.end_message();
                    let problem = Problem::bad_request("not_text", "commands must be JSON text");
                    sender.send(Reply::failed(Value::Null, &problem).message()).await
                }
                Some(Ok(Message::Ping(payload) | Message::Pong(payload))) => {
                    client.input.end_control_frame(payload.len());
                    Ok(())
                }
                Some(Ok(_)) => Ok(()),
                Some(Err(_)) if client.input.is_refused() => {
                    let _ = sender.send(close(1013, "too much input is being received at once; retry")).await;
                    return;
                }
                Some(Err(_)) | None => return,
            },
        };
        if sent.is_err() {
            return;
        }
    }
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

/// The reply to a command.
#[derive(Serialize, ToSchema)]
#[schema(as = SocketReply, examples(json!({"type": "reply", "id": 1, "ok": true, "cell": "ae18a2f3"})))]
pub(super) struct Reply {
    r#type: ReplyType,
    /// The id of the command.
    id: Value,
    ok: bool,
    /// For `run`: the id of the cell. Absent if the command failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    cell: Option<Option<String>>,
    /// Why the command failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ProblemView>,
}

/// Tells replies from events.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReplyType {
    Reply,
}

impl Reply {
    fn done(id: Value, cell: Option<String>) -> Self {
        Self { r#type: ReplyType::Reply, id, ok: true, cell: Some(cell), error: None }
    }

    fn failed(id: Value, problem: &Problem) -> Self {
        Self { r#type: ReplyType::Reply, id, ok: false, cell: None, error: Some(problem.view()) }
    }

    fn message(&self) -> Message {
        Message::text(serde_json::to_string(self).unwrap_or_default())
    }
}

/// The id of a command. It is arbitrary JSON, so our own parser reads it: serde's would interpret some keys.
fn parse_id(id: Option<&RawValue>) -> Value {
    id.and_then(|id| wire_json::parse_lenient(id.get().as_bytes()).ok()).unwrap_or(Value::Null)
}

async fn handle_command(text: &str, client: &Client) -> Reply {
    let command: Command = match extract::read_object(text.as_bytes()) {
        Ok(command) => command,
        Err(invalid) => {
            let id =
                wire_json::parse_lenient(text.as_bytes()).ok().and_then(|mut command| Some(command.get_mut("id")?.take()));
            return Reply::failed(id.unwrap_or_default(), &invalid.in_command());
        }
    };
    let id = parse_id(command.id.as_deref());
    if client.caller.identity.scope < Scope::Use {
        let status = axum::http::StatusCode::FORBIDDEN;
        return Reply::failed(id, &Problem::new(status, "scope_too_narrow", "this token can only read"));
    }
    if let Err(after) = client.api.rate_limits.check_request(&client.caller.identity.rate_key()) {
        return Reply::failed(id, &guard::too_fast("of this principal", after));
    }
    let (op, named) = (command.op.clone(), command.cell.clone());
    let done = execute(command, client).await;
    let (cell, result) = match &done {
        Ok(cell) => (cell.clone().or(named), "ok"),
        Err(problem) => (named, problem.code()),
    };
    client.api.audit.record(&audit::of_command(&op, &client.caller.identity, &client.id, cell, result));
    match done {
        Ok(cell) => Reply::done(id, cell),
        Err(problem) => Reply::failed(id, &problem),
    }
}

async fn execute(command: Command, client: &Client) -> Result<Option<String>, Problem> {
    let Client { api, id, caller, handle, .. } = client;
    let missing = |field: &'static str| Problem::unprocessable("missing_field", format!("{field} is missing")).field(field);
    match command.op.as_str() {
        "run" => {
            let trace = command.traceparent.as_deref().and_then(traces::parse_foreign).or_else(|| client.trace.clone());
            let handle = api.sessions.handle_for_write(id, &caller.access())?.traced(trace);
            let Command { timeout_seconds, allow_stdin, artifacts, hash_files, env, cwd, .. } = command;
            let requested = RequestedOptions { timeout_seconds, allow_stdin, artifacts, hash_files, env, cwd };
            let has_options = requested != RequestedOptions::default();
            let options = requested.resolve(api, id, caller).await?;
            api.sessions.admit_executions(id, &caller.access(), 1)?;
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

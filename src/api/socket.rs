//! Events over a WebSocket, as JSON text; and commands the other way.

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::Problem;
use super::events::{After, Reader};
use super::pace::OpenStream;
use super::{Api, Caller, InPath, OpenConnection, Query, cells, given, guard};
use crate::auth::Scope;
use crate::ids::SessionId;
use crate::session::{NewCell, SessionHandle};
use crate::telemetry::traces;
use crate::wire::json as wire_json;

/// Bytes of one command.
const MAX_COMMAND: usize = 32 << 20;

pub(super) async fn open(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    Query(query): Query<After>,
    connection: Option<Extension<OpenConnection>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    // Who only looks keeps no session from its idle end.
    let handle = match caller.0.scope {
        Scope::Read => api.keeper.look(&id, caller.sees())?,
        _ => api.keeper.handle(&id, caller.sees())?,
    };
    let upgrade = upgrade.map_err(|rejection| {
        Problem::bad_request("bad_upgrade", format!("this path takes WebSockets alone: {}", rejection.body_text()))
    })?;
    let follower = api.keeper.follow(&id, caller.sees(), query.seq())?;
    let reader = Reader::new(&api, &caller, id.clone(), follower, query.form()?);
    let open = guard::open_stream(&api, &caller.0)?;
    let trace = headers.get("traceparent").and_then(|parent| traces::current_below(parent.to_str().ok()?));
    let commander = Commander { _open: (open, connection), api, id, caller, handle, trace };
    let upgrade = upgrade.max_message_size(MAX_COMMAND).max_frame_size(MAX_COMMAND);
    Ok(upgrade.on_upgrade(move |socket| serve(socket, reader, commander)))
}

/// Who gives commands, and to which session.
struct Commander {
    api: Api,
    id: SessionId,
    caller: Caller,
    handle: SessionHandle,
    /// What runs are children of that do not say so themselves: the request of this socket, if it is part of something larger.
    /// Else they have nothing in common but a socket that may be open for days.
    trace: Option<String>,
    _open: (OpenStream, Option<Extension<OpenConnection>>),
}

async fn serve(socket: WebSocket, mut reader: Reader, commander: Commander) {
    let (mut sender, mut receiver) = socket.split();
    let (tokens, shown) = (commander.api.tokens.clone(), commander.caller.1);
    let invalid = tokens.until_invalid(shown);
    tokio::pin!(invalid);
    loop {
        let sent = tokio::select! {
            () = &mut invalid => {
                let frame = CloseFrame { code: 1008, reason: "the token is not valid any more".into() };
                let _ = sender.send(Message::Close(Some(frame))).await;
                return;
            }
            event = reader.next() => match event {
                // What came together goes out together.
                Some((_, json)) if reader.has_more() => sender.feed(Message::text(json)).await,
                Some((_, json)) => sender.send(Message::text(json)).await,
                None => {
                    let frame = CloseFrame { code: 1000, reason: "the session was deleted".into() };
                    let _ = sender.send(Message::Close(Some(frame))).await;
                    return;
                }
            },
            message = receiver.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let reply = obey(text.as_str(), &commander).await;
                    sender.send(Message::text(reply.to_string())).await
                }
                Some(Ok(Message::Binary(_))) => {
                    let problem = Problem::bad_request("not_text", "commands are JSON text");
                    sender.send(Message::text(failed(Value::Null, &problem).to_string())).await
                }
                Some(Ok(_)) => Ok(()),
                Some(Err(_)) | None => return,
            },
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A command. `id` is the client's, and comes back with the reply.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    /// Any JSON.
    id: Option<Box<RawValue>>,
    op: String,
    source: Option<String>,
    cell: Option<String>,
    value: Option<String>,
    timeout_seconds: Option<f64>,
    allow_stdin: Option<bool>,
    traceparent: Option<String>,
}

fn failed(id: Value, problem: &Problem) -> Value {
    json!({"type": "reply", "id": id, "ok": false, "error": problem.body()})
}

/// The client's own name for its command, read by our own parser: serde's would give a meaning to some keys.
fn echoed(id: Option<&RawValue>) -> Value {
    id.and_then(|id| wire_json::parse_lenient(id.get().as_bytes()).ok()).unwrap_or(Value::Null)
}

async fn obey(text: &str, commander: &Commander) -> Value {
    let command: Command = match given::read_object(text.as_bytes()) {
        Ok(command) => command,
        Err(wrong) => {
            let id =
                wire_json::parse_lenient(text.as_bytes()).ok().and_then(|mut command| Some(command.get_mut("id")?.take()));
            return failed(id.unwrap_or_default(), &wrong.in_command());
        }
    };
    let id = echoed(command.id.as_deref());
    if commander.caller.0.scope < Scope::Use {
        let status = axum::http::StatusCode::FORBIDDEN;
        return failed(id, &Problem::new(status, "scope_too_narrow", "this token may only look"));
    }
    if let Err(after) = commander.api.pace.count(&commander.caller.0.counted_as()) {
        return failed(id, &guard::too_fast("of yours", after));
    }
    match act(command, commander).await {
        Ok(cell) => json!({"type": "reply", "id": id, "ok": true, "cell": cell}),
        Err(problem) => failed(id, &problem),
    }
}

async fn act(command: Command, commander: &Commander) -> Result<Option<String>, Problem> {
    let Commander { api, id, caller, handle, .. } = commander;
    let missing = |field: &'static str| Problem::unprocessable("missing_field", format!("{field} is missing")).field(field);
    match command.op.as_str() {
        "run" => {
            let trace = command.traceparent.as_deref().and_then(traces::of_others).or_else(|| commander.trace.clone());
            let handle = api.keeper.handle_for_work(id, caller.sees())?.traced(trace);
            let (timeout, allow_stdin) = (command.timeout_seconds, command.allow_stdin);
            let says_how = timeout.is_some() || allow_stdin.is_some();
            let options = cells::run_options(api, id, caller, timeout, allow_stdin)?;
            let cell = match (command.source, command.cell) {
                (Some(source), id) => {
                    handle.add_cell(NewCell { id, source, options, run: true, ..NewCell::default() }).await?
                }
                (None, Some(cell)) => handle.run_cell(&cell, says_how.then_some(options)).await?,
                (None, None) => return Err(missing("source")),
            };
            return Ok(Some(cell.id));
        }
        "cancel" => drop(handle.cancel_cell(&command.cell.ok_or_else(|| missing("cell"))?).await?),
        "interrupt" => handle.interrupt().await?,
        "restart" => handle.restart().await?,
        "input" => handle.input(&command.value.ok_or_else(|| missing("value"))?).await?,
        other => {
            let detail = format!("{other:?} is no command; run, cancel, interrupt, restart and input are");
            return Err(Problem::unprocessable("bad_op", detail).field("op"));
        }
    }
    Ok(None)
}

//! Events over a WebSocket, as JSON text; and commands the other way.

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Problem;
use super::events::{After, Reader};
use super::{Api, Caller, InPath, Query};
use crate::auth::Scope;
use crate::session::{NewCell, RunOptions, SessionHandle};

/// Bytes of one command.
const MAX_COMMAND: usize = 32 << 20;

pub(super) async fn open(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    Query(query): Query<After>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let handle = api.keeper.handle(&id, caller.sees())?;
    let follower = api.keeper.follow(&id, caller.sees(), query.seq())?;
    let reader = Reader::new(&api, id, follower, query.form()?, None);
    let may_use = caller.0.scope >= Scope::Use;
    let upgrade = upgrade.max_message_size(MAX_COMMAND).max_frame_size(MAX_COMMAND);
    Ok(upgrade.on_upgrade(move |socket| serve(socket, reader, handle, may_use)))
}

async fn serve(socket: WebSocket, mut reader: Reader, handle: SessionHandle, may_use: bool) {
    let (mut sender, mut receiver) = socket.split();
    loop {
        let sent = tokio::select! {
            event = reader.next() => match event {
                Some((_, json)) => sender.send(Message::text(json)).await,
                None => {
                    let frame = CloseFrame { code: 1000, reason: "the session was deleted".into() };
                    let _ = sender.send(Message::Close(Some(frame))).await;
                    return;
                }
            },
            message = receiver.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let reply = obey(text.as_str(), &handle, may_use).await;
                    sender.send(Message::text(reply.to_string())).await
                }
                Some(Ok(Message::Binary(_))) => {
                    let problem = Problem::bad_request("not_text", "commands are JSON text");
                    sender.send(Message::text(failed(&Value::Null, &problem).to_string())).await
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
struct Command {
    #[serde(default)]
    id: Value,
    op: String,
    source: Option<String>,
    cell: Option<String>,
    value: Option<String>,
    timeout_seconds: Option<f64>,
    #[serde(default)]
    allow_stdin: bool,
}

fn failed(id: &Value, problem: &Problem) -> Value {
    json!({"type": "reply", "id": id, "ok": false, "error": problem.body()})
}

async fn obey(text: &str, handle: &SessionHandle, may_use: bool) -> Value {
    let command: Command = match serde_json::from_str(text) {
        Ok(command) => command,
        Err(error) => return failed(&Value::Null, &Problem::bad_request("bad_json", error.to_string())),
    };
    if !may_use {
        let status = axum::http::StatusCode::FORBIDDEN;
        return failed(&command.id, &Problem::new(status, "scope_too_narrow", "this token may only look"));
    }
    let id = command.id.clone();
    match act(command, handle).await {
        Ok(cell) => json!({"type": "reply", "id": id, "ok": true, "cell": cell}),
        Err(problem) => failed(&id, &problem),
    }
}

async fn act(command: Command, handle: &SessionHandle) -> Result<Option<String>, Problem> {
    let missing = |field: &'static str| Problem::unprocessable("missing_field", format!("{field} is missing")).field(field);
    let timeout_seconds = super::sessions::check_timeout(command.timeout_seconds)?;
    let options = RunOptions { timeout_seconds, allow_stdin: command.allow_stdin };
    match command.op.as_str() {
        "run" => match (command.source, command.cell) {
            (Some(source), id) => {
                let cell = NewCell { id, source, options, run: true, ..NewCell::default() };
                return Ok(Some(handle.add_cell(cell).await?.id));
            }
            (None, Some(cell)) => return Ok(Some(handle.run_cell(&cell, None).await?.id)),
            (None, None) => return Err(missing("source")),
        },
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

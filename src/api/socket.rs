//! WebSockets: events to the client, commands from the client, both as JSON text. What a socket is about gives it a [`Feed`] of
//! events and carries out its [`Commands`].

use std::time::Duration;

use axum::Extension;
use axum::extract::FromRequestParts;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::error::{Problem, ProblemView};
use super::{Api, Caller, ConnectionInput, OpenConnection, extract, guard};
use crate::audit::AuditRecord;
use crate::auth::Scope;
use crate::wire::json as wire_json;

/// The largest command in bytes, and that of a client that may only read, whose commands are all refused.
const MAX_COMMAND: usize = 4 << 20;
const MAX_READERS_COMMAND: usize = 4 << 10;
/// The read buffer of a socket in bytes.
const READ_BUFFER: usize = 8 << 10;
/// How often it is checked whether a message has been arriving for too long.
const INPUT_CHECK: Duration = Duration::from_secs(10);
/// How long a client may take to read the last events and to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The events of a socket.
pub(super) trait Feed: Send + 'static {
    /// The next event as JSON text. `None` at the end. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<String>> + Send;

    /// Whether the next event is available without waiting.
    fn has_more(&self) -> bool;

    /// Why there are no more events, for the client.
    fn end(&self) -> &'static str;
}

/// A command of a client.
pub(super) trait Command: DeserializeOwned + Send {
    /// Any JSON. The reply has the same.
    fn id(&self) -> Option<&RawValue>;

    fn op(&self) -> &str;

    /// What it is about, for the audit.
    fn target(&self) -> Option<String>;
}

/// Carries out the commands of a socket.
pub(super) trait Commands: Send + Sync + 'static {
    type Command: Command;

    fn execute(&self, command: Self::Command) -> impl Future<Output = Result<Done, Problem>> + Send;

    /// The record of a command for the audit. `None` if it needs none.
    fn record(&self, caller: &Caller, op: &str, target: Option<String>, result: &str) -> Option<AuditRecord>;
}

/// A request to make its connection a WebSocket.
pub(super) struct Upgrade {
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    connection: Option<OpenConnection>,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let connection = Option::<Extension<OpenConnection>>::from_request_parts(parts, state).await.ok().flatten();
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
        Ok(Self { upgrade, connection: connection.map(|Extension(connection)| connection) })
    }
}

impl Upgrade {
    /// Refuses requests that are no handshake of a WebSocket.
    pub fn check(&self) -> Result<(), Problem> {
        let Err(rejection) = &self.upgrade else { return Ok(()) };
        let detail = format!("this path accepts WebSocket connections only: {}", rejection.body_text());
        Err(Problem::bad_request("bad_upgrade", detail))
    }

    /// Serves the socket until its events end, the client leaves, or its token becomes invalid.
    pub fn serve(self, api: Api, caller: Caller, feed: impl Feed, commands: impl Commands) -> Result<Response, Problem> {
        self.check()?;
        let Self { upgrade: Ok(upgrade), connection } = self else { unreachable!("checked above") };
        let open = guard::open_stream(&api, &caller.identity)?;
        let most = if caller.identity.scope < Scope::Use { MAX_READERS_COMMAND } else { MAX_COMMAND };
        let upgrade = upgrade.max_message_size(most).max_frame_size(most).read_buffer_size(READ_BUFFER);
        let input = connection.as_ref().map(|open| open.input.clone()).unwrap_or_default();
        input.begin_socket(api.input.lease(&caller.identity.rate_key()));
        let client = Client { api, caller, commands, input };
        Ok(upgrade.on_upgrade(async move |socket| {
            let _open = (open, connection);
            serve(socket, feed, client).await;
        }))
    }
}

/// The client of a socket.
struct Client<C> {
    api: Api,
    caller: Caller,
    commands: C,
    input: ConnectionInput,
}

/// The frame that closes a socket.
fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

async fn serve(socket: WebSocket, mut feed: impl Feed, client: Client<impl Commands>) {
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
            event = feed.next() => match event {
                // Events that are available together are sent together.
                Some(json) if feed.has_more() => sender.feed(Message::text(json)).await,
                Some(json) => sender.send(Message::text(json)).await,
                None => {
                    let _ = sender.send(close(1000, feed.end())).await;
                    // The connection must not be reset by what the client still sends: it has not read everything.
                    let leaving = async { while let Some(Ok(_)) = receiver.next().await {} };
                    let _ = tokio::time::timeout(CLOSE_TIMEOUT, leaving).await;
                    return;
                }
            },
            message = receiver.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    client.input.end_message();
                    let reply = client.handle_command(text.as_str()).await;
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

/// What a command has done.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Of a command about a session: the id of the cell, if it concerns one.
    pub cell: Option<Option<String>>,
    /// Of `input` to a process: bytes accepted so far.
    pub input_bytes: Option<u64>,
}

/// The reply to a command.
#[derive(Serialize, ToSchema)]
#[schema(as = SocketReply, examples(
    json!({"type": "reply", "id": 1, "ok": true, "cell": "ae18a2f3"}),
    json!({"type": "reply", "id": 2, "ok": true, "input_bytes": 6})
))]
pub(super) struct Reply {
    r#type: ReplyType,
    /// The id of the command.
    id: Value,
    ok: bool,
    /// For `run`: the id of the cell. Absent if the command failed, and for processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    cell: Option<Option<String>>,
    /// For `input` and `close_input` to a process: the bytes of input that were accepted since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    input_bytes: Option<u64>,
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
    fn done(id: Value, Done { cell, input_bytes }: Done) -> Self {
        Self { r#type: ReplyType::Reply, id, ok: true, cell, input_bytes, error: None }
    }

    fn failed(id: Value, problem: &Problem) -> Self {
        Self { r#type: ReplyType::Reply, id, ok: false, cell: None, input_bytes: None, error: Some(problem.view()) }
    }

    fn message(&self) -> Message {
        Message::text(serde_json::to_string(self).unwrap_or_default())
    }
}

/// The id of a command. It is arbitrary JSON, so our own parser reads it: serde's would interpret some keys.
fn parse_id(id: Option<&RawValue>) -> Value {
    id.and_then(|id| wire_json::parse_lenient(id.get().as_bytes()).ok()).unwrap_or(Value::Null)
}

impl<C: Commands> Client<C> {
    async fn handle_command(&self, text: &str) -> Reply {
        let command: C::Command = match extract::read_object(text.as_bytes()) {
            Ok(command) => command,
            Err(invalid) => {
                let id = wire_json::parse_lenient(text.as_bytes())
                    .ok()
                    .and_then(|mut command| Some(command.get_mut("id")?.take()));
                return Reply::failed(id.unwrap_or_default(), &invalid.in_command());
            }
        };
        let id = parse_id(command.id());
        let identity = &self.caller.identity;
        if identity.scope < Scope::Use {
            let problem = Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", "this token can only read");
            return Reply::failed(id, &problem);
        }
        if let Err(after) = self.api.rate_limits.check_request(&identity.rate_key()) {
            return Reply::failed(id, &guard::too_fast("of this principal", after));
        }
        let (op, named) = (command.op().to_owned(), command.target());
        let done = self.commands.execute(command).await;
        let (target, result) = match &done {
            Ok(done) => (done.cell.clone().flatten().or(named), "ok"),
            Err(problem) => (named, problem.code()),
        };
        if let Some(record) = self.commands.record(&self.caller, &op, target, result) {
            self.api.audit.record(&record);
        }
        match done {
            Ok(done) => Reply::done(id, done),
            Err(problem) => Reply::failed(id, &problem),
        }
    }
}

/// The problem of a command without a field that it needs.
pub(super) fn missing(field: &'static str) -> Problem {
    Problem::unprocessable("missing_field", format!("{field} is missing")).field(field)
}

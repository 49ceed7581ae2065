//! The WebSocket of a process: its output to the client, input and other commands from the client.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use utoipa::{IntoParams, ToSchema};

use super::output::{Encoding, EventStream};
use super::{MAX_INPUT, ProcessInPath, Size, signal_number};
use crate::api::error::Problem;
use crate::api::sandboxes::SandboxInPath;
use crate::api::socket::{self, Done, Feed, Upgrade, missing};
use crate::api::{Api, Caller, Query, audit};
use crate::audit::AuditRecord;
use crate::ids::{ProcessId, SandboxId, Seq};
use crate::manager::Processes;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct SocketQuery {
    /// Only events with larger numbers.
    after: Option<u64>,
    /// `text` or `base64`.
    #[param(inline, value_type = Option<Encoding>)]
    encoding: Option<String>,
    /// How many bytes of output the server sends before the client acknowledges some with `ack`. Without, it sends as fast as the
    /// connection takes them.
    #[param(minimum = 1)]
    window: Option<u64>,
    /// The token, for clients that cannot set the `Authorization` header.
    // Read by the guard.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<IgnoredAny>,
}

/// Open a WebSocket of a process
///
/// The server sends the output of the process as JSON text, as `GET .../events` does, and closes the socket after `exited`. The
/// client sends commands (`ProcessCommand`) as JSON text of at most 4 MB, and the server answers each with a `SocketReply`.
#[utoipa::path(
    get, path = "/processes/{process}/socket", operation_id = "open_process_socket", tag = "processes",
    params(SandboxInPath, ProcessInPath, SocketQuery),
    responses((status = 101, description = "The connection is a WebSocket")),
)]
pub(in crate::api) async fn open_socket(
    State(api): State<Api>,
    caller: Caller,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(process): ProcessInPath,
    Query(query): Query<SocketQuery>,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let encoding = Encoding::parse(query.encoding.as_deref())?;
    let processes = api.sessions.processes(&sandbox, &caller.access())?;
    upgrade.check()?;
    let reader = processes.read(&process, Seq(query.after.unwrap_or(0))).await?;
    let window = query.window.map(Window::new).map(Arc::new);
    let output = Output { events: EventStream::new(reader, encoding), window: window.clone() };
    let commands = SocketProcess { sandbox, process, processes, window, is_input_recorded: AtomicBool::new(false) };
    upgrade.serve(api, caller, output, commands)
}

/// The output of the process of a socket.
struct Output {
    events: EventStream,
    window: Option<Arc<Window>>,
}

impl Feed for Output {
    async fn next(&mut self) -> Option<String> {
        if let Some(window) = &self.window {
            window.room().await;
        }
        let event = self.events.next().await?;
        if let Some(window) = &self.window {
            window.note_sent(event.seq(), event.size());
        }
        serde_json::to_string(&event).ok()
    }

    fn has_more(&self) -> bool {
        false
    }

    fn end(&self) -> &'static str {
        match self.events.is_finished() {
            true => "the process has ended",
            false => "the process was deleted, or its sandbox has ended",
        }
    }
}

/// Limits the output that a client has not acknowledged.
struct Window {
    limit: u64,
    unacknowledged: Mutex<Unacknowledged>,
    acknowledged: Notify,
}

#[derive(Default)]
struct Unacknowledged {
    /// The number and the size of each event.
    events: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Window {
    fn new(limit: u64) -> Self {
        Self { limit, unacknowledged: Mutex::default(), acknowledged: Notify::new() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Unacknowledged) -> T) -> T {
        work(&mut self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until another event may be sent. Only one task may wait.
    async fn room(&self) {
        while self.with(|sent| sent.bytes >= self.limit) {
            self.acknowledged.notified().await;
        }
    }

    fn note_sent(&self, seq: u64, bytes: usize) {
        self.with(|sent| {
            sent.events.push_back((seq, bytes as u64));
            sent.bytes += bytes as u64;
        });
    }

    /// Notes that the client has taken the events up to this number.
    fn acknowledge(&self, until: u64) {
        self.with(|sent| {
            while let Some((_, bytes)) = sent.events.pop_front_if(|(seq, _)| *seq <= until) {
                sent.bytes -= bytes;
            }
        });
        self.acknowledged.notify_one();
    }
}

/// A command that a client sends over the WebSocket of a process.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ProcessCommand, examples(
    json!({"id": 1, "op": "input", "text": "ls\n", "offset": 0}), json!({"id": 2, "op": "resize", "rows": 40, "cols": 120}),
    json!({"op": "signal", "signal": "SIGINT"}), json!({"op": "close_input"}), json!({"op": "ack", "seq": 17})
))]
pub(in crate::api) struct Command {
    /// Any JSON. The reply has the same.
    #[schema(value_type = Option<Value>)]
    id: Option<Box<RawValue>>,
    #[schema(value_type = ProcessOperation)]
    op: String,
    /// For `input`: what the process reads, at most 1 MB.
    text: Option<String>,
    /// For `input`: the bytes as base64, instead of `text`.
    data: Option<String>,
    /// For `input`: the number of bytes that were sent before. With it, a retry sends nothing twice: what the process has
    /// already is skipped.
    offset: Option<u64>,
    /// For `resize`.
    #[schema(minimum = 1, maximum = 1000)]
    rows: Option<u16>,
    /// For `resize`.
    #[schema(minimum = 1, maximum = 1000)]
    cols: Option<u16>,
    /// For `signal`: the name, such as `SIGINT` or `TERM`, or the number as text.
    signal: Option<String>,
    /// For `ack`: the number of the last event that the client has taken, with `window`.
    seq: Option<u64>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema")]
enum ProcessOperation {
    Input,
    CloseInput,
    Resize,
    Signal,
    Ack,
}

impl socket::Command for Command {
    fn id(&self) -> Option<&RawValue> {
        self.id.as_deref()
    }

    fn op(&self) -> &str {
        &self.op
    }

    fn target(&self) -> Option<String> {
        self.signal.clone()
    }
}

/// The process of a socket.
struct SocketProcess {
    sandbox: SandboxId,
    process: ProcessId,
    processes: Processes,
    window: Option<Arc<Window>>,
    is_input_recorded: AtomicBool,
}

impl socket::Commands for SocketProcess {
    type Command = Command;

    async fn execute(&self, command: Command) -> Result<Done, Problem> {
        let Self { process, processes, .. } = self;
        match command.op.as_str() {
            "input" => {
                let data = input_of(command.text, command.data)?;
                let info = processes.write(process, command.offset, data, false).await?;
                return Ok(Done { input_bytes: Some(info.input_bytes), ..Done::default() });
            }
            "close_input" => {
                let info = processes.write(process, None, Bytes::new(), true).await?;
                return Ok(Done { input_bytes: Some(info.input_bytes), ..Done::default() });
            }
            "resize" => {
                let (rows, cols) = command.rows.zip(command.cols).ok_or_else(|| missing("rows"))?;
                processes.resize(process, Size { rows, cols }.check()?).await?;
            }
            "signal" => {
                let number = signal_number(&command.signal.ok_or_else(|| missing("signal"))?)?;
                processes.signal(process, number).await?;
            }
            "ack" => {
                let seq = command.seq.ok_or_else(|| missing("seq"))?;
                self.window.iter().for_each(|window| window.acknowledge(seq));
            }
            other => {
                let detail = format!("{other:?} is not a command; use input, close_input, resize, signal or ack");
                return Err(Problem::unprocessable("bad_op", detail).field("op"));
            }
        }
        Ok(Done::default())
    }

    /// Of a terminal, each key is a command. So only the first input is recorded, and every signal.
    fn record(&self, caller: &Caller, op: &str, signal: Option<String>, result: &str) -> Option<AuditRecord> {
        let is_recorded = match op {
            "signal" => true,
            "input" | "close_input" => !self.is_input_recorded.swap(true, Ordering::Relaxed),
            _ => false,
        };
        let target = format!("{}{}", self.process, signal.map_or_else(String::new, |signal| format!(" {signal}")));
        let sandbox = Some(self.sandbox.to_string());
        let record = audit::of_command(op, &caller.identity, result);
        is_recorded.then_some(AuditRecord { sandbox, target: Some(target), ..record })
    }
}

fn input_of(text: Option<String>, data: Option<String>) -> Result<Bytes, Problem> {
    let bytes = match (text, data) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(data)) => {
            BASE64.decode(data).map_err(|_| Problem::unprocessable("bad_field", "data is no base64").field("data"))?
        }
        _ => return Err(missing("text")),
    };
    if bytes.len() > MAX_INPUT {
        let detail = format!("one command has at most {} KB of input; send the rest in others", MAX_INPUT >> 10);
        return Err(Problem::unprocessable("bad_field", detail).field("text"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn window_is_open_again_after_acknowledgement() {
        let window = Window::new(100);
        let is_open = || window.room().now_or_never().is_some();
        assert!(is_open());
        window.note_sent(1, 60);
        window.note_sent(2, 60);
        assert!(!is_open(), "an event may exceed it, and no other follows");
        window.acknowledge(0);
        assert!(!is_open());
        window.acknowledge(1);
        assert!(is_open());
        window.note_sent(3, 1000);
        window.acknowledge(u64::MAX);
        assert!(is_open());
    }
}

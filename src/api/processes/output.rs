//! The output of a process: as a stream of events, or collected for one response.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{ExitView, ProcessInPath, last_seen};
use crate::api::error::Problem;
use crate::api::events::{LastEventId, sse};
use crate::api::sandboxes::SandboxInPath;
use crate::api::view::api_enum;
use crate::api::{Api, Caller, Query};
use crate::ids::{ProcessId, Seq};
use crate::manager::{ProcessError, ProcessOutput, ProcessReader, ProcessStream, Processes};

/// The most bytes of each stream in a response that waits. The rest is in the events.
const MAX_COLLECTED: usize = 1 << 20;

api_enum! {
    /// Where output comes from. `terminal` joins both.
    #[schema(as = ProcessStream)]
    StreamName for ProcessStream { Stdout, Stderr, Terminal }
}

/// An event of a process.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ProcessEvent, examples(json!({"type": "output", "seq": 1, "stream": "stdout", "text": "hello\n"})))]
pub(in crate::api) enum EventView {
    /// What the process wrote.
    Output {
        #[schema(value_type = u64)]
        seq: Seq,
        stream: StreamName,
        /// As text; what is not UTF-8 is replaced. Absent with `encoding=base64`.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        text: Option<String>,
        /// The bytes as base64, with `encoding=base64`.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        data: Option<String>,
    },
    /// Events that are not kept any more.
    Lost {
        /// The first of them.
        from: u64,
        /// The last of them.
        seq: u64,
    },
    /// The last event.
    Exited {
        #[schema(value_type = u64)]
        seq: Seq,
        exit: ExitView,
    },
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct OutputQuery {
    /// Only events with larger numbers. A `Last-Event-ID` header wins over it.
    after: Option<u64>,
    /// `text` or `base64`.
    #[param(inline, value_type = Option<Encoding>)]
    encoding: Option<String>,
    /// The token, for clients that cannot set the `Authorization` header.
    // Read by the guard.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case", default = "text")]
pub(super) enum Encoding {
    Text,
    Base64,
}

impl Encoding {
    pub fn parse(name: Option<&str>) -> Result<Self, Problem> {
        match name {
            None | Some("text") => Ok(Self::Text),
            Some("base64") => Ok(Self::Base64),
            Some(other) => {
                let detail = format!("{other:?} is not an encoding; use text or base64");
                Err(Problem::bad_request("bad_query", detail).field("encoding"))
            }
        }
    }
}

/// Stream the output of a process
///
/// Sends the kept events after a number, then new ones as they are written, as server-sent events, until the process has exited. The
/// newest 16 MB are kept. While a client keeps reading, a faster process waits for it. Any number of clients can read.
#[utoipa::path(
    get, path = "/processes/{process}/events", operation_id = "stream_process_output", tag = "processes",
    params(SandboxInPath, ProcessInPath, OutputQuery, LastEventId),
    responses((status = 200, description = "Events", body = EventView, content_type = "text/event-stream")),
)]
pub(in crate::api) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(id): ProcessInPath,
    Query(query): Query<OutputQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let encoding = Encoding::parse(query.encoding.as_deref())?;
    let after = last_seen(&headers, query.after)?;
    let reader = api.sessions.processes(&sandbox, &caller.access())?.read(&id, after).await?;
    let events = stream::unfold(EventStream::new(reader, encoding), async |mut state| {
        let event = state.next().await?;
        let (seq, json) = (event.seq(), serde_json::to_string(&event).ok()?);
        Some((Ok::<_, Infallible>(Event::default().id(seq.to_string()).data(json)), state))
    });
    sse(events, &api, &caller)
}

pub(super) struct EventStream {
    reader: ProcessReader,
    encoding: Encoding,
    texts: [PartialText; 3],
    is_finished: bool,
}

impl EventStream {
    pub fn new(reader: ProcessReader, encoding: Encoding) -> Self {
        Self { reader, encoding, texts: Default::default(), is_finished: false }
    }

    /// Whether the exit was the last event, and not the end of the sandbox.
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Option<EventView> {
        if self.is_finished {
            return None;
        }
        Some(match self.reader.next().await? {
            ProcessOutput::Data { seq, stream, data } => {
                let (text, data) = match self.encoding {
                    Encoding::Text => (Some(self.texts[usize::from(stream.code()) - 1].push(&data)), None),
                    Encoding::Base64 => (None, Some(BASE64.encode(data))),
                };
                EventView::Output { seq, stream: stream.into(), text, data }
            }
            ProcessOutput::Lost { from, to } => EventView::Lost { from: from.0, seq: to.0 },
            ProcessOutput::Exited { seq, exit } => {
                self.is_finished = true;
                EventView::Exited { seq, exit: exit.into() }
            }
        })
    }
}

impl EventView {
    pub fn seq(&self) -> u64 {
        match self {
            Self::Output { seq, .. } | Self::Exited { seq, .. } => seq.0,
            Self::Lost { seq, .. } => *seq,
        }
    }

    /// How many bytes of output it has.
    pub fn size(&self) -> usize {
        match self {
            // Four characters of base64 are three bytes.
            Self::Output { text, data, .. } => {
                text.as_ref().map_or(0, String::len) + data.as_ref().map_or(0, String::len) / 4 * 3
            }
            Self::Lost { .. } | Self::Exited { .. } => 0,
        }
    }
}

/// Text that arrives in pieces, which may end within a character.
#[derive(Default)]
struct PartialText(Vec<u8>);

impl PartialText {
    /// The text so far without an incomplete character at its end, which waits for the next piece.
    fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let incomplete = match std::str::from_utf8(&self.0) {
            Ok(_) => 0,
            Err(_) => self.0.utf8_chunks().last().map_or(0, |chunk| match is_incomplete(chunk.invalid()) {
                true => chunk.invalid().len(),
                false => 0,
            }),
        };
        let rest = self.0.split_off(self.0.len() - incomplete);
        String::from_utf8_lossy(&std::mem::replace(&mut self.0, rest)).into_owned()
    }
}

/// Whether bytes are the beginning of a character and nothing else is wrong with them.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// What a process wrote, as text. What is not UTF-8 is replaced.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ProcessOutput)]
pub(in crate::api) struct CollectedOutput {
    stdout: String,
    stderr: String,
    /// The output of a process with a terminal.
    terminal: String,
    /// Whether something is missing: each text has at most the last 1 MB.
    truncated: bool,
}

/// Waits for the end of a process and returns its output. `None` if it has not ended in time.
pub(super) async fn collect(
    processes: &Processes,
    id: &ProcessId,
    wait: Duration,
) -> Result<Option<CollectedOutput>, ProcessError> {
    let mut reader = processes.read(id, Seq(0)).await?;
    let mut bytes: [Vec<u8>; 3] = Default::default();
    let mut truncated = false;
    let reading = async {
        while let Some(output) = reader.next().await {
            match output {
                ProcessOutput::Data { stream, data, .. } => {
                    let text = &mut bytes[usize::from(stream.code()) - 1];
                    text.extend_from_slice(&data);
                    // Cut rarely, so that long output is not moved again and again.
                    if text.len() > 2 * MAX_COLLECTED {
                        truncated |= keep_end(text);
                    }
                }
                ProcessOutput::Lost { .. } => truncated = true,
                ProcessOutput::Exited { .. } => return true,
            }
        }
        false
    };
    if !tokio::time::timeout(wait, reading).await.unwrap_or(false) {
        return Ok(None);
    }
    let [stdout, stderr, terminal] = bytes.map(|mut text| {
        truncated |= keep_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    Ok(Some(CollectedOutput { stdout, stderr, terminal, truncated }))
}

/// Removes the beginning of a text that is too long. Returns whether it was.
fn keep_end(text: &mut Vec<u8>) -> bool {
    let excess = text.len().saturating_sub(MAX_COLLECTED);
    text.drain(..excess);
    excess > 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn split_characters_are_joined() {
        let mut text = PartialText::default();
        let bytes = "a€😀".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|byte| text.push(&[*byte])).collect();
        assert_eq!(pieces, ["a", "", "", "€", "", "", "", "😀"]);
        assert_eq!(text.push(b"\xff\xe2"), "\u{fffd}");
        assert_eq!(text.push(b"x"), "\u{fffd}x");
    }

    proptest! {
        #[test]
        fn pieces_of_text_add_up(text in ".{0,60}", size in 1usize..7) {
            let mut partial = PartialText::default();
            let pieces: String = text.as_bytes().chunks(size).map(|piece| partial.push(piece)).collect();
            prop_assert_eq!(pieces, text);
        }
    }
}

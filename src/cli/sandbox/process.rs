//! A process in a sandbox of a server. Its output is read by number and its input sent by offset, so a connection that breaks and a
//! server that starts anew lose nothing.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{RequestError, ServerClient};
use crate::cli::attend::{ProcessEvents, RunningProcess, Written};
use crate::ids::Seq;
use crate::manager::{ProcessExit, ProcessOutput, ProcessStream, TerminalSize};
use crate::sse_decoder::SseDecoder;

/// How long to wait for a server that does not answer before it is asked again, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

#[derive(Clone)]
pub(super) struct RemoteProcess {
    client: ServerClient,
    /// The path of the process.
    path: String,
}

impl RemoteProcess {
    /// Starts a process by a key, so that a retry starts none twice.
    pub async fn start(client: ServerClient, sandbox: &str, mut new: Value) -> Result<Self, RequestError> {
        new["key"] = json!(crate::ids::random_uuid());
        let path = format!("/v1/sandboxes/{sandbox}/processes");
        let started = client.json(Method::POST, &path, Some(&new)).await?;
        Ok(Self { client, path: format!("{path}/{}", started["id"].as_str().unwrap_or_default()) })
    }

    pub fn output(&self) -> RemoteOutput {
        RemoteOutput { process: self.clone(), after: Seq::default(), stream: None, events: VecDeque::new() }
    }

    /// Forgets it.
    pub async fn delete(&self) {
        // The server forgets old ones by itself.
        let _ = self.client.json(Method::DELETE, &self.path, None).await;
    }

    async fn post(&self, what: &str, body: Value) {
        // Fails if the process has ended, which its output says.
        let _ = self.client.json(Method::POST, &format!("{}/{what}", self.path), Some(&body)).await;
    }
}

impl RunningProcess for RemoteProcess {
    async fn write(&self, offset: u64, chunk: Bytes, close: bool) -> Written {
        let path = format!("{}/input?offset={offset}&close={close}", self.path);
        match self.client.post_bytes(&path, chunk).await {
            Ok(()) => Written::Taken,
            Err(error) if is_passing(&error) => Written::Busy,
            Err(_) => Written::Closed,
        }
    }

    async fn signal(&self, number: i32) {
        self.post("signal", json!({"signal": number.to_string()})).await;
    }

    async fn resize(&self, size: TerminalSize) {
        self.post("resize", json!({"rows": size.rows, "cols": size.cols})).await;
    }
}

/// Whether the same request may succeed later: the server is away or has too much to do.
fn is_passing(error: &RequestError) -> bool {
    match error {
        RequestError::Unreachable { .. } => true,
        RequestError::Refused { status, .. } => matches!(status, 429 | 502..=504),
        RequestError::NotAServer { .. } => false,
    }
}

pub(super) struct RemoteOutput {
    process: RemoteProcess,
    /// The number of the last event that was read.
    after: Seq,
    stream: Option<(Incoming, SseDecoder)>,
    events: VecDeque<ProcessOutput>,
}

impl ProcessEvents for RemoteOutput {
    async fn next(&mut self) -> Option<ProcessOutput> {
        let mut back_off = BACK_OFF.0;
        loop {
            if let Some(event) = self.events.pop_front() {
                self.after = seq_of(&event);
                return Some(event);
            }
            match self.receive().await {
                Ok(()) => back_off = BACK_OFF.0,
                Err(error) if is_passing(&error) => {
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
                Err(_) => return None,
            }
        }
    }
}

impl RemoteOutput {
    /// Receives a piece of the stream, which is opened if there is none. Cancel safe.
    async fn receive(&mut self) -> Result<(), RequestError> {
        if self.stream.is_none() {
            let path = format!("{}/events?encoding=base64&after={}", self.process.path, self.after);
            self.stream = Some((self.process.client.stream(&path).await?, SseDecoder::default()));
        }
        let Some((body, decoder)) = &mut self.stream else { return Ok(()) };
        let received = match body.frame().await {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            // The server has ended, or the connection: what was read by halves is read again.
            _ => {
                self.stream = None;
                return Ok(());
            }
        };
        match decoder.push(&received) {
            Ok(events) => self.events.extend(events.iter().filter_map(|event| parse(event))),
            Err(_) => self.stream = None,
        }
        Ok(())
    }
}

/// An event as the server sends it; see `ProcessEvent` of docs/openapi.json.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    Output { seq: Seq, stream: String, data: String },
    Lost { from: Seq, seq: Seq },
    Exited { seq: Seq, exit: Exited },
}

#[derive(Deserialize)]
struct Exited {
    exit_code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    out_of_memory: bool,
}

fn parse(event: &str) -> Option<ProcessOutput> {
    Some(match serde_json::from_str(event).ok()? {
        Event::Output { seq, stream, data } => {
            let stream = match stream.as_str() {
                "stderr" => ProcessStream::Stderr,
                "terminal" => ProcessStream::Terminal,
                _ => ProcessStream::Stdout,
            };
            ProcessOutput::Data { seq, stream, data: BASE64.decode(data).ok()?.into() }
        }
        Event::Lost { from, seq } => ProcessOutput::Lost { from, to: seq },
        Event::Exited { seq, exit: Exited { exit_code, signal, timed_out, out_of_memory } } => {
            ProcessOutput::Exited { seq, exit: ProcessExit { code: exit_code, signal, timed_out, out_of_memory } }
        }
    })
}

fn seq_of(event: &ProcessOutput) -> Seq {
    match event {
        ProcessOutput::Data { seq, .. } | ProcessOutput::Lost { to: seq, .. } | ProcessOutput::Exited { seq, .. } => *seq,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_the_api_are_read() {
        let output = parse(r#"{"type": "output", "seq": 3, "stream": "stderr", "data": "aGk="}"#).unwrap();
        let expected = ProcessOutput::Data { seq: Seq(3), stream: ProcessStream::Stderr, data: "hi".into() };
        assert_eq!(output, expected);
        let exited = r#"{"type": "exited", "seq": 9, "exit": {"exit_code": 7, "signal": null, "timed_out": false, "out_of_memory": false}}"#;
        let exit = ProcessExit { code: Some(7), signal: None, timed_out: false, out_of_memory: false };
        assert_eq!(parse(exited).unwrap(), ProcessOutput::Exited { seq: Seq(9), exit });
        assert_eq!(parse("{}"), None);
    }
}

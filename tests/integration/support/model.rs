//! A chat model for tests: OpenAI's chat completions over HTTP, with streaming and tool calls. Its answers are scripted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// One scripted answer.
#[derive(Clone)]
pub enum Say {
    /// A text, sent word by word.
    Text(&'static str),
    /// A text, and a call that runs code.
    Run(&'static str, &'static str),
    /// A tool call with these arguments, without text.
    Call(&'static str, &'static str),
    /// A text, then a pause until [`Model::go_on`].
    Hold(&'static str),
    /// A text, then the connection is closed.
    Cut(&'static str),
    /// An HTTP error with this status and body.
    Refuse(u16, &'static str),
    /// A complete answer without streaming.
    Whole(&'static str),
    /// An invalid response body.
    Raw(&'static str),
}

#[derive(Default)]
struct State {
    script: Mutex<VecDeque<Say>>,
    requests: Mutex<Vec<Value>>,
    keys: Mutex<Vec<String>>,
    go_on: Notify,
}

/// The fake model; it runs until the test ends.
#[derive(Clone)]
pub struct Model {
    address: SocketAddr,
    state: Arc<State>,
}

impl Model {
    pub async fn start(script: impl IntoIterator<Item = Say>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let model = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        model.then(script);
        let state = model.state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    let _ = serve(stream, &state).await;
                });
            }
        });
        model
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Appends answers to the script.
    pub fn then(&self, script: impl IntoIterator<Item = Say>) {
        self.state.script.lock().unwrap().extend(script);
    }

    /// The bodies of the requests, in order.
    pub fn requests(&self) -> Vec<Value> {
        self.state.requests.lock().unwrap().clone()
    }

    pub fn keys(&self) -> Vec<String> {
        self.state.keys.lock().unwrap().clone()
    }

    /// Continues a paused answer.
    pub fn go_on(&self) {
        self.state.go_on.notify_one();
    }
}

async fn request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let length: usize =
        text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok())?;
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    assert!(text.starts_with("POST /v1/chat/completions "), "{text}");
    Some((text, serde_json::from_slice(&bytes[head..head + length]).unwrap()))
}

fn delta(delta: &Value, finish: Option<&str>) -> String {
    let chunk = json!({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    format!("data: {chunk}\n\n")
}

/// Sends a stream in pieces that do not end at event boundaries.
async fn send(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    for piece in text.as_bytes().chunks(37) {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        stream.write_all(piece).await?;
        stream.write_all(b"\r\n").await?;
        stream.flush().await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn words(text: &str) -> String {
    text.split_inclusive(' ').map(|word| delta(&json!({"content": word}), None)).collect()
}

fn call(name: &str, arguments: &str) -> String {
    let (first, rest) = arguments.split_at(arguments.floor_char_boundary(arguments.len() / 2));
    let piece = |function: Value| {
        delta(&json!({"tool_calls": [{"index": 0, "id": "call_7", "type": "function", "function": function}]}), None)
    };
    let mut all = piece(json!({"name": name, "arguments": ""}));
    all += &delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": first}}]}), None);
    all += &delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": rest}}]}), None);
    all + &delta(&json!({}), Some("tool_calls"))
}

async fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let Some((head, body)) = request(&mut stream).await else { return Ok(()) };
    let key = head.lines().find_map(|line| line.to_lowercase().starts_with("authorization:").then(|| line.to_owned()));
    state.keys.lock().unwrap().extend(key);
    state.requests.lock().unwrap().push(body);
    let say = state.script.lock().unwrap().pop_front().unwrap_or(Say::Refuse(500, "{\"error\": \"nothing more to say\"}"));
    if let Say::Refuse(..) | Say::Whole(_) | Say::Raw(_) = &say {
        let (status, kind, body) = match say {
            Say::Refuse(status, body) => (status, "application/json", body.to_owned()),
            Say::Raw(body) => (200, "text/event-stream", body.to_owned()),
            Say::Whole(text) => {
                let message =
                    json!({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]});
                (200, "application/json", message.to_string())
            }
            _ => return Ok(()),
        };
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nretry-after: 9\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        return stream.write_all(body.as_bytes()).await;
    }
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        )
        .await?;
    send(&mut stream, &format!(": hello\n\n{}", delta(&json!({"role": "assistant", "content": ""}), None))).await?;
    match say {
        Say::Text(text) => send(&mut stream, &(words(text) + &delta(&json!({}), Some("stop")))).await?,
        Say::Run(text, code) => {
            send(&mut stream, &(words(text) + &call("run_code", &json!({"code": code}).to_string()))).await?
        }
        Say::Call(name, arguments) => send(&mut stream, &call(name, arguments)).await?,
        Say::Hold(text) => {
            send(&mut stream, &words(text)).await?;
            state.go_on.notified().await;
            send(&mut stream, &delta(&json!({"content": "And on."}), Some("stop"))).await?;
        }
        Say::Cut(text) => return send(&mut stream, &words(text)).await,
        Say::Refuse(..) | Say::Whole(_) | Say::Raw(_) => {}
    }
    send(&mut stream, "data: [DONE]\n\n").await?;
    stream.write_all(b"0\r\n\r\n").await
}

//! The least that a client can be: one connection without delays, one request after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// The token of all servers that are measured.
pub(super) const TOKEN: &str = "a-token-for-the-bench-and-nothing-else";
const PATIENCE: Duration = Duration::from_secs(120);

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection that is kept.
pub(crate) struct Http {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Http {
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { address, stream: BufReader::new(connect(address)?) })
    }

    /// Asks, and gives the JSON of the answer; of no answer but one that says yes.
    pub fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, body) = self.exchange(method, path, body)?;
        let text = || String::from_utf8_lossy(&body);
        ensure!((200..300).contains(&status), "{method} {path}: {status} {}", text());
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).with_context(|| format!("{method} {path}: {}", text()))
    }

    /// Asks, and gives the answer's status and body.
    pub fn exchange(&mut self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Vec<u8>)> {
        self.send(method, path, "1.1", body)?;
        let (status, length) = self.head()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    /// The lines of an answer that does not end. In the older protocol it comes as it is, without chunks.
    pub fn stream(mut self, path: &str) -> anyhow::Result<impl Iterator<Item = std::io::Result<String>>> {
        self.send("GET", path, "1.0", None)?;
        let (status, _) = self.head()?;
        ensure!(status == 200, "GET {path}: {status}");
        Ok(self.stream.lines())
    }

    fn send(&mut self, method: &str, path: &str, version: &str, body: Option<&Value>) -> std::io::Result<()> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (address, length) = (self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/{version}\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())
    }

    fn head(&mut self) -> anyhow::Result<(u16, usize)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no answer")?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { return Ok((status, length)) };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
        }
    }
}

/// What the client of either server can do.
pub(super) trait Kernel {
    /// Runs code to its end; gives how many characters it printed that arrived.
    fn run(&mut self, code: &str) -> anyhow::Result<usize>;
}

/// Messages of JSON.
struct Socket(WebSocket<TcpStream>);

impl Socket {
    fn open(address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse()?);
        // jupyter_server sends what it sends at all in one piece, however large.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let stream = connect(address)?;
        match tungstenite::client::client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(error) => bail!("no WebSocket at {path}: {error}"),
        }
    }

    fn send(&mut self, message: &Value) -> anyhow::Result<()> {
        Ok(self.0.send(Message::text(message.to_string()))?)
    }

    fn receive(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Message::Text(text) = self.0.read()? {
                return Ok(serde_json::from_str(&text)?);
            }
        }
    }
}

/// A session of ours, by its WebSocket.
pub(super) struct OverSocket(Socket);

impl OverSocket {
    pub fn open(address: SocketAddr, session: &str) -> anyhow::Result<Self> {
        Ok(Self(Socket::open(address, &format!("/v1/sessions/{session}/socket"))?))
    }
}

impl Kernel for OverSocket {
    fn run(&mut self, code: &str) -> anyhow::Result<usize> {
        self.0.send(&json!({"op": "run", "source": code}))?;
        let mut printed = 0;
        while !take_event(&self.0.receive()?, &mut printed)? {}
        Ok(printed)
    }
}

/// Counts what an event of ours prints; tells whether it is the end of a run, which must be a good one.
fn take_event(event: &Value, printed: &mut usize) -> anyhow::Result<bool> {
    match event["type"].as_str() {
        Some("output.append" | "output.update") => *printed += event["output"]["text"].as_str().map_or(0, str::len),
        Some("cell.finished") => {
            ensure!(event["status"] == "ok", "the cell ended otherwise: {event}");
            return Ok(true);
        }
        Some("reply") => ensure!(event["ok"] == true, "refused: {event}"),
        _ => {}
    }
    Ok(false)
}

/// A session of ours, by requests that wait until the cell has ended.
pub(super) struct OverPost {
    http: Http,
    path: String,
}

impl OverPost {
    pub fn open(address: SocketAddr, session: &str) -> anyhow::Result<Self> {
        let path = format!("/v1/sessions/{session}/cells?wait={}", PATIENCE.as_secs());
        Ok(Self { http: Http::connect(address)?, path })
    }
}

impl Kernel for OverPost {
    fn run(&mut self, code: &str) -> anyhow::Result<usize> {
        let cell = self.http.ask("POST", &self.path, Some(&json!({"source": code})))?;
        ensure!(cell["status"] == "ok", "the cell ended otherwise: {cell}");
        let outputs = cell["outputs"].as_array().context("a cell without outputs")?;
        Ok(outputs.iter().filter_map(|output| output["text"].as_str()).map(str::len).sum())
    }
}

/// A session of ours, by its stream of events from the first.
pub(super) struct OverStream {
    address: SocketAddr,
    session: String,
}

impl OverStream {
    pub fn open(address: SocketAddr, session: &str) -> Self {
        Self { address, session: session.to_owned() }
    }
}

impl Kernel for OverStream {
    fn run(&mut self, code: &str) -> anyhow::Result<usize> {
        let at = format!("/v1/sessions/{}", self.session);
        let cell = Http::connect(self.address)?.ask("POST", &format!("{at}/cells"), Some(&json!({"source": code})))?;
        let mut printed = 0;
        for line in Http::connect(self.address)?.stream(&format!("{at}/events"))? {
            let line = line?;
            let Some(event) = line.strip_prefix("data: ") else { continue };
            let event: Value = serde_json::from_str(event)?;
            if event["cell"] == cell["id"] && take_event(&event, &mut printed)? {
                return Ok(printed);
            }
        }
        bail!("the events ended before the cell")
    }
}

/// A kernel of jupyter_server's, by its WebSocket.
pub(super) struct Jupyter {
    socket: Socket,
    sent: u64,
}

impl Jupyter {
    pub fn open(address: SocketAddr, kernel: &str) -> anyhow::Result<Self> {
        let path = format!("/api/kernels/{kernel}/channels?session_id=bench");
        Ok(Self { socket: Socket::open(address, &path)?, sent: 0 })
    }
}

impl Kernel for Jupyter {
    fn run(&mut self, code: &str) -> anyhow::Result<usize> {
        self.sent += 1;
        let id = format!("bench-{}", self.sent);
        self.socket.send(&json!({
            "channel": "shell", "parent_header": {}, "metadata": {}, "buffers": [],
            "header": {
                "msg_id": id, "msg_type": "execute_request", "session": "bench", "username": "bench", "version": "5.3",
                "date": "2026-01-01T00:00:00Z",
            },
            "content": {
                "code": code, "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": false,
                "stop_on_error": false,
            },
        }))?;
        let (mut printed, mut replied, mut idle) = (0, false, false);
        while !(replied && idle) {
            let message = self.socket.receive()?;
            let content = &message["content"];
            match message["msg_type"].as_str().filter(|_| message["parent_header"]["msg_id"] == id.as_str()) {
                Some("execute_reply") => {
                    ensure!(content["status"] == "ok", "unexpected reply: {content}");
                    replied = true;
                }
                Some("status") => idle |= content["execution_state"] == "idle",
                Some("stream") if content["name"] == "stdout" => printed += content["text"].as_str().map_or(0, str::len),
                _ => {}
            }
        }
        Ok(printed)
    }
}

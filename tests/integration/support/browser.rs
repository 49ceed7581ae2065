//! A headless Chromium, controlled over the DevTools protocol.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const TIMEOUT: Duration = Duration::from_secs(120);

/// A browser with one page. Records the events of the page and its frames.
pub struct Browser {
    child: Child,
    socket: WebSocketStream<TcpStream>,
    session: String,
    next: u64,
    events: VecDeque<Value>,
    /// Execution contexts of frames: DevTools session and context id. Frames of other origins have their own process and
    /// session.
    frames: Vec<(String, u64)>,
}

impl Browser {
    /// The installed Chromium.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        let names = ["chromium", "chromium-browser", "google-chrome"];
        std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|program| program.is_file())
    }

    pub async fn start(program: &Path, profile: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1100,900"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let address = read_when_written(&profile.join("DevToolsActivePort")).await;
        let (port, path) = address.split_once('\n').unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port.trim().parse().unwrap())).await.unwrap();
        let url = format!("ws://127.0.0.1:{}{}", port.trim(), path.trim());
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        let mut browser =
            Self { child, socket, session: String::new(), next: 0, events: VecDeque::new(), frames: Vec::new() };
        let page = browser.blank_page().await;
        let attached = browser.call("Target.attachToTarget", json!({"targetId": page, "flatten": true})).await;
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.call("Target.setAutoAttach", auto_attach()).await;
        browser
    }

    async fn blank_page(&mut self) -> String {
        let started = Instant::now();
        loop {
            let targets = self.call("Target.getTargets", json!({})).await;
            let page = targets["targetInfos"]
                .as_array()
                .unwrap()
                .iter()
                .find(|one| one["type"] == "page" && one["url"] == "about:blank");
            if let Some(page) = page {
                return page["targetId"].as_str().unwrap().to_owned();
            }
            assert!(started.elapsed() < TIMEOUT, "no page: {targets}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
    }

    /// Evaluates an expression in the page.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true})).await;
        assert!(answer.get("exceptionDetails").is_none(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Evaluates an expression in every frame.
    pub async fn evaluate_in_frames(&mut self, expression: &str) -> Vec<Value> {
        // Pending events about frames arrive before this answer.
        self.evaluate("1").await;
        let mut values = Vec::new();
        for (process, document) in self.frames.clone() {
            let parameters = json!({"expression": expression, "returnByValue": true, "contextId": document});
            // A frame may have been removed meanwhile.
            if let Ok(answer) = self.call_in(&process, "Runtime.evaluate", parameters).await {
                values.push(answer["result"]["value"].clone());
            }
        }
        values
    }

    /// Types text into the focused element.
    pub async fn insert(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Emulates media features, such as the preferred colour scheme.
    pub async fn media(&mut self, features: &[(&str, &str)]) {
        let features: Vec<_> = features.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    pub async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Saves a screenshot into the folder of `CELLKEEP_SCREENSHOTS`, if it is set.
    pub async fn screenshot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("CELLKEEP_SCREENSHOTS") else { return };
        let taken = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), crate::server::base64_bytes(&taken["data"])).unwrap();
    }

    /// Repeats an action and an expression (which returns JSON text) until its value satisfies `is_done`.
    pub async fn until(&mut self, act: &str, look: &str, is_done: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            self.evaluate(act).await;
            let seen = self.evaluate(look).await;
            let seen: Value = serde_json::from_str(seen.as_str().unwrap()).unwrap();
            if is_done(&seen) {
                return seen;
            }
            assert!(started.elapsed() < TIMEOUT, "still {seen}; {:?}", self.events);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Closes the browser. Returns errors and warnings of the page and its frames; asserts that all requests went to these
    /// origins.
    pub async fn end(self, origins: &[&str]) -> Vec<String> {
        let (complaints, requests) = self.finish().await;
        let is_known =
            |url: &str| origins.iter().any(|origin| url.strip_prefix(origin).is_some_and(|at| at.starts_with('/')));
        let foreign: Vec<_> = requests.iter().filter(|url| !is_known(url)).collect();
        assert_eq!(foreign, [""; 0], "requests left {origins:?}");
        complaints
    }

    /// Closes the browser. Returns errors and warnings of the page and its frames, and the URLs of all requests.
    pub async fn finish(mut self) -> (Vec<String>, Vec<String>) {
        // Pending events arrive before this answer.
        self.evaluate("1").await;
        let (mut complaints, mut requests) = (Vec::new(), Vec::new());
        for event in &self.events {
            let parameters = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" => complaints.push(parameters.to_string()),
                "Runtime.consoleAPICalled"
                    if ["error", "warning"].contains(&parameters["type"].as_str().unwrap_or_default()) =>
                {
                    complaints.push(parameters.to_string());
                }
                "Log.entryAdded" if parameters["entry"]["level"] != "verbose" => complaints.push(parameters.to_string()),
                "Network.requestWillBeSent" => {
                    let url = parameters["request"]["url"].as_str().unwrap_or_default();
                    let own = ["file://", "data:", "blob:", "about:"].iter().any(|scheme| url.starts_with(scheme));
                    requests.extend((!own).then(|| url.to_owned()));
                }
                _ => {}
            }
        }
        let _ = self.child.kill().await;
        (complaints, requests)
    }

    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        let session = self.session.clone();
        let answer = self.call_in(&session, method, parameters).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn call_in(&mut self, session: &str, method: &str, parameters: Value) -> Result<Value, Value> {
        let id = self.send(method, parameters, session).await;
        loop {
            let message = tokio::time::timeout(TIMEOUT, self.socket.next()).await.expect("no answer").unwrap().unwrap();
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == id {
                return message.get("error").map_or_else(|| Ok(message["result"].clone()), |error| Err(error.clone()));
            }
            if message["method"] == "Target.attachedToTarget" && message["params"]["targetInfo"]["type"] == "iframe" {
                let frame = message["params"]["sessionId"].as_str().unwrap().to_owned();
                for domain in ["Runtime.enable", "Log.enable", "Network.enable"] {
                    self.send(domain, json!({}), &frame).await;
                }
                self.send("Target.setAutoAttach", auto_attach(), &frame).await;
            }
            self.track_frames(&message);
            if message["method"] == "Target.detachedFromTarget" && message["params"]["sessionId"] == session {
                // This session will not answer any more.
                return Err(message);
            }
            if message.get("method").is_some() {
                self.events.push_back(message);
            }
        }
    }

    /// Keeps track of the execution contexts of frames.
    fn track_frames(&mut self, message: &Value) {
        let (process, parameters) = (message["sessionId"].as_str().unwrap_or_default(), &message["params"]);
        match message["method"].as_str().unwrap_or_default() {
            "Runtime.executionContextCreated" if process != self.session => {
                self.frames.push((process.to_owned(), parameters["context"]["id"].as_u64().unwrap()));
            }
            "Runtime.executionContextDestroyed" => {
                self.frames.retain(|(of, id)| of != process || parameters["executionContextId"] != *id);
            }
            "Runtime.executionContextsCleared" => self.frames.retain(|(of, _)| of != process),
            "Target.detachedFromTarget" => self.frames.retain(|(of, _)| parameters["sessionId"] != of.as_str()),
            _ => {}
        }
    }

    async fn send(&mut self, method: &str, parameters: Value, session: &str) -> u64 {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": parameters});
        if !session.is_empty() {
            message["sessionId"] = session.into();
        }
        self.socket.send(Message::text(message.to_string())).await.unwrap();
        self.next
    }
}

fn auto_attach() -> Value {
    json!({"autoAttach": true, "waitForDebuggerOnStart": false, "flatten": true})
}

async fn read_when_written(path: &Path) -> String {
    let started = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(path)
            && text.trim_end().contains('\n')
        {
            return text;
        }
        assert!(started.elapsed() < TIMEOUT, "the browser did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

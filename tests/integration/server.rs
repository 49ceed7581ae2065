//! A `cellkeep serve` process per test, which can be killed and restarted, and a client that follows it to its new port.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use cellkeep::config::Paths;
use cellkeep::ids::Access;
use cellkeep::manager::Manager;
use cellkeep::sandbox::SandboxKind;
use cellkeep::store::Store;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::contract;
use crate::support::{PATIENCE, TestSandbox};

/// The token of the test servers, with the scope `admin`.
pub const TOKEN: &str = "ck_of-the-tests";
/// The delay between two attempts while no server runs.
pub const PACE: Duration = Duration::from_millis(10);

/// A server with its own data folder.
pub struct Server {
    data: PathBuf,
    kind: SandboxKind,
    arguments: Vec<String>,
    /// The address: a port that the server chooses, or one that a browser knows already.
    pub listen: SocketAddr,
    /// Its environment variables. `CELLKEEP_LOG` defaults to warnings.
    pub env: Vec<(&'static str, String)>,
    /// Its limit of file descriptors, if different from ours.
    pub descriptors: Option<u64>,
    child: Option<Child>,
    address: watch::Sender<SocketAddr>,
}

impl Server {
    /// Starts a server on a port that it chooses.
    pub async fn start(name: &str, place: TestSandbox, arguments: &[&str]) -> Self {
        let name = format!("ck-{name}-{}-{}", place.kind, std::process::id());
        let data = std::env::temp_dir().join(name);
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(Paths::from_environment().kernels(), data.join("kernels")).unwrap();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (address, _) = watch::channel(SocketAddr::from(([127, 0, 0, 1], 0)));
        let env = vec![("CELLKEEP_LOG", "warn".to_owned())];
        let listen = ([127, 0, 0, 1], 0).into();
        let mut server = Self { data, kind: place.kind, arguments, listen, env, descriptors: None, child: None, address };
        server.start_again().await;
        server
    }

    pub fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_cellkeep");
        let mut command = match self.descriptors {
            Some(count) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {count} && exec \"$0\" \"$@\""), program]);
                shell
            }
            None => Command::new(program),
        };
        command.args(["serve", "--listen", &self.listen.to_string(), "--sandbox", &self.kind.to_string(), "--data"]);
        command.arg(&self.data).args(&self.arguments).env("CELLKEEP_TOKEN", TOKEN).envs(self.env.iter().cloned());
        command
    }

    /// Starts the server on existing data, and waits until it serves.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut child = self.command().stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        self.child = Some(child);
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(PATIENCE, line).await.expect("it starts").unwrap().unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.trim().split('/').next());
        let address = address.unwrap_or_else(|| panic!("it says {line:?}\n{}", self.stderr()));
        self.address.send_replace(address.parse().unwrap());
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// The text on its standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn paths(&self) -> Paths {
        Paths::new(&self.data)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Kills the server with SIGKILL.
    pub async fn kill(&mut self) {
        self.end_with(Signal::KILL).await;
    }

    /// Stops the server with a signal.
    pub async fn stop(&mut self) -> ExitStatus {
        self.end_with(Signal::TERM).await
    }

    async fn end_with(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let waiting = tokio::task::spawn_blocking(move || child.wait());
        tokio::time::timeout(PATIENCE, waiting).await.expect("it ends").unwrap().unwrap()
    }

    /// A client with the scope `admin`.
    pub fn client(&self) -> Client {
        Client { address: self.address.subscribe(), token: Some(TOKEN.to_owned()), headers: Vec::new() }
    }

    /// Creates a token with the command line. Returns its id and a client that uses it.
    pub async fn client_with(&self, arguments: &[&str]) -> (String, Client) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        command.args(["token", "create"]).args(arguments).arg("--data").arg(&self.data);
        let made = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let id = String::from_utf8_lossy(&made.stderr).split_whitespace().nth(1).unwrap().to_owned();
        let secret = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let client = Client { token: Some(secret), ..self.client() };
        // A running server reloads tokens within seconds.
        client.until("/v1/sessions", |reply| reply.status != 401).await;
        (id, client)
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Peak resident memory since [`Self::forget_peak`] in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Ends all sessions and the server, and checks that nothing of them is left.
    pub async fn end(mut self) {
        let client = self.client();
        let ids = client.session_ids().await;
        for id in &ids {
            client.delete(&format!("/v1/sessions/{id}")).await.is(204);
        }
        assert!(self.stop().await.success(), "{}", self.stderr());
        self.assert_nothing_left(&ids).await;
        assert!(!self.stderr().contains("panicked"), "{}", self.stderr());
        let _ = fs::remove_file(self.log());
    }

    /// Checks that no folder, process, container, cgroup, row or blob is left. The server must have ended.
    pub async fn assert_nothing_left(&self, ids: &[String]) {
        assert_eq!(list(&self.paths().sandboxes()), Vec::<String>::new(), "folders of sandboxes");
        assert_eq!(self.sandboxes().await, 0, "sandboxes");
        assert_eq!(list(&self.paths().blobs()), Vec::<String>::new(), "blobs");
        for id in ids {
            assert_eq!(processes_of(id), Vec::<String>::new(), "processes");
            for hierarchy in ["", "memory", "cpu", "pids", "cpuacct"] {
                let group = Path::new("/sys/fs/cgroup").join(hierarchy).join("cellkeep").join(id);
                assert!(!group.exists(), "its cgroup is left: {}", group.display());
            }
        }
        let store = Store::open(&self.paths().journal()).unwrap();
        assert_eq!(store.sessions(&Access::All).await.unwrap(), Vec::new(), "rows");
        assert_eq!(store.sandboxes().await.unwrap(), Vec::new(), "rows of sandboxes");
        assert_eq!(store.artifact_hashes().await.unwrap(), Vec::<String>::new(), "rows of artifacts");
        for id in ids {
            let id = cellkeep::ids::SessionId::parse(id).unwrap();
            let events = store.events_after(&id, cellkeep::ids::Seq(0), 10, 1000).await.unwrap();
            assert_eq!(events, Vec::new(), "rows of events");
        }
    }

    async fn sandboxes(&self) -> usize {
        match Manager::new(self.paths()).sandbox(self.kind).await {
            Ok(sandbox) => sandbox.list().await.unwrap().len(),
            Err(_) => 0,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.stderr());
        }
        // The remains of a failed test must not disturb other tests.
        let (paths, kind) = (self.paths(), self.kind);
        let clearing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let Ok(sandbox) = Manager::new(paths).sandbox(kind).await else { return };
                for record in sandbox.list().await.unwrap_or_default() {
                    let _ = sandbox.destroy(&record).await;
                }
            });
        });
        let _ = clearing.join();
        let _ = fs::remove_dir_all(&self.data);
    }
}

fn list(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string()).collect()
}

/// Processes with the session id in their arguments or their cgroup.
fn processes_of(id: &str) -> Vec<String> {
    let names = |path: PathBuf| fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(id));
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let theirs = processes.filter(|path| names(path.join("cmdline")) || names(path.join("cgroup")));
    theirs.map(|path| path.display().to_string()).collect()
}

/// A client that finds the current address of its server.
#[derive(Clone)]
pub struct Client {
    pub address: watch::Receiver<SocketAddr>,
    pub token: Option<String>,
    pub headers: Vec<(&'static str, String)>,
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(4000)]).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Asserts the status. Returns the JSON body.
    #[track_caller]
    pub fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// Asserts that the response is a problem with this status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let body = self.is(status);
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        for field in ["type", "title", "detail"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        }
        body
    }
}

/// Why a client got no response.
type Failed = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    pub fn anonymous(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    pub fn with(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name, value.to_owned()));
        client
    }

    pub fn address(&self) -> SocketAddr {
        *self.address.borrow()
    }

    async fn open(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failed> {
        let address = self.address();
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if self.headers.iter().all(|(name, _)| *name != "host") {
            request = request.header(HOST, address.to_string());
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if self.headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body))?;
        Ok(sender.send_request(request).await?)
    }

    /// One attempt, which fails if the server is killed meanwhile.
    pub async fn attempt(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, Failed> {
        let whole = async {
            let response = self.open(method.clone(), path, body).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            let reply = Reply { status: head.status.as_u16(), headers: head.headers, body };
            contract::check(&method, path, &reply);
            if path.starts_with("/v1/") {
                assert_eq!(reply.header("cache-control"), "no-store", "{method} {path}");
            }
            Ok(reply)
        };
        tokio::time::timeout(PATIENCE, whole).await.map_err(|_| "no answer in time")?
    }

    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Reply {
        let tried = self.attempt(method.clone(), path, body.into()).await;
        tried.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PATCH, path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.send(Method::PUT, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    /// Retries until a server responds. For idempotent requests only.
    pub async fn surely(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Reply {
        let body = body.into();
        let trying = async {
            loop {
                if let Ok(reply) = self.attempt(method.clone(), path, body.clone()).await {
                    return reply;
                }
                tokio::time::sleep(PACE).await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.unwrap_or_else(|_| panic!("{method} {path}: never answered"))
    }

    /// Polls until the response satisfies the predicate.
    pub async fn until(&self, path: &str, done: impl Fn(&Reply) -> bool) -> Reply {
        let looking = async {
            loop {
                let reply = self.surely(Method::GET, path, "").await;
                if done(&reply) {
                    return reply;
                }
                tokio::time::sleep(PACE).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{path} never becomes so"))
    }

    pub async fn session_ids(&self) -> Vec<String> {
        let listed = self.get("/v1/sessions").await.is(200);
        listed["sessions"].as_array().unwrap().iter().map(|session| session["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Creates a session.
    pub async fn create(&self, fields: Value) -> RemoteSession {
        let made = self.post("/v1/sessions", fields).await.is(201);
        RemoteSession { client: self.clone(), id: made["id"].as_str().unwrap().to_owned() }
    }

    /// Opens an event stream.
    pub async fn stream(&self, path: &str) -> Result<EventStream, Failed> {
        let response = self.open(Method::GET, path, Bytes::new()).await?;
        if response.status() != 200 {
            return Err(format!("{path}: {}", response.status()).into());
        }
        Ok(EventStream { body: response.into_body(), buffer: BytesMut::new() })
    }

    /// Sends a request whose response is an event stream.
    pub async fn post_stream(&self, path: &str, body: Value) -> EventStream {
        let client = self.with("accept", "text/event-stream");
        let response = client.open(Method::POST, path, body.to_string().into()).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        EventStream { body: response.into_body(), buffer: BytesMut::new() }
    }
}

/// A stream of server-sent events.
pub struct EventStream {
    body: Incoming,
    buffer: BytesMut,
}

impl EventStream {
    /// The next event. `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Value>, Failed> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\n\n") {
                let block = self.buffer.split_to(end + 2);
                let block = std::str::from_utf8(&block)?;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                let Some(data) = field("data: ") else { continue };
                let event: Value = serde_json::from_str(data)?;
                assert_eq!(field("id: ").unwrap(), event["seq"].to_string(), "the id is the number");
                contract::check_event(&event);
                return Ok(Some(event));
            }
            match self.body.frame().await {
                Some(frame) => self.buffer.extend_from_slice(frame?.data_ref().map_or(b"", |data| data)),
                None => return Ok(None),
            }
        }
    }

    /// The next event of a type. Other events are skipped.
    pub async fn next_of(&mut self, kind: &str) -> Value {
        let looking = async {
            loop {
                let event = self.next().await.unwrap().unwrap_or_else(|| panic!("no {kind} before the end"));
                if event["type"] == kind {
                    return event;
                }
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("no {kind} comes"))
    }
}

/// A session of a server.
#[derive(Clone)]
pub struct RemoteSession {
    pub client: Client,
    pub id: String,
}

impl RemoteSession {
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/sessions/{}{rest}", self.id)
    }

    pub async fn view(&self) -> Value {
        self.client.get(&self.path("")).await.is(200)
    }

    /// Runs code and waits for its end. Returns the cell.
    pub async fn run(&self, source: &str) -> Value {
        let cell = self.client.post(&self.path("/cells?wait=120"), json!({"source": source})).await.is(201);
        assert_eq!(cell["state"], "finished", "{cell}");
        cell
    }

    /// Runs code that must succeed. Returns its standard output.
    pub async fn ok(&self, source: &str) -> String {
        let cell = self.run(source).await;
        assert_eq!(cell["status"], "ok", "{cell}");
        printed(&cell)
    }

    /// Adds a cell that runs, without waiting.
    pub async fn begin(&self, id: &str, source: &str) {
        let fields = json!({"id": id, "source": source, "allow_stdin": true, "timeout_seconds": 600});
        self.client.post(&self.path("/cells"), fields).await.is(201);
    }

    pub async fn cell(&self, id: &str) -> Value {
        self.client.surely(Method::GET, &self.path(&format!("/cells/{id}")), "").await.is(200)
    }

    /// Waits until a cell has this state.
    pub async fn cell_until(&self, id: &str, done: impl Fn(&Value) -> bool) -> Value {
        self.client.until(&self.path(&format!("/cells/{id}")), |reply| done(&reply.json())).await.json()
    }

    pub async fn finished(&self, id: &str) -> Value {
        self.cell_until(id, |cell| cell["state"] == "finished").await
    }

    pub async fn events(&self, after: u64) -> EventStream {
        self.client.stream(&self.path(&format!("/events?after={after}"))).await.unwrap()
    }

    pub async fn delete(&self) {
        self.client.delete(&self.path("")).await.is(204);
    }
}

/// The text of one stream of a cell.
pub fn text_of(cell: &Value, name: &str) -> String {
    let outputs = cell["outputs"].as_array().unwrap();
    outputs.iter().filter(|output| output["name"] == name).filter_map(|output| output["text"].as_str()).collect()
}

/// The text of all streams of a cell.
pub fn printed(cell: &Value) -> String {
    let outputs = cell["outputs"].as_array().unwrap();
    outputs.iter().filter(|output| output["output_type"] == "stream").filter_map(|output| output["text"].as_str()).collect()
}

pub fn base64_bytes(text: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap().trim()).unwrap()
}

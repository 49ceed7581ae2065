//! The server is killed while cells run, again and again: no byte is lost or duplicated, no cell runs twice, and nothing
//! stays behind.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cellkeep::sandbox::SandboxKind;
use hyper::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::server::{Client, PACE, RemoteSession, Server, base64_bytes, printed, text_of};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    killed_server_loses_and_repeats_nothing,
    sandbox_that_died_during_downtime_ends_session,
    graceful_stop_leaves_sessions_running,
    killed_while_sessions_are_made_and_deleted,
    input_request_outlives_the_server,
    full_durability_loses_nothing_either,
);

/// The module that cells import. It is in the workspace, so it outlives restarts of the kernel; its counter does not.
const MODULE: &str = r"
import hashlib, time
from IPython.display import display
counter = 0

def begin(name):
    global counter
    counter += 1
    with open('ledger', 'a') as ledger:
        ledger.write(f'{name} {counter}\n')

def count(name, to, pause=0.0):
    for number in range(to):
        print(name, number, flush=True)
        time.sleep(pause)

def plot(name):
    data, block = b'\x89PNG\r\n\x1a\n', name.encode()
    for _ in range(300):
        block = hashlib.sha256(block).digest()
        data += block
    display({'image/png': data}, raw=True)
";

/// The bytes that `plot` shows.
fn plot(name: &str) -> Vec<u8> {
    let (mut data, mut block) = (b"\x89PNG\r\n\x1a\n".to_vec(), name.as_bytes().to_vec());
    for _ in 0..300 {
        block = Sha256::digest(&block).to_vec();
        data.extend_from_slice(&block);
    }
    data
}

fn counted(name: &str, to: usize) -> String {
    (0..to).map(|number| format!("{name} {number}\n")).collect()
}

/// Whether a text is a prefix of the endless count, in whole lines.
fn is_count(name: &str, text: &str) -> bool {
    // A line that the death of the kernel cut off is allowed.
    counted(name, text.lines().count()).starts_with(text)
}

/// Random numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// All events of a session, read by a client that reconnects after every disconnect with its last number.
struct Log {
    events: Mutex<Vec<Value>>,
    length: watch::Sender<usize>,
    broken: Mutex<Option<String>>,
    reconnects: std::sync::atomic::AtomicUsize,
}

impl Log {
    fn follow(held: &RemoteSession) -> Arc<Self> {
        let log = Arc::new(Self {
            events: Mutex::default(),
            length: watch::channel(0).0,
            broken: Mutex::default(),
            reconnects: 0.into(),
        });
        let (held, following) = (held.clone(), log.clone());
        tokio::spawn(async move {
            for turn in 0.. {
                following.read(&held, turn).await;
                following.reconnects.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PACE).await;
            }
        });
        log
    }

    /// Reads one connection until it ends. Alternates between `Last-Event-ID`, as browsers use it, and the query, as scripts
    /// do.
    async fn read(&self, held: &RemoteSession, turn: usize) {
        let last = *self.length.borrow();
        let opened = if turn.is_multiple_of(2) {
            held.client.stream(&held.path(&format!("/events?after={last}"))).await
        } else {
            // The header has precedence over the query.
            held.client.with("last-event-id", &last.to_string()).stream(&held.path("/events?after=0")).await
        };
        let Ok(mut stream) = opened else { return };
        while let Ok(Some(event)) = stream.next().await {
            let expected = *self.length.borrow() + 1;
            if event["seq"] != expected {
                self.broken.lock().unwrap().get_or_insert(format!("{expected} should come, and it is {event}"));
                return;
            }
            self.events.lock().unwrap().push(event);
            self.length.send_replace(expected);
        }
    }

    /// Waits until the events satisfy a condition.
    async fn until<T>(&self, what: &str, find: impl Fn(&[Value]) -> Option<T>) -> T {
        let mut length = self.length.subscribe();
        let looking = async {
            loop {
                length.borrow_and_update();
                if let Some(value) = find(&self.events.lock().unwrap()) {
                    return value;
                }
                length.changed().await.unwrap();
            }
        };
        let value = tokio::time::timeout(PATIENCE, looking).await;
        value.unwrap_or_else(|_| panic!("{what}: not seen; {:?}\n{}", self.broken.lock().unwrap(), self.tail()))
    }

    fn tail(&self) -> String {
        let events = self.events.lock().unwrap();
        events.iter().rev().take(12).rev().map(|event| format!("{event}\n")).collect()
    }

    fn len(&self) -> usize {
        *self.length.borrow()
    }

    fn count(&self, kind: &str, cell: &str) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event["type"] == kind && event["cell"] == cell).count()
    }
}

/// The outputs of a cell, folded from the events alone.
fn folded(events: &[Value], cell: &str) -> Vec<Value> {
    let mut outputs = std::collections::BTreeMap::new();
    for event in events.iter().filter(|event| event["cell"] == cell) {
        match event["type"].as_str().unwrap() {
            "cell.queued" | "output.clear" => outputs.clear(),
            "output.append" | "output.update" => {
                let (index, output) = (event["index"].as_u64().unwrap(), &event["output"]);
                match event["keep"].as_u64() {
                    Some(keep) if outputs.contains_key(&index) => {
                        let known: &mut Value = outputs.get_mut(&index).unwrap();
                        let mut text = known["text"].as_str().unwrap().to_owned();
                        text.truncate(keep as usize);
                        known["text"] = (text + output["text"].as_str().unwrap()).into();
                    }
                    _ => drop(outputs.insert(index, output.clone())),
                }
            }
            _ => {}
        }
    }
    outputs.into_values().collect()
}

/// The expected output of a cell.
#[derive(Clone, Debug)]
enum Expected {
    Text(String),
    /// Stopped somewhere in the endless count.
    Count,
    Plot,
    /// Cancelled in the queue, or stopped in its count.
    Cancelled,
}

struct Work {
    held: RemoteSession,
    log: Arc<Log>,
    dice: Dice,
    name: usize,
    expected: HashMap<String, Expected>,
    /// Cells that can be executed again, with the number of their executions.
    again: Vec<String>,
    runs: HashMap<String, usize>,
}

impl Work {
    async fn start(client: &Client, seed: u64) -> Self {
        let held = client.create(json!({"kernel": "python", "timeout_seconds": 600})).await;
        client.put(&held.path("/files/work.py"), MODULE).await.is(204);
        let log = Log::follow(&held);
        let (dice, expected, again, runs) = (Dice(seed | 1), HashMap::new(), Vec::new(), HashMap::new());
        Self { held, log, dice, name: 0, expected, again, runs }
    }

    /// Adds a cell that runs exactly once, whatever happens to the server meanwhile.
    async fn add(&mut self, body: &str, expected: Expected) -> String {
        self.name += 1;
        let name = format!("w{}", self.name);
        let source = format!("from work import *\nbegin('{name}')\n{}", body.replace("NAME", &format!("'{name}'")));
        let fields = json!({"id": name, "source": source, "allow_stdin": true, "timeout_seconds": 600}).to_string();
        let reply = self.held.client.surely(Method::POST, &self.held.path("/cells"), fields).await;
        if reply.status != 201 {
            reply.problem(409, "cell_exists");
        }
        let expected = match expected {
            Expected::Text(text) => Expected::Text(text.replace("NAME", &name)),
            other => other,
        };
        self.expected.insert(name.clone(), expected);
        self.runs.insert(name.clone(), 1);
        name
    }

    async fn post(&self, path: &str, body: Value) -> crate::server::Reply {
        self.held.client.surely(Method::POST, &self.held.path(path), body.to_string()).await
    }

    async fn ended(&self, name: &str) {
        let runs = self.runs[name];
        self.log
            .until(&format!("the end of {name}"), |events| {
                let ends = events.iter().filter(|event| event["type"] == "cell.finished" && event["cell"] == name);
                (ends.count() >= runs).then_some(())
            })
            .await;
        self.check(name).await;
    }

    async fn printing(&self, name: &str) {
        let what = format!("output of {name}");
        self.log
            .until(&what, |events| {
                events.iter().find(|event| event["type"] == "output.append" && event["cell"] == name).map(|_| ())
            })
            .await;
    }

    /// Checks that the cell shows its output, each byte once.
    async fn check(&self, name: &str) {
        let cell = self.held.cell(name).await;
        let status = cell["status"].as_str().unwrap();
        let text = printed(&cell);
        // If an interrupt arrives while IPython shows the previous one, IPython prints a message on stderr.
        let counted = text_of(&cell, "stdout");
        match &self.expected[name] {
            Expected::Text(expected) => {
                assert_eq!(status, "ok", "{cell}");
                assert_eq!(&text, expected);
            }
            Expected::Count => {
                assert!(matches!(status, "interrupted" | "kernel_died"), "{cell}");
                assert!(is_count(name, &counted), "{text}");
            }
            Expected::Cancelled => {
                assert!(matches!(status, "ok" | "cancelled" | "interrupted"), "{cell}");
                assert!(is_count(name, &counted), "{text}");
            }
            Expected::Plot => {
                assert_eq!(status, "ok", "{cell}");
                assert_eq!(base64_bytes(&cell["outputs"][0]["data"]["image/png"]), plot(name));
            }
        }
    }

    async fn step(&mut self) {
        match self.dice.below(7) {
            0 => self.prints().await,
            1 => self.plots().await,
            2 => self.asks().await,
            3 => self.interrupts().await,
            4 => self.restarts().await,
            5 => self.runs_again().await,
            _ => self.queues().await,
        }
    }

    async fn prints(&mut self) {
        let (count, pause) = (50 + self.dice.below(400) as usize, 0.001 * self.dice.below(3) as f64);
        let text = Expected::Text(counted("NAME", count));
        let name = self.add(&format!("count(NAME, {count}, {pause})"), text).await;
        self.ended(&name).await;
        self.again.push(name);
    }

    async fn plots(&mut self) {
        let name = self.add("time.sleep(0.1)\nplot(NAME)\ntime.sleep(0.1)", Expected::Plot).await;
        self.ended(&name).await;
        self.again.push(name);
    }

    async fn asks(&mut self) {
        let body = "count(NAME, 3)\nprint('got', input('name? '), flush=True)\ncount(NAME, 3, 0.01)";
        let text = counted("NAME", 3) + "got it\n" + &counted("NAME", 3);
        let name = self.add(body, Expected::Text(text)).await;
        self.log
            .until(&format!("the question of {name}"), |events| {
                events.iter().find(|event| event["type"] == "input.requested" && event["cell"] == *name).cloned()
            })
            .await;
        let mut tries = 0;
        loop {
            let path = self.held.path("/input");
            let tried = self.held.client.attempt(Method::POST, &path, json!({"value": "it"}).to_string().into()).await;
            tries += 1;
            match tried {
                Ok(reply) if reply.status == 202 => break,
                Ok(reply) => {
                    // A request without a response may have had its effect.
                    reply.problem(409, "no_input_wanted");
                    assert!(tries > 1, "it asks, and wants no answer: {}", self.log.tail());
                    break;
                }
                Err(_) => tokio::time::sleep(PACE).await,
            }
        }
        self.ended(&name).await;
    }

    async fn interrupts(&mut self) {
        let name = self.add("count(NAME, 10 ** 9, 0.002)", Expected::Count).await;
        self.printing(&name).await;
        // Repeating this is harmless, because no other cell runs.
        self.post("/interrupt", json!({})).await.is(202);
        self.ended(&name).await;
    }

    async fn restarts(&mut self) {
        let name = self.add("count(NAME, 10 ** 9, 0.002)", Expected::Count).await;
        self.printing(&name).await;
        let before = self.log.len();
        self.post("/restart", json!({})).await.is(202);
        self.ended(&name).await;
        self.log
            .until("idle after a restart", |events| {
                events[before..]
                    .iter()
                    .find(|event| event["type"] == "session.state" && event["state"] == "idle")
                    .map(|_| ())
            })
            .await;
    }

    async fn runs_again(&mut self) {
        let Some(name) = self.again.pop() else { return };
        self.again.insert(0, name.clone());
        let before = self.held.cell(&name).await["last_seq"].as_u64().unwrap();
        let path = self.held.path(&format!("/cells/{name}/run"));
        loop {
            if let Ok(reply) = self.held.client.attempt(Method::POST, &path, "{}".into()).await {
                reply.is(200);
                break;
            }
            // The answer may have been accepted. Then the cell has continued.
            if self.held.cell(&name).await["last_seq"].as_u64().unwrap() > before {
                break;
            }
        }
        *self.runs.get_mut(&name).unwrap() += 1;
        self.ended(&name).await;
    }

    async fn queues(&mut self) {
        let mut names = Vec::new();
        for _ in 0..4 {
            names.push(self.add("count(NAME, 40, 0.002)", Expected::Text(counted("NAME", 40))).await);
        }
        let last = self.add("count(NAME, 40, 0.002)", Expected::Cancelled).await;
        let reply = self.post(&format!("/cells/{last}/cancel"), json!({})).await;
        if reply.status != 202 {
            reply.problem(409, "cell_not_in_progress");
        }
        for name in names {
            self.ended(&name).await;
        }
        self.ended(&last).await;
    }

    /// Checks everything once the server stays up.
    async fn prove(&self) {
        assert_eq!(*self.log.broken.lock().unwrap(), None);
        let last = self.held.view().await["last_seq"].as_u64().unwrap() as usize;
        self.log.until("the last event", |events| (events.len() >= last).then_some(())).await;
        let seen = self.log.events.lock().unwrap().clone();
        let mut stream = self.held.events(0).await;
        for event in &seen {
            assert_eq!(stream.next().await.unwrap().as_ref(), Some(event), "who comes late sees the same");
        }
        for (name, expected) in &self.expected {
            self.check(name).await;
            assert_eq!(Value::from(folded(&seen, name)), self.held.cell(name).await["outputs"], "{name}");
            for kind in ["cell.queued", "cell.finished"] {
                assert_eq!(self.log.count(kind, name), self.runs[name], "{name}: {kind}");
            }
            assert!(self.log.count("input.requested", name) <= 1, "{name}");
            if matches!(expected, Expected::Plot) {
                let cell = self.held.client.get(&self.held.path(&format!("/cells/{name}?outputs=refs"))).await.is(200);
                let hash = cell["outputs"][0]["data"]["image/png"]["artifact"].as_str().unwrap().to_owned();
                let bytes = self.held.client.get(&format!("/v1/artifacts/{hash}")).await;
                assert_eq!(bytes.body, plot(name));
            }
        }
        self.prove_runs().await;
    }

    /// Each execution is in the ledger, which the cells write, exactly once. The kernel's counter agrees.
    async fn prove_runs(&self) {
        let ledger = self.held.client.get(&self.held.path("/files/ledger")).await;
        let ledger = String::from_utf8(ledger.body.to_vec()).unwrap();
        let (mut begun, mut counter) = (HashMap::<&str, usize>::new(), 0);
        for line in ledger.lines() {
            let (name, number) = line.split_once(' ').unwrap();
            *begun.entry(name).or_default() += 1;
            let number: usize = number.parse().unwrap();
            assert!(number == counter + 1 || number == 1, "{line} after {counter}");
            counter = number;
        }
        for (name, expected) in &self.expected {
            let begun = begun.get(name.as_str()).copied().unwrap_or(0);
            match expected {
                Expected::Cancelled => assert!(begun <= 1, "{name} was begun {begun} times"),
                _ => assert_eq!(begun, self.runs[name], "{name}"),
            }
        }
    }
}

async fn killed_server_loses_and_repeats_nothing(place: TestSandbox) {
    let kills = std::env::var("CELLKEEP_CRASHES").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let seed = u64::from_le_bytes(cellkeep::ids::random_bytes());
    eprintln!("seed {seed}");
    let mut server = Server::start("crash", place, &[]).await;
    let client = server.client();
    let (mut one, mut two) = (Work::start(&client, seed).await, Work::start(&client, seed.rotate_left(32)).await);
    let over = AtomicBool::new(false);
    let killing = async {
        let mut dice = Dice(seed.rotate_left(16) | 1);
        let mut slowest = Duration::ZERO;
        for _ in 0..kills {
            // A random delay; it does not wait for anything.
            tokio::time::sleep(Duration::from_millis(dice.below(900))).await;
            server.kill().await;
            let begun = Instant::now();
            server.start_again().await;
            slowest = slowest.max(begun.elapsed());
        }
        over.store(true, Ordering::Relaxed);
        slowest
    };
    async fn work(work: &mut Work, over: &AtomicBool) -> usize {
        let mut steps = 0;
        while !over.load(Ordering::Relaxed) {
            work.step().await;
            steps += 1;
        }
        steps
    }
    let begun = Instant::now();
    let (slowest, first, second) = tokio::join!(killing, work(&mut one, &over), work(&mut two, &over));
    eprintln!(
        "{kills} kills in {:.0} s; {} steps, {} cells, {} runs, {} events, {} streams; slowest start {slowest:?}",
        begun.elapsed().as_secs_f64(),
        first + second,
        one.expected.len() + two.expected.len(),
        one.runs.values().sum::<usize>() + two.runs.values().sum::<usize>(),
        one.log.len() + two.log.len(),
        one.log.reconnects.load(Ordering::Relaxed) + two.log.reconnects.load(Ordering::Relaxed),
    );
    one.prove().await;
    two.prove().await;
    server.end().await;
}

/// The exit code and the message of a server that must not start. A server that starts instead must not hang the test.
async fn refused(command: std::process::Command) -> (i32, String) {
    let output = tokio::process::Command::from(command).kill_on_drop(true).stdin(Stdio::null()).output();
    let output = tokio::time::timeout(Duration::from_secs(30), output).await.expect("it serves").unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Ends the sandbox of a session without the server.
fn kill_sandbox(server: &Server, id: &str, kind: SandboxKind) {
    match kind {
        SandboxKind::Docker => {
            let mut command = std::process::Command::new("docker");
            let done = command.args(["rm", "-f", &format!("cellkeep-{id}")]).stdout(Stdio::null()).status();
            assert!(done.unwrap().success());
        }
        _ => {
            let record = std::fs::read(server.paths().sandboxes().join(id).join("record.json")).unwrap();
            let record: Value = serde_json::from_slice(&record).unwrap();
            let pid = record["agent"]["pid"].as_i64().unwrap() as i32;
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
}

async fn sandbox_that_died_during_downtime_ends_session(place: TestSandbox) {
    let mut server = Server::start("dies", place, &[]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    let other = server.client().create(json!({"kernel": "python"})).await;
    other.ok("x = 41").await;
    held.ok("print('before')").await;
    held.begin("long", "import time\nprint('said', flush=True)\ntime.sleep(600)").await;
    held.begin("waits", "1").await;
    held.cell_until("long", |cell| !printed(cell).is_empty()).await;
    server.kill().await;
    kill_sandbox(&server, &held.id, place.kind);
    server.start_again().await;
    let view = held.client.until(&held.path(""), |reply| reply.json()["state"] == "gone").await.json();
    assert!(view["why"].as_str().is_some_and(|why| !why.is_empty()), "{view}");
    let (long, waits) = (held.cell("long").await, held.cell("waits").await);
    assert_eq!((&long["status"], printed(&long).as_str()), (&json!("kernel_died"), "said\n"));
    assert_eq!(waits["status"], "cancelled");
    let cells = held.client.get(&held.path("/cells")).await.is(200);
    assert_eq!(printed(&cells["cells"][0]), "before\n");
    for (method, path, body) in [
        (Method::POST, "/cells", json!({"source": "1"})),
        (Method::POST, "/cells/long/run", json!({})),
        (Method::PATCH, "/cells/long", json!({"source": "1"})),
        (Method::POST, "/interrupt", json!({})),
        (Method::POST, "/restart", json!({})),
        (Method::POST, "/input", json!({"value": "1"})),
        (Method::POST, "/complete", json!({"code": "pri"})),
        (Method::GET, "/files/", json!({})),
    ] {
        held.client.send(method, &held.path(path), body.to_string()).await.problem(409, "session_gone");
    }
    // The numbers have no gap, and the other session is not affected.
    let mut events = held.events(0).await;
    for seq in 1..=view["last_seq"].as_u64().unwrap() {
        assert_eq!(events.next().await.unwrap().unwrap()["seq"], seq);
    }
    assert_eq!(other.ok("print(x + 1)").await, "42\n");
    // The state stays the same over the next start.
    server.kill().await;
    server.start_again().await;
    let again = held.view().await;
    assert_eq!((&again["state"], &again["last_seq"]), (&json!("gone"), &view["last_seq"]));
    server.end().await;
}

/// Every commit is flushed by the journal thread then: the way of a cell's output is another one.
async fn full_durability_loses_nothing_either(place: TestSandbox) {
    let mut server = Server::start("flushed", place, &["--durability", "full"]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    let code = "for i in range(300): print(i, flush=True)\nfrom IPython.display import display\n\
                display({'image/png': b'\\x89PNG\\r\\n\\x1a\\n' + bytes(9000)}, raw=True)\nimport time; time.sleep(1)";
    held.begin("flood", code).await;
    held.cell_until("flood", |cell| printed(cell).contains("299\n")).await;
    server.kill().await;
    server.start_again().await;
    let cell = held.cell_until("flood", |cell| cell["state"] == "finished").await;
    assert_eq!((cell["status"].as_str(), printed(&cell)), (Some("ok"), (0..300).map(|i| format!("{i}\n")).collect()));
    assert_eq!(held.ok("print(6 * 7)").await, "42\n");
    held.delete().await;
    server.end().await;
}

async fn graceful_stop_leaves_sessions_running(place: TestSandbox) {
    let mut server = Server::start("stop", place, &[]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    held.ok("kept = 'kept'").await;
    held.begin("long", "import time\nfor i in range(100): print(i, flush=True); time.sleep(0.02)").await;
    held.cell_until("long", |cell| !printed(cell).is_empty()).await;
    // An event stream never ends by itself, and must not delay the stop of the server.
    let _events = held.events(0).await;
    let (code, message) = refused(server.command()).await;
    assert!(code == 2 && message.contains("another cellkeep uses the data folder"), "{message}");
    let begun = Instant::now();
    assert!(server.stop().await.success(), "{}", server.stderr());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(server.stderr().contains("sessions stay alive"), "{}", server.stderr());
    server.start_again().await;
    let long = held.finished("long").await;
    assert_eq!(printed(&long), (0..100).map(|i| format!("{i}\n")).collect::<String>());
    assert_eq!(held.ok("print(kept)").await, "kept\n");
    server.end().await;
}

async fn input_request_outlives_the_server(place: TestSandbox) {
    let mut server = Server::start("asks", place, &[]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    for round in 0..4 {
        let name = format!("asks{round}");
        held.begin(&name, "for _ in range(2): print('got', input(), flush=True)").await;
        for answer in ["one", "two"] {
            let mut events = held.events(0).await;
            let mut requests = 0;
            while requests < if answer == "one" { 1 } else { 2 } {
                let event = events.next_of("input.requested").await;
                requests += usize::from(event["cell"] == *name);
            }
            if round % 2 == 0 {
                server.kill().await;
                server.start_again().await;
                // The session is recovered before the server serves, and its agent right after.
                held.client.until(&held.path(""), |reply| reply.json()["state"] == "busy").await;
            }
            let input = held.path("/input");
            held.client.post(&input, json!({"value": answer})).await.is(202);
            if round < 2 {
                // What was accepted stays accepted, also if the server ends directly after the response.
                server.kill().await;
                server.start_again().await;
            }
        }
        assert_eq!(printed(&held.finished(&name).await), "got one\ngot two\n");
    }
    server.end().await;
}

async fn killed_while_sessions_are_made_and_deleted(place: TestSandbox) {
    let mut server = Server::start("made", place, &[]).await;
    let client = server.client();
    let mut dice = Dice(u64::from_le_bytes(cellkeep::ids::random_bytes()) | 1);
    let mut all = Vec::new();
    for round in 0..8 {
        let making = tokio::spawn({
            let client = client.clone();
            async move { client.attempt(Method::POST, "/v1/sessions", r#"{"kernel": "python"}"#.into()).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(dice.below(if round % 2 == 0 { 1200 } else { 300 }))).await;
        server.kill().await;
        let _ = making.await;
        server.start_again().await;
        // Each existing session is complete, whether or not its creator got a response.
        for id in client.session_ids().await {
            let held = RemoteSession { client: client.clone(), id };
            assert_eq!(held.ok("print(6 * 7)").await, "42\n");
            let deleting = tokio::spawn({
                let held = held.clone();
                async move { held.client.attempt(Method::DELETE, &held.path(""), "".into()).await.is_ok() }
            });
            tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
            server.kill().await;
            let was_told = deleting.await.unwrap();
            server.start_again().await;
            let reply = client.get(&held.path("")).await;
            // Either the session was never requested, or everything of it is gone.
            if reply.status == 200 {
                assert!(!was_told && reply.json()["state"] == "idle", "half deleted: {}", reply.text());
                held.delete().await;
            } else {
                reply.problem(404, "no_session");
            }
            all.push(held.id);
        }
    }
    eprintln!("{} sessions deleted", all.len());
    assert!(server.stop().await.success());
    server.assert_nothing_left(&all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_database_format_is_refused_untouched() {
    let mut server = Server::start("later", TestSandbox::process(), &[]).await;
    server.stop().await;
    let path = server.paths().journal();
    let set =
        |version: u32| rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", version).unwrap();
    let known: u32 =
        rusqlite::Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    set(1000);
    let (code, message) = refused(server.command()).await;
    assert!(code == 2 && message.contains("later cellkeep (format 1000"), "{message}");
    set(known);
    server.start_again().await;
    server.stop().await;
    // The same for a file that is not a database. Opening it would merge the log beside it.
    for log in ["journal.db-wal", "journal.db-shm"] {
        let _ = std::fs::remove_file(path.with_file_name(log));
    }
    std::fs::write(&path, "a letter to my mother\n".repeat(100)).unwrap();
    let (code, message) = refused(server.command()).await;
    assert_eq!(code, 2, "{message}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("a letter"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_token_is_created_after_listening() {
    // The port is in use: the first start fails, and the second one must still print a token.
    let data = std::env::temp_dir().join(format!("ck-port-{}", std::process::id()));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let start = |address: String| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        command.args(["serve", "--listen", &address, "--data"]).arg(&data).env_remove("CELLKEEP_TOKEN");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let (code, message) = refused(start(taken.local_addr().unwrap().to_string())).await;
    assert_eq!(code, 2, "{message}");
    let mut child = start("127.0.0.1:0".to_owned()).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    assert!(line.contains("/#token=ck_"), "{line:?}");
}

/// After a boot, the engine may start later than the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_engine_is_awaited() {
    let Some(place) = TestSandbox::docker().await else { return };
    let mut server = Server::start("engine", place, &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    held.ok("x=kept").await;
    server.kill().await;
    let socket = std::env::temp_dir().join(format!("ck-engine-{}.sock", std::process::id()));
    server.env.push(("DOCKER_HOST", format!("unix://{}", socket.display())));
    let (log, link) = (server.stderr().len(), socket.clone());
    let starting = tokio::spawn(async move {
        server.start_again().await;
        server
    });
    // Only after a first attempt has failed.
    let log_file = socket.with_file_name(format!("ck-engine-docker-{}.log", std::process::id()));
    let tried = async {
        while !std::fs::read_to_string(&log_file).unwrap_or_default()[log..].contains("retrying") {
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("the server retries");
    std::os::unix::fs::symlink("/var/run/docker.sock", &link).unwrap();
    let server = starting.await.unwrap();
    assert_eq!(held.ok("echo $x").await, "kept\n");
    held.delete().await;
    std::fs::remove_file(link).unwrap();
    server.end().await;
}

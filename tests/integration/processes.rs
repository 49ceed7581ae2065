//! Processes in a sandbox: their output, input, signals and ends, and the death of the server.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::sandboxes;
use crate::server::{Client, PACE, Server, base64_bytes};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    command_gives_output_and_exit,
    input_is_read_once,
    terminal_has_size_and_signals,
    bad_commands_leave_nothing,
    time_limit_ends_everything,
    background_process_outlives_its_shell,
    slow_reader_misses_nothing,
    fork_bomb_ends_with_its_process,
    processes_are_forgotten_by_their_ends,
    deaths_of_memory_are_told_apart,
    readers_end_with_their_sandbox,
    killed_server_loses_no_output,
);

/// A sandbox with the paths of its processes.
pub struct Shell {
    pub server: Server,
    pub client: Client,
    pub sandbox: String,
}

impl Shell {
    pub async fn start(name: &str, place: TestSandbox) -> Self {
        let server = Server::start(name, place, &[]).await;
        let client = server.client();
        let sandbox = sandboxes::create(&client, json!({"kernel": "python"})).await;
        Self { server, client, sandbox }
    }

    pub fn path(&self, rest: &str) -> String {
        format!("/v1/sandboxes/{}/processes{rest}", self.sandbox)
    }

    /// Runs a process to its end.
    pub async fn run(&self, fields: Value) -> Value {
        let process = self.client.post(&self.path("?wait=120"), fields).await.is(201);
        assert_eq!(process["state"], "exited", "{process}");
        process
    }

    pub async fn begin(&self, fields: Value) -> String {
        self.client.post(&self.path(""), fields).await.is(201)["id"].as_str().unwrap().to_owned()
    }

    pub async fn ended(&self, id: &str) -> Value {
        self.client.until(&self.path(&format!("/{id}")), |reply| reply.json()["state"] == "exited").await.json()
    }

    pub async fn input(&self, id: &str, query: &str, text: &'static str) -> crate::server::Reply {
        self.client.send(Method::POST, &self.path(&format!("/{id}/input{query}")), text).await
    }

    /// The whole output of a process, from its events.
    pub async fn output(&self, id: &str) -> Vec<u8> {
        let mut all = Vec::new();
        let path = self.path(&format!("/{id}/events?encoding=base64"));
        let mut stream = self.client.stream(&path).await.unwrap();
        let mut last = 0;
        while let Some(event) = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap() {
            assert_eq!(event["seq"], last + 1, "{event}");
            last += 1;
            if event["type"] == "output" {
                all.extend(base64_bytes(&event["data"]));
            }
        }
        all
    }

    /// Waits until no process has this in its command. Those that were killed take a moment to exit.
    pub async fn until_none(&self, pattern: &str) {
        let line = format!("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '{pattern}' || true");
        let waiting = async {
            while self.run(json!({"shell": line})).await["output"]["stdout"] != "0\n" {
                tokio::time::sleep(PACE).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{pattern} goes on"));
    }

    pub async fn end(self) {
        self.client.delete(&format!("/v1/sandboxes/{}", self.sandbox)).await.is(204);
        self.server.end().await;
    }
}

async fn command_gives_output_and_exit(place: TestSandbox) {
    let shell = Shell::start("ps-run", place).await;
    let line = "echo out; echo err >&2; printf '\\xff\\xfe'; pwd; exit 3";
    let process = shell.run(json!({"shell": line, "env": {"X": "1"}})).await;
    assert_eq!(process["exit"], json!({"exit_code": 3, "signal": null, "timed_out": false, "out_of_memory": false}));
    assert_eq!(process["output"]["stderr"], "err\n", "{process}");
    assert_eq!(process["output"]["stdout"], "out\n\u{fffd}\u{fffd}/work\n");
    let id = process["id"].as_str().unwrap();
    assert_eq!(shell.output(id).await.len(), "out\nerr\n??/work\n".len());
    let folder = "import os; os.makedirs('sub/folder')";
    shell.run(json!({"command": ["python3", "-c", folder]})).await;
    let process =
        shell.run(json!({"command": ["sh", "-c", "pwd; echo $A"], "cwd": "sub/folder", "env": {"A": "b c"}})).await;
    assert_eq!(process["output"]["stdout"], "/work/sub/folder\nb c\n");
    let process = shell.run(json!({"shell": "kill -SEGV $$"})).await;
    assert_eq!((&process["exit"]["exit_code"], &process["exit"]["signal"]), (&json!(null), &json!(11)));
    // A command that closes its output lives on, until it ends.
    let id = shell
        .begin(
            json!({"command": ["python3", "-c", "import os,time\nos.close(1)\nos.close(2)\ntime.sleep(0.5)\nos._exit(7)"]}),
        )
        .await;
    assert_eq!(shell.ended(&id).await["exit"]["exit_code"], 7);
    let all = shell.client.get(&shell.path("")).await.is(200);
    assert_eq!(all["processes"].as_array().unwrap().len(), 5, "{all}");
    shell.client.delete(&shell.path(&format!("/{id}"))).await.is(204);
    shell.client.get(&shell.path(&format!("/{id}"))).await.problem(404, "no_process");
    shell.end().await;
}

async fn input_is_read_once(place: TestSandbox) {
    let shell = Shell::start("ps-input", place).await;
    // Without input, a process reads the end of file.
    assert_eq!(shell.run(json!({"command": ["cat"]})).await["exit"]["exit_code"], 0);
    let fields = json!({"command": ["cat"], "stdin": true, "key": "the cat"});
    let id = shell.begin(fields.clone()).await;
    assert_eq!(shell.begin(fields).await, id, "a retry starts nothing");
    let other = json!({"command": ["cat", "-n"], "stdin": true, "key": "the cat"});
    shell.client.post(&shell.path(""), other).await.problem(409, "process_conflict");
    shell.input(&id, "?offset=0", "abc").await.is(200);
    shell.input(&id, "?offset=0", "abcd").await.is(200);
    shell.input(&id, "?offset=9", "x").await.problem(409, "process_conflict");
    let process = shell.input(&id, "?close=true", "e\n").await.is(200);
    assert_eq!(process["input_bytes"], 6);
    assert_eq!(shell.ended(&id).await["exit"]["exit_code"], 0);
    assert_eq!(shell.output(&id).await, b"abcde\n");
    shell.input(&id, "", "more").await.problem(409, "process_conflict");
    shell.input(&id, "?offset=4&close=true", "e\n").await.is(200);
    // In a terminal, the end of the input comes after the end of the line.
    let terminal = json!({"command": ["cat"], "pty": {"rows": 24, "cols": 80}});
    for text in ["line\n", "unfinished"] {
        let id = shell.begin(terminal.clone()).await;
        shell.input(&id, "?close=true", text).await.is(200);
        assert_eq!(shell.ended(&id).await["exit"]["exit_code"], 0);
    }
    // A process that never reads: what it does not take is refused, and nothing waits for ever.
    let id = shell.begin(json!({"command": ["sleep", "1000"], "stdin": true})).await;
    let block = "x".repeat(1 << 20);
    let mut refused = false;
    for _ in 0..3 {
        let path = shell.path(&format!("/{id}/input"));
        let reply = shell.client.send(Method::POST, &path, block.clone()).await;
        refused |= reply.status == 429;
    }
    assert!(refused, "input that nobody reads is bounded");
    let too_much = "x".repeat((1 << 20) + 1);
    let path = shell.path(&format!("/{id}/input"));
    shell.client.send(Method::POST, &path, too_much).await.problem(413, "body_too_large");
    shell.end().await;
}

async fn terminal_has_size_and_signals(place: TestSandbox) {
    let shell = Shell::start("ps-pty", place).await;
    let id =
        shell.begin(json!({"command": ["bash", "--norc"], "pty": {"rows": 30, "cols": 100}, "env": {"PS1": "> "}})).await;
    let output = async |needle: &str| {
        let mut stream = shell.client.stream(&shell.path(&format!("/{id}/events"))).await.unwrap();
        let mut text = String::new();
        while !text.contains(needle) {
            let event = tokio::time::timeout(PATIENCE, stream.next()).await;
            let event = event.unwrap_or_else(|_| panic!("no {needle:?} in {text:?}")).unwrap().unwrap();
            assert_ne!(event["type"], "exited", "{text:?}");
            text += event["text"].as_str().unwrap();
        }
        text
    };
    shell.input(&id, "", "stty size; tty; echo $TERM\n").await.is(200);
    let text = output("xterm-256color").await;
    assert!(text.contains("30 100") && text.contains("/dev/pts/"), "{text:?}");
    let resize = shell.path(&format!("/{id}/resize"));
    shell.client.post(&resize, json!({"rows": 50, "cols": 200})).await.is(202);
    shell.client.post(&resize, json!({"rows": 0, "cols": 200})).await.problem(422, "bad_size");
    shell.input(&id, "", "stty size\n").await.is(200);
    output("50 200").await;
    // Control-C reaches the command in the foreground, by the terminal itself.
    shell.input(&id, "", "sh -c 'echo n-$((6*7)); exec sleep 1000'\n").await.is(200);
    output("n-42").await;
    shell.input(&id, "", "\x03").await.is(200);
    shell.input(&id, "", "echo was-$?\n").await.is(200);
    output("was-130").await;
    let signal = shell.path(&format!("/{id}/signal"));
    shell.client.post(&signal, json!({"signal": "NONSENSE"})).await.problem(422, "bad_signal");
    shell.client.post(&signal, json!({"signal": "SIGKILL"})).await.is(202);
    let process = shell.ended(&id).await;
    assert_eq!(process["exit"]["signal"], 9, "{process}");
    shell.client.post(&signal, json!({"signal": "TERM"})).await.problem(409, "process_conflict");
    let plain = shell.begin(json!({"command": ["sleep", "1000"]})).await;
    let resize = shell.path(&format!("/{plain}/resize"));
    shell.client.post(&resize, json!({"rows": 5, "cols": 5})).await.problem(409, "process_conflict");
    shell.client.post(&shell.path(&format!("/{plain}/signal")), json!({"signal": "15"})).await.is(202);
    assert_eq!(shell.ended(&plain).await["exit"]["signal"], 15);
    shell.end().await;
}

async fn bad_commands_leave_nothing(place: TestSandbox) {
    let shell = Shell::start("ps-bad", place).await;
    let long = "x".repeat(70 << 10);
    for fields in [
        json!({}),
        json!({"command": []}),
        json!({"command": [""]}),
        json!({"command": ["ls"], "shell": "ls"}),
        json!({"command": ["no-such-program"]}),
        json!({"command": ["/etc/passwd"]}),
        json!({"command": ["ls", "a\0b"]}),
        json!({"command": ["echo", long]}),
        json!({"command": vec!["x"; 2000]}),
        json!({"command": ["ls"], "cwd": "no/such/folder"}),
        json!({"command": ["ls"], "cwd": "a\0b"}),
        json!({"command": ["ls"], "key": ""}),
    ] {
        shell.client.post(&shell.path(""), fields).await.problem(422, "bad_command");
    }
    shell
        .client
        .post(&shell.path(""), json!({"command": ["ls"], "pty": {"rows": 1, "cols": 5000}}))
        .await
        .problem(422, "bad_size");
    shell.client.post(&shell.path(""), json!({"command": ["ls"], "pty": [1, 2]})).await.problem(422, "bad_field");
    shell.client.post(&shell.path(""), json!({"command": ["ls"], "timeout_seconds": -1})).await.problem(422, "bad_timeout");
    shell.client.post(&shell.path(""), json!({"command": ["ls"], "env": {"A=B": "c"}})).await.problem(422, "bad_env");
    for path in ["/nothing", "/nothing/events", "/NO"] {
        shell.client.get(&shell.path(path)).await.problem(404, "no_process");
    }
    let all = shell.client.get(&shell.path("")).await.is(200);
    assert_eq!(all["processes"], json!([]));
    // The number of processes is bounded, and those that ended make room.
    for _ in 0..64 {
        shell.begin(json!({"command": ["sleep", "1000"]})).await;
    }
    shell.client.post(&shell.path(""), json!({"command": ["true"]})).await.problem(429, "process_busy");
    let all = shell.client.get(&shell.path("")).await.is(200);
    let first = all["processes"][0]["id"].as_str().unwrap();
    shell.client.delete(&shell.path(&format!("/{first}"))).await.is(204);
    for _ in 0..70 {
        shell.run(json!({"command": ["true"]})).await;
    }
    let all = shell.client.get(&shell.path("")).await.is(200);
    let running = all["processes"].as_array().unwrap().iter().filter(|one| one["state"] == "running").count();
    assert_eq!((running, all["processes"].as_array().unwrap().len() <= 63 + 65), (63, true));
    shell.end().await;
}

async fn time_limit_ends_everything(place: TestSandbox) {
    let shell = Shell::start("ps-time", place).await;
    let process =
        shell.run(json!({"shell": "trap '' TERM; sleep 1234 & sleep 1000; sleep 1000", "timeout_seconds": 0.3})).await;
    assert_eq!(process["exit"]["timed_out"], true, "{process}");
    shell.until_none("sleep 123[4]").await;
    shell.end().await;
}

async fn background_process_outlives_its_shell(place: TestSandbox) {
    let shell = Shell::start("ps-back", place).await;
    let process =
        shell.run(json!({"shell": "(while true; do date > beat; sleep 0.05; done) > /dev/null 2>&1 & echo started"})).await;
    assert_eq!(process["output"]["stdout"], "started\n");
    // Others come and go, kernels as well.
    let session = sandboxes::session_in(&shell.client, &shell.sandbox).await;
    session.run("import os; os.kill(os.getpid(), 9)").await;
    shell.run(json!({"shell": "rm -f beat"})).await;
    session.ok("import os, time\nwhile not os.path.exists('beat'): time.sleep(0.01)").await;
    // It ends with the process that has started it.
    let id = process["id"].as_str().unwrap();
    shell.client.delete(&shell.path(&format!("/{id}"))).await.is(204);
    shell.until_none("date > bea[t]").await;
    // Or with a signal, which no other reaches: the process has ended.
    let process = shell.run(json!({"shell": "setsid sleep 4321 > /dev/null 2>&1 &"})).await;
    let signal = shell.path(&format!("/{}/signal", process["id"].as_str().unwrap()));
    shell.client.post(&signal, json!({"signal": "TERM"})).await.problem(409, "process_conflict");
    shell.client.post(&signal, json!({"signal": "KILL"})).await.is(202);
    shell.until_none("sleep 432[1]").await;
    shell.client.post(&signal, json!({"signal": "KILL"})).await.problem(409, "process_conflict");
    shell.end().await;
}

/// Hundreds of processes that do nothing but start others, up to the limit, and take their places. The others of the sandbox
/// live on.
async fn fork_bomb_ends_with_its_process(place: TestSandbox) {
    let shell = Shell::start("ps-bomb", place).await;
    let session = sandboxes::session_in(&shell.client, &shell.sandbox).await;
    session.ok("value = 1").await;
    let sleeper = shell.begin(json!({"command": ["sleep", "1000"]})).await;
    let code = "import os\nfirst = os.getpid()\nwhile True:\n    try:\n        if os.fork() and os.fork() and os.getpid() != first: os._exit(0)\n    except OSError: print('full', flush=True)";
    for _ in 0..3 {
        let id = shell.begin(json!({"command": ["python3", "-c", code, "bomb"]})).await;
        let mut stream = shell.client.stream(&shell.path(&format!("/{id}/events"))).await.unwrap();
        stream.next_of("output").await;
        shell.client.delete(&shell.path(&format!("/{id}"))).await.is(204);
        shell.until_none("bom[b]").await;
    }
    assert_eq!(session.ok("print(value)").await, "1\n");
    assert_eq!(shell.client.get(&shell.path(&format!("/{sleeper}"))).await.is(200)["state"], "running");
    shell.end().await;
}

async fn processes_are_forgotten_by_their_ends(place: TestSandbox) {
    let shell = Shell::start("ps-forget", place).await;
    let long = json!({"shell": "while [ ! -e end ]; do sleep 0.05; done", "key": "long"});
    let id = shell.begin(long.clone()).await;
    let background = shell.run(json!({"shell": "sleep 1000 > /dev/null 2>&1 &"})).await;
    let first = json!({"command": ["true"], "key": "first"});
    shell.run(first.clone()).await;
    for _ in 0..62 {
        shell.run(json!({"command": ["true"]})).await;
    }
    shell.client.put(&format!("/v1/sandboxes/{}/files/end", shell.sandbox), "").await.is(204);
    shell.ended(&id).await;
    assert_eq!(shell.begin(long).await, id, "it was started first, and has ended last");
    let refused = shell.client.post(&shell.path(""), first.clone()).await.problem(409, "process_conflict");
    assert!(refused["detail"].as_str().unwrap().contains("another key"), "{refused}");
    // What still works in the background is not forgotten before others.
    let background = shell.path(&format!("/{}", background["id"].as_str().unwrap()));
    shell.client.get(&background).await.is(200);
    // After a process is deleted, its key may be used again.
    let again = shell.begin(json!({"command": ["true"], "key": "again"})).await;
    shell.client.delete(&shell.path(&format!("/{again}"))).await.is(204);
    assert_eq!(shell.begin(json!({"command": ["sleep", "1000"], "key": "again"})).await, again);
    shell.end().await;
}

async fn deaths_of_memory_are_told_apart(place: TestSandbox) {
    let shell = Shell::start("ps-memory", place).await;
    let hog = json!({"command": ["python3", "-c", "kept = []\nwhile True: kept.append(bytearray(50_000_000))"]});
    let old = shell.begin(json!({"shell": "while [ ! -e end ]; do read -t 0.05 x < <(:); done; kill -9 $$"})).await;
    for _ in 0..2 {
        assert_eq!(shell.run(hog.clone()).await["exit"]["out_of_memory"], true);
        let killed = shell.run(json!({"shell": "kill -9 $$"})).await;
        assert_eq!((&killed["exit"]["signal"], &killed["exit"]["out_of_memory"]), (&json!(9), &json!(false)));
    }
    shell.client.put(&format!("/v1/sandboxes/{}/files/end", shell.sandbox), "").await.is(204);
    assert_eq!(shell.ended(&old).await["exit"]["out_of_memory"], false, "others were killed while it ran");
    shell.end().await;
}

async fn readers_end_with_their_sandbox(place: TestSandbox) {
    let shell = Shell::start("ps-gone", place).await;
    let id = shell.begin(json!({"shell": "echo one; sleep 1000"})).await;
    let mut stream = shell.client.stream(&shell.path(&format!("/{id}/events"))).await.unwrap();
    stream.next_of("output").await;
    shell.client.delete(&format!("/v1/sandboxes/{}", shell.sandbox)).await.is(204);
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.expect("the stream ends");
    assert!(end.unwrap().is_none());
    shell.server.end().await;
}

/// The process writes 64 MB faster than the client reads them. Only 16 MB are kept.
async fn slow_reader_misses_nothing(place: TestSandbox) {
    const BYTES: usize = 64 << 20;
    let shell = Shell::start("ps-flood", place).await;
    let code = format!(
        "import sys, time\ntime.sleep(1)\nfor i in range({BYTES} >> 16): sys.stdout.buffer.write(i.to_bytes(4, 'big') * (1 << 14))"
    );
    let id = shell.begin(json!({"command": ["python3", "-c", code]})).await;
    let mut stream = shell.client.stream(&shell.path(&format!("/{id}/events?encoding=base64"))).await.unwrap();
    let (mut read, mut last) = (0, 0);
    loop {
        let event = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().expect("an exit at the end");
        assert_eq!(event["seq"], last + 1, "nothing is lost: {}", event["type"]);
        last += 1;
        if event["type"] == "exited" {
            break;
        }
        for byte in base64_bytes(&event["data"]) {
            let number = (read >> 16) as u32;
            assert_eq!(byte, number.to_be_bytes()[read % 4]);
            read += 1;
        }
    }
    assert_eq!(read, BYTES);
    // Without a reader, the newest output is kept, and what is missing is named.
    let id = shell.begin(json!({"shell": "head -c 40000000 /dev/zero; echo end"})).await;
    shell.ended(&id).await;
    let mut stream = shell.client.stream(&shell.path(&format!("/{id}/events?encoding=base64"))).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((&first["type"], &first["from"]), (&json!("lost"), &json!(1)));
    let mut tail = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        if event["type"] == "output" {
            tail = base64_bytes(&event["data"]);
        }
    }
    assert!(tail.ends_with(b"end\n"));
    shell.end().await;
}

/// Reads the events of a process over all restarts of the server, with numbers that follow each other.
async fn follow(client: Client, path: String) -> String {
    let (mut last, mut text) = (0, String::new());
    loop {
        let Ok(mut stream) = client.stream(&format!("{path}/events?after={last}")).await else {
            tokio::time::sleep(PACE).await;
            continue;
        };
        while let Ok(Some(event)) = stream.next().await {
            assert_eq!(event["seq"], last + 1, "{event}");
            last += 1;
            match event["type"].as_str().unwrap() {
                "output" => text += event["text"].as_str().unwrap(),
                "exited" => return text,
                _ => panic!("{event}"),
            }
        }
    }
}

async fn killed_server_loses_no_output(place: TestSandbox) {
    const ROUNDS: usize = 6;
    let mut shell = Shell::start("ps-crash", place).await;
    let sessions = [
        sandboxes::session_in(&shell.client, &shell.sandbox).await,
        sandboxes::session_in(&shell.client, &shell.sandbox).await,
        sandboxes::session_in(&shell.client, &shell.sandbox).await,
    ];
    let count = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo NAME $i; sleep 0.01; done; echo last $i";
    let mut followers = Vec::new();
    for name in ["one", "two"] {
        let fields = json!({"shell": count.replace("NAME", name), "key": name});
        let id = shell.begin(fields.clone()).await;
        let path = shell.path(&format!("/{id}"));
        followers.push((name, fields, id, tokio::spawn(follow(shell.client.clone(), path))));
    }
    for session in &sessions {
        session.ok("n = 0").await;
    }
    for round in 0..ROUNDS {
        for (at, session) in sessions.iter().enumerate() {
            let source = format!(
                "import time\nn += 1\nfor i in range(50):\n    print('s{at}', i, flush=True)\n    time.sleep(0.01)\nn"
            );
            session.begin(&format!("r{round}"), &source).await;
        }
        tokio::time::sleep(Duration::from_millis(50 + 97 * round as u64)).await;
        shell.server.kill().await;
        shell.server.start_again().await;
        for (name, fields, id, _) in &followers {
            let again = shell.client.surely(Method::POST, &shell.path(""), fields.to_string()).await;
            assert_eq!(again.is(201)["id"], **id, "a retry of {name} starts nothing");
        }
        for (at, session) in sessions.iter().enumerate() {
            let cell = session.finished(&format!("r{round}")).await;
            let expected: String = (0..50).map(|i| format!("s{at} {i}\n")).collect();
            assert_eq!(crate::server::printed(&cell), expected);
            assert_eq!(cell["outputs"].as_array().unwrap().last().unwrap()["data"]["text/plain"], (round + 1).to_string());
        }
    }
    shell.run(json!({"shell": "touch stop"})).await;
    for (name, _, _, follower) in followers {
        let text = tokio::time::timeout(PATIENCE, follower).await.unwrap().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (last, counted) = lines.split_last().unwrap();
        let expected: Vec<String> = (1..=counted.len()).map(|i| format!("{name} {i}")).collect();
        assert_eq!(counted, expected);
        assert_eq!(*last, format!("last {}", counted.len()));
    }
    shell.end().await;
}

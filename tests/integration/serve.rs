//! The HTTP API, request by request: response bodies, statuses, and the handling of bad input and bad clients.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::contract;
use crate::server::{Client, RemoteSession, Server, base64_bytes, printed};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    sessions,
    each_cell_has_its_own_figures,
    runs_end_in_their_statuses,
    files_move_in_and_out,
    reader_that_never_reads_costs_no_memory
);

fn python() -> Value {
    json!({"kernel": "python"})
}

async fn start(name: &str) -> Server {
    Server::start(name, TestSandbox::process(), &[]).await
}

async fn sessions(place: TestSandbox) {
    let server = Server::start("sessions", place, &[]).await;
    let client = server.client();
    let fields = json!({
        "kernel": "py", "name": "mine", "env": {"GIVEN": "to the kernel"}, "network": "none", "timeout_seconds": 30,
        "limits": {"memory_mb": 300, "cpus": 0.5, "pids": 100, "disk_mb": 64, "output_mb": 10},
        "ttl_seconds": 3600, "idle_timeout_seconds": 600, "labels": {"chat": "7"},
    });
    let made = client.post("/v1/sessions", fields.clone()).await;
    let session = made.is(201);
    let path = made.header("location").to_owned();
    assert_eq!(path, format!("/v1/sessions/{}", session["id"].as_str().unwrap()));
    for (field, value) in [
        ("name", json!("mine")),
        ("kernel", json!("python")),
        ("language", json!("python")),
        ("state", json!("idle")),
        ("limits", fields["limits"].clone()),
        ("labels", fields["labels"].clone()),
        ("cells", json!(0)),
        ("queue_length", json!(0)),
        ("timeout_seconds", json!(30.0)),
    ] {
        assert_eq!(session[field], value, "{field}: {session}");
    }
    for field in ["created_at", "last_active_at", "expires_at"] {
        assert!(session[field].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{session}");
    }
    let level = if place.kind.to_string() == "docker" { "container" } else { "process" };
    assert_eq!(session["isolation"]["level"], level);
    for list in ["enforced", "not_enforced", "not_stopped"] {
        assert!(session["isolation"][list].is_array(), "{session}");
    }
    assert!(session["isolation"]["not_stopped"].to_string().contains("machine's kernel"), "{session}");
    for number in ["memory_bytes", "peak_memory_bytes", "cpu_seconds"] {
        assert!(session["usage"][number].as_f64().is_some_and(|number| number >= 0.0), "{session}");
    }
    let held = RemoteSession { client: client.clone(), id: session["id"].as_str().unwrap().to_owned() };
    assert_eq!(held.ok("import os; print(os.environ['GIVEN'])").await, "to the kernel\n");
    let listed = client.get("/v1/sessions").await.is(200);
    assert_eq!(listed["sessions"][0]["id"], session["id"]);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
    let patch = json!({"name": "other", "labels": {}, "ttl_seconds": 7200, "timeout_seconds": 5});
    let patched = client.patch(&path, patch).await.is(200);
    assert_eq!((&patched["name"], &patched["labels"]), (&json!("other"), &json!({})));
    assert!(patched["expires_at"].as_str() > session["expires_at"].as_str(), "{patched}");
    assert_eq!(held.view().await["cells"], 1);
    restarts_and_questions(&held).await;
    // A subscriber learns that the session ended.
    let mut events = held.events(0).await;
    held.delete().await;
    let end = async { while events.next().await.unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the stream ends with the session");
    client.get(&path).await.problem(404, "no_session");
    client.delete(&path).await.problem(404, "no_session");
    server.end().await;
}

async fn restarts_and_questions(held: &RemoteSession) {
    held.ok("some_name = 41").await;
    let ask = |what: &str, body: Value| {
        let (client, path) = (held.client.clone(), held.path(what));
        async move { client.post(&path, body).await }
    };
    let completed = ask("/complete", json!({"code": "some_na", "cursor_pos": 7})).await.is(200);
    assert_eq!(completed["matches"][0], "some_name", "{completed}");
    let inspected = ask("/inspect", json!({"code": "some_name", "cursor_pos": 4})).await.is(200);
    assert!(inspected["found"] == true && inspected["data"]["text/plain"].as_str().unwrap().contains("int"), "{inspected}");
    ask("/complete", json!({"code": "é", "cursor_pos": 2})).await.problem(422, "bad_cursor");
    ask("/interrupt", json!({})).await.is(202);
    ask("/restart", json!({})).await.is(202);
    held.client.until(&held.path(""), |reply| reply.json()["state"] == "idle").await;
    let cell = held.run("some_name").await;
    assert_eq!((&cell["status"], &cell["error"]["ename"]), (&json!("error"), &json!("NameError")));
    assert_eq!(held.view().await["cells"], 3, "the cells are kept");
    ask("/input", json!({"value": "x"})).await.problem(409, "no_input_wanted");
    // It responds while the cell runs.
    held.begin("long", "import time\nfresh_name = 1\ntime.sleep(600)").await;
    held.client.until(&held.path(""), |reply| reply.json()["state"] == "busy").await;
    let completed = |reply: &crate::server::Reply| reply.json()["matches"][0] == "fresh_name";
    let asking = async { while !completed(&ask("/complete", json!({"code": "fresh_na"})).await) {} };
    tokio::time::timeout(PATIENCE, asking).await.expect("an answer that knows the name");
    let inspected = ask("/inspect", json!({"code": "fresh_name"})).await.is(200);
    assert_eq!((&inspected["found"], &held.cell("long").await["state"]), (&json!(true), &json!("running")));
    ask("/interrupt", json!({})).await.is(202);
    assert_eq!(held.finished("long").await["status"], "interrupted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_are_added_edited_moved_and_removed() {
    let server = start("cells").await;
    let held = server.client().create(python()).await;
    let (client, cells) = (held.client.clone(), held.path("/cells"));
    let added = client.post(&cells, json!({"id": "a", "source": "print('ä'); 6*7", "metadata": {"k": [1]}})).await;
    assert_eq!(added.header("location"), held.path("/cells/a"));
    assert!(matches!(added.is(201)["state"].as_str(), Some("queued" | "running")));
    let a = held.finished("a").await;
    assert_eq!((&a["cell_type"], &a["status"], &a["execution_count"]), (&json!("code"), &json!("ok"), &json!(1)));
    assert_eq!(a["outputs"][0], json!({"output_type": "stream", "name": "stdout", "text": "ä\n"}));
    assert_eq!(
        (&a["outputs"][1]["output_type"], &a["outputs"][1]["data"]["text/plain"]),
        (&json!("execute_result"), &json!("42"))
    );
    assert!(a["metrics"]["wall_ms"].as_f64().unwrap() > 0.0 && a["started_at"].is_string() && a["finished_at"].is_string());
    assert_eq!(a["metadata"], json!({"k": [1]}));
    client.post(&cells, json!({"id": "a", "source": "1"})).await.problem(409, "cell_exists");
    // Neither a queued cell nor a markdown cell runs.
    let b = client.post(&cells, json!({"id": "b", "source": "1/0", "run": false})).await.is(201);
    assert_eq!((&b["state"], b.get("status")), (&json!("finished"), None));
    let text = client.post(&cells, json!({"id": "m", "source": "# T", "cell_type": "markdown", "after": "a"})).await.is(201);
    assert_eq!((&text["cell_type"], &text["state"]), (&json!("markdown"), &json!("finished")));
    let streaming = client.with("accept", "text/event-stream");
    streaming.post(&cells, json!({"id": "m2", "source": "x", "cell_type": "markdown"})).await.is(201);
    client.post(&held.path("/cells/m/run"), json!({})).await.problem(409, "not_a_code_cell");
    let order = async || {
        let listed = client.get(&format!("{cells}?outputs=none")).await.is(200);
        let ids: Vec<_> = listed["cells"].as_array().unwrap().iter().map(|cell| cell["id"].clone()).collect();
        assert!(listed["cells"][0].get("outputs").is_none());
        Value::from(ids)
    };
    assert_eq!(order().await, json!(["a", "m", "b", "m2"]));
    client.patch(&held.path("/cells/m2"), json!({"after": ""})).await.is(200);
    client.patch(&held.path("/cells/a"), json!({"after": "b"})).await.is(200);
    assert_eq!(order().await, json!(["m2", "m", "b", "a"]));
    let edited = client.patch(&held.path("/cells/b"), json!({"source": "print(2)", "metadata": {"n": 1}})).await.is(200);
    assert_eq!((&edited["source"], &edited["metadata"]), (&json!("print(2)"), &json!({"n": 1})));
    let ran = client.post(&held.path("/cells/b/run?wait=60"), json!({})).await.is(200);
    assert_eq!((&ran["status"], printed(&ran).as_str()), (&json!("ok"), "2\n"));
    client.patch(&held.path("/cells/b"), json!({"after": "zzz"})).await.problem(404, "no_cell");
    client.delete(&held.path("/cells/m")).await.is(204);
    client.get(&held.path("/cells/m")).await.problem(404, "no_cell");
    queue(&held).await;
    server.end().await;
}

async fn queue(held: &RemoteSession) {
    let post = async |path: &str, body: Value| held.client.post(&held.path(path), body).await;
    held.begin("long", "import time\nprint('on', flush=True)\ntime.sleep(600)").await;
    held.begin("next", "print('next')").await;
    held.begin("never", "print('never')").await;
    held.cell_until("long", |cell| cell["state"] == "running" && !printed(cell).is_empty()).await;
    assert_eq!(held.view().await["queue_length"], 2);
    let waited = post("/cells/long/run", json!({})).await;
    waited.problem(409, "cell_in_progress");
    held.client.delete(&held.path("/cells/long")).await.problem(409, "cell_in_progress");
    held.client.patch(&held.path("/cells/long"), json!({"cell_type": "raw"})).await.problem(409, "cell_in_progress");
    let begun = Instant::now();
    let late = post("/cells?wait=0.2", json!({"source": "1", "id": "late"})).await.is(201);
    assert!(late["state"] == "queued" && begun.elapsed() < Duration::from_secs(20), "{late}");
    post("/cells/never/cancel", json!({})).await.is(202);
    post("/cells/long/cancel", json!({})).await.is(202);
    assert_eq!(held.finished("long").await["status"], "interrupted");
    assert_eq!(printed(&held.finished("next").await), "next\n");
    let never = held.finished("never").await;
    assert_eq!((&never["status"], &never["outputs"]), (&json!("cancelled"), &json!([])));
    post("/cells/never/cancel", json!({})).await.problem(409, "cell_not_in_progress");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_stream_from_any_number() {
    let server = start("events").await;
    let held = server.client().create(python()).await;
    let mut live = held.events(0).await;
    // The response can be the events of the execution until its end.
    let body = json!({"id": "one", "source": "for i in range(3): print(i, flush=True)"});
    let mut own = held.client.post_stream(&held.path("/cells"), body).await;
    let mut kinds = Vec::new();
    while let Some(event) = own.next().await.unwrap() {
        assert_eq!((&event["cell"], &event["session"]), (&json!("one"), &json!(held.id)));
        assert!(event["time"].is_string());
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!((kinds[0].as_str(), kinds[1].as_str()), ("cell.queued", "cell.started"));
    assert_eq!(kinds.last().unwrap(), "cell.finished");
    let mut all = Vec::new();
    while all.last().is_none_or(|event: &Value| event["type"] != "cell.finished") {
        all.push(live.next().await.unwrap().unwrap());
    }
    for (index, event) in all.iter().enumerate() {
        assert_eq!(event["seq"], index + 1);
    }
    for after in [0, 1, all.len() as u64 - 1] {
        let mut resumed = held.events(after).await;
        for event in &all[after as usize..] {
            assert_eq!(resumed.next().await.unwrap().as_ref(), Some(event));
        }
        let header = held.client.with("last-event-id", &after.to_string());
        let mut resumed = header.stream(&held.path("/events?after=999999")).await.unwrap();
        assert_eq!(resumed.next().await.unwrap().unwrap()["seq"], after + 1);
    }
    held.ok("print('more')").await;
    assert_eq!(live.next().await.unwrap().unwrap()["seq"], all.len() + 1);
    for bad in ["?after=x", "?after=-1", "?outputs=all"] {
        let code = if bad.contains("after") { "bad_query" } else { "bad_outputs" };
        held.client.get(&held.path(&format!("/events{bad}"))).await.problem(400, code);
    }
    server.end().await;
}

pub type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

pub async fn socket(held: &RemoteSession, query: &str) -> Socket {
    socket_at(&held.client, &held.path(&format!("/socket?{query}"))).await.unwrap()
}

/// Opens the WebSocket at a path. Fails as the server refuses it.
pub async fn socket_at(client: &Client, path: &str) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
    let mut request = format!("ws://{}{path}", client.address()).into_client_request().unwrap();
    let token = format!("Bearer {}", client.token.as_ref().unwrap());
    request.headers_mut().insert("authorization", token.parse().unwrap());
    request.headers_mut().extend(
        client.headers.iter().map(|(name, value)| {
            (tokio_tungstenite::tungstenite::http::HeaderName::from_static(name), value.parse().unwrap())
        }),
    );
    let stream = TcpStream::connect(client.address()).await?;
    Ok(tokio_tungstenite::client_async(request, stream).await?.0)
}

/// The next message for which the predicate holds.
pub async fn next_message(socket: &mut Socket, mut what: impl FnMut(&Value) -> bool) -> Value {
    let receiving = async {
        loop {
            let message = socket.next().await.unwrap().unwrap();
            let Message::Text(text) = message else { panic!("{message:?}") };
            let value: Value = serde_json::from_str(&text).unwrap();
            contract::check_message(&value);
            if what(&value) {
                return value;
            }
        }
    };
    tokio::time::timeout(PATIENCE, receiving).await.expect("the message arrives")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_takes_commands_and_sends_events() {
    let server = start("socket").await;
    let held = server.client().create(python()).await;
    let mut socket = socket(&held, "after=0").await;
    let send = async |socket: &mut Socket, command: Value| socket.send(Message::text(command.to_string())).await.unwrap();
    let source = "print('got', input('who? '), flush=True)\nimport time; time.sleep(600)";
    send(&mut socket, json!({"id": 7, "op": "run", "source": source, "cell": "c", "allow_stdin": true})).await;
    let reply = next_message(&mut socket, |message| message["type"] == "reply").await;
    assert_eq!(reply, json!({"type": "reply", "id": 7, "ok": true, "cell": "c"}));
    let request = next_message(&mut socket, |event| event["type"] == "input.requested").await;
    assert_eq!((&request["prompt"], &request["password"]), (&json!("who? "), &json!(false)));
    send(&mut socket, json!({"op": "input", "value": "you"})).await;
    next_message(&mut socket, |event| event["output"]["text"] == "got you\n").await;
    send(&mut socket, json!({"op": "interrupt"})).await;
    let ended = next_message(&mut socket, |event| event["type"] == "cell.finished").await;
    assert_eq!(ended["status"], "interrupted");
    for (text, code) in [
        ("{", "bad_json"),
        ("[]", "bad_field"),
        (r#"{"op": "fly"}"#, "bad_op"),
        (r#"{"op": "run"}"#, "missing_field"),
        (r#"{"op": "input", "value": "x"}"#, "no_input_wanted"),
        (r#"{"op": "run", "source": "1", "timeout_seconds": -1}"#, "bad_timeout"),
    ] {
        socket.send(Message::text(text)).await.unwrap();
        let reply = next_message(&mut socket, |message| message["type"] == "reply" && message["ok"] == false).await;
        assert_eq!(reply["error"]["code"], code, "{text}");
    }
    socket.send(Message::binary(vec![1, 2])).await.unwrap();
    let reply = next_message(&mut socket, |message| message["type"] == "reply" && message["ok"] == false).await;
    assert_eq!(reply["error"]["code"], "not_text");
    // The session's defaults for cells apply here, too.
    held.client.patch(&held.path(""), json!({"timeout_seconds": 0.3})).await.is(200);
    send(&mut socket, json!({"op": "run", "source": "import time; time.sleep(600)", "cell": "d"})).await;
    let ended = next_message(&mut socket, |event| event["type"] == "cell.finished" && event["cell"] == "d").await;
    assert_eq!(ended["status"], "timeout");
    held.delete().await;
    let closed = async { while matches!(socket.next().await, Some(Ok(Message::Text(_)))) {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("it is closed with the session");
    server.end().await;
}

async fn runs_end_in_their_statuses(place: TestSandbox) {
    let server = Server::start("statuses", place, &[]).await;
    let limits = json!({"memory_mb": 200, "output_mb": 1});
    let held = server.client().create(json!({"kernel": "python", "limits": limits})).await;
    let run = async |source: &str, timeout: f64| {
        let fields = json!({"source": source, "timeout_seconds": timeout});
        held.client.post(&held.path("/cells?wait=120"), fields).await.is(201)
    };
    for (source, timeout, status, name) in [
        ("print('x')\n1/0", 60.0, "error", "ZeroDivisionError"),
        ("print('x', flush=True)\nimport time; time.sleep(600)", 0.5, "timeout", ""),
        ("while True: print('x' * 1000)", 60.0, "output_exceeded", ""),
        ("print('x', flush=True)\nx = [bytearray(8 << 20) for _ in range(1000)]", 60.0, "memory_exceeded", ""),
        ("import os, time\nprint('x', flush=True)\ntime.sleep(0.5)\nos._exit(3)", 60.0, "kernel_died", ""),
        ("print('x')", 60.0, "ok", ""),
    ] {
        let cell = run(source, timeout).await;
        let error = cell["error"].to_string();
        assert_eq!((&cell["state"], &cell["status"]), (&json!("finished"), &json!(status)), "{source}: {error}");
        assert!(printed(&cell).starts_with('x'), "what was said until then is there: {source}");
        if status != "ok" {
            let error = &cell["error"];
            assert!(error["traceback"].is_array() && error["evalue"].is_string(), "{cell}");
            assert!(error["ename"].as_str().is_some_and(|ename| name.is_empty() || ename == name), "{cell}");
        }
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plots_become_artifacts() {
    let server = start("plots").await;
    let (_, ann) = server.client_with(&["ann"]).await;
    let (_, bob) = server.client_with(&["bob"]).await;
    let held = ann.create(python()).await;
    let code = "import matplotlib.pyplot as plt\nplt.plot(range(99)); plt.show()\nfrom IPython.display import *\n\
                display(HTML('<script>alert(1)</script>' + 'x' * 9000))\n\
                display({'image/svg+xml': '<svg xmlns=\"http://www.w3.org/2000/svg\">' + ' ' * 9000 + '</svg>'}, raw=True)";
    let cell = held.run(code).await;
    let plot = base64_bytes(&cell["outputs"][0]["data"]["image/png"]);
    let path = format!("/cells/{}", cell["id"].as_str().unwrap());
    let refs = ann.get(&held.path(&format!("{path}?outputs=refs"))).await.is(200);
    let hash = refs["outputs"][0]["data"]["image/png"]["artifact"].as_str().unwrap().to_owned();
    let listed = ann.get(&held.path("/artifacts")).await.is(200);
    let listed = listed["artifacts"].as_array().unwrap();
    let png = listed.iter().find(|artifact| artifact["mime"] == "image/png").unwrap();
    assert_eq!((&png["sha256"], &png["cell"], &png["bytes"]), (&json!(hash), &cell["id"], &json!(plot.len())));
    assert!(png["name"].as_str().is_some_and(|name| name.ends_with(".png")), "{png}");
    let reference = &refs["outputs"][0]["data"]["image/png"];
    assert!(
        ["width", "height", "bytes"].iter().all(|key| reference[key].is_u64() && reference[key] == png[key]),
        "{reference}"
    );
    for artifact in listed {
        let reply = ann.get(&format!("/v1/artifacts/{}", artifact["sha256"].as_str().unwrap())).await;
        reply.is(200);
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert!(reply.header("content-security-policy").contains("sandbox"));
        let shown = artifact["mime"] == "image/png";
        assert_eq!(reply.header("content-disposition"), if shown { "inline" } else { "attachment" }, "{artifact}");
        assert!(!reply.header("content-type").starts_with("text/html"));
        if shown {
            assert_eq!(reply.body, plot);
        }
    }
    bob.get(&format!("/v1/artifacts/{hash}")).await.problem(404, "no_artifact");
    for odd in ["..%2f..%2fetc%2fpasswd", "0", &"0".repeat(64)] {
        ann.get(&format!("/v1/artifacts/{odd}")).await.problem(404, "no_artifact");
    }
    // The same plot in a second session is stored once, and outlives the first session.
    let other = ann.create(python()).await;
    let code = "import matplotlib.pyplot as plt\nplt.plot(range(99)); plt.show()";
    assert_eq!(base64_bytes(&other.run(code).await["outputs"][0]["data"]["image/png"]), plot);
    held.delete().await;
    assert_eq!(ann.get(&format!("/v1/artifacts/{hash}")).await.body, plot);
    server.end().await;
}

async fn files_move_in_and_out(place: TestSandbox) {
    let server = Server::start("files", place, &[]).await;
    let held = server.client().create(python()).await;
    let client = held.client.clone();
    let path = |name: &str| held.path(&format!("/files/{name}"));
    let big: Vec<u8> = (0..20u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    assert_eq!(big.len(), 20 << 20);
    client.put(&path("data/big.bin"), big.clone()).await.is(204);
    let got = client.get(&path("data/big.bin")).await;
    assert!(got.body == big, "{} bytes came back", got.body.len());
    assert_eq!(
        (got.header("content-disposition"), got.header("x-content-type-options")),
        ("attachment; filename*=UTF-8''big%2Ebin", "nosniff")
    );
    let text = held.ok("import os; print(os.path.getsize('data/big.bin')); open('out.txt', 'w').write('hello')").await;
    assert_eq!(text.lines().next(), Some("20971520"));
    assert_eq!(client.get(&path("out.txt")).await.body, "hello");
    client.put(&path("%C3%A4%20b.txt"), "").await.is(204);
    let listed = client.get(&held.path("/files/?path=")).await.is(200);
    let names: Vec<_> = listed["entries"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    for name in ["data", "out.txt", "ä b.txt"] {
        assert!(names.contains(&name), "{listed}");
    }
    assert_eq!(client.get(&held.path("/files/?path=data")).await.is(200)["entries"][0]["size"], 20 << 20);
    held.ok("os.symlink('/etc/passwd', 'out'); os.symlink('/', 'root'); os.mkfifo('fifo')").await;
    for out in ["out", "root/etc/passwd", "..%2f..%2fetc%2fpasswd", "a/../../x", "%2fetc%2fpasswd", "a%00b", "fifo", "data"]
    {
        client.get(&path(out)).await.problem(422, "bad_file");
        client.put(&path(out), "x").await.problem(422, "bad_file");
    }
    client.get(&held.path("/files/?path=root")).await.problem(422, "bad_file");
    client.get(&path("none")).await.problem(404, "no_file");
    client.get(&path("none/deeper")).await.problem(404, "no_file");
    client.delete(&path("none")).await.problem(404, "no_file");
    client.get(&held.path("/files/?path=none")).await.problem(404, "no_file");
    client.delete(&path("out.txt")).await.is(204);
    client.get(&path("out.txt")).await.problem(404, "no_file");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn principals_are_invisible_to_each_other() {
    let server = start("tokens").await;
    let admin = server.client();
    let (ann_id, ann) = server.client_with(&["ann-laptop", "--principal", "ann"]).await;
    let (_, reader) = server.client_with(&["ann-screen", "--principal", "ann", "--scope", "read"]).await;
    let (_, bob) = server.client_with(&["bob"]).await;
    let held = ann.create(python()).await;
    let cell = held.run("print(1)").await;
    let cell = format!("/cells/{}", cell["id"].as_str().unwrap());
    for (method, rest) in [
        (Method::GET, ""),
        (Method::PATCH, ""),
        (Method::DELETE, ""),
        (Method::POST, "/interrupt"),
        (Method::POST, "/restart"),
        (Method::GET, "/cells"),
        (Method::GET, cell.as_str()),
        (Method::GET, "/events"),
        (Method::GET, "/artifacts"),
        (Method::GET, "/files/"),
        (Method::GET, "/files/x"),
        (Method::PUT, "/files/x"),
    ] {
        bob.send(method.clone(), &held.path(rest), "{}").await.problem(404, "no_session");
        admin.anonymous().send(method.clone(), &held.path(rest), "{}").await.problem(401, "no_token");
        let path = held.path(rest);
        let read = reader.attempt(method.clone(), &path, "{}".into());
        match method {
            // An event stream does not end.
            Method::GET if rest == "/events" => drop(reader.stream(&held.path(rest)).await.unwrap()),
            Method::GET if rest == "/files/x" => drop(read.await.unwrap().problem(404, "no_file")),
            Method::GET => drop(read.await.unwrap().is(200)),
            _ => drop(read.await.unwrap().problem(403, "scope_too_narrow")),
        }
    }
    bob.post(&held.path("/cells"), json!({"source": "1"})).await.problem(404, "no_session");
    assert_eq!((bob.session_ids().await, ann.session_ids().await), (vec![], vec![held.id.clone()]));
    assert_eq!((reader.session_ids().await, admin.session_ids().await), (vec![held.id.clone()], vec![held.id.clone()]));
    assert_eq!(admin.get(&held.path("")).await.is(200)["id"], held.id);
    // A read-only token's socket sends events and accepts no commands.
    let looking = RemoteSession { client: reader.clone(), id: held.id.clone() };
    let mut socket = socket(&looking, "after=0").await;
    socket.send(Message::text(r#"{"op": "run", "source": "1"}"#)).await.unwrap();
    let reply = next_message(&mut socket, |message| message["type"] == "reply").await;
    assert_eq!(reply["error"]["code"], "scope_too_narrow");
    // A token in the query, as browsers must pass it for streams, and malformed tokens.
    let token = ann.token.clone().unwrap();
    ann.anonymous().stream(&held.path(&format!("/events?token={token}"))).await.unwrap().next_of("session.state").await;
    ann.anonymous().get(&format!("/v1/sessions?token={token}")).await.problem(401, "no_token");
    for bad in ["Bearer x", "Basic YTpi", &token, "Bearer "] {
        assert_eq!(ann.anonymous().with("authorization", bad).get("/v1/sessions").await.status, 401, "{bad}");
    }
    // A revoked token ends its streams within seconds, an expired one at once.
    let mut revoke = std::process::Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    let revoked = revoke.args(["token", "revoke", &ann_id, "--data"]).arg(server.data()).output().unwrap();
    assert!(revoked.status.success());
    ann.until("/v1/sessions", |reply| reply.status == 401).await.problem(401, "bad_token");
    let store = cellkeep::store::Store::open(&server.paths().journal()).unwrap();
    let identity = cellkeep::auth::Identity { principal: "ann".into(), scope: cellkeep::auth::Scope::Use, only: None };
    let soon = cellkeep::store::now_ms() + 6000;
    cellkeep::auth::store_token(&store, "ck_short", "short", &identity, Some(soon)).await.unwrap();
    let short = Client { token: Some("ck_short".to_owned()), ..admin.clone() };
    short.until("/v1/sessions", |reply| reply.status == 200).await;
    short.until("/v1/sessions", |reply| reply.status == 401).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_hosts_and_origins_are_refused() {
    let server = Server::start(
        "hosts",
        TestSandbox::process(),
        &["--allow-host", "box.lan", "--allow-origin", "https://chat.example"],
    )
    .await;
    let client = server.client();
    let ours = client.address().to_string();
    for host in [ours.as_str(), "localhost:1", "box.lan:80"] {
        client.with("host", host).get("/v1/sessions").await.is(200);
    }
    for host in ["evil.example", "evil.example:7788", "127.0.0.1.evil.example"] {
        for path in ["/v1/sessions", "/healthz", "/nothing"] {
            client.with("host", host).get(path).await.problem(403, "foreign_host");
        }
    }
    let mut stream = tokio::net::TcpStream::connect(client.address()).await.unwrap();
    let two = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, two.as_bytes()).await.unwrap();
    let mut response = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 400") && response.contains("two_hosts"), "{response}");
    for origin in [format!("http://{ours}"), "https://chat.example".to_owned()] {
        client.with("origin", &origin).get("/v1/sessions").await.is(200);
    }
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
        client.with("origin", origin).get("/v1/sessions").await.problem(403, "foreign_origin");
        client.with("origin", origin).post("/v1/sessions", python()).await.problem(403, "foreign_origin");
    }
    // A preflight request, which has no token.
    let preflight = client.anonymous().with("origin", "https://chat.example").with("access-control-request-method", "PATCH");
    let response = preflight.send(Method::OPTIONS, "/v1/sessions", "").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("access-control-allow-origin"), "https://chat.example");
    for header in ["authorization", "last-event-id"] {
        assert!(
            response.header("access-control-allow-headers").contains(header),
            "{}",
            response.header("access-control-allow-headers")
        );
    }
    assert!(response.header("access-control-allow-methods").contains("PATCH"));
    let read = client.with("origin", "https://chat.example").get("/v1/nothing").await;
    assert_eq!((read.status, read.header("access-control-allow-origin")), (404, "https://chat.example"));
    assert_eq!(client.get("/v1/sessions").await.header("access-control-allow-origin"), "");
    assert_eq!(client.anonymous().get("/healthz").await.status, 200);
    assert_eq!(client.anonymous().get("/readyz").await.status, 200);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_after_their_lifetime() {
    let server = Server::start("times", TestSandbox::process(), &["--keep-ended", "3"]).await;
    let client = server.client();
    let ttl = client.create(json!({"ttl_seconds": 1})).await;
    let idle = client.create(json!({"idle_timeout_seconds": 1})).await;
    let busy = client.create(json!({"idle_timeout_seconds": 1})).await;
    busy.begin("long", "import time; time.sleep(4); print('done')").await;
    for (held, word) in [(&ttl, "ttl_seconds"), (&idle, "idle_timeout_seconds")] {
        let gone = client.until(&held.path(""), |reply| reply.json()["state"] == "gone").await.json();
        assert!(gone["why"].as_str().is_some_and(|why| why.contains(word)), "{gone}");
        held.client.post(&held.path("/cells"), json!({"source": "1"})).await.problem(409, "session_gone");
    }
    assert_eq!(printed(&busy.finished("long").await), "done\n", "one that works is not idle");
    for held in [&ttl, &idle] {
        client.until(&held.path(""), |reply| reply.status == 404).await;
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_limit_is_enforced() {
    let server = Server::start("full", TestSandbox::process(), &["--max-sessions", "2"]).await;
    let client = server.client();
    let asking = (0..6).map(|_| client.post("/v1/sessions", json!({})));
    let replies = futures_util::future::join_all(asking).await;
    assert_eq!(replies.iter().filter(|reply| reply.status == 201).count(), 2);
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        reply.problem(429, "too_many_sessions");
        assert!(reply.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
    }
    let ids = client.session_ids().await;
    client.delete(&format!("/v1/sessions/{}", ids[0])).await.is(204);
    client.create(json!({})).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_reported_clearly() {
    let server = start("bad").await;
    let client = server.client();
    let held = client.create(python()).await;
    let cells = held.path("/cells");
    let deep = format!("{{\"source\": \"1\", \"metadata\": {}1{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let sessions = "/v1/sessions".to_owned();
    let post = Method::POST;
    let cases: Vec<(Method, &str, Vec<u8>, u16, &str)> = vec![
        (post.clone(), &sessions, b"{".to_vec(), 400, "bad_json"),
        (post.clone(), &sessions, b"\xff\xfe{}".to_vec(), 400, "bad_json"),
        (post.clone(), &sessions, b"{\"name\": \"\xff\"}".to_vec(), 400, "bad_json"),
        (post.clone(), &sessions, b"[]".to_vec(), 422, "bad_field"),
        (post.clone(), &sessions, b"{\"kernel\": 7}".to_vec(), 422, "bad_field"),
        (post.clone(), &sessions, b"{\"kernle\": \"python\"}".to_vec(), 422, "bad_field"),
        (post.clone(), &sessions, b"{\"kernel\": \"cobol\"}".to_vec(), 422, "no_kernel"),
        (post.clone(), &sessions, b"{\"network\": \"wide\"}".to_vec(), 422, "bad_network"),
        (post.clone(), &sessions, b"{\"limits\": {\"memory_mb\": 1}}".to_vec(), 422, "bad_limits"),
        (post.clone(), &sessions, b"{\"limits\": {\"cpus\": -1}}".to_vec(), 422, "bad_limits"),
        (post.clone(), &sessions, b"{\"limits\": {\"memory_mb\": -1}}".to_vec(), 422, "bad_field"),
        (post.clone(), &sessions, b"{\"timeout_seconds\": 0}".to_vec(), 422, "bad_timeout"),
        (post.clone(), &sessions, b"{\"env\": {\"A=B\": \"x\"}}".to_vec(), 422, "bad_env"),
        (post.clone(), &sessions, b"{\"env\": {\"A\": \"x\\u0000y\"}}".to_vec(), 422, "bad_env"),
        (post.clone(), &sessions, format!("{{\"name\": \"{}\"}}", "x".repeat(201)).into(), 422, "bad_name"),
        (post.clone(), &cells, b"{}".to_vec(), 422, "bad_field"),
        (post.clone(), &cells, b"{\"source\": 1}".to_vec(), 422, "bad_field"),
        (post.clone(), &cells, b"{\"source\": \"1\", \"id\": \"a b\"}".to_vec(), 422, "bad_cell_id"),
        (post.clone(), &cells, b"{\"source\": \"1\", \"id\": \"\\u0000\"}".to_vec(), 422, "bad_cell_id"),
        (post.clone(), &cells, b"{\"source\": \"1\", \"cell_type\": \"song\"}".to_vec(), 422, "bad_cell_type"),
        (post.clone(), &cells, b"{\"source\": \"1\", \"timeout_seconds\": 1e999}".to_vec(), 400, "bad_json"),
        (post.clone(), &cells, b"{\"source\": \"1\", \"metadata\": []}".to_vec(), 422, "bad_field"),
        (post.clone(), &cells, b"{\"source\": \"1\", \"after\": \"none\"}".to_vec(), 404, "no_cell"),
        (post.clone(), &cells, deep.into(), 422, "bad_field"),
        (post.clone(), &cells, vec![b' '; (32 << 20) + 1], 413, "body_too_large"),
    ];
    for (method, path, body, status, code) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let reply = client.send(method, path, body).await;
        assert_eq!(
            (reply.status, reply.json()["code"].as_str().unwrap_or_default()),
            (status, code),
            "{shown}: {}",
            reply.text()
        );
        reply.problem(status, code);
    }
    for (path, status, code) in [
        ("/v1/sessions/ABC", 404, "no_session"),
        ("/v1/sessions/%00", 404, "no_session"),
        ("/v1/sessions/..%2f..", 404, "no_session"),
        ("/v1/sessions/0000", 404, "no_session"),
        ("/v1/nothing", 404, "no_such_path"),
        ("/nothing", 404, "no_such_path"),
        ("/v1/sessions/%ff", 400, "bad_path"),
    ] {
        client.get(path).await.problem(status, code);
    }
    for wait in ["-1", "x", "nan", "inf", "1e9"] {
        let reply = client.post(&format!("{cells}?wait={wait}"), json!({"source": "1"})).await;
        assert!(
            reply.status == 400 && ["bad_wait", "bad_query"].contains(&reply.json()["code"].as_str().unwrap()),
            "{wait}"
        );
    }
    client.send(Method::PUT, "/v1/sessions", "{}").await.problem(405, "method_not_allowed");
    // Unusual valid input is accepted: a NUL in a source, an empty source, a large source.
    assert_eq!(held.run("print(len('a\u{0}b'))").await["state"], "finished");
    assert_eq!(held.run("").await["status"], "ok");
    assert_eq!(held.run(&format!("x = '{}'", "y".repeat(8 << 20))).await["status"], "ok");
    assert_eq!(held.ok("print(6 * 7)").await, "42\n");
    server.end().await;
}

/// Prints 50 MB. Returns the peak memory of the server meanwhile, in bytes.
async fn flood(server: &Server, held: &RemoteSession, id: &str) -> u64 {
    server.forget_peak();
    held.begin(id, "for i in range(50_000): print('x' * 999)").await;
    let path = held.path(&format!("/cells/{id}?outputs=none"));
    let cell = held.client.until(&path, |reply| reply.json()["state"] == "finished").await.json();
    assert_eq!(cell["status"], "ok");
    server.peak_memory()
}

async fn each_cell_has_its_own_figures(place: TestSandbox) {
    let server = Server::start("usage", place, &[]).await;
    let held = server.client().create(python()).await;
    let peak = |cell: &Value| cell["metrics"]["peak_memory_bytes"].as_f64().unwrap() / f64::from(1 << 20);
    let cpu = |cell: &Value| cell["metrics"]["cpu_ms"].as_f64().unwrap();
    let big = held.run("x = bytearray(b'x') * (200 << 20); del x").await;
    let small = held.run("sum(range(3_000_000))").await;
    assert!(peak(&big) > 200.0 && peak(&small) < 150.0 && peak(&small) > 10.0, "{big} {small}");
    assert!(cpu(&small) > 10.0, "{small}");
    let died = held.run("sum(range(3_000_000))\nimport os, time\ntime.sleep(0.3)\nos._exit(3)").await;
    assert_eq!(died["status"], "kernel_died", "{died}");
    assert!(peak(&died) < 150.0 && cpu(&died) > 10.0, "{died}");
    server.end().await;
}

async fn reader_that_never_reads_costs_no_memory(place: TestSandbox) {
    let server = Server::start("slow", place, &[]).await;
    let held = server.client().create(json!({"kernel": "python", "timeout_seconds": 240})).await;
    // The first run pays for memory that later runs use again.
    flood(&server, &held, "warm").await;
    let alone = flood(&server, &held, "alone").await;
    let mut lazy = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(held.client.address()).await.unwrap();
        let token = held.client.token.as_ref().unwrap();
        let head =
            format!("GET {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n", held.path("/events"));
        stream.write_all(head.as_bytes()).await.unwrap();
        lazy.push((stream, socket(&held, "after=0").await));
    }
    let watched = flood(&server, &held, "watched").await;
    eprintln!("50 MB without readers: at most {} MB; with 16 that do not read: {} MB", alone >> 20, watched >> 20);
    // The bound covers pages of a megabyte each, a few times over, and not the 800 MB that the readers have missed.
    assert!(watched < alone + (160 << 20), "{} MB, alone {} MB", watched >> 20, alone >> 20);
    let whole = printed(&held.cell("watched").await);
    assert!(whole.len() == 50_000_000 && whole.lines().all(|line| line.len() == 999), "{} bytes", whole.len());
    drop(lazy);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_connections_cost_nothing() {
    let server = start("bad-peers").await;
    let held = server.client().create(python()).await;
    let address = held.client.address();
    let (files, memory) = (server.open_files(), server.memory());
    let token = held.client.token.clone().unwrap();
    for round in 0..500 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = match round % 5 {
            0 => String::new(),
            1 => "GET /v1/sess".to_owned(),
            2 => {
                format!("GET {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n", held.path("/events"))
            }
            3 => "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{".to_owned(),
            _ => "\u{0}\u{1}garbage\r\n\r\n".to_owned(),
        };
        let _ = stream.write_all(request.as_bytes()).await;
    }
    // Half closed: the request is complete, and the client still waits for the response.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = r#"{"source": "import time; time.sleep(0.5); print(6 * 7)"}"#;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        held.path("/cells?wait=60"),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains(r#""text":"42\n""#), "{answer}");
    assert_eq!(held.ok("print(6 * 7)").await, "42\n");
    let closed = async {
        while server.open_files() > files + 3 {
            tokio::time::sleep(crate::server::PACE).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("dropped connections are closed");
    assert!(server.memory() < memory + (16 << 20), "{} MB", server.memory() >> 20);
    server.end().await;
}

#[tokio::test]
async fn requests_have_ids_and_a_rate_limit() {
    let server = Server::start("pace", TestSandbox::process(), &["--rate-limit", "10"]).await;
    let client = server.client();
    let named = client.with("x-request-id", "mine-1").get("/v1/sessions").await;
    assert_eq!(named.header("x-request-id"), "mine-1");
    assert_eq!(client.with("x-request-id", "<b>").get("/healthz").await.header("x-request-id").len(), 36);
    let refused = loop {
        let reply = client.get("/v1/sessions").await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds <= 2));
    refused.problem(429, "too_many_requests");
    let (_, other) = server.client_with(&["other", "--principal", "other"]).await;
    other.until("/v1/sessions", |reply| reply.status == 200).await;
    let (_, reader) = server.client_with(&["reader", "--principal", "reader", "--scope", "read"]).await;
    reader.until("/v1/sessions", |reply| reply.status == 200).await;
    let mut statuses = Vec::new();
    while statuses.len() < 1000 && !statuses.contains(&429) {
        statuses.push(reader.post("/v1/sessions", json!({})).await.status);
    }
    assert!(statuses.contains(&403) && statuses.contains(&429), "refusals count: {statuses:?}");
    let stranger = Client { token: Some("ck_guessed".to_owned()), ..client.clone() };
    stranger.get("/v1/sessions").await.problem(401, "bad_token");
    let refused = loop {
        let reply = stranger.get("/v1/sessions").await;
        if reply.status != 401 {
            break reply;
        }
    };
    refused.problem(429, "too_many_requests");
    server.end().await;
}

#[tokio::test]
async fn revoked_token_ends_its_streams() {
    let server = start("revoked").await;
    let (id, friend) = server.client_with(&["friend"]).await;
    let held = friend.create(json!({"kernel": "bash"})).await;
    let mut events = held.events(0).await;
    events.next_of("session.state").await;
    let mut request = format!("ws://{}{}", friend.address(), held.path("/socket")).into_client_request().unwrap();
    let authorization = format!("Bearer {}", friend.token.as_deref().unwrap());
    request.headers_mut().insert("authorization", authorization.parse().unwrap());
    let stream = TcpStream::connect(friend.address()).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    assert!(command.args(["token", "revoke", &id, "--data"]).arg(server.data()).status().unwrap().success());
    let ends = async {
        while events.next().await.is_ok_and(|event| event.is_some()) {}
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.unwrap().reason.to_string(),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let why = tokio::time::timeout(PATIENCE, ends).await.expect("both end");
    assert!(why.contains("has been revoked"), "{why}");
    let mine = RemoteSession { client: server.client(), id: held.id };
    mine.delete().await;
    server.end().await;
}

#[tokio::test]
async fn log_contains_no_code_output_or_token() {
    let mut server = start("log").await;
    server.stop().await;
    server.env = vec![("CELLKEEP_LOG", "cellkeep=trace,hyper=info".to_owned())];
    server.start_again().await;
    let client = server.client();
    let held = client.create(json!({"kernel": "python", "env": {"GIVEN": "env-canary"}})).await;
    held.ok("canary_code = 1; print('out' + 'put-canary')").await;
    held.client.put(&held.path("/files/name.txt"), "file-canary").await.is(204);
    let path = held.path(&format!("/events?token={}", crate::server::TOKEN));
    client.anonymous().stream(&path).await.unwrap().next_of("session.state").await;
    Client { token: Some("guessed-canary".to_owned()), ..client.clone() }
        .get("/v1/sessions")
        .await
        .problem(401, "bad_token");
    held.delete().await;
    let log = server.stderr();
    assert!(log.contains("request completed") && log.contains("/v1/sessions"), "requests are logged: {log}");
    for secret in ["canary", crate::server::TOKEN] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
    server.end().await;
}

#[tokio::test]
async fn large_file_transfer_uses_little_memory() {
    const SIZE: usize = 150 << 20;
    let server = start("large").await;
    let held = server.client().create(json!({"kernel": "bash", "limits": {"disk_mb": 200, "memory_mb": 1024}})).await;
    let (path, bytes) = (held.path("/files/deep/large.bin"), bytes::Bytes::from(vec![7; SIZE]));
    let before = server.memory();
    server.forget_peak();
    held.client.put(&path, bytes.clone()).await.is(204);
    let back = held.client.get(&path).await;
    assert_eq!((back.status, back.header("content-length")), (200, SIZE.to_string().as_str()));
    assert!(back.body == bytes, "as it was");
    let grown = server.peak_memory().saturating_sub(before) >> 20;
    assert!(grown < 75, "{grown} MB for a file of 150 MB");
    held.client.put(&held.path("/files/none"), "").await.is(204);
    assert_eq!(held.client.get(&held.path("/files/none")).await.body.len(), 0);
    held.delete().await;
    server.end().await;
}

#[tokio::test]
async fn idle_connections_do_not_block_others() {
    let server = start("silent").await;
    let client = server.client();
    let held = client.create(json!({"kernel": "bash"})).await;
    let mut silent = Vec::new();
    for _ in 0..1500 {
        let mut stream = TcpStream::connect(client.address()).await.unwrap();
        stream.write_all(b"GET /v1/ses").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(held.ok("echo others work").await, "others work\n");
    // Streams are bounded per principal, and those of others do not count.
    let mut streams = Vec::new();
    let refused = loop {
        match client.stream(&held.path("/events?after=0")).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error.to_string(),
        }
        assert!(streams.len() <= 2000, "too many streams");
    };
    assert!(refused.contains("429") && streams.len() == 2000, "{refused} after {}", streams.len());
    let (_, other) = server.client_with(&["other", "--principal", "other"]).await;
    other.create(json!({"kernel": "bash"})).await.events(0).await.next_of("session.state").await;
    drop(streams);
    client.until(&held.path(""), |_| true).await;
    let again = async { while client.stream(&held.path("/events?after=0")).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("their places are free again");
    server.end().await;
}

#[tokio::test]
async fn idle_connection_is_closed_at_the_limit() {
    // The smallest number of descriptors that allows a few hundred connections.
    let mut server = start("house").await;
    server.stop().await;
    server.descriptors = Some(1400);
    server.start_again().await;
    let client = server.client();
    let mut silent = Vec::new();
    for number in 0..900 {
        let mut stream = TcpStream::connect(client.address()).await.unwrap();
        // Some connections have sent a request and are idle.
        if number % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            assert!(stream.read(&mut [0; 1]).await.unwrap_or(0) <= 1);
        }
        silent.push(stream);
    }
    let held = client.create(json!({"kernel": "bash"})).await;
    assert_eq!(held.ok("echo there is room").await, "there is room\n");
    let mut rest = Vec::new();
    let first = silent[0].read_to_end(&mut rest).await;
    assert!(first.is_ok_and(|bytes| bytes < 1000), "the one that was silent for the longest time has gone");
    server.end().await;
}

#[tokio::test]
async fn prometheus_metrics_are_served() {
    let server = Server::start("figures", TestSandbox::process(), &["--pool", "bash=1"]).await;
    let client = server.client();
    let held = client.create(json!({"kernel": "bash"})).await;
    held.ok("echo hi").await;
    let mut events = held.events(0).await;
    events.next_of("cell.finished").await;
    let figures = client.until("/metrics", |reply| reply.text().contains("cellkeep_pool_ready")).await;
    let figures = String::from_utf8_lossy(&figures.body).into_owned();
    for part in [
        "cellkeep_sessions{state=\"idle\"} 1",
        "cellkeep_run_seconds_bucket{status=\"ok\"",
        "cellkeep_session_start_seconds_count",
        "cellkeep_events_total",
        "cellkeep_event_bytes_total",
        "cellkeep_commit_seconds_sum",
        "cellkeep_event_lag_seconds_bucket",
        "cellkeep_queued_cells 0",
        "cellkeep_streams 1",
        "cellkeep_pool_ready{kernel=\"bash\"}",
    ] {
        assert!(figures.contains(part), "{part} is missing: {figures}");
    }
    server.end().await;
}

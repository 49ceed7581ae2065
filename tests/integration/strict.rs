//! Requests with mistakes: the response names the invalid field, and the request has no effect.

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::serve::{next_message, socket};
use crate::server::{Client, RemoteSession, Server};
use crate::support::{PATIENCE, TestSandbox};

async fn start(name: &str) -> (Server, RemoteSession) {
    let server = Server::start(name, TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    (server, held)
}

/// No response mentions types of Rust.
fn is_plain(problem: &Value) {
    for rust in ["struct", "usize", "u64", "u32", "f64", "enum"] {
        assert!(!problem["detail"].as_str().unwrap().contains(rust), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_fields_are_named() {
    let most =
        ["--max-memory-mb=16777216", "--max-cpus=256", "--max-pids=65536", "--max-disk-mb=1048576", "--max-output-mb=16384"];
    let server = Server::start("strict-fields", TestSandbox::process(), &most).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let client = &held.client;
    let sessions = "/v1/sessions".to_owned();
    let large = "x".repeat(131_070);
    let cases = [
        (&sessions, json!({"kernel": 5}), "bad_field", "kernel"),
        (&sessions, json!({"kernle": "bash"}), "bad_field", "kernle"),
        (&sessions, json!({"limits": {"memory_mb": "much"}}), "bad_field", "limits.memory_mb"),
        (&sessions, json!({"limits": {"memroy_mb": 5}}), "bad_field", "limits.memroy_mb"),
        (&sessions, json!({"limits": [100, 1, 64, 10, 10]}), "bad_field", "limits"),
        (&sessions, json!({"limits": {"memory_mb": 17_592_186_044_416_u64}}), "bad_limits", "limits.memory_mb"),
        (&sessions, json!({"limits": {"output_mb": 1_u64 << 60}}), "bad_limits", "limits.output_mb"),
        (&sessions, json!({"limits": {"pids": 4_194_304}}), "bad_limits", "limits.pids"),
        (&sessions, json!({"limits": {"cpus": 1024}}), "bad_limits", "limits.cpus"),
        (&sessions, json!({"limits": {"disk_mb": 1_u64 << 44}}), "bad_limits", "limits.disk_mb"),
        (&sessions, json!({"ttl_seconds": 300_000_000_000_u64}), "bad_timeout", "ttl_seconds"),
        (&sessions, json!({"idle_timeout_seconds": 300_000_000_000_u64}), "bad_timeout", "idle_timeout_seconds"),
        (&sessions, json!({"timeout_seconds": 1e300}), "bad_timeout", "timeout_seconds"),
        (&sessions, json!({"env": {"A": large}}), "bad_env", "env"),
        (
            &sessions,
            json!({"env": (0..9).map(|i| (format!("V{i}"), "x".repeat(130_000))).collect::<Value>()}),
            "bad_env",
            "env",
        ),
        (&held.path("/cells"), json!({}), "bad_field", "source"),
        (&held.path("/cells"), json!({"source": "1", "timeout_seconds": "long"}), "bad_field", "timeout_seconds"),
        (&held.path("/complete"), json!(["pri", 2]), "bad_field", ""),
        (&held.path("/complete"), json!({"code": "pri", "cursor_pos": -1}), "bad_field", "cursor_pos"),
        (&held.path("/notebook/run"), json!({"allow_errors": 1}), "bad_field", "allow_errors"),
        (&"/v1/runs".to_owned(), json!({"notebook": {}, "limits": {"memroy_mb": 5}}), "bad_field", "limits.memroy_mb"),
    ];
    for (path, body, code, field) in cases {
        let problem = client.post(path, body).await.problem(422, code);
        assert_eq!(problem["field"].as_str().unwrap_or_default(), field, "{problem}");
        is_plain(&problem);
    }
    let patch = client.patch(&held.path(""), json!({"ttl_seconds": 300_000_000_000_u64})).await;
    assert_eq!(patch.problem(422, "bad_timeout")["field"], "ttl_seconds");
    for (path, field) in [
        ("/cells?waitt=5", "waitt"),
        ("/cells?outputs=refs&x=1", "x"),
        ("/cells?wait=soon", "wait"),
        ("/events?after=abc", "after"),
        ("/files/?pth=a", "pth"),
        ("/notebook?ot=html", "ot"),
        ("/notebook?inputs=1", "inputs"),
    ] {
        let problem = client.get(&held.path(path)).await.problem(400, "bad_query");
        assert_eq!(problem["field"], field, "{problem}");
        is_plain(&problem);
    }
    for (method, path) in [
        (Method::GET, "/v1/sessions?x%20y=1".to_owned()),
        (Method::POST, "/v1/sessions?x%20y=1".to_owned()),
        (Method::POST, held.path("/interrupt?x%20y")),
        (Method::DELETE, held.path("?x%20y=1")),
        (Method::PUT, held.path("/files/a?x%20y=1")),
        (Method::DELETE, held.path("/cells/a?x%20y=1")),
    ] {
        assert_eq!(client.send(method, &path, "").await.problem(400, "bad_query")["field"], "x y", "{path}");
    }
    client.send(Method::PUT, &held.path("/cells"), "").await.problem(405, "method_not_allowed");
    client.send(Method::PUT, &held.path("/cells/a"), "").await.problem(405, "method_not_allowed");
    assert_eq!(server.client().session_ids().await.len(), 1, "none of them was made, and none is gone");
    // The largest allowed values are accepted. One session has all processes then.
    held.delete().await;
    let most = json!({
        "kernel": "bash", "env": {"A": "x".repeat(131_069)}, "ttl_seconds": 315_360_000,
        "limits": {"memory_mb": 16 << 20, "cpus": 256, "pids": 65_536, "disk_mb": 1 << 20, "output_mb": 16 << 10},
    });
    let made = client.create(most).await;
    assert_eq!(made.ok("echo ${#A}").await, "131069\n");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_validated_strictly() {
    let (server, held) = start("strict-commands").await;
    let mut open = socket(&held, "after=0").await;
    for (command, field) in [
        (r#"{"id": 7, "op": 5}"#, "op"),
        (r#"{"id": 7, "op": "run", "source": "1", "tiemout": 5}"#, "tiemout"),
        (r#"{"op": "run", "source": ["1"], "id": 7}"#, "source"),
        (r#"{"id": 7, "source": "1"}"#, "op"),
        (r#"[1, "interrupt"]"#, ""),
    ] {
        futures_util::SinkExt::send(&mut open, tokio_tungstenite::tungstenite::Message::text(command)).await.unwrap();
        let reply = next_message(&mut open, |event| event["type"] == "reply").await;
        let problem = &reply["error"];
        assert_eq!(
            (&problem["code"], problem["field"].as_str().unwrap_or_default()),
            (&json!("bad_field"), field),
            "{reply}"
        );
        assert_eq!(reply["id"], if command.starts_with('{') { json!(7) } else { json!(null) });
        is_plain(problem);
    }
    assert_eq!(held.view().await["cells"], 0);
    server.end().await;
}

/// Sends a raw request. Returns the response, whose body is a JSON object.
async fn by_hand(client: &Client, request: &str) -> String {
    let mut stream = TcpStream::connect(client.address()).await.unwrap();
    let token = client.token.as_deref().unwrap();
    let request = request.replacen("\r\n", &format!("\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"), 1);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = async { while !answer.ends_with(b"}") && stream.read_buf(&mut answer).await.unwrap() > 0 {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("it is answered");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_requests_are_refused_at_once() {
    let (server, held) = start("strict-sizes").await;
    let (client, cells) = (&held.client, held.path("/cells"));
    // The response comes although no byte of the body is sent.
    for (method, path) in [("POST", cells.clone()), ("PUT", held.path("/notebook")), ("POST", "/v1/runs".to_owned())] {
        let answer = by_hand(client, &format!("{method} {path} HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    }
    // A client that is still sending gets the response as well.
    client.post(&cells, json!({"source": "x".repeat(40 << 20)})).await.problem(413, "body_too_large");
    let large = "x".repeat(20 << 20);
    let problem = client.post(&held.path("/input"), json!({"value": large})).await.problem(413, "too_large");
    assert_eq!(problem["field"], "value");
    let problem = client.post(&cells, json!({"source": large})).await.problem(413, "too_large");
    assert!(problem["field"] == "source" && problem["detail"].as_str().unwrap().contains("16711680"), "{problem}");
    client.post(&held.path("/complete"), json!({"code": large})).await.problem(413, "too_large");
    assert_eq!(held.view().await["cells"], 0);
    // A cell that is not executed may be as large, until somebody executes it.
    client.post(&cells, json!({"id": "big", "source": large, "run": false})).await.is(201);
    client.post(&held.path("/cells/big/run"), json!({})).await.problem(413, "too_large");
    client.post(&held.path("/notebook/run"), json!({})).await.problem(413, "too_large");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_parsed_by_the_standard() {
    let (server, held) = start("strict-headers").await;
    let (client, socket) = (&held.client, held.path("/socket"));
    client.get(&socket).await.problem(400, "bad_upgrade");
    let wrong = client.with("connection", "upgrade").with("upgrade", "h2c");
    wrong.get(&socket).await.problem(400, "bad_upgrade");
    let head = client.send(Method::HEAD, &socket, "").await;
    assert_eq!((head.status, head.header("content-type")), (400, "application/problem+json"));
    for (accept, streams) in [
        ("text/event-stream", true),
        ("TEXT/Event-Stream", true),
        ("application/json;q=0.5, text/event-stream;q=0.1", true),
        ("text/event-stream;q=0", false),
        ("text/event-stream; Q=0.000, */*", false),
        ("text/event-streams", false),
        ("*/*", false),
    ] {
        let reply = client.with("accept", accept).post(&held.path("/cells"), json!({"source": "sleep 0.2"})).await;
        assert_eq!(reply.header("content-type") == "text/event-stream", streams, "{accept}: {}", reply.text());
    }
    for bad in ["abc", "-1", "1.5"] {
        let problem = client.with("last-event-id", bad).get(&held.path("/events")).await.problem(400, "bad_query");
        assert_eq!(problem["field"], "Last-Event-ID");
    }
    server.end().await;
}

#[test]
fn tokens_have_names_and_lifetimes() {
    let data = std::env::temp_dir().join(format!("ck-strict-tokens-{}", std::process::id()));
    let create = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        let output = command.args(["token", "create"]).args(arguments).arg("--data").arg(&data).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (arguments, why) in [
        (&[""][..], "a name needs"),
        (&[" "], "a name needs"),
        (&["ann", "--principal", ""], "a name needs"),
        (&["ann", "--days", "0"], "1..=36500"),
    ] {
        let (status, message) = create(arguments);
        assert!(status == Some(2) && message.contains(why), "{arguments:?}: {message}");
    }
    assert!(!data.exists(), "no data folder was created");
    assert_eq!(create(&["ann", "--days", "1"]).0, Some(0));
    std::fs::remove_dir_all(data).unwrap();
}

//! Input that is sent by halves: what a client has sent of it is bounded before it is held, and others are served meanwhile.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::serve::socket;
use crate::server::{Client, RemoteSession, Server};
use crate::support::{PATIENCE, TestSandbox};

/// The server may take this much memory, in bytes.
const MOST: u64 = 300 << 20;
const MB: usize = 1 << 20;
/// How long a client waits until the server takes more of its bytes.
const STALL: Duration = Duration::from_secs(5);

/// Writes as many bytes as the server takes.
async fn write_all_taken(stream: &mut TcpStream, bytes: usize) {
    let chunk = vec![b'a'; 64 << 10];
    for _ in 0..bytes / chunk.len() {
        match tokio::time::timeout(STALL, stream.write_all(&chunk)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

/// A client of a WebSocket that sends the first 30 of 31 MB of a frame. Returns whether the server has ended the connection.
async fn half_message(held: &RemoteSession) -> (TcpStream, bool) {
    let open = socket(held, "after=0").await;
    let mut stream = open.into_inner();
    let mut head = vec![0x81, 0xff];
    head.extend((31 * MB as u64).to_be_bytes());
    head.extend([0; 4]);
    let _ = stream.write_all(&head).await;
    write_all_taken(&mut stream, 30 * MB).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(STALL, stream.read_to_end(&mut rest)).await.is_ok();
    (stream, ended)
}

/// A client that sends the first part of a body. Returns what the server answers, as far as it does.
async fn half_body(client: &Client, request: &str, sent: usize, whole: usize) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(client.address()).await.unwrap();
    let token = client.token.as_ref().unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {whole}\r\n\r\n",
        client.address()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    write_all_taken(&mut stream, sent).await;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
    answer.truncate(read.ok().and_then(Result::ok).unwrap_or(0));
    (stream, String::from_utf8_lossy(&answer).into_owned())
}

async fn start(name: &str) -> (Server, RemoteSession) {
    let server = Server::start(name, TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    (server, held)
}

/// Somebody else is served while the connections are open, and the server has little memory.
async fn is_unharmed(server: &Server) {
    assert!(server.memory() < MOST, "{} MB", server.memory() >> 20);
    let (_, other) = server.client_with(&["other"]).await;
    let held = other.create(json!({"kernel": "bash"})).await;
    assert_eq!(held.ok("echo served").await, "served\n");
    let source = format!("true {}", "x".repeat(100_000));
    assert_eq!(held.run(&source).await["status"], "ok", "a body of some size is taken as well");
    held.delete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_of_a_share_hold_nothing() {
    let (server, held) = start("half-share").await;
    held.ok("echo shown").await;
    let share = held.client.post(&held.path("/shares"), json!({})).await.is(201);
    let reader = Client { token: Some(share["token"].as_str().unwrap().to_owned()), ..server.client() };
    let shared = RemoteSession { client: reader, ..held.clone() };
    let sockets = join_all((0..30).map(|_| half_message(&shared))).await;
    assert!(sockets.iter().all(|(_, ended)| *ended), "each is closed at its header");
    is_unharmed(&server).await;
    // A reader still receives events, and an answer to a small command.
    let mut open = socket(&shared, "after=0").await;
    let first = tokio::time::timeout(PATIENCE, open.next()).await.unwrap();
    assert!(first.unwrap().unwrap().is_text());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_bodies_of_one_principal_share_a_budget() {
    let (server, held) = start("half-bodies").await;
    let (_, greedy) = server.client_with(&["greedy"]).await;
    let own = greedy.create(json!({"kernel": "bash"})).await;
    for request in [
        format!("POST {}", own.path("/cells")),
        format!("PUT {}", own.path("/notebook")),
        "POST /v1/runs".to_owned(),
        format!("PUT {}", own.path("/files/a")),
    ] {
        let is_file = request.contains("/files/");
        let (count, sent) = if is_file { (100, MB) } else { (60, 30 * MB) };
        let bodies = join_all((0..count).map(|_| half_body(&greedy, &request, sent, 31 * MB))).await;
        let refused = bodies.iter().filter(|(_, answer)| answer.contains("too_much_input")).count();
        assert!(refused >= count / 3 && refused < count, "{request}: {refused}");
        is_unharmed(&server).await;
    }
    held.delete().await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_of_one_principal_share_a_budget() {
    let (server, held) = start("half-messages").await;
    let (_, greedy) = server.client_with(&["greedy"]).await;
    let own = greedy.create(json!({"kernel": "bash"})).await;
    let half = async || {
        let mut stream = socket(&own, "after=0").await.into_inner();
        let mut head = vec![0x81, 0xff];
        head.extend((4 * MB as u64).to_be_bytes());
        head.extend([0; 4]);
        stream.write_all(&head).await.unwrap();
        write_all_taken(&mut stream, 4 * MB - (64 << 10)).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(STALL, stream.read_to_end(&mut rest)).await.is_ok();
        (stream, ended)
    };
    let sockets = join_all((0..60).map(|_| half())).await;
    let ended = sockets.iter().filter(|(_, ended)| *ended).count();
    assert!((40..60).contains(&ended), "{ended} of 60 are closed, and the others are within the budget");
    is_unharmed(&server).await;
    held.delete().await;
    server.end().await;
}

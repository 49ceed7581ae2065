//! Replacing a file: the workspace has the old file or the new one, whatever happens to the request.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::{RemoteSession, Server};
use crate::support::TestSandbox;

in_every_sandbox!(upload_is_atomic);

fn bash() -> Value {
    json!({"kernel": "bash", "limits": {"disk_mb": 20}})
}

/// Sends the head of a request with 6 MB, and 5 MB of the body. Returns when the server must have received them.
async fn half(held: &RemoteSession, name: &str) -> TcpStream {
    let mut stream = TcpStream::connect(held.client.address()).await.unwrap();
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        held.path(&format!("/files/{name}")),
        held.client.token.as_deref().unwrap(),
        6 << 20
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'n'; 5 << 20]).await.unwrap();
    stream
}

/// The space used in the workspace in MB. Unnamed files count as well.
async fn used(held: &RemoteSession) -> u64 {
    let text = held.ok("df -m --output=used . | tail -1").await;
    text.trim().parse().unwrap()
}

async fn until_used(held: &RemoteSession, fits: impl Fn(u64) -> bool) {
    let looking = async {
        while !fits(used(held).await) {
            tokio::time::sleep(crate::server::PACE).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, looking).await.expect("the workspace takes as much as it should");
}

async fn upload_is_atomic(place: TestSandbox) {
    let mut server = Server::start("uploads", place, &[]).await;
    let held = server.client().create(bash()).await;
    let client = held.client.clone();
    let path = |name: &str| held.path(&format!("/files/{name}"));
    let old = "old ".repeat(200);
    client.put(&path("keep.txt"), old.clone()).await.is(204);
    held.ok("chmod 750 keep.txt").await;
    let is_old = async || assert!(client.get(&path("keep.txt")).await.body == old.as_bytes(), "it is as it was");

    // No space in the workspace.
    client.put(&path("fill"), vec![b'f'; 15 << 20]).await.is(204);
    client.put(&path("keep.txt"), vec![b'n'; 10 << 20]).await.problem(507, "workspace_full");
    is_old().await;
    until_used(&held, |used| used <= 16).await;
    client.delete(&path("fill")).await.is(204);

    // Interrupted half-way, and read meanwhile.
    let stream = half(&held, "keep.txt").await;
    until_used(&held, |used| used >= 4).await;
    is_old().await;
    let listed = client.get(&held.path("/files/?path=")).await.is(200);
    let names: Vec<_> = listed["entries"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert!(names.iter().all(|name| !name.contains("cellkeep")), "{names:?}");
    drop(stream);
    until_used(&held, |used| used <= 1).await;
    is_old().await;
    let mut stream = half(&held, "keep.txt").await;
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("cut_off"), "{answer}");
    until_used(&held, |used| used <= 1).await;

    // The server is killed during the upload.
    let stream = half(&held, "keep.txt").await;
    until_used(&held, |used| used >= 4).await;
    server.kill().await;
    drop(stream);
    server.start_again().await;
    until_used(&held, |used| used <= 1).await;
    is_old().await;

    // Finally the new file, with the mode of the old one.
    client.put(&path("keep.txt"), vec![b'n'; 3 << 20]).await.is(204);
    assert!(client.get(&path("keep.txt")).await.body == vec![b'n'; 3 << 20]);
    assert_eq!(held.ok("stat -c %a keep.txt; ls -A | grep -c cellkeep || true").await, "750\n0\n");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_never_mixes_two_files() {
    const SIZE: usize = 40 << 20;
    let server = Server::start("two-files", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash", "limits": {"disk_mb": 100}})).await;
    let path = held.path("/files/large");
    held.client.put(&path, vec![b'o'; SIZE]).await.is(204);
    let mut reader = TcpStream::connect(held.client.address()).await.unwrap();
    let token = held.client.token.as_deref().unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    reader.write_all(request.as_bytes()).await.unwrap();
    let mut got = vec![0; 1000];
    reader.read_exact(&mut got).await.unwrap();
    // No buffer on the way holds the whole file.
    held.client.put(&path, vec![b'n'; SIZE]).await.is(204);
    let _ = reader.read_to_end(&mut got).await;
    let head = got.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let body = &got[head..];
    assert!(body.iter().all(|byte| *byte == b'o'), "the old file, as far as it goes");
    assert!(!body.is_empty() && body.len() < SIZE, "{} bytes: it is cut off", body.len());
    assert!(held.client.get(&path).await.body == vec![b'n'; SIZE]);
    server.end().await;
}

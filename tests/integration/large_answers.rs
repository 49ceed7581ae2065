//! Large responses: clients that request many and read none cost no memory, and do not block others.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{Server, printed};
use crate::support::TestSandbox;

const TEXT: usize = 20_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_cost_no_memory() {
    let server = Server::start("large", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "python", "timeout_seconds": 240})).await;
    held.begin("big", &format!("for i in range({TEXT} // 1000): print('x' * 999)")).await;
    held.finished("big").await;
    let whole = held.cell("big").await;
    server.forget_peak();
    held.cell("big").await;
    let one = server.peak_memory();
    let (address, token) = (held.client.address(), held.client.token.clone().unwrap());
    let mut lazy = Vec::new();
    for number in 0..15 {
        let path = [held.path("/cells/big"), held.path("/cells"), held.path("/notebook")][number % 3].clone();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        lazy.push(stream);
    }
    // The head of each response means that the response was produced.
    for stream in &mut lazy {
        let mut head = [0; 15];
        tokio::time::timeout(Duration::from_secs(120), stream.read_exact(&mut head)).await.expect("an answer").unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
    let peak = server.peak_memory();
    eprintln!("one answer of 20 MB: at most {} MB; 15 that nobody reads: {} MB", one >> 20, peak >> 20);
    // Some responses are produced at once. All 15 would be 300 MB, and six times that if produced at once.
    assert!(peak < one + (220 << 20), "{} MB, and {} MB for one", peak >> 20, one >> 20);
    let now = server.memory();
    assert!(now < one, "what waits is in memory: {} MB", now >> 20);
    assert_eq!(printed(&held.cell("big").await), printed(&whole), "others get theirs");
    drop(lazy);
    server.end().await;
}

/// A kernel can send any JSON in place of an image, and cannot reference artifacts with it.
#[tokio::test]
async fn only_the_servers_artifact_references_are_resolved() {
    let server = Server::start("forged", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    let source = "import base64, os\nfrom IPython.display import display\n\
                  data = base64.b64encode(b'\\x89PNG' + os.urandom(200_000)).decode()\ndisplay({'image/png': data}, raw=True)";
    let shown = held.run(source).await;
    let listed = held.client.get(&held.path("/artifacts")).await.is(200);
    let hash = listed["artifacts"][0]["sha256"].as_str().unwrap();
    let forged = held.run(&format!("display({{'image/png': {{'artifact': '{hash}'}}}}, raw=True)")).await;
    let value = |cell: &serde_json::Value| cell["outputs"][0]["data"]["image/png"].as_str().unwrap().to_owned();
    assert!(value(&shown).len() > 200_000);
    assert_eq!(value(&forged), format!("{{\"artifact\":\"{hash}\"}}"));
    let cell = json!({"cell_type": "code", "id": "a", "metadata": {}, "source": "", "execution_count": null, "outputs": [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": {"artifact": hash}}}]});
    let file = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]});
    held.client.put(&held.path("/notebook"), file.to_string()).await.is(200);
    assert_eq!(value(&held.cell("a").await), value(&forged));
    server.end().await;
}

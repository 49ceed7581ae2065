//! The Python client (`clients/python`) against a server.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::server::{Server, TOKEN};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(client_does_what_it_says, client_goes_on_over_a_kill,);

/// A part of `python_client.py` that runs.
struct Part {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Part {
    fn start(server: &Server, name: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join("target/test-venv/bin/python"))
            .arg(root.join("tests/integration/python_client.py"))
            .arg(name)
            .env("PYTHONPATH", root.join("clients/python/src"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("CELLKEEP_SERVER", format!("http://{}", server.client().address()))
            .env("CELLKEEP_TOKEN", TOKEN)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that it prints.
    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("it says something").unwrap();
        line.unwrap_or_else(|| "nothing, and has ended".to_owned())
    }

    async fn end(mut self) {
        assert_eq!(self.line().await, "ok");
        assert!(self.child.wait().await.unwrap().success());
    }
}

async fn client_does_what_it_says(place: TestSandbox) {
    let server = Server::start("python-client", place, &[]).await;
    for name in ["sync", "async"] {
        Part::start(&server, name).end().await;
    }
    server.end().await;
}

async fn client_goes_on_over_a_kill(place: TestSandbox) {
    let mut server = Server::start("python-client-kill", place, &[]).await;
    server.listen = server.client().address();
    let client = server.client();
    let mut part = Part::start(&server, "restart");
    let session = format!("/v1/sessions/{}", part.line().await);
    for round in ["while a request waits", "while a stream is read"] {
        match round {
            "while a request waits" => {
                drop(client.until(&format!("{session}/cells"), |reply| reply.text().contains("started")).await)
            }
            _ => assert_eq!(part.line().await, "streams"),
        }
        server.kill().await;
        server.start_again().await;
        client.put(&format!("{session}/files/go"), "").await.is(204);
    }
    part.end().await;
    server.end().await;
}

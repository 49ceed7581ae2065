//! Sessions whose removal fails at first, and databases that other programs open: nothing is lost, and nothing stays behind.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::server::{PACE, Server, printed};
use crate::support::{PATIENCE, TestSandbox};

/// Another program that holds the write lock of the database until it is dropped.
struct Writer(Child);

impl Writer {
    fn begin(journal: &Path) -> Self {
        let code = "import sqlite3, sys\n\
                    journal = sqlite3.connect(sys.argv[1], timeout=60)\n\
                    journal.execute('BEGIN IMMEDIATE')\n\
                    print('holds it', flush=True)\n\
                    sys.stdin.read()";
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", code]).arg(journal).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert_eq!(&line, b"holds it");
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.flush();
        }
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_lives_if_deletion_cannot_commit() {
    let server = Server::start("unwritten", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let path = format!("/v1/sessions/{}", held.id);
    let writer = Writer::begin(&server.paths().journal());
    server.client().delete(&path).await.problem(500, "storage_failed");
    drop(writer);
    held.ok("echo it lives").await;
    let in_use = async || server.client().get("/v1/limits").await.is(200)["in_use"]["sessions"].clone();
    assert_eq!(in_use().await, 1, "it still counts for its principal");
    server.client().delete(&path).await.is(204);
    assert_eq!(in_use().await, 0);
    server.client().get(&path).await.problem(404, "no_session");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_removal_is_retried() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root can mount what keeps a folder from being removed");
        return;
    }
    let server = Server::start("kept-folder", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    held.ok("echo 1").await;
    let folder = server.paths().sandboxes().join(&held.id);
    let busy = folder.join("busy");
    fs::create_dir(&busy).unwrap();
    let mount = |command: &mut Command| assert!(command.arg(&busy).status().unwrap().success());
    mount(Command::new("mount").args(["-t", "tmpfs", "none"]));
    let path = format!("/v1/sessions/{}", held.id);
    server.client().delete(&path).await.is(204);
    server.client().get(&path).await.problem(404, "no_session");
    assert!(folder.exists());
    mount(&mut Command::new("umount"));
    let gone = async {
        while folder.exists() {
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the folder goes once it can");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_program_closing_the_database_loses_nothing() {
    let mut server = Server::start("opened", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    held.ok("echo before").await;
    // The program opens and closes the database, like a person with the sqlite3 tool.
    server.client_with(&["guest"]).await;
    drop(Writer::begin(&server.paths().journal()));
    held.begin("after", "echo after").await;
    held.finished("after").await;
    server.kill().await;
    server.start_again().await;
    let again = held.cell("after").await;
    assert_eq!((&again["status"], printed(&again)), (&json!("ok"), "after\n".to_owned()));
    server.end().await;
}

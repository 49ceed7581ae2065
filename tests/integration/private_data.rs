//! What the server keeps is for its own user, and what it tells is for those whom it concerns.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hyper::Method;
use serde_json::json;

use crate::server::{Client, Server};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(data_folder_is_private_after_real_use);

/// Everything below a folder. Symbolic links are not followed.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        all.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(entries(&entry.path()));
        }
    }
    all
}

/// Why other users have rights to this path below the data folder. `None` if they must have none.
fn reason(path: &Path) -> Option<(u32, &'static str)> {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
    match parts.as_slice() {
        [] => Some((0o011, "sandboxes of other uids enter it")),
        ["kernels"] => Some((0o077, "a link of this test; sandboxes read the environments behind it")),
        ["agent"] => Some((0o011, "sandboxes enter it")),
        ["agent", _, "ca-certificates.crt"] => Some((0o044, "sandboxes read it")),
        ["agent", _] => Some((0o055, "sandboxes execute it")),
        ["s", _, "sock", ..] => {
            Some((0o077, "a container of another uid makes its socket there; the folder above is private"))
        }
        ["s", _, "agent"] => Some((0o055, "a container of another uid executes it; the folder is private")),
        ["s", _, "certificates", ..] => Some((0o055, "a container of another uid reads them; the folder is private")),
        ["s", _, "passwd" | "group"] => Some((0o044, "a container of another uid reads it; the folder is private")),
        ["s", _, "agent.sock"] => Some((0o077, "a container of another uid made it; the folder is private")),
        _ => None,
    }
}

async fn data_folder_is_private_after_real_use(place: TestSandbox) {
    let server = Server::start("private", place, &[]).await;
    let client = server.client();
    let held = client.create(json!({"kernel": "bash"})).await;
    let kept = json!({"source": "seq 10000 > kept.csv; echo done", "artifacts": ["*.csv"]});
    client.post(&held.path("/cells?wait=60"), kept).await.is(201);
    let artifacts = client.get(&held.path("/artifacts")).await.is(200);
    assert_eq!(artifacts["artifacts"].as_array().unwrap().len(), 1, "{artifacts}");
    client.put(&held.path("/files/in/data"), vec![7; 3 << 20]).await.is(204);
    client.get(&held.path("/files/?format=zip")).await;
    client.get(&held.path("/notebook?to=html")).await.is(200);
    client.post(&held.path("/shares"), json!({})).await.is(201);
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []});
    client.post("/v1/runs?wait=60", json!({"notebook": notebook, "kernel": "bash"})).await.is(201);
    let _ = server.client_with(&["other"]).await;
    let mut open = Vec::new();
    let all = [server.data().to_owned()].into_iter().chain(entries(server.data()));
    for path in all {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let (mode, below) = (metadata.permissions().mode() & 0o777, path.strip_prefix(server.data()).unwrap());
        let allowed = reason(below).map_or(0, |(rights, _)| rights);
        if mode & 0o077 & !allowed != 0 {
            open.push(format!("{mode:o} {}", below.display()));
        }
    }
    assert_eq!(open, Vec::<String>::new(), "other users have rights to these");
    // The files of sessions have the usual modes, whatever the server keeps private.
    assert_eq!(held.ok("umask; touch x; stat -c %a x").await, "0022\n644\n");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_need_a_token_of_their_scope() {
    let server = Server::start("metrics", TestSandbox::process(), &[]).await;
    let (_, user) = server.client_with(&["user"]).await;
    server.client().anonymous().get("/metrics").await.problem(401, "no_token");
    user.get("/metrics").await.problem(403, "scope_too_narrow");
    server.client().get("/metrics").await.is(200);
    let made = Command::new(env!("CARGO_BIN_EXE_cellkeep"))
        .args(["token", "create", "prometheus", "--scope", "metrics", "--data"])
        .arg(server.data())
        .output()
        .unwrap();
    let secret = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let scraper = Client { token: Some(secret), ..server.client() };
    let metrics = scraper.until("/metrics", |reply| reply.status != 401).await;
    assert_eq!((metrics.status, metrics.header("cache-control")), (200, "no-store"));
    for path in ["/v1/sessions", "/v1/token", "/v1/kernels"] {
        scraper.get(path).await.problem(403, "scope_too_narrow");
    }
    server.end().await;
    let server = Server::start("open-metrics", TestSandbox::process(), &["--open-metrics"]).await;
    server.client().anonymous().get("/metrics").await.is(200);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn share_shows_no_labels() {
    let server = Server::start("labels", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash", "labels": {"customer": "secret-name"}})).await;
    assert_eq!(held.view().await["labels"]["customer"], "secret-name");
    let share = held.client.post(&held.path("/shares"), json!({})).await.is(201);
    let reader = Client { token: Some(share["token"].as_str().unwrap().to_owned()), ..server.client() };
    assert_eq!(reader.get(&held.path("")).await.is(200)["labels"], json!({}));
    for path in ["", "/cells", "/notebook", "/notebook?to=html", "/artifacts"] {
        let reply = reader.send(Method::GET, &held.path(path), "").await;
        assert!(!String::from_utf8_lossy(&reply.body).contains("secret-name"), "{path}");
    }
    server.end().await;
}

/// Runs `cellkeep serve` with these arguments on an empty data folder, until it ends or serves. Returns its first line and what it
/// complains about.
fn serve(folder: &Path, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(folder.join("data")).args(arguments);
    command.env_remove("CELLKEEP_TOKEN").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _ = child.kill();
    let ended = child.wait_with_output().unwrap();
    (line, String::from_utf8(ended.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_is_read_from_a_file() {
    let folder = std::env::temp_dir().join(format!("ck-token-file-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let file = folder.join("token");
    fs::write(&file, "ck_of-a-file\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let path = file.to_str().unwrap().to_owned();
    let run = async |arguments: Vec<String>| {
        let folder = folder.clone();
        let running =
            tokio::task::spawn_blocking(move || serve(&folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
        tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap()
    };
    let (line, complaint) = run(vec![format!("--token-file={path}")]).await;
    assert!(line.starts_with("cellkeep serves") && !line.contains("token"), "{line}: it is not shown");
    assert_eq!(complaint, "");
    let store = cellkeep::store::Store::open(&folder.join("data/journal.db")).unwrap();
    let tokens = cellkeep::auth::Tokens::default();
    tokens.load(&store).await.unwrap();
    assert!(tokens.identify("ck_of-a-file").is_some(), "without its line end");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, complaint) = run(vec![format!("--token-file={path}")]).await;
    assert!(complaint.contains("other users of this machine can read the token"), "{complaint}");
    let (_, complaint) = run(vec!["--token=ck_argument".to_owned()]).await;
    assert!(complaint.contains("list of processes") && complaint.contains("--token-file"), "{complaint}");
    let (line, complaint) = run(vec!["--token-file=/nowhere/token".to_owned()]).await;
    assert!(line.is_empty() && complaint.contains("/nowhere/token"), "{complaint}");
    drop(store);
    fs::remove_dir_all(folder).unwrap();
}

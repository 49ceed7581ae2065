//! Data mounts: folders that the operator names, which sessions see read-only, and nothing beside them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::cli::Cli;
use crate::server::{RemoteSession, Server, printed};
use crate::support::{TestSandbox, skip};

in_every_sandbox!(
    session_reads_mounts_that_it_asks_for,
    mount_leads_nowhere_else,
    unknown_and_missing_mounts_are_refused,
    mounted_data_becomes_artifacts,
    links_in_the_place_of_mounts_lead_nowhere,
    later_mounts_of_the_machine_stay_outside,
    session_ends_with_a_mount_that_is_shared_no_more,
);

/// A folder that others than its owner cannot enter, with the folder `data` and a secret beside it.
struct Shared(PathBuf);

impl Shared {
    fn new(name: &str, place: TestSandbox) -> Self {
        let folder = std::env::temp_dir().join(format!("ck-shared-{name}-{}-{}", place.kind, std::process::id()));
        fs::create_dir_all(folder.join("data/deep")).unwrap();
        fs::write(folder.join("secret"), "the secret\n").unwrap();
        fs::write(folder.join("data/numbers.csv"), "a,b\n1,2\n").unwrap();
        fs::write(folder.join("data/deep/text"), "deep\n").unwrap();
        for (path, mode) in [
            ("secret", 0o644),
            ("data/numbers.csv", 0o644),
            ("data/deep/text", 0o644),
            ("data", 0o755),
            ("data/deep", 0o755),
        ] {
            fs::set_permissions(folder.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        // Root's own folders above a mount need not be open to sandboxes.
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        Self(folder)
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn option(&self) -> String {
        format!("--mount=numbers={}", self.data().display())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn with_mount(server: &Server) -> RemoteSession {
    server.client().create(json!({"kernel": "bash", "mounts": ["numbers"]})).await
}

async fn session_reads_mounts_that_it_asks_for(place: TestSandbox) {
    let shared = Shared::new("reads", place);
    let mut server = Server::start("mount-reads", place, &[&shared.option(), "--pool=bash=1"]).await;
    let listed = server.client().get("/v1/mounts").await.is(200);
    assert_eq!(listed, json!({"mounts": [{"name": "numbers", "path": "/mnt/numbers", "description": null}]}));
    let session = with_mount(&server).await;
    assert_eq!(session.view().await["mounts"], json!(["numbers"]));
    assert_eq!(session.ok("cat /mnt/numbers/numbers.csv /mnt/numbers/deep/text").await, "a,b\n1,2\ndeep\n");
    let changes = "cd /mnt/numbers; echo x >numbers.csv; echo x >new; rm numbers.csv; mkdir f; mv deep d; ln -s a b; chmod 777 .; touch deep";
    let refused = printed(&session.run(&format!("{{ {changes}; }} 2>&1; ls")).await);
    assert!(refused.ends_with("deep\nnumbers.csv\n"), "{refused}");
    assert!(refused.matches("Read-only file system").count() >= 6, "{refused}");
    fs::write(shared.data().join("later"), "later\n").unwrap();
    fs::set_permissions(shared.data().join("later"), fs::Permissions::from_mode(0o644)).unwrap();
    server.kill().await;
    server.start_again().await;
    assert_eq!(session.ok("cat /mnt/numbers/later").await, "later\n", "after a restart, with what the operator has added");
    let other = server.client().create(json!({"kernel": "bash"})).await;
    assert_eq!(other.ok("ls -A /mnt 2>/dev/null | wc -l").await.trim(), "0", "it has not asked for any");
    assert_eq!(other.view().await["mounts"], json!([]));
    server.end().await;
}

async fn mount_leads_nowhere_else(place: TestSandbox) {
    let shared = Shared::new("nowhere", place);
    let links = [
        ("absolute", shared.0.join("secret")),
        ("up", "../secret".into()),
        ("etc", "/etc/shadow".into()),
        ("own", "deep/text".into()),
    ];
    for (name, target) in links {
        symlink(target, shared.data().join(name)).unwrap();
    }
    let devices = rustix::process::geteuid().is_root();
    if devices {
        let made =
            Command::new("mknod").args(["-m", "666"]).arg(shared.data().join("memory")).args(["c", "1", "1"]).status();
        assert!(made.unwrap().success());
    }
    let server = Server::start("mount-nowhere", place, &[&shared.option()]).await;
    let session = with_mount(&server).await;
    assert_eq!(session.ok("cat /mnt/numbers/own").await, "deep\n");
    for name in ["absolute", "up", "etc"] {
        let read = printed(&session.run(&format!("cat /mnt/numbers/{name} && echo read")).await);
        assert!(!read.contains("secret\n") && !read.contains("read\n"), "{name}: {read}");
    }
    if devices {
        let read = printed(&session.run("head -c 1 /mnt/numbers/memory && echo read").await);
        assert!(!read.contains("read\n") && read.contains("ermi"), "{read}");
    }
    let found = session.ok("find / -xdev -name secret 2>/dev/null; ls /mnt").await;
    assert_eq!(found, "numbers\n");
    server.end().await;
}

async fn unknown_and_missing_mounts_are_refused(place: TestSandbox) {
    let shared = Shared::new("unknown", place);
    let server = Server::start("mount-unknown", place, &[&shared.option()]).await;
    let client = server.client();
    let path = shared.data().display().to_string();
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []});
    for name in ["other", "", "/etc", "numbers/..", "../numbers", &path] {
        for (route, mut body) in [("/v1/sessions", json!({})), ("/v1/runs", json!({"notebook": notebook}))] {
            body["mounts"] = json!(["numbers", name]);
            let problem = client.post(route, body).await.problem(422, "no_mount");
            assert_eq!(problem["field"], "mounts");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("available: numbers") && (name == path || !detail.contains(&path)), "{detail}");
        }
    }
    for not_names in [json!("numbers"), json!([1]), json!({"numbers": "/etc"})] {
        assert_eq!(client.post("/v1/sessions", json!({"mounts": not_names})).await.status, 422);
    }
    let before = isolation(&client.create(json!({"kernel": "bash", "mounts": ["numbers"]})).await).await;
    fs::rename(shared.data(), shared.0.join("moved")).unwrap();
    let problem =
        client.post("/v1/sessions", json!({"kernel": "bash", "mounts": ["numbers"]})).await.problem(503, "no_sandbox");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("mount \"numbers\"") && !detail.contains(&path), "{detail}");
    let after = isolation(&client.create(json!({"kernel": "bash"})).await).await;
    assert_eq!(before, after, "other sessions have the same protection as before");
    server.end().await;
}

async fn isolation(session: &RemoteSession) -> Value {
    session.view().await["isolation"].clone()
}

async fn links_in_the_place_of_mounts_lead_nowhere(place: TestSandbox) {
    let shared = Shared::new("replaced", place);
    let server = Server::start("mount-replaced", place, &[&shared.option()]).await;
    // Somebody who may write above the folder puts a link in its place.
    fs::create_dir(shared.0.join("other")).unwrap();
    fs::rename(shared.data(), shared.0.join("moved")).unwrap();
    symlink(shared.0.join("other"), shared.data()).unwrap();
    let asked = json!({"kernel": "bash", "mounts": ["numbers"]});
    let problem = server.client().post("/v1/sessions", asked).await.problem(503, "no_sandbox");
    assert!(problem["detail"].as_str().unwrap().contains("mount \"numbers\""), "{problem}");
    server.end().await;
}

async fn later_mounts_of_the_machine_stay_outside(place: TestSandbox) {
    let shared = Shared::new("later", place);
    let data = shared.data();
    let mount = |arguments: &[&str]| Command::new("mount").args(arguments).arg(&data).status().unwrap().success();
    // A shared mount, as `/` is on most machines.
    if !mount(&["--bind", data.to_str().unwrap()]) {
        return skip("this user may not mount");
    }
    assert!(mount(&["--make-shared"]));
    let server = Server::start("mount-later", place, &[&shared.option()]).await;
    let session = with_mount(&server).await;
    let deep = data.join("deep");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&deep).status().unwrap();
    fs::write(deep.join("later"), "later\n").unwrap();
    let seen = session.ok("ls /mnt/numbers/deep").await;
    for path in [&deep, &data] {
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    }
    assert!(mounted.success());
    assert_eq!(seen, "text\n");
    server.end().await;
}

async fn session_ends_with_a_mount_that_is_shared_no_more(place: TestSandbox) {
    let (shared, config) = (Shared::new("unshared", place), std::env::temp_dir());
    let config = config.join(format!("ck-unshared-{}-{}.toml", place.kind, std::process::id()));
    fs::write(&config, format!("[mounts.numbers]\npath = {:?}\n", shared.data())).unwrap();
    let mut server = Server::start("mount-unshared", place, &[&format!("--config={}", config.display())]).await;
    let (with, without) = (with_mount(&server).await, server.client().create(json!({"kernel": "bash"})).await);
    server.kill().await;
    fs::write(&config, "").unwrap();
    server.start_again().await;
    let view = with.view().await;
    assert_eq!(view["state"], "gone", "{view}");
    assert!(view["why"].as_str().unwrap().contains("data mounts"), "{view}");
    assert_eq!(without.ok("echo here").await, "here\n");
    fs::remove_file(config).unwrap();
    server.end().await;
}

/// The way from data that the operator shares to results that outlive the sandbox.
async fn mounted_data_becomes_artifacts(place: TestSandbox) {
    let shared = Shared::new("artifacts", place);
    let server = Server::start("mount-artifacts", place, &[&shared.option()]).await;
    let session = with_mount(&server).await;
    let source = "mkdir output; sed s/2/3/ /mnt/numbers/numbers.csv >output/changed.csv";
    let cell = session
        .client
        .post(&session.path("/cells?wait=60"), json!({"source": source, "artifacts": ["output/"]}))
        .await
        .is(201);
    let file = cell["files"].as_array().unwrap().iter().find(|file| file["path"] == "output/changed.csv").cloned();
    let sha256 = file.unwrap_or_else(|| panic!("{cell}"))["sha256"].as_str().unwrap().to_owned();
    assert_eq!(session.client.get(&format!("/v1/artifacts/{sha256}")).await.text(), "a,b\n1,3\n");
    server.end().await;
}

#[test]
fn commands_show_folders_and_refuse_bad_ones() {
    let shared = Shared::new("commands", TestSandbox::process());
    let option = shared.option();
    let arguments = ["exec", "--sandbox", "process", "-k", "bash", "-c", "cat /mnt/numbers/deep/text", &option];
    assert_eq!(Cli::new(&arguments).run().stdout, "deep\n");
    for (value, reason) in [("a=/proc", "folders of the system"), ("a=/nowhere", "No such file"), ("A=/usr", "NAME=FOLDER")]
    {
        let ran = Cli::new(&["exec", "-k", "bash", "-c", "true", "--mount", value]).run();
        assert!(ran.code == 2 && ran.stderr.contains(reason), "{value}: {}", ran.stderr);
    }
    let file = shared.0.join("cellkeep.toml");
    let text = format!("[mounts.numbers]\npath = {:?}\ndescription = \"Numbers\"\n\n[serve]\nworkers = 3\n", shared.data());
    fs::write(&file, text).unwrap();
    let printed = print_config(&file, &["--mount", "more=/srv"]);
    for line in ["[mounts.numbers]", "description = \"Numbers\"", "[mounts.more]", "path = \"/srv\"", "workers = 3"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert!(print_config(&file, &["--workers", "5"]).contains("workers = 5"));
    let ran = Cli::new(&["serve", "--workers", "0"]).run();
    assert!(ran.code == 2 && ran.stderr.contains("between 1 and 1024"), "{}", ran.stderr);
}

fn print_config(file: &Path, arguments: &[&str]) -> String {
    let ran = Cli::new(&["serve", "--print-config", "--config"]).path(file).args(arguments).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
}

//! Folders as archives, and archives that are unpacked. The other side is Python's zipfile and tarfile (`archives.py`), and hostile
//! archives are written by hand there.

use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::Method;
use serde_json::{Value, json};

use crate::server::{RemoteSession, Server};
use crate::support::TestSandbox;

in_every_sandbox!(archives_come_out, archives_go_in, hostile_archives_are_refused);

/// Runs `archives.py`. Returns the lines that it prints.
async fn python(task: &'static str, path: &Path) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/archives.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(task).arg(path);
    let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("python3 is on this machine");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect()
}

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn folder(server: &Server, name: &str) -> PathBuf {
    let folder = server.data().join(name);
    std::fs::create_dir(&folder).unwrap();
    folder
}

async fn send(held: &RemoteSession, into: &str, archive: &Path) -> (u16, Value) {
    let bytes = std::fs::read(archive).unwrap();
    let client = held.client.with("content-type", "application/octet-stream");
    let reply = client.send(Method::POST, &held.path(&format!("/files/?path={into}")), bytes).await;
    (reply.status, reply.json())
}

async fn archives_come_out(place: TestSandbox) {
    let server = Server::start("archives-out", place, &[]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    let folder = folder(&server, "out");
    held.ok(
        "import os, random\nos.makedirs('top/a/empty')\nopen('top/a/run.sh', 'w').write('echo')\nos.chmod('top/a/run.sh', 0o755)\n\
         open('top/big', 'wb').write(random.randbytes(3_000_001))\nos.symlink('a/run.sh', 'top/link')\nos.mkfifo('top/pipe')\n\
         open('top/' + 'n' * 200, 'w')\nopen(b'top/\\xff', 'w').write('odd')\n\
         for root, _, files in os.walk('top'):\n  for name in files: root == 'top/pipe' or name == 'link' or os.utime(os.path.join(root, name), (0, 1_500_000_000))",
    )
    .await;
    for (format, kind, time) in [
        ("zip", "application/zip", "2017"),
        ("tar", "application/x-tar", "1500000000"),
        ("tar.gz", "application/gzip", "1500000000"),
    ] {
        let got = held.client.get(&held.path(&format!("/files/?path=top&format={format}"))).await;
        assert_eq!((got.status, got.header("content-type")), (200, kind), "{}", got.text());
        assert!(got.header("content-disposition").starts_with("attachment; filename*=UTF-8''top%2E"), "{:?}", got.headers);
        let path = folder.join(format);
        std::fs::write(&path, &got.body).unwrap();
        let shown = python("show", &path).await;
        let has = |line: &str| assert!(shown.iter().any(|one| one.starts_with(line)), "{format} {line}: {shown:#?}");
        assert_eq!(shown.len(), 7, "{shown:#?}");
        has("folder a ");
        has("folder a/empty ");
        has(&format!("file a/run.sh 4 0o755 {time}"));
        has(&format!("file big 3000001 0o644 {time}"));
        has("link link a/run.sh ");
        has(&format!("file {} 0 0o644 {time}", "n".repeat(200)));
        assert!(shown.iter().any(|line| line.starts_with("file ") && line.contains(" 3 0o644 ")), "{shown:#?}");
    }
    let whole = held.client.get(&held.path("/files/?format=zip")).await;
    assert!(whole.header("content-disposition").contains("workspace%2Ezip"));
    held.ok("os.remove(b'top/\\xff')").await;
    // The server unpacks what it has packed.
    for format in ["zip", "tar", "tar.gz"] {
        let packed = held.client.get(&held.path(&format!("/files/?path=top&format={format}"))).await.body;
        let path = folder.join("again");
        std::fs::write(&path, packed).unwrap();
        let sent = send(&held, "copy", &path).await;
        assert_eq!(
            sent,
            (201, json!({"path": "copy", "files": 3, "folders": 2, "links": 1, "bytes": 3_000_005})),
            "{format}"
        );
        let compared = "import shutil, subprocess\nprint(subprocess.run('diff -r --no-dereference -x pipe top copy', shell=True).returncode)\nshutil.rmtree('copy')";
        assert_eq!(held.ok(compared).await, "0\n", "{format}");
    }
    held.client.get(&held.path("/files/?path=none&format=zip")).await.problem(404, "no_file");
    held.ok("open('top/secret', 'w'); os.chmod('top/secret', 0)").await;
    let problem = held.client.get(&held.path("/files/?path=top&format=tar")).await.problem(422, "bad_file");
    assert!(problem["detail"].as_str().unwrap().contains("top/secret"), "{problem}");
    server.end().await;
}

async fn archives_go_in(place: TestSandbox) {
    let server = Server::start("archives-in", place, &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let folder = folder(&server, "good");
    python("good", &folder).await;
    let show = "find . -type f -printf '%P %s %m %Ts\\n' -o -type l -printf '%P %l\\n' | sort";
    held.ok("mkdir -p in/d; echo old > in/d/run.sh; echo stays > in/d/stays; chmod 600 in/d/run.sh").await;
    for archive in files(&folder) {
        let name = archive.file_name().unwrap().to_str().unwrap().to_owned();
        let (status, sent) = send(&held, "in", &archive).await;
        assert_eq!((status, &sent["files"], &sent["bytes"]), (201, &json!(4), &json!((3 << 20) + 11)), "{name}: {sent}");
        let shown = held.ok(&format!("cd in; {show}; cd ..")).await;
        let has = |line: &str| assert!(shown.lines().any(|one| one == line), "{name} {line}: {shown}");
        assert!(shown.contains("d/stays 6 644 "), "{name}: {shown}");
        assert!(shown.contains("big 3145728 644 "), "{name}: {shown}");
        if name != "streamed.zip" {
            has("d/run.sh 7 755 1500000000");
            assert!(shown.contains("d/link ../long"), "{name}: {shown}");
            assert_eq!(held.ok("cat in/d/link").await, "long", "{name}");
        }
        assert_eq!(held.ok("cat in/d/run.sh; ls -A").await, "echo hiin\n", "{name}: no staging folder is left");
        held.ok("rm -rf in; mkdir -p in/d; echo stays > in/d/stays").await;
    }
    server.end().await;
}

async fn hostile_archives_are_refused(place: TestSandbox) {
    let server = Server::start("archives-hostile", place, &[]).await;
    let limits = json!({"disk_mb": 50, "memory_mb": 512});
    let held = server.client().create(json!({"kernel": "bash", "limits": limits})).await;
    let folder = folder(&server, "hostile");
    python("hostile", &folder).await;
    held.ok("echo keep > keep; mkdir folder; echo x > folder/file").await;
    let before = held.ok("find / -xdev -name evil; find . | sort; cat keep").await;
    server.forget_peak();
    let memory = server.memory();
    for archive in files(&folder) {
        let name = archive.file_name().unwrap().to_str().unwrap().to_owned();
        let expected = match name.as_str() {
            "over-file.tar" | "over-folder.tar" | "over-folder.zip" => (409, "file_exists"),
            "bomb.tar.gz" => (507, "workspace_full"),
            "overlapping.zip" | "million.zip" => (413, "archive_too_large"),
            _ => (422, "bad_archive"),
        };
        let (status, problem) = send(&held, "", &archive).await;
        assert_eq!((status, problem["code"].as_str().unwrap_or_default()), expected, "{name}: {problem}");
        assert!(!problem["detail"].as_str().unwrap().contains("cellkeep-staging"), "{name}: {problem}");
        assert_eq!(held.ok("find / -xdev -name evil; find . | sort; cat keep").await, before, "{name} leaves nothing");
    }
    let grown = server.peak_memory().saturating_sub(memory) >> 20;
    // The largest archive has 47 MB, and this client sends it in one piece.
    assert!(grown < 100, "{grown} MB");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remains_of_a_killed_server_are_removed() {
    let mut server = Server::start("archives-killed", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let mut stream = tokio::net::TcpStream::connect(held.client.address()).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: multipart/form-data; boundary=B\r\n\
         Content-Length: 9000000\r\n\r\n--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\nx\r\n--B\r\n",
        held.path("/files/"),
        held.client.token.as_deref().unwrap()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let staged = async || held.ok("ls -A .cellkeep-staging-* 2>/dev/null || true").await;
    while staged().await != "a\n" {
        tokio::time::sleep(crate::server::PACE).await;
    }
    server.kill().await;
    server.start_again().await;
    assert_eq!(staged().await, "a\n");
    let form = "--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"b\"\r\n\r\ny\r\n--B--\r\n";
    let client = held.client.with("content-type", "multipart/form-data; boundary=B");
    client.send(Method::POST, &held.path("/files/"), form).await.is(201);
    assert_eq!(held.ok("ls -A").await, "b\n");
    // A client that disconnects.
    let mut stream = tokio::net::TcpStream::connect(held.client.address()).await.unwrap();
    let head = head.replace("--B\r\n\r\n", "");
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    while staged().await != "a\n" {
        tokio::time::sleep(crate::server::PACE).await;
    }
    drop(stream);
    while held.ok("ls -A").await != "b\n" {
        tokio::time::sleep(crate::server::PACE).await;
    }
    server.end().await;
}

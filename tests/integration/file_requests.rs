//! Requests about files over HTTP: pages, moves, folders, removals, ranges and forms; ranges and forms also by curl.

use std::process::{Command, Output};

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{RemoteSession, Server};
use crate::support::TestSandbox;

in_every_sandbox!(folders_change_and_are_listed_in_pages, curl_gets_ranges_and_sends_forms);

/// Runs curl with a path of the session as its last argument.
pub async fn curl(held: &RemoteSession, path: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "120", "-H"]);
    command.arg(format!("Authorization: Bearer {}", held.client.token.as_deref().unwrap())).args(arguments);
    command.arg(format!("http://{}{}", held.client.address(), held.path(path)));
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("curl is on this machine")
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The entries of all pages of a list of files.
async fn all_pages(held: &RemoteSession, query: &str) -> (Vec<Value>, usize) {
    let (mut entries, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = held.client.get(&held.path(&format!("/files/?{query}{cursor}"))).await.is(200);
        entries.extend(page["entries"].as_array().unwrap().iter().cloned());
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (entries, pages),
        }
    }
}

fn names(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["path"].as_str().unwrap()).collect()
}

async fn folders_change_and_are_listed_in_pages(place: TestSandbox) {
    let server = Server::start("folders", place, &[]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    let client = &held.client;
    let path = |name: &str| held.path(&format!("/files/{name}"));
    client.put(&held.path("/files/?path=d/e"), "").await.is(204);
    client.put(&held.path("/files/?path=d/e"), "").await.is(204);
    held.ok("import os\nfor i in range(250): open(f'd/f{i:03}', 'w').write('x' * i)\nopen('d/e/deep.py', 'w')\nos.symlink('f001', 'd/link'); os.utime('d/f249', (5, 1_500_000_000.25)); open(b'd/\\xff', 'w'); os.mkfifo('d/pipe')").await;
    client.put(&held.path("/files/?path=d/f001"), "").await.problem(409, "file_exists");

    // Pages, in order, with what is known of each entry.
    let (listed, pages) = all_pages(&held, "path=d&limit=50").await;
    assert_eq!((listed.len(), pages, listed[0]["name"].as_str().unwrap()), (254, 6, "e"));
    let find = |name: &str| listed.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!((&find("f249")["size"], &find("f249")["modified_at"]), (&json!(249), &json!("2017-07-14T02:40:00.250000Z")));
    assert_eq!((&find("link")["kind"], &find("link")["target"]), (&json!("link"), &json!("f001")));
    assert_eq!(
        (&find("e")["kind"], &find("pipe")["kind"], &find("f001")["media_type"]),
        (&json!("folder"), &json!("other"), &json!(null))
    );
    assert_eq!(listed[253]["name"], "\u{fffd}");
    let (whole, _) = all_pages(&held, "path=&depth=all&limit=100").await;
    assert_eq!((whole.len(), &names(&whole)[..3]), (256, &["d", "d/e", "d/e/deep.py"][..]));
    assert_eq!(whole[2]["media_type"], "text/x-python");
    // What comes and goes between two pages neither repeats an entry nor hides one.
    let first = client.get(&held.path("/files/?path=d&limit=10&depth=all")).await.is(200);
    held.ok("open('d/aaa', 'w'); os.remove('d/f007'); os.remove('d/f100')").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = client.get(&held.path(&format!("/files/?path=d&limit=10&depth=all&cursor={cursor}"))).await.is(200);
    assert_eq!(
        (names(first["entries"].as_array().unwrap())[9], names(second["entries"].as_array().unwrap())[0]),
        ("d/f007", "d/f008")
    );
    for query in ["limit=0", "limit=1001", "cursor=x", "cursor=", "depth=2", "format=rar", "format=zip&limit=5"] {
        client.get(&held.path(&format!("/files/?{query}"))).await.problem(400, "bad_query");
    }

    // One entry.
    let stat = |name: &str| held.path(&format!("/files/?depth=0&path={name}"));
    let entry = client.get(&stat("d/link")).await.is(200);
    assert_eq!((&entry["entries"][0]["kind"], &entry["entries"][0]["path"]), (&json!("link"), &json!("d/link")));
    assert_eq!(client.get(&stat("")).await.is(200)["entries"][0]["kind"], "folder");
    client.get(&stat("none")).await.problem(404, "no_file");

    // Moves.
    let moved = client.patch(&path("d/f001"), json!({"path": "new/folder/f.txt"})).await.is(200);
    assert_eq!(
        (&moved["path"], &moved["media_type"], &moved["size"]),
        (&json!("new/folder/f.txt"), &json!("text/plain"), &json!(1))
    );
    client.patch(&path("d/f002"), json!({"path": "new/folder/f.txt"})).await.problem(409, "file_exists");
    client.patch(&path("d/f002"), json!({"path": "new/folder/f.txt", "replace": true})).await.is(200);
    client.patch(&path("d/f002"), json!({"path": "x"})).await.problem(404, "no_file");
    client.patch(&path("d"), json!({"path": "d/e/d"})).await.problem(422, "bad_file");
    client.patch(&path("d/e"), json!({"path": "../e"})).await.problem(422, "bad_file");
    client.patch(&path("d/e"), json!({"path": "new", "replace": true})).await.problem(409, "file_exists");
    client.patch(&path("d/e"), json!({"to": "new"})).await.problem(422, "bad_field");
    assert_eq!(held.ok("print(open('new/folder/f.txt').read(), os.path.exists('d/f002'))").await, "xx False\n");

    // Removals.
    client.delete(&path("d")).await.problem(409, "file_exists");
    held.ok("os.makedirs('outer/inner'); os.symlink('../new', 'outer/link')\nfor i in range(2500): open(f'outer/inner/{i}', 'w')").await;
    client.delete(&path("outer?recursive=true")).await.is(204);
    client.delete(&path("d?recursive=true")).await.is(204);
    assert_eq!(held.ok("print(sorted(os.listdir()), os.listdir('new/folder'))").await, "['new'] ['f.txt']\n");
    client.delete(&path("d?recursive=true")).await.problem(404, "no_file");
    server.end().await;
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

async fn curl_gets_ranges_and_sends_forms(place: TestSandbox) {
    let server = Server::start("curl", place, &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let folder = server.data().join("of-curl");
    std::fs::create_dir(&folder).unwrap();
    let local = |name: &str| folder.join(name).display().to_string();
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(local("big.bin"), &bytes).unwrap();

    // A file by PUT, with curl's own progress in mind: it waits for 100 (Continue).
    let put = curl(&held, "/files/big.bin", &["-T", &local("big.bin"), "-w", "%{http_code}"]).await;
    assert_eq!(text(&put), "204");
    let part = curl(&held, "/files/big.bin", &["-r", "5000000-5000009"]).await;
    assert_eq!(part.stdout, bytes[5_000_000..5_000_010]);
    let tail = curl(&held, "/files/big.bin", &["-r", "-7"]).await;
    assert_eq!(tail.stdout, bytes[bytes.len() - 7..]);
    // An interrupted download goes on where it has ended.
    std::fs::write(local("half"), &bytes[..7_000_001]).unwrap();
    let resumed = curl(&held, "/files/big.bin", &["-C", "-", "-o", &local("half"), "-w", "%{http_code}"]).await;
    assert_eq!(text(&resumed), "206");
    assert!(std::fs::read(local("half")).unwrap() == bytes);
    let head = text(&curl(&held, "/files/big.bin", &["-I"]).await).to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200")
            && head.contains("content-length: 12000000")
            && head.contains("accept-ranges: bytes"),
        "{head}"
    );
    let beyond = curl(&held, "/files/big.bin", &["-r", "12000000-", "-D", "-"]).await;
    assert!(
        text(&beyond).starts_with("HTTP/1.1 416")
            && text(&beyond).to_ascii_lowercase().contains("content-range: bytes */12000000")
    );
    let client = &held.client;
    let path = held.path("/files/big.bin");
    client.with("range", "bytes=12000000-").get(&path).await.problem(416, "range_not_satisfiable");

    // Conditions. The file has not changed for long enough that its validator is strong.
    held.ok("touch -d 2020-01-01 old.txt; sleep 0.2").await;
    let old = client.get(&held.path("/files/old.txt")).await;
    let (etag, modified) = (old.header("etag").to_owned(), old.header("last-modified").to_owned());
    assert_eq!(
        (old.header("content-type"), modified.as_str()),
        ("text/plain; charset=utf-8", "Wed, 01 Jan 2020 00:00:00 GMT")
    );
    let old = held.path("/files/old.txt");
    let known = client.with("if-none-match", &etag).get(&old).await;
    assert_eq!((known.status, known.header("cache-control")), (304, "no-store"));
    assert_eq!(client.with("if-modified-since", &modified).get(&old).await.status, 304);
    client.with("if-match", "\"other\"").get(&old).await.problem(412, "precondition_failed");
    let with = |condition: &str| client.with("range", "bytes=0-3").with("if-range", condition);
    let etag = client.get(&path).await.header("etag").to_owned();
    assert!(etag.starts_with('"'), "{etag}");
    assert_eq!(with(&etag).get(&path).await.status, 206);
    assert_eq!(client.with("range", "bytes=0-3").send(Method::HEAD, &path, "").await.header("content-length"), "12000000");
    held.ok("printf xxxx >> big.bin").await;
    assert_eq!(with(&etag).get(&path).await.status, 200, "it is another file now");
    client.with("if-none-match", &etag).put(&path, "x").await.problem(400, "bad_condition");
    client.with("if-none-match", "*").put(&path, "x").await.problem(412, "precondition_failed");
    client.with("if-none-match", "*").put(&held.path("/files/fresh"), "x").await.is(204);

    // A browser does not display what a sandbox has written.
    client.put(&held.path("/files/page.html"), "<script>alert(1)</script>").await.is(204);
    let page = client.get(&held.path("/files/page.html")).await;
    assert_eq!(
        (page.header("content-type"), page.header("x-content-type-options")),
        ("text/html; charset=utf-8", "nosniff")
    );
    assert!(
        page.header("content-disposition").starts_with("attachment")
            && page.header("content-security-policy").contains("sandbox")
    );
    held.ok("printf '\\x89PNG\\r\\n\\x1a\\n0000' > picture; printf '\\0\\1' > bytes").await;
    for (name, kind) in [("picture", "image/png"), ("bytes", "application/octet-stream")] {
        assert_eq!(client.get(&held.path(&format!("/files/{name}"))).await.header("content-type"), kind);
    }

    forms(&held, &local, &bytes).await;
    server.end().await;
}

/// Several files in one request.
async fn forms(held: &RemoteSession, local: &impl Fn(&str) -> String, bytes: &[u8]) {
    std::fs::write(local("a ä.txt"), "a").unwrap();
    held.ok("mkdir in; echo old > in/old; mkdir in/folder").await;
    let part = |name: &str, into: &str| format!("file=@\"{}\";filename=\"{into}\"", local(name));
    let sent = curl(
        held,
        "/files/?path=in/new",
        &["-F", &part("big.bin", "deep/er/big"), "-F", &format!("x=@{}", local("a ä.txt"))],
    )
    .await;
    assert_eq!(json_of(&sent), json!({"path": "in/new", "files": 2, "folders": 0, "links": 0, "bytes": bytes.len() + 1}));
    assert_eq!(
        held.ok("cd in/new; find . -type f | sort; cat 'a ä.txt'; cmp deep/er/big ../../big.bin 2>&1 | head -c 3; cd ../..")
            .await,
        "./a ä.txt\n./deep/er/big\nacmp"
    );
    let refused = async |parts: &[String], code: &str| {
        let arguments: Vec<&str> = parts.iter().flat_map(|part| ["-F", part.as_str()]).collect();
        assert_eq!(json_of(&curl(held, "/files/?path=in", &arguments).await)["code"], code);
    };
    let before = held.ok("find . | sort; cat in/old").await;
    refused(&[part("a ä.txt", "old"), part("a ä.txt", "../evil")], "bad_file").await;
    refused(&[part("a ä.txt", "old"), part("a ä.txt", "/tmp/evil")], "bad_file").await;
    refused(&[part("a ä.txt", "x"), part("a ä.txt", "x")], "bad_file").await;
    refused(&[part("a ä.txt", "x"), part("a ä.txt", "x/y")], "bad_file").await;
    refused(&[part("a ä.txt", "new1"), part("a ä.txt", "folder")], "file_exists").await;
    refused(&[part("a ä.txt", "x"), "name=value".to_owned()], "bad_form").await;
    held.client
        .with("content-type", "multipart/form-data; boundary=B")
        .post(&held.path("/files/"), json!(1))
        .await
        .problem(400, "bad_form");
    assert_eq!(held.ok("find . | sort; cat in/old").await, before, "nothing is changed");
    refused_in_the_middle(held).await;
    assert_eq!(held.ok("find . | sort; cat in/old").await, before);
}

/// A client that sends all of its body before it reads gets the answer.
async fn refused_in_the_middle(held: &RemoteSession) {
    const SIZE: usize = 300 << 20;
    for (method, path, status) in [
        ("PUT", held.path("/files/too-large"), "507"),
        ("PUT", held.path("/files/in"), "422"),
        ("PUT", held.path("/files/../x"), "422"),
        ("POST", format!("/v1/sessions/{}x/files/", held.id), "404"),
    ] {
        let mut stream = TcpStream::connect(held.client.address()).await.unwrap();
        let token = held.client.token.as_deref().unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let block = vec![b'x'; 1 << 20];
        for _ in 0..SIZE >> 20 {
            stream.write_all(&block).await.unwrap_or_else(|error| panic!("{path}: the connection is closed early: {error}"));
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}

//! `cellkeep sandbox`: sandboxes of a server from the command line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::{Cli, Done};
use crate::server::{PACE, Server, TOKEN};
use crate::support::TestSandbox;

in_every_sandbox!(commands_run_in_sandboxes_of_a_server, command_goes_on_over_kills_of_the_server,);

fn url(server: &Server) -> String {
    format!("http://{}", server.listen)
}

async fn cli(server: &Server, arguments: &[&str], input: &[u8]) -> Done {
    let cli = Cli::new(&["sandbox"]).args(arguments).input(input);
    let cli = cli.env("CELLKEEP_SERVER", &url(server)).env("CELLKEEP_TOKEN", TOKEN);
    tokio::task::spawn_blocking(|| cli.run()).await.unwrap()
}

/// A server whose address stays.
async fn start(name: &str, place: TestSandbox) -> Server {
    let mut server = Server::start(name, place, &["--allow-network=allow"]).await;
    server.listen = server.client().address();
    server
}

async fn commands_run_in_sandboxes_of_a_server(place: TestSandbox) {
    let server = start("sb-cli", place).await;
    let made = cli(
        &server,
        &[
            "create",
            "--kernel",
            "bash",
            "--name",
            "work",
            "--memory",
            "300m",
            "--env",
            "GREETING=hallo",
            "--network",
            "a.example",
        ],
        b"",
    )
    .await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    let id = made.stdout.trim().to_owned();
    let other = cli(&server, &["create", "-k", "bash", "--name", "other", "--json"], b"").await;
    let other: Value = serde_json::from_str(&other.stdout).unwrap();
    let other = other["id"].as_str().unwrap();
    // By name, by id and by its beginning.
    for name in ["work", &id, &id[..8]] {
        let ran = cli(&server, &["exec", name, "-c", "echo $GREETING; echo oops >&2; exit 7"], b"").await;
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "hallo\n", "oops\n"), "{name}");
    }
    // Input of any bytes and its end, into a file and out of it.
    let bytes: Vec<u8> = (0..200_000_u32).map(|number| (number * 7 % 251) as u8).collect();
    let stored = cli(&server, &["exec", "work", "--", "sh", "-c", "mkdir -p in && cat > in/data"], &bytes).await;
    assert_eq!((stored.code, stored.stdout.as_str()), (0, ""), "{}", stored.stderr);
    let summed = cli(&server, &["exec", "work", "--cwd", "in", "--", "sh", "-c", "wc -c < data; cksum < data"], b"").await;
    let expected = Command::new("cksum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map(|mut child| {
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    });
    assert_eq!(summed.stdout, format!("200000\n{}", expected.unwrap()));
    let slow = cli(&server, &["exec", "work", "--timeout", "0.2", "--", "sleep", "100"], b"").await;
    assert_eq!(slow.code, 124, "{}", slow.stderr);
    let left = server.client().get(&format!("/v1/sandboxes/{id}/processes")).await.is(200);
    assert_eq!(left["processes"], json!([]), "what has ended is forgotten");
    // What it is.
    let listed = cli(&server, &["list"], b"").await.stdout;
    assert!(listed.contains("work") && listed.contains(other) && listed.contains("300 MB"), "{listed}");
    let changed = cli(&server, &["network", "work", "b.example"], b"").await;
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    let shown: Value = serde_json::from_str(&cli(&server, &["show", "work"], b"").await.stdout).unwrap();
    assert_eq!(shown["network"], json!({"allow": ["b.example"]}));
    // Mistakes.
    for (arguments, code, said) in [
        (&["exec", "nothing", "--", "true"][..], 2, "there is no sandbox \"nothing\""),
        (&["show", "00000000-0000-0000-0000-000000000000"], 2, "no sandbox"),
        (&["create", "--kernel", "cobol"], 2, "cobol"),
        (&["create", "--memory", "9999g"], 2, "memory"),
        (&["exec", "work", "--cwd", "nowhere", "--", "true"], 2, "nowhere"),
    ] {
        let done = cli(&server, arguments, b"").await;
        assert!(done.code == code && done.stderr.contains(said), "{arguments:?}: {} {}", done.code, done.stderr);
    }
    let foreign = Cli::new(&["sandbox", "list", "--server", &url(&server)]).env("CELLKEEP_TOKEN", "wrong");
    let foreign = tokio::task::spawn_blocking(|| foreign.run()).await.unwrap();
    assert!(foreign.code == 2 && foreign.stderr.contains("token"), "{}", foreign.stderr);
    let absent = Cli::new(&["sandbox", "list", "--server", "http://127.0.0.1:1"]).env("CELLKEEP_TOKEN", "x").run();
    assert!(absent.code == 3 && absent.stderr.contains("cellkeep serve"), "{}", absent.stderr);
    let nobody = Cli::new(&["sandbox", "list", "--server", &url(&server)]).env("CELLKEEP_TOKEN", "").run();
    assert!(nobody.code == 2 && nobody.stderr.contains("cellkeep token create"), "{}", nobody.stderr);
    let ended = cli(&server, &["delete", "work", other], b"").await;
    assert_eq!((ended.code, ended.stdout), (0, format!("{id}\n{other}\n")), "{}", ended.stderr);
    server.end().await;
}

async fn command_goes_on_over_kills_of_the_server(place: TestSandbox) {
    let mut server = start("sb-cli-kill", place).await;
    let made = cli(&server, &["create", "--kernel", "bash", "--name", "work"], b"").await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    // It answers each line, so that input and output are both on the way.
    let mut child = Command::new(env!("CARGO_BIN_EXE_cellkeep"))
        .args([
            "sandbox",
            "exec",
            "work",
            "-c",
            "while read line; do echo got $line; done; exit 3",
            "--server",
            &url(&server),
        ])
        .env("CELLKEEP_TOKEN", TOKEN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let read = move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        (line, stdout)
    };
    writeln!(stdin, "first").unwrap();
    let (line, mut stdout) = tokio::task::spawn_blocking(read).await.unwrap();
    assert_eq!(line, "got first\n");
    for kill in 0..3 {
        server.kill().await;
        // While the server is away.
        (0..100).for_each(|number| writeln!(stdin, "{kill}-{number}").unwrap());
        stdin.flush().unwrap();
        server.start_again().await;
    }
    drop(stdin);
    let text = tokio::task::spawn_blocking(move || std::io::read_to_string(&mut stdout).unwrap()).await.unwrap();
    let expected: String = (0..3).flat_map(|kill| (0..100).map(move |number| format!("got {kill}-{number}\n"))).collect();
    assert_eq!(text, expected);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => tokio::time::sleep(PACE).await,
        }
    };
    assert_eq!(status.code(), Some(3));
    assert_eq!(cli(&server, &["delete", "work"], b"").await.code, 0);
    server.end().await;
}

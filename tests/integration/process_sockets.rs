//! The WebSocket of a process: output, commands, limits, and the death of the server.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::processes::Shell;
use crate::serve::{Socket, next_message, socket_at};
use crate::server::{Client, PACE, base64_bytes};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    socket_drives_a_terminal,
    client_takes_output_at_its_pace,
    wrong_commands_change_nothing,
    socket_ends_with_its_process,
    killed_server_repeats_no_input,
);

async fn send(socket: &mut Socket, command: Value) {
    socket.send(Message::text(command.to_string())).await.unwrap();
}

/// Sends a command and returns the reply.
async fn command(socket: &mut Socket, command: Value) -> Value {
    send(socket, command).await;
    next_message(socket, |message| message["type"] == "reply").await
}

/// Waits for text in the output, joined over the events.
async fn until_output(socket: &mut Socket, text: &str) -> String {
    let mut all = String::new();
    next_message(socket, |event| {
        assert_ne!(event["type"], "exited", "no {text:?} in {all:?}");
        all += event["text"].as_str().unwrap_or_default();
        all.contains(text)
    })
    .await;
    all
}

/// The reason with which the server closes a socket.
async fn closed(socket: &mut Socket) -> String {
    let closing = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.reason.to_string(),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, closing).await.expect("the socket is closed")
}

fn status(refused: Result<Socket, Error>) -> u16 {
    match refused {
        Err(Error::Http(response)) => response.status().as_u16(),
        Ok(_) => 101,
        Err(error) => panic!("{error}"),
    }
}

async fn open(shell: &Shell, id: &str, query: &str) -> Socket {
    socket_at(&shell.client, &shell.path(&format!("/{id}/socket?{query}"))).await.unwrap()
}

async fn bash(shell: &Shell) -> String {
    shell.begin(json!({"command": ["bash", "--norc"], "pty": {"rows": 24, "cols": 80}, "env": {"PS1": "> "}})).await
}

async fn socket_drives_a_terminal(place: TestSandbox) {
    let shell = Shell::start("psw-pty", place).await;
    let id = bash(&shell).await;
    let mut socket = open(&shell, &id, "after=0").await;
    until_output(&mut socket, "> ").await;
    let resized = command(&mut socket, json!({"id": {"a": [1]}, "op": "resize", "rows": 50, "cols": 132})).await;
    assert_eq!(resized, json!({"type": "reply", "id": {"a": [1]}, "ok": true}));
    let line = "stty size; echo n-$((6*7)) >> count; cat count\n";
    let reply = command(&mut socket, json!({"op": "input", "text": line, "offset": 0})).await;
    assert_eq!(reply["input_bytes"], line.len(), "{reply}");
    until_output(&mut socket, "n-42").await;
    // A retry writes nothing twice.
    let reply = command(&mut socket, json!({"op": "input", "text": line, "offset": 0})).await;
    assert_eq!(reply["input_bytes"], line.len(), "{reply}");
    let more = "d2MgLWwgPCBjb3VudDsgZWNobyBkbyduJ2UK";
    command(&mut socket, json!({"op": "input", "data": more, "offset": line.len()})).await;
    let text = until_output(&mut socket, "done\r\n").await;
    assert!(text.contains("1\r\ndone"), "one line was written: {text:?}");
    // Signals reach the process group, and another reader sees the same.
    let mut other = open(&shell, &id, "after=0&encoding=base64").await;
    let first = next_message(&mut other, |_| true).await;
    assert_eq!((&first["seq"], first["data"].is_string()), (&json!(1), true));
    assert_eq!(command(&mut socket, json!({"op": "signal", "signal": "KILL"})).await["ok"], true);
    for each in [&mut socket, &mut other] {
        let exited = next_message(each, |event| event["type"] == "exited").await;
        assert_eq!(exited["exit"]["signal"], 9, "{exited}");
        assert_eq!(closed(each).await, "the process has ended");
    }
    // Of a process with pipes, the input ends.
    let id = shell.begin(json!({"command": ["cat"], "stdin": true})).await;
    let mut socket = open(&shell, &id, "").await;
    command(&mut socket, json!({"op": "input", "text": "abc"})).await;
    assert_eq!(command(&mut socket, json!({"op": "close_input"})).await["input_bytes"], 3);
    assert_eq!(next_message(&mut socket, |event| event["type"] == "exited").await["exit"]["exit_code"], 0);
    shell.end().await;
}

async fn client_takes_output_at_its_pace(place: TestSandbox) {
    const WINDOW: usize = 100_000;
    // More than the agent, the manager and the connection hold.
    const BYTES: usize = 48 << 20;
    let shell = Shell::start("psw-window", place).await;
    let id = shell.begin(json!({"shell": format!("sleep 1; head -c {BYTES} /dev/zero")})).await;
    let mut socket = open(&shell, &id, &format!("encoding=base64&window={WINDOW}")).await;
    let (mut read, mut held, mut last) = (0, 0, 0);
    let mut take = |event: &Value| {
        assert_eq!(event["seq"], last + 1, "nothing is lost: {}", event["type"]);
        last += 1;
        if event["type"] == "exited" {
            return (None, 0);
        }
        (Some(last), base64_bytes(&event["data"]).len())
    };
    // Without an acknowledgement, the server stops at the window.
    while held < WINDOW {
        held += take(&next_message(&mut socket, |_| true).await).1;
    }
    read += held;
    assert!(held < WINDOW + (64 << 10), "{held}");
    send(&mut socket, json!({"id": "probe", "op": "ack", "seq": 0})).await;
    assert_eq!(next_message(&mut socket, |_| true).await["id"], "probe", "nothing else came");
    send(&mut socket, json!({"op": "ack", "seq": 1_000_000})).await;
    loop {
        let event = next_message(&mut socket, |event| event["type"] != "reply").await;
        let (seq, bytes) = take(&event);
        read += bytes;
        let Some(seq) = seq else { break };
        send(&mut socket, json!({"op": "ack", "seq": seq})).await;
    }
    assert_eq!(read, BYTES);
    shell.end().await;
}

async fn wrong_commands_change_nothing(place: TestSandbox) {
    let shell = Shell::start("psw-bad", place).await;
    let id = shell.begin(json!({"command": ["cat"], "stdin": true})).await;
    let path = shell.path(&format!("/{id}/socket"));
    let mut socket = socket_at(&shell.client, &path).await.unwrap();
    for (sent, code) in [
        (json!({"op": "run", "text": "x"}), "bad_field"),
        (json!({"op": "dance"}), "bad_op"),
        (json!({"op": "input"}), "missing_field"),
        (json!({"op": "input", "text": "a", "data": "YQ=="}), "missing_field"),
        (json!({"op": "input", "data": "!"}), "bad_field"),
        (json!({"op": "input", "text": "x".repeat((1 << 20) + 1)}), "bad_field"),
        (json!({"op": "input", "text": "x", "offset": 9}), "process_conflict"),
        (json!({"op": "input", "text": "x", "offset": -1}), "bad_field"),
        (json!({"op": "resize", "rows": 24}), "missing_field"),
        (json!({"op": "resize", "rows": 24, "cols": 0}), "bad_size"),
        (json!({"op": "resize", "rows": 24, "cols": 80}), "process_conflict"),
        (json!({"op": "signal", "signal": "NONSENSE"}), "bad_signal"),
        (json!({"op": "ack"}), "missing_field"),
        (json!({"op": "input", "source": "x"}), "bad_field"),
    ] {
        let reply = command(&mut socket, sent.clone()).await;
        let known = if code == "bad_field" && sent["op"] == "run" { "bad_op" } else { code };
        assert_eq!(reply["error"]["code"], known, "{sent}: {reply}");
    }
    socket.send(Message::binary(vec![0; 3])).await.unwrap();
    assert_eq!(next_message(&mut socket, |_| true).await["error"]["code"], "not_text");
    shell.client.get(&path).await.problem(400, "bad_upgrade");
    for query in ["after=x", "window=-1", "encoding=rot13", "nonsense=1"] {
        assert_eq!(status(socket_at(&shell.client, &format!("{path}?{query}")).await), 400, "{query}");
    }
    // Others: readers watch, strangers and foreign pages see nothing.
    let (_, reader) = shell.server.client_with(&["--scope", "read", "--principal", "admin", "reader"]).await;
    let mut watching = socket_at(&reader, &path).await.unwrap();
    let refused = command(&mut watching, json!({"op": "input", "text": "x"})).await;
    assert_eq!(refused["error"]["code"], "scope_too_narrow", "{refused}");
    let (_, other) = shell.server.client_with(&["--principal", "bob", "other"]).await;
    assert_eq!(status(socket_at(&other, &path).await), 404);
    let foreign = shell.client.with("origin", "https://evil.example");
    assert_eq!(status(socket_at(&foreign, &path).await), 403);
    assert_eq!(status(socket_at(&shell.client, &shell.path("/nothing/socket")).await), 404);
    // What was refused has changed nothing.
    assert_eq!(command(&mut socket, json!({"op": "input", "text": "x", "offset": 0})).await["input_bytes"], 1);
    until_output(&mut watching, "x").await;
    shell.end().await;
}

async fn socket_ends_with_its_process(place: TestSandbox) {
    let shell = Shell::start("psw-end", place).await;
    let id = shell.begin(json!({"command": ["sleep", "1000"]})).await;
    let mut socket = open(&shell, &id, "").await;
    shell.client.delete(&shell.path(&format!("/{id}"))).await.is(204);
    assert!(closed(&mut socket).await.contains("was deleted"));
    let id = shell.begin(json!({"command": ["sleep", "1000"]})).await;
    let mut socket = open(&shell, &id, "").await;
    shell.client.delete(&format!("/v1/sandboxes/{}", shell.sandbox)).await.is(204);
    assert!(closed(&mut socket).await.contains("has ended"));
    shell.server.end().await;
}

/// Types numbered lines, repeats what is not confirmed after each cut, and reads on after the last event that it has seen.
async fn type_lines(client: Client, path: String, lines: usize) -> String {
    let line = |at: usize| format!("echo line-{at}\n");
    let (mut last, mut text, mut offset, mut at) = (0, String::new(), 0, 0);
    while let Ok(mut socket) = connect(&client, &format!("{path}?after={last}")).await {
        while at < lines {
            let input = json!({"op": "input", "text": line(at), "offset": offset}).to_string();
            if socket.send(Message::text(input)).await.is_err() {
                break;
            }
            let mut confirmed = false;
            while !confirmed {
                let Some(Ok(Message::Text(message))) = socket.next().await else { break };
                let message: Value = serde_json::from_str(&message).unwrap();
                match message["type"].as_str().unwrap() {
                    "reply" if message["ok"] == true => {
                        confirmed = true;
                        assert_eq!(message["input_bytes"], offset + line(at).len());
                    }
                    "reply" => break,
                    _ => {
                        assert_eq!(message["seq"], last + 1, "{message}");
                        last += 1;
                        text += message["text"].as_str().unwrap_or_default();
                    }
                }
            }
            if !confirmed {
                break;
            }
            offset += line(at).len();
            at += 1;
        }
        if at == lines {
            return text;
        }
    }
    unreachable!()
}

/// Connects, again and again while no server is there.
async fn connect(client: &Client, path: &str) -> Result<Socket, Error> {
    loop {
        match socket_at(client, path).await {
            Err(Error::Io(_)) => tokio::time::sleep(PACE).await,
            Err(Error::Protocol(_)) => tokio::time::sleep(PACE).await,
            other => return other,
        }
    }
}

async fn killed_server_repeats_no_input(place: TestSandbox) {
    const LINES: usize = 3000;
    let mut shell = Shell::start("psw-kill", place).await;
    let id = shell.begin(json!({"shell": "while read -r line; do eval \"$line\" >> all; done", "stdin": true})).await;
    let path = shell.path(&format!("/{id}/socket"));
    let typing = tokio::spawn(type_lines(shell.client.clone(), path, LINES));
    let mut kills = 0;
    while !typing.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(100 + 37 * (kills % 5))).await;
        shell.server.kill().await;
        shell.server.start_again().await;
        kills += 1;
    }
    typing.await.unwrap();
    shell.input(&id, "?close=true", "").await.is(200);
    let ended = shell.ended(&id).await;
    let said = String::from_utf8(shell.output(&id).await).unwrap();
    assert_eq!((&ended["exit"]["exit_code"], said.as_str()), (&json!(0), ""), "{ended}");
    let written = shell.client.get(&format!("/v1/sandboxes/{}/files/all", shell.sandbox)).await.body;
    let expected: String = (0..LINES).map(|at| format!("line-{at}\n")).collect();
    assert!(written == expected.as_bytes(), "{kills} kills: {} bytes", written.len());
    assert!(kills > 2, "{kills}");
    shell.end().await;
}

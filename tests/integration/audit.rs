//! The audit log of a server: who did what with which result, without code and secrets, and whether it was changed.

use std::fs;
use std::process::{Command, Output};

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::serve::{next_message, socket, socket_at};
use crate::server::{Client, Server, TOKEN};
use crate::support::TestSandbox;

in_every_sandbox!(audit_tells_who_did_what);

fn audit(server: &Server, arguments: &[&str]) -> (Output, Vec<Value>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    let output = command.arg("audit").args(arguments).arg("--data").arg(server.data()).output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout);
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output, lines)
}

async fn audit_tells_who_did_what(place: TestSandbox) {
    let mut server = Server::start("audited", place, &[]).await;
    let (token, ann) = server.client_with(&["ann"]).await;
    let fields = json!({"kernel": "bash", "env": {"KEY": "secret-value"}, "labels": {"a": "secret-label"}});
    let held = ann.create(fields).await;
    let cell = json!({"id": "c", "source": "echo secret-code"});
    ann.post(&held.path("/cells?wait=60"), cell).await.is(201);
    ann.put(&held.path("/files/in/data.csv"), "secret-content").await.is(204);
    ann.get(&held.path("/files/in/data.csv")).await.is(200);
    let share = ann.post(&held.path("/shares"), json!({})).await.is(201);
    let reader = Client { token: Some(share["token"].as_str().unwrap().to_owned()), ..server.client() };
    reader.get(&held.path("/files/in/data.csv")).await.problem(403, "scope_too_narrow");
    for _ in 0..50 {
        reader.post(&held.path("/interrupt"), json!({})).await.problem(403, "scope_too_narrow");
    }
    server.client().anonymous().get("/v1/sessions").await.problem(401, "no_token");
    ann.post("/v1/sessions", json!({"network": "open"})).await.problem(403, "network_not_allowed");
    let mut open = socket(&held, "after=0").await;
    open.send(Message::text(json!({"op": "run", "cell": "c"}).to_string())).await.unwrap();
    next_message(&mut open, |message| message["type"] == "reply").await;
    held.finished("c").await;
    let processes = format!("/v1/sandboxes/{}/processes", held.id);
    let process = ann.post(&processes, json!({"command": ["cat"], "stdin": true})).await.is(201);
    let process = process["id"].as_str().unwrap();
    let mut open = socket_at(&ann, &format!("{processes}/{process}/socket")).await.unwrap();
    for command in [
        json!({"op": "input", "text": "secret-input"}),
        json!({"op": "input", "text": "secret-input"}),
        json!({"op": "ack", "seq": 1}),
        json!({"op": "signal", "signal": "TERM"}),
    ] {
        open.send(Message::text(command.to_string())).await.unwrap();
        assert_eq!(next_message(&mut open, |message| message["type"] == "reply").await["ok"], true);
    }
    let share_id = share["id"].as_str().unwrap();
    ann.delete(&held.path(&format!("/shares/{share_id}"))).await.is(204);
    held.delete().await;
    assert!(server.stop().await.success());

    let (output, lines) = audit(&server, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for secret in ["secret", TOKEN, ann.token.as_ref().unwrap(), reader.token.as_ref().unwrap()] {
        assert!(!text.contains(secret), "{secret} is in the log:\n{text}");
    }
    let has = |action: &str, fields: Value| {
        let fits = |line: &&Value| {
            line["action"] == action && fields.as_object().unwrap().iter().all(|(name, value)| line[name] == *value)
        };
        assert!(lines.iter().any(|line| fits(&line)), "no {action} with {fields} in\n{text}");
    };
    let (id, ok) = (held.id.as_str(), "ok");
    has("server.started", json!({"result": ok}));
    has("token.created", json!({"target": token}));
    has("POST /v1/sessions", json!({"principal": "ann", "scope": "use", "session": id, "status": 201, "result": ok}));
    has("sandbox.created", json!({"principal": "ann", "session": id, "result": ok}));
    has("POST /v1/sessions/{session}/cells", json!({"principal": "ann", "session": id, "target": "c", "result": ok}));
    has("PUT /v1/sessions/{session}/files/{*path}", json!({"session": id, "target": "in/data.csv", "status": 204}));
    has("GET /v1/sessions/{session}/files/{*path}", json!({"principal": "ann", "target": "in/data.csv", "result": ok}));
    let share_of = format!("share of {id}");
    let refused = json!({"principal": share_of, "scope": "read", "status": 403, "result": "scope_too_narrow"});
    has("GET /v1/sessions/{session}/files/{*path}", refused);
    let refused = lines.iter().filter(|line| line["principal"] == share_of && line["result"] == "scope_too_narrow");
    assert_eq!(refused.count(), 30, "a reader cannot fill the log\n{text}");
    has("GET /v1/sessions", json!({"status": 401, "result": "no_token"}));
    has("POST /v1/sessions", json!({"principal": "ann", "status": 403, "result": "network_not_allowed"}));
    has("socket run", json!({"principal": "ann", "session": id, "target": "c", "result": ok}));
    has("POST /v1/sandboxes/{sandbox}/processes", json!({"sandbox": id, "session": null, "target": process, "result": ok}));
    has("socket input", json!({"principal": "ann", "sandbox": id, "target": process, "result": ok}));
    has("socket signal", json!({"sandbox": id, "target": format!("{process} TERM"), "result": ok}));
    assert_eq!(lines.iter().filter(|line| line["action"] == "socket input").count(), 1, "keys are not recorded\n{text}");
    has("DELETE /v1/sessions/{session}/shares/{share}", json!({"target": share_id, "status": 204}));
    has("sandbox.removed", json!({"session": id}));
    has("server.stopped", json!({}));
    let (_, refusals) = audit(&server, &["--refused", "--principal", "ann"]);
    assert_eq!(refusals.iter().map(|line| &line["result"]).collect::<Vec<_>>(), ["network_not_allowed"]);

    // The log goes on after a restart, and shows whether it was changed.
    server.start_again().await;
    let hash = String::from_utf8_lossy(&audit(&server, &["--quiet"]).0.stderr).split_whitespace().last().unwrap().to_owned();
    server.client().post("/v1/sessions", json!({"network": "open"})).await.problem(403, "network_not_allowed");
    assert!(audit(&server, &["--quiet", "--expect", &hash]).0.status.success());
    let file = server.data().join("audit.jsonl");
    let forged = fs::read_to_string(&file).unwrap().replacen("\"principal\":\"ann\"", "\"principal\":\"bob\"", 1);
    fs::write(&file, forged).unwrap();
    let (output, _) = audit(&server, &["--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the chain is broken at"));
    server.end().await;
}

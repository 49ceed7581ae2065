//! Shares of one session, and the list of variables in a kernel's namespace.

use futures_util::SinkExt as _;
use hyper::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::serve::{next_message, socket};
use crate::server::{Client, RemoteSession, Server};
use crate::support::TestSandbox;

/// A share reads one session and nothing else, changes nothing, and loses its streams when it is revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn share_reads_one_session() {
    let server = Server::start("shares", TestSandbox::process(), &[]).await;
    let (_, ann) = server.client_with(&["ann"]).await;
    let (_, bob) = server.client_with(&["bob"]).await;
    let held = ann.create(json!({"kernel": "bash"})).await;
    let other = ann.create(json!({"kernel": "bash"})).await;
    held.ok("echo shown").await;
    ann.put(&held.path("/files/secret"), "not for them").await;
    let made = ann.post(&held.path("/shares"), json!({"name": "for Bo", "days": 1})).await.is(201);
    let token = made["token"].as_str().unwrap().to_owned();
    assert_eq!(made["path"], format!("/#token={token}&session={}", held.id));
    let reader = Client { token: Some(token.clone()), ..server.client() };
    assert_eq!(
        reader.get("/v1/token").await.is(200),
        json!({"scope": "read", "session": held.id, "principal": null, "model": null})
    );
    assert_eq!(reader.get(&held.path("")).await.is(200)["id"], held.id.as_str());
    let cells = reader.get(&held.path("/cells")).await.is(200);
    assert_eq!(cells["cells"][0]["outputs"][0]["text"], "shown\n");
    reader.get(&held.path("/notebook?to=html")).await.is(200);
    for path in
        [other.path(""), other.path("/cells"), held.path("/files/"), held.path("/files/secret"), held.path("/shares")]
    {
        reader.get(&path).await.problem(403, "scope_too_narrow");
    }
    for path in ["/v1/sessions", "/v1/runs"] {
        reader.get(path).await.problem(403, "scope_too_narrow");
    }
    for (method, path) in [
        (Method::POST, held.path("/cells")),
        (Method::POST, held.path("/interrupt")),
        (Method::POST, held.path("/shares")),
        (Method::POST, held.path("/variables")),
        (Method::DELETE, held.path("")),
    ] {
        reader.send(method, &path, "{}").await.problem(403, "scope_too_narrow");
    }
    // Only the owner can share the session or list its shares.
    bob.post(&held.path("/shares"), json!({})).await.problem(404, "no_session");
    bob.get(&held.path("/shares")).await.problem(404, "no_session");
    ann.post(&held.path("/shares"), json!({"days": 0})).await.problem(422, "bad_days");
    let listed = ann.get(&held.path("/shares")).await.is(200);
    assert_eq!((&listed["shares"][0]["name"], &listed["shares"][0]["token"]), (&json!("for Bo"), &Value::Null));
    // The share is revoked while a stream is open.
    let mut stream = reader.stream(&held.path("/events")).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    let id = made["id"].as_str().unwrap();
    ann.delete(&other.path(&format!("/shares/{id}"))).await.problem(404, "no_share");
    ann.delete(&held.path(&format!("/shares/{id}"))).await.is(204);
    while let Ok(Some(_)) = stream.next().await {}
    reader.get(&held.path("")).await.problem(401, "bad_token");
    for file in std::fs::read_dir(server.data()).unwrap().flatten().filter(|file| file.path().is_file()) {
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(token.len()).any(|window| window == token.as_bytes()), "{file:?} holds the token");
    }
    server.end().await;
}

/// A share reads the artifacts of its session, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn share_reads_its_artifacts_only() {
    let server = Server::start("shares-plots", TestSandbox::process(), &[]).await;
    let client = server.client();
    let draw = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()";
    let (held, other) = (client.create(json!({})).await, client.create(json!({})).await);
    held.run(draw).await;
    other.run("import matplotlib.pyplot as plt\nplt.bar([1, 2], [5, 1])\nplt.show()").await;
    let token = client.post(&held.path("/shares"), json!({})).await.is(201)["token"].as_str().unwrap().to_owned();
    let reader = Client { token: Some(token), ..server.client() };
    let of = async |path: String| client.get(&path).await.is(200)["artifacts"][0]["sha256"].as_str().unwrap().to_owned();
    let (mine, its) = (of(held.path("/artifacts")).await, of(other.path("/artifacts")).await);
    assert_eq!(reader.get(&format!("/v1/artifacts/{mine}")).await.status, 200);
    reader.get(&format!("/v1/artifacts/{its}")).await.problem(404, "no_artifact");
    server.end().await;
}

/// The events of a session up to one, as a client receives them.
async fn events_until(client: &Client, path: &str, is_last: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut stream = client.stream(path).await.unwrap();
    let mut events = Vec::new();
    while events.last().is_none_or(|event| !is_last(event)) {
        events.push(stream.next().await.unwrap().unwrap());
    }
    events
}

/// A share shows what the page shows now, and not outputs of deleted cells or earlier executions, also after the end of the
/// session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn share_hides_removed_outputs() {
    let server = Server::start("shares-now", TestSandbox::process(), &[]).await;
    let client = server.client();
    let held = client.create(json!({})).await;
    let draw = |points: &str, word: &str| {
        format!("import matplotlib.pyplot as plt\nprint('{word}')\nplt.plot({points})\nplt.show()")
    };
    for (cell, word, points) in [("gone", "first-secret", "[1, 9]"), ("again", "second-secret", "[2, 8]")] {
        held.begin(cell, &draw(points, word)).await;
        held.finished(cell).await;
    }
    held.begin("noted", "print('third-secret')").await;
    held.finished("noted").await;
    let token = client.post(&held.path("/shares"), json!({})).await.is(201)["token"].as_str().unwrap().to_owned();
    let reader = Client { token: Some(token), ..server.client() };
    // The output is visible as long as the page shows it, and a subscriber learns of its removal.
    let seen = events_until(&reader, &held.path("/events?after=0"), |event| {
        event["cell"] == "noted" && event["type"] == "cell.finished"
    })
    .await;
    assert!(seen.iter().any(|event| event.to_string().contains("first-secret")), "{seen:?}");
    let last = seen.last().unwrap()["seq"].as_u64().unwrap();
    client.delete(&held.path("/cells/gone")).await.is(204);
    client.send(Method::PATCH, &held.path("/cells/noted"), r#"{"cell_type": "markdown", "source": "a note"}"#).await.is(200);
    client
        .send(Method::PATCH, &held.path("/cells/again"), json!({"source": draw("[3, 7]", "shown")}).to_string())
        .await
        .is(200);
    client.post(&held.path("/cells/again/run"), json!({})).await.is(200);
    held.finished("again").await;
    let ends = |event: &Value| event["cell"] == "again" && event["type"] == "cell.finished";
    let resumed = events_until(&reader, &held.path(&format!("/events?after={last}")), ends).await;
    assert!(resumed.iter().any(|event| event["change"] == "deleted" && event["cell"] == "gone"), "{resumed:?}");
    assert!(resumed.iter().all(|event| event["seq"].as_u64().unwrap() > last));
    let of =
        async |client: &Client| client.get(&held.path("/artifacts")).await.is(200)["artifacts"].as_array().unwrap().clone();
    let all = of(&client).await;
    assert_eq!((all.len(), of(&reader).await.len()), (3, 1));
    for ended in [false, true] {
        if ended {
            client.patch(&held.path(""), json!({"ttl_seconds": 1})).await.is(200);
            client.until(&held.path(""), |reply| reply.json()["state"] == "gone").await;
        }
        let events = events_until(&reader, &held.path("/events?after=0"), ends).await;
        assert!(events.iter().any(|event| event.to_string().contains("shown")), "{events:?}");
        let mut words = format!("{events:?}");
        let linked =
            RemoteSession { client: Client { token: reader.token.clone(), ..server.client() }, id: held.id.clone() };
        let mut socket = socket(&linked, "after=0").await;
        next_message(&mut socket, |event| {
            words += &event.to_string();
            ends(event)
        })
        .await;
        socket.send(Message::text(r#"{"op": "run", "source": "1"}"#)).await.unwrap();
        let reply = next_message(&mut socket, |message| message["type"] == "reply").await;
        assert_eq!(reply["error"]["code"], "scope_too_narrow");
        for path in ["/cells", "/notebook", "/notebook?to=html", "/artifacts", ""] {
            words += &reader.get(&held.path(path)).await.text();
        }
        assert!(!words.contains("-secret"), "{words}");
        for artifact in &all {
            let path = format!("/v1/artifacts/{}", artifact["sha256"].as_str().unwrap());
            let is_shown = of(&reader).await.iter().any(|one| one["sha256"] == artifact["sha256"]);
            assert_eq!(reader.get(&path).await.status, if is_shown { 200 } else { 404 });
        }
        // The owner still sees everything.
        let events = events_until(&client, &held.path("/events?after=0"), ends).await;
        assert!(format!("{events:?}").contains("first-secret"));
    }
    server.end().await;
}

/// Listing variables has no side effects: no count, no new names, no code of the values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_are_listed_without_side_effects() {
    let server = Server::start("variables", TestSandbox::process(), &[]).await;
    let client = server.client();
    let list = async |path: String| {
        let variables = client.post(&path, json!({})).await.is(200);
        let all = variables["variables"].as_array().unwrap().iter().map(|one| {
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            (text("name"), (text("type"), text("summary")))
        });
        all.collect::<std::collections::BTreeMap<_, _>>()
    };
    let is = |all: &std::collections::BTreeMap<String, (String, String)>, name: &str, kind: &str, summary: &str| {
        assert_eq!(all.get(name), Some(&(kind.to_owned(), summary.to_owned())), "{name} in {all:?}");
    };
    let python = client.create(json!({"kernel": "python"})).await;
    python
        .ok("import numpy as np, pandas as pd\nn = 7\ntext = 'a\\tb\\n' + 'x' * 9999\nitems = [1, 'b', None]\ntable = pd.DataFrame({'a': [1, 2]})\ngrid = np.zeros((3, 4))\nhuge = 10 ** 5000\nclass Loud:\n    def __repr__(self): raise SystemExit('called')\nloud = Loud()\n_hidden = 1")
        .await;
    let all = list(python.path("/variables")).await;
    is(&all, "n", "int", "7");
    is(&all, "items", "list", "3 items: 1, 'b', None");
    is(&all, "table", "DataFrame", "2 × 1");
    is(&all, "grid", "ndarray", "3 × 4 of float64");
    is(&all, "loud", "Loud", "");
    assert!(all["text"].1.contains("10003 in all") && all["huge"].1.contains("bits"), "{all:?}");
    assert_eq!(
        all.keys().map(String::as_str).collect::<Vec<_>>(),
        ["Loud", "grid", "huge", "items", "loud", "n", "table", "text"]
    );
    let next = python.run("print(sorted(name for name in globals() if 'variable_lines' in name or name == 'ns'))\n_").await;
    assert_eq!(next["execution_count"], 2, "it was not counted");
    assert_eq!(python.ok("import os; print(os.listdir())").await, "[]\n");
    python.begin("long", "import time; time.sleep(600)").await;
    client.until(&python.path(""), |reply| reply.json()["state"] == "busy").await;
    client.post(&python.path("/variables"), json!({})).await.problem(409, "kernel_busy");
    let r = client.create(json!({"kernel": "r"})).await;
    r.ok("x <- c(1.5, 2); d <- cars; f <- function(a) a; s <- 'ä'; makeActiveBinding('live', function() stop('called'), globalenv())").await;
    let all = list(r.path("/variables")).await;
    is(&all, "x", "numeric", "2 items: 1.5, 2.0");
    is(&all, "d", "data.frame", "50 × 2");
    is(&all, "s", "character", "ä");
    is(&all, "live", "active binding", "");
    let bash = client.create(json!({"kernel": "bash"})).await;
    bash.ok("word='two words'; list=(a b c); declare -i n=5").await;
    let all = list(bash.path("/variables")).await;
    is(&all, "word", "text", "'two words'");
    is(&all, "list", "array", "3 items");
    is(&all, "n", "integer", "5");
    let deno = client.create(json!({"kernel": "deno"})).await;
    client.post(&deno.path("/variables"), json!({})).await.problem(422, "no_variables");
    server.end().await;
}

//! Retention: events of finished text are merged, and the data stays within its limit.

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server, printed};
use crate::support::TestSandbox;

/// The events that a client at the cursor `after` receives, up to the last event of the session.
async fn backlog(held: &RemoteSession, after: u64) -> Vec<Value> {
    let last = held.view().await["last_seq"].as_u64().unwrap();
    let mut events = held.events(after).await;
    let mut all = Vec::new();
    while all.last().is_none_or(|event: &Value| event["seq"] != last) {
        all.push(events.next().await.unwrap().expect("more events"));
    }
    all
}

/// The text of a stream after the events of a client that has seen a part of it.
fn text_after(mut text: String, events: &[Value]) -> String {
    for event in events.iter().filter(|event| event["output"]["output_type"] == "stream") {
        text.truncate(event["keep"].as_u64().map_or(0, |keep| usize::try_from(keep).unwrap()));
        text.push_str(event["output"]["text"].as_str().unwrap());
    }
    text
}

#[tokio::test]
async fn events_of_finished_text_are_merged() {
    let server = Server::start("merged", TestSandbox::process(), &["--compact-after", "1"]).await;
    let held = server.client().create(json!({"kernel": "python"})).await;
    let source = "import time\nfor i in range(100):\n print(f'\\r{i}%', end='', flush=True)\n time.sleep(0.02)\n\
                  for i in range(100):\n print(i, flush=True)\n time.sleep(0.02)";
    held.begin("bar", source).await;
    let mut live = held.events(0).await;
    let mut before = Vec::new();
    while before.last().is_none_or(|event: &Value| event["type"] != "cell.finished") {
        before.push(live.next().await.unwrap().unwrap());
    }
    let cell = held.finished("bar").await;
    assert!(before.len() > 60, "{} events came one after the other", before.len());
    // The latest events are cached unmerged. These events push them out of the cache.
    held.ok("print('x' * 200_000)").await;
    let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
    let after = loop {
        let events = backlog(&held, 0).await;
        if events.len() < 20 {
            break events;
        }
        assert!(tokio::time::Instant::now() < deadline, "the backlog stays at {} events", events.len());
        tokio::time::sleep(crate::server::PACE).await;
    };
    let mut next = 1;
    for event in &after {
        assert_eq!(event["first_seq"].as_u64().or(event["seq"].as_u64()), Some(next), "no number is missing: {event}");
        next = event["seq"].as_u64().unwrap() + 1;
    }
    let of_bar = |events: Vec<Value>| events.into_iter().filter(|event| event["cell"] == "bar").collect::<Vec<_>>();
    assert_eq!(text_after(String::new(), &of_bar(after)), printed(&cell));
    assert_eq!(printed(&held.cell("bar").await), printed(&cell), "the cell is as it was");
    // A client that has seen a part continues correctly.
    let seen = before.len() / 2;
    let part = text_after(String::new(), &before[..seen]);
    let rest = backlog(&held, before[seen - 1]["seq"].as_u64().unwrap()).await;
    assert_eq!(text_after(part, &of_bar(rest)), printed(&cell));
    server.end().await;
}

#[tokio::test]
async fn data_stays_within_its_limit() {
    let arguments = ["--compact-after", "1", "--max-data-mb", "2"];
    let server = Server::start("limit", TestSandbox::process(), &arguments).await;
    let client = server.client();
    let ended = client.create(json!({"kernel": "bash", "ttl_seconds": 2})).await;
    let held = client.create(json!({"kernel": "python"})).await;
    // The ended session is deleted to make room.
    client.until(&ended.path(""), |reply| reply.json()["state"] == "gone").await;
    held.ok("print('x' * 3_000_000)").await;
    client.until(&ended.path(""), |reply| reply.status == 404).await;
    // The other session lives, and refuses new work.
    let full = client.until(&held.path("/cells"), |_| true).await;
    assert_eq!(full.status, 200, "it can be read");
    let refused = loop {
        let reply = client.post(&held.path("/cells?wait=60"), json!({"source": "1"})).await;
        if reply.status != 201 {
            break reply;
        }
    };
    let problem = refused.problem(507, "storage_full");
    assert!(problem["detail"].as_str().unwrap().contains("--max-data-mb"), "{problem}");
    client.post("/v1/sessions", json!({"kernel": "bash"})).await.problem(507, "storage_full");
    // Other principals are not affected.
    let (_, modest) = server.client_with(&["modest", "--principal", "modest"]).await;
    let theirs = modest.create(json!({"kernel": "bash"})).await;
    assert_eq!(theirs.ok("echo there is room").await, "there is room\n");
    theirs.delete().await;
    held.delete().await;
    let again = loop {
        let reply = client.post("/v1/sessions", json!({"kernel": "bash"})).await;
        if reply.status == 201 {
            break reply.json();
        }
        reply.problem(507, "storage_full");
        tokio::time::sleep(crate::server::PACE).await;
    };
    client.delete(&format!("/v1/sessions/{}", again["id"].as_str().unwrap())).await.is(204);
    server.end().await;
}

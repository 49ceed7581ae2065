//! What clients may ask for: every way to ask for more than the operator allows is refused, and one principal leaves something for the
//! others.

use futures_util::SinkExt as _;
use hyper::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::serve::{next_message, socket};
use crate::server::{Client, RemoteSession, Reply, Server};
use crate::support::TestSandbox;

in_every_sandbox!(requests_above_ceilings_are_refused, network_needs_consent_of_the_operator);

const CEILINGS: &[&str] = &[
    "--max-memory-mb=600",
    "--max-cpus=1.5",
    "--max-pids=300",
    "--max-disk-mb=300",
    "--max-output-mb=120",
    "--max-timeout=90",
    "--max-idle-timeout=120",
    "--max-lifetime=300",
];

/// Asserts that an answer refuses a field above its ceiling, and names the option that raises it.
#[track_caller]
fn refuses(reply: &Reply, field: &str, option: &str) {
    let problem = reply.problem(422, "above_ceiling");
    assert_eq!(problem["field"], field, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(option), "{problem}");
}

fn notebook() -> Value {
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "bash", "display_name": "bash"}}, "cells": [
        {"cell_type": "code", "id": "a", "source": "echo 1", "metadata": {}, "outputs": [], "execution_count": null}
    ]})
}

async fn requests_above_ceilings_are_refused(place: TestSandbox) {
    let server = Server::start("ceilings", place, CEILINGS).await;
    let client = server.client();
    let limits = client.get("/v1/limits").await.is(200);
    let most = json!({"memory_mb": 600, "cpus": 1.5, "pids": 300, "disk_mb": 300, "output_mb": 120});
    assert_eq!((&limits["session"]["limits"], &limits["session"]["network"]), (&most, &json!("none")), "{limits}");
    for (fields, field, option) in [
        (json!({"limits": {"memory_mb": 601}}), "limits.memory_mb", "--max-memory-mb"),
        (json!({"limits": {"cpus": 1.6}}), "limits.cpus", "--max-cpus"),
        (json!({"limits": {"pids": 301}}), "limits.pids", "--max-pids"),
        (json!({"limits": {"disk_mb": 301}}), "limits.disk_mb", "--max-disk-mb"),
        (json!({"limits": {"output_mb": 121}}), "limits.output_mb", "--max-output-mb"),
        (json!({"timeout_seconds": 90.5}), "timeout_seconds", "--max-timeout"),
        (json!({"ttl_seconds": 301}), "ttl_seconds", "--max-lifetime"),
    ] {
        refuses(&client.post("/v1/sessions", fields.clone()).await, field, option);
        let mut run = fields;
        run["notebook"] = notebook();
        refuses(&client.post("/v1/runs", run).await, field, option);
    }
    let idle = json!({"idle_timeout_seconds": 121});
    refuses(&client.post("/v1/sessions", idle).await, "idle_timeout_seconds", "--max-idle-timeout");
    refuses_network(&client).await;
    assert_eq!(client.session_ids().await, Vec::<String>::new());
    let held = client.create(json!({"kernel": "bash", "limits": most, "timeout_seconds": 90})).await;
    refuses_in_session(&held).await;
    assert_eq!(held.view().await["ttl_seconds"], 300, "the longest lifetime is the default then");
    let extended = client.patch(&held.path(""), json!({"ttl_seconds": 300})).await.is(200);
    assert_eq!(extended["expires_at"], held.view().await["expires_at"]);
    let seconds = |field: &str| extended[field].as_str().unwrap()[17..19].parse::<u32>().unwrap();
    assert_eq!(seconds("expires_at"), seconds("created_at"), "extending does not exceed the longest lifetime");
    assert_eq!(held.ok("echo works").await, "works\n");
    server.end().await;
}

async fn refuses_network(client: &Client) {
    let open = client.post("/v1/sessions", json!({"network": "open"})).await.problem(403, "network_not_allowed");
    assert!(open["detail"].as_str().unwrap().contains("--allow-network"), "{open}");
    client.post("/v1/runs", json!({"network": "open", "notebook": notebook()})).await.problem(403, "network_not_allowed");
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=network\r\n\r\nopen\r\n--B\r\nContent-Disposition: form-data; \
         name=notebook; filename=a\r\n\r\n{}\r\n--B--\r\n",
        notebook()
    );
    let client = client.with("content-type", "multipart/form-data; boundary=B");
    client.send(Method::POST, "/v1/runs", form).await.problem(403, "network_not_allowed");
}

/// A living session takes no greater times either.
async fn refuses_in_session(held: &RemoteSession) {
    let client = &held.client;
    for (fields, field, option) in [
        (json!({"timeout_seconds": 91}), "timeout_seconds", "--max-timeout"),
        (json!({"idle_timeout_seconds": 121}), "idle_timeout_seconds", "--max-idle-timeout"),
        (json!({"ttl_seconds": 301}), "ttl_seconds", "--max-lifetime"),
    ] {
        refuses(&client.patch(&held.path(""), fields).await, field, option);
    }
    let long = json!({"source": "echo 1", "id": "a", "timeout_seconds": 91});
    refuses(&client.post(&held.path("/cells"), long).await, "timeout_seconds", "--max-timeout");
    client.post(&held.path("/cells?wait=60"), json!({"source": "echo 1", "id": "a"})).await.is(201);
    for path in ["/cells/a/run", "/notebook/run"] {
        refuses(&client.post(&held.path(path), json!({"timeout_seconds": 91})).await, "timeout_seconds", "--max-timeout");
    }
    let mut open = socket(held, "after=0").await;
    let command = json!({"op": "run", "source": "1", "timeout_seconds": 91});
    open.send(Message::text(command.to_string())).await.unwrap();
    let reply = next_message(&mut open, |message| message["type"] == "reply").await;
    assert_eq!((&reply["ok"], &reply["error"]["code"]), (&json!(false), &json!("above_ceiling")), "{reply}");
}

async fn network_needs_consent_of_the_operator(place: TestSandbox) {
    let server = Server::start("consent", place, &["--allow-network"]).await;
    let client = server.client();
    assert_eq!(client.get("/v1/limits").await.is(200)["session"]["network"], "open");
    let open = client.create(json!({"kernel": "bash", "network": "open"})).await;
    assert_eq!(open.view().await["network"], "open");
    let closed = client.create(json!({"kernel": "bash"})).await;
    assert_eq!(closed.view().await["network"], "none", "it stays the default");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_principal_leaves_sessions_for_others() {
    let mut server = Server::start("greedy", TestSandbox::process(), &["--max-sessions=4"]).await;
    let (_, greedy) = server.client_with(&["greedy"]).await;
    let (_, modest) = server.client_with(&["modest"]).await;
    let bash = || json!({"kernel": "bash"});
    let replies = futures_util::future::join_all((0..4).map(|_| greedy.post("/v1/sessions", bash()))).await;
    assert_eq!(replies.iter().filter(|reply| reply.status == 201).count(), 2);
    let refused = replies.iter().find(|reply| reply.status != 201).unwrap();
    refused.problem(429, "too_many_sessions");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
    assert_eq!(greedy.get("/v1/limits").await.is(200)["in_use"]["sessions"], 2);
    // Living sessions count after a restart, too.
    server.kill().await;
    server.start_again().await;
    let run = json!({"notebook": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}, "kernel": "bash"});
    greedy.post("/v1/runs", run).await.problem(429, "too_many_sessions");
    let held = modest.create(bash()).await;
    held.delete().await;
    let own = greedy.session_ids().await;
    greedy.delete(&format!("/v1/sessions/{}", own[0])).await.is(204);
    greedy.create(bash()).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executions_of_an_hour_count_on_every_way() {
    let server = Server::start("hourly", TestSandbox::process(), &["--max-executions-per-hour=5"]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let client = &held.client;
    let cells = held.path("/cells?wait=60");
    client.post(&cells, json!({"id": "a", "source": "echo 1"})).await.is(201);
    client.post(&held.path("/cells/a/run?wait=60"), json!({})).await.is(200);
    client.post(&held.path("/notebook/run?wait=60"), json!({})).await.is(200);
    let mut open = socket(&held, "after=0").await;
    let command = json!({"op": "run", "cell": "a"}).to_string();
    open.send(Message::text(command.clone())).await.unwrap();
    assert_eq!(next_message(&mut open, |message| message["type"] == "reply").await["ok"], true);
    held.finished("a").await;
    let run = json!({"notebook": notebook()});
    client.post("/v1/runs?wait=60", run.clone()).await.is(201);
    let requests = [
        (cells.clone(), json!({"source": "echo 1"})),
        (held.path("/cells/a/run"), json!({})),
        (held.path("/notebook/run"), json!({})),
    ];
    for (path, body) in requests.into_iter().chain([("/v1/runs".to_owned(), run)]) {
        let refused = client.post(&path, body).await;
        refused.problem(429, "too_many_executions");
        assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 60), "{path}");
    }
    let parameters = json!({"parameters": {"count": 1}});
    client.post(&held.path("/notebook/run"), parameters).await.problem(429, "too_many_executions");
    let cells = client.get(&held.path("/cells")).await.is(200);
    assert_eq!(cells["cells"].as_array().unwrap().len(), 1, "what is refused changes nothing: {cells}");
    open.send(Message::text(command)).await.unwrap();
    let reply = next_message(&mut open, |message| message["type"] == "reply" && message["ok"] == false).await;
    assert_eq!(reply["error"]["code"], "too_many_executions", "{reply}");
    client.post(&held.path("/cells"), json!({"cell_type": "markdown", "source": "still"})).await.is(201);
    let (_, other) = server.client_with(&["other"]).await;
    assert_eq!(other.create(json!({"kernel": "bash"})).await.ok("echo 2").await, "2\n");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_counts_once_for_each_key() {
    let server = Server::start("keyed", TestSandbox::process(), &["--max-executions-per-hour=1"]).await;
    let client = server.client();
    let sandbox = crate::sandboxes::create(&client, json!({"kernel": "python"})).await;
    let path = format!("/v1/sandboxes/{sandbox}/processes");
    let process = json!({"shell": "sleep 1000", "key": "a"});
    let id = client.post(&path, process.clone()).await.is(201)["id"].clone();
    assert_eq!(client.post(&path, process).await.is(201)["id"], id, "a retry starts nothing, so it counts nothing");
    client.post(&path, json!({"shell": "sleep 1000", "key": "b"})).await.problem(429, "too_many_executions");
    client.delete(&format!("/v1/sandboxes/{sandbox}")).await.is(204);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_when_their_seconds_are_used() {
    let server = Server::start("daily", TestSandbox::process(), &["--max-session-seconds-per-day=2"]).await;
    let client = server.client();
    let held = client.create(json!({"kernel": "bash"})).await;
    let gone = client.until(&held.path(""), |reply| reply.json()["state"] == "gone").await.json();
    assert!(gone["why"].as_str().unwrap().contains("--max-session-seconds-per-day"), "{gone}");
    let refused = client.post("/v1/sessions", json!({"kernel": "bash"})).await;
    refused.problem(429, "session_time_used");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 3600));
    server.end().await;
}

/// The oldest data is that of the modest principal, and the greedy one exceeds its share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_data_above_a_share_is_evicted() {
    let server = Server::start("evicted", TestSandbox::process(), &["--max-data-mb=8"]).await;
    let (_, modest) = server.client_with(&["modest"]).await;
    let (_, greedy) = server.client_with(&["greedy"]).await;
    let ended = async |client: &Client, megabytes: u32| {
        let held = client.create(json!({"kernel": "bash"})).await;
        for _ in 0..megabytes {
            held.run("head -c 1000000 /dev/urandom | od -An -tx1 -w64 | head -c 1000000").await;
        }
        client.patch(&held.path(""), json!({"ttl_seconds": 0})).await.is(200);
        client.until(&held.path(""), |reply| reply.json()["state"] == "gone").await;
        held
    };
    let kept = ended(&modest, 2).await;
    let living = greedy.create(json!({"kernel": "bash"})).await;
    let mut events = living.events(0).await;
    let first = ended(&greedy, 5).await;
    let last_seq = first.view().await["last_seq"].as_u64().unwrap();
    let mut last_events = first.events(last_seq).await;
    ended(&greedy, 3).await;
    greedy.until(&first.path(""), |reply| reply.status == 404).await;
    let told = loop {
        let event = last_events.next_of("session.state").await;
        if event["notice"].is_string() {
            break event;
        }
    };
    assert!(told["notice"].as_str().unwrap().contains("deleted"), "{told}");
    let told = loop {
        let event = events.next_of("session.state").await;
        if event["notice"].is_string() {
            break event;
        }
    };
    assert!(told["notice"].as_str().unwrap().contains("deleted"), "{told}");
    let reply = greedy.get("/v1/sessions").await;
    assert!(reply.header("cellkeep-evicted-sessions").split(", ").any(|id| id == first.id), "{:?}", reply.headers);
    assert!(server.stderr().contains(&first.id), "{}", server.stderr());
    let reply = modest.get(&kept.path("/cells")).await;
    assert_eq!(reply.is(200)["cells"].as_array().unwrap().len(), 2);
    assert_eq!(reply.header("cellkeep-evicted-sessions"), "");
    server.end().await;
}

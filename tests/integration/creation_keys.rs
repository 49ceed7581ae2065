//! Keys of requests that create something: a retry gets what the first request has created.

use serde_json::{Value, json};

use crate::server::{Client, Server};
use crate::support::TestSandbox;

in_every_sandbox!(retries_with_a_key_create_once, keys_hold_over_a_kill,);

async fn create(client: &Client, path: &str, body: &Value) -> String {
    client.post(path, body.clone()).await.is(201)["id"].as_str().unwrap().to_owned()
}

fn notebook(source: &str) -> Value {
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
        {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": null, "outputs": [], "source": source}]})
}

async fn retries_with_a_key_create_once(place: TestSandbox) {
    let server = Server::start("keys", place, &["--pool", "bash=1"]).await;
    let [(_, client), (_, other)] = [server.client_with(&["one"]).await, server.client_with(&["two"]).await];
    let run = json!({"kernel": "bash", "notebook": notebook("echo hi"), "key": "run"});
    for (path, body, changed) in [
        ("/v1/sandboxes", json!({"kernel": "bash", "key": "k"}), json!({"kernel": "bash", "key": "k", "name": "x"})),
        ("/v1/sessions", json!({"kernel": "bash", "key": "k", "env": {"A": "1"}}), json!({"kernel": "python", "key": "k"})),
        (
            "/v1/sessions",
            json!({"kernel": "bash", "key": "pooled"}),
            json!({"kernel": "bash", "key": "pooled", "labels": {"a": "b"}}),
        ),
        ("/v1/runs", run, json!({"kernel": "bash", "notebook": notebook("echo ho"), "key": "run"})),
    ] {
        // At the same time, and later.
        let (one, two) = tokio::join!(create(&client, path, &body), create(&client, path, &body));
        assert_eq!((&one, &two), (&one, &create(&client, path, &body).await), "{path}");
        assert_eq!(client.post(path, changed).await.is(409)["code"], "key_of_other_request", "{path}");
        // Keys belong to their principal.
        let others = create(&other, path, &body).await;
        assert_ne!(others, one, "{path}");
        let item = format!("{path}/{one}");
        client.delete(&item).await.is(204);
        client.until(&item, |reply| reply.status == 404).await;
        let anew = create(&client, path, &body).await;
        assert_ne!(anew, one, "{path}: the key is free");
        client.delete(&format!("{path}/{anew}")).await.is(204);
        other.delete(&format!("{path}/{others}")).await.is(204);
    }
    for bad in [String::new(), "x".repeat(201)] {
        assert_eq!(client.post("/v1/sessions", json!({"kernel": "bash", "key": bad})).await.is(422)["code"], "bad_key");
    }
    server.end().await;
}

/// The server is killed while it creates, or right after; the client asks again.
async fn keys_hold_over_a_kill(place: TestSandbox) {
    let mut server = Server::start("keys-kill", place, &[]).await;
    let client = server.client();
    for (number, path) in ["/v1/sessions", "/v1/sandboxes"].into_iter().cycle().take(6).enumerate() {
        let body = json!({"kernel": "bash", "key": format!("k{number}")});
        let asking = tokio::spawn({
            let (client, body) = (server.client(), body.clone());
            async move { client.post(path, body).await }
        });
        // Sooner or later: before the row is there, while the sandbox starts, once it has.
        for _ in 0..number * 3 {
            client.get("/v1/limits").await.is(200);
        }
        server.kill().await;
        let _ = asking.await;
        server.start_again().await;
        let id = create(&client, path, &body).await;
        assert_eq!(create(&client, path, &body).await, id);
        let all = client.get(path).await.is(200);
        let items = all[path.trim_start_matches("/v1/")].as_array().unwrap().clone();
        assert_eq!(items.len(), 1, "{path}: {items:?}");
        client.delete(&format!("{path}/{id}")).await.is(204);
        client.until(path, |reply| !reply.text().contains(&id)).await;
    }
    // What the killed servers had begun is removed.
    client.until("/v1/limits", |_| std::fs::read_dir(server.paths().sandboxes()).unwrap().count() == 0).await;
    server.end().await;
}

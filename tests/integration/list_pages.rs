//! Lists in pages: sessions, runs and cells.

use serde_json::{Value, json};

use crate::server::{Client, Server};
use crate::support::TestSandbox;

/// The items of all pages, and the number of pages. `between` runs after each page.
async fn all_pages(client: &Client, path: &str, items: &str, between: impl AsyncFn(usize)) -> (Vec<Value>, usize) {
    let (mut all, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = client.get(&format!("{path}{cursor}")).await.is(200);
        all.extend(page[items].as_array().unwrap().iter().cloned());
        pages += 1;
        between(pages).await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (all, pages),
        }
    }
}

fn field<'a>(items: &'a [Value], name: &str) -> Vec<&'a str> {
    items.iter().map(|item| item[name].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_listed_in_filtered_pages() {
    let server = Server::start("session-pages", TestSandbox::process(), &[]).await;
    let client = server.client();
    let (_, other) = server.client_with(&["other"]).await;
    let mut sessions = Vec::new();
    for number in 0..5 {
        let labels = json!({"team": if number % 2 == 0 { "even" } else { "odd" }, "n:a\"b": number.to_string()});
        sessions.push(client.create(json!({"kernel": "bash", "name": number.to_string(), "labels": labels})).await);
    }
    other.create(json!({"kernel": "bash", "name": "theirs", "labels": {"team": "even"}})).await;
    // A session that is created between two pages is in a later one, and one that is deleted disturbs nothing.
    let between = async |page| {
        if page == 1 {
            sessions[1].delete().await;
            client.create(json!({"kernel": "bash", "name": "late"})).await;
        }
    };
    let (listed, pages) = all_pages(&client, "/v1/sessions?limit=2", "sessions", between).await;
    assert_eq!(field(&listed, "name"), ["0", "1", "2", "3", "4", "theirs", "late"]);
    assert_eq!(pages, 4);
    let names = async |client: &Client, query: &str| {
        let (listed, _) = all_pages(client, &format!("/v1/sessions?limit=2&{query}"), "sessions", async |_| ()).await;
        field(&listed, "name").join(" ")
    };
    assert_eq!(names(&client, "label=team:even").await, "0 2 4 theirs");
    assert_eq!(names(&other, "label=team:even").await, "theirs");
    assert_eq!(names(&other, "").await, "theirs");
    assert_eq!(names(&client, "label=team:even,missing:x").await, "");
    assert_eq!(names(&client, "label=team:").await, "");
    assert_eq!(names(&client, "label=n:a%22b:3").await, "", "the key ends at the first colon");
    sessions[2].begin("waits", "until [ -e go ]; do :; done").await;
    sessions[2].cell_until("waits", |cell| cell["state"] == "running").await;
    assert_eq!(names(&client, "state=busy").await, "2");
    assert_eq!(names(&client, "state=idle&label=team:even").await, "0 4 theirs");
    let only = client.get("/v1/sessions?state=busy").await.is(200);
    assert_eq!((&only["sessions"][0]["cells"], &only["next_cursor"]), (&json!(1), &json!(null)));
    for query in ["limit=0", "limit=1001", "limit=x", "label=team", "state=deleting", "cursor=5", "cursor="] {
        client.get(&format!("/v1/sessions?{query}")).await.problem(400, "bad_query");
    }
    sessions[2].client.put(&sessions[2].path("/files/go"), "").await.is(204);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_listed_in_filtered_pages() {
    let server = Server::start("run-pages", TestSandbox::process(), &[]).await;
    let client = server.client();
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []});
    for number in 0..3 {
        let labels = json!({"day": if number == 1 { "monday" } else { "friday" }});
        let job = json!({"notebook": notebook, "kernel": "bash", "name": number.to_string(), "labels": labels});
        client.post("/v1/runs?wait=60", job).await.is(201);
    }
    client.create(json!({"kernel": "bash", "labels": {"day": "friday"}})).await;
    let names = async |query: &str| {
        let (listed, _) = all_pages(&client, &format!("/v1/runs?limit=1&{query}"), "runs", async |_| ()).await;
        field(&listed, "name").join(" ")
    };
    assert_eq!((names("").await.as_str(), names("label=day:friday").await.as_str()), ("0 1 2", "0 2"));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_are_listed_in_pages() {
    let server = Server::start("cell-pages", TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let cells = held.path("/cells");
    for number in 0..250 {
        let cell = json!({"source": format!("# {number}"), "id": format!("c{number}"), "run": false});
        held.client.post(&cells, cell).await.is(201);
    }
    let first = held.client.get(&cells).await.is(200);
    assert_eq!(first["cells"].as_array().unwrap().len(), 100, "the default");
    // Inserted before and behind the end of the first page.
    let between = async |page| {
        if page == 1 {
            for (id, after) in [("early", "c5"), ("later", "c60")] {
                held.client.post(&cells, json!({"source": "", "id": id, "after": after, "run": false})).await.is(201);
            }
        }
    };
    let (listed, pages) = all_pages(&held.client, &format!("{cells}?limit=50&outputs=none"), "cells", between).await;
    let mut expected: Vec<String> = (0..250).map(|number| format!("c{number}")).collect();
    expected.insert(61, "later".to_owned());
    assert_eq!((field(&listed, "id"), pages), (expected.iter().map(String::as_str).collect(), 6));
    for query in ["limit=0", "cursor=x", "after=1"] {
        held.client.get(&format!("{cells}?{query}")).await.problem(400, "bad_query");
    }
    held.delete().await;

    // A page ends before its outputs are too large, and has at least one cell.
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let cells = held.path("/cells");
    for _ in 0..4 {
        held.ok("head -c 9000000 /dev/zero | tr '\\0' x").await;
    }
    held.ok("head -c 30000000 /dev/zero | tr '\\0' x").await;
    let (listed, pages) = all_pages(&held.client, &format!("{cells}?limit=1000"), "cells", async |_| ()).await;
    assert_eq!((listed.len(), pages), (5, 5));
    assert_eq!(listed[4]["outputs"][0]["text"].as_str().unwrap().len(), 30_000_000);
    let (listed, pages) = all_pages(&held.client, &format!("{cells}?outputs=none"), "cells", async |_| ()).await;
    assert_eq!((listed.len(), pages), (5, 1));
    server.end().await;
}

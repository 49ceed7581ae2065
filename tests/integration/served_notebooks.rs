//! Notebooks over HTTP: import, run, export, and jobs, which continue after a killed server.

use std::fs;
use std::path::Path;

use cellkeep::notebook::Notebook;
use hyper::Method;
use serde_json::{Value, json};

use crate::server::{Client, RemoteSession, Server, printed};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(job_outlives_the_server);

fn code(id: &str, source: &str, tags: &[&str]) -> Value {
    json!({
        "cell_type": "code", "id": id, "source": source, "outputs": [], "execution_count": null,
        "metadata": {"tags": tags, "theirs": {"kept": [1, 2.50]}},
    })
}

fn notebook(cells: Vec<Value>) -> Value {
    let kernelspec = json!({"name": "python3", "display_name": "Python 3", "language": "python"});
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernelspec, "unknown": {"a": 1}}, "cells": cells})
}

async fn start(name: &str) -> (Server, RemoteSession) {
    let server = Server::start(name, TestSandbox::process(), &[]).await;
    let held = server.client().create(json!({"kernel": "python", "name": "my <work>"})).await;
    (server, held)
}

#[tokio::test]
async fn imported_notebook_is_exported_unchanged() {
    let (server, held) = start("roundtrip").await;
    for name in ["v4.5", "v4.4", "v3", "odd", "nan", "v4.99"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/notebooks/{name}.ipynb"));
        let bytes = fs::read(path).unwrap();
        let expected = Notebook::parse(&bytes).unwrap();
        let taken = held.client.put(&held.path("/notebook"), bytes).await.is(200);
        assert_eq!(taken["cells"], expected.len());
        let back = held.client.get(&held.path("/notebook")).await;
        assert_eq!(back.header("content-type"), "application/x-ipynb+json");
        assert_eq!(back.header("content-disposition"), "attachment; filename=\"my__work_.ipynb\"");
        assert_eq!(String::from_utf8_lossy(&back.body), expected.print(), "{name}");
    }
    // An empty text is an output, too.
    let mut file = notebook(vec![code("empty", "", &[])]);
    file["cells"][0]["outputs"] = json!([{"output_type": "stream", "name": "stdout", "text": ""}]);
    held.client.put(&held.path("/notebook"), file.to_string()).await.is(200);
    let back = held.client.get(&held.path("/notebook")).await.is(200);
    assert_eq!(back["cells"][0]["outputs"][0]["name"], "stdout");
    for (bytes, part) in [("{", "JSON"), ("[]", "notebook"), ("{\"nbformat\": 9}", "9"), ("<html>", "a web page")] {
        let problem = held.client.put(&held.path("/notebook"), bytes).await.problem(422, "bad_notebook");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    }
    held.delete().await;
    server.end().await;
}

#[tokio::test]
async fn notebook_runs_in_its_session() {
    let (server, held) = start("onsession").await;
    let cells = vec![
        json!({"cell_type": "markdown", "id": "text", "source": "# A heading\n\n$x^2$", "metadata": {}}),
        code("defaults", "year = 1", &["parameters"]),
        code("shows", "print(year); 6*7", &[]),
        code("allowed", "1/0", &["raises-exception"]),
        code("skipped", "print('never')", &["skip-execution"]),
        code("fails", "undefined_name", &[]),
        code("behind", "print('not run')", &[]),
    ];
    let file = notebook(cells);
    held.client.put(&held.path("/notebook"), file.to_string()).await.is(200);
    let run = json!({"parameters": {"year": 2026}});
    let outcome = held.client.post(&held.path("/notebook/run?wait=120"), run).await.is(200);
    assert_eq!((&outcome["status"], &outcome["error"]["ename"]), (&json!("error"), &json!("NameError")), "{outcome}");
    assert_eq!(outcome["error"]["cell"], "fails");
    let status =
        |id: &str| outcome["cells"].as_array().unwrap().iter().find(|cell| cell["id"] == id).map(|cell| &cell["status"]);
    assert_eq!(status("behind"), Some(&json!("cancelled")));
    assert_eq!((status("allowed"), status("skipped")), (Some(&json!("error")), None));
    assert_eq!(printed(&held.cell("shows").await), "2026\n", "the parameter was put in behind the defaults");
    let out: Value = held.client.get(&held.path("/notebook")).await.json();
    assert_eq!(out["metadata"]["unknown"], json!({"a": 1}));
    assert_eq!(out["metadata"]["language_info"]["name"], "python");
    let cell = |id: &str| out["cells"].as_array().unwrap().iter().find(|cell| cell["id"] == id).unwrap();
    assert_eq!(cell("shows")["outputs"][1]["data"]["text/plain"], json!(["42"]));
    assert_eq!(cell("shows")["metadata"]["theirs"], json!({"kept": [1, 2.50]}));
    assert!(cell("shows")["metadata"]["execution"]["shell.execute_reply"].is_string());
    assert_eq!(cell("injected-parameters")["source"], json!(["# Parameters\n", "year = 2026"]));
    Notebook::parse(out.to_string().as_bytes()).unwrap();
    // A second run from the middle, with another value and past the error: the injected cell is changed, not duplicated.
    let run = json!({"parameters": {"year": 1999}, "from": "injected-parameters", "allow_errors": true});
    let outcome = held.client.post(&held.path("/notebook/run?wait=120"), run).await.is(200);
    assert_eq!(outcome["status"], "ok", "{outcome}");
    assert_eq!(printed(&held.cell("shows").await), "1999\n");
    assert_eq!(printed(&held.cell("behind").await), "not run\n");
    assert_eq!(held.view().await["cells"], 8);
    // Widget state is saved without a front end, too.
    let comm = "from comm import create_comm\nc = create_comm('jupyter.widget', {'state': {'_model_name': 'M', '_model_module': 'm', \
                '_model_module_version': '1', 'value': 7}}, metadata={'version': '2.1.0'})";
    held.ok(comm).await;
    let out = held.client.get(&held.path("/notebook")).await.is(200);
    let state = &out["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"];
    let models: Vec<&Value> = state.as_object().unwrap().values().collect();
    assert_eq!((models.len(), &models[0]["state"]["value"]), (1, &json!(7)), "{state}");
    documents(&held).await;
    held.client.post(&held.path("/notebook/run"), json!({"from": "nowhere"})).await.problem(404, "no_cell");
    held.client.post(&held.path("/notebook/run"), json!({"parameters": [1]})).await.problem(422, "bad_parameters");
    held.client.post(&held.path("/notebook/run"), json!({"parameters": {"a b": 1}})).await.problem(422, "bad_parameters");
    // A second import executes nothing, and outputs of earlier cells with the same ids are not shown.
    held.client.put(&held.path("/notebook"), file.to_string()).await.is(200);
    assert_eq!(held.cell("shows").await["outputs"], json!([]));
    held.begin("long", "import time; time.sleep(600)").await;
    held.client.put(&held.path("/notebook"), file.to_string()).await.problem(409, "cell_in_progress");
    held.delete().await;
    server.end().await;
}

async fn documents(held: &RemoteSession) {
    let page = held.client.get(&held.path("/notebook?to=html&theme=dark")).await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("sandbox "), "{:?}", page.headers);
    let text = String::from_utf8_lossy(&page.body).into_owned();
    assert!(text.contains("A heading") && text.contains("<math") && text.contains("1999"));
    let markdown = held.client.get(&held.path("/notebook?to=markdown")).await.body;
    assert!(String::from_utf8_lossy(&markdown).contains("# A heading"));
    let script = held.client.get(&held.path("/notebook?to=script&script=percent")).await.body;
    assert!(String::from_utf8_lossy(&script).contains("# %%"));
    held.client.get(&held.path("/notebook?to=pptx")).await.problem(400, "bad_query");
}

async fn job_outlives_the_server(place: TestSandbox) {
    let mut server = Server::start("job", place, &[]).await;
    let client = server.client();
    let cells = vec![
        code("one", "print(n); open('ran', 'a').write('x')", &[]),
        code("waits", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)", &[]),
        code("two", "print(open('ran').read() * n)", &[]),
    ];
    let job = json!({"notebook": notebook(cells), "parameters": {"n": 3}, "name": "nightly"});
    let made = client.post("/v1/runs", job).await;
    let run = made.is(201);
    let path = made.header("location").to_owned();
    assert_eq!((&run["kernel"], &run["name"], &run["cells_total"]), (&json!("python"), &json!("nightly"), &json!(4)));
    client.until(&path, |reply| reply.json()["cells_done"] == 2).await;
    server.kill().await;
    server.start_again().await;
    let again = client.get(&path).await.is(200);
    assert_eq!((&again["state"], &again["cells_done"]), (&json!("running"), &json!(2)), "{again}");
    let mut events = client.stream(&format!("{path}/events")).await.unwrap();
    client.put(&format!("/v1/sessions/{}/files/go", run["id"].as_str().unwrap()), "").await.is(204);
    // The stream ends with the run.
    let to_the_end = async {
        let mut last = Value::Null;
        while let Some(event) = events.next().await.unwrap() {
            last = event;
        }
        last
    };
    let last = tokio::time::timeout(PATIENCE, to_the_end).await.expect("an end");
    assert_eq!((&last["type"], &last["state"]), (&json!("session.state"), &json!("gone")), "{last}");
    let rest = client.with("last-event-id", &last["seq"].to_string()).get(&format!("{path}/events")).await;
    assert_eq!(rest.status, 204, "who has seen it all need not ask again");
    let outcome = client.get(&path).await.is(200);
    assert_eq!((&outcome["state"], &outcome["status"]), (&json!("finished"), &json!("ok")), "{outcome}");
    let out = client.get(&format!("{path}/notebook")).await.is(200);
    let outputs: Vec<&Value> = out["cells"].as_array().unwrap().iter().map(|cell| &cell["outputs"]).collect();
    assert_eq!(outputs[1][0]["text"], json!(["3\n"]));
    assert_eq!(outputs[3][0]["text"], json!(["xxx\n"]), "the first cell has run once");
    let record = &out["metadata"]["cellkeep"];
    assert_eq!((&record["run"]["status"], &record["parameters"]), (&json!("ok"), &json!({"n": 3})), "{record}");
    assert!(record["packages"]["numpy"].is_string() && record["run"]["end_time"].is_string(), "{record}");
    again_with_the_same(&client, &out).await;
    client.until(&format!("/v1/sessions/{}", run["id"].as_str().unwrap()), |reply| reply.json()["state"] == "gone").await;
    assert_eq!(client.get("/v1/runs").await.is(200)["runs"].as_array().unwrap().len(), 1);
    client.delete(&path).await.is(204);
    client.get(&path).await.problem(404, "no_run");
    server.end().await;
}

/// A recorded run can be repeated in the same environment only.
async fn again_with_the_same(client: &Client, done: &Value) {
    let cells = vec![code("r", "import random; print(random.random())", &[])];
    let mut file = notebook(cells);
    let path = |run: &Value| format!("/v1/runs/{}", run["id"].as_str().unwrap());
    client.post("/v1/runs", json!({"notebook": file, "frozen": true})).await.problem(409, "not_as_recorded");
    file["metadata"]["cellkeep"] = done["metadata"]["cellkeep"].clone();
    let mut printed = Vec::new();
    for _ in 0..2 {
        let run = client.post("/v1/runs?wait=120", json!({"notebook": file, "frozen": true, "seed": 7})).await.is(201);
        assert_eq!(run["status"], "ok", "{run}");
        let out = client.get(&format!("{}/notebook", path(&run))).await.is(200);
        assert_eq!(out["metadata"]["cellkeep"]["seed"], 7);
        printed.push(out["cells"][0]["outputs"].clone());
        client.delete(&path(&run)).await.is(204);
    }
    assert_eq!(printed[0], printed[1], "the same seed, the same numbers");
    file["metadata"]["cellkeep"]["packages"]["numpy"] = json!("0.1");
    let problem = client.post("/v1/runs", json!({"notebook": file, "frozen": true})).await.problem(409, "not_as_recorded");
    assert!(problem["detail"].as_str().unwrap().contains("numpy: it was 0.1"), "{problem}");
}

#[tokio::test]
async fn jobs_accept_forms_and_can_be_cancelled() {
    let server = Server::start("forms", TestSandbox::process(), &[]).await;
    let client = server.client();
    let cells = vec![code("a", "print(name)", &[]), code("b", "import time; time.sleep(600)", &[]), code("c", "1", &[])];
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"parameters\"\r\n\r\n{{\"name\": \"Ann\"}}\r\n--B\r\n\
         Content-Disposition: form-data; name=\"kernel\"\r\n\r\npython\r\n--B\r\n\
         Content-Disposition: form-data; name=\"notebook\"; filename=\"x.ipynb\"\r\n\r\n{}\r\n--B--\r\n",
        notebook(cells)
    );
    let made =
        client.with("content-type", "multipart/form-data; boundary=B").send(Method::POST, "/v1/runs", form).await.is(201);
    let path = format!("/v1/runs/{}", made["id"].as_str().unwrap());
    client.until(&path, |reply| reply.json()["cells_done"] == 2).await;
    client.post(&format!("{path}/cancel"), json!({})).await.is(202);
    let outcome = client.until(&path, |reply| reply.json()["state"] == "finished").await.json();
    assert_eq!(outcome["status"], "interrupted", "{outcome}");
    assert_eq!(outcome["cells"][3]["status"], "cancelled", "{outcome}");
    client.post("/v1/runs", json!({})).await.problem(422, "missing_field");
    client.post("/v1/runs", json!({"notebook": 1})).await.problem(422, "bad_notebook");
    client.post("/v1/runs", json!({"notebook": notebook(vec![]), "kernel": "cobol"})).await.problem(422, "no_kernel");
    let empty = client.post("/v1/runs?wait=60", json!({"notebook": notebook(vec![])})).await.is(201);
    assert_eq!((&empty["state"], &empty["status"]), (&json!("finished"), &json!("ok")), "{empty}");
    server.end().await;
}

//! Sandboxes that hold several sessions: what they share, and what they do not.

use serde_json::{Value, json};

use crate::server::{Client, PACE, RemoteSession, Server};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    sessions_share_files_and_nothing_else,
    killed_kernel_spares_its_siblings,
    sandbox_ends_with_its_sessions,
    expired_and_idle_sandboxes_end,
    foreign_and_unknown_sandboxes_are_refused,
    files_need_no_session,
);

pub async fn create(client: &Client, fields: Value) -> String {
    client.post("/v1/sandboxes", fields).await.is(201)["id"].as_str().unwrap().to_owned()
}

pub async fn session_in(client: &Client, sandbox: &str) -> RemoteSession {
    client.create(json!({"sandbox": sandbox})).await
}

async fn sessions_share_files_and_nothing_else(place: TestSandbox) {
    let server = Server::start("sb-share", place, &[]).await;
    let client = server.client();
    let sandbox = create(&client, json!({"kernel": "python", "env": {"COLOUR": "blue"}})).await;
    let one = session_in(&client, &sandbox).await;
    let two = client.create(json!({"sandbox": sandbox, "env": {"OWN": "two"}})).await;
    one.ok("import os; value = 1; open('shared.txt', 'w').write('from one')").await;
    let seen =
        "import os; print(open('shared.txt').read(), os.environ['COLOUR'], os.environ.get('OWN'), 'value' in globals())";
    assert_eq!(two.ok(seen).await, "from one blue two False\n");
    assert_eq!(one.ok("print(os.environ.get('OWN'))").await, "None\n");
    // An interrupt reaches one kernel.
    one.begin("loop", "while True: pass").await;
    two.begin("sleep", "import time; time.sleep(2); print('slept')").await;
    one.cell_until("loop", |cell| cell["state"] == "running").await;
    two.cell_until("sleep", |cell| cell["state"] == "running").await;
    client.post(&one.path("/interrupt"), json!({})).await.is(202);
    assert_eq!(one.finished("loop").await["status"], "interrupted");
    assert_eq!(two.finished("sleep").await["status"], "ok");
    assert_eq!(one.ok("print(value)").await, "1\n");
    // A restart as well.
    client.post(&two.path("/restart"), json!({})).await.is(202);
    assert_eq!(two.ok("print('os' in globals())").await, "False\n");
    assert_eq!(one.ok("print(value)").await, "1\n");
    let view = client.get(&format!("/v1/sandboxes/{sandbox}")).await.is(200);
    assert_eq!(view["sessions"].as_array().unwrap().len(), 2, "{view}");
    // A session that ends leaves the other and the files.
    two.delete().await;
    assert_eq!(one.ok("print(value, open('shared.txt').read())").await, "1 from one\n");
    let third = session_in(&client, &sandbox).await;
    assert_eq!(third.ok("print(open('shared.txt').read())").await, "from one\n");
    client.delete(&format!("/v1/sandboxes/{sandbox}")).await.is(204);
    server.end().await;
}

async fn killed_kernel_spares_its_siblings(place: TestSandbox) {
    let server = Server::start("sb-kill", place, &[]).await;
    let client = server.client();
    let sandbox = create(&client, json!({"kernel": "python"})).await;
    let (one, two) = (session_in(&client, &sandbox).await, session_in(&client, &sandbox).await);
    let ticking = json!({"shell": "while true; do echo tick; sleep 0.1; done"});
    let path = format!("/v1/sandboxes/{sandbox}/processes");
    let process = client.post(&path, ticking).await.is(201);
    two.ok("value = 2").await;
    // A daemon of the kernel in a session of its own, and one that hides whose it is.
    let daemons = "import subprocess\n\
        a = subprocess.Popen(['setsid', 'sleep', '4321'])\n\
        b = subprocess.Popen(['env', '-i', '/usr/bin/setsid', '/usr/bin/sleep', '4322'])";
    one.ok(daemons).await;
    let count = "import glob\n\
        def sleepers():\n    \
            names = [open(path, 'rb').read() for path in glob.glob('/proc/[0-9]*/cmdline')]\n    \
            return sum(b'432' in name and b'sleep' in name for name in names)";
    two.ok(count).await;
    assert_eq!(two.ok("print(sleepers())").await, "2\n");
    let died = one.run("import os; os.kill(os.getpid(), 9)").await;
    assert_eq!(died["status"], "kernel_died", "{died}");
    assert_eq!(two.ok("print(value, sleepers())").await, "2 0\n", "the daemons of the dead kernel are gone");
    assert_eq!(one.ok("print('again')").await, "again\n");
    let id = process["id"].as_str().unwrap();
    let view = client.get(&format!("{path}/{id}")).await.is(200);
    assert_eq!(view["state"], "running", "{view}");
    // Code that kills whatever it can kills what is in its own sandbox, and the agent goes on.
    two.run("import os; os.kill(-1, 9)").await;
    // A cell that is sent before the death of its kernel is noticed ends with it.
    one.run("pass").await;
    assert_eq!(one.ok("print('and again')").await, "and again\n");
    client.until(&format!("{path}/{id}"), |reply| reply.json()["state"] == "exited").await;
    client.delete(&format!("/v1/sandboxes/{sandbox}")).await.is(204);
    server.end().await;
}

async fn sandbox_ends_with_its_sessions(place: TestSandbox) {
    let server = Server::start("sb-end", place, &[]).await;
    let client = server.client();
    let sandbox = create(&client, json!({"kernel": "python", "name": "first"})).await;
    let one = session_in(&client, &sandbox).await;
    one.ok("print('kept')").await;
    one.begin("loop", "while True: pass").await;
    client.delete(&format!("/v1/sandboxes/{sandbox}")).await.is(204);
    client.get(&format!("/v1/sandboxes/{sandbox}")).await.problem(404, "no_such_sandbox");
    client.post("/v1/sessions", json!({"sandbox": sandbox})).await.problem(404, "no_such_sandbox");
    let view = one.view().await;
    assert_eq!((&view["state"], &view["why"]), (&json!("gone"), &json!("its sandbox was deleted")));
    let cells = client.get(&one.path("/cells")).await.is(200);
    assert_eq!(cells["cells"][0]["outputs"][0]["text"], "kept\n", "what ran stays readable: {cells}");
    // The sandbox of a session has its id, takes guests, and ends with the session.
    let owner = client.create(json!({"kernel": "python"})).await;
    let guest = session_in(&client, &owner.id).await;
    owner.ok("open('a', 'w').write('a')").await;
    assert_eq!(guest.ok("print(open('a').read())").await, "a\n");
    client.delete(&format!("/v1/sandboxes/{}", owner.id)).await.problem(409, "sandbox_of_session");
    client.get(&format!("/v1/sandboxes/{}", guest.id)).await.problem(404, "no_such_sandbox");
    owner.delete().await;
    client.until(&guest.path(""), |reply| reply.json()["state"] == "gone").await;
    server.end().await;
}

async fn expired_and_idle_sandboxes_end(place: TestSandbox) {
    let server = Server::start("sb-reap", place, &[]).await;
    let client = server.client();
    let gone = |id: &str| {
        let (client, path) = (client.clone(), format!("/v1/sandboxes/{id}"));
        async move { client.until(&path, |reply| reply.status == 404).await }
    };
    let expired = create(&client, json!({"kernel": "python", "ttl_seconds": 1})).await;
    gone(&expired).await;
    // One whose process works is in use.
    let working = create(&client, json!({"kernel": "python", "idle_timeout_seconds": 1})).await;
    let path = format!("/v1/sandboxes/{working}/processes");
    let process = client.post(&path, json!({"command": ["sleep", "1000"]})).await.is(201);
    let idle = create(&client, json!({"kernel": "python", "idle_timeout_seconds": 1})).await;
    let session = session_in(&client, &idle).await;
    client.until(&session.path(""), |reply| reply.json()["state"] == "gone").await;
    assert!(session.view().await["why"].as_str().unwrap().contains("idle"), "{}", session.view().await);
    let all = client.get("/v1/sandboxes").await.is(200);
    assert_eq!(all["sandboxes"].as_array().unwrap().len(), 1, "{all}");
    client.delete(&format!("{path}/{}", process["id"].as_str().unwrap())).await.is(204);
    gone(&working).await;
    // They are invisible before everything of them is removed.
    let folders = server.paths().sandboxes();
    let removed = async {
        while std::fs::read_dir(&folders).unwrap().next().is_some() {
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::time::timeout(PATIENCE, removed).await.unwrap();
    server.end().await;
}

async fn foreign_and_unknown_sandboxes_are_refused(place: TestSandbox) {
    let server = Server::start("sb-foreign", place, &[]).await;
    let client = server.client();
    let sandbox = create(&client, json!({"kernel": "python"})).await;
    let (_, other) = server.client_with(&["--principal", "bob", "other"]).await;
    let (_, reader) = server.client_with(&["--scope", "read", "reader"]).await;
    let path = format!("/v1/sandboxes/{sandbox}");
    for attempt in [
        other.get(&path).await,
        other.patch(&path, json!({"name": "mine"})).await,
        other.delete(&path).await,
        other.post("/v1/sessions", json!({"sandbox": sandbox})).await,
        other.get(&format!("{path}/processes")).await,
        other.post(&format!("{path}/processes"), json!({"shell": "id"})).await,
        client.get("/v1/sandboxes/nothing").await,
        client.get("/v1/sandboxes/NO%2F..").await,
        client.post("/v1/sessions", json!({"sandbox": "../x"})).await,
    ] {
        attempt.problem(404, "no_such_sandbox");
    }
    reader.post(&format!("{path}/processes"), json!({"shell": "id"})).await.problem(403, "scope_too_narrow");
    reader.post("/v1/sandboxes", json!({})).await.problem(403, "scope_too_narrow");
    let within = |fields: Value| {
        let mut all = json!({"sandbox": sandbox});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        client.post("/v1/sessions", all)
    };
    within(json!({"limits": {"memory_mb": 64}})).await.problem(422, "bad_sandbox");
    within(json!({"network": "none"})).await.problem(422, "bad_sandbox");
    within(json!({"kernel": "bash"})).await.problem(422, "other_kernel");
    within(json!({"kernel": "nonsense"})).await.problem(422, "no_kernel");
    client.post("/v1/sandboxes", json!({"timeout_seconds": 3})).await.problem(422, "bad_field");
    client.post("/v1/sandboxes", json!({"limits": {"memory_mb": 1}})).await.problem(422, "bad_limits");
    let changed = client.patch(&path, json!({"name": "box", "labels": {"team": "a"}, "ttl_seconds": 600})).await.is(200);
    assert_eq!((&changed["name"], &changed["labels"]["team"]), (&json!("box"), &json!("a")));
    client.delete(&path).await.is(204);
    server.end().await;
}

async fn files_need_no_session(place: TestSandbox) {
    let server = Server::start("sb-files", place, &[]).await;
    let client = server.client();
    let sandbox = create(&client, json!({"kernel": "python"})).await;
    let path = |rest: &str| format!("/v1/sandboxes/{sandbox}/files{rest}");
    let content = vec![7u8; 3 << 20];
    client.put(&path("/data/in.bin"), content.clone()).await.is(204);
    let list = client.get(&path("/?path=data")).await.is(200);
    assert_eq!(
        (&list["entries"][0]["path"], &list["entries"][0]["size"]),
        (&json!("data/in.bin"), &json!(3 << 20)),
        "{list}"
    );
    assert_eq!(client.get(&path("/data/in.bin")).await.body, content);
    let process = json!({"shell": "wc -c < data/in.bin; echo made > data/out.txt"});
    let process = client.post(&format!("/v1/sandboxes/{sandbox}/processes?wait=60"), process).await.is(201);
    assert_eq!(process["output"]["stdout"], "3145728\n");
    assert_eq!(client.get(&path("/data/out.txt")).await.text(), "made\n");
    client.patch(&path("/data/out.txt"), json!({"path": "moved.txt"})).await.is(200);
    client.get(&path("/data/out.txt")).await.problem(404, "no_file");
    let session = session_in(&client, &sandbox).await;
    assert_eq!(session.ok("print(open('moved.txt').read())").await, "made\n\n");
    client.delete(&path("/data?recursive=true")).await.is(204);
    client.get(&path("/..%2Fetc%2Fpasswd")).await.problem(422, "bad_file");
    client.get("/v1/sandboxes/unknown/files/").await.problem(404, "no_such_sandbox");
    // The files of a session's sandbox, under both names.
    let owner = client.create(json!({"kernel": "python"})).await;
    client.put(&format!("/v1/sandboxes/{}/files/x", owner.id), "x").await.is(204);
    assert_eq!(client.get(&owner.path("/files/x")).await.text(), "x");
    client.get(&format!("/v1/sandboxes/{}/files/", session.id)).await.problem(404, "no_such_sandbox");
    client.delete(&format!("/v1/sandboxes/{sandbox}")).await.is(204);
    server.end().await;
}

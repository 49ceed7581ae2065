//! Packages that are installed for sandboxes (`packages`, `/v1/environments`, `--packages`), and by code in them with pip. A server on
//! loopback stands in for the index.

use std::fs;

use serde_json::{Value, json};

use crate::cli::Cli;
use crate::package_index::{Index, installed};
use crate::server::{Client, PACE, Server};
use crate::support::TestSandbox;

in_every_sandbox!(
    packages_of_a_session_are_installed_once,
    pip_installs_where_the_policy_permits,
    packages_that_cannot_be_installed_leave_nothing,
    hostile_build_reaches_index_only,
    killed_server_goes_on_with_installation,
    environments_belong_to_their_owners,
    command_line_installs_packages,
);

const KERNEL: &str = "python-minimal";

async fn environments(client: &Client) -> Vec<Value> {
    client.get("/v1/environments").await.is(200)["environments"].as_array().unwrap().clone()
}

async fn packages_of_a_session_are_installed_once(place: TestSandbox) {
    let index = Index::start("once");
    let server = index.server("pkg-once", place, &[]).await;
    let client = server.client();
    let new = || json!({"kernel": KERNEL, "packages": ["flock"], "requirements": "pelican<2  # the old one\nwcwidth\n"});
    let session = client.create(new()).await;
    let used = "import flock, pelican, wcwidth; print(pelican.VERSION, flock.__file__, wcwidth.VERSION)";
    assert_eq!(session.ok(used).await, "1.0 /opt/packages/lib/python3.11/site-packages/flock.py 99.0\n");
    assert_eq!(session.ok("!flock-says; python -c 'import pelican; print(pelican.VERSION)'").await, "flock says 1.0\n1.0\n");
    let error = session.run("open(flock.__file__, 'w')").await["error"]["evalue"].to_string();
    assert!(error.contains("Read-only") || error.contains("denied"), "{error}");
    let requests = index.requests();
    // Second use asks nobody, also for a sandbox and a run.
    drop(index);
    let again = client.create(new()).await;
    assert_eq!(again.ok("import flock; print(flock.VERSION)").await, "1.0\n");
    let all = environments(&client).await;
    assert_eq!((all.len(), requests > 0), (1, true));
    assert_eq!(installed(&all[0]), [("flock", "1.0"), ("pelican", "1.0"), ("wcwidth", "99.0")]);
    let hidden = all[0]["packages"].as_array().unwrap().iter().find(|package| package["name"] == "wcwidth").unwrap();
    assert!(hidden["replaces"].is_string(), "{hidden}");
    let id = all[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/environments/{id}");
    assert_eq!(client.get(&format!("/v1/sessions/{}", again.id)).await.is(200)["environment"], id.as_str());
    let sandbox = client.post("/v1/sandboxes", json!({"kernel": KERNEL, "environment": id})).await.is(201);
    let sandbox = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let run = json!({"shell": "flock-says"});
    let process = client.post(&format!("{sandbox}/processes?wait=60"), run).await.is(201);
    assert_eq!(process["output"]["stdout"], "flock says 1.0\n", "{process}");
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
        {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": null, "outputs": [], "source": "import flock; print(flock.VERSION)"}]});
    let job = json!({"kernel": KERNEL, "notebook": notebook, "environment": id});
    let job = client.post("/v1/runs?wait=60", job).await.is(201);
    assert_eq!(job["status"], "ok", "{job}");
    let lock = client.get(&format!("{path}/lock")).await.text();
    assert!(lock.contains("flock==1.0") && lock.contains("--hash=sha256:"), "{lock}");
    assert_eq!(client.delete(&path).await.is(409)["code"], "environment_in_use");
    for ended in [&session, &again] {
        client.delete(&format!("/v1/sessions/{}", ended.id)).await.is(204);
    }
    client.delete(&sandbox).await.is(204);
    client.until(&path, |_| fs::read_dir(server.paths().sandboxes()).unwrap().count() == 0).await;
    client.delete(&path).await.is(204);
    client.get(&path).await.is(404);
    assert_eq!(fs::read_dir(server.paths().package_sets().join("sets")).unwrap().count(), 0);
    server.end().await;
}

async fn pip_installs_where_the_policy_permits(place: TestSandbox) {
    let index = Index::start("pip");
    let server = index.server("pkg-pip", place, &[]).await;
    let client = server.client();
    let session = client.create(json!({"kernel": KERNEL, "network": "packages"})).await;
    let cell = session.run("%pip install flock 'pelican<2' wcwidth==99.0\nimport flock, pelican\n!python -c 'import wcwidth; print(wcwidth.VERSION)'").await;
    assert_eq!(cell["status"], "ok", "{cell}");
    assert!(cell.to_string().contains("99.0"), "{cell}");
    assert_eq!(cell["files"], json!([]), "what pip installs are no files that the cell changed");
    assert_eq!(session.ok("print(pelican.__file__)").await, "/work/.local/lib/python3.11/site-packages/pelican.py\n");
    // Other ways, and another version of one that is there.
    assert!(session.ok("!pip install -q pelican==2.0 2>&1; pelican-says").await.ends_with("pelican says 2.0\n"));
    assert!(session.ok("!python -m pip list 2>/dev/null | grep -E 'pelican|ipykernel'").await.contains("pelican"));
    let uv = session.ok("!uv pip install --system 'pelican<2' 2>&1; pelican-says; python -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix)'").await;
    assert!(uv.ends_with("pelican says 1.0\n/work/v\n"), "{uv}");
    // What pip installs comes before the package set.
    let both = client.create(json!({"kernel": KERNEL, "network": "packages", "packages": ["pelican<2"]})).await;
    let installed =
        "!pip install -q pelican==2.0 2>/dev/null; python -c 'import pelican; print(pelican.VERSION)'; pelican-says";
    assert_eq!(both.ok(installed).await, "2.0\npelican says 2.0\n");
    let none = client.create(json!({"kernel": KERNEL})).await;
    let said = none.run("!PIP_INDEX_URL=https://pypi.example/simple pip install flock 2>&1").await.to_string();
    assert!(said.contains("no network. Ask for the network"), "{said}");
    // The policy can change while the session runs.
    client.patch(&format!("/v1/sessions/{}", none.id), json!({"network": "packages"})).await.is(200);
    assert_eq!(none.ok("!pip install -q flock 2>/dev/null\nimport flock; print(flock.VERSION)").await, "1.0\n");
    server.end().await;
}

async fn packages_that_cannot_be_installed_leave_nothing(place: TestSandbox) {
    let index = Index::start("bad");
    let server = index.server("pkg-bad", place, &["--packages-deny", "Denied_*"]).await;
    let client = server.client();
    for (fields, code, said) in [
        (json!({"packages": ["no-such-thing"]}), "packages_failed", "no-such-thing"),
        (json!({"packages": ["flock", "pelican>9"]}), "packages_failed", "pelican"),
        (json!({"packages": ["broken"]}), "packages_failed", "images build"),
        (json!({"packages": ["secretly"]}), "packages_failed", "does not permit the package \"denied-thing\""),
        (json!({"requirements": "--extra-index-url http://evil.example\nflock"}), "bad_packages", "is an option"),
        (json!({"packages": ["flock"], "environment": "0".repeat(32)}), "bad_packages", "environment"),
        (json!({"packages": ["x"], "kernel": "bash"}), "no_packages", "python"),
        (json!({"packages": (0..1001).map(|n| n.to_string()).collect::<Vec<_>>()}), "bad_packages", "1000"),
    ] {
        let mut new = json!({"kernel": KERNEL});
        new.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let problem = client.post("/v1/sessions", new).await.is(422);
        assert_eq!(problem["code"], code, "{fields}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{fields}: {problem}");
    }
    let unknown = json!({"kernel": KERNEL, "environment": "0".repeat(32)});
    assert_eq!(client.post("/v1/sessions", unknown).await.is(404)["code"], "no_environment");
    assert!(client.session_ids().await.is_empty());
    let states: Vec<_> = environments(&client).await.iter().map(|one| one["state"].to_string()).collect();
    assert_eq!(states, ["\"failed\""; 4]);
    assert_eq!(fs::read_dir(server.paths().package_sets().join("sets")).map_or(0, Iterator::count), 0);
    assert_eq!(fs::read_dir(server.paths().sandboxes()).unwrap().count(), 0, "no installer is left");
    server.end().await;
    let closed = Server::start("pkg-closed", place, &[]).await;
    let refused = closed.client().post("/v1/environments", json!({"kernel": KERNEL, "packages": ["flock"]})).await.is(403);
    assert_eq!(refused["code"], "network_not_allowed");
    closed.end().await;
}

async fn hostile_build_reaches_index_only(place: TestSandbox) {
    let index = Index::start("hostile");
    let mut server = index.server("pkg-hostile", place, &[]).await;
    server.env.push(("SERVER_SECRET", "x".to_owned()));
    let client = server.client();
    let session = client.create(json!({"kernel": KERNEL, "packages": ["prober"]})).await;
    let reached =
        session.ok("import prober, os; print(prober.REACHED, os.stat(prober.__file__).st_mode & 0o7777 == 0o644)").await;
    assert_eq!(reached, "[] True\n");
    server.end().await;
}

async fn killed_server_goes_on_with_installation(place: TestSandbox) {
    let index = Index::start("kill");
    let mut server = index.server("pkg-kill", place, &[]).await;
    let client = server.client();
    let begun = client.post("/v1/environments", json!({"kernel": KERNEL, "packages": ["slow"]})).await.is(201);
    assert_eq!(begun["state"], "building", "{begun}");
    let path = format!("/v1/environments/{}", begun["id"].as_str().unwrap());
    while index.requests() == 0 {
        tokio::time::sleep(PACE).await;
    }
    server.kill().await;
    let seen = index.requests();
    server.start_again().await;
    // The second installation has come as far.
    while index.requests() == seen {
        tokio::time::sleep(PACE).await;
    }
    assert_eq!(client.get(&path).await.is(200)["state"], "building");
    fs::write(index.folder.join("go"), "").unwrap();
    let ended = client.until(&path, |reply| reply.json()["state"] != "building").await.is(200);
    assert_eq!((&ended["state"], installed(&ended)), (&json!("ready"), vec![("slow", "1.0")]), "{ended}");
    assert!(ended["log"].as_str().unwrap().contains("slow"), "{ended}");
    // The same again is there already.
    let again = client.post("/v1/environments", json!({"kernel": KERNEL, "requirements": "slow"})).await.is(201);
    assert_eq!(again["state"], "ready");
    // The sandbox of the killed server ends by itself.
    client
        .until(&path, |_| {
            fs::read_dir(server.paths().sandboxes()).unwrap().count() == 0 || place.kind.to_string() == "docker"
        })
        .await;
    client.delete(&path).await.is(204);
    server.kill().await;
    server.start_again().await;
    server.end().await;
}

async fn environments_belong_to_their_owners(place: TestSandbox) {
    let index = Index::start("owners");
    let server = index.server("pkg-owners", place, &[]).await;
    let [(_, one), (_, two)] = [server.client_with(&["one"]).await, server.client_with(&["two"]).await];
    let new = || json!({"kernel": KERNEL, "packages": ["pelican"]});
    let own = one.post("/v1/environments?wait=60", new()).await.is(201);
    assert_eq!(own["state"], "ready", "{own}");
    let path = format!("/v1/environments/{}", own["id"].as_str().unwrap());
    two.get(&path).await.is(404);
    two.get(&format!("{path}/lock")).await.is(404);
    two.delete(&path).await.is(404);
    assert_eq!(environments(&two).await, Vec::<Value>::new());
    let foreign = json!({"kernel": KERNEL, "environment": own["id"]});
    two.post("/v1/sessions", foreign).await.is(404);
    // Whether another one has them cannot be seen by the time that it takes.
    let before = index.requests();
    let other = two.post("/v1/environments?wait=60", new()).await.is(201);
    assert_ne!(other["id"], own["id"]);
    assert!(index.requests() > before);
    // A lock gives the same packages.
    let lock = one.get(&format!("{path}/lock")).await.text();
    let locked = two.post("/v1/environments?wait=60", json!({"kernel": KERNEL, "lock": lock})).await.is(201);
    assert_eq!(installed(&locked), [("pelican", "2.0")], "{locked}");
    let tampered = lock.replace("--hash=sha256:", "--hash=sha256:0");
    let refused = two.post("/v1/environments?wait=60", json!({"kernel": KERNEL, "lock": tampered})).await.is(201);
    assert_eq!(refused["state"], "failed", "{refused}");
    server.end().await;
}

async fn command_line_installs_packages(place: TestSandbox) {
    let index = Index::start("cli");
    let data = std::env::temp_dir().join(format!("ck-pkg-cli-{}-{}", place.kind, std::process::id()));
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(cellkeep::config::Paths::from_environment().kernels(), data.join("kernels")).unwrap();
    let address = format!("127.0.0.2:{}", index.port);
    let config = format!("[serve.egress]\npython-index = \"http://{address}/simple\"\nprivate = [\"{address}\"]\n");
    fs::write(data.join("cellkeep.toml"), config).unwrap();
    fs::write(data.join("needs.txt"), "pelican<2\n").unwrap();
    let needs = data.join("needs.txt");
    let cli = |arguments: &[&str]| {
        Cli::new(arguments).env("CELLKEEP_DATA", data.to_str().unwrap()).env("CELLKEEP_SANDBOX", &place.kind.to_string())
    };
    let exec = || {
        let code = "import flock, pelican; print(flock.VERSION, pelican.VERSION)";
        cli(&["exec", "-k", KERNEL, "--packages", "flock", "--requirements"]).path(&needs).args(&["-c", code]).run()
    };
    let first = exec();
    assert_eq!((first.code, first.stdout.as_str()), (0, "1.0 1.0\n"), "{}", first.stderr);
    assert!(first.stderr.contains("installing packages") && first.stderr.contains("flock 1.0"), "{}", first.stderr);
    let second = exec();
    assert_eq!((second.stdout.as_str(), second.stderr.as_str()), ("1.0 1.0\n", ""));
    let listed = cli(&["packages", "list"]).run().stdout;
    assert!(listed.contains("python-minimal") && listed.contains("flock 1.0, pelican 1.0"), "{listed}");
    let id = listed.split_whitespace().next().unwrap();
    let lock = cli(&["packages", "lock", id]).run().stdout;
    fs::write(data.join("lock.txt"), lock).unwrap();
    let locked = cli(&["exec", "-k", KERNEL, "-c", "import pelican; print(pelican.VERSION)", "--lock"])
        .path(&data.join("lock.txt"))
        .run();
    assert_eq!(locked.stdout, "1.0\n", "{}", locked.stderr);
    let missing = cli(&["exec", "-k", KERNEL, "--packages", "no-such-thing", "-c", "1"]).run();
    assert_eq!(missing.code, 2, "{}", missing.stderr);
    assert!(
        missing.stderr.contains("no-such-thing") && missing.stderr.contains("cannot be installed"),
        "{}",
        missing.stderr
    );
    assert_eq!(cli(&["packages", "remove", id]).run().code, 0);
    // A notebook that says what it needs.
    let source =
        "# /// script\n# dependencies = [\"flock\"]\n# ///\nimport flock, wcwidth; print(flock.VERSION, wcwidth.VERSION)";
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": KERNEL, "display_name": "Python"}}, "cells": [
        {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": null, "outputs": [], "source": "%pip install -q 'pelican<2'"},
        {"cell_type": "code", "id": "b", "metadata": {}, "execution_count": null, "outputs": [], "source": source}]});
    let path = data.join("needy.ipynb");
    fs::write(&path, notebook.to_string()).unwrap();
    fs::write(data.join("requirements.txt"), "wcwidth==99.0\n").unwrap();
    let inspected = cli(&["run", "--inspect"]).path(&path).run().stdout;
    assert!(inspected.contains("--install installs: pelican<2, flock, wcwidth==99.0"), "{inspected}");
    let plain = cli(&["run"]).path(&path).run();
    assert_eq!(plain.code, 1, "without --install: {}", plain.stderr);
    let ran = cli(&["run", "--install"]).path(&path).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let written: Value = serde_json::from_slice(&fs::read(data.join("needy.out.ipynb")).unwrap()).unwrap();
    assert!(written["cells"][1].to_string().contains("1.0 99.0"), "{written}");
    assert!(written["metadata"]["cellkeep"]["environment"]["package_lock"].is_string(), "{written}");
    assert_eq!(written["metadata"]["cellkeep"]["packages"]["pelican"], "1.0");
    assert!(!cli(&["packages", "list"]).run().stdout.contains(id));
    fs::remove_dir_all(data).unwrap();
}

//! Environments over their lifetime: locks that stay, logs that are read while an installation runs, limits, several indexes, and
//! indexes with credentials.

use std::fs;

use serde_json::{Value, json};

use crate::cli::Cli;
use crate::package_index::{Index, installed};
use crate::server::{PACE, Server};
use crate::support::TestSandbox;

in_every_sandbox!(
    removed_packages_return_in_the_same_versions,
    log_of_installation_is_a_stream,
    limits_of_sets_are_kept,
    second_index_gives_what_first_has_not,
    credentials_of_index_stay_outside,
    same_installation_runs_once,
    r_packages_are_installed,
);

const KERNEL: &str = "python-minimal";

async fn removed_packages_return_in_the_same_versions(place: TestSandbox) {
    let index = Index::start("lock");
    let server = index.server("env-lock", place, &[]).await;
    let client = server.client();
    let new = || json!({"kernel": KERNEL, "packages": ["pelican"]});
    let first = client.post("/v1/environments?wait=60", new()).await.is(201);
    assert_eq!(installed(&first), [("pelican", "2.0")], "{first}");
    let path = format!("/v1/environments/{}", first["id"].as_str().unwrap());
    let lock = client.get(&format!("{path}/lock")).await.text();
    // As room for others is made, and a newer version appears.
    fs::remove_dir_all(server.paths().package_sets().join("sets")).unwrap();
    fs::write(index.folder.join("newer"), "").unwrap();
    assert_eq!(client.get(&path).await.is(200)["packages"], json!([]));
    assert_eq!(client.get(&format!("{path}/lock")).await.text(), lock);
    let session = client.create(json!({"kernel": KERNEL, "environment": first["id"]})).await;
    assert_eq!(session.ok("import pelican; print(pelican.VERSION)").await, "2.0\n");
    session.delete().await;
    let again = client.post("/v1/environments?wait=60", new()).await.is(201);
    assert_eq!((&again["id"], &again["created_at"]), (&first["id"], &first["created_at"]));
    assert_eq!(installed(&again), [("pelican", "2.0")], "{again}");
    // Forgotten, the versions are decided anew.
    client.until(&path, |_| fs::read_dir(server.paths().sandboxes()).unwrap().count() == 0).await;
    client.delete(&path).await.is(204);
    let anew = client.post("/v1/environments?wait=60", new()).await.is(201);
    assert_eq!(installed(&anew), [("pelican", "3.0")], "{anew}");
    // A session and a run take a lock themselves.
    let locked = client.create(json!({"kernel": KERNEL, "lock": lock})).await;
    assert_eq!(locked.ok("import pelican; print(pelican.VERSION)").await, "2.0\n");
    let both = json!({"kernel": KERNEL, "lock": lock, "packages": ["flock"]});
    assert_eq!(client.post("/v1/sessions", both).await.is(422)["code"], "bad_packages");
    // Pages.
    let page = client.get("/v1/environments?limit=1").await.is(200);
    assert_eq!(page["environments"][0]["id"], anew["id"]);
    let next =
        client.get(&format!("/v1/environments?limit=1&cursor={}", page["next_cursor"].as_str().unwrap())).await.is(200);
    assert_eq!((next["environments"].as_array().unwrap().len(), &next["next_cursor"]), (1, &Value::Null));
    assert_eq!(next["environments"][0]["id"], client.get(&locked.path("")).await.is(200)["environment"]);
    server.end().await;
}

async fn log_of_installation_is_a_stream(place: TestSandbox) {
    let index = Index::start("log");
    let server = index.server("env-log", place, &[]).await;
    let [(_, client), (_, other)] = [server.client_with(&["one"]).await, server.client_with(&["two"]).await];
    let begun = client.post("/v1/environments", json!({"kernel": KERNEL, "packages": ["slow", "flock"]})).await.is(201);
    let path = format!("/v1/environments/{}/events", begun["id"].as_str().unwrap());
    let mut running = client.stream(&path).await.unwrap();
    other.get(&path).await.is(404);
    fs::write(index.folder.join("go"), "").unwrap();
    let mut events = Vec::new();
    while let Some(event) = running.next().await.unwrap() {
        events.push(event);
    }
    let ended = events.last().unwrap();
    assert_eq!((&ended["type"], &ended["state"], &ended["error"]), (&json!("ended"), &json!("ready"), &Value::Null));
    assert!(events.iter().any(|event| event["type"] == "line" && event["text"] == "flock 1.0"), "{events:?}");
    let numbers: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    // Afterwards it is the same, also from a number on.
    let mut stored = client.stream(&format!("{path}?after=1")).await.unwrap();
    for expected in &events[1..] {
        assert_eq!(stored.next().await.unwrap().as_ref(), Some(expected));
    }
    assert_eq!(stored.next().await.unwrap(), None);
    let failed = client.post("/v1/environments?wait=60", json!({"kernel": KERNEL, "packages": ["broken"]})).await.is(201);
    let mut stream =
        client.stream(&format!("/v1/environments/{}/events?after=100000", failed["id"].as_str().unwrap())).await.unwrap();
    let ended = stream.next().await.unwrap().unwrap();
    assert_eq!((&ended["state"], ended["error"].is_string()), (&json!("failed"), true), "{ended}");
    server.end().await;
}

async fn limits_of_sets_are_kept(place: TestSandbox) {
    let index = Index::start("limits");
    let options = ["--packages-max-mb", "1", "--packages-max-total-mb", "1", "--packages-build-timeout", "20"];
    let server = index.server("env-limits", place, &options).await;
    let client = server.client();
    let failure = async |packages: &str| {
        let built = client.post("/v1/environments?wait=60", json!({"kernel": KERNEL, "packages": [packages]})).await.is(201);
        assert_eq!(built["state"], "failed", "{built}");
        built["error"].as_str().unwrap().to_owned()
    };
    let error = failure("heavy").await;
    assert!(error.contains("--packages-max-mb"), "{error}");
    let small = client.post("/v1/environments?wait=60", json!({"kernel": KERNEL, "packages": ["pelican"]})).await.is(201);
    assert_eq!(small["state"], "ready", "{small}");
    // The first is new, so it does not go to make room for this one.
    let error = failure("flock").await;
    assert!(error.contains("--packages-max-total-mb"), "{error}");
    let path = format!("/v1/environments/{}", small["id"].as_str().unwrap());
    client.delete(&path).await.is(204);
    let error = failure("slow").await;
    assert!(error.contains("longer than 20 s"), "{error}");
    assert_eq!(fs::read_dir(server.paths().sandboxes()).unwrap().count(), 0, "no installer is left");
    assert_eq!(fs::read_dir(server.paths().package_sets().join("sets")).unwrap().count(), 0);
    server.end().await;
}

async fn second_index_gives_what_first_has_not(place: TestSandbox) {
    let (first, second) = (Index::start_with("first", &["--only", "pelican"]), Index::start("second"));
    let urls = format!("{},{}", first.url(), second.url());
    let addresses = format!("{},{}", first.address(), second.address());
    let options = ["--allow-network=packages", "--python-index", &urls, "--egress-private", &addresses];
    let server = Server::start("env-indexes", place, &options).await;
    let client = server.client();
    let session = client.create(json!({"kernel": KERNEL, "packages": ["flock"], "network": "packages"})).await;
    assert_eq!(session.ok("import flock, pelican; print(flock.VERSION, pelican.VERSION)").await, "1.0 2.0\n");
    let from = |index: &Index, name: &str| index.log().iter().any(|line| line.contains(&format!("/files/{name}")));
    assert!(from(&first, "pelican") && !from(&second, "pelican"), "{:?}", second.log());
    let printed = session.ok("%pip install -q secretly\nimport secretly; print(secretly.VERSION)").await;
    assert!(printed.ends_with("\n1.0\n"), "{printed}");
    server.end().await;
}

async fn credentials_of_index_stay_outside(place: TestSandbox) {
    // me:hunter2-of-index
    const KEY: &str = "bWU6aHVudGVyMi1vZi1pbmRleA==";
    let index = Index::start_with("key", &["--key", KEY]);
    let config = std::env::temp_dir().join(format!("ck-env-key-{}-{}.toml", place.kind, std::process::id()));
    let text = format!(
        "[secrets.INDEX]\nhosts = [\"{0}\"]\nheader = \"Authorization\"\nformat = \"Basic {{}}\"\nvalue = \"{KEY}\"\n\
         [serve.egress]\npython-index = \"{1}\"\nprivate = [\"{0}\"]\nindex-secrets = [\"INDEX\"]\n",
        index.address(),
        index.url()
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let options = ["--allow-network=packages", "--config", config, "--pool", "python-minimal=1"];
    let server = Server::start("env-key", place, &options).await;
    let client = server.client();
    let session = client.create(json!({"kernel": KERNEL, "packages": ["flock"], "network": "packages"})).await;
    assert_eq!(session.ok("import flock; print(flock.VERSION)").await, "1.0\n");
    let printed = session.ok("%pip install -q secretly\nimport secretly; print(secretly.VERSION)").await;
    assert!(printed.ends_with("\n1.0\n"), "{printed}");
    // Code reaches the index with them, cannot read them, and writes without them.
    let code = format!(
        "import os, subprocess, urllib.request, urllib.error\n\
         seen = subprocess.run('env; cat /proc/*/environ; grep -rs {KEY} /work /etc /run /tmp', shell=True, capture_output=True).stdout\n\
         print(b'{KEY}' in seen, urllib.request.urlopen('{0}/pelican/').status)\n\
         try: urllib.request.urlopen('{0}/pelican/', data=b'x')\n\
         except urllib.error.HTTPError as error: print(error.code)",
        index.url()
    );
    assert_eq!(session.ok(&code).await, "False 200\n401\n");
    let log = index.log();
    assert!(log.iter().any(|line| line.starts_with("POST") && line.ends_with(" -")), "{log:?}");
    let described = client.get(&session.path("")).await.is(200);
    assert_eq!(described["secrets"], json!([]));
    // A session of the pool was created without them, and is not taken.
    client.until("/v1/kernels", |reply| reply.text().contains("\"pool\":1")).await;
    let plain = client.create(json!({"kernel": KERNEL, "network": "packages"})).await;
    let printed = plain.ok("%pip install -q flock\nimport flock; print(flock.VERSION)").await;
    assert!(printed.ends_with("\n1.0\n"), "{printed}");
    // Nobody asks for it by name, and other networks do not have it.
    let asked = json!({"kernel": KERNEL, "secrets": {"INDEX": {}}});
    assert_eq!(client.post("/v1/sessions", asked).await.is(422)["code"], "bad_secret");
    server.end().await;
    let wrong = Cli::new(&["serve", "--listen", "127.0.0.1:0", "--config", config, "--index-secrets", "OTHER"]).run();
    assert!(wrong.code == 2 && wrong.stderr.contains("[secrets.OTHER]"), "{}", wrong.stderr);
    fs::remove_file(config).unwrap();
}

/// Two commands that need the same packages at the same time.
async fn same_installation_runs_once(place: TestSandbox) {
    let index = Index::start("twice");
    let data = std::env::temp_dir().join(format!("ck-env-twice-{}-{}", place.kind, std::process::id()));
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(cellkeep::config::Paths::from_environment().kernels(), data.join("kernels")).unwrap();
    let config = format!("[serve.egress]\npython-index = \"{}\"\nprivate = [\"{}\"]\n", index.url(), index.address());
    fs::write(data.join("cellkeep.toml"), config).unwrap();
    let start = || {
        let code = "import slow; print(slow.VERSION)";
        Cli::new(&["exec", "-k", KERNEL, "--packages", "slow", "-c", code])
            .env("CELLKEEP_DATA", data.to_str().unwrap())
            .env("CELLKEEP_SANDBOX", &place.kind.to_string())
            .start()
    };
    let (one, other) = (start(), start());
    while index.requests() == 0 {
        tokio::time::sleep(PACE).await;
    }
    fs::write(index.folder.join("go"), "").unwrap();
    for command in [one, other] {
        let output = tokio::task::spawn_blocking(|| command.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1.0\n", "{}", String::from_utf8_lossy(&output.stderr));
    }
    let downloads = index.log().iter().filter(|line| line.starts_with("GET /files/slow")).count();
    assert!(downloads <= 2, "resolved once and installed once: {:?}", index.log());
    fs::remove_dir_all(data).unwrap();
}

async fn r_packages_are_installed(place: TestSandbox) {
    let index = Index::start("r");
    let (address, url) = (index.address(), format!("http://{}/cran", index.address()));
    // The first repository has nothing.
    let repositories = format!("http://{address}/empty,{url}");
    let options = ["--allow-network=packages", "--cran-mirror", &repositories, "--egress-private", &address];
    let server = Server::start("env-r", place, &options).await;
    let client = server.client();
    let session = client.create(json!({"kernel": "r", "packages": ["rflock"]})).await;
    assert_eq!(session.ok("cat(rflock::rflock_says(), rpelican::rpelican_says())").await, "rflock 1.0 rpelican 2.0");
    let described = client.get(&session.path("")).await.is(200);
    let environment = client.get(&format!("/v1/environments/{}", described["environment"].as_str().unwrap())).await.is(200);
    assert_eq!(installed(&environment), [("rpelican", "2.0"), ("rflock", "1.0")], "{environment}");
    let older = client.create(json!({"kernel": "r", "packages": ["rpelican==1.0"], "network": "packages"})).await;
    assert_eq!(older.ok("cat(rpelican::rpelican_says())").await, "rpelican 1.0");
    older.ok("install.packages('rflock', quiet = TRUE)").await;
    assert_eq!(older.ok("cat(rflock::rflock_says())").await, "rflock 1.0");
    let missing = client.post("/v1/sessions", json!({"kernel": "r", "packages": ["rnothing"]})).await.is(422);
    assert!(missing["detail"].as_str().unwrap().contains("there is no package rnothing"), "{missing}");
    server.end().await;
}

//! What a cell's record says of the files that it has changed, and the files that it leaves as artifacts.

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server, text_of};
use crate::support::TestSandbox;

in_every_sandbox!(
    changes_of_a_cell_are_in_its_record,
    every_kernel_reports_its_files,
    changes_after_the_end_belong_to_the_last_cell,
    uploads_are_no_changes_of_a_cell,
    requested_files_become_artifacts,
    many_changes_are_told_in_part,
    dead_kernel_leaves_its_files,
    hostile_names_and_links_are_harmless,
);

async fn session(place: TestSandbox, kernel: &str) -> (Server, RemoteSession) {
    let server = Server::start("changed-files", place, &[]).await;
    let session = server.client().create(json!({"kernel": kernel})).await;
    (server, session)
}

/// Path and kind of each change in a cell.
fn changes(cell: &Value) -> Vec<(&str, &str)> {
    let files = cell["files"].as_array().unwrap_or_else(|| panic!("no files: {cell}"));
    files.iter().map(|file| (file["path"].as_str().unwrap(), file["change"].as_str().unwrap())).collect()
}

async fn changes_of_a_cell_are_in_its_record(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    let cell = session.run("echo one > a.csv; mkdir -p deep/er; echo two > deep/er/b; echo x > gone; rm gone").await;
    assert_eq!(changes(&cell), [("a.csv", "created"), ("deep/er/b", "created")]);
    assert_eq!((&cell["files"][0]["size"], &cell["files"][0]["media_type"]), (&json!(4), &json!("text/csv")), "{cell}");
    assert_eq!(cell["files_truncated"], false);
    let cell = session.run("echo more >> a.csv; touch -c deep; cat deep/er/b; chmod 600 deep/er/b").await;
    assert_eq!(changes(&cell), [("a.csv", "modified")]);
    let cell = session.run("mv deep moved; echo atomic > tmp; mv tmp a.csv").await;
    assert_eq!(changes(&cell), [("a.csv", "modified"), ("deep/er/b", "deleted"), ("moved/er/b", "created")]);
    let cell = session.run("echo new > moved/er/c; rm -r moved/er/b; cat a.csv").await;
    assert_eq!(changes(&cell), [("moved/er/b", "deleted"), ("moved/er/c", "created")]);
    assert_eq!(changes(&session.run("echo nothing").await), []);
    // The same by events, in order.
    let mut events = session.events(0).await;
    let event = events.next_of("files.changed").await;
    let expected = json!({"path": "a.csv", "change": "created", "size": 4, "media_type": "text/csv", "artifact": false});
    assert_eq!(event["files"][0], expected);
    let fields = json!({"source": "printf hi > h", "hash_files": true});
    let hashed = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
    let hash = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4";
    assert_eq!(hashed["files"][0]["sha256"], hash);
}

async fn every_kernel_reports_its_files(place: TestSandbox) {
    for (kernel, code) in [
        (
            "python",
            "import pandas\npandas.DataFrame({'a': [1]}).to_csv('t.csv')\nimport subprocess\nsubprocess.run(['touch', 'child'])",
        ),
        ("r", "write.csv(data.frame(a = 1), 't.csv'); system('touch child')"),
        ("deno", "Deno.writeTextFileSync('t.csv', 'a'); await new Deno.Command('touch', {args: ['child']}).output(); 1"),
    ] {
        let (_server, session) = session(place, kernel).await;
        assert_eq!(changes(&session.run(code).await), [("child", "created"), ("t.csv", "created")], "{kernel}");
    }
}

async fn changes_after_the_end_belong_to_the_last_cell(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    let mut events = session.events(0).await;
    session.run("(while [ ! -e go ]; do sleep 0.05; done; echo late > late.txt) & echo begun").await;
    session.client.put(&session.path("/files/go"), "").await.is(204);
    let event = events.next_of("files.changed").await;
    assert_eq!(event["files"][0]["path"], "late.txt", "{event}");
    let cell = session.client.get(&session.path(&format!("/cells/{}", event["cell"].as_str().unwrap()))).await.is(200);
    assert_eq!((changes(&cell), text_of(&cell, "stdout").as_str()), (vec![("late.txt", "created")], "begun\n"));
    // The next cell does not have it again.
    assert_eq!(changes(&session.run("true").await), []);
}

async fn uploads_are_no_changes_of_a_cell(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    session.client.put(&session.path("/files/data/in.csv"), "a,b").await.is(204);
    assert_eq!(changes(&session.run("cat data/in.csv").await), []);
    assert_eq!(changes(&session.run("echo c >> data/in.csv").await), [("data/in.csv", "modified")]);
    session.client.delete(&session.path("/files/data/in.csv")).await.is(204);
    assert_eq!(changes(&session.run("ls data; echo new > data/in.csv").await), [("data/in.csv", "created")]);
}

async fn requested_files_become_artifacts(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    let code = "mkdir -p output/deep; echo a,b > top.csv; echo x > output/deep/any; echo y > other.txt; echo z > gone.csv
        rm gone.csv; head -c 40000000 /dev/zero > large.csv; mkfifo pipe.csv; ln -s /etc/passwd link.csv";
    let fields = json!({"source": code, "artifacts": ["*.csv", "output/"]});
    let cell = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
    let by_path = |path: &str| cell["files"].as_array().unwrap().iter().find(|file| file["path"] == path).unwrap().clone();
    assert_eq!(changes(&cell).len(), 4, "{cell}");
    let top = by_path("top.csv");
    assert_eq!((&top["artifact"], &by_path("other.txt")["artifact"]), (&json!(true), &json!(false)), "{cell}");
    assert!(by_path("large.csv")["not_kept"].as_str().unwrap().contains("32 MB"), "{cell}");
    let artifact = session.client.get(&format!("/v1/artifacts/{}", top["sha256"].as_str().unwrap())).await;
    assert_eq!((artifact.header("content-type"), artifact.text().as_str()), ("text/csv", "a,b\n"));
    let list = session.client.get(&session.path("/artifacts")).await.is(200);
    let names: Vec<&str> = list["artifacts"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["output/deep/any", "top.csv"]);
    // The cell runs again with the options of the last time, and keeps the file's latest state.
    session.client.put(&session.path("/files/top.csv"), "old").await.is(204);
    let path = session.path(&format!("/cells/{}/run?wait=60", cell["id"].as_str().unwrap()));
    let again = session.client.post(&path, json!({})).await.is(200);
    assert_eq!(again["files"].as_array().unwrap().iter().filter(|file| file["artifact"] == true).count(), 2, "{again}");
    for artifacts in [json!(["../x"]), json!(["/etc/*"]), json!([""]), json!(vec!["a"; 33]), json!("*.csv")] {
        let refused = session.client.post(&session.path("/cells"), json!({"source": "true", "artifacts": artifacts})).await;
        assert_eq!(refused.is(422)["field"].as_str().unwrap().split('.').next(), Some("artifacts"));
    }
}

async fn many_changes_are_told_in_part(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    let code = "mkdir many .hidden; for i in {1..30000}; do echo > .hidden/$i; done; touch many/{1..20} last .z.csv";
    let fields = json!({"source": code, "artifacts": [".z.csv"]});
    let cell = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
    let paths = changes(&cell);
    assert!(paths.len() == 1000 && cell["files_truncated"] == true, "{}", paths.len());
    assert!(paths.contains(&("last", "created")) && paths.contains(&("many/20", "created")), "visible files come first");
    let kept = cell["files"].as_array().unwrap().iter().find(|file| file["artifact"] == true);
    assert_eq!(kept.map(|file| &file["path"]), Some(&json!(".z.csv")), "an artifact is named in any case");
    let cell = session.run("echo x > many/7").await;
    assert_eq!((changes(&cell), &cell["files_truncated"]), (vec![("many/7", "modified")], &json!(false)));
    assert_eq!(session.run("rm -r .hidden").await["status"], "ok");
    assert_eq!(changes(&session.run("rm last").await), [("last", "deleted")]);
}

async fn dead_kernel_leaves_its_files(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    let fields = json!({"source": "import os; open('left.csv', 'w').write('x'); os._exit(1)", "artifacts": ["*.csv"]});
    let cell = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
    assert_eq!((&cell["status"], changes(&cell)), (&json!("kernel_died"), vec![("left.csv", "created")]), "{cell}");
    assert_eq!(cell["files"][0]["artifact"], true);
}

async fn hostile_names_and_links_are_harmless(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    let code = "import os
os.symlink('/etc', 'out'); os.symlink('..', 'up'); os.symlink('loop', 'loop')
open(b'\\xff\\xfe', 'w').close(); open('new\\nline', 'w').close(); open('\"quotes\" <b>', 'w').close()
deep = '.'
for _ in range(60):
    deep += '/' + 'd' * 60
    os.mkdir(deep)
open(deep + '/f', 'w').close()
os.mkdir('swapped'); open('swapped/f.csv', 'w').close(); os.rename('swapped', 'was'); os.symlink('/etc', 'swapped')";
    let fields = json!({"source": code, "artifacts": ["*.csv", "out/", "up/"], "hash_files": true});
    let cell = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
    assert_eq!(cell["status"], "ok", "{cell}");
    let paths: Vec<&str> = changes(&cell).into_iter().map(|(path, _)| path).filter(|path| path.len() < 100).collect();
    assert_eq!(paths, ["\"quotes\" <b>", "new\nline", "was/f.csv"], "{cell}");
    assert_eq!(changes(&cell).len(), 4);
}

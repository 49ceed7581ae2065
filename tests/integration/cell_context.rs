//! Environment variables and the working folder of one execution, and forms of a cell: for models, with references, as events.

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::serve::{next_message, socket};
use crate::server::{EventStream, RemoteSession, Server, printed, text_of};
use crate::support::TestSandbox;

in_every_sandbox!(
    environment_and_folder_are_those_of_one_cell,
    bad_environment_and_folder_are_refused,
    model_sees_short_plain_text,
    events_of_one_cell_continue_after_a_cut,
    socket_runs_with_the_same_options,
    long_text_is_referred_to,
);

async fn session(place: TestSandbox, kernel: &str) -> (Server, RemoteSession) {
    let server = Server::start("cell-context", place, &[]).await;
    let session = server.client().create(json!({"kernel": kernel, "env": {"KEPT": "of the session"}})).await;
    (server, session)
}

async fn run(session: &RemoteSession, fields: Value) -> Value {
    session.client.post(&session.path("/cells?wait=120"), fields).await.is(201)
}

async fn environment_and_folder_are_those_of_one_cell(place: TestSandbox) {
    let show = [
        (
            "python",
            "import os\nprint(os.environ.get('A', 'none'), os.environ.get('KEPT'), os.getcwd())",
            "raise ValueError",
            "os.environ['KEPT'] = 'set by code'",
            "os.environ['KEPT'] = 'of the session'",
        ),
        (
            "r",
            "cat(Sys.getenv('A', 'none'), Sys.getenv('KEPT'), getwd(), '\\n')",
            "stop('x')",
            "Sys.setenv(KEPT = 'set by code')",
            "Sys.setenv(KEPT = 'of the session')",
        ),
        (
            "bash",
            "echo \"${A-none} $KEPT $PWD\"; bash -c 'echo $A' >/dev/null",
            "false",
            "export KEPT='set by code'",
            "export KEPT='of the session'",
        ),
        (
            "deno",
            "console.log(Deno.env.get('A') ?? 'none', Deno.env.get('KEPT'), Deno.cwd())",
            "throw new Error('x')",
            "Deno.env.set('KEPT', 'set by code')",
            "Deno.env.set('KEPT', 'of the session')",
        ),
    ];
    for (kernel, show, fail, set, unset) in show {
        let (_server, session) = session(place, kernel).await;
        let line = |cell: &Value| printed(cell).trim_end().to_owned();
        assert_eq!(line(&session.run(show).await), "none of the session /work", "{kernel}");
        let env = json!({"A": "it's \"new\"\nline", "KEPT": "changed"});
        let cell = run(&session, json!({"source": show, "env": env, "cwd": "made/here"})).await;
        assert_eq!(line(&cell), "it's \"new\"\nline changed /work/made/here", "{kernel}: {cell}");
        assert_eq!(line(&session.run(show).await), "none of the session /work", "{kernel}");
        let cell = run(&session, json!({"source": fail, "env": env, "cwd": "made"})).await;
        assert_eq!(cell["status"], "error", "{kernel}: {cell}");
        assert_eq!(line(&session.run(show).await), "none of the session /work", "{kernel}, after an error");
        let cell = run(&session, json!({"source": show, "env": {"A": "alone"}})).await;
        assert_eq!(line(&cell), "alone of the session /work", "{kernel}");
        session.run(set).await;
        assert_eq!(line(&session.run(show).await), "none set by code /work", "{kernel}: what code sets stays");
        session.run(unset).await;
        let cell = run(&session, json!({"source": show, "cwd": ""})).await;
        assert_eq!(line(&cell), "none of the session /work", "{kernel}");
    }
}

async fn bad_environment_and_folder_are_refused(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    for (fields, field) in [
        (json!({"cwd": "/etc"}), "cwd"),
        (json!({"cwd": "a/../.."}), "cwd"),
        (json!({"cwd": "a\0"}), "cwd"),
        (json!({"env": {"": "x"}}), "env"),
        (json!({"env": {"A=B": "x"}}), "env"),
        (json!({"env": {"A": "x\0"}}), "env"),
    ] {
        let mut fields = fields;
        fields["source"] = json!("true");
        let refused = session.client.post(&session.path("/cells"), fields.clone()).await.is(422);
        assert_eq!(refused["field"], field, "{fields}");
    }
    // A file is where the folder should be: the code does not run elsewhere.
    session.run("touch taken").await;
    let cell = run(&session, json!({"source": "echo ran", "cwd": "taken/below"})).await;
    assert_eq!((&cell["status"], text_of(&cell, "stdout").as_str()), (&json!("error"), ""), "{cell}");
    assert_eq!(printed(&session.run("pwd").await), "/work\n");
    // An interrupted cell has the status of an interrupt, and its environment is restored.
    let fields = json!({"source": "sleep 100", "env": {"A": "b"}, "timeout_seconds": 0.5});
    let cell = run(&session, fields).await;
    assert_eq!((&cell["status"], &cell["error"]["state_lost"]), (&json!("timeout"), &json!(false)), "{cell}");
    session.begin("interrupted", "sleep 100").await;
    session.cell_until("interrupted", |cell| cell["state"] == "running").await;
    session.client.post(&session.path("/interrupt"), json!({})).await;
    assert_eq!(session.finished("interrupted").await["status"], "interrupted");
    assert_eq!(printed(&session.run("echo [$A]").await), "[]\n");
}

async fn model_sees_short_plain_text(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    let code = "import pandas, sys
import matplotlib.pyplot as plt
print('\\x1b[31mred\\x1b[0m'); print('careful', file=sys.stderr)
for i in range(100000): print('line', i)
plt.plot([1]); plt.show()
open('out.csv', 'w').write('x')
display(pandas.DataFrame({'a|b': [1, 2]}))
pandas.DataFrame({'a': [1]})['missing']";
    let path = session.path("/cells?wait=120&view=model");
    let cell = session.client.post(&path, json!({"source": code})).await.is(201);
    let text = cell["text"].as_str().unwrap();
    assert!(text.starts_with("red\n[stderr]\ncareful\nline 0\n"), "{text}");
    assert!(text.contains("line 99999\n") && text.contains("bytes are left out here"), "{text}");
    assert!(text.contains("| 0 | 1 |") && text.contains("a\\|b"), "{text}");
    assert!(
        text.contains("KeyError: 'missing'") && text.contains("Cell In[") && text.contains("frames of libraries are"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}') && text.len() < 17_000, "{}", text.len());
    assert!(cell["omitted_bytes"].as_u64().unwrap() > 900_000, "{cell}");
    assert_eq!((&cell["status"], cell["images"].as_array().unwrap().len()), (&json!("error"), 1), "{cell}");
    assert_eq!(cell["files"][0]["path"], "out.csv");
    let image = session.client.get(&format!("/v1/artifacts/{}", cell["images"][0]["sha256"].as_str().unwrap())).await;
    assert_eq!((image.status, image.header("content-type")), (200, "image/png"));
    let id = cell["id"].as_str().unwrap();
    let small = session.path(&format!("/cells/{id}?view=model&max_bytes=2000&max_output_bytes=500"));
    let small = session.client.get(&small).await.is(200);
    assert!(small["text"].as_str().unwrap().len() < 2200, "{small}");
    for query in ["view=human", "max_bytes=5", "view=model&max_bytes=0", "view=model&max_output_bytes=2000000"] {
        session.client.get(&session.path(&format!("/cells/{id}?{query}"))).await.is(400);
    }
}

async fn events_of_one_cell_continue_after_a_cut(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    session.begin("other", "echo other").await;
    session.begin("long", "for i in {1..20}; do echo $i; sleep 0.05; done").await;
    let path = |after: &str| session.path(&format!("/events?cell=long{after}"));
    let events = all(session.client.stream(&path("")).await.unwrap()).await;
    assert!(events.iter().all(|event| event["cell"] == "long"), "{events:?}");
    let ends = (events[0]["type"].as_str(), events[events.len() - 1]["type"].as_str());
    assert_eq!(ends, (Some("cell.queued"), Some("cell.finished")));
    // As after a cut in the middle; the cell has ended meanwhile.
    let middle = events[events.len() / 2]["seq"].as_u64().unwrap();
    let rest = all(session.client.stream(&path(&format!("&after={middle}"))).await.unwrap()).await;
    assert_eq!(rest.last(), events.last());
    assert!(rest.iter().all(|event| event["seq"].as_u64().unwrap() > middle));
    let last = events[events.len() - 1]["seq"].as_u64().unwrap();
    assert_eq!(session.client.get(&path(&format!("&after={last}"))).await.status, 204);
    session.client.get(&session.path("/events?cell=unknown")).await.is(404);
}

async fn socket_runs_with_the_same_options(place: TestSandbox) {
    let (_server, session) = session(place, "bash").await;
    let mut socket = socket(&session, "").await;
    let command = json!({"id": 1, "op": "run", "cell": "c", "source": "echo $A > here.csv; pwd", "env": {"A": "b"}, "cwd": "made",
        "artifacts": ["*.csv"], "hash_files": true, "timeout_seconds": 60});
    socket.send(Message::text(command.to_string())).await.unwrap();
    let reply = next_message(&mut socket, |message| message["type"] == "reply").await;
    assert_eq!((&reply["ok"], &reply["cell"]), (&json!(true), &json!("c")), "{reply}");
    let cell = session.finished("c").await;
    let file = &cell["files"][0];
    assert_eq!((printed(&cell).as_str(), &file["path"]), ("/work/made\n", &json!("made/here.csv")), "{cell}");
    assert_eq!((&file["artifact"], &file["size"]), (&json!(true), &json!(2)), "{cell}");
    let command = json!({"id": 2, "op": "run", "source": "pwd", "cwd": "../x"});
    socket.send(Message::text(command.to_string())).await.unwrap();
    let refused = next_message(&mut socket, |message| message["id"] == 2).await;
    assert_eq!((&refused["error"]["code"], &refused["error"]["field"]), (&json!("bad_cwd"), &json!("cwd")), "{refused}");
}

async fn long_text_is_referred_to(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    let code = "from IPython.display import HTML\nprint('é' * 50000)\nprint('short')\nHTML('<b>' + 'x' * 70000 + '</b>')";
    let path = session.path("/cells?wait=60&outputs=refs");
    let cell = session.client.post(&path, json!({"source": code, "id": "long"})).await.is(201);
    let text = &cell["outputs"][0]["text"];
    assert_eq!((&text["bytes"], &text["utf16"]), (&json!(100_007), &json!(50_007)), "{cell}");
    assert_eq!(text["start"], "é".repeat(512));
    let data = &cell["outputs"][1]["data"];
    assert_eq!((&data["text/html"]["bytes"], &data["text/plain"].is_string()), (&json!(70_007), &true), "{data}");
    let listed = session.client.get(&session.path("/cells?outputs=refs")).await.is(200);
    assert_eq!(listed["cells"][0]["outputs"], cell["outputs"]);
    // The rest is read in parts.
    let part = async |query: &str| session.client.get(&session.path(&format!("/cells/long/outputs/{query}"))).await.is(200);
    assert_eq!(part("0/text?from=99998").await["text"], "é\nshort\n");
    assert_eq!(part("1/text?mime=text/html&from=70000").await["text"], "xxx</b>");
    session.client.get(&session.path("/cells/long/outputs/1/text?mime=a/b")).await.problem(404, "no_output");
    // In full, nothing is missing.
    let whole = session.client.get(&session.path("/cells/long")).await.is(200);
    assert_eq!(text_of(&whole, "stdout"), format!("{}\nshort\n", "é".repeat(50_000)));
}

async fn all(mut stream: EventStream) -> Vec<Value> {
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        events.push(event);
    }
    events
}

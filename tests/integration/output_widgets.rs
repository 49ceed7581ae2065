//! Output captured by an Output widget is shown in the cell that displays the widget, for all subscribers of a session.

use std::path::Path;

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server};
use crate::support::{TestSandbox, skip};

/// The text of each output of a cell: of a stream, or the plain text of a display.
fn texts(outputs: &Value) -> Vec<String> {
    let text = |output: &Value| {
        let text = if output["output_type"] == "stream" { &output["text"] } else { &output["data"]["text/plain"] };
        text.as_str()
            .map_or_else(|| text.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect(), str::to_owned)
    };
    outputs.as_array().unwrap().iter().map(text).collect()
}

async fn run(session: &RemoteSession, id: &str, source: &str) -> Value {
    session.begin(id, source).await;
    let cell = session.finished(id).await;
    assert_eq!(cell["status"], "ok", "{cell}");
    cell
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_widgets_show_captured_output() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/notebook-sources");
    let entries = std::fs::read_dir(&sources).into_iter().flatten().flatten().map(|entry| entry.path());
    let Some(wheel) = entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl")) else {
        return skip("no ipywidgets; run: make setup-test");
    };
    let mut server = Server::start("output-widgets", TestSandbox::process(), &[]).await;
    let session = server.client().create(json!({"kernel": "python"})).await;
    server.client().put(&session.path("/files/widgets.whl"), std::fs::read(wheel).unwrap()).await.is(204);
    let make = "import sys\nsys.path.insert(0, '/work/widgets.whl')\nfrom ipywidgets import Output\nout = Output()\nout";
    assert_eq!(texts(&run(&session, "shows", make).await["outputs"]), ["Output()"]);
    let cell = run(&session, "prints", "print('own')\nwith out:\n    print('caught')\n    1/0\nprint('and on')").await;
    assert_eq!(texts(&cell["outputs"]), ["own\nand on\n"]);
    let cell = session.cell("shows").await;
    assert_eq!(texts(&json!(cell["outputs"].as_array().unwrap()[..2])), ["Output()", "caught\n"]);
    assert_eq!(cell["outputs"][2]["ename"], "ZeroDivisionError");
    // An output that is updated repeatedly replaces the previous one, also after a restart of the server.
    let again = "import time\nfor i in range(3):\n    with out:\n        from IPython.display import clear_output\n        clear_output(wait=True)\n        print('state', i)\n    time.sleep(0.5)";
    session.begin("again", again).await;
    session.cell_until("again", |cell| cell["state"] == "running").await;
    server.kill().await;
    server.start_again().await;
    assert_eq!(texts(&session.finished("again").await["outputs"]), [""; 0]);
    let cell = session.cell("shows").await;
    assert_eq!(texts(&json!(cell["outputs"].as_array().unwrap()[..2])), ["Output()", "state 2\n"]);
    // The notebook has no empty outputs.
    let file = server.client().get(&session.path("/notebook")).await.is(200);
    assert_eq!(texts(&file["cells"][0]["outputs"]), ["Output()", "state 2\n"]);
    assert_eq!(texts(&file["cells"][1]["outputs"]), ["own\nand on\n"]);
    session.delete().await;
    server.end().await;
}

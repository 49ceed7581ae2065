//! What kernels send, arrives: every language, direct writes, displays, errors.

use cellkeep::session::{EventBody, ExecutionStatus};

use crate::support::TestSandbox;

in_every_sandbox!(every_language, writes_past_the_protocol, output_of_no_run, displays);

async fn every_language(place: TestSandbox) {
    for (kernel, assign, show, fail) in [
        ("python", "x = 20", "print(x + 1); x * 2", "1/0"),
        ("r", "x <- 20", "cat(x + 1, '\\n'); x * 2", "stop('no')"),
        ("deno", "let x: number = 20", "console.log(x + 1); x * 2", "throw new Error('no')"),
        ("bash", "x=20", "echo $((x + 1)); echo $((x * 2))", "false"),
    ] {
        let living = place.session(kernel).await;
        living.ok(assign).await;
        let text = living.ok(show).await;
        assert!(text.contains("21") && text.contains("40"), "{kernel}: {text}");
        let ran = living.run(fail).await;
        assert_eq!(ran.status(), ExecutionStatus::Error, "{kernel}: {ran:?}");
        assert!(living.ok(show).await.contains("21"), "{kernel} goes on after an error");
        living.end().await;
    }
}

async fn writes_past_the_protocol(place: TestSandbox) {
    let living = place.session("python").await;
    let text =
        living.ok("import os, subprocess\nos.write(1, b'from fd 1\\n')\nsubprocess.run(['echo', 'from a child'])").await;
    let times = |what: &str| text.matches(what).count();
    assert_eq!((times("from fd 1"), times("from a child\n")), (1, 1), "{text}");
    living.end().await;
    let living = place.session("r").await;
    let text = living.ok("system('echo from a child of R')").await;
    assert!(text.contains("from a child of R"), "{text}");
    living.end().await;
}

async fn output_of_no_run(place: TestSandbox) {
    let living = place.session("python").await;
    // ipykernel takes over descriptors 1 and 2; this is what it has kept of the process's own stdout.
    let own = "import os, threading\nown = sys.stdout._original_stdstream_copy\n";
    let text = living.ok(&format!("import sys\n{own}os.write(own, ('x' + 'ü€' * 30000).encode());")).await;
    assert!(text.contains(&format!("x{}", "ü€".repeat(30_000))), "whole characters: {}", text.contains('\u{fffd}'));
    living.ok("threading.Timer(0.3, lambda: os.write(own, b'nobody asked')).start()").await;
    let mut events = living.events.lock().await;
    let late = async {
        loop {
            if let EventBody::Message { message, .. } = events.recv().await.expect("the session lives").body {
                return message.content_value();
            }
        }
    };
    let heard = tokio::time::timeout(std::time::Duration::from_secs(10), late).await.expect("it comes");
    assert_eq!((heard["name"].as_str(), heard["text"].as_str()), (Some("stdout"), Some("nobody asked")));
    drop(events);
    living.end().await;
}

async fn displays(place: TestSandbox) {
    let living = place.session("python").await;
    let ran = living
        .run("from IPython.display import display, HTML, clear_output\nimport matplotlib.pyplot as plt\nprint('gone')\nclear_output()\nh = display('one', display_id=True)\nplt.plot([1, 2]); plt.show()\nh.update('two')\nfor i in range(3): print(i, end='\\r')\nHTML('<b>x</b>')")
        .await;
    assert_eq!(ran.status(), ExecutionStatus::Ok, "{}", ran.error());
    let kinds: Vec<&str> = ran.outputs.iter().map(|output| output["output_type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["display_data", "display_data", "stream", "execute_result"], "{:?}", ran.outputs);
    assert_eq!(ran.outputs[0]["data"]["text/plain"], "'two'");
    assert!(ran.outputs[1]["data"]["image/png"].as_str().unwrap().len() > 1000);
    assert_eq!(ran.outputs[3]["data"]["text/html"], "<b>x</b>");
    living.end().await;
}

#[test]
fn output_widgets_catch_outputs_and_tell_the_kernel() {
    use crate::cli::{Cli, scratch};
    let folder = scratch("output-widget");
    let source = "from comm import create_comm
seen = []
widget = create_comm(target_name='jupyter.widget', data={'state': {
    '_model_module': '@jupyter-widgets/output', '_model_name': 'OutputModel', '_model_module_version': '1', 'outputs': [], 'msg_id': ''}})
widget.on_msg(lambda message: seen.append(message['content']['data']['state']['outputs']))
run = get_ipython().kernel.get_parent()['header']['msg_id']
print('before', flush=True)
widget.send({'method': 'update', 'state': {'msg_id': run}})
print('caught', flush=True); display('shown')
widget.send({'method': 'update', 'state': {'msg_id': ''}})
print('after')";
    let cells: Vec<_> = [source, "print(seen)", "len?"]
        .map(|source| serde_json::json!({"cell_type": "code", "id": format!("c{}", source.len()), "metadata": {}, "execution_count": null, "outputs": [], "source": source}))
        .into();
    let notebook = serde_json::json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells});
    std::fs::write(folder.join("nb.ipynb"), notebook.to_string()).unwrap();
    for (compat, pages) in [(&[][..], 1), (&["--compat", "nbclient"], 0)] {
        let ran = Cli::new(&["run"]).path(&folder.join("nb.ipynb")).args(&["--sandbox", "process"]).args(compat).run();
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let bytes = std::fs::read(folder.join("nb.out.ipynb")).unwrap();
        let done: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let printed = cellkeep::output::text_of(done["cells"][0]["outputs"].as_array().unwrap());
        assert_eq!(printed, "before\nafter\n");
        let told = cellkeep::output::text_of(done["cells"][1]["outputs"].as_array().unwrap());
        assert!(told.contains("'caught\\n'") && told.contains("shown"), "{told}");
        let state = &done["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"];
        let model = state.as_object().unwrap().values().next().unwrap();
        assert_eq!(model["model_name"], "OutputModel");
        assert_eq!(model["state"]["outputs"].as_array().unwrap().len(), 2);
        assert_eq!(done["cells"][2]["outputs"].as_array().unwrap().len(), pages, "help is shown below the cell");
        let named = if pages == 1 { serde_json::json!("python3") } else { serde_json::Value::Null };
        assert_eq!(done["metadata"]["kernelspec"]["name"], named, "nbclient names no kernel");
    }
}

//! Conversations with a model in the cells of a session, with failing endpoints, killed servers and interfering people.

use serde_json::{Value, json};

use crate::server::{Client, RemoteSession, Server};
use crate::support::TestSandbox;
use crate::support::model::{Model, Say};

const PLOT: &str = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('\\x1b[31mdrawn\\x1b[0m')";

async fn serve(name: &str, model: &Model) -> Server {
    Server::start(name, TestSandbox::process(), &["--model-url", &model.url(), "--model", "tiny"]).await
}

/// Sends a message and waits for the whole answer. Returns the cell of the message.
async fn say(held: &RemoteSession, text: &str) -> Value {
    let said = held.client.post(&held.path("/chat?wait=120"), json!({"text": text})).await.is(202);
    assert_eq!(said["state"], "idle", "{said}");
    said["cell"].clone()
}

/// The cells as (type, role, status or state, source).
async fn cells(held: &RemoteSession) -> Vec<(String, String, String, String)> {
    let listed = held.client.get(&held.path("/cells?outputs=none")).await.is(200);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = listed["cells"].as_array().unwrap().iter().map(|cell| {
        let mark = &cell["metadata"]["cellkeep"];
        let state = if cell["cell_type"] == "code" { &cell["status"] } else { &mark["state"] };
        (text(&cell["cell_type"]), text(&mark["role"]), text(state), text(&cell["source"]))
    });
    all.collect()
}

fn is(cell: &(String, String, String, String), kind: &str, role: &str, state: &str, source: &str) {
    assert_eq!((cell.0.as_str(), cell.1.as_str(), cell.2.as_str(), cell.3.as_str()), (kind, role, state, source));
}

async fn session(client: &Client) -> RemoteSession {
    client.create(json!({"kernel": "python"})).await
}

/// The model runs code and sees its output and its plot as an image, and the whole conversation is one notebook.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_answers_and_runs_cells() {
    let model = Model::start([Say::Run("I draw it.", PLOT), Say::Text("It rises **steadily**.")]).await;
    let server = serve("chat", &model).await;
    let client = server.client();
    assert_eq!(client.get("/v1/model").await.is(200), json!({"name": "tiny"}));
    let held = session(&client).await;
    held.run("mine = 41").await;
    let message = say(&held, "Draw a line").await;
    assert_eq!(message["metadata"]["cellkeep"], json!({"role": "user", "state": "done"}));
    let all = cells(&held).await;
    is(&all[1], "markdown", "user", "done", "Draw a line");
    is(&all[2], "markdown", "assistant", "done", "I draw it.");
    is(&all[3], "code", "assistant", "ok", PLOT);
    is(&all[4], "markdown", "assistant", "done", "It rises **steadily**.");
    assert_eq!(all.len(), 5);
    let requests = model.requests();
    assert_eq!((requests.len(), &requests[0]["model"], &requests[0]["stream"]), (2, &json!("tiny"), &json!(true)));
    assert_eq!(requests[0]["tools"][0]["function"]["name"], "run_code");
    let first = requests[0]["messages"].as_array().unwrap();
    let text = |message: &Value| message["content"].as_str().unwrap_or_default().to_owned();
    assert!(text(&first[1]).contains("mine = 41"), "the model sees cells that a person ran: {}", first[1]);
    assert_eq!(first[2], json!({"role": "user", "content": "Draw a line"}));
    let second = requests[1]["messages"].as_array().unwrap();
    assert_eq!(second[3]["tool_calls"][0]["function"]["name"], "run_code");
    let result = text(&second[4]);
    assert!(second[4]["tool_call_id"] == second[3]["tool_calls"][0]["id"] && result.contains("drawn"), "{}", second[4]);
    assert!(
        !result.contains('\u{1b}') && !result.contains("iVBOR") && result.contains("[a picture, image/png, "),
        "{result}"
    );
    let picture = second[5]["content"][1]["image_url"]["url"].as_str().unwrap();
    assert!(picture.starts_with("data:image/png;base64,iVBOR"), "{}", &picture[..40]);
    // The conversation continues, and an exported notebook has all of it.
    model.then([Say::Whole("You are welcome.")]);
    held.run("for n in range(300_000): print('line', n)").await;
    say(&held, "Thanks").await;
    let third = model.requests()[2].to_string();
    assert!(
        third.contains("line 0\\n") && third.contains("line 299999") && third.contains("left out"),
        "both ends of a flood"
    );
    // The output came with many events, and the model sees more than the last of them.
    assert!(third.contains("line 299850\\nline 299851\\n"), "the end of a flood is whole");
    assert!(third.len() < 400_000, "{} bytes", third.len());
    let notebook = client.get(&held.path("/notebook?to=markdown")).await;
    notebook.is(200);
    let markdown = String::from_utf8_lossy(&notebook.body).into_owned();
    for part in ["Draw a line", "I draw it.", "plt.plot", "**steadily**", "Thanks", "You are welcome."] {
        assert!(markdown.contains(part), "{part}: {markdown}");
    }
    server.end().await;
}

/// Each failure is reported in place of the answer, and the next message can be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_failures_are_reported() {
    let model = Model::start([]).await;
    let mut server = serve("chat-fails", &model).await;
    server.env.push(("CELLKEEP_MODEL_KEY", "sk-hidden".to_owned()));
    server.stop().await;
    server.start_again().await;
    let client = server.client();
    let held = session(&client).await;
    let failures = [
        (Say::Refuse(401, "{\"error\": {\"message\": \"bad key\"}}"), "model_key_refused", "CELLKEEP_MODEL_KEY"),
        (Say::Refuse(429, "{\"error\": {\"message\": \"quota\"}}"), "model_busy", "in 9 s"),
        (Say::Refuse(404, "{\"error\": \"no model tiny\"}"), "model_not_found", "no model tiny"),
        (Say::Refuse(400, "{\"error\": \"tiny does not support tools\"}"), "model_without_tools", "--model"),
        (Say::Refuse(503, "<html>over\u{7}loaded"), "model_failed", "over loaded"),
        (Say::Cut("Half a"), "model_bad_stream", "cut off"),
        (Say::Raw("data: {\"choices\": 7}\n\ndata: nonsense\n\n"), "model_bad_stream", "not JSON"),
        (Say::Raw("data: {\"error\": {\"message\": \"it burns\"}}\n\n"), "model_failed", "it burns"),
        (Say::Text(""), "model_empty", "empty"),
    ];
    for (failure, code, words) in failures {
        model.then([failure]);
        let message = say(&held, "Hello?").await;
        let mark = &message["metadata"]["cellkeep"];
        assert_eq!((&mark["state"], &mark["error"]["code"]), (&json!("failed"), &json!(code)));
        assert!(mark["error"]["detail"].as_str().unwrap().contains(words), "{mark}");
    }
    let cut = cells(&held).await.into_iter().find(|cell| cell.1 == "assistant").unwrap();
    is(&cut, "markdown", "assistant", "failed", "Half a");
    // An unknown tool and invalid arguments are reported to the model, which continues.
    model.then([Say::Call("rm_rf", "{}"), Say::Call("run_code", "print(1)"), Say::Text("I see.")]);
    assert_eq!(say(&held, "Again").await["metadata"]["cellkeep"]["state"], "done");
    let requests = model.requests();
    let last = |back: usize| requests[requests.len() - back]["messages"].as_array().unwrap().last().unwrap().to_string();
    assert!(last(2).contains("rm_rf") && last(1).contains("not JSON"), "{} {}", last(2), last(1));
    // A turn that never ends by itself.
    model.then((0..20).map(|_| Say::Call("nothing", "{}")));
    let message = say(&held, "For ever").await;
    assert_eq!(message["metadata"]["cellkeep"]["error"]["code"], "too_many_steps");
    // If images are refused, this turn omits them. A model without image support never gets images again.
    held.run(PLOT).await;
    let has_images = |from: usize| -> Vec<bool> {
        model.requests()[from..].iter().map(|request| request.to_string().contains("image_url")).collect()
    };
    for (words, later) in [("could not decode image", true), ("image input is not supported", true), ("", false)] {
        let before = model.requests().len();
        if words.is_empty() {
            model.then([Say::Text("Still blind.")]);
        } else {
            let refusal: &'static str = format!("{{\"error\": \"{words}\"}}").leak();
            model.then([Say::Refuse(400, refusal), Say::Call("nothing", "{}"), Say::Text("Blind.")]);
        }
        assert_eq!(say(&held, "What do you see?").await["metadata"]["cellkeep"]["state"], "done");
        let expected: &[bool] = if later { &[true, false, false] } else { &[false] };
        assert_eq!(has_images(before), expected, "{words}");
    }
    assert!(model.keys().iter().all(|key| key.ends_with("Bearer sk-hidden")) && !model.keys().is_empty());
    assert!(!server.stderr().contains("sk-hidden"), "the key is not logged");
    client.post(&held.path("/chat"), json!({"text": " "})).await.problem(422, "bad_field");
    client.post(&held.path("/chat"), json!({"text": "x".repeat(70_000)})).await.problem(413, "text_too_large");
    client.post(&held.path("/chat/cancel"), json!({})).await.problem(409, "chat_not_in_progress");
    server.end().await;
}

/// A turn is stopped together with the cell that it runs, and only by principals that can use the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_a_turn_stops_its_cell() {
    let forever = "import time\nprint('on')\ntime.sleep(600)";
    let model = Model::start([Say::Run("I wait.", forever), Say::Hold("Let me think. ")]).await;
    let server = serve("chat-stopped", &model).await;
    let client = server.client();
    let held = session(&client).await;
    client.post(&held.path("/chat"), json!({"text": "Wait"})).await.is(202);
    let runs = |reply: &crate::server::Reply| reply.text().contains("on\\n");
    client.until(&held.path("/cells?outputs=inline"), runs).await;
    client.post(&held.path("/chat"), json!({"text": "And?"})).await.problem(409, "chat_in_progress");
    let stop = async || {
        client.post(&held.path("/chat/cancel"), json!({})).await.is(202);
        client.until(&held.path("/chat"), |reply| reply.json()["state"] == "idle").await;
    };
    stop().await;
    let all = cells(&held).await;
    is(&all[0], "markdown", "user", "stopped", "Wait");
    is(&all[2], "code", "assistant", "interrupted", forever);
    assert_eq!(model.requests().len(), 1, "the request is not repeated");
    // Stopped in the middle of its text, which is visible while it arrives.
    client.post(&held.path("/chat"), json!({"text": "Think"})).await.is(202);
    client.until(&held.path("/cells"), |reply| String::from_utf8_lossy(&reply.body).contains("Let me think.")).await;
    let streaming = cells(&held).await;
    is(&streaming[4], "markdown", "assistant", "streaming", "Let me think. ");
    stop().await;
    is(&cells(&held).await[4], "markdown", "assistant", "stopped", "Let me think. ");
    held.ok("print('still here')").await;
    // Deleting the session ends the turn.
    model.then([Say::Hold("Once more. ")]);
    client.post(&held.path("/chat"), json!({"text": "Go"})).await.is(202);
    client.delete(&held.path("")).await.is(204);
    server.end().await;
}

/// A session with a slow model is not idle. If the session ends during a turn, neither the message nor the reply stays
/// unfinished, in this server or in the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_session_ends_its_turn() {
    let model = Model::start([Say::Hold("This much ")]).await;
    let mut server = serve("chat-gone", &model).await;
    let client = server.client();
    let answered = client.create(json!({"kernel": "bash", "idle_timeout_seconds": 3})).await;
    client.post(&answered.path("/chat"), json!({"text": "Tell"})).await.is(202);
    client.until(&answered.path("/cells"), |reply| reply.text().contains("This much")).await;
    let unused = client.create(json!({"kernel": "bash", "idle_timeout_seconds": 3})).await;
    client.until(&unused.path(""), |reply| reply.json()["state"] == "gone").await;
    assert_ne!(client.get(&answered.path("")).await.is(200)["state"], "gone", "it is answered");
    model.go_on();
    client.until(&answered.path("/chat"), |reply| reply.json()["state"] == "idle").await;
    // The lifetime of the session ends during the turn.
    model.then([Say::Hold("Once more ")]);
    let ended = client.create(json!({"kernel": "bash", "ttl_seconds": 10})).await;
    client.post(&ended.path("/chat"), json!({"text": "Go"})).await.is(202);
    client.until(&ended.path("/cells"), |reply| reply.text().contains("Once more")).await;
    client.until(&ended.path(""), |reply| reply.json()["state"] == "gone").await;
    client.until(&ended.path("/chat"), |reply| reply.json()["state"] == "idle").await;
    for _ in 0..2 {
        let all = cells(&ended).await;
        is(&all[0], "markdown", "user", "failed", "Go");
        is(&all[1], "markdown", "assistant", "failed", "Once more ");
        let message = client.get(&ended.path("/cells?outputs=none")).await.is(200)["cells"][0].clone();
        assert_eq!(message["metadata"]["cellkeep"]["error"]["code"], "session_failed", "{message}");
        server.kill().await;
        server.start_again().await;
    }
    server.end().await;
}

/// The limit of turns is reached. Deleting a session frees a turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_session_frees_its_turn() {
    const MOST: usize = 16;
    let model = Model::start(std::iter::repeat_n(Say::Hold("On "), MOST + 1)).await;
    let server = serve("chat-places", &model).await;
    let client = server.client();
    let mut all = Vec::new();
    for _ in 0..MOST {
        let held = client.create(json!({"kernel": "bash"})).await;
        client.post(&held.path("/chat"), json!({"text": "Hold"})).await.is(202);
        all.push(held);
    }
    let more = client.create(json!({"kernel": "bash"})).await;
    assert_eq!(client.post(&more.path("/chat"), json!({"text": "And I?"})).await.status, 429);
    client.delete(&all[0].path("")).await.is(204);
    let begun = std::time::Instant::now();
    while client.post(&more.path("/chat"), json!({"text": "And I?"})).await.status != 202 {
        assert!(begun.elapsed().as_secs() < 30, "its place is not free");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.end().await;
}

/// The server is killed during a reply and during an execution: existing text is kept and marked, and nothing is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_keeps_partial_answers() {
    let count = "open('count', 'a').write('x')\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint(open('count').read())";
    let model = Model::start([Say::Hold("This much "), Say::Run("I count.", count)]).await;
    let mut server = serve("chat-killed", &model).await;
    let client = server.client();
    let held = session(&client).await;
    client.post(&held.path("/chat"), json!({"text": "Tell"})).await.is(202);
    client.until(&held.path("/cells"), |reply| String::from_utf8_lossy(&reply.body).contains("This much")).await;
    server.kill().await;
    server.start_again().await;
    client.until(&held.path("/chat"), |reply| reply.json()["state"] == "idle").await;
    let all = cells(&held).await;
    is(&all[0], "markdown", "user", "interrupted", "Tell");
    is(&all[1], "markdown", "assistant", "interrupted", "This much ");
    // During an execution: the cell continues, once, and the model is not message for a next step.
    client.post(&held.path("/chat"), json!({"text": "Count"})).await.is(202);
    client.until(&held.path("/files/count"), |reply| reply.status == 200).await;
    server.kill().await;
    server.start_again().await;
    client.put(&held.path("/files/go"), "").await;
    client.until(&held.path("/cells"), |reply| reply.json()["cells"][4]["state"] == "finished").await;
    let all = cells(&held).await;
    is(&all[2], "markdown", "user", "interrupted", "Count");
    is(&all[4], "code", "assistant", "ok", count);
    let cell = client.get(&held.path("/cells")).await.is(200)["cells"][4].clone();
    assert_eq!(crate::server::printed(&cell), "x\n", "it ran once");
    assert_eq!((model.requests().len(), all.len()), (2, 5));
    model.then([Say::Text("It was one.")]);
    assert_eq!(say(&held, "Well?").await["metadata"]["cellkeep"]["state"], "done");
    server.end().await;
}

/// Without a model, requests fail clearly. Invalid settings stop the server before it serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_model_refuses_messages() {
    let server = Server::start("chat-none", TestSandbox::process(), &[]).await;
    let client = server.client();
    let problem = client.get("/v1/model").await.problem(404, "no_model");
    assert!(problem["detail"].as_str().unwrap().contains("--model-url"));
    let held = session(&client).await;
    client.post(&held.path("/chat"), json!({"text": "Hello"})).await.problem(404, "no_model");
    let mut print = server.command();
    print.args(["--print-config", "--model-url", "http://h/v1", "--model", "m"]).env("CELLKEEP_MODEL_KEY", "sk-hidden");
    let printed = String::from_utf8(print.output().unwrap().stdout).unwrap();
    assert!(printed.contains("[model]\nurl = \"http://h/v1\"\nname = \"m\"") && !printed.contains("sk-hidden"), "{printed}");
    for (arguments, words) in [
        (&["--model-url", "http://h/v1"][..], "--model"),
        (&["--model", "m"], "--model-url"),
        (&["--model", "m", "--model-url", "gopher://h"], "http://"),
        (&["--model", "m", "--model-url", "http://h", "--model-key-file", "/nowhere"], "/nowhere"),
    ] {
        let folder = server.data().join("other");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        let refused =
            command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&folder).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && error.contains(words), "{error}");
    }
    server.end().await;
}

/// The executions of a model count for the owner of the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_runs_no_more_than_its_owner_may() {
    let model = Model::start([Say::Run("One.", "print(1)"), Say::Run("Two.", "print(2)")]).await;
    let url = model.url();
    let arguments = ["--model-url", &url, "--model", "tiny", "--max-executions-per-hour", "1"];
    let server = Server::start("chat-hourly", TestSandbox::process(), &arguments).await;
    let held = session(&server.client()).await;
    let message = say(&held, "Count").await;
    let error = &message["metadata"]["cellkeep"]["error"];
    assert_eq!(error["code"], "session_failed", "{message}");
    assert!(error["detail"].as_str().unwrap().contains("--max-executions-per-hour"), "{message}");
    let ran: Vec<String> = cells(&held).await.into_iter().filter(|cell| cell.0 == "code").map(|cell| cell.3).collect();
    assert_eq!(ran, ["print(1)"]);
    server.end().await;
}

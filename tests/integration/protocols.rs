//! Protocols of other sandboxes, with the unmodified clients of the NeMo agent toolkit (1.8: its local sandbox, 1.9: Piston), and by hand
//! what those do not ask for.

use std::path::Path;
use std::process::Stdio;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::server::{Server, TOKEN};
use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    local_client_of_nat_works_unmodified,
    piston_client_of_nat_works_unmodified,
    local_protocol_refuses_in_its_own_words,
    skills_sessions_keep_their_variables,
    piston_runs_each_language,
    ports_need_tokens_as_they_should,
);

/// A port that is free now.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

async fn start(name: &str, place: TestSandbox) -> (Server, String) {
    let own = format!("127.0.0.1:{}", free_port());
    let server = Server::start(name, place, &["--protocol-listen", &own]).await;
    (server, own)
}

/// Ends the server and the sandboxes that the local protocol keeps for its principals.
async fn end(server: Server) {
    let client = server.client();
    let all = client.get("/v1/sandboxes").await.is(200);
    for sandbox in all["sandboxes"].as_array().unwrap() {
        client.delete(&format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap())).await.is(204);
    }
    client.until("/v1/sandboxes", |reply| reply.text().contains("\"sandboxes\":[]")).await;
    server.end().await;
}

/// What the client of this version of nvidia-nat gets.
async fn nat(version: &str, kind: &str, url: &str, cases: &[(&str, f64)]) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let ran = tokio::process::Command::new(root.join("test-venv/bin/python"))
        .env("PYTHONPATH", root.join(format!("nat-{version}")))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/nat_client.py"))
        .args([kind, url, &json!(cases).to_string()])
        .stdin(Stdio::null())
        .output();
    let ran = tokio::time::timeout(PATIENCE, ran).await.unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{stderr}"))
}

/// Sends a request to a port. Returns the status and the JSON of the answer.
async fn ask(address: &str, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", address);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

const JSON: (&str, &str) = ("content-type", "application/json");

async fn local_client_of_nat_works_unmodified(place: TestSandbox) {
    let (server, own) = start("nat-local", place).await;
    let cases = [
        ("print(5 + 5)", 60.0),
        ("open('kept.txt', 'w').write('kept')\nx = 1", 60.0),
        ("import os\nprint(open('kept.txt').read(), os.listdir('.'), 'x' in globals())", 60.0),
        ("print('before')\n1/0", 60.0),
        ("print(1", 60.0),
        ("import numpy as np, pandas as pd, plotly\nprint(np.mean([1, 2, 3]), len(pd.DataFrame({'a': [1]})))", 60.0),
        ("```python\nprint(7)\n```", 60.0),
        ("{'generated_code': 'print(9)'}", 60.0),
        ("import sys\nprint('out'); print('err', file=sys.stderr); sys.exit(0)", 60.0),
        ("import sys\nsys.exit(3)", 60.0),
        ("import time\nprint('x', flush=True)\ntime.sleep(600)", 1.0),
        ("import no_such_module", 60.0),
        ("print(input())", 60.0),
    ];
    let on_main_port = format!("http://any:{TOKEN}@{}/nemo/", server.client().address());
    for url in [format!("http://{own}"), on_main_port] {
        let results = nat("1.8", "local", &url, &cases).await;
        let told = |index: usize, field: &str| results[index][field].as_str().unwrap().to_owned();
        let statuses: Vec<String> = (0..cases.len()).map(|index| told(index, "process_status")).collect();
        let expected = [
            "completed",
            "completed",
            "completed",
            "error",
            "error",
            "completed",
            "completed",
            "completed",
            "completed",
            "error",
            "timeout",
            "error",
            "error",
        ];
        assert_eq!(statuses, expected, "{results:?}");
        assert_eq!(told(0, "stdout"), "10\n");
        assert_eq!(told(2, "stdout"), "kept ['kept.txt'] False\n");
        assert_eq!(told(3, "stdout"), "before\n");
        for (index, error) in [(3, "ZeroDivisionError"), (4, "SyntaxError"), (11, "ModuleNotFoundError"), (12, "EOFError")] {
            let stderr = told(index, "stderr");
            assert!(stderr.starts_with("Traceback (most recent call last):\n") && stderr.contains(error), "{stderr}");
            assert!(!stderr.contains("run_python") && !stderr.contains("read_code"), "{stderr}");
        }
        assert_eq!((told(6, "stdout"), told(7, "stdout")), ("7\n".to_owned(), "9\n".to_owned()));
        assert_eq!((told(8, "stdout"), told(8, "stderr")), ("out\n".to_owned(), "err\n".to_owned()));
        assert_eq!((told(10, "stdout"), told(10, "stderr")), (String::new(), "Timed out\n".to_owned()));
    }
    end(server).await;
}

async fn piston_client_of_nat_works_unmodified(place: TestSandbox) {
    let (server, own) = start("nat-piston", place).await;
    let cases = [
        ("print(5 + 5)", 60.0),
        ("1/0", 60.0),
        ("print('a' * 2000)", 60.0),
        ("open('a', 'w').write('a')", 60.0),
        ("import os\nprint(os.listdir('.'))", 60.0),
        ("import time\ntime.sleep(600)", 2.0),
    ];
    let on_main_port = format!("http://any:{TOKEN}@{}/api/v2/", server.client().address());
    for url in [format!("http://{own}/api/v2/"), on_main_port] {
        let results = nat("1.9", "piston", &url, &cases).await;
        // The client's program prints the result as JSON.
        let inner = |index: usize| serde_json::from_str::<Value>(results[index]["stdout"].as_str().unwrap()).unwrap();
        assert_eq!(inner(0)["stdout"], "10\n\n");
        assert!(inner(1)["stderr"].as_str().unwrap().contains("ZeroDivisionError"));
        assert!(inner(2)["stdout"].as_str().unwrap().ends_with("a<output cut>\n"));
        assert_eq!(inner(4)["stdout"], "['file0.code']\n\n", "each request has a sandbox of its own");
        assert_eq!(results[5]["process_status"], "timeout", "{results:?}");
    }
    let client = server.client();
    client.until("/v1/sandboxes", |reply| reply.text().contains("\"sandboxes\":[]")).await;
    server.end().await;
}

async fn local_protocol_refuses_in_its_own_words(place: TestSandbox) {
    let (server, own) = start("nat-refusals", place).await;
    assert_eq!(ask(&own, Method::GET, "/", &[], "").await, (200, json!({"status": "ok"})));
    assert_eq!(ask(&own, Method::GET, "/health", &[], "").await.0, 200);
    let whole = json!({"generated_code": "print(1)", "timeout": 10, "language": "python"});
    let with = |name: &str, value: Value| {
        let mut body = whole.clone();
        body[name] = value;
        body.to_string()
    };
    for (headers, body, message) in [
        (&[][..], whole.to_string(), "Request must be JSON"),
        (&[JSON], "{".to_owned(), "Invalid JSON data"),
        (&[JSON], "7".to_owned(), "Invalid JSON data"),
        (&[JSON], "{}".to_owned(), "Missing required field: generated_code"),
        (&[JSON], with("timeout", Value::Null), "Missing required field: timeout"),
        (&[JSON], with("language", Value::Null), "Missing required field: language"),
        (&[JSON], with("language", json!("cobol")), "Only python execution is supported"),
        (&[JSON], with("generated_code", json!(7)), "generated_code must be a string"),
        (&[JSON], with("timeout", json!("soon")), "timeout must be a number of seconds"),
        (&[JSON], with("language", json!("ipython")), "X-Session-ID header required for ipython sessions"),
    ] {
        let (status, answer) = ask(&own, Method::POST, "/execute", headers, &body).await;
        let expected = json!({"process_status": "error", "stdout": "", "stderr": message});
        assert_eq!((status, answer), (400, expected), "{body}");
    }
    let (status, answer) = ask(&own, Method::POST, "/execute", &[JSON], &with("timeout", json!(1e300))).await;
    assert_eq!((status, &answer["process_status"]), (422, &json!("error")), "{answer}");
    let (_, answer) = ask(&own, Method::POST, "/execute", &[JSON], &with("timeout", json!(0))).await;
    assert_eq!(answer["process_status"], "timeout");
    let (_, answer) = ask(&own, Method::POST, "/execute", &[JSON], &with("max_output_characters", json!(0))).await;
    assert_eq!(answer["stdout"], "<output cut>");
    let shell = json!({"generated_code": "echo hi; cat; exit 3", "timeout": 10, "language": "shell", "std_input": "in"});
    let (_, answer) = ask(&own, Method::POST, "/execute", &[JSON], &shell.to_string()).await;
    assert_eq!(answer, json!({"process_status": "error", "stdout": "hi\nin", "stderr": ""}));
    end(server).await;
}

async fn skills_sessions_keep_their_variables(place: TestSandbox) {
    let (server, own) = start("nat-skills", place).await;
    let run = async |session: &str, code: &str, timeout: f64| {
        let body = json!({"generated_code": code, "timeout": timeout, "language": "ipython"}).to_string();
        let (status, answer) = ask(&own, Method::POST, "/execute", &[JSON, ("x-session-id", session)], &body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let first = run("one", "x = 41", 60.0).await;
    assert_eq!((&first["process_status"], &first["new_session_created"]), (&json!("completed"), &json!(true)));
    let second = run("one", "x + 1", 60.0).await;
    assert_eq!((&second["stdout"], &second["new_session_created"]), (&json!("42\n"), &json!(false)), "{second}");
    assert!(run("two", "x", 60.0).await["stderr"].as_str().unwrap().contains("NameError"));
    let long = run("one", "print('a' * 5000)", 60.0).await;
    assert_eq!(long["stdout"], format!("{}<output cut>", "a".repeat(1000)));
    let slow = run("one", "import time\ntime.sleep(600)", 1.0).await;
    assert_eq!((&slow["process_status"], &slow["new_session_created"]), (&json!("timeout"), &json!(false)), "{slow}");
    assert_eq!(run("one", "print(x)", 60.0).await["stdout"], "41\n", "the timeout has spared its variables");
    let dead = run("one", "import os; os._exit(1)", 60.0).await;
    assert_eq!((&dead["process_status"], &dead["new_session_created"]), (&json!("error"), &json!(true)), "{dead}");
    let (_, all) = ask(&own, Method::GET, "/sessions", &[], "").await;
    let names: Vec<&String> = all["sessions"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["one", "two"], "{all}");
    // An admin's token sees those of all principals.
    let other = format!("any:{TOKEN}");
    let basic = format!("Basic {}", base64_of(&other));
    let (_, others) = ask(&own, Method::GET, "/sessions", &[("authorization", &basic)], "").await;
    assert_eq!(others["sessions"].as_object().unwrap().len(), 2, "{others}");
    for status in [200, 404] {
        assert_eq!(ask(&own, Method::DELETE, "/sessions/one", &[], "").await.0, status);
    }
    assert_eq!(run("one", "print('x' in globals())", 60.0).await["stdout"], "False\n");
    server.end().await;
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

async fn piston_runs_each_language(place: TestSandbox) {
    let (server, own) = start("piston", place).await;
    let run = async |body: Value| ask(&own, Method::POST, "/api/v2/execute", &[JSON], &body.to_string()).await;
    let (_, runtimes) = ask(&own, Method::GET, "/api/v2/runtimes", &[], "").await;
    let names: Vec<&str> = runtimes.as_array().unwrap().iter().map(|one| one["language"].as_str().unwrap()).collect();
    assert_eq!(names, ["python", "javascript", "typescript", "rscript", "bash"], "{runtimes}");
    assert!(runtimes.as_array().unwrap().iter().all(|one| one["version"].as_str().unwrap().contains('.')), "{runtimes}");
    for (language, code) in [
        ("py", "import sys; print(sys.argv[1], sys.stdin.read(), end='')"),
        ("js", "console.log(Deno.args[0] + ' ' + new TextDecoder().decode(Deno.readFileSync('/dev/stdin')).trimEnd())"),
        ("typescript", "const it: string = Deno.args[0]; console.log(it + ' in')"),
        ("r", "cat(commandArgs(TRUE)[1], readLines(file('stdin')), '\\n')"),
        ("bash", "echo \"$1\" \"$(cat)\""),
    ] {
        let files = json!([{"name": "main", "content": code}, {"name": "lib/other.txt", "content": "x"}]);
        let body = json!({"language": language, "version": "*", "files": files, "args": ["-arg x"], "stdin": "in\n", "run_timeout": 60000.0});
        let (status, answer) = run(body).await;
        assert_eq!((status, &answer["run"]["code"]), (200, &json!(0)), "{language}: {answer}");
        assert_eq!(answer["run"]["stdout"].as_str().unwrap().trim(), "-arg x in", "{language}: {answer}");
    }
    let (_, failed) = run(json!({"language": "bash", "version": "*", "files": [{"content": "echo no >&2; exit 3"}]})).await;
    let ended = (&failed["run"]["code"], &failed["run"]["stderr"], &failed["run"]["status"]);
    assert_eq!(ended, (&json!(3), &json!("no\n"), &json!("RE")), "{failed}");
    let slow = json!({"language": "bash", "version": "*", "files": [{"content": "sleep 600"}], "run_timeout": 500});
    assert_eq!(run(slow).await.1["run"]["status"], "TO");
    for (body, message) in [
        (json!({"language": "cobol", "version": "*", "files": [{"content": ""}]}), "cobol runtime is unknown"),
        (json!({"language": "py", "version": "*", "files": []}), "files is required"),
        (json!({"version": "*"}), "language"),
        (json!({"language": "py", "version": "*", "files": [{"content": ""}], "run_timeout": -5}), "run_timeout"),
    ] {
        let (status, answer) = run(body).await;
        assert!(status == 400 && answer["message"].as_str().unwrap().contains(message), "{status} {answer}");
    }
    let outside = json!({"language": "py", "version": "*", "files": [{"name": "../x", "content": ""}]});
    let (status, answer) = run(outside).await;
    assert!(status >= 400 && answer["message"].is_string(), "{status} {answer}");
    let installed =
        ask(&own, Method::POST, "/api/v2/packages", &[JSON], r#"{"language": "python", "version": "3.10.0"}"#).await;
    assert_eq!((installed.0, &installed.1["language"]), (200, &json!("python")));
    server.client().until("/v1/sandboxes", |reply| reply.text().contains("\"sandboxes\":[]")).await;
    server.end().await;
}

async fn ports_need_tokens_as_they_should(place: TestSandbox) {
    let (server, own) = start("protocol-ports", place).await;
    let main = server.client().address().to_string();
    let body = json!({"generated_code": "print(1)", "timeout": 10, "language": "python"}).to_string();
    let piston = json!({"language": "bash", "version": "*", "files": [{"content": "echo 1"}]}).to_string();
    let (status, answer) = ask(&main, Method::POST, "/nemo/execute", &[JSON], &body).await;
    assert_eq!((status, &answer["process_status"]), (401, &json!("error")), "{answer}");
    let (status, answer) = ask(&main, Method::POST, "/api/v2/execute", &[JSON], &piston).await;
    assert!(status == 401 && answer["message"].is_string(), "{status} {answer}");
    // A wrong token is no missing one.
    let wrong = format!("Basic {}", base64_of("any:wrong"));
    assert_eq!(ask(&own, Method::POST, "/execute", &[JSON, ("authorization", &wrong)], &body).await.0, 401);
    // Pages of other origins, and names that point here.
    for (name, value) in [("origin", "https://evil.example"), ("host", "evil.example")] {
        let headers = [JSON, (name, value)];
        let (status, _) = ask(&own, Method::POST, "/execute", &headers, &body).await;
        assert!(matches!(status, 400 | 403), "{name}: {status}");
    }
    // The API itself is not there.
    assert_eq!(ask(&own, Method::GET, "/v1/sessions", &[], "").await.0, 404);
    server.end().await;
}

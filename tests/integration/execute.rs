//! One-shot executions: `POST /v1/execute`, and `cellkeep exec --json`, which gives the same report.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Client, Server};
use crate::support::TestSandbox;

in_every_sandbox!(
    each_language_gives_the_report,
    failures_come_with_suggestions,
    stopped_code_keeps_what_it_left,
    files_go_in_and_out,
    bad_requests_are_refused_whole,
    many_at_once_wait_for_each_other,
    report_survives_a_kill_with_a_key,
    exec_gives_the_same_report,
    pipeline_hands_files_on,
);

async fn execute(client: &Client, body: Value) -> Value {
    let report = client.post("/v1/execute", body).await.is(200);
    for field in ["executionId", "status", "output", "results", "metrics", "error"] {
        assert!(report.get(field).is_some(), "{field} in {report}");
    }
    report
}

/// Waits until nothing is left of the executions.
async fn until_nothing_is_left(server: &Server) {
    let client = server.client();
    client.until("/v1/sessions", |reply| reply.text().contains("\"sessions\":[]")).await;
    client.until("/v1/limits", |_| std::fs::read_dir(server.paths().sandboxes()).unwrap().count() == 0).await;
}

async fn each_language_gives_the_report(place: TestSandbox) {
    let server = Server::start("execute", place, &[]).await;
    let client = server.client();
    let python = "import sys\nimport matplotlib.pyplot as plt\nprint('out')\nprint('err', file=sys.stderr)\nplt.plot([1, 2]); plt.show()\n6*7";
    let r = "cat('out\\n'); message('err'); plot(1:2, main = 'Two'); t.test(1:10, 2:11)$p.value";
    let cases = [
        ("python", python, "out\n42\n", 1),
        ("R", r, "out\n[1] 0.4", 1),
        ("bash", "echo out; echo err >&2", "out\n", 0),
        ("javascript", "console.log('out'); console.error('err')", "out\n", 0),
        ("typescript", "const out: string = 'out'; console.log(out); console.error('err')", "out\n", 0),
    ];
    for (language, code, stdout, plots) in cases {
        let report = execute(&client, json!({"code": code, "language": language, "memoryLimit": 1024})).await;
        assert_eq!((&report["status"], &report["error"]), (&json!("success"), &Value::Null), "{language}: {report}");
        assert!(report["output"]["stdout"].as_str().unwrap().starts_with(stdout), "{language}: {report}");
        // R's kernel ends messages twice.
        let stderr = report["output"]["stderr"].as_str().unwrap().trim_end();
        assert_eq!((stderr, &report["output"]["exitCode"]), ("err", &json!(0)), "{language}");
        let found = report["results"]["plots"].as_array().unwrap();
        assert_eq!(found.len(), plots, "{language}");
        assert!(
            found.iter().all(|plot| ["png", "svg"].contains(&plot["format"].as_str().unwrap())),
            "{language}: {found:?}"
        );
        let metrics = &report["metrics"];
        assert!(
            metrics["executionTime"].as_f64().unwrap() > 0.0 && metrics["peakMemory"].as_f64().unwrap() > 1.0,
            "{metrics}"
        );
    }
    let quiet = execute(&client, json!({"code": "print(1)", "captureOutput": false})).await;
    assert_eq!(quiet["output"], json!({"stdout": "", "stderr": "", "exitCode": 0}));
    // One processor is busy, and the allocation is a part of the peak.
    let busy = "import time\nx = bytearray(b'1') * (200 << 20)\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass";
    let metrics = execute(&client, json!({"code": busy})).await["metrics"].clone();
    let (peak, cpu) = (metrics["peakMemory"].as_f64().unwrap(), metrics["cpuUsage"].as_f64().unwrap());
    assert!((200.0..420.0).contains(&peak), "{metrics}");
    let cpu_ms = cpu / 100.0 * metrics["executionTime"].as_f64().unwrap();
    assert!((500.0..2000.0).contains(&cpu_ms), "{metrics}");
    until_nothing_is_left(&server).await;
    server.end().await;
}

/// Each rule that this machine can provoke, on a real failure.
async fn failures_come_with_suggestions(place: TestSandbox) {
    let server = Server::start("execute-failures", place, &[]).await;
    let client = server.client();
    let cases: &[(&str, &str, &str)] = &[
        ("python", "import humanize", "`humanize`"),
        ("python", "import fitz", "`pymupdf`"),
        ("python", "revenue = 1\nprint(revenu)", "`revenue`"),
        ("python", "from math import squareroot", "no `squareroot`"),
        (
            "python",
            "open('data/sales.csv', 'w').close() if __import__('os').makedirs('data') else open('sale.csv')",
            "There is no file",
        ),
        ("python", "open('sales.csv', 'w').close(); open('sale.csv')", "`sales.csv`"),
        ("python", "import numpy as np\nnp.ones(3) + np.ones(4)", "shapes do not fit"),
        ("python", "import pandas as pd\npd.DataFrame({'a': [1], 'b': [1, 2]})", "shapes do not fit"),
        ("python", "import pandas as pd\npd.DataFrame({'a': [1]})['A']", "no key or column `A`"),
        ("python", "import urllib.request as r\nr.urlopen('https://example.com')", "no network"),
        ("python", "input()", "Nobody answers"),
        ("python", "open('/usr/x', 'w')", "writable"),
        ("python", "import numpy as np\nnp.ones((200_000, 200_000))", "`memoryLimit`"),
        ("r", "library(forecast)", "`forecast`"),
        ("r", "revenue <- 1; print(revenu)", "`revenue`"),
        ("r", "ggplot(cars)", "library(ggplot2)"),
        ("r", "writeLines('a', 'sales.csv'); read.csv('sale.csv')", "`sales.csv`"),
        ("r", "matrix(1, 2, 2) %*% matrix(1, 3, 3)", "shapes do not fit"),
        ("r", "read.csv('https://example.com/a.csv')", "no network"),
        ("javascript", "const revenue = 1; console.log(revenu)", "`revenue`"),
        ("javascript", "await import('lodash')", "`npm:lodash`"),
        ("javascript", "Deno.writeTextFileSync('sales.csv', ''); Deno.readTextFileSync('sale.csv')", "`sales.csv`"),
        ("javascript", "await fetch('https://example.com')", "no network"),
        ("bash", "pritnf x", "`printf`"),
        ("bash", "touch sales.csv; cat sale.csv", "`sales.csv`"),
        ("bash", "curl -sS https://example.com", "no network"),
    ];
    for (language, code, expected) in cases {
        let report = execute(&client, json!({"code": code, "language": language, "memoryLimit": 1024})).await;
        assert_eq!(report["status"], "error", "{language} {code}: {report}");
        assert_ne!(report["output"]["exitCode"], 0, "{report}");
        let suggestions = report["error"]["suggestions"].to_string();
        assert!(suggestions.contains(expected), "{language} {code}: {}", report["error"]);
    }
    server.end().await;
}

async fn stopped_code_keeps_what_it_left(place: TestSandbox) {
    let server = Server::start("execute-stopped", place, &[]).await;
    let client = server.client();
    let before = "print('before', flush=True)\nopen('a.txt', 'w').write('x')\n";
    let cases = [
        ("import time\ntime.sleep(600)", json!({"timeout": 2}), "timeout", 124, "(`timeout`)"),
        (
            "x = [bytearray(b'1') * (8 << 20) for _ in range(1000)]",
            json!({"memoryLimit": 192}),
            "memory-exceeded",
            137,
            "192 MB",
        ),
        ("import os; os._exit(3)", json!({}), "error", 137, ""),
        ("import sys; sys.exit(3)", json!({}), "error", 3, ""),
        ("1/0", json!({}), "error", 1, ""),
    ];
    for (code, more, status, exit_code, suggestion) in cases {
        let mut body = json!({"code": format!("{before}{code}"), "returnFiles": ["a.txt"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let report = execute(&client, body).await;
        assert_eq!(
            (&report["status"], &report["output"]["exitCode"]),
            (&json!(status), &json!(exit_code)),
            "{code}: {report}"
        );
        assert_eq!(report["output"]["stdout"], "before\n", "{code}: {report}");
        assert_eq!(report["results"]["files"][0]["content"], "x", "{code}: {report}");
        assert!(report["error"]["suggestions"].to_string().contains(suggestion), "{code}: {report}");
        assert!(report["metrics"]["peakMemory"].as_f64().is_some(), "{code}: {report}");
    }
    let failed = execute(&client, json!({"code": "exit 7", "language": "bash"})).await;
    assert_eq!((&failed["status"], &failed["output"]["exitCode"]), (&json!("error"), &json!(7)), "{failed}");
    server.end().await;
}

async fn files_go_in_and_out(place: TestSandbox) {
    let server = Server::start("execute-files", place, &[]).await;
    let client = server.client();
    let code = "import os\nfrom PIL import Image\nopen('out.csv', 'w').write(open('../in/a.txt').read() + os.environ['WHO'])\n\
                Image.new('RGB', (2, 2)).save('p.png')\nopen('run.log', 'w').write('ok')\nopen('other.txt', 'w').write('')";
    let report = execute(
        &client,
        json!({
            "code": code, "workingDir": "deep/er", "environment": {"WHO": "me"},
            "files": [{"path": "deep/in/a.txt", "content": "aGkg", "encoding": "base64"}],
            "returnFiles": ["*.csv", "deep/er/p.png", "run.log", "missing.txt"]
        }),
    )
    .await;
    assert_eq!(report["status"], "success", "{report}");
    let described: Vec<(&str, &str, &str)> = report["results"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["path"].as_str().unwrap(), file["type"].as_str().unwrap(), file["encoding"].as_str().unwrap()))
        .collect();
    let expected =
        [("deep/er/out.csv", "data", "utf-8"), ("deep/er/p.png", "plot", "base64"), ("deep/er/run.log", "log", "utf-8")];
    assert_eq!(described, expected, "{report}");
    assert_eq!(report["results"]["files"][0]["content"], "hi me");
    assert_eq!(report["results"]["notReturned"][0]["path"], "missing.txt", "{report}");
    // Nothing is left for the next one.
    let next = execute(&client, json!({"code": "import os\nprint(os.listdir('.'), 'WHO' in os.environ)"})).await;
    assert_eq!(next["output"]["stdout"], "[] False\n");
    server.end().await;
}

async fn bad_requests_are_refused_whole(place: TestSandbox) {
    let server = Server::start("execute-bad", place, &["--allow-network=packages"]).await;
    let client = server.client();
    for (body, code, field) in [
        (json!({"code": "1", "language": "cobol"}), "no_kernel", "language"),
        (json!({"code": "1", "timeout": 0}), "bad_timeout", "timeout"),
        (json!({"code": "1", "memoryLimit": 1}), "bad_limits", "memoryLimit"),
        (json!({"code": "1", "returnFiles": ["../x"]}), "bad_artifacts", "returnFiles"),
        (json!({"code": "1", "workingDir": "/etc"}), "bad_cwd", "workingDir"),
        (json!({"code": "1", "environment": {"A=B": "1"}}), "bad_env", "environment"),
        (json!({"code": "1", "installPackages": ["a b c"]}), "packages_failed", "installPackages"),
        (json!({"code": "1", "files": [{"path": "a", "content": "?", "encoding": "base64"}]}), "bad_file", "files"),
        (json!({"code": "1", "files": [{"path": "a", "content": "", "encoding": "utf-16"}]}), "bad_file", "files"),
        (json!({"code": "1", "key": ""}), "bad_key", "key"),
    ] {
        let problem = client.post("/v1/execute", body.clone()).await.is(422);
        assert_eq!((&problem["code"], &problem["field"]), (&json!(code), &json!(field)), "{body}: {problem}");
    }
    for body in [json!({}), json!({"code": 1}), json!({"code": "1", "memory": 1}), json!({"code": "1", "files": 7})] {
        let reply = client.post("/v1/execute", body.clone()).await;
        assert!(matches!(reply.status, 400 | 422), "{body}: {}", reply.text());
    }
    let outside = json!({"code": "1", "files": [{"path": "../a", "content": ""}]});
    assert!(client.post("/v1/execute", outside).await.status >= 400);
    until_nothing_is_left(&server).await;
    server.end().await;
}

/// More than there are places for sessions, and more than may be created at once.
async fn many_at_once_wait_for_each_other(place: TestSandbox) {
    let server = Server::start("execute-many", place, &["--max-sessions", "3", "--pool", "bash=1"]).await;
    let client = server.client();
    let all: Vec<_> = (0..12)
        .map(|number| {
            let client = server.client();
            tokio::spawn(async move {
                let report = execute(&client, json!({"code": format!("echo {number}"), "language": "bash"})).await;
                assert_eq!(report["output"]["stdout"], format!("{number}\n"), "{report}");
            })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    client.until("/v1/sessions", |reply| reply.text().contains("\"sessions\":[]")).await;
    server.end().await;
}

/// The server is killed while the code runs; a retry with the key gets the report of the one execution, another one begins anew.
async fn report_survives_a_kill_with_a_key(place: TestSandbox) {
    let mut server = Server::start("execute-kill", place, &[]).await;
    let client = server.client();
    let code =
        "import time, os\nprint('started', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint('ended')";
    // Variables come in another order each time that the server reads them.
    let variables: serde_json::Map<String, Value> = (0..12).map(|n| (format!("V{n}"), json!("1"))).collect();
    let keyed = json!({"code": code, "key": "k", "timeout": 300, "environment": variables});
    let ask = |body: &Value| {
        let (client, body) = (server.client(), body.clone());
        tokio::spawn(async move { client.post("/v1/execute", body).await })
    };
    let (first, lost) = (ask(&keyed), ask(&json!({"code": code, "timeout": 300})));
    client.until("/v1/sessions?state=busy", |reply| reply.text().matches("\"id\"").count() == 2).await;
    let sessions = client.get("/v1/sessions").await.is(200)["sessions"].as_array().unwrap().clone();
    for session in &sessions {
        let path = format!("/v1/sessions/{}/cells", session["id"].as_str().unwrap());
        client.until(&path, |reply| reply.text().contains("started")).await;
    }
    server.kill().await;
    let _ = tokio::join!(first, lost);
    server.start_again().await;
    // What nobody can ask for is gone.
    client.until("/v1/sessions", |reply| reply.text().matches("\"kernel\"").count() == 1).await;
    let id = client.get("/v1/sessions").await.is(200)["sessions"][0]["id"].as_str().unwrap().to_owned();
    let retry = tokio::spawn({
        let (client, body) = (server.client(), keyed.clone());
        async move { execute(&client, body).await }
    });
    client.put(&format!("/v1/sessions/{id}/files/go"), "").await.is(204);
    let report = tokio::time::timeout(Duration::from_secs(120), retry).await.unwrap().unwrap();
    assert_eq!((&report["executionId"], &report["output"]["stdout"]), (&json!(id), &json!("started\nended\n")), "{report}");
    // Also when its session has ended.
    client.until(&format!("/v1/sessions/{id}"), |reply| reply.text().contains("\"gone\"")).await;
    assert_eq!(execute(&client, keyed.clone()).await["output"], report["output"]);
    let other = json!({"code": "1", "key": "k"});
    assert_eq!(client.post("/v1/execute", other).await.is(409)["code"], "key_of_other_request");
    client.delete(&format!("/v1/sessions/{id}")).await.is(204);
    // At the same time.
    let twins = json!({"code": "print(open('a').read())", "key": "t", "files": [{"path": "a", "content": "hi"}]});
    let (one, two) = tokio::join!(execute(&client, twins.clone()), execute(&client, twins.clone()));
    assert_eq!((&one, &one["output"]["stdout"]), (&two, &json!("hi\n")));
    client.delete(&format!("/v1/sessions/{}", one["executionId"].as_str().unwrap())).await.is(204);
    server.end().await;
}

async fn exec_gives_the_same_report(place: TestSandbox) {
    let server = Server::start("execute-exec", place, &[]).await;
    let code = "open('out.csv', 'w').write('a,b')\nprint('hi')\nimport humanize";
    let mut reports = vec![execute(&server.client(), json!({"code": code, "returnFiles": ["*.csv"]})).await];
    let ran = tokio::process::Command::new(env!("CARGO_BIN_EXE_cellkeep"))
        .args(["exec", "--sandbox", &place.kind.to_string(), "--json", "--return-file", "*.csv", "-c", code])
        .output()
        .await
        .unwrap();
    assert_eq!(ran.status.code(), Some(1), "{}", String::from_utf8_lossy(&ran.stderr));
    reports.push(serde_json::from_slice(&ran.stdout).unwrap());
    for report in &mut reports {
        assert!(report["executionId"].as_str().unwrap().len() > 30 && report["metrics"]["cpuUsage"].is_number(), "{report}");
        report.as_object_mut().unwrap().retain(|name, _| name != "executionId" && name != "metrics");
    }
    assert_eq!(reports[0], reports[1]);
    assert_eq!(reports[0]["results"]["files"][0]["content"], "a,b");
    server.end().await;
}

/// The example of three scripts. Its last step has what the first two have left.
async fn pipeline_hands_files_on(place: TestSandbox) {
    let folder = std::env::temp_dir().join(format!("ck-pipeline-{}-{}", place.kind, std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let steps = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipeline/run.sh");
    let ran = tokio::process::Command::new("sh")
        .args([steps.as_os_str(), env!("CARGO_BIN_EXE_cellkeep").as_ref()])
        .env("CELLKEEP_SANDBOX", place.kind.to_string())
        .current_dir(&folder)
        .output()
        .await
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{stdout}{stderr}");
    let report = std::fs::read_to_string(folder.join("results/report.md")).unwrap();
    assert!(report.starts_with("# Report\n\n100 measurements, p = 0."), "{report}");
    let plots = std::fs::read_dir(folder.join("results")).unwrap().map(|entry| entry.unwrap().path());
    let plots = plots.filter(|path| path.extension().is_some_and(|ending| ending == "png" || ending == "svg")).count();
    assert!(plots > 0, "the plot of the second step");
    std::fs::remove_dir_all(&folder).unwrap();
}

use std::time::{Duration, SystemTime};

use serde_json::json;

use super::*;
use crate::agent_protocol::{ChangeKind, ExecutionUsage};

fn result(status: ExecutionStatus, error: Option<(&str, &str)>) -> ExecutionResult {
    let error = error.map(|(ename, evalue)| ErrorInfo {
        ename: ename.to_owned(),
        evalue: evalue.to_owned(),
        traceback: vec!["\u{1b}[31mline 1\u{1b}[0m".to_owned(), "line 2".to_owned()],
        state_lost: false,
    });
    ExecutionResult {
        status,
        execution_count: Some(1),
        error,
        started_at: SystemTime::UNIX_EPOCH,
        wall: Duration::from_millis(200),
        timing: std::collections::BTreeMap::new(),
        kernel_gone: false,
        used: Some(ExecutionUsage { cpu_seconds: 0.1, peak_memory_bytes: 64 << 20 }),
    }
}

fn report(result: &ExecutionResult, outputs: &[Value], files: Vec<KeptFile>, patterns: &[&str]) -> Value {
    let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let report = ExecutionReport::new(Finished {
        execution_id: "e".to_owned(),
        language: "python",
        code: "x",
        result,
        outputs,
        files,
        patterns: &patterns,
        sandbox_peak: None,
        surroundings: &Surroundings::default(),
    });
    serde_json::to_value(report).unwrap()
}

fn file(path: &str, content: Option<&[u8]>, not_kept: Option<&str>) -> KeptFile {
    let content = content.map(<[u8]>::to_vec);
    let size = content.as_ref().map_or(0, Vec::len) as u64;
    let change = FileChange {
        path: path.to_owned(),
        change: ChangeKind::Created,
        size,
        sha256: None,
        artifact: content.is_some(),
        not_kept: not_kept.map(str::to_owned),
    };
    KeptFile { change, content }
}

#[test]
fn success_has_text_plots_and_metrics() {
    let outputs = [
        json!({"output_type": "stream", "name": "stdout", "text": "\u{1b}[1ma\u{1b}[0m\n"}),
        json!({"output_type": "stream", "name": "stderr", "text": "careful\n"}),
        json!({"output_type": "display_data", "data": {"image/png": "iVBORw==", "text/plain": "<Figure>"}}),
        json!({"output_type": "execute_result", "data": {"text/plain": "42", "text/html": "<b>42</b>"}}),
    ];
    let report = report(&result(ExecutionStatus::Ok, None), &outputs, Vec::new(), &[]);
    assert_eq!(report["status"], "success");
    assert_eq!(report["output"], json!({"stdout": "a\n42\n", "stderr": "careful\n", "exitCode": 0}));
    assert_eq!(report["results"]["plots"][0]["format"], "png");
    assert_eq!(report["metrics"], json!({"executionTime": 200.0, "peakMemory": 64.0, "cpuUsage": 50.0}));
    assert_eq!(report["error"], Value::Null);
}

#[test]
fn error_keeps_partial_results() {
    let outputs = [json!({"output_type": "stream", "name": "stdout", "text": "before\n"})];
    let failed = result(ExecutionStatus::Error, Some(("ModuleNotFoundError", "No module named 'sklearn'")));
    let report = report(&failed, &outputs, vec![file("a.txt", Some(b"1"), None)], &["a.txt"]);
    assert_eq!((&report["status"], &report["output"]["stdout"]), (&json!("error"), &json!("before\n")));
    assert_eq!(report["results"]["files"][0]["content"], "1");
    let error = &report["error"];
    assert_eq!((&error["type"], &error["stackTrace"]), (&json!("ModuleNotFoundError"), &json!("line 1\nline 2")));
    assert!(error["suggestions"][0].as_str().unwrap().contains("scikit-learn"), "{error}");
}

#[test]
fn exit_codes_are_those_of_shells() {
    let code = |status, error| exit_code(&result(status, error));
    assert_eq!(code(ExecutionStatus::Ok, None), 0);
    assert_eq!(code(ExecutionStatus::Error, Some(("SystemExit", "3"))), 3);
    assert_eq!(code(ExecutionStatus::Error, Some(("SystemExit", "no"))), 1);
    assert_eq!(code(ExecutionStatus::Error, Some(("ExitStatus", "exit status 127"))), 127);
    assert_eq!(code(ExecutionStatus::Error, Some(("ShellExited", "the shell exited with status 7 (exit)"))), 7);
    assert_eq!(code(ExecutionStatus::Error, Some(("ValueError", "3"))), 1);
    assert_eq!(code(ExecutionStatus::Timeout, None), 124);
    assert_eq!(code(ExecutionStatus::MemoryExceeded, None), 137);
}

#[test]
fn files_are_text_or_base64_of_their_kind() {
    let kept = vec![
        file("out/data.csv", Some("ä,b\n".as_bytes()), None),
        file("plot.PNG", Some(b"\x89PNG"), None),
        file("run.log", Some(b"ok"), None),
        file("zero.bin", Some(b"\0"), None),
        file("big.bin", None, Some("it is larger than 32 MB")),
    ];
    let patterns = ["out/", "plot.PNG", "run.log", "zero.bin", "big.bin", "absent.txt", "*.xml"];
    let report = report(&result(ExecutionStatus::Ok, None), &[], kept, &patterns);
    let described: Vec<(&str, &str, &str)> = report["results"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["path"].as_str().unwrap(), file["encoding"].as_str().unwrap(), file["type"].as_str().unwrap()))
        .collect();
    let expected = [
        ("out/data.csv", "utf-8", "data"),
        ("plot.PNG", "base64", "plot"),
        ("run.log", "utf-8", "log"),
        ("zero.bin", "base64", "data"),
    ];
    assert_eq!(described, expected);
    let missing: Vec<&str> =
        report["results"]["notReturned"].as_array().unwrap().iter().filter_map(|file| file["path"].as_str()).collect();
    assert_eq!(missing, ["big.bin", "absent.txt"]);
}

#[test]
fn files_above_the_limit_are_named() {
    let half = vec![b'x'; (MAX_FILE_BYTES / 2) as usize];
    let kept = ["a", "b", "c"].map(|path| file(path, Some(&half), None)).into_iter().collect();
    let (files, missing) = files_of(kept, &["a", "b", "c"].map(str::to_owned));
    assert_eq!((files.len(), missing.len()), (2, 1));
    assert!(missing[0].path == "c" && missing[0].reason.contains("64 MB"));
}

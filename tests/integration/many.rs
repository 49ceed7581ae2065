//! Several notebooks at once, reports, run records, and `cellkeep test`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::{Cli, scratch};

fn write(path: &Path, cells: &[(&str, &[&str], &[Value])]) -> PathBuf {
    let cells: Vec<Value> = cells
        .iter()
        .enumerate()
        .map(|(index, (source, tags, outputs))| {
            json!({"cell_type": "code", "id": format!("c{index}"), "metadata": {"tags": tags}, "execution_count": 1, "outputs": outputs, "source": source})
        })
        .collect();
    let metadata = json!({"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}});
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells});
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, notebook.to_string()).unwrap();
    path.to_owned()
}

fn stdout(text: &str) -> Value {
    json!({"output_type": "stream", "name": "stdout", "text": text})
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn run(arguments: &[&str]) -> Cli {
    Cli::new(&["run", "--sandbox", "process"]).args(arguments)
}

#[test]
fn failed_notebook_does_not_stop_others() {
    let folder = scratch("many");
    write(&folder.join("in/a.ipynb"), &[("print('a')", &[], &[])]);
    write(&folder.join("in/sub/bad.ipynb"), &[("1/0", &[], &[]), ("print('never')", &[], &[])]);
    write(&folder.join("in/sub/z.ipynb"), &[("print('z')", &[], &[])]);
    write(&folder.join("in/.ipynb_checkpoints/a.ipynb"), &[("1/0", &[], &[])]);
    std::fs::write(folder.join("in/broken.ipynb"), "{").unwrap();
    let (junit, report) = (folder.join("junit.xml"), folder.join("report.json"));
    let ran = run(&["-j", "2", "--output-dir"])
        .path(&folder.join("out"))
        .args(&["--junit"])
        .path(&junit)
        .args(&["--report"])
        .path(&report)
        .path(&folder.join("in"))
        .run();
    assert_eq!(ran.code, 2, "an unreadable notebook outranks a failed cell: {}", ran.stderr);
    assert!(ran.stderr.contains("2 of 4 notebooks ok"), "{}", ran.stderr);
    assert_eq!(read(&folder.join("out/a.ipynb"))["cells"][0]["outputs"][0]["text"], json!(["a\n"]));
    assert_eq!(read(&folder.join("out/sub/z.ipynb"))["cells"][0]["outputs"][0]["text"], json!(["z\n"]));
    assert_eq!(read(&folder.join("out/sub/bad.ipynb"))["cells"][0]["outputs"][0]["ename"], "ZeroDivisionError");
    let report = read(&report);
    let status: Vec<&str> =
        report["notebooks"].as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap()).collect();
    assert_eq!(status, ["ok", "not_run", "error", "ok"]);
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(junit.contains("ZeroDivisionError: division by zero") && junit.matches("<testsuite ").count() == 4, "{junit}");
    let ran = run(&["--fail-fast"]).path(&folder.join("in/sub/bad.ipynb")).path(&folder.join("in/a.ipynb")).run();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("not started after a failure") && !folder.join("in/a.out.ipynb").exists(), "{}", ran.stderr);
}

#[test]
fn frozen_run_is_reproducible_or_refused() {
    let folder = scratch("record");
    let code = "import random, numpy\nprint(random.random(), numpy.random.rand(), hash('text'))";
    let notebook = write(&folder.join("nb.ipynb"), &[(code, &[], &[])]);
    let again = |source: &Path, target: &str| {
        let target = folder.join(target);
        let ran = run(&["--seed", "7", "--frozen", "-o"]).path(&target).path(source).run();
        (ran, target)
    };
    let (refused, _) = again(&notebook, "x.ipynb");
    assert!(refused.code == 2 && refused.stderr.contains("no record"), "{}", refused.stderr);
    let first = folder.join("first.ipynb");
    let ran = run(&["--seed", "7", "-p", "x", "5", "-o"]).path(&first).path(&notebook).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let record = &read(&first)["metadata"]["cellkeep"];
    assert_eq!(
        (&record["seed"], &record["parameters"]["x"], &record["run"]["status"]),
        (&json!(7), &json!(5), &json!("ok"))
    );
    assert!(record["packages"]["numpy"].is_string() && record["environment"]["fingerprint"].is_string(), "{record}");
    assert_eq!(read(&first)["cells"][1]["execution_count"], 2, "silent executions are not counted");
    let (ran, second) = again(&first, "second.ipynb");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(read(&first)["cells"][1]["outputs"], read(&second)["cells"][1]["outputs"]);
    let mut changed = read(&second);
    changed["metadata"]["cellkeep"]["packages"]["numpy"] = json!("0.1");
    std::fs::write(&second, changed.to_string()).unwrap();
    let (refused, third) = again(&second, "third.ipynb");
    assert!(refused.code == 2 && refused.stderr.contains("numpy: it was 0.1"), "{}", refused.stderr);
    assert!(!third.exists());
    let ran = run(&["--no-record", "-o"]).path(&third).path(&notebook).run();
    assert!(ran.code == 0 && read(&third)["metadata"]["cellkeep"].is_null(), "{}", ran.stderr);
}

#[test]
fn papermill_options_are_supported() {
    let folder = scratch("papermill");
    let notebook = write(&folder.join("nb.ipynb"), &[("year = 1  # which", &["parameters"], &[]), ("1/0", &[], &[])]);
    let target = format!("{}/out/{{year}}-{{pm.run_uuid}}.ipynb", folder.display());
    let ran = run(&[
        "-y",
        "{year: 2025}",
        "-p",
        "year",
        "2026",
        "--report-mode",
        "--error-marker",
        "--inject-paths",
        "--json",
        "-o",
    ])
    .args(&[&target])
    .path(&notebook)
    .run();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let written = PathBuf::from(report["output"].as_str().unwrap());
    assert_eq!(written.file_name().unwrap().to_str().unwrap(), format!("2026-{}.ipynb", report["run_id"].as_str().unwrap()));
    let done = read(&written);
    let cells = done["cells"].as_array().unwrap();
    let kinds: Vec<&str> = cells.iter().map(|cell| cell["cell_type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["markdown", "code", "code", "markdown", "code"]);
    assert_eq!(cells[2]["metadata"]["jupyter"]["source_hidden"], true);
    let source: String = cells[2]["source"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(source.contains("year = 2026") && source.contains("PAPERMILL_OUTPUT_PATH"), "{source}");
    // The next run removes the markers and replaces the injected cell.
    let ran = run(&["-p", "year", "1", "--allow-errors", "-o"]).path(&folder.join("again.ipynb")).path(&written).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(read(&folder.join("again.ipynb"))["cells"].as_array().unwrap().len(), 3);
    let ran = run(&["-p", "month", "1", "--strict-parameters"]).path(&notebook).run();
    assert!(ran.code == 2 && ran.stderr.contains("no parameter month"), "{}", ran.stderr);
    let ran = run(&["-p", "year", "3", "--inspect"]).path(&notebook).run();
    assert!(ran.stdout.contains("year = 1    which") && ran.stdout.contains("year = 3"), "{} {}", ran.stdout, ran.stderr);
    assert!(!folder.join("nb.out.ipynb").exists(), "nothing ran");
}

#[test]
fn stored_outputs_are_compared_as_in_nbval() {
    let folder = scratch("nbval");
    let cells: &[(&str, &[&str], &[Value])] = &[
        ("print('same')", &[], &[stdout("same\n")]),
        ("print('new')", &[], &[stdout("old\n")]),
        ("# NBVAL_IGNORE_OUTPUT\nprint('new')", &[], &[stdout("old\n")]),
        ("1/0", &["nbval-skip"], &[stdout("kept\n")]),
        (
            "raise ValueError('x')",
            &["nbval-raises-exception"],
            &[json!({"output_type": "error", "ename": "ValueError", "evalue": "x", "traceback": []})],
        ),
        ("print('at 2026-01-02')", &["nbval-check-output"], &[stdout("at 2025-01-01\n")]),
        ("undefined", &[], &[]),
    ];
    let notebook = write(&folder.join("nb.ipynb"), cells);
    let rules = folder.join("rules.cfg");
    std::fs::write(&rules, "[dates]\nregex: \\d{4}-\\d\\d-\\d\\d\nreplace: DATE\n").unwrap();
    let test = |arguments: &[&str]| Cli::new(&["test", "--sandbox", "process"]).args(arguments).path(&notebook).run();
    let differing = |arguments: &[&str]| {
        let ran = test(&[&["--json"][..], arguments].concat());
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        let cells = report["differences"].as_array().unwrap().iter().map(|one| one["cell"].as_u64().unwrap());
        (cells.collect::<Vec<u64>>(), ran.stderr)
    };
    let (cells, stderr) = differing(&[]);
    assert_eq!(cells, [1, 5, 6]);
    assert!(stderr.contains("-old") && stderr.contains("+new") && stderr.contains("NameError"), "{stderr}");
    assert_eq!(differing(&["--sanitize", rules.to_str().unwrap()]).0, [1, 6]);
    assert_eq!(differing(&["--lax"]).0, [5, 6]);
    let before = read(&notebook);
    test(&["--update"]);
    let after = read(&notebook);
    assert_eq!(after["cells"][1]["outputs"][0]["text"], json!(["new\n"]));
    assert_eq!(after["cells"][3]["outputs"][0]["text"], json!(["kept\n"]), "outputs of skipped cells stay");
    assert_eq!(after["metadata"], before["metadata"]);
    assert_eq!(differing(&[]).0, [6], "only the failing cell differs");
}

#[test]
fn documents_are_exported_beside_notebook() {
    let folder = scratch("run-to");
    let out = folder.join("done.ipynb");
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks/quickstart.ipynb");
    let run = Cli::new(&["run"])
        .path(&quickstart)
        .args(&["--sandbox", "process", "--to", "html,markdown,script", "-o"])
        .path(&out);
    let ran = run.run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for (name, part) in [("done.html", "<img"), ("done.md", "]("), ("done.py", "import")] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.contains(part), "{name}: {text}");
        assert!(ran.stderr.contains(name), "{name} is listed: {}", ran.stderr);
    }
    assert!(folder.join("done_files").is_dir(), "the images of the markdown");
    let refused =
        Cli::new(&["run"]).path(&quickstart).args(&["--sandbox", "process", "--to", "ipynb", "-o"]).path(&out).run();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
}

//! The GitHub action: its file is valid, and its shell script works with this build, without GitHub.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::cli::scratch;

fn action() -> Value {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("action.yml")).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

fn step<'a>(action: &'a Value, id: &str) -> &'a Value {
    action["runs"]["steps"].as_array().unwrap().iter().find(|step| step["id"] == id).unwrap()
}

#[test]
fn action_file_is_valid() {
    let action = action();
    assert_eq!(action["runs"]["using"], "composite");
    let inputs = action["inputs"].as_object().unwrap();
    assert!(inputs.values().all(|input| input["description"].is_string()), "{inputs:?}");
    for step in action["runs"]["steps"].as_array().unwrap() {
        assert!(step["uses"].is_string() || (step["run"].is_string() && step["shell"] == "bash"), "{step}");
        // No input is expanded in the script text, where it could become code.
        assert!(!step["run"].as_str().unwrap_or_default().contains("${{"), "{step}");
        for (_, value) in step["env"].as_object().into_iter().flatten() {
            let name = value.as_str().unwrap().trim_start_matches("${{ inputs.").trim_end_matches(" }}");
            assert!(inputs.contains_key(name), "{value} is no input");
        }
    }
}

#[test]
fn action_script_runs_and_tests_notebooks() {
    let folder = scratch("action");
    let cell = json!({"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "outputs": [], "source": "echo $((x + 1))"});
    let metadata = json!({"kernelspec": {"name": "bash", "display_name": "Bash", "language": "bash"}});
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": [cell]});
    std::fs::create_dir_all(folder.join("in")).unwrap();
    std::fs::write(folder.join("in/nb.ipynb"), notebook.to_string()).unwrap();
    // As on a runner, where sudo needs no password.
    let sudo = folder.join("sudo");
    std::fs::write(&sudo, "#!/bin/sh\nshift\nexec \"$@\"\n").unwrap();
    std::fs::set_permissions(&sudo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let action = action();
    for (mode, args, code) in [("run", "-p x 41", 0), ("test", "", 1)] {
        let inputs = [
            ("binary", env!("CARGO_BIN_EXE_cellkeep")),
            ("notebooks", "in"),
            ("mode", mode),
            ("args", args),
            ("jobs", "1"),
            ("kernels", "bash"),
        ];
        let temporary = folder.join(mode);
        std::fs::create_dir_all(&temporary).unwrap();
        let mut command = Command::new("bash");
        // The command line of a runner.
        command.args(["--noprofile", "--norc", "-eo", "pipefail", "-c"]).arg(step(&action, "run")["run"].as_str().unwrap());
        command.current_dir(&folder).env("PATH", &path).env("RUNNER_TEMP", &temporary);
        command.env("GITHUB_OUTPUT", temporary.join("output")).env("CELLKEEP_SANDBOX", "process");
        for (name, value) in step(&action, "run")["env"].as_object().unwrap() {
            let input = value.as_str().unwrap().trim_start_matches("${{ inputs.").trim_end_matches(" }}");
            command.env(name, inputs.iter().find(|(name, _)| *name == input).unwrap().1);
        }
        let done = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{mode}: {stderr}");
        let results = temporary.join("cellkeep-results");
        let output = std::fs::read_to_string(temporary.join("output")).unwrap();
        assert_eq!(output.trim(), format!("results={}", results.display()));
        let report: Value = serde_json::from_slice(&std::fs::read(results.join("report.json")).unwrap()).unwrap();
        assert!(report.is_object() && results.join("junit.xml").exists());
        if mode == "run" {
            let done: Value = serde_json::from_slice(&std::fs::read(results.join("notebooks/nb.ipynb")).unwrap()).unwrap();
            let cells = done["cells"].as_array().unwrap();
            assert_eq!(cells.last().unwrap()["outputs"][0]["text"], json!(["42\n"]), "{done}");
        }
    }
}

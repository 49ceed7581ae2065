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
            let name = value.as_str().unwrap().trim_start_matches("${{ ").trim_end_matches(" }}");
            let is_input = name.strip_prefix("inputs.").is_some_and(|name| inputs.contains_key(name));
            assert!(is_input || GITHUB_CONTEXT.contains(&name), "{value} is no input");
        }
    }
}

/// What the action reads of GitHub's context.
const GITHUB_CONTEXT: &[&str] = &["github.action_ref", "github.action_repository", "github.server_url"];

/// A folder with a release as GitHub serves it. Its cellkeep is a script.
fn release(folder: &Path, version: &str) {
    let name = format!("cellkeep-{version}-{}-linux-gnu", std::env::consts::ARCH);
    let files = folder.join(format!("cellkeep/cellkeep/releases/download/v{version}"));
    std::fs::create_dir_all(files.join(&name)).unwrap();
    std::fs::write(files.join(&name).join("cellkeep"), "#!/bin/sh\necho released\n").unwrap();
    let pack = format!("chmod +x {name}/cellkeep && tar -czf {name}.tar.gz {name} && sha256sum {name}.tar.gz >SHA256SUMS");
    assert!(Command::new("sh").args(["-c", &pack]).current_dir(&files).status().unwrap().success());
}

/// Runs the step that gets the binary, and returns its exit code, its messages, and what the binary prints.
fn get(folder: &Path, version: &str, action_ref: &str) -> (Option<i32>, String, Option<String>) {
    let action = action();
    let step = step(&action, "get");
    let temporary = folder.join(format!("runner-{version}-{action_ref}"));
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-eo", "pipefail", "-c"]).arg(step["run"].as_str().unwrap());
    for (name, value) in step["env"].as_object().unwrap() {
        command.env(
            name,
            match value.as_str().unwrap() {
                "${{ inputs.version }}" => version.to_owned(),
                "${{ github.action_ref }}" => action_ref.to_owned(),
                "${{ github.action_repository }}" => "cellkeep/cellkeep".to_owned(),
                "${{ github.server_url }}" => format!("file://{}", folder.display()),
                other => panic!("{other}"),
            },
        );
    }
    let done = command.env("RUNNER_TEMP", &temporary).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let binary = Command::new(temporary.join("cellkeep/cellkeep")).output().ok();
    (done.status.code(), told, binary.map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned()))
}

#[test]
fn action_takes_the_release_that_is_named() {
    let folder = scratch("action-release");
    release(&folder, "1.2.3");
    for (version, action_ref) in [("1.2.3", "main"), ("v1.2.3", ""), ("", "v1.2.3")] {
        let (code, told, printed) = get(&folder, version, action_ref);
        assert_eq!((code, printed.as_deref()), (Some(0), Some("released\n")), "{version} {action_ref}: {told}");
    }
}

#[test]
fn action_refuses_wrong_or_missing_releases() {
    let folder = scratch("action-no-release");
    release(&folder, "1.2.3");
    let sums = folder.join("cellkeep/cellkeep/releases/download/v1.2.3/SHA256SUMS");
    for (version, action_ref, message) in
        [("", "main", "is not a release"), ("", "", "is not a release"), ("9.9.9", "main", "is there a release 9.9.9")]
    {
        let (code, told, printed) = get(&folder, version, action_ref);
        assert!(code == Some(1) && told.contains("::error::") && told.contains(message), "{told}");
        assert_eq!(printed, None);
    }
    let right = std::fs::read_to_string(&sums).unwrap();
    for (runner, wrong) in [("v1.2.3", right.replace(&right[..4], "0000")), ("1.2.3", String::new())] {
        std::fs::write(&sums, wrong).unwrap();
        let (code, told, printed) = get(&folder, runner, "main");
        assert!(code == Some(1) && told.contains("does not match"), "{told}");
        assert_eq!(printed, None);
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

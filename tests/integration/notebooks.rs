//! The notebooks in `notebooks/` produce equal outputs in both sandboxes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::{Cli, scratch};
use crate::support::TestSandbox;

fn notebook(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks").join(format!("{name}.ipynb"))
}

/// Runs a notebook with `cellkeep run` and returns the outputs of its code cells.
fn outputs(name: &str, sandbox: &str) -> Vec<Value> {
    let folder = scratch(&format!("notebook-{name}-{sandbox}"));
    let out = folder.join("out.ipynb");
    let ran = Cli::new(&["run"])
        .path(&notebook(name))
        .args(&["--sandbox", sandbox, "-o"])
        .path(&out)
        .args(&["--memory", "1g"])
        .run();
    assert_eq!(ran.code, 0, "{name} in {sandbox}: {}", ran.stderr);
    let executed: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let cells = executed["cells"].as_array().unwrap().iter().filter(|cell| cell["cell_type"] == "code");
    let outputs: Vec<Value> = cells.map(|cell| cell["outputs"].clone()).collect();
    assert!(outputs.iter().any(|outputs| outputs.as_array().is_some_and(|outputs| !outputs.is_empty())));
    outputs
}

async fn assert_equal_in_both_sandboxes(name: &str) {
    let process = outputs(name, "process");
    if TestSandbox::docker().await.is_some() {
        let docker = outputs(name, "docker");
        for (cell, (process, docker)) in process.iter().zip(&docker).enumerate() {
            assert_eq!(process, docker, "code cell {cell} of {name}");
        }
    }
}

#[tokio::test]
async fn quickstart_outputs_are_equal() {
    assert_equal_in_both_sandboxes("quickstart").await;
}

#[tokio::test]
async fn python_outputs_are_equal() {
    assert_equal_in_both_sandboxes("python").await;
}

#[tokio::test]
async fn r_outputs_are_equal() {
    assert_equal_in_both_sandboxes("r").await;
}

#[tokio::test]
async fn deno_outputs_are_equal() {
    assert_equal_in_both_sandboxes("deno").await;
}

#[tokio::test]
async fn bash_outputs_are_equal() {
    assert_equal_in_both_sandboxes("bash").await;
}

#[tokio::test]
async fn julia_notebook_runs_if_image_exists() {
    // Runs only where the image was built: its base image is on no registry that this machine can reach.
    let ran = Cli::new(&["run"]).path(&notebook("julia")).args(&["--sandbox", "docker", "-o", "/dev/null"]).run();
    match ran.code {
        0 => {}
        3 => {
            eprintln!("skipped: no julia image: {}", ran.stderr);
            assert!(ran.stderr.contains("images build julia") || ran.stderr.contains("cannot be used"), "{}", ran.stderr);
        }
        code => panic!("exit code {code}: {}", ran.stderr),
    }
}

//! The notebooks in `notebooks/` run in both sandboxes, with equal outputs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::{Cli, scratch};
use crate::support::Place;

fn notebook(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks").join(format!("{name}.ipynb"))
}

/// Runs a notebook through the command line and gives its cells' outputs.
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

async fn runs_alike(name: &str) {
    let process = outputs(name, "process");
    if Place::docker().await.is_some() {
        let docker = outputs(name, "docker");
        for (cell, (ours, theirs)) in process.iter().zip(&docker).enumerate() {
            assert_eq!(ours, theirs, "code cell {cell} of {name}");
        }
    }
}

#[tokio::test]
async fn quickstart() {
    runs_alike("quickstart").await;
}

#[tokio::test]
async fn python() {
    runs_alike("python").await;
}

#[tokio::test]
async fn r() {
    runs_alike("r").await;
}

#[tokio::test]
async fn deno() {
    runs_alike("deno").await;
}

#[tokio::test]
async fn bash() {
    runs_alike("bash").await;
}

#[tokio::test]
async fn julia() {
    // Its base image is on no registry that this machine reaches, so it runs only where somebody has built it.
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

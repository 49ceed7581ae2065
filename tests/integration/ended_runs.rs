//! Runs that somebody ends, or that nobody waits for: what was produced is kept, and no sandbox is.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cellkeep::config::Paths;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli::{Cli, sandboxes_of, scratch, signal, wait_for_stderr};
use crate::support::TestSandbox;

fn write(path: &Path, sources: &[&str]) -> PathBuf {
    let cell = |(index, source): (usize, &&str)| json!({"cell_type": "code", "id": format!("c{index}"), "metadata": {}, "execution_count": null, "outputs": [], "source": source});
    let cells: Vec<Value> = sources.iter().enumerate().map(cell).collect();
    let metadata = json!({"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}});
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells});
    std::fs::write(path, notebook.to_string()).unwrap();
    path.to_owned()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn ctrl_c_ends_all_notebooks_that_run() {
    let folder = scratch("ctrl-c-many");
    let sources = ["print('kept')", "import time\nprint('sleeping', flush=True)\ntime.sleep(600)", "print('never')"];
    let mut command =
        Cli::new(&["run", "--sandbox", "process", "-j", "2", "--verbose", "--output-dir"]).path(&folder.join("out"));
    for name in ["a", "b", "c"] {
        command = command.path(&write(&folder.join(name).with_extension("ipynb"), &sources));
    }
    let mut child = command.start();
    // Both of the first two are in their second cell, and the third has not begun.
    wait_for_stderr(&mut child, "sleeping");
    wait_for_stderr(&mut child, "sleeping");
    assert_eq!(sandboxes_of(child.id()).len(), 2);
    let (pid, begun) = (child.id(), Instant::now());
    signal(&child, Signal::INT);
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(130), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(sandboxes_of(pid), Vec::<PathBuf>::new());
    for name in ["a", "b"] {
        let cells = &read(&folder.join("out").join(name).with_extension("ipynb"))["cells"];
        assert_eq!(cells[0]["outputs"][0]["text"], json!(["kept\n"]));
        assert_eq!(cells[1]["outputs"][0]["text"], json!(["sleeping\n"]));
        assert_eq!(cells[1]["outputs"][1]["ename"], "KeyboardInterrupt");
        assert_eq!(cells[2]["outputs"], json!([]));
    }
    assert!(!folder.join("out/c.ipynb").exists(), "it has not begun");
}

#[test]
fn a_kernel_that_starts_too_slowly_is_given_up() {
    let folder = scratch("start-timeout");
    let notebook = write(&folder.join("nb.ipynb"), &["print(1)"]);
    // A data folder of its own, so that all sandboxes in it are this test's.
    let data = folder.join("data");
    std::fs::create_dir_all(&data).unwrap();
    symlink(Paths::from_environment().data().join("kernels"), data.join("kernels")).unwrap();
    for limit in ["0.001", "0.05", "0.2"] {
        let ran =
            Cli::new(&["run", "--sandbox", "process", "--start-timeout", limit, "--data"]).path(&data).path(&notebook).run();
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("not ready after {limit} s (--start-timeout)")), "{}", ran.stderr);
        let left: Vec<_> = std::fs::read_dir(data.join("s")).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(!folder.join("nb.out.ipynb").exists());
    let ran =
        Cli::new(&["run", "--sandbox", "process", "--start-timeout", "100", "--data"]).path(&data).path(&notebook).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[tokio::test]
async fn a_notebook_frozen_to_an_image_is_refused_on_another() {
    if TestSandbox::docker().await.is_none() {
        return;
    }
    let folder = scratch("frozen-image");
    let (notebook, done) = (write(&folder.join("nb.ipynb"), &["print(1)"]), folder.join("done.ipynb"));
    let run = |arguments: &[&str], target: &Path, source: &Path| {
        Cli::new(&["run", "--sandbox", "docker"]).args(arguments).args(&["-o"]).path(target).path(source).run()
    };
    let ran = run(&[], &done, &notebook);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let mut record = read(&done);
    let image = record["metadata"]["cellkeep"]["environment"]["image"].as_str().unwrap().to_owned();
    let inspect = ["image", "inspect", "--format", "{{.Id}}", "cellkeep/python:latest"];
    let output = std::process::Command::new("docker").args(inspect).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), image, "the record names the image by its digest");
    let again = folder.join("again.ipynb");
    assert_eq!(run(&["--frozen"], &again, &done).code, 0);
    let other = format!("sha256:{}", "0".repeat(64));
    record["metadata"]["cellkeep"]["environment"]["image"] = json!(other);
    std::fs::write(&done, record.to_string()).unwrap();
    let refused = run(&["--frozen"], &folder.join("refused.ipynb"), &done);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("environment image: it was {other}, it is {image}")), "{}", refused.stderr);
    assert!(!folder.join("refused.ipynb").exists());
}

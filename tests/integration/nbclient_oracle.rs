//! Public notebooks produce the same outputs as under nbclient, on the same kernel (`tests/nbclient_oracle.py` compares).

use std::path::{Path, PathBuf};
use std::process::Command;

use cellkeep::config::Paths;
use cellkeep::kernels;

use crate::cli::scratch;
use crate::support::skip;

/// The notebooks that `scripts/notebook-sources.sh` downloaded.
fn notebooks(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = paths
        .flat_map(|path| {
            let is_notebook = path.extension().is_some_and(|extension| extension == "ipynb");
            if path.is_dir() { notebooks(&path) } else { Vec::from_iter(is_notebook.then_some(path)) }
        })
        .collect();
    found.sort();
    found
}

#[test]
fn public_notebooks_match_nbclient() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sources, python) = (root.join("target/notebook-sources"), root.join("target/test-venv/bin/python"));
    let kernel = kernels::environment(&Paths::from_environment(), kernels::find("python").unwrap());
    let (true, true, Ok(kernel)) = (sources.join("made-from.txt").exists(), python.exists(), kernel) else {
        return skip("no public notebooks, nbclient or kernel; run: make setup-test kernels");
    };
    let entries = std::fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path());
    let wheel = entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl")).unwrap();
    let notebooks = notebooks(&sources);
    assert!(notebooks.len() >= 80, "{} notebooks", notebooks.len());
    let out = scratch("nbclient-oracle");
    let compared = Command::new(python)
        .arg(root.join("tests/nbclient_oracle.py"))
        .args([Path::new(env!("CARGO_BIN_EXE_cellkeep")), &kernel, &out, &root.join("target/nbclient-results"), &wheel])
        .args(notebooks)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&compared.stdout).into_owned() + &String::from_utf8_lossy(&compared.stderr);
    println!("{told}");
    assert!(compared.status.success(), "{told}");
    let same = told.lines().filter(|line| line.starts_with("same: ")).count();
    assert!(same >= 65, "only {same} of them could be compared:\n{told}");
}

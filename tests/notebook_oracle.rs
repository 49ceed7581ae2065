//! Printing compared with Python's nbformat, byte for byte: what we print for a file is what `nbformat.write` prints
//! after reading (and, for older files, upgrading) the same one.
//!
//! Needs a Python with nbformat: `CELLKEEP_TEST_PYTHON`, else `target/test-venv/bin/python`. Without one the test is
//! skipped, and says so.

use cellkeep::notebook::{NewCell, Notebook, NotebookError};
use cellkeep::output::{OutputTarget, Outputs, StreamStyle};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Takes pairs of an original and our print of it. New cell ids are ours by design (Python's are random); `NaN` is
/// null by design (Python's is no JSON).
const ORACLE: &str = r#"
import json, logging, sys, warnings
import nbformat
from nbformat.v4 import upgrade
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
failed = 0
pairs = list(zip(sys.argv[1::2], sys.argv[2::2]))
unreadable = 0
for original, printed in pairs:
    ours = open(printed, encoding="utf8", newline="").read()
    text = open(original, encoding="utf8", newline="").read()
    try:
        nb = nbformat.reads(text, as_version=4, parse_constant=lambda _: None)
    except Exception as error:
        # What Python cannot read is no matter of bytes; ours must still be valid.
        unreadable += 1
        print(f"{original}: not read by nbformat: {type(error).__name__}")
        continue
    if nb.nbformat_minor < 5:
        nb = upgrade(nb)
    for cell, our_cell in zip(nb.cells, json.loads(ours)["cells"]):
        cell["id"] = our_cell["id"]
    theirs = nbformat.writes(nb) + "\n"
    if ours != theirs:
        failed += 1
        lines = zip(theirs.split("\n"), ours.split("\n"))
        place = next((n for n, (a, b) in enumerate(lines, 1) if a != b), "end")
        print(f"{original}: differs from nbformat at line {place}")
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError:
        continue  # The file itself is not valid, so that ours, byte for byte the same, is not either.
    try:
        nbformat.validate(json.loads(ours))
    except nbformat.ValidationError as error:
        failed += 1
        print(f"{original}: not valid: {str(error)[:500]}")
print(f"{len(pairs)} notebooks compared, {failed} failed, {unreadable} not read by nbformat")
failed += unreadable > 2
sys.exit(failed != 0)
"#;

fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("CELLKEEP_TEST_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| root.join("target/test-venv/bin/python"));
    let has_nbformat = Command::new(&python).args(["-c", "import nbformat"]).output().is_ok_and(|o| o.status.success());
    has_nbformat.then_some(python)
}

/// A notebook with the outputs of odd messages, as a hostile kernel may send them.
fn folded() -> Result<Notebook, NotebookError> {
    let mut outputs = Outputs::new(StreamStyle::Terminal);
    let cell = OutputTarget::cell(0);
    let messages: &[(&str, &str)] = &[
        ("stream", r#"{"text": ["a\r", "bc\n\u2028"]}"#),
        ("display_data", r#"{"data": {"text/plain": null, "image/png": 1.50, "text/html": [1, "x"]}}"#),
        ("display_data", r#"{"data": {"application/json": NaN}, "metadata": 3, "transient": null}"#),
        ("execute_result", r#"{"data": [1], "execution_count": -5}"#),
        ("execute_result", r#"{"execution_count": "x", "extra": 1}"#),
        ("error", r#"{"ename": null, "traceback": [1, "t", {"a": 1e5}]}"#),
        ("error", "{broken"),
        ("stream", r#"{"name": 5, "text": "\ud800 \u0000"}"#),
    ];
    for (msg_type, content) in messages {
        outputs.apply(cell, msg_type, content.as_bytes());
    }
    let mut notebook = Notebook::new("python3", "Python 3", "python");
    notebook.insert_cell(0, NewCell::code("a\nb").with_tags(&["x"]));
    notebook.insert_cell(1, NewCell::markdown("# T"));
    notebook.set_outputs(0, outputs.finish(cell), Some(1))?;
    notebook.set_execution_timing(0, &[("iopub.status.busy", "2026-01-02T03:04:05.000006Z")])?;
    Ok(notebook)
}

/// All notebooks in a folder, and below it.
fn notebooks(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let is_notebook = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "ipynb");
    let all = paths.flat_map(|path| if path.is_dir() { notebooks(&path) } else { vec![path] }.into_iter());
    let mut all: Vec<PathBuf> = all.filter(is_notebook).collect();
    all.sort();
    all
}

#[test]
fn prints_what_nbformat_prints() {
    let Some(python) = python() else {
        println!("skipped: no Python with nbformat (CELLKEEP_TEST_PYTHON or target/test-venv/bin/python)");
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/notebooks");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("notebook_oracle");
    std::fs::create_dir_all(&out).unwrap();
    let mut pairs = Vec::new();
    // Public notebooks, where they have been fetched (scripts/notebook-sources.sh), and our own.
    let public = notebooks(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/notebook-sources"));
    for (number, path) in notebooks(&folder).into_iter().chain(public).enumerate() {
        let notebook = match Notebook::parse(&std::fs::read(&path).unwrap()) {
            Ok(notebook) => notebook,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let printed = out.join(format!("{number}.ipynb"));
        std::fs::write(&printed, notebook.print()).unwrap();
        pairs.extend([path, printed]);
    }
    assert!(pairs.len() >= 16, "fixtures are missing in {}", folder.display());
    let printed = out.join("folded.ipynb");
    std::fs::write(&printed, folded().unwrap().print()).unwrap();
    pairs.extend([printed.clone(), printed]);
    let oracle = Command::new(python).arg("-c").arg(ORACLE).args(&pairs).output().unwrap();
    let told = String::from_utf8_lossy(&oracle.stdout).into_owned() + &String::from_utf8_lossy(&oracle.stderr);
    assert!(oracle.status.success(), "{told}");
    println!("{told}");
}

//! Invalid notebooks: repairable ones are repaired with a warning, all others are refused with the position of the error.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{Cli, Done, scratch};

fn notebook(cells: &Value) -> Value {
    let metadata = json!({"kernelspec": {"name": "bash", "display_name": "Bash", "language": "bash"}});
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells})
}

fn cell(id: &str, source: &str) -> Value {
    json!({"cell_type": "code", "id": id, "metadata": {}, "execution_count": null, "outputs": [], "source": source})
}

fn run(folder: &Path, bytes: &[u8]) -> Done {
    let source = folder.join("nb.ipynb");
    std::fs::write(&source, bytes).unwrap();
    Cli::new(&["run", "--sandbox", "process", "--no-record", "-o"]).path(&folder.join("out.ipynb")).path(&source).run()
}

#[test]
fn invalid_file_is_refused_with_position() {
    let folder = scratch("no-notebooks");
    let future = json!({"nbformat": 5, "nbformat_minor": 0, "metadata": {}, "cells": []}).to_string();
    let deep = "[".repeat(100_000);
    for (text, reason) in [
        ("", "the file is empty"),
        ("hello", "not JSON at line 1 column 1"),
        ("[]", "not a notebook"),
        (r#"{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}}"#, "more text after the end"),
        (r#"{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": {}}"#, "cells is missing or not a list"),
        (r#"{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}"#, "cell 0 is not an object"),
        (&future, "notebook format 5 is not supported"),
        (&deep, "nested deeper than"),
    ] {
        let ran = run(&folder, text.as_bytes());
        assert_eq!(ran.code, 2, "{reason}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: cannot read") && ran.stderr.contains(reason), "{reason}: {}", ran.stderr);
        assert!(!folder.join("out.ipynb").exists());
    }
    let unknown = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "cobol"}}, "cells": []});
    let ran = run(&folder, unknown.to_string().as_bytes());
    assert!(ran.code == 2 && ran.stderr.contains("no kernel \"cobol\""), "{}", ran.stderr);
}

#[test]
fn repairable_notebook_is_repaired_and_run() {
    let folder = scratch("mended-notebooks");
    let text = |value: Value| value.to_string().into_bytes();
    let good = || notebook(&json!([cell("a", "echo ran")]));
    let with = |key: &str, value: Value| {
        let mut bad = good();
        bad[key] = value;
        bad
    };
    let with_cell = |key: &str, value: Value| {
        let mut bad = good();
        bad["cells"][0][key] = value;
        bad
    };
    let without = |pointer: &str, key: &str| {
        let mut bad = good();
        bad.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key);
        bad
    };
    let raw = |from: &str, to: &str| good().to_string().replace(from, to).into_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (text(without("/cells/0", "id")), "cell 0 had no id"),
        (text(notebook(&json!([cell("a", "echo ran"), cell("a", "echo ran")]))), "cell 1 had the id of another cell"),
        (text(with_cell("id", json!(5))), "cell 0 had an invalid id"),
        (text(with_cell("id", json!("a b/\u{fc}"))), "cell 0 had an invalid id"),
        (text(with_cell("execution_count", json!("5"))), "execution_count was missing or of the wrong type"),
        (text(with_cell("metadata", json!([]))), "metadata was missing or of the wrong type"),
        (text(with_cell("outputs", json!({}))), "outputs was missing or of the wrong type"),
        (text(without("", "nbformat_minor")), "nbformat_minor was missing"),
        (text(with("nbformat_minor", json!(99))), "newer than this program"),
        (raw("\"metadata\":{}", "\"metadata\":{\"x\":NaN}"), "NaN or infinite numbers became null"),
        (raw("echo ran", "echo ran # \\ud800"), "lone surrogates became U+FFFD"),
        ([b"\xef\xbb\xbf", good().to_string().as_bytes()].concat(), "byte-order mark"),
    ];
    for (bytes, warning) in cases {
        let ran = run(&folder, &bytes);
        assert_eq!(ran.code, 0, "{warning}: {}", ran.stderr);
        assert!(ran.stderr.contains(warning), "{warning}: {}", ran.stderr);
        let done: Value = serde_json::from_slice(&std::fs::read(folder.join("out.ipynb")).unwrap()).unwrap();
        let cells = done["cells"].as_array().unwrap();
        assert!(cells.iter().all(|cell| cell["outputs"][0]["text"] == json!(["ran\n"])), "{warning}: {done}");
        let ids: std::collections::BTreeSet<&str> = cells.iter().filter_map(|cell| cell["id"].as_str()).collect();
        assert!(done["nbformat_minor"].as_u64() < Some(5) || ids.len() == cells.len(), "{warning}: {done}");
    }
}

#[test]
fn large_notebooks_run() {
    let folder = scratch("large-notebooks");
    let many: Vec<Value> = (0..2000).map(|index| cell(&format!("c{index}"), &format!("echo {index}"))).collect();
    let ran = run(&folder, notebook(&json!(many)).to_string().as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let done: Value = serde_json::from_slice(&std::fs::read(folder.join("out.ipynb")).unwrap()).unwrap();
    for (index, cell) in done["cells"].as_array().unwrap().iter().enumerate() {
        assert_eq!(cell["outputs"][0]["text"], json!([format!("{index}\n")]));
    }
    // 100 MB, mostly an attachment, which must stay unchanged.
    let attachment = "QUJD".repeat(25 << 20);
    let picture = json!({"cell_type": "markdown", "id": "m", "metadata": {}, "source": "![x](attachment:x.png)", "attachments": {"x.png": {"image/png": attachment}}});
    let ran = run(&folder, notebook(&json!([picture, cell("a", "echo ran")])).to_string().as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let done: Value = serde_json::from_slice(&std::fs::read(folder.join("out.ipynb")).unwrap()).unwrap();
    assert!(done["cells"][0]["attachments"]["x.png"]["image/png"] == attachment.as_str());
    assert_eq!(done["cells"][1]["outputs"][0]["text"], json!(["ran\n"]));
    std::fs::remove_dir_all(folder).unwrap();
}

use super::*;
use proptest::prelude::*;

fn parse(value: &Value) -> Notebook {
    Notebook::parse(value.to_string().as_bytes()).unwrap()
}

fn sample() -> Value {
    json!({
        "cells": [
            {"cell_type": "markdown", "id": "a", "metadata": {"tags": ["x", "y"]}, "source": ["# T\n", "text"]},
            {"cell_type": "code", "id": "b", "metadata": {}, "source": "1\n2", "outputs": [], "execution_count": null},
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "P"}, "language_info": {"name": "python"}},
        "nbformat": 4, "nbformat_minor": 5,
    })
}

#[test]
fn accessors_read_cells_and_metadata() {
    let notebook = parse(&sample());
    assert_eq!(notebook.warnings(), []);
    assert_eq!((notebook.len(), notebook.minor()), (2, 5));
    assert_eq!((notebook.kernelspec_name(), notebook.language()), (Some("python3"), Some("python")));
    let cell = notebook.cell(0).unwrap();
    assert_eq!((cell.cell_type(), cell.id(), &*cell.source()), ("markdown", "a", "# T\ntext"));
    assert!(cell.has_tag("y") && !cell.is_code());
    assert_eq!(notebook.find("b"), Some(1));
}

#[test]
fn edits_change_nothing_else() {
    let mut notebook = parse(&sample());
    let count = json!({"output_type": "execute_result", "data": {"text/plain": 1}, "execution_count": -1, "junk": 1});
    notebook.set_outputs(1, vec![count], Some(3)).unwrap();
    notebook.set_execution_timing(1, &[("iopub.status.busy", "2026-01-01T00:00:00.000000Z")]).unwrap();
    notebook.metadata_mut().insert("cellkeep".to_owned(), json!({"v": 1}));
    notebook.set_language_info(json!({"name": "R"}));
    let id = notebook.insert_cell(1, NewCell::code("p = 1").with_tags(&["injected-parameters"]));
    let again = notebook.insert_cell(9, NewCell::markdown("end").with_id(id.clone()));
    assert_ne!(id, again, "a taken id is not used again");
    let cell = notebook.cell(2).unwrap();
    assert_eq!(cell.execution_count(), Some(3));
    assert_eq!(
        cell.outputs(),
        [json!({"output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}, "execution_count": null})]
    );
    assert_eq!(notebook.language(), Some("R"));
    assert_eq!(notebook.set_outputs(0, vec![], None), Err(NotebookError::NotCode { index: 0 }));
    assert_eq!(notebook.set_source(9, ""), Err(NotebookError::NoSuchCell { index: 9, len: 4 }));
    notebook.remove_cell(3).unwrap();
    let printed = notebook.print();
    assert_eq!(Notebook::parse(printed.as_bytes()).unwrap().print(), printed);
}

#[test]
fn printing_equals_python() {
    let mut value = sample();
    value["metadata"]["signature"] = json!("gone");
    value["cells"][0]["metadata"]["trusted"] = json!(true);
    value["cells"][1]["source"] = json!("a\r\nb\u{2028}c\u{7f}\u{1}\"");
    let expected = r##"{
 "cells": [
  {
   "cell_type": "markdown",
   "id": "a",
   "metadata": {
    "tags": [
     "x",
     "y"
    ]
   },
   "source": [
    "# T\n",
    "text"
   ]
  },
  {
   "cell_type": "code",
   "execution_count": null,
   "id": "b",
   "metadata": {},
   "outputs": [],
   "source": [
    "a\r\n",
    "b LS",
    "cDEL\u0001\""
   ]
  }
 ],
"##;
    let printed = parse(&value).print();
    let expected = expected.replace(" LS", "\u{2028}").replace("DEL", "\u{7f}");
    assert!(printed.starts_with(&expected), "{printed}");
    assert!(!printed.contains("gone") && printed.ends_with("}\n"));
}

#[test]
fn ids_are_repaired_and_reproducible() {
    let mut value = sample();
    value["nbformat_minor"] = json!(2);
    let cells = value["cells"].as_array_mut().unwrap();
    cells.iter_mut().for_each(|cell| drop(cell.as_object_mut().unwrap().remove("id")));
    let (one, two) = (parse(&value), parse(&value));
    assert_eq!(one, two);
    assert_eq!(one.warnings(), [NotebookWarning::Upgraded { major: 4, minor: 2 }]);
    assert_ne!(one.cell(0).unwrap().id(), one.cell(1).unwrap().id());

    value["nbformat_minor"] = json!(5);
    value["cells"][0]["id"] = json!("not valid");
    let extra = json!({"cell_type": "raw", "id": "same", "metadata": {}, "source": ""});
    value["cells"].as_array_mut().unwrap().extend([extra.clone(), extra]);
    let notebook = parse(&value);
    let kinds: Vec<String> = notebook.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    assert!(kinds[0].contains("invalid id") && kinds[1].contains("no id") && kinds[2].contains("another cell"));
    assert_eq!(notebook.cell(2).unwrap().id(), "same", "the first keeps it");
}

#[test]
fn newer_minor_versions_are_kept() {
    let mut value = sample();
    value["nbformat_minor"] = json!(99);
    value["future"] = json!({"b": 1});
    value["cells"][0]["cell_type"] = json!("hologram");
    let notebook = parse(&value);
    assert_eq!(notebook.warnings(), [NotebookWarning::NewerMinor { minor: 99 }]);
    assert_eq!(notebook.cell(0).unwrap().cell_type(), "hologram");
    assert!(notebook.print().contains("\"nbformat_minor\": 99"));
}

#[test]
fn version_3_is_upgraded() {
    let value = json!({
        "nbformat": 3, "nbformat_minor": 0, "metadata": {"name": "x"},
        "worksheets": [{"metadata": {}, "cells": [
            {"cell_type": "heading", "level": 2, "source": ["A\n", "B"], "metadata": {}},
            {"cell_type": "code", "collapsed": true, "input": ["a", "b"], "language": "python", "prompt_number": 4,
             "metadata": {}, "outputs": [
                {"output_type": "pyout", "prompt_number": 4, "text": ["1\n", "2"], "json": "{\"a\": 1.0}", "metadata": {}},
                {"output_type": "stream", "stream": "stderr", "text": "x"},
                {"output_type": "pyerr", "ename": "E", "evalue": "v", "traceback": ["t"]}]},
        ]}],
    });
    let notebook = parse(&value);
    assert_eq!(&*notebook.cell(0).unwrap().source(), "## A B");
    let cell = notebook.cell(1).unwrap();
    assert_eq!((&*cell.source(), cell.execution_count()), ("a\nb", Some(4)));
    assert_eq!(cell.outputs()[0]["data"], json!({"text/plain": "1\n2", "application/json": {"a": 1.0}}));
    assert_eq!(cell.outputs()[1]["name"], "stderr");
    assert_eq!(cell.outputs()[2]["output_type"], "error");
}

#[test]
fn errors_name_the_kind_of_file() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "the JSON text ends early, at line 1 column 1 (the file is empty)"),
        (b"{\"cells\": [", "the JSON text ends early, at line 1 column 12"),
        (b"<html>", "not JSON at line 1 column 1: expected a value (this looks like a web page, not a notebook)"),
        (b"{\n<<<<<<< HEAD\n", "unresolved merge conflicts"),
        (b"[]", "JSON, but not a notebook: the file is not a JSON object"),
        (b"{}", "JSON, but not a notebook: nbformat is missing"),
        (b"{\"nbformat\": 2}", "notebook format 2 is not supported"),
        (b"{\"nbformat\": 5}", "newer program"),
        (b"{\"nbformat\": 4, \"nbformat_minor\": 5}", "cells is missing"),
        (b"{\"nbformat\": 4, \"nbformat_minor\": 5, \"cells\": [1]}", "cell 0 is not an object"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ];
    for (bytes, expected) in cases {
        let error = Notebook::parse(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_fields_get_empty_values_and_warnings() {
    let value = json!({"nbformat": 4, "cells": [{"cell_type": "code"}]});
    let notebook = parse(&value);
    let fields = notebook.warnings().iter().filter(|warning| matches!(warning, NotebookWarning::Field { .. }));
    assert_eq!(fields.count(), 6);
    assert_eq!(notebook.minor(), 5);
}

fn any_text() -> impl Strategy<Value = Value> {
    let text = "[ab\r\n\u{b}\u{85}\u{2028}é\"\\\\]{0,8}";
    prop_oneof![text.prop_map(Value::from), proptest::collection::vec(text, 0..4).prop_map(Value::from),]
}

fn any_notebook() -> impl Strategy<Value = Value> {
    let output = prop_oneof![
        any_text().prop_map(|text| json!({"output_type": "stream", "name": "stdout", "text": text})),
        (any_text(), any::<f64>()).prop_map(|(text, number)| json!({
            "output_type": "display_data", "metadata": {"n": number},
            "data": {"text/plain": text, "image/png": text, "application/json": text},
        })),
    ];
    let cell = (any_text(), proptest::collection::vec(output, 0..3)).prop_map(|(source, outputs)| {
        json!({"cell_type": "code", "metadata": {}, "source": source, "outputs": outputs, "execution_count": 1})
    });
    proptest::collection::vec(cell, 0..4)
        .prop_map(|cells| json!({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
}

proptest! {
    #[test]
    fn printing_is_a_fixed_point(value in any_notebook()) {
        let notebook = parse(&value);
        let printed = notebook.print();
        let again = Notebook::parse(printed.as_bytes()).unwrap();
        prop_assert_eq!(again.warnings(), []);
        prop_assert_eq!(again.print(), printed);
        for (one, two) in notebook.cells().zip(again.cells()) {
            prop_assert_eq!(one.source(), two.source());
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = Notebook::parse(&bytes);
    }
}

#[test]
fn number_of_values_can_be_limited() {
    let file = |lists: usize| {
        format!(
            "{{\"nbformat\": 4, \"nbformat_minor\": 5, \"cells\": [], \"metadata\": {{\"a\": [{}]}}}}",
            vec!["[0]"; lists].join(",")
        )
    };
    assert!(Notebook::parse_within(file(100).as_bytes(), 250).is_ok());
    let refused = Notebook::parse_within(file(200).as_bytes(), 250).unwrap_err().to_string();
    assert!(refused.contains("more than 250 JSON values"), "{refused}");
    assert!(Notebook::parse(file(10_000).as_bytes()).is_ok());
}

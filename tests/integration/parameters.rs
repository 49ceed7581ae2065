//! Parameters reach real kernels with their type and every character, and no value becomes code.

use serde_json::{Value, json};

use crate::cli::{Cli, scratch};

/// Runs a notebook of one cell with parameters from YAML, and returns its output.
fn printed(name: &str, kernel: &str, defaults: &str, code: &str, yaml: &str) -> String {
    let folder = scratch(&format!("parameters-{name}"));
    let cell = |id: &str, source: &str, tags: &[&str]| json!({"cell_type": "code", "id": id, "metadata": {"tags": tags}, "execution_count": null, "outputs": [], "source": source});
    let cells = [cell("a", defaults, &["parameters"]), cell("b", code, &[])];
    let metadata = json!({"kernelspec": {"name": kernel, "display_name": kernel}});
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells});
    std::fs::write(folder.join("nb.ipynb"), notebook.to_string()).unwrap();
    std::fs::write(folder.join("p.yaml"), yaml).unwrap();
    let ran = Cli::new(&["run"])
        .path(&folder.join("nb.ipynb"))
        .args(&["-f"])
        .path(&folder.join("p.yaml"))
        .args(&["--strict-parameters", "--sandbox", "process", "--no-record"])
        .run();
    assert_eq!(ran.code, 0, "{kernel}: {}", ran.stderr);
    let done: Value = serde_json::from_slice(&std::fs::read(folder.join("nb.out.ipynb")).unwrap()).unwrap();
    assert_eq!(done["cells"].as_array().unwrap().len(), 3);
    cellkeep::output::text_of(done["cells"][2]["outputs"].as_array().unwrap())
}

/// A text with the special characters of each language.
const TEXT: &str = "a\"b'c\\d$e${f}`g`#{h}%i\n\r\tj\u{1}\u{7f}k é 𝄞 \u{2028}!l";

fn yaml(values: &[(&str, &str)]) -> String {
    // YAML accepts these characters only as escapes.
    let own = format!("text: {}\n", json!(TEXT)).replace('\u{7f}', "\\x7f").replace('\u{2028}', "\\u2028");
    values.iter().fold(own, |all, (name, value)| format!("{all}{name}: {value}\n"))
}

/// The code points of [`TEXT`], as the kernels print them.
fn codes() -> String {
    TEXT.chars().map(|symbol| u32::from(symbol).to_string()).collect::<Vec<_>>().join(" ")
}

const VALUES: &[(&str, &str)] = &[
    ("i", "-7"),
    ("f", "2.0"),
    ("big", "123456789012345678901234567890"),
    ("yes", "true"),
    ("none", "null"),
    ("nan", ".nan"),
    ("inf", "-.inf"),
    ("list", "[1, 'x', [2.5]]"),
    ("map", "{k: {'a b': 1}, '__proto__': 2}"),
];

#[test]
fn python_values_keep_type_and_text() {
    let defaults = "text = i = f = big = yes = none = nan = inf = list = map = 0\ntext = ''\ni=f=0\nf=big=yes=none=nan=inf=0\nbig=0\nyes=0\nnone=0\nnan=0\ninf=0\nlist=0\nmap=0";
    let code = "print(*map_(ord, text)); print(repr([i, f, big, yes, none, nan, inf, list, map]))";
    let code = format!("import builtins; map_ = builtins.map; {code}");
    let output = printed("python", "python3", defaults, &code, &yaml(VALUES));
    let values = "[-7, 2.0, 123456789012345678901234567890, True, None, nan, -inf, [1, 'x', [2.5]], {'k': {'a b': 1}, '__proto__': 2}]";
    assert_eq!(output, format!("{}\n{values}\n", codes()));
}

#[test]
fn r_values_keep_type_and_text() {
    let defaults = "text <- ''\ni <- 0\nf <- 0\nyes <- 0\nnone <- 0\nnan <- 0\ninf <- 0\nlist <- 0\nmap <- 0\nbig <- 0";
    let code = "cat(utf8ToInt(text), '\\n'); cat(i, f, is.double(f), yes, is.null(none), is.nan(nan), inf, big == 123456789012345678901234567890, length(list), list[[2]], list[[3]][[1]], map$k$`a b`, '\\n')";
    let output = printed("r", "ir", defaults, code, &yaml(VALUES));
    assert_eq!(output, format!("{} \n-7 2 TRUE TRUE TRUE TRUE -Inf TRUE 3 x 2.5 1 \n", codes()));
}

#[test]
fn typescript_values_keep_type_and_text() {
    let defaults = "let text = '';\nlet i = 0;\nconst f = 0;\nvar big = 0;\nlet yes = false, none_;\nlet none = 1;\nlet nan = 1;\nlet inf = 1;\nlet list: any = [];\nlet map: any = {};";
    let code = "console.log([...text].map((c) => c.codePointAt(0)).join(' ')); console.log(i, f, String(big), typeof big, yes, none, nan, inf, JSON.stringify([list, map.k, map.__proto__]))";
    let output = printed("deno", "deno", defaults, code, &yaml(VALUES));
    let values = "-7 2 123456789012345678901234567890 bigint true null NaN -Infinity [[1,\"x\",[2.5]],{\"a b\":1},2]";
    assert_eq!(
        output.replace("\u{1b}[33m", "").replace("\u{1b}[39m", "").replace("\u{1b}[1m", "").replace("\u{1b}[22m", ""),
        format!("{}\n{values}\n", codes())
    );
}

#[test]
fn bash_values_keep_text() {
    let defaults = "text=\ni=0\nf=0\nyes=0\nnone=x\nlist=";
    let values = [("i", "-7"), ("f", "2.0"), ("yes", "true"), ("none", "null"), ("list", "[1, 'x y', \"it's $HOME\"]")];
    let code =
        "printf '%s' \"$text\" | od -An -tx1 -v | tr -d ' \\n'; echo; echo \"$i $f $yes [$none] ${#list[@]} ${list[2]}\"";
    let output = printed("bash", "bash", defaults, code, &yaml(&values));
    let bytes: String = TEXT.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(output, format!("{bytes}\n-7 2.0 true [] 3 it's $HOME\n"));
}

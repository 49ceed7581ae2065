//! The command `cellkeep export`, and its pages in a real browser.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::{Cli, Done, scratch};
use crate::support::browser::Browser;
use crate::support::skip;

/// A notebook with every kind of output.
fn every_output() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/export/every_output.ipynb")
}

fn notebook(folder: &Path, name: &str, cells: &Value) -> PathBuf {
    let path = folder.join(name);
    let metadata = json!({"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}});
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells});
    std::fs::write(&path, notebook.to_string()).unwrap();
    path
}

fn code(id: &str, source: &str, outputs: &Value) -> Value {
    json!({"cell_type": "code", "id": id, "metadata": {}, "source": source, "outputs": outputs, "execution_count": 1})
}

fn export(arguments: &[&str], notebook: &Path) -> Done {
    Cli::new(&["export"]).path(notebook).args(arguments).run()
}

#[test]
fn each_format_has_a_default_output_path() {
    let folder = scratch("export-formats");
    let picture = json!([{"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0KGgo="}}]);
    let path = notebook(&folder, "a b.ipynb", &json!([code("a", "x = 1", &picture)]));
    let done = export(&["--to", "html,markdown,script", "--title", "T <b>"], &path);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(read("a b.html").contains("<title>T &lt;b&gt;</title>"));
    assert!(read("a b.md").contains("![output](a%20b_files/cell-01-output-1.png)"));
    assert_eq!(std::fs::read(folder.join("a b_files/cell-01-output-1.png")).unwrap(), b"\x89PNG\r\n\x1a\n");
    assert!(read("a b.py").ends_with("x = 1\n"));
    // A notebook is not overwritten by its export.
    let onto_itself = export(&["--to", "ipynb", "--no-outputs"], &path);
    assert!(onto_itself.code == 2 && onto_itself.stderr.contains("is the notebook itself"), "{}", onto_itself.stderr);
    let bare = export(&["--to", "ipynb", "--no-outputs", "-o", "-"], &path);
    assert!(bare.stdout.contains("\"outputs\": []"), "{}", bare.stdout);
}

#[test]
fn exports_pipes_and_several_notebooks() {
    let folder = scratch("export-many");
    let bytes = std::fs::read(notebook(&folder, "a.ipynb", &json!([code("a", "x", &json!([]))]))).unwrap();
    let piped = Cli::new(&["export", "-", "--to", "script", "--script-style", "percent"]).input(&bytes).run();
    assert!(piped.code == 0 && piped.stdout.ends_with("\n# %%\nx\n"), "{}{}", piped.stdout, piped.stderr);
    std::fs::write(folder.join("bad.ipynb"), "no notebook").unwrap();
    std::fs::write(folder.join("b.ipynb"), &bytes).unwrap();
    let out = folder.join("out");
    let all = Cli::new(&["export", "--output-dir"]).path(&out);
    let all = all.path(&folder.join("a.ipynb")).path(&folder.join("bad.ipynb")).path(&folder.join("b.ipynb")).run();
    assert!(all.code == 2 && all.stderr.contains("bad.ipynb"), "{}", all.stderr);
    assert!(out.join("a.html").is_file() && out.join("b.html").is_file());
    let two_into_one = export(&["--to", "html,script", "-o", "x"], &folder.join("a.ipynb"));
    assert!(two_into_one.code == 2 && two_into_one.stderr.contains("--output-dir"), "{}", two_into_one.stderr);
    assert_eq!(export(&[], &folder.join("none.ipynb")).code, 2);
}

#[test]
fn pdf_without_browser_suggests_an_alternative() {
    let folder = scratch("export-no-pdf");
    let path = notebook(&folder, "a.ipynb", &json!([]));
    let none = Cli::new(&["export", "--to", "pdf"]).path(&path).env("PATH", "/nowhere").env("CELLKEEP_CHROMIUM", "").run();
    assert!(
        none.code == 2 && none.stderr.contains("CELLKEEP_CHROMIUM=") && none.stderr.contains("--to html"),
        "{}",
        none.stderr
    );
    let wrong = Cli::new(&["export", "--to", "pdf"]).path(&path).env("CELLKEEP_CHROMIUM", "/bin/true").run();
    assert!(wrong.code == 2 && wrong.stderr.contains("produced no PDF"), "{}", wrong.stderr);
}

#[test]
fn pdf_is_printed() {
    let folder = scratch("export-pdf");
    if Browser::program().is_none() {
        return skip("there is no Chromium; run: make setup-test");
    }
    let out = folder.join("every.pdf");
    let done = Cli::new(&["export", "--to", "pdf", "-o"]).path(&out).path(&every_output()).run();
    assert_eq!(done.code, 0, "{}", done.stderr);
    let pdf = std::fs::read(out).unwrap();
    assert!(pdf.starts_with(b"%PDF-") && pdf.len() > 50_000, "{}", pdf.len());
}

/// The page with every kind of output: no requests, no console errors, no access of the notebook's scripts outside their
/// frames, and all plots are drawn.
#[tokio::test]
async fn browser_shows_every_output() {
    let folder = scratch("export-browser");
    let Some(program) = Browser::program() else { return skip("there is no Chromium; run: make setup-test") };
    let page = folder.join("every.html");
    let done = Cli::new(&["export", "-o"]).path(&page).path(&every_output()).run();
    assert_eq!(done.code, 0, "{}", done.stderr);
    let mut browser = Browser::start(&program, &folder.join("profile")).await;
    browser.open(&format!("file://{}", page.display())).await;
    // Frames load when they come into view, so the test scrolls.
    let state = "JSON.stringify({pwned: window.pwned, images: [...document.images].every(i => i.complete && i.naturalWidth > 0), \
        plots: document.querySelectorAll('.plot').length, maths: document.querySelectorAll('math').length, \
        frames: [...document.querySelectorAll('iframe')].map(f => [f.title, f.getAttribute('sandbox'), f.offsetHeight, f.dataset.drawn])})";
    let made_here = cellkeep_has_libraries(&page);
    let plots = if made_here { 3 } else { 0 };
    let seen = browser
        .until("document.querySelectorAll('.plot').forEach(p => p.scrollIntoView())", state, |state| {
            let frames = state["frames"].as_array().unwrap();
            let drawn =
                frames.iter().filter(|frame| ["plotly", "vega"].contains(&frame[3].as_str().unwrap_or_default())).count();
            drawn == plots && frames.len() == plots + 3 && frames.iter().all(|frame| frame[2].as_u64().unwrap_or(0) > 20)
        })
        .await;
    assert_eq!(seen["plots"], plots);
    assert_eq!(seen["images"], true, "{seen}");
    assert!(seen["maths"].as_u64().unwrap() > 5, "{seen}");
    assert_eq!(seen["pwned"], Value::Null, "a notebook's script reached the page");
    for frame in seen["frames"].as_array().unwrap() {
        assert_eq!(frame[1], "allow-scripts allow-downloads", "{frame}");
    }
    // The theme changes in frames, too, and plots are drawn again.
    browser.evaluate("document.getElementById('theme').click()").await;
    assert_eq!(browser.evaluate("document.documentElement.dataset.theme").await, "dark");
    browser.evaluate("document.getElementById('code').click()").await;
    assert_eq!(browser.evaluate("document.querySelectorAll('details.in[open]').length").await, 0);
    let width = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
    assert_eq!(width, 0, "the page is wider than the window");
    let (complaints, requests) = browser.finish().await;
    assert_eq!(complaints, [""; 0]);
    assert_eq!(requests, [""; 0]);
}

/// If no output has scripts of its own, the policy lists every script by its hash, and plots are still drawn.
#[tokio::test]
async fn plots_are_drawn_under_the_strict_policy() {
    let folder = scratch("export-strict");
    let Some(program) = Browser::program() else { return skip("there is no Chromium; run: make setup-test") };
    let display = |mime: &str, spec: &Value| json!([{"output_type": "display_data", "metadata": {}, "data": {mime: spec}}]);
    let bars = json!({"data": {"values": [{"a": "x", "b": 1}, {"a": "y", "b": 2}]}, "mark": "bar",
        "transform": [{"calculate": "datum.b * 2", "as": "c"}],
        "encoding": {"x": {"field": "a", "type": "nominal"}, "y": {"field": "c", "type": "quantitative"}}});
    let figure = json!({"data": [{"type": "histogram", "x": [1, 1, 2]}], "layout": {}});
    let table = json!([{"output_type": "display_data", "metadata": {}, "data": {"text/html": "<style>td{color:red}</style><table><tr><td>1</td></tr></table>"}}]);
    let cells = json!([
        code("a", "1", &display("application/vnd.vegalite.v3+json", &bars)),
        code("b", "2", &display("application/vnd.vegalite.v6.json", &bars)),
        code("c", "3", &display("application/vnd.plotly.v1+json", &figure)),
        code("d", "4", &table)
    ]);
    let path = notebook(&folder, "a.ipynb", &cells);
    assert_eq!(export(&[], &path).code, 0);
    let page = folder.join("a.html");
    if !cellkeep_has_libraries(&page) {
        return;
    }
    let text = std::fs::read_to_string(&page).unwrap();
    let policy = text.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(policy.contains("script-src 'sha256-") && !policy.contains("'unsafe-inline' 'unsafe-eval'"), "{policy}");
    let mut browser = Browser::start(&program, &folder.join("profile")).await;
    browser.open(&format!("file://{}", page.display())).await;
    let state = "JSON.stringify([...document.querySelectorAll('iframe')].map(f => [f.dataset.drawn || '', f.offsetHeight]))";
    browser
        .until("document.querySelectorAll('.plot, .frame').forEach(p => p.scrollIntoView())", state, |frames| {
            let drawn = ["vega", "vega", "plotly", ""];
            let frames = frames.as_array().unwrap();
            frames.len() == 4
                && frames.iter().zip(drawn).all(|(frame, name)| frame[0] == name && frame[1].as_u64().unwrap_or(0) > 20)
        })
        .await;
    assert_eq!(browser.finish().await, (Vec::new(), Vec::new()));
}

/// Scripts in every text position of a notebook, parsed by a browser: none runs in the page.
#[tokio::test]
async fn no_notebook_script_runs_in_the_page() {
    let folder = scratch("export-attacks");
    let Some(program) = Browser::program() else { return skip("there is no Chromium; run: make setup-test") };
    let act = "try{window.pwned=1;parent.pwned=1;top.pwned=1}catch(e){}";
    let attacks = [
        format!("<script>{act}</script>"),
        format!("\"></title></style></pre></script><script>{act}</script><img src=x onerror=\"{act}\">"),
        format!("<img src=x onerror=\"{act}\"><svg onload=\"{act}\"></svg><details open ontoggle=\"{act}\">"),
        format!("<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror={act}&gt;\">"),
        format!("<a href=\"javascript:{act}\" class=\"click\">x</a> [x](javascript:{act})"),
        format!("\u{1b}]8;;javascript:{act}\u{7}x\u{1b}]8;;\u{7} $\\href{{javascript:{act}}}{{x}}$"),
        format!(
            "<iframe srcdoc=\"<script>{act}</script>\"></iframe><form><input name=body><button formaction=\"javascript:{act}\">"
        ),
    ];
    let mimes = [
        "text/html",
        "text/markdown",
        "text/latex",
        "text/plain",
        "image/svg+xml",
        "image/png",
        "application/json",
        "application/javascript",
        "text/csv",
        "application/pdf",
        "application/vnd.plotly.v1+json",
        "audio/wav",
        "x/y",
    ];
    let mut cells = Vec::new();
    for (index, attack) in attacks.iter().enumerate() {
        let mut outputs: Vec<Value> = mimes
            .iter()
            .map(|mime| json!({"output_type": "display_data", "data": {*mime: attack}, "metadata": {"alt": attack, "width": attack}}))
            .collect();
        outputs.push(json!({"output_type": "display_data", "data": {attack.clone(): attack, (format!("image/{attack}")): attack}, "metadata": {}}));
        outputs.push(json!({"output_type": "stream", "name": attack, "text": attack}));
        outputs.push(json!({"output_type": "error", "ename": attack, "evalue": attack, "traceback": [attack]}));
        cells.push(code(&format!("c{index}"), attack, &Value::from(outputs)));
        cells.push(json!({"cell_type": "markdown", "id": format!("m{index}"), "metadata": {"tags": [attack]},
            "source": format!("# {attack}\n\n{attack}\n\n```{attack}\n{attack}\n```\n\n![{attack}](attachment:a)"),
            "attachments": {"a": {"image/svg+xml": attack}}}));
    }
    // No policy forbids WebRTC: the frame's height shows whether its scripts have access to it.
    let tall = "<script>document.body.style.height = typeof RTCPeerConnection === 'undefined' ? '900px' : '9px'</script>";
    let output = json!([{"output_type": "display_data", "data": {"text/html": tall}, "metadata": {}}]);
    cells.push(code("rtc", "1", &output));
    let path = notebook(&folder, "a.ipynb", &Value::from(cells));
    let done = export(&["--title", &attacks[1]], &path);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let mut browser = Browser::start(&program, &folder.join("profile")).await;
    browser.open(&format!("file://{}", folder.join("a.html").display())).await;
    let frames = "JSON.stringify([...document.querySelectorAll('iframe.frame')].map(f => f.offsetHeight))";
    let show = "document.querySelectorAll('details').forEach(d => d.open = true); document.querySelectorAll('.frame').forEach(f => f.scrollIntoView()); \
        document.querySelectorAll('main a').forEach(a => { if (!/^https?:/.test(a.href) && !a.download) a.click() })";
    let drawn = |heights: &Value| {
        let heights = heights.as_array().unwrap();
        heights.len() > attacks.len() && heights.last().and_then(Value::as_i64) > Some(800)
    };
    browser.until(show, frames, drawn).await;
    // The page's own script is its last element.
    browser.until("0", "JSON.stringify(document.readyState)", |state| state == "complete").await;
    assert_eq!(browser.evaluate("window.pwned === undefined").await, true);
    let scripts = "[...document.scripts].filter(s => !s.type).length";
    assert_eq!(browser.evaluate(scripts).await, 1, "the page has one script that runs, its own");
    assert_eq!(browser.evaluate("document.title.includes('<script>')").await, true);
    let (_, requests) = browser.finish().await;
    assert_eq!(requests, [""; 0]);
}

/// Whether the build has the plotting libraries, by the content of the page. `make test` builds them.
fn cellkeep_has_libraries(page: &Path) -> bool {
    let has = std::fs::read_to_string(page).unwrap().contains("id=\"lib-vega\"");
    if !has {
        skip("the plotting libraries are not built; run: make web");
    }
    has
}

//! The page at `/` in a real browser: what a person does there, a lost connection or server, and that no output is active in
//! the page.

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::opened::{Opened, TOOLS};
use crate::server::Server;
use crate::support::TestSandbox;

/// Public files need no token, contain no data of users, and have strict policies.
#[tokio::test]
async fn public_files_have_strict_policies() {
    let server = Server::start("page-files", TestSandbox::process(), &[]).await;
    let anyone = server.client().anonymous();
    let page = anyone.get("/").await;
    page.is(200);
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    for path in ["/-/frame", "/-/frame/inner"] {
        let frame = anyone.get(path).await;
        let policy = frame.header("content-security-policy");
        assert!(policy.starts_with("sandbox allow-scripts") && policy.contains("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-src 'self'") && policy.contains("require-trusted-types-for 'script'"), "{policy}");
        assert!(!policy.contains("allow-same-origin"), "{policy}");
    }
    for nothing in
        ["/-/assets/.gitignore", "/-/assets/..%2f..%2fCargo.toml", "/-/assets/index.html", "/-/assets/x.js", "/-/x"]
    {
        anyone.get(nothing).await.is(404);
    }
    anyone.get("/v1/sessions").await.problem(401, "no_token");
    let text = page.text();
    if text.contains("<cellkeep-page>") {
        let script = text.split("src=\"").nth(1).unwrap().split('"').next().unwrap();
        let plain = anyone.get(script).await;
        assert_eq!(plain.header("cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(plain.header("content-type"), "text/javascript; charset=utf-8");
        let zipped = anyone.with("accept-encoding", "gzip").get(script).await;
        assert!(zipped.header("content-encoding") == "gzip" && zipped.body.len() < plain.body.len());
        let again = anyone.with("if-none-match", plain.header("etag")).get(script).await;
        assert_eq!((again.status, again.body.len()), (304, 0));
    } else {
        assert!(text.contains("make build"), "it says how to have one: {text}");
    }
    server.end().await;
}

/// One click draws a plot, text appears while its cell runs, and a question can be answered after a reload of the page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_run_edit_and_answer_questions() {
    let Some(mut opened) = Opened::start("page-person").await else { return };
    opened.until("location.hash.includes('token') || location.search.includes('token')", &json!(false)).await;
    opened.act("page.querySelector('.chips button').click()").await;
    opened.until("within(cells[0])[0]?.querySelector('img')?.naturalWidth > 100", &json!(true)).await;
    opened.until("phase(cells[0])", &json!("ok")).await;
    // Cells follow the theme of the page.
    let scheme = "getComputedStyle(cells[0]).getPropertyValue('--ck-scheme').trim()";
    for theme in ["dark", "light"] {
        opened.act(&format!("document.querySelector('cellkeep-page').setAttribute('theme', '{theme}')")).await;
        opened.until(&format!("[cells[0].theme, {scheme}]"), &json!([theme, theme])).await;
    }
    // Colours and links are elements, text is text.
    let colours = opened.run("print('\\x1b[31mred\\x1b[0m \\x1b[38;5;208mdeep\\x1b[0m \\x1b[48;2;1;2;3mbg\\x1b[0m <b>no</b> https://example.org/a.')").await;
    opened.until(&format!("phase(cells[{colours}])"), &json!("ok")).await;
    opened.until(&format!("text(cells[{colours}])"), &json!("red deep bg <b>no</b> https://example.org/a.")).await;
    let look = format!(
        "[...within(cells[{colours}])[0].querySelectorAll('pre span')].map(span => span.style.color + span.style.getPropertyValue('--far') + span.style.backgroundColor)"
    );
    assert_eq!(opened.look(&look).await, json!(["var(--ck-ansi-1)", "rgb(255,135,0)", "rgb(1, 2, 3)"]));
    let link = format!("(a => [a.href, a.target, a.rel])(within(cells[{colours}])[0].querySelector('a'))");
    assert_eq!(opened.look(&link).await, json!(["https://example.org/a", "_blank", "noopener noreferrer nofollow"]));
    let failed = opened.run("def f():\n    1/0\nf()").await;
    opened.until(&format!("phase(cells[{failed}])"), &json!("error")).await;
    opened
        .until(
            &format!("within(cells[{failed}])[0].querySelector('strong').textContent"),
            &json!("ZeroDivisionError: division by zero"),
        )
        .await;
    assert_eq!(opened.look(&format!("within(cells[{failed}])[0].querySelector('details').open")).await, false);
    let long = opened.run("for i in range(5000): print('line', i)").await;
    opened
        .until(
            &format!("within(cells[{long}])[0]?.querySelector('.fold')?.textContent.trim()"),
            &json!("4,968 lines folded · show more"),
        )
        .await;
    opened.act(&format!("within(cells[{long}])[0].querySelector('.fold').click()")).await;
    opened.until(&format!("text(cells[{long}]).includes('line 300 ')"), &json!(true)).await;
    // The page is reloaded while the cell runs.
    let asks = opened.run("print('before')\nword = input('word? ')\nprint('got', word)").await;
    opened.until(&format!("[phase(cells[{asks}]), text(cells[{asks}])]"), &json!(["input", "before"])).await;
    opened.browser.evaluate("location.reload()").await;
    opened
        .until(&format!("[phase(cells[{asks}]), cells[{asks}] && text(cells[{asks}])]"), &json!(["input", "before"]))
        .await;
    opened.answer(asks, "ägypt").await;
    opened.until(&format!("[phase(cells[{asks}]), text(cells[{asks}])]"), &json!(["ok", "before got ägypt"])).await;
    // The cell is edited and executed again.
    opened.act(&format!("[...cells[{asks}].renderRoot.querySelectorAll('.actions button')].find(button => button.textContent === 'Edit').click()")).await;
    let editor = format!("cells[{asks}].renderRoot.querySelector('.cm-content')");
    opened.until(&format!("document.activeElement.renderRoot !== undefined && {editor} != null"), &json!(true)).await;
    let press = |key: &str, with: &str| {
        format!(
            "{editor}.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', {with}: true, bubbles: true, cancelable: true}}))"
        )
    };
    opened.act(&press("a", "ctrlKey")).await;
    opened.browser.insert("print(6 * 7)").await;
    opened.until(&format!("{editor}.textContent"), &json!("print(6 * 7)")).await;
    opened.act(&press("Enter", "shiftKey")).await;
    opened.until(&format!("[phase(cells[{asks}]), text(cells[{asks}]), cells[{asks}].renderRoot.querySelector('pre.source')?.textContent]"), &json!(["ok", "42", "print(6 * 7)"])).await;
    // The running cell is stopped.
    let runs = opened.run("import time\nprint('on')\ntime.sleep(600)").await;
    opened.until(&format!("[phase(cells[{runs}]), text(cells[{runs}])]"), &json!(["running", "on"])).await;
    opened.act(&format!("[...cells[{runs}].renderRoot.querySelectorAll('.actions button')].find(button => button.textContent === 'Stop').click()")).await;
    opened.until(&format!("phase(cells[{runs}])"), &json!("interrupted")).await;
    assert_eq!(opened.end().await, [""; 0]);
}

/// Drops a file on the page.
fn drop_file(name: &str, text: &str) -> String {
    format!(
        "const files = new DataTransfer(); files.items.add(new File([{}], {}));
         page.querySelector('.frame').dispatchEvent(new DragEvent('drop', {{dataTransfer: files, bubbles: true, cancelable: true}}))",
        json!(text),
        json!(name)
    )
}

/// A dropped notebook is imported, a dropped file is uploaded to the workspace, and passwords are hidden.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_notebooks_are_imported_and_files_uploaded() {
    let Some(mut opened) = Opened::start("page-files-dropped").await else { return };
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    opened.until("page.querySelector('.welcome') !== null", &json!(true)).await;
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
        {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["# Told\n", "before"]},
        {"cell_type": "code", "id": "c", "metadata": {}, "source": "print(6*7)", "execution_count": 1,
         "outputs": [{"output_type": "stream", "name": "stdout", "text": ["forty-", "two"]}]}]});
    opened.act(&drop_file("a.ipynb", &notebook.to_string())).await;
    opened.until("[cells.length, text(cells[0]), text(cells[1])]", &json!([2, "Told before", "forty-two"])).await;
    opened.act(&drop_file("däta <b>.csv", "a;b")).await;
    opened
        .until("[...page.querySelector('cellkeep-panel')?.renderRoot.querySelectorAll('.name') ?? []].map(name => name.textContent)", &json!(["däta <b>.csv"]))
        .await;
    let cell =
        opened.run("import getpass\nword = getpass.getpass('key? ')\nprint(open('däta <b>.csv').read(), len(word))").await;
    opened.until(&format!("cells[{cell}].renderRoot.querySelector('.question input')?.type"), &json!("password")).await;
    opened.answer(cell, "secret").await;
    opened.until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["ok", "a;b 6"])).await;
    // Plots and cells are still there after another session was selected, and the page works after the deletion.
    opened.act("page.querySelector('#create').click()").await;
    opened.until("[cells.length, page.querySelectorAll('nav li').length]", &json!([0, 2])).await;
    opened.act("[...page.querySelectorAll('nav li:not(.here) .open')][0].click()").await;
    opened.until("[cells.length, text(cells[2])]", &json!([3, "a;b 6"])).await;
    opened
        .act("window.confirm = () => true; page.querySelector('nav li.here [aria-label=\"Delete session\"]').click()")
        .await;
    opened.until("[cells.length, page.querySelectorAll('nav li').length]", &json!([0, 1])).await;
    assert_eq!(opened.end().await, [""; 0]);
}

/// A folder is opened, renamed and deleted in the panel, a file is renamed, and a folder is downloaded as an archive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panel_renames_and_deletes_files() {
    let Some(mut opened) = Opened::start("page-panel").await else { return };
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    let client = opened.server.client();
    let id = client.session_ids().await.remove(0);
    for name in ["in/b.txt", "a.txt"] {
        client.put(&format!("/v1/sessions/{id}/files/{name}"), "x").await.is(204);
    }
    opened.act("[...page.querySelectorAll('.bar button')].find(button => button.textContent === 'Files').click()").await;
    let panel = "page.querySelector('cellkeep-panel')?.renderRoot";
    let names = format!("[...({panel}?.querySelectorAll('.name') ?? [])].map(name => name.textContent)");
    let press = |label: &str| format!("{panel}.querySelector('[aria-label=\"{label}\"]').click()");
    opened.until(&names, &json!(["a.txt", "in/"])).await;
    opened.act(&format!("window.prompt = () => 'new.txt'; {}", press("Rename a.txt"))).await;
    opened.until(&names, &json!(["in/", "new.txt"])).await;
    opened.act(&format!("{panel}.querySelector('.name').click()")).await;
    opened.until(&names, &json!(["b.txt"])).await;
    opened.act(&format!("window.prompt = () => 'c.txt'; {}", press("Rename b.txt"))).await;
    opened.until(&names, &json!(["c.txt"])).await;
    opened.act(&format!("{panel}.querySelector('li button').click()")).await;
    opened.until(&names, &json!(["in/", "new.txt"])).await;
    let saved = "URL.createObjectURL = blob => { window.saved = [blob.type, blob.size > 100]; return 'blob:x' }";
    opened.act(&format!("{saved}; HTMLAnchorElement.prototype.click = () => {{}}; {}", press("Download in"))).await;
    opened.until("window.saved", &json!(["application/zip", true])).await;
    opened.act(&format!("window.confirm = () => true; {}", press("Delete in"))).await;
    opened.until(&names, &json!(["new.txt"])).await;
    assert_eq!(opened.end().await, [""; 0]);
}

/// Late responses about the previous session are neither shown nor deleted as files of the selected one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_responses_do_not_reach_another_session() {
    let Some(mut opened) = Opened::start("page-late").await else { return };
    for count in 1..=2 {
        opened.act("page.querySelector('#create').click()").await;
        opened.until("page.querySelectorAll('nav li').length", &json!(count)).await;
        opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    }
    let client = opened.server.client();
    for id in client.session_ids().await {
        client.put(&format!("/v1/sessions/{id}/files/{id}.txt"), "x").await;
    }
    opened.act("[...page.querySelectorAll('.bar button')].find(button => button.textContent === 'Files').click()").await;
    let panel = "page.querySelector('cellkeep-panel')";
    let own = format!(
        "{panel} && [...{panel}.renderRoot.querySelectorAll('.name')].map(name => name.textContent === {panel}.session + '.txt')"
    );
    opened.until(&own, &json!([true])).await;
    let hold = "const real = window.fetch; window.fetch = (address, ...rest) => {
        const asked = real(address, ...rest);
        if (window.release || !address.includes('/files/?')) return asked;
        return new Promise(go => { window.release = () => asked.then(answer => { go(answer); setTimeout(() => { window.released = true }, 300) }) }); };";
    opened
        .act(&format!(
            "{hold} window.left = {panel}.session; {panel}.load(); page.querySelector('nav li:not(.here) .open').click()"
        ))
        .await;
    opened.until(&format!("[{panel}?.session !== window.left, {own}]"), &json!([true, [true]])).await;
    opened.act("window.release()").await;
    opened.until("window.released", &json!(true)).await;
    assert_eq!(opened.look(&own).await, json!([true]));
    assert_eq!(opened.end().await, [""; 0]);
}

/// The server is killed while a cell runs, and another one takes over: the page misses nothing and shows nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_continues_with_a_new_server() {
    let Some(mut opened) = Opened::start("page-killed").await else { return };
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    let cell = opened
        .run("import os, time\nprint('before')\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint('after')")
        .await;
    opened.until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["running", "before"])).await;
    opened.server.listen = opened.server.client().address();
    opened.server.kill().await;
    opened.until("page.querySelector('.state').dataset.state", &json!("lost")).await;
    opened.until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["lost", "before"])).await;
    opened.server.start_again().await;
    opened.until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["running", "before"])).await;
    let client = opened.server.client();
    let id = client.session_ids().await.remove(0);
    client.put(&format!("/v1/sessions/{id}/files/go"), "").await;
    opened.until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["ok", "before after"])).await;
    let complaints = opened.end().await;
    let others: Vec<_> = complaints.iter().filter(|text| !text.contains("ERR_CONNECTION_REFUSED")).collect();
    assert_eq!(others, [""; 0]);
}

/// Scripts in every output that code can produce. Those that a frame runs have access to neither the page nor the network.
const ATTACKS: &str = r#"
import json
hit = "try{top.__pwned=1}catch(e){};try{parent.__pwned=1}catch(e){};window.__pwned=1;fetch('http://127.0.0.1:9/f').catch(e=>0);new Image().src='http://127.0.0.1:9/i';"
tag = f"<script>{hit}</script><img src=x onerror=\"{hit}\"><svg onload=\"{hit}\"></svg><a href=\"javascript:{hit}\">l</a>"
table = f"<table><tr><td id=cookie name=body>cell<a href='&#106;avascript:{hit}'>l</a><img src=http://127.0.0.1:9/t></td></tr></table>"
svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9' onload=\"{hit}\"><script>{hit}</script><image href='http://127.0.0.1:9/s'/></svg>"
figure = {"data": [{"type": "bar", "x": [tag], "y": [1], "text": [tag]}], "layout": {"title": {"text": tag}, "images": [{"source": "http://127.0.0.1:9/p"}]}}
chart = {"$schema": "x", "data": {"url": "http://127.0.0.1:9/v"}, "mark": "bar", "title": tag, "usermeta": {"embedOptions": {"loader": 1}}}
kinds = {"text/html": tag, "text/markdown": tag + "\n\n[l](javascript:alert(1)) ![i](http://127.0.0.1:9/m)\n\n" + table, "text/latex": "$\\href{javascript:" + "x" + "}{y}\\htmlData{a=b}{c}$" + tag,
  "image/svg+xml": svg, "image/png": tag, "application/javascript": hit, "application/json": {tag: tag}, "text/plain": tag, "text/csv": tag,
  "application/vnd.plotly.v1+json": figure, "application/vnd.vegalite.v5+json": chart, "application/pdf": tag, "text/x\"><script>": tag}
for kind, value in kinds.items():
    display({kind: value}, raw=True)
display({"text/html": table}, raw=True)
display({"text/html": "<script>location='http://127.0.0.1:9/leave'</script>"}, raw=True)
display({"text/html": "<script>const rtc = new RTCPeerConnection({iceServers: [{urls: 'turn:127.0.0.1:9?transport=tcp', username: 'a', credential: 'b'}]}); rtc.createDataChannel('x'); rtc.createOffer().then(offer => rtc.setLocalDescription(offer))</script><link rel=preconnect href=http://127.0.0.1:9/>"}, raw=True)
display({"text/html": "<form action=http://127.0.0.1:9/form id=f><input></form><script>f.submit();window.open('http://127.0.0.1:9/open')</script><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/refresh'>"}, raw=True)
print(tag, "\x1b]8;;javascript:" + hit + "\x1b\\link\x1b]8;;\x1b\\", "\x1b]8;;http://127.0.0.1:9/x\x1b\\good\x1b]8;;\x1b\\")
open("<img src=x onerror=window.__pwned=1>.txt", "w").write("x")
raise ValueError(tag)
"#;

/// The first bytes that a client sends to the listener. Never returns if there are none.
pub async fn first_words(listener: tokio::net::TcpListener) -> String {
    let (words, mut heard) = tokio::sync::mpsc::channel(1);
    let accepting = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let words = words.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 200];
                if let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let _ = words.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).await;
                }
            });
        }
    };
    tokio::select! {
        () = accepting => String::new(),
        said = heard.recv() => said.unwrap_or_default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_output_is_active_in_the_page() {
    let Some(mut opened) = Opened::start("page-attacks").await else { return };
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    // The server that all attacks would contact.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = listener.local_addr().unwrap().to_string();
    let told = tokio::spawn(first_words(listener));
    let cell = opened.run(&ATTACKS.replace("127.0.0.1:9", &elsewhere)).await;
    opened.until(&format!("phase(cells[{cell}])"), &json!("error")).await;
    // The test scrolls to each output, since frames load in view. Those with scripts have drawn or tried to navigate.
    let walk = format!(
        "{{ {TOOLS} const all = within(cells[{cell}]); window.step = ((window.step ?? 0) + 1) % all.length; all[window.step].host.scrollIntoView() }}"
    );
    let drawn = format!(
        "(() => {{ {TOOLS} return JSON.stringify(within(cells[{cell}]).map(output => output.querySelector('cellkeep-frame')).filter(frame => frame).map(frame => frame.dataset.drawn ?? '')) }})()"
    );
    opened
        .browser
        .until(&walk, &drawn, |drawn| {
            let has = |name: &str| drawn.as_array().unwrap().iter().any(|one| one == name);
            has("html") && has("script") && has("plotly")
        })
        .await;
    // Addresses in text become links with safe schemes.
    let anchors = format!("within(cells[{cell}]).flatMap(output => [...output.querySelectorAll('a[href]')])");
    let odd = format!(
        "{anchors}.filter(a => !a.href.startsWith('http://{elsewhere}/') || a.target !== '_blank' || !a.rel.includes('noopener')).length"
    );
    assert_eq!(opened.look(&odd).await, 0);
    let good = format!("{anchors}.find(a => a.textContent === 'good').href");
    assert_eq!(opened.look(&good).await, format!("http://{elsewhere}/x"));
    let flags = format!(
        "[...new Set(within(cells[{cell}]).map(output => output.querySelector('cellkeep-frame')?.renderRoot.querySelector('iframe')?.getAttribute('sandbox')).filter(flags => flags))]"
    );
    assert_eq!(opened.look(&flags).await, json!(["allow-scripts allow-downloads allow-pointer-lock"]));
    // Markdown, in the page's own document.
    opened.act("[...page.querySelectorAll('.kinds input')].find(input => input.value === 'markdown').click()").await;
    let note = opened
        .run("# T\n\n<script>window.__pwned=1</script><img src=x onerror='window.__pwned=1'>\n\n[l](javascript:window.__pwned=1) ![p](http://elsewhere/n)\n\n<iframe src='javascript:top.__pwned=1'></iframe>".replace("elsewhere", &elsewhere).as_str())
        .await;
    opened.until(&format!("within(cells[{note}])[0]?.querySelector('h1')?.textContent"), &json!("T")).await;
    opened.act("[...page.querySelectorAll('.bar button')].find(button => button.textContent === 'Files').click()").await;
    opened
        .until("page.querySelector('cellkeep-panel')?.renderRoot.textContent.includes('<img src=x onerror')", &json!(true))
        .await;
    assert_eq!(
        opened.look("[window.__pwned === undefined, document.querySelectorAll('iframe, script:not([src])').length]").await,
        json!([true, 0])
    );
    // The policies report each attempt, so neither reports nor attempts count, only what arrived. A browser may open a
    // connection for a page that it then does not request, so only bytes on the connection count.
    let Opened { server, browser } = opened;
    browser.finish().await;
    assert!(!told.is_finished(), "a request left the origin: {:?}", told.await);
    server.end().await;
}

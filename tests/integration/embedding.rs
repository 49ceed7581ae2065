//! Other sites that show cells: the unchanged examples of the guide, from their own origins.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::package;
use crate::pages::first_words;
use crate::server::{Server, TOKEN};
use crate::support::browser::Browser;
use crate::support::{TestSandbox, skip};

/// Serves an example of the guide for any request path.
async fn serve_example(name: &str) -> SocketAddr {
    serve(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/embed").join(name)).unwrap(), "").await
}

/// Serves a page with this policy for any request path.
pub async fn serve(page: Vec<u8>, policy: &str) -> SocketAddr {
    let policy = policy.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (page, policy) = (page.clone(), policy.clone());
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-security-policy: {policy}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    page.len()
                );
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&page).await;
            });
        }
    });
    address
}

/// A server that permits pages of `origin`, and a browser. `None` if there is no browser or this build has no page.
async fn start(name: &str, origin: &str) -> Option<(Server, Browser)> {
    let Some(program) = Browser::program() else {
        skip("there is no Chromium; run: make setup-test");
        return None;
    };
    let server = Server::start(name, TestSandbox::process(), &["--allow-origin", origin]).await;
    if server.client().anonymous().get("/-/assets/cellkeep-cell.js").await.status != 200 {
        skip("this build has no page; run: make web");
        return None;
    }
    let browser = Browser::start(&program, &server.data().join("profile")).await;
    Some((server, browser))
}

const CELLS: &str = "const cells = [...document.querySelectorAll('cellkeep-cell')];
    const output = cell => [...(cell?.renderRoot?.querySelectorAll('cellkeep-output') ?? [])].map(output => output.renderRoot)[0];";

async fn until(browser: &mut Browser, expression: &str, value: &serde_json::Value) {
    let look = format!("(() => {{ {CELLS} return JSON.stringify({expression}) ?? 'null' }})()");
    browser.until("0", &look, |seen| seen == value).await;
}

async fn end(server: Server, browser: Browser, origins: &[&str]) {
    let complaints = browser.end(origins).await;
    let complaints: Vec<_> = complaints.iter().filter(|text| !text.contains("favicon.ico")).collect();
    assert_eq!(complaints, [""; 0]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_page_shows_cells() {
    let page = serve_example("plain.html").await;
    let origin = format!("http://{page}");
    let Some((server, mut browser)) = start("embed-plain", &origin).await else { return };
    let address = format!("http://{}", server.client().address());
    browser.open(&format!("{origin}/plain.html#server={address}&token={TOKEN}")).await;
    until(&mut browser, "customElements.get('cellkeep-cell') !== undefined", &json!(true)).await;
    browser.evaluate("document.querySelector('form').requestSubmit()").await;
    until(&mut browser, "output(cells[0])?.querySelector('img')?.naturalWidth > 100", &json!(true)).await;
    let run = |source: &str| {
        format!(
            "document.querySelector('textarea').value = {}; document.querySelector('form').requestSubmit()",
            json!(source)
        )
    };
    browser
        .evaluate(&run(
            "from IPython.display import HTML\nHTML('<p id=x>old</p><script>x.textContent = \"framed\"</script>')",
        ))
        .await;
    until(&mut browser, "output(cells[1])?.querySelector('cellkeep-frame')?.dataset.drawn", &json!("html")).await;
    browser.evaluate(&run("print(input('? ') * 2)")).await;
    until(&mut browser, "cells[2]?.renderRoot?.querySelector('.question input') != null", &json!(true)).await;
    browser
        .evaluate("(() => { const form = document.querySelectorAll('cellkeep-cell')[2].renderRoot.querySelector('.question'); form.querySelector('input').value = 'ab'; form.requestSubmit() })()")
        .await;
    until(&mut browser, "output(cells[2])?.textContent.includes('abab')", &json!(true)).await;
    end(server, browser, &[&origin, &address]).await;
}

/// A chat server of another site: the browser of its visitor sees the cells without the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_chat_server_shows_cells() {
    // The port is reserved first, since the origin contains it.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let origin = format!("http://127.0.0.1:{port}");
    let Some((server, mut browser)) = start("embed-chat", &origin).await else { return };
    let address = format!("http://{}", server.client().address());
    let mut command = tokio::process::Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/embed/chat-server.mjs"));
    command.env("CELLKEEP_URL", &address).env("CELLKEEP_TOKEN", TOKEN).env("PORT", port.to_string());
    let Ok(mut chat) = command.stdout(Stdio::piped()).kill_on_drop(true).spawn() else {
        return skip("there is no Node; run: make web");
    };
    let mut line = String::new();
    BufReader::new(chat.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    assert!(line.contains(&origin), "{line}");
    browser.open(&origin).await;
    until(&mut browser, "customElements.get('cellkeep-cell') !== undefined", &json!(true)).await;
    let say = |text: &str| {
        format!("document.querySelector('input').value = {}; document.querySelector('form').requestSubmit()", json!(text))
    };
    browser.evaluate(&say("hello")).await;
    until(&mut browser, "document.querySelector('main').textContent.includes('I run it')", &json!(true)).await;
    browser.evaluate(&say("=6*7")).await;
    until(&mut browser, "output(cells[0])?.textContent.trim().startsWith('42')", &json!(true)).await;
    until(
        &mut browser,
        "[cells[0].renderRoot.querySelector('.actions'), cells[0].token === undefined]",
        &json!([null, false]),
    )
    .await;
    let held = browser.evaluate("document.querySelector('cellkeep-cell').token").await;
    assert_ne!(held, TOKEN);
    // After its session ended, the conversation continues in another.
    let client = server.client();
    let gone = client.session_ids().await.remove(0);
    client.delete(&format!("/v1/sessions/{gone}")).await;
    browser.evaluate(&say("=7*7")).await;
    until(&mut browser, "output(cells[1])?.textContent.trim().startsWith('49')", &json!(true)).await;
    // Requests from pages of other origins are refused.
    let mut other = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "POST /say HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\norigin: http://elsewhere.invalid\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
    );
    other.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    other.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
    end(server, browser, &[&origin, &address]).await;
}

/// The React example of the guide, built as described, in a browser.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn react_page_shows_cells() {
    if !package::web().join("node_modules/react-dom").exists() {
        return skip("react is not installed; run: make web");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let Some((server, mut browser)) = start("embed-react", &origin).await else { return };
    let site = server.data().join("react");
    let building = site.clone();
    tokio::task::spawn_blocking(move || build_react(&building)).await.unwrap();
    tokio::spawn(package::serve(listener, site));
    let address = format!("http://{}", server.client().address());
    browser.open(&format!("{origin}/index.html#server={address}&token={TOKEN}")).await;
    until(&mut browser, "document.querySelector('form button') !== null", &json!(true)).await;
    browser.evaluate("document.querySelector('form').requestSubmit()").await;
    until(&mut browser, "output(cells[0])?.textContent.trim().startsWith('285')", &json!(true)).await;
    // Typed text goes through React's state.
    let write = "(area => { Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(area, 'print(input(\"? \") * 2)'); area.dispatchEvent(new Event('input', {bubbles: true})) })(document.querySelector('textarea'))";
    browser.evaluate(write).await;
    browser.evaluate("document.querySelector('form').requestSubmit()").await;
    until(&mut browser, "cells[1]?.renderRoot?.querySelector('.question input') != null", &json!(true)).await;
    browser
        .evaluate("(form => { form.querySelector('input').value = 'ab'; form.requestSubmit() })(document.querySelectorAll('cellkeep-cell')[1].renderRoot.querySelector('.question'))")
        .await;
    until(&mut browser, "output(cells[1])?.textContent.includes('abab')", &json!(true)).await;
    // The page shows errors of the element.
    let client = server.client();
    let id = client.session_ids().await.remove(0);
    client.delete(&format!("/v1/sessions/{id}")).await;
    browser.evaluate("document.querySelector('cellkeep-cell').run(), 0").await;
    until(
        &mut browser,
        "document.querySelector('[role=alert]').textContent.includes(document.querySelector('cellkeep-cell').session)",
        &json!(true),
    )
    .await;
    let complaints = browser.end(&[&origin, &address]).await;
    let odd: Vec<_> = complaints.iter().filter(|text| !text.contains("favicon.ico") && !text.contains("404")).collect();
    assert_eq!(odd, [""; 0]);
    server.end().await;
}

/// Builds the example by its own script, with the installed packages.
fn build_react(site: &Path) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/embed/react");
    std::fs::create_dir_all(site).unwrap();
    for name in ["app.jsx", "index.html", "package.json"] {
        std::fs::copy(example.join(name), site.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(package::web().join("node_modules"), site.join("node_modules")).unwrap();
    package::run(site, "npm", &["run", "--silent", "build"]);
}

/// Ways in which a script navigates a frame: its own, an inner one, and outer ones.
const DEPARTURES: &[&str] = &[
    "<script>location = 'ELSEWHERE/own'</script>",
    "<script>location.replace('ELSEWHERE/replaced?' + encodeURIComponent(document.body.textContent))</script>",
    "<p>secret</p><script>parent.location = 'ELSEWHERE/parent'</script>",
    "<script>top.location = 'ELSEWHERE/top'</script>",
    "<script>parent.parent.location.href = 'ELSEWHERE/above'</script>",
    "<a id=a href='ELSEWHERE/link'>l</a><script>removeEventListener('click', () => 0); addEventListener('click', event => event.stopImmediatePropagation(), true); a.click()</script>",
    "<a id=a target=_parent href='ELSEWHERE/target'>l</a><script>addEventListener('click', event => event.stopImmediatePropagation(), true); a.click()</script>",
    "<form id=f action='ELSEWHERE/form' target=_parent></form><script>f.submit()</script>",
    "<script>document.head.append(Object.assign(document.createElement('meta'), {httpEquiv: 'refresh', content: '0;url=ELSEWHERE/refresh'}))</script>",
    "<script>document.body.append(Object.assign(document.createElement('iframe'), {src: 'ELSEWHERE/inside'}))</script>",
    "<iframe srcdoc=\"<script>location = 'ELSEWHERE/nested'; parent.location = 'ELSEWHERE/around'</script>\"></iframe><script>1</script>",
    "<script>location = URL.createObjectURL(new Blob(['<script>location = \"ELSEWHERE/blob\"<\\/script>'], {type: 'text/html'}))</script>",
    "<script>location = 'data:text/html,<script>location = \"ELSEWHERE/data\"<\\/script>'</script>",
    "<script>history.pushState(0, '', '/-/frame'); location.reload(); open('ELSEWHERE/open')</script>",
    "<script>parent.postMessage('begin', '*', [new MessageChannel().port2, new MessageChannel().port2]); location = 'ELSEWHERE/after'</script>",
];

/// Sites without any content security policy are safe, too: no script of an output can send data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_data_leaves_a_page_without_policy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = format!("http://{}", listener.local_addr().unwrap());
    let told = tokio::spawn(first_words(listener));
    let page = serve(b"<!doctype html><title>Page</title><body></body>".to_vec(), "").await;
    let origin = format!("http://{page}");
    let Some((server, mut browser)) = start("embed-bare", &origin).await else { return };
    let address = format!("http://{}", server.client().address());
    browser.open(&origin).await;
    browser.until("0", "JSON.stringify(document.title)", |title| title == "Page").await;
    let outputs: Vec<_> = DEPARTURES
        .iter()
        .map(|html| json!({"output_type": "display_data", "metadata": {}, "data": {"text/html": html.replace("ELSEWHERE", &elsewhere)}}))
        .collect();
    let count = outputs.len();
    let content = json!({"cell_type": "code", "source": "", "outputs": outputs});
    browser
        .evaluate(&format!(
            "import('{address}/-/assets/cellkeep-cell.js').then(() => document.body.append(Object.assign(document.createElement('cellkeep-cell'), {{server: '{address}', content: {content}}}))); 0"
        ))
        .await;
    // All come into view, and each has been drawn or has tried to navigate.
    let all = "[...cells[0]?.renderRoot?.querySelectorAll('cellkeep-output') ?? []].map(output => output.renderRoot.querySelector('cellkeep-frame'))";
    let walk = format!(
        "{{ {CELLS} const all = {all}; window.step = ((window.step ?? 0) + 1) % (all.length || 1); all[window.step]?.scrollIntoView() }}"
    );
    let left = "frame?.renderRoot?.textContent.includes('tried to load another page')";
    let done = format!(
        "(() => {{ {CELLS} return JSON.stringify({all}.map(frame => [frame?.dataset.drawn === 'html', {left} === true])) }})()"
    );
    let is_done = |seen: &serde_json::Value| {
        let seen = seen.as_array().unwrap();
        seen.len() == count && seen.iter().all(|one| one[0] == true || one[1] == true)
    };
    let seen = browser.until(&walk, &done, is_done).await;
    eprintln!("{seen}");
    browser.until(&walk, &done, |seen| seen[0][1] == true).await;
    let (_, requests) = browser.finish().await;
    let foreign: Vec<_> = requests.iter().filter(|url| !url.starts_with(&origin) && !url.starts_with(&address)).collect();
    assert!(!told.is_finished(), "a request left: {:?} {foreign:?}", told.await);
    server.end().await;
}

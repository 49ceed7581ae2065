//! Pages of others that show cells: the guide's examples, as they stand, from origins of their own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::server::{Server, TOKEN};
use crate::support::browser::Browser;
use crate::support::{Place, skip};

/// Serves one of the guide's files, whatever is asked for.
async fn serve_example(name: &str) -> SocketAddr {
    let page = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/embed").join(name)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let page = page.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    page.len()
                );
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&page).await;
            });
        }
    });
    address
}

/// A server that pages of `origin` may use, and a browser. `None` where there is no browser or no page in this build.
async fn start(name: &str, origin: &str) -> Option<(Server, Browser)> {
    let Some(program) = Browser::program() else {
        skip("there is no chromium");
        return None;
    };
    let server = Server::start(name, Place::process(), &["--allow-origin", origin]).await;
    if server.client().anonymous().get("/-/assets/cellkeep-cell.js").await.status != 200 {
        skip("this build has no page (make web)");
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
async fn a_plain_page_shows_cells() {
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

/// A chat of one's own: its visitor's browser never has its token, and sees the cells all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_server_of_ones_own_shows_cells() {
    // A port of its own, which its origin is made of before it starts.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let origin = format!("http://127.0.0.1:{port}");
    let Some((server, mut browser)) = start("embed-chat", &origin).await else { return };
    let address = format!("http://{}", server.client().address());
    let mut command = tokio::process::Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/embed/chat-server.mjs"));
    command.env("CELLKEEP_URL", &address).env("CELLKEEP_TOKEN", TOKEN).env("PORT", port.to_string());
    let Ok(mut chat) = command.stdout(Stdio::piped()).kill_on_drop(true).spawn() else { return skip("there is no node") };
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
    // Its session is gone: the conversation goes on in another.
    let client = server.client();
    let gone = client.session_ids().await.remove(0);
    client.delete(&format!("/v1/sessions/{gone}")).await;
    browser.evaluate(&say("=7*7")).await;
    until(&mut browser, "output(cells[1])?.textContent.trim().startsWith('49')", &json!(true)).await;
    // Pages of others are not answered.
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

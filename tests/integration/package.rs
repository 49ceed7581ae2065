//! The npm package of the element: packed, compiled with its types into a page, and used from another origin than the
//! server's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::server::{Server, TOKEN};
use crate::support::browser::Browser;
use crate::support::{TestSandbox, skip};

const CONSUMER: &str = r#"
import { CellkeepCell, type NotebookCell } from "cellkeep-cell";

const settings = new URLSearchParams(location.search);
const live: CellkeepCell = document.createElement("cellkeep-cell");
Object.assign(live, { id: "live", server: settings.get("server"), session: settings.get("session"), cell: "a", token: settings.get("token"), language: "python" });
const content: NotebookCell = { cell_type: "code", source: "6*7", execution_count: 3, outputs: [{ output_type: "stream", name: "stdout", text: "x\n".repeat(50_000) }] };
const still = new CellkeepCell();
Object.assign(still, { id: "still", content });
// @ts-expect-error A session is named by a text.
still.session = 1;
still.session = "";
live.addEventListener("cellkeep-run", (event) => event.preventDefault());
document.body.append(live, still);
"#;

pub fn web() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("web")
}

/// Runs a program that must succeed, and returns its stdout.
pub fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{program} {arguments:?}: {output}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// Packs and installs the package, and compiles a page that uses it.
fn compile(folder: &Path) {
    fs::create_dir_all(folder.join("node_modules/cellkeep-cell")).unwrap();
    let into = folder.to_str().unwrap();
    let packed: serde_json::Value =
        serde_json::from_str(&run(&web().join("npm"), "npm", &["pack", "--json", "--pack-destination", into])).unwrap();
    let files: Vec<_> = packed[0]["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    for file in ["README.md", "cellkeep-cell.js", "package.json", "types/cell.d.ts"] {
        assert!(files.contains(&file), "{files:?}");
    }
    let archive = packed[0]["filename"].as_str().unwrap();
    run(folder, "tar", &["-xzf", archive, "--strip-components=1", "-C", "node_modules/cellkeep-cell"]);
    for dependency in ["lit", "lit-html", "lit-element", "@lit", "@types"] {
        if web().join("node_modules").join(dependency).exists() {
            std::os::unix::fs::symlink(
                web().join("node_modules").join(dependency),
                folder.join("node_modules").join(dependency),
            )
            .unwrap();
        }
    }
    fs::write(folder.join("page.ts"), CONSUMER).unwrap();
    let settings = json!({"compilerOptions": {"strict": true, "noEmit": true, "target": "es2022", "module": "esnext", "moduleResolution": "bundler",
        "lib": ["es2022", "dom", "dom.iterable"], "types": [], "skipLibCheck": false}, "files": ["page.ts"]});
    fs::write(folder.join("tsconfig.json"), settings.to_string()).unwrap();
    let program = |name: &str| web().join("node_modules/.bin").join(name).to_str().unwrap().to_owned();
    run(folder, &program("tsc"), &[]);
    run(folder, &program("esbuild"), &["page.ts", "--bundle", "--splitting", "--format=esm", "--outdir=site"]);
    fs::write(folder.join("site/index.html"), "<!doctype html><html lang=en><meta charset=utf-8><title>Host</title><body><script type=module src=/page.js></script></html>").unwrap();
}

/// Serves the files of a folder over HTTP.
pub async fn serve(listener: TcpListener, folder: PathBuf) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let folder = folder.clone();
        tokio::spawn(async move {
            let mut request = vec![0; 8192];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let name = request.split(['?', ' ']).nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let name = if name.is_empty() { "index.html" } else { &name };
            let kind = if name.ends_with(".js") { "text/javascript" } else { "text/html" };
            let (status, body) = fs::read(folder.join(name)).map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&body).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn package_works_from_another_origin() {
    let Some(program) = Browser::program() else { return skip("there is no Chromium; run: make setup-test") };
    if !web().join("npm/package.json").exists() {
        return skip("the package is not built; run: make web");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::start("package", TestSandbox::process(), &["--allow-origin", &host]).await;
    let folder = server.data().join("consumer");
    let compiling = folder.clone();
    tokio::task::spawn_blocking(move || compile(&compiling)).await.unwrap();
    tokio::spawn(serve(listener, folder.join("site")));
    let held = server.client().create(json!({"kernel": "python"})).await;
    held.begin("a", "print('told')\ndisplay({'text/html': '<script>document.body.append(6*7)</script>'}, raw=True)\nimport plotly.graph_objects as go\ngo.Figure(go.Bar(y=[1]))").await;
    let mut browser = Browser::start(&program, &server.data().join("profile")).await;
    let origin = format!("http://{}", server.client().address());
    browser.open(&format!("{host}/?server={origin}&session={}&token={TOKEN}", held.id)).await;
    let look = "(() => { const outputs = id => [...document.getElementById(id)?.renderRoot?.querySelectorAll('cellkeep-output') ?? []].map(one => one.renderRoot);
        return JSON.stringify([outputs('live')[0]?.querySelector('pre')?.textContent, outputs('live').map(one => one.querySelector('cellkeep-frame')?.dataset.drawn ?? ''),
          outputs('live')[1]?.querySelector('cellkeep-frame')?.renderRoot?.querySelector('iframe')?.src, outputs('still')[0]?.querySelector('.fold')?.textContent]) })()";
    let frame = format!("{origin}/-/frame");
    let shown = json!(["told\n", ["", "html", "plotly"], frame, "49,968 lines folded · show more"]);
    browser.until("0", look, |seen| *seen == shown).await;
    // Edits go to the server; a run event that the host cancels does not.
    browser.evaluate("document.getElementById('live').run(), 0").await;
    assert_eq!(held.cell("a").await["execution_count"], 1);
    let complaints = browser.end(&[&origin, &host]).await;
    let odd: Vec<_> = complaints.iter().filter(|text| !text.contains("favicon.ico")).collect();
    assert_eq!(odd, [""; 0]);
    server.end().await;
}

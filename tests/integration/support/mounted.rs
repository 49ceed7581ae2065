//! A page with only cell elements, as in pages that embed them.

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server, TOKEN};
use crate::support::browser::Browser;
use crate::support::{TestSandbox, skip};

/// Wraps a JavaScript expression about a cell's element, and defines the variables that it may use (`text`, `phase`, `all`,
/// ...).
pub fn about(cell: &str, expression: &str) -> String {
    format!(
        "(() => {{ const cell = document.getElementById('{cell}'), root = cell?.renderRoot;
        if (!root) return 'no cell';
        const outputs = [...root.querySelectorAll('cellkeep-output')].map(output => output.renderRoot);
        const all = selector => outputs.flatMap(output => [...output.querySelectorAll(selector)]);
        const spoken = output => {{ const copy = document.createElement('div'); copy.append(...[...output.childNodes].map(node => node.cloneNode(true)));
          for (const tools of copy.querySelectorAll('style, .tools')) tools.remove(); return copy.textContent }};
        const raw = all('pre').map(pre => pre.textContent).join('\\n').replace(/\\n$/, '');
        const text = outputs.map(output => spoken(output).replace(/\\s+/g, ' ').trim()).join(' | ');
        const phase = root.querySelector('[data-phase]')?.dataset.phase;
        const region = root.querySelector('article')?.ariaLabel;
        const button = name => [...root.querySelectorAll('button'), ...all('button')].find(one => one.textContent.trim() === name);
        try {{ return {expression} }} catch (error) {{ return String(error) }} }})()"
    )
}

/// Replaces the content of the page with the elements.
const MOUNT: &str = "(async () => {
    await import('/-/assets/cellkeep-cell.js');
    Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { window.copied = text }, write: async items => { window.copied = items }}});
    document.body.replaceChildren(...IDS.map(id => Object.assign(document.createElement('cellkeep-cell'), {id, session: 'SESSION', cell: id, token: 'TOKEN', language: 'LANGUAGE'})));
    document.body.style = 'display: grid; gap: 16px; padding: 16px; grid-template-columns: minmax(0, 1fr); align-content: start; height: auto; overflow: auto';
    document.documentElement.style.height = 'auto';
    window.mounted = true })(); 0";

/// A session, and a browser that shows its cells.
pub struct Mounted {
    pub server: Server,
    pub held: RemoteSession,
    pub browser: Browser,
    kernel: String,
}

impl Mounted {
    /// `None` without a browser, or if this build has no page.
    pub async fn start(name: &str, kernel: &str, limits: Value) -> Option<Self> {
        let Some(program) = Browser::program() else {
            skip("there is no Chromium; run: make setup-test");
            return None;
        };
        let server = Server::start(name, TestSandbox::process(), &[]).await;
        if !server.client().anonymous().get("/").await.text().contains("<cellkeep-page>") {
            skip("this build has no page; run: make web");
            return None;
        }
        let held = server.client().create(json!({"kernel": kernel, "limits": limits})).await;
        let browser = Browser::start(&program, &server.data().join("profile")).await;
        Some(Self { server, held, browser, kernel: kernel.to_owned() })
    }

    /// The server's origin.
    pub fn origin(&self) -> String {
        format!("http://{}", self.server.client().address())
    }

    /// Opens a page with elements for these cells, which need not exist yet.
    pub async fn mount(&mut self, ids: &[String]) {
        let mount = MOUNT.replace("IDS", &json!(ids).to_string()).replace("SESSION", &self.held.id);
        let mount = mount.replace("TOKEN", TOKEN).replace("LANGUAGE", &self.kernel);
        self.browser.open(&format!("{}/", self.origin())).await;
        let page = "JSON.stringify(document.querySelector('cellkeep-page') !== null)";
        self.browser.until("0", page, |there| there == true).await;
        self.browser.evaluate(&mount).await;
        self.browser.until("0", "JSON.stringify(window.mounted === true)", |there| there == true).await;
    }

    /// The value of an expression about a cell.
    pub async fn look(&mut self, cell: &str, expression: &str) -> Value {
        self.browser.evaluate(&about(cell, expression)).await
    }

    /// Waits until an expression about a cell has this value.
    pub async fn until(&mut self, cell: &str, expression: &str, value: Value) {
        let look = format!("JSON.stringify({}) ?? 'null'", about(cell, expression));
        self.browser.until("0", &look, |seen| *seen == value).await;
    }

    /// Ends everything. Returns the errors and warnings of the page; asserts that it sent no requests to other origins.
    pub async fn end(self) -> Vec<String> {
        let origin = self.origin();
        let complaints = self.browser.end(&[&origin]).await;
        self.server.end().await;
        complaints
    }
}

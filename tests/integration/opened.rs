//! The page at `/` in a real browser, for tests that use it as a person does.

use serde_json::{Value, json};

use crate::server::{Server, TOKEN};
use crate::support::browser::Browser;
use crate::support::{TestSandbox, skip};

/// JavaScript helpers for every expression.
pub const TOOLS: &str = "const page = document.querySelector('cellkeep-page')?.renderRoot, cells = [...(page?.querySelectorAll('cellkeep-cell') ?? [])];
    const within = cell => [...(cell?.renderRoot?.querySelectorAll('cellkeep-output') ?? [])].map(output => output.renderRoot);
    const spoken = output => { const copy = document.createElement('div'); copy.append(...[...output.childNodes].map(node => node.cloneNode(true)));
      for (const tools of copy.querySelectorAll('style, .tools')) tools.remove(); return copy.textContent };
    const text = cell => within(cell).map(output => spoken(output).replace(/\\s+/g, ' ').trim()).join(' | ');
    const phase = cell => cell?.renderRoot?.querySelector('[data-phase]')?.dataset.phase;";

/// A server and a browser that has its page open.
pub struct Opened {
    pub server: Server,
    pub browser: Browser,
}

impl Opened {
    /// `None` if there is no browser, or if this build has no page.
    pub async fn start(name: &str) -> Option<Self> {
        Self::start_with(name, &[]).await
    }

    /// As [`Self::start`], with options for the server.
    pub async fn start_with(name: &str, options: &[&str]) -> Option<Self> {
        let Some(program) = Browser::program() else {
            skip("there is no Chromium; run: make setup-test");
            return None;
        };
        let server = Server::start(name, TestSandbox::process(), options).await;
        if !server.client().anonymous().get("/").await.text().contains("<cellkeep-page>") {
            skip("this build has no page; run: make web");
            return None;
        }
        let browser = Browser::start(&program, &server.data().join("profile")).await;
        let mut opened = Self { server, browser };
        opened.open().await;
        Some(opened)
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.server.client().address())
    }

    /// Opens the link that `serve` prints.
    pub async fn open(&mut self) {
        let link = format!("{}/#token={TOKEN}", self.origin());
        // Only another address in between reloads the page.
        self.browser.open("about:blank").await;
        self.browser.open(&link).await;
        self.until("page?.querySelector('#create:not([disabled])') !== null && page !== undefined", &json!(true)).await;
    }

    /// Waits until an expression has a value.
    pub async fn until(&mut self, expression: &str, value: &Value) {
        let look = format!("(() => {{ {TOOLS} return JSON.stringify({expression}) ?? 'null' }})()");
        self.browser.until("0", &look, |seen| seen == value).await;
    }

    pub async fn act(&mut self, script: &str) {
        self.browser.evaluate(&format!("(() => {{ {TOOLS} {script} }})()")).await;
    }

    /// Writes into the composer and runs it by key. Returns the index of the new cell.
    pub async fn run(&mut self, source: &str) -> usize {
        let count = self.look("cells.length").await.as_u64().unwrap();
        self.act(&format!(
            "const area = page.querySelector('#composer'); area.value = {};
             area.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', shiftKey: true, bubbles: true, cancelable: true}}));",
            json!(source)
        ))
        .await;
        self.until("cells.length", &json!(count + 1)).await;
        usize::try_from(count).unwrap()
    }

    pub async fn look(&mut self, expression: &str) -> Value {
        self.browser.evaluate(&format!("(() => {{ {TOOLS} return {expression} }})()")).await
    }

    pub async fn answer(&mut self, cell: usize, value: &str) {
        self.until(&format!("cells[{cell}]?.renderRoot.querySelector('.question input') != null"), &json!(true)).await;
        self.act(&format!(
            "const form = cells[{cell}].renderRoot.querySelector('.question');
             form.querySelector('input').value = {}; form.requestSubmit();",
            json!(value)
        ))
        .await;
    }

    /// Ends both. Returns the console errors of the page. Fails if the page made requests to other servers.
    pub async fn end(self) -> Vec<String> {
        let origin = self.origin();
        let complaints = self.browser.end(&[&origin]).await;
        self.server.end().await;
        complaints
    }
}

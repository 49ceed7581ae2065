//! The acceptance matrix: what each kind of output of each kernel must show, in a real browser. The rows are data, in
//! `tests/fixtures/matrix`; each is a cell of its own, shown by an element of its own, all of a kernel in one session.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{Held, Server, TOKEN};
use crate::support::browser::Browser;
use crate::support::{Place, skip};

/// No matrix takes longer, however many of its rows wait for each other.
const DEADLINE: Duration = Duration::from_secs(100);

/// A cell, and what of it must become true.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    source: String,
    /// How it ends.
    #[serde(default = "ok")]
    status: String,
    /// Of its outputs, in the page.
    shows: String,
    /// In one of the frames.
    frame: Option<String>,
    /// What a person does then, and what becomes true of it.
    act: Option<String>,
    then: Option<String>,
    /// What a person answers.
    #[serde(default)]
    answers: Vec<String>,
    /// Whether a person stops it once it shows something.
    #[serde(default)]
    stop: bool,
    #[serde(skip)]
    state: State,
}

fn ok() -> String {
    "ok".to_owned()
}

/// How far a row is.
#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Runs,
    Acted,
    Shown,
}

#[derive(Debug, Deserialize)]
struct Rows {
    row: Vec<Row>,
}

/// What the expressions of rows are about.
fn about(name: &str, expression: &str) -> String {
    format!(
        "(() => {{ const cell = document.getElementById('row-{name}'), root = cell?.renderRoot;
        if (!root) return 'no cell';
        const outputs = [...root.querySelectorAll('cellkeep-output')].map(output => output.renderRoot);
        const all = selector => outputs.flatMap(output => [...output.querySelectorAll(selector)]);
        const spoken = output => {{ const copy = document.createElement('div'); copy.append(...[...output.childNodes].map(node => node.cloneNode(true)));
          for (const tools of copy.querySelectorAll('style, .tools')) tools.remove(); return copy.textContent }};
        const raw = all('pre').map(pre => pre.textContent).join('\\n').replace(/\\n$/, '');
        const text = outputs.map(output => spoken(output).replace(/\\s+/g, ' ').trim()).join(' | ');
        const phase = root.querySelector('[data-phase]')?.dataset.phase;
        const region = root.querySelector('[role=region]')?.ariaLabel;
        const button = name => [...root.querySelectorAll('button'), ...all('button')].find(one => one.textContent.trim() === name);
        try {{ return {expression} }} catch (error) {{ return String(error) }} }})()"
    )
}

/// A page of nothing but elements, one for each row.
const MOUNT: &str = "(async () => {
    await import('/-/assets/cellkeep-cell.js');
    Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { window.copied = text }, write: async items => { window.copied = items }}});
    document.body.replaceChildren(...NAMES.map(name => Object.assign(document.createElement('cellkeep-cell'), {id: `row-${name}`, session: 'SESSION', cell: `row-${name}`, token: 'TOKEN', language: 'LANGUAGE'})));
    document.body.style = 'display: grid; gap: 16px; padding: 16px; grid-template-columns: minmax(0, 1fr); height: auto; overflow: auto';
    document.documentElement.style.height = 'auto';
    window.mounted = true })(); 0";

struct Matrix {
    server: Server,
    held: Held,
    browser: Browser,
    kernel: &'static str,
    rows: Vec<Row>,
}

impl Matrix {
    /// `None` where there is no browser, or no page in this build.
    async fn start(kernel: &'static str, limits: Value) -> Option<Self> {
        let Some(program) = Browser::program() else {
            skip("there is no chromium");
            return None;
        };
        let server = Server::start(&format!("matrix-{kernel}"), Place::process(), &[]).await;
        if !server.client().anonymous().get("/").await.text().contains("<cellkeep-page>") {
            skip("this build has no page (make web)");
            return None;
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/matrix").join(kernel).with_extension("toml");
        let Rows { row: rows } = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let held = server.client().create(json!({"kernel": kernel, "limits": limits})).await;
        let browser = Browser::start(&program, &server.data().join("profile")).await;
        Some(Self { server, held, browser, kernel, rows })
    }

    fn origin(&self) -> String {
        format!("http://{}", self.server.client().address())
    }

    /// Runs all rows, one behind the other, in one page.
    async fn run(&mut self) {
        let names: Vec<_> = self.rows.iter().map(|row| &row.name).collect();
        let mount = MOUNT.replace("NAMES", &json!(names).to_string()).replace("SESSION", &self.held.id);
        let mount = mount.replace("TOKEN", TOKEN).replace("LANGUAGE", self.kernel);
        self.browser.open(&format!("{}/", self.origin())).await;
        self.browser.until("0", "JSON.stringify(document.querySelector('cellkeep-page') !== null)", |there| there == true).await;
        self.browser.evaluate(&mount).await;
        self.browser.until("0", "JSON.stringify(window.mounted === true)", |there| there == true).await;
        let begun = Instant::now();
        let mut started = 0;
        while self.rows.iter().any(|row| row.state != State::Shown) && begun.elapsed() < DEADLINE {
            started = self.start_rows(started).await;
            self.look().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.all_are_shown().await;
        eprintln!("{}: {} rows in {:.1?}", self.kernel, self.rows.len(), begun.elapsed());
    }

    /// Queues rows from here on. Those that end their kernel wait until all before them are done, and those behind wait for them.
    async fn start_rows(&self, from: usize) -> usize {
        for (at, row) in self.rows.iter().enumerate().skip(from) {
            let ends_kernel = |row: &Row| ["kernel_died", "memory_exceeded"].contains(&row.status.as_str());
            let waits = ends_kernel(row) || at > 0 && ends_kernel(&self.rows[at - 1]);
            if waits && self.rows[..at].iter().any(|before| before.state != State::Shown) {
                return at;
            }
            self.held.begin(&format!("row-{}", row.name), row.source.trim()).await;
        }
        self.rows.len()
    }

    /// One look at each row that is not done, and what a person would do there.
    async fn look(&mut self) {
        for at in 0..self.rows.len() {
            let row = &self.rows[at];
            let (name, status) = (row.name.clone(), row.status.clone());
            match row.state {
                State::Shown => {}
                State::Runs => {
                    self.take_part(at).await;
                    let shows = format!("phase === '{status}' && (cell.scrollIntoView(), {})", self.rows[at].shows);
                    if self.browser.evaluate(&about(&name, &shows)).await != true || !self.is_framed(at).await {
                        continue;
                    }
                    self.rows[at].state = State::Shown;
                    if let Some(act) = self.rows[at].act.clone() {
                        self.browser.evaluate(&about(&name, &format!("({act}, 0)"))).await;
                        self.rows[at].state = State::Acted;
                    }
                }
                State::Acted => {
                    let then = row.then.clone().unwrap_or_else(|| "true".to_owned());
                    if self.browser.evaluate(&about(&name, &then)).await == true {
                        self.rows[at].state = State::Shown;
                    }
                }
            }
        }
    }

    /// Answers what the cell asks; stops it if it never ends.
    async fn take_part(&mut self, at: usize) {
        let row = &mut self.rows[at];
        let name = row.name.clone();
        if row.stop {
            let stop = "phase === 'running' && text !== '' && (button('Stop').click(), true)";
            row.stop = self.browser.evaluate(&about(&name, stop)).await != true;
        } else if let Some(answer) = row.answers.first().cloned() {
            let answering = format!(
                "root.querySelector('.question input') !== null && (root.querySelector('.question input').value = {}, root.querySelector('.question').requestSubmit(), true)",
                json!(answer)
            );
            if self.browser.evaluate(&about(&name, &answering)).await == true {
                self.rows[at].answers.remove(0);
                // The question stands until the server has taken the answer.
                let asks = about(&name, "JSON.stringify(root.querySelector('.question input')?.value ?? '')");
                self.browser.until("0", &asks, |value| value == "").await;
            }
        }
    }

    async fn is_framed(&mut self, at: usize) -> bool {
        let Some(frame) = &self.rows[at].frame else { return true };
        let look = format!("(() => {{ try {{ return {frame} }} catch {{ return false }} }})()");
        self.browser.evaluate_in_frames(&look).await.contains(&json!(true))
    }

    async fn all_are_shown(&mut self) {
        let mut missing = Vec::new();
        for at in 0..self.rows.len() {
            let row = &self.rows[at];
            if row.state == State::Shown {
                continue;
            }
            let look = format!(
                "[phase, text.slice(0, 600), all('.note').map(one => one.textContent).join(), ({}), window.copied?.slice?.(0, 300)]",
                row.then.as_ref().filter(|_| row.state == State::Acted).unwrap_or(&row.shows)
            );
            let seen = self.browser.evaluate(&about(&row.name.clone(), &look)).await;
            missing.push(format!("{} is {:?}: {seen}", self.rows[at].name, self.rows[at].state));
        }
        assert!(missing.is_empty(), "rows of {} that do not show what they must:\n{}", self.kernel, missing.join("\n"));
    }

    /// What holds for every row.
    async fn is_safe(&mut self) {
        let flags = "[...new Set([...document.querySelectorAll('cellkeep-cell')].flatMap(cell => [...cell.renderRoot.querySelectorAll('cellkeep-output')])
            .flatMap(output => [...output.renderRoot.querySelectorAll('cellkeep-frame')]).map(frame => frame.renderRoot.querySelector('iframe')?.getAttribute('sandbox')).filter(flags => flags))].join()";
        let flags = self.browser.evaluate(flags).await;
        assert!(["", "allow-scripts allow-downloads allow-pointer-lock"].contains(&flags.as_str().unwrap()), "{flags}");
        let touched = "[window.__pwned, window.x, document.querySelectorAll('iframe, script:not([src])').length]";
        assert_eq!(self.browser.evaluate(touched).await, json!([null, null, 0]));
    }

    /// Pictures of all of it, in light and in dark.
    async fn pictures(&mut self) {
        for scheme in ["light", "dark"] {
            self.browser.scheme(scheme).await;
            let height = self.browser.evaluate("document.documentElement.scrollHeight").await.as_u64().unwrap();
            for (at, top) in (0..height).step_by(1800).enumerate() {
                self.browser.resize(1000, 1800).await;
                self.browser.evaluate(&format!("scrollTo(0, {top})")).await;
                self.browser.screenshot(&format!("matrix-{}-{scheme}-{at}", self.kernel)).await;
            }
        }
    }

    async fn end(self) {
        let origin = self.origin();
        let (complaints, requests) = self.browser.finish().await;
        let foreign: Vec<_> = requests.iter().filter(|url| !url.starts_with(&format!("{origin}/"))).collect();
        assert_eq!(foreign, [""; 0], "requests left the origin");
        assert_eq!(complaints, [""; 0]);
        self.server.end().await;
    }
}

async fn all_rows_of(kernel: &'static str, limits: Value) {
    let Some(mut matrix) = Matrix::start(kernel, limits).await else { return };
    matrix.run().await;
    matrix.is_safe().await;
    matrix.pictures().await;
    matrix.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() {
    all_rows_of("python", json!({"memory_mb": 900, "cpus": 2})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r() {
    all_rows_of("r", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deno() {
    all_rows_of("deno", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bash() {
    all_rows_of("bash", json!({})).await;
}

/// Row 41 is Julia's, which our machines cannot fetch.
#[test]
fn julia() {
    eprintln!("skipped: row 41 (julia): its image is written but never built here");
}

//! The acceptance matrix: what each kind of output of each kernel must show in a real browser. The rows are data in
//! `tests/fixtures/matrix`. Each row is a cell, shown by its own element; all rows of a kernel share a session.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::mounted::{Mounted, about};

/// The timeout of one kernel's rows.
const TIMEOUT: Duration = Duration::from_secs(150);

/// A cell, and the conditions that its element must meet (JavaScript; see [`about`]).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    source: String,
    /// The final status.
    #[serde(default = "ok")]
    status: String,
    /// Condition on its outputs in the page.
    shows: String,
    /// Condition in one of the frames.
    frame: Option<String>,
    /// An action that follows, and the condition `then` on its effect.
    act: Option<String>,
    then: Option<String>,
    /// Answers to input requests.
    #[serde(default)]
    answers: Vec<String>,
    /// The browser's message about an action that a policy blocks.
    complaint: Option<String>,
    /// Whether to stop the execution once it has output.
    #[serde(default)]
    stop: bool,
    #[serde(skip)]
    state: State,
}

fn ok() -> String {
    "ok".to_owned()
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Running,
    Acted,
    Shown,
}

#[derive(Debug, Deserialize)]
struct Rows {
    row: Vec<Row>,
}

struct Matrix {
    page: Mounted,
    kernel: &'static str,
    rows: Vec<Row>,
}

impl Matrix {
    async fn start(kernel: &'static str, limits: Value) -> Option<Self> {
        let page = Mounted::start(&format!("matrix-{kernel}"), kernel, limits).await?;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/matrix").join(kernel).with_extension("toml");
        let Rows { row: rows } = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        Some(Self { page, kernel, rows })
    }

    /// Runs all rows, one after the other, in one page.
    async fn run(&mut self) {
        let ids: Vec<_> = self.rows.iter().map(|row| format!("row-{}", row.name)).collect();
        self.page.mount(&ids).await;
        let started_at = Instant::now();
        let (mut started, mut turn) = (0, 0);
        while self.rows.iter().any(|row| row.state != State::Shown) && started_at.elapsed() < TIMEOUT {
            started = self.start_rows(started).await;
            self.check(turn).await;
            turn += 1;
        }
        self.assert_all_shown().await;
        eprintln!("{}: {} rows in {:.1?}", self.kernel, self.rows.len(), started_at.elapsed());
    }

    /// Queues rows from `from` on. A row that ends its kernel waits for all rows before it, and the rows after it wait for
    /// it.
    async fn start_rows(&self, from: usize) -> usize {
        for (at, row) in self.rows.iter().enumerate().skip(from) {
            let ends_kernel = |row: &Row| ["kernel_died", "memory_exceeded"].contains(&row.status.as_str());
            let waits = ends_kernel(row) || at > 0 && ends_kernel(&self.rows[at - 1]);
            if waits && self.rows[..at].iter().any(|before| before.state != State::Shown) {
                return at;
            }
            self.page.held.begin(&format!("row-{}", row.name), row.source.trim()).await;
        }
        self.rows.len()
    }

    /// Checks each unfinished row once, and performs its actions.
    async fn check(&mut self, turn: usize) {
        // Frames load when they come into view, so unfinished rows are scrolled to in turn.
        let waiting: Vec<_> = self.rows.iter().filter(|row| row.state != State::Shown).map(|row| row.name.clone()).collect();
        let scroll = format!("document.getElementById('row-{}').scrollIntoView()", waiting[turn % waiting.len()]);
        self.page.browser.evaluate(&scroll).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        for at in 0..self.rows.len() {
            let row = &self.rows[at];
            let (name, status) = (row.name.clone(), row.status.clone());
            match row.state {
                State::Shown => {}
                State::Running => {
                    self.interact(at).await;
                    let shows = format!("phase === '{status}' && ({})", self.rows[at].shows);
                    if self.page.look(&format!("row-{name}"), &shows).await != true || !self.is_framed(at).await {
                        continue;
                    }
                    self.rows[at].state = State::Shown;
                    if let Some(act) = self.rows[at].act.clone() {
                        self.page.look(&format!("row-{name}"), &format!("({act}, 0)")).await;
                        self.rows[at].state = State::Acted;
                    }
                }
                State::Acted => {
                    let then = row.then.clone().unwrap_or_else(|| "true".to_owned());
                    if self.page.look(&format!("row-{name}"), &then).await == true {
                        self.rows[at].state = State::Shown;
                    }
                }
            }
        }
    }

    /// Answers an input request, or stops an endless execution.
    async fn interact(&mut self, at: usize) {
        let row = &mut self.rows[at];
        let name = row.name.clone();
        if row.stop {
            let stop = "phase === 'running' && text !== '' && (button('Stop').click(), true)";
            row.stop = self.page.look(&format!("row-{name}"), stop).await != true;
        } else if let Some(answer) = row.answers.first().cloned() {
            let answering = format!(
                "root.querySelector('.question input') !== null && (root.querySelector('.question input').value = {}, root.querySelector('.question').requestSubmit(), true)",
                json!(answer)
            );
            if self.page.look(&format!("row-{name}"), &answering).await == true {
                self.rows[at].answers.remove(0);
                // The prompt stays until the server has accepted the answer.
                let asks =
                    about(&format!("row-{name}"), "JSON.stringify(root.querySelector('.question input')?.value ?? '')");
                self.page.browser.until("0", &asks, |value| value == "").await;
            }
        }
    }

    async fn is_framed(&mut self, at: usize) -> bool {
        let Some(frame) = &self.rows[at].frame else { return true };
        let look = format!("(() => {{ try {{ return {frame} }} catch {{ return false }} }})()");
        self.page.browser.evaluate_in_frames(&look).await.contains(&json!(true))
    }

    async fn assert_all_shown(&mut self) {
        let mut missing = Vec::new();
        for at in 0..self.rows.len() {
            let row = &self.rows[at];
            if row.state == State::Shown {
                continue;
            }
            let wanted = row.then.as_ref().filter(|_| row.state == State::Acted).unwrap_or(&row.shows);
            let (name, state) = (row.name.clone(), format!("{:?}", row.state));
            let parts: Vec<_> = wanted.split("&&").map(|part| part.trim().to_owned()).collect();
            let look = "[phase, text.slice(0, 300), window.copied?.slice?.(0, 300)]";
            let mut seen = vec![self.page.look(&format!("row-{name}"), look).await.to_string()];
            for part in parts {
                let value = self.page.look(&format!("row-{name}"), &part).await;
                seen.extend((value != true).then(|| format!("{value} is {part}")));
            }
            missing.push(format!("{name} is {state}: {}", seen.join("\n    ")));
        }
        assert!(missing.is_empty(), "rows of {} that do not show what they must:\n{}", self.kernel, missing.join("\n"));
    }

    /// Security conditions of every row.
    async fn assert_safe(&mut self) {
        let flags = "[...new Set([...document.querySelectorAll('cellkeep-cell')].flatMap(cell => [...cell.renderRoot.querySelectorAll('cellkeep-output')])
            .flatMap(output => [...output.renderRoot.querySelectorAll('cellkeep-frame')]).map(frame => frame.renderRoot.querySelector('iframe')?.getAttribute('sandbox')).filter(flags => flags))].join()";
        let flags = self.page.browser.evaluate(flags).await;
        assert!(["", "allow-scripts allow-downloads allow-pointer-lock"].contains(&flags.as_str().unwrap()), "{flags}");
        let touched = "[window.__pwned, window.x, document.querySelectorAll('iframe, script:not([src])').length]";
        assert_eq!(self.page.browser.evaluate(touched).await, json!([null, null, 0]));
    }

    /// Screenshots of the whole page, light and dark.
    async fn pictures(&mut self) {
        for scheme in ["light", "dark"] {
            self.page.browser.media(&[("prefers-color-scheme", scheme)]).await;
            let height = self.page.browser.evaluate("document.documentElement.scrollHeight").await.as_u64().unwrap();
            for (at, top) in (0..height).step_by(1800).enumerate() {
                self.page.browser.resize(1000, 1800).await;
                self.page.browser.evaluate(&format!("scrollTo(0, {top})")).await;
                self.page.browser.screenshot(&format!("matrix-{}-{scheme}-{at}", self.kernel)).await;
            }
        }
    }

    async fn end(self) {
        let complaints = self.page.end().await;
        let expected =
            |text: &String| self.rows.iter().filter_map(|row| row.complaint.as_ref()).any(|one| text.contains(one));
        // Rendering hints concern machines without a graphics card, and authors of plotting libraries.
        let is_hint = |text: &String| text.contains("\"source\":\"rendering\"");
        let odd: Vec<_> = complaints.iter().filter(|text| !expected(text) && !is_hint(text)).collect();
        assert_eq!(odd, [""; 0]);
    }
}

async fn all_rows_of(kernel: &'static str, limits: Value) {
    let Some(mut matrix) = Matrix::start(kernel, limits).await else { return };
    matrix.run().await;
    matrix.assert_safe().await;
    matrix.pictures().await;
    matrix.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_rows_are_shown() {
    all_rows_of("python", json!({"memory_mb": 900, "cpus": 2})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_rows_are_shown() {
    all_rows_of("r", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deno_rows_are_shown() {
    all_rows_of("deno", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bash_rows_are_shown() {
    all_rows_of("bash", json!({})).await;
}

/// Row 41 needs Julia, whose base image our machines cannot fetch.
#[test]
fn julia_row_is_skipped() {
    eprintln!("skipped: row 41 (julia): its image is written but never built here");
}

//! A session that was made ahead: from the request to the answer.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::client::Http;
use super::servers::Server;
use crate::Lab;
use crate::table::{Figure, Goal, Rows, percentile};

const SESSIONS: usize = 50;
pub(crate) const POOL: u64 = 2;
const REFILL_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let server = Server::cellkeep(lab, &["--pool", &format!("python={POOL}")])?;
    let mut http = server.http()?;
    let mut seconds = Vec::with_capacity(SESSIONS);
    for round in 1..=SESSIONS {
        if round % 10 == 1 {
            eprintln!("pool: session {round} of {SESSIONS}");
        }
        wait_until_full(&mut http)?;
        let began = Instant::now();
        let session = http.ask("POST", "/v1/sessions", Some(&json!({"kernel": "python"})))?;
        seconds.push(began.elapsed().as_secs_f64());
        let id = session["id"].as_str().context("a session without id")?;
        http.ask("DELETE", &format!("/v1/sessions/{id}"), None)?;
    }
    let mut rows = Rows::default();
    for (percent, goal) in [(50, Some(Goal::Within(0.010))), (95, None), (99, Some(Goal::Within(0.050)))] {
        rows.value(&format!("p{percent}"), Figure::Seconds(percentile(&seconds, percent)), goal);
    }
    rows.note(format!("{SESSIONS} sessions, each deleted again, and the pool of {POOL} refilled before the next"));
    Ok(rows)
}

/// Waits until as many kernels are ready as the pool keeps.
pub(crate) fn wait_until_full(http: &mut Http) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let kernels = http.ask("GET", "/v1/kernels", None)?;
        let python = kernels["kernels"].as_array().into_iter().flatten().find(|kernel| kernel["name"] == "python");
        if python.is_some_and(|python| python["pool"] == POOL) {
            return Ok(());
        }
        ensure!(began.elapsed() < REFILL_DEADLINE, "the pool is not refilled: {kernels}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

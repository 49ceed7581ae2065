//! Runs several notebooks at a time, each on a session of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::outcome::Outcome;
use super::plan::Job;
use super::progress::{ProgressDisplay, ProgressMode};
use crate::cli::signals::SignalForwarder;
use crate::cli::{Exit, Failure};

/// Runs `work` for every job, at most `concurrency` at a time. Outcomes are in the order of the jobs. No job starts after a
/// signal, nor after a failure if `fail_fast`.
pub(in crate::cli) async fn run_jobs<W, F>(
    jobs: Vec<Job>,
    concurrency: usize,
    fail_fast: bool,
    signals: &Arc<SignalForwarder>,
    display: &ProgressDisplay,
    work: W,
) -> Result<Vec<Outcome>, Failure>
where
    W: Fn(Job) -> F + Clone + Send + 'static,
    F: Future<Output = Outcome> + Send + 'static,
{
    let total = jobs.len();
    let jobs = Arc::new(jobs);
    let (next, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut workers = JoinSet::new();
    for _ in 0..concurrency.clamp(1, total.max(1)) {
        let (jobs, next, failed, signals) = (jobs.clone(), next.clone(), failed.clone(), signals.clone());
        let (display, work) = (display.clone(), work.clone());
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                let Some(job) = jobs.get(number) else { return done };
                let not_started = |exit, why| Outcome::not_started(&job.source, &job.run_id, exit, why);
                let outcome = if signals.interrupt.is_requested() {
                    not_started(Exit::Interrupted, "not started: the command was interrupted")
                } else if failed.load(Ordering::SeqCst) {
                    not_started(Exit::Ok, "not started after a failure (--fail-fast)")
                } else {
                    let outcome = Box::pin(work(job.clone())).await;
                    show_outcome(&display, &outcome, number, total);
                    outcome
                };
                failed.fetch_or(fail_fast && outcome.exit != Exit::Ok, Ordering::SeqCst);
                done.push((number, outcome));
            }
        });
    }
    let mut outcomes = Vec::with_capacity(total);
    while let Some(done) = workers.join_next().await {
        outcomes.append(&mut done.map_err(Failure::no_sandbox)?);
    }
    outcomes.sort_by_key(|(number, _)| *number);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

fn show_outcome(display: &ProgressDisplay, outcome: &Outcome, number: usize, total: usize) {
    if display.many && display.mode != ProgressMode::None {
        let (path, seconds) = (outcome.source.display(), outcome.total_time.as_secs_f64());
        display.line(&format!("[{}/{total}] {path}: {} ({seconds:.2} s)", number + 1, outcome.status()));
    }
    if let (true, Some(failure)) = (display.many, &outcome.failure) {
        display.line(&format!("{}: {failure}", outcome.source.display()));
    }
}

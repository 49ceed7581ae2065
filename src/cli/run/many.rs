//! Several notebooks at a time, each on a session of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::one::not_begun;
use super::plan::Job;
use super::report::Outcome;
use super::show::{Board, ProgressKind};
use crate::cli::signals::Following;
use crate::cli::{Exit, Failure};

/// Does `work` for every job, `at_once` of them at a time; gives the outcomes in the order of the jobs. After a signal, and with
/// `fail_fast` after a failure, no more are begun.
pub(in crate::cli) async fn all<W, F>(
    jobs: Vec<Job>,
    at_once: usize,
    fail_fast: bool,
    following: &Arc<Following>,
    board: &Board,
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
    for _ in 0..at_once.clamp(1, total.max(1)) {
        let (jobs, next, failed, following) = (jobs.clone(), next.clone(), failed.clone(), following.clone());
        let (board, work) = (board.clone(), work.clone());
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                let Some(job) = jobs.get(number) else { return done };
                let outcome = if following.interruption.is_asked() {
                    not_begun(job, "interrupted before it")
                } else if failed.load(Ordering::SeqCst) {
                    Outcome { exit: Exit::Ok, ..not_begun(job, "not begun after a failure (--fail-fast)") }
                } else {
                    let outcome = Box::pin(work(job.clone())).await;
                    tell(&board, &outcome, number, total);
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

fn tell(board: &Board, outcome: &Outcome, number: usize, total: usize) {
    if board.many && board.kind != ProgressKind::None {
        let (path, seconds) = (outcome.source.display(), outcome.whole.as_secs_f64());
        board.line(&format!("[{}/{total}] {path}: {} ({seconds:.2} s)", number + 1, outcome.status()));
    }
    if let (true, Some(failure)) = (board.many, &outcome.failure) {
        board.line(&format!("{}: {failure}", outcome.source.display()));
    }
}

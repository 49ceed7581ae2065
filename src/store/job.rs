//! Group commit: jobs share a transaction, and each of them can fail alone.

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::StoreError;

/// Reports the result to the caller. Called after the commit, with the error of the commit if it failed.
type Finish = Box<dyn FnOnce(Option<&StoreError>) + Send>;
/// Does the work of a job. The argument is an error if no transaction could begin.
type Run = Box<dyn FnOnce(Result<&Connection, &StoreError>, Isolation) -> Done + Send>;

/// How a failing job is undone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// The job is alone in its transaction, which is rolled back. A savepoint would copy each changed page, and from some
    /// twenty pages on into a file.
    Transaction,
    /// Other jobs are in the transaction, so the job has a savepoint.
    Savepoint,
}

/// A job whose work is done or has failed.
struct Done {
    failed: bool,
    finish: Finish,
}

/// The work of a job within a transaction.
pub(super) trait Work<T>: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static {}
impl<T, W: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static> Work<T> for W {}

/// Work that waits for its transaction.
pub(super) struct Job {
    run: Run,
    /// The approximate number of bytes that the job writes.
    pub bytes: usize,
}

impl Job {
    pub fn new<T: Send + 'static>(bytes: usize, work: impl Work<T>) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let run = move |connection: Result<&Connection, &StoreError>, isolation| {
            let result = connection.map_err(Clone::clone).and_then(|connection| match isolation {
                Isolation::Transaction => work(connection).map_err(StoreError::from),
                Isolation::Savepoint => in_savepoint(connection, work),
            });
            let failed = result.is_err();
            let finish: Finish = Box::new(move |commit_error| {
                // The error of the job says more than the error of the commit.
                let result = result.and_then(|value| commit_error.map_or(Ok(value), |error| Err(error.clone())));
                // Fails if the caller was cancelled. The work is done nevertheless.
                let _ = reply.send(result);
            });
            Done { failed, finish }
        };
        (Self { run: Box::new(run), bytes }, answer)
    }
}

/// Commits jobs in order and in one transaction. If a job makes SQLite roll back the whole transaction, the jobs after it
/// get another one.
pub(super) fn commit(connection: &Connection, begun: rusqlite::Result<()>, mut jobs: Vec<Job>) {
    commit_batch(connection, begun, &mut jobs);
    while !jobs.is_empty() {
        commit_batch(connection, begin(connection), &mut jobs);
    }
}

fn execute(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute(()).map(|_| ())
}

pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    execute(connection, "BEGIN IMMEDIATE")
}

/// Commits jobs in one transaction, up to the first one that makes SQLite roll back the whole transaction.
fn commit_batch(connection: &Connection, begun: rusqlite::Result<()>, jobs: &mut Vec<Job>) {
    let mut done = Vec::new();
    let outcome = match begun.map_err(StoreError::from) {
        Ok(()) => {
            let isolation = if jobs.len() == 1 { Isolation::Transaction } else { Isolation::Savepoint };
            let mut remaining = std::mem::take(jobs).into_iter();
            for job in remaining.by_ref() {
                done.push((job.run)(Ok(connection), isolation));
                if connection.is_autocommit() {
                    break;
                }
            }
            *jobs = remaining.collect();
            match connection.is_autocommit() {
                false if isolation == Isolation::Transaction && done.iter().any(|done| done.failed) => {
                    execute(connection, "ROLLBACK").map_err(StoreError::from)
                }
                false => execute(connection, "COMMIT").map_err(StoreError::from),
                true => Err(StoreError::Failed(
                    "SQLite rolled back the whole transaction because one job in it failed".to_owned(),
                )),
            }
        }
        Err(error) => {
            done.extend(jobs.drain(..).map(|job| (job.run)(Err(&error), Isolation::Transaction)));
            Err(error)
        }
    };
    if outcome.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    done.into_iter().for_each(|done| (done.finish)(outcome.as_ref().err()));
}

/// Runs work in a savepoint, so that its failure does not undo other jobs in the transaction.
fn in_savepoint<T>(connection: &Connection, work: impl Work<T>) -> Result<T, StoreError> {
    execute(connection, "SAVEPOINT job")?;
    match work(connection) {
        Ok(value) => {
            execute(connection, "RELEASE job")?;
            Ok(value)
        }
        Err(error) => {
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK TO job; RELEASE job")?;
            }
            Err(error.into())
        }
    }
}

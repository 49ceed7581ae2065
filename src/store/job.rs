//! Pieces of work that are committed together, each of which can fail alone.

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::StoreError;

/// Told after the commit whether it held.
type Finish = Box<dyn FnOnce(Option<&StoreError>) + Send>;
/// Does its work, or hears why no transaction could begin.
type Act = Box<dyn FnOnce(Result<&Connection, &StoreError>, Company) -> Done + Send>;

/// Whether others are in the same transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    /// None: where it fails, the transaction is taken back. A savepoint would copy each page that it changes, and of a score of pages
    /// into a file.
    Alone,
    /// Some, which its failure must not undo.
    WithOthers,
}

/// A job's work is done, or has failed.
struct Done {
    failed: bool,
    finish: Finish,
}

/// What is done in a commit, alone or with others'.
pub(super) trait Work<T>: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static {}
impl<T, W: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static> Work<T> for W {}

/// Work that waits for its commit, and for somebody to be told of it.
pub(super) struct Job {
    act: Act,
    /// What it writes, roughly.
    pub bytes: usize,
}

impl Job {
    pub fn new<T: Send + 'static>(bytes: usize, work: impl Work<T>) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let act = move |connection: Result<&Connection, &StoreError>, company| {
            let result = connection.map_err(Clone::clone).and_then(|connection| match company {
                Company::Alone => work(connection).map_err(StoreError::from),
                Company::WithOthers => in_savepoint(connection, work),
            });
            let failed = result.is_err();
            let finish: Finish = Box::new(move |undone| {
                // Its own failure says more than what became of the commit.
                let result = result.and_then(|value| undone.map_or(Ok(value), |error| Err(error.clone())));
                // The caller may have gone; the work is done all the same.
                let _ = reply.send(result);
            });
            Done { failed, finish }
        };
        (Self { act: Box::new(act), bytes }, answer)
    }
}

/// Commits jobs in order, together but where one makes SQLite give up the whole transaction: those after it get another.
pub(super) fn commit(connection: &Connection, begun: rusqlite::Result<()>, mut jobs: Vec<Job>) {
    commit_some(connection, begun, &mut jobs);
    while !jobs.is_empty() {
        commit_some(connection, begin(connection), &mut jobs);
    }
}

fn execute(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute(()).map(|_| ())
}

pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    execute(connection, "BEGIN IMMEDIATE")
}

/// Commits jobs together, in order, until there are no more, or until one makes SQLite give up the whole transaction.
fn commit_some(connection: &Connection, begun: rusqlite::Result<()>, jobs: &mut Vec<Job>) {
    let mut done = Vec::new();
    let outcome = match begun.map_err(StoreError::from) {
        Ok(()) => {
            let company = if jobs.len() == 1 { Company::Alone } else { Company::WithOthers };
            let mut left = std::mem::take(jobs).into_iter();
            for job in left.by_ref() {
                done.push((job.act)(Ok(connection), company));
                if connection.is_autocommit() {
                    break;
                }
            }
            *jobs = left.collect();
            match connection.is_autocommit() {
                false if company == Company::Alone && done.iter().any(|done| done.failed) => {
                    execute(connection, "ROLLBACK").map_err(StoreError::from)
                }
                false => execute(connection, "COMMIT").map_err(StoreError::from),
                true => Err(StoreError::Failed("SQLite gave up the whole commit for one piece of it".to_owned())),
            }
        }
        Err(error) => {
            done.extend(jobs.drain(..).map(|job| (job.act)(Err(&error), Company::Alone)));
            Err(error)
        }
    };
    if outcome.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    done.into_iter().for_each(|done| (done.finish)(outcome.as_ref().err()));
}

/// One job's failure must not undo the others'.
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

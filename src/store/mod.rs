//! The journal on disk: sessions, their cells and their numbered events, artifacts, tokens. One SQLite file.
//!
//! One thread owns the only connection that writes. What waits for it when it begins is committed together, so that a
//! hundred sessions share one commit. Whoever wrote is told after the commit; what was told is there after a `kill -9`.
//! Readers have connections of their own and never wait for the writer (write-ahead log).

mod cells;
mod commit;
mod compact;
mod events;
mod schema;
mod sessions;
mod shares;
mod tokens;
mod turns;

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use cells::{CellRow, CellState, TooHeavy};
pub use commit::{ArtifactRow, CellChange, Commit, SessionChange};
pub use compact::Compactable;
pub use events::EventRow;
pub use sessions::SessionRow;
pub use shares::ShareRow;
pub use tokens::TokenRow;

/// Most jobs in one commit: the first of them waits for all.
const BATCH: usize = 256;
/// Read connections that are kept open.
const IDLE_READERS: usize = 4;
/// How long a statement waits for another process (a backup, a person with `sqlite3`).
const BUSY: Duration = Duration::from_secs(10);

/// Why the store did not do it. Nothing of the job was done then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk with the journal is full")]
    Full,
    /// The file was written by a later version.
    #[error("{} was written by a later cellkeep (format {found}; this one knows {known}); use that one, or another --data folder", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// SQLite or the file system failed.
    #[error("the journal: {0}")]
    Failed(String),
    /// The store has been closed.
    #[error("the journal is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Told after the commit whether it held.
type Finish = Box<dyn FnOnce(Option<&StoreError>) + Send>;
/// Does its work, or hears why no transaction could begin.
type Job = Box<dyn FnOnce(Result<&Connection, &StoreError>) -> Finish + Send>;

/// What the writer is asked for.
enum Work {
    /// Something to be committed.
    Commit(Job),
    /// To merge the log into the file, waiting no longer than this for readers.
    Merge(Duration, oneshot::Sender<Result<bool, StoreError>>),
}

/// The store. Clones share it; the last one closes it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::UnboundedSender<Work>,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Store {
    /// Opens the store, makes it where there is none, and brings an older one up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`], [`StoreError::Failed`] when the file cannot be opened or is no database of ours.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open_writer(path)?;
        let (jobs, queue) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_until_closed(&connection, queue))
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self { jobs, readers: Arc::new(Readers { path: path.to_owned(), idle: Mutex::default() }) })
    }

    /// Does `work` in the next commit; returns when that is on its way to the disk and survives this process.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = move |connection: Result<&Connection, &StoreError>| -> Finish {
            let result = connection.map_err(Clone::clone).and_then(|connection| in_savepoint(connection, work));
            Box::new(move |failed| {
                // Its own failure says more than what became of the commit.
                let result = result.and_then(|value| failed.map_or(Ok(value), |error| Err(error.clone())));
                // The caller may have gone; the work is done all the same.
                let _ = reply.send(result);
            })
        };
        self.jobs.send(Work::Commit(Box::new(job))).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Merges the log into the file, so that the file holds all there is until something is written again. Gives up after a while,
    /// and for readers that do not end: then the log stays, in which nothing is lost. Whether it was merged.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn merge_log(&self, within: Duration) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Work::Merge(within, reply)).map_err(|_| StoreError::Closed)?;
        match tokio::time::timeout(within * 2, answer).await {
            Ok(merged) => merged.map_err(|_| StoreError::Closed)?,
            Err(_) => Ok(false),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = self.readers.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let result = work(&connection);
            readers.give_back(connection);
            Ok(result?)
        });
        reading.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(idle);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
    }
}

/// What people's code printed is for nobody else on this machine; SQLite gives its log the same mode.
///
/// The file is closed again before SQLite opens it: to close any descriptor of a file takes away all locks that the process has on
/// it, and another program that then closes the journal would take itself for the last and remove the log that we write.
fn make_private(path: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let io = |error: std::io::Error| StoreError::Failed(format!("cannot open {}: {error}", path.display()));
    make_private(path).map_err(io)?;
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    schema::prepare(&connection, path)?;
    Ok(connection)
}

fn write_until_closed(connection: &Connection, mut queue: mpsc::UnboundedReceiver<Work>) {
    let mut next = None;
    while let Some(first) = next.take().or_else(|| queue.blocking_recv()) {
        let mut jobs = match first {
            Work::Commit(job) => vec![job],
            Work::Merge(within, reply) => {
                // Whoever asked may have given up.
                let _ = reply.send(merge_log(connection, within).map_err(StoreError::from));
                continue;
            }
        };
        while jobs.len() < BATCH {
            match queue.try_recv() {
                Ok(Work::Commit(job)) => jobs.push(job),
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let mut jobs = jobs.into_iter();
        while jobs.len() > 0 {
            commit_some(connection, &mut jobs);
        }
    }
    // The log is merged into the file by closing the last connection.
}

/// Between two commits, on the writer's own connection. Nothing of the file is opened or closed for it (see [`make_private`]).
fn merge_log(connection: &Connection, within: Duration) -> rusqlite::Result<bool> {
    connection.busy_timeout(within)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY)?;
    Ok(!busy?)
}

/// Commits jobs together until there are no more, or until one makes SQLite give up the whole transaction.
fn commit_some(connection: &Connection, jobs: &mut impl Iterator<Item = Job>) {
    let mut done = Vec::new();
    let outcome = match connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from) {
        Ok(()) => {
            for job in jobs {
                done.push(job(Ok(connection)));
                if connection.is_autocommit() {
                    break;
                }
            }
            match connection.is_autocommit() {
                false => connection.execute_batch("COMMIT").map_err(StoreError::from),
                true => Err(StoreError::Failed("SQLite gave up the whole commit for one piece of it".to_owned())),
            }
        }
        Err(error) => {
            done.extend(jobs.map(|job| job(Err(&error))));
            Err(error)
        }
    };
    if outcome.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    done.into_iter().for_each(|finish| finish(outcome.as_ref().err()));
}

/// One job's failure must not undo the others'.
fn in_savepoint<T>(connection: &Connection, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
    connection.execute_batch("SAVEPOINT job")?;
    match work(connection) {
        Ok(value) => {
            connection.execute_batch("RELEASE job")?;
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

/// Milliseconds since 1970, as all times in the store.
pub fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

/// A span as the store counts time.
pub fn seconds_in_ms(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000)
}

/// A time as the store has it.
pub fn to_ms(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The other way: what the store has, as a time.
pub fn from_ms(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0).cast_unsigned())
}

#[cfg(test)]
mod tests;

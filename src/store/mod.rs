//! The journal on disk: sessions, their cells and their numbered events, artifacts, tokens. One SQLite file.
//!
//! One connection writes ([`writer`]). Whoever wrote is told after the commit; what was told is there after a `kill -9`.
//! Readers have connections of their own and never wait for the writer (write-ahead log).

mod cells;
mod commit;
mod compact;
mod events;
mod job;
mod schema;
mod sessions;
mod shares;
mod tokens;
mod turns;
mod writer;

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

pub use cells::{CellRow, CellState, TooHeavy};
pub use commit::{ArtifactRow, CellChange, Commit, SessionChange};
pub use compact::Compactable;
pub use events::EventRow;
pub use sessions::SessionRow;
pub use shares::ShareRow;
pub use tokens::TokenRow;
use writer::{BUSY, Writer};

/// Read connections that are kept open.
const IDLE_READERS: usize = 4;

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

/// The store. Clones share it; the last one closes it.
#[derive(Clone)]
pub struct Store {
    writer: Arc<Writer>,
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
        let (connection, checkpoints) = (open_writer(path)?, writer::for_checkpoints(path)?);
        let writer = Writer::start(connection, checkpoints).map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self { writer: Arc::new(writer), readers: Arc::new(Readers { path: path.to_owned(), idle: Mutex::default() }) })
    }

    /// Merges the log into the file, so that the file holds all there is until something is written again. Gives up after a while,
    /// and for readers that do not end: then the log stays, in which nothing is lost. Whether it was merged.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn merge_log(&self, within: Duration) -> Result<bool, StoreError> {
        let merging = self.writer.merge_log(within);
        tokio::time::timeout(within * 2, merging).await.unwrap_or(Ok(false))
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
    // Who commits in place waits for nobody; another connection makes the checkpoints.
    connection.busy_timeout(Duration::ZERO)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
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

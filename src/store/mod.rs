//! The database: sessions, their cells and numbered events, artifacts, tokens. One SQLite file.
//!
//! One connection writes ([`writer`]). A write is reported after its commit, so reported writes survive a `kill -9`. Readers
//! have connections of their own and never wait for the writer (write-ahead log).

mod cells;
mod commit;
mod compact;
mod creation_keys;
mod environments;
mod events;
mod job;
mod sandboxes;
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

pub use cells::{CellPage, CellPosition, CellRow, CellState, OverByteLimit};
pub use commit::{ArtifactRow, CellChange, Commit, SessionChange};
pub use compact::{Compactable, SessionBytes};
pub use creation_keys::{CreationKey, KeyKind};
pub use environments::{EnvironmentRow, EnvironmentState};
pub use events::{EventKind, EventRow};
pub use sandboxes::SandboxRow;
pub use sessions::{SessionFilter, SessionPosition, SessionRow};
pub use shares::ShareRow;
pub use tokens::TokenRow;
use writer::{BUSY_TIMEOUT, Writer};

/// The number of unused read connections that are kept open.
const IDLE_READERS: usize = 4;

/// Why an operation failed. A failed operation has no effect.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    #[error("the journal is not writable: the disk is full; free some space")]
    Full,
    #[error("{} was written by a later cellkeep (format {found}; this version reads up to {known}); use that version, or another --data folder", path.display())]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("the journal failed: {0}")]
    Failed(String),
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

/// The store. Clones share it, and dropping the last one closes it.
#[derive(Clone)]
pub struct Store {
    writer: Arc<Writer>,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// What an acknowledged commit survives. In both cases it is in the write-ahead log before its result is reported, so a killed
/// server loses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The log reaches the disk at checkpoints. A power cut or a crash of the operating system, which ends the sandboxes as well, can
    /// lose the commits since the last one.
    #[default]
    Normal,
    /// The log is flushed to the disk (fsync) before a commit is acknowledged. Commits that wait meanwhile share the next flush.
    Full,
}

impl Durability {
    /// The value of SQLite's `synchronous` in WAL mode.
    fn synchronous(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}

impl Store {
    /// Opens the database file with [`Durability::Normal`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Durability::Normal)
    }

    /// Opens the database file. Creates it if it does not exist, and migrates older formats.
    pub fn open_with(path: &Path, durability: Durability) -> Result<Self, StoreError> {
        let (connection, checkpoints) = (open_writer(path, durability)?, writer::open_for_checkpoints(path)?);
        let writer = Writer::start(connection, checkpoints, durability);
        let writer = writer.map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self { writer: Arc::new(writer), readers: Arc::new(Readers { path: path.to_owned(), idle: Mutex::default() }) })
    }

    /// Merges the write-ahead log into the file, so that the file alone is complete until the next write. Returns `false` if
    /// long reads prevent that for the time `within`; the log stays then, and nothing is lost.
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
            readers.put_back(connection);
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
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
    }
}

/// Creates the file with a mode that denies access to other users. SQLite creates its log with the same mode.
///
/// The file is closed before SQLite opens it. POSIX locks belong to the process, and closing any descriptor of a file
/// releases them all. Another program that closes the database would then consider itself the last user, and remove the log.
fn create_private(path: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

fn open_writer(path: &Path, durability: Durability) -> Result<Connection, StoreError> {
    let io = |error: std::io::Error| StoreError::Failed(format!("cannot open {}: {error}", path.display()));
    create_private(path).map_err(io)?;
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    schema::prepare(&connection, path, durability)?;
    // A caller that commits inline must not wait, and another connection makes the checkpoints.
    connection.busy_timeout(Duration::ZERO)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

/// The current time in milliseconds since 1970, the format of all stored times.
pub fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

pub fn seconds_in_ms(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000)
}

/// A time in milliseconds since 1970.
pub fn to_ms(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

pub fn from_ms(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0).cast_unsigned())
}

#[cfg(test)]
mod tests;

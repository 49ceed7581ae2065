//! One writer with group commit.
//!
//! Jobs that wait for the connection are committed together, so a hundred sessions share one commit. A caller that finds the
//! connection free commits inline: waking a thread, and being woken by it, costs more than the commit of a cell. Large jobs,
//! contended writes, and jobs that must wait for another process or for the disk go to the journal thread. Another thread
//! makes checkpoints.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::job::{self, Job, Work};
use super::{Durability, StoreError};
use crate::counters::UseCounter;

/// The largest number of jobs in one commit. It bounds how long the first of them waits.
const MAX_BATCH: usize = 256;
/// The largest job that is committed inline, in bytes. Writing as much takes well under a millisecond.
const MAX_INLINE: usize = 128 << 10;
/// The bytes that a commit adds to the log beside its data: about six pages.
const COMMIT_OVERHEAD: usize = 24 << 10;
/// The assumed size of a job of unknown size, in bytes.
const UNKNOWN_SIZE: usize = 1 << 20;
/// The bytes of the log between two checkpoints.
const CHECKPOINT_INTERVAL: usize = 4 << 20;
/// The number of pages (8 MB) at which writers wait for a checkpoint, so that the log does not grow further.
const MAX_LOG_PAGES: i64 = 2000;
/// How long a statement waits for another process, such as a backup or a person with `sqlite3`.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The writer. Dropping it ends its threads and closes their connections.
pub(super) struct Writer {
    shared: Arc<Shared>,
    tasks: mpsc::Sender<WriterTask>,
    log_tasks: mpsc::Sender<LogTask>,
    /// Whether callers commit small jobs themselves. A commit that waits for the disk is left to the journal thread: it would block an
    /// async worker, and what waits meanwhile shares the next flush.
    commits_inline: bool,
}

struct Shared {
    waiting: Mutex<VecDeque<Job>>,
    connection: Mutex<Connection>,
    /// The threads that want the connection alone. Without it, inline commits would take the connection again and again
    /// before a thread wakes up.
    wanting: Arc<UseCounter>,
    /// The approximate number of bytes that were logged since the last checkpoint.
    logged: AtomicUsize,
    /// Whether the next commit restarts the log, for which SQLite waits for the disk.
    restarts_log: AtomicBool,
}

/// Work for the journal thread.
enum WriterTask {
    /// Commit the waiting jobs.
    CommitWaiting,
    /// Commit this large job.
    Commit(Job),
}

/// Work for the checkpoint thread.
enum LogTask {
    Checkpoint,
    /// Merge the whole log and truncate it. The duration bounds how long to wait for readers.
    Merge(Duration, oneshot::Sender<Result<bool, StoreError>>),
}

impl Writer {
    /// `checkpoints` is a second connection to the same file.
    pub fn start(connection: Connection, checkpoints: Connection, durability: Durability) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            connection: Mutex::new(connection),
            wanting: Arc::default(),
            logged: AtomicUsize::new(0),
            restarts_log: AtomicBool::new(false),
        });
        let ((tasks, task_queue), (log_tasks, log_queue)) = (mpsc::channel(), mpsc::channel());
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (writing, checkpointing, requests) = (shared.clone(), shared.clone(), log_tasks.clone());
        thread("journal").spawn(move || writing.run_tasks(&task_queue, &requests))?;
        thread("journal-log").spawn(move || checkpointing.run_log_tasks(&log_queue, &checkpoints))?;
        Ok(Self { shared, tasks, log_tasks, commits_inline: durability == Durability::Normal })
    }

    /// Does `work` in the next commit. Returns after the commit, which survives the end of this process.
    pub async fn write<T: Send + 'static>(&self, work: impl Work<T>) -> Result<T, StoreError> {
        self.write_sized(0, work).await
    }

    /// Like [`Self::write`], for work that writes about `bytes` bytes.
    pub async fn write_sized<T: Send + 'static>(&self, bytes: usize, work: impl Work<T>) -> Result<T, StoreError> {
        let (job, answer) = Job::new(bytes, work);
        if bytes <= MAX_INLINE {
            self.shared.waiting().push_back(job);
            if self.commits_inline {
                self.commit_inline();
            } else {
                self.tasks.send(WriterTask::CommitWaiting).map_err(|_| StoreError::Closed)?;
            }
        } else {
            self.tasks.send(WriterTask::Commit(job)).map_err(|_| StoreError::Closed)?;
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Like [`Self::write`], for work that may take too long for an inline commit.
    pub async fn write_long<T: Send + 'static>(&self, work: impl Work<T>) -> Result<T, StoreError> {
        self.write_sized(UNKNOWN_SIZE, work).await
    }

    /// Merges the log and truncates it. Returns `false` if a reader of an older snapshot prevents that for the time
    /// `within`.
    pub async fn merge_log(&self, within: Duration) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.log_tasks.send(LogTask::Merge(within, reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits the waiting jobs, unless another thread has or wants the connection: that thread commits them then.
    fn commit_inline(&self) {
        if self.shared.wanting.total() > 0 {
            return;
        }
        if !self.shared.restarts_log.load(Ordering::Relaxed) && self.shared.try_commit().is_none() {
            return;
        }
        // Jobs that came meanwhile did not find the connection free.
        if !self.shared.waiting().is_empty() {
            let _ = self.tasks.send(WriterTask::CommitWaiting);
        }
        self.shared.request_checkpoint(&self.log_tasks);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Job>> {
        lock(&self.waiting)
    }

    /// Takes the next batch: at least one job, if any waits, and not much more than `max_bytes`.
    fn take(&self, max_bytes: usize) -> Vec<Job> {
        let mut waiting = self.waiting();
        let (mut jobs, mut sum) = (Vec::new(), 0);
        while jobs.len() < MAX_BATCH
            && sum < max_bytes
            && let Some(job) = waiting.pop_front()
        {
            sum += job.bytes.max(1);
            jobs.push(job);
        }
        jobs
    }

    /// Commits a batch, unless another process has locked the file. `None` if another thread has the connection.
    fn try_commit(&self) -> Option<()> {
        let connection = match self.connection.try_lock() {
            Ok(connection) => connection,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !self.waiting().is_empty() {
            match job::begin(&connection) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                begun => self.commit(&connection, begun, self.take(MAX_INLINE)),
            }
        }
        Some(())
    }

    fn commit(&self, connection: &Connection, begun: rusqlite::Result<()>, jobs: Vec<Job>) {
        let bytes = jobs.iter().map(|job| job.bytes).sum::<usize>();
        job::commit(connection, begun, jobs);
        self.logged.fetch_add(COMMIT_OVERHEAD + bytes, Ordering::Relaxed);
    }

    // ---- journal thread ---------------------------------------------------------------------------------------------

    fn run_tasks(&self, tasks: &mpsc::Receiver<WriterTask>, log_tasks: &mpsc::Sender<LogTask>) {
        while let Ok(task) = tasks.recv() {
            match task {
                WriterTask::CommitWaiting => {}
                WriterTask::Commit(job) => self.commit_waiting_for_lock(|_| vec![job]),
            }
            self.commit_waiting();
            self.request_checkpoint(log_tasks);
        }
        // Closing the last connection merges the log into the file.
    }

    /// Commits until no job waits. A thread that had the connection alone must call this afterwards.
    fn commit_waiting(&self) {
        while !self.waiting().is_empty() {
            self.commit_waiting_for_lock(|shared| shared.take(UNKNOWN_SIZE));
        }
    }

    /// Commits a batch, waiting for locks of other processes.
    fn commit_waiting_for_lock(&self, take: impl FnOnce(&Self) -> Vec<Job>) {
        self.with_exclusive_connection(|connection| {
            // Fails only for durations that SQLite cannot represent.
            let _ = connection.busy_timeout(BUSY_TIMEOUT);
            self.commit(connection, job::begin(connection), take(self));
            let _ = connection.busy_timeout(Duration::ZERO);
            self.restarts_log.store(false, Ordering::Relaxed);
        });
    }

    /// Does `work` while no other thread writes. Jobs that come meanwhile wait until the next [`Self::commit_waiting`].
    fn with_exclusive_connection<T>(&self, work: impl FnOnce(&Connection) -> T) -> T {
        let _wanting = self.wanting.count();
        work(&lock(&self.connection))
    }

    // ---- checkpoint thread ------------------------------------------------------------------------------------------

    fn request_checkpoint(&self, log_tasks: &mpsc::Sender<LogTask>) {
        if self.logged.load(Ordering::Relaxed) >= CHECKPOINT_INTERVAL {
            self.logged.store(0, Ordering::Relaxed);
            let _ = log_tasks.send(LogTask::Checkpoint);
        }
    }

    fn run_log_tasks(&self, tasks: &mpsc::Receiver<LogTask>, connection: &Connection) {
        while let Ok(task) = tasks.recv() {
            match task {
                LogTask::Checkpoint => {
                    if let Err(error) = self.checkpoint(connection) {
                        tracing::warn!(%error, "cannot checkpoint the journal; retrying later");
                    }
                }
                LogTask::Merge(within, reply) => {
                    let merged = self.with_exclusive_connection(|_| merge_all(connection, within));
                    // Fails if the caller gave up.
                    let _ = reply.send(merged.map_err(StoreError::from));
                }
            }
            self.commit_waiting();
        }
    }

    /// Copies the log into the file while others continue to write. SQLite restarts the log only when all of it is in the
    /// file. If the log has become long because that never happened, writers wait while the remaining pages are copied.
    fn checkpoint(&self, connection: &Connection) -> rusqlite::Result<()> {
        let merge = || connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| Ok((row.get(1)?, row.get(2)?)));
        let (mut pages, mut merged): (i64, i64) = merge()?;
        if pages > MAX_LOG_PAGES {
            (pages, merged) = self.with_exclusive_connection(|_| merge())?;
        }
        if pages == merged {
            self.restarts_log.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Opens the connection for checkpoints.
pub(super) fn open_for_checkpoints(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Merges the whole log. Uses an open connection, because closing a descriptor would release locks (see `create_private`).
fn merge_all(connection: &Connection, within: Duration) -> rusqlite::Result<bool> {
    connection.busy_timeout(within)?;
    let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(!is_busy?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

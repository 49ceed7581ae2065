//! The one connection that writes, and who may use it.
//!
//! What waits for it is committed together, so that a hundred sessions share one commit. Whoever finds the connection free commits
//! in place: to wake a thread for it, and to be woken by that, costs more than the commit of a cell. What is long, what must wait
//! for another process or for the disk, and what has come meanwhile is left to a thread. A second one makes the checkpoints.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::StoreError;
use super::job::{self, Job, Work};

/// Most jobs in one commit: the first of them waits for all.
const BATCH: usize = 256;
/// Bytes that are written in well under a millisecond. More is not committed in place.
const SHORT: usize = 128 << 10;
/// What a commit adds to the log beside what is in it: some six pages.
const PAGES: usize = 24 << 10;
/// What a job adds of which it is not known.
const UNKNOWN: usize = 1 << 20;
/// Bytes of the log between two checkpoints.
const CHECKPOINT: usize = 4 << 20;
/// Pages of a log that must not grow further, 8 MB.
const LONG: i64 = 2000;
/// How long a statement waits for another process (a backup, a person with `sqlite3`).
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// Writes. The threads end, and with them the connections, when this is dropped.
pub(super) struct Writer {
    shared: Arc<Shared>,
    errands: mpsc::Sender<Errand>,
    care: mpsc::Sender<Care>,
}

struct Shared {
    waiting: Mutex<VecDeque<Job>>,
    connection: Mutex<Connection>,
    /// How many threads want the connection: who commits in place would take it again and again before one of them is awake.
    wanted: AtomicUsize,
    /// Bytes that were logged since the last checkpoint, roughly.
    logged: AtomicUsize,
    /// Whether the next commit begins the log anew, for which SQLite waits for the disk.
    begins_anew: AtomicBool,
}

/// What is left to the thread that writes.
enum Errand {
    /// What waits.
    Rest,
    /// This, which is long.
    Long(Job),
}

/// What is left to the thread that looks after the log.
enum Care {
    /// To bring it into the file.
    Checkpoint,
    /// The same, all of it and leaving no log, waiting no longer than this for readers.
    Merge(Duration, oneshot::Sender<Result<bool, StoreError>>),
}

impl Writer {
    /// Takes over a connection. `checkpoints` is another one to the same file.
    pub fn start(connection: Connection, checkpoints: Connection) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            connection: Mutex::new(connection),
            wanted: AtomicUsize::new(0),
            logged: AtomicUsize::new(0),
            begins_anew: AtomicBool::new(false),
        });
        let ((errands, errand_queue), (care, care_queue)) = (mpsc::channel(), mpsc::channel());
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (writing, caring, cared) = (shared.clone(), shared.clone(), care.clone());
        thread("journal").spawn(move || writing.run_errands(&errand_queue, &cared))?;
        thread("journal-log").spawn(move || caring.look_after_log(&care_queue, &checkpoints))?;
        Ok(Self { shared, errands, care })
    }

    /// Does `work` in the next commit; returns when that is on its way to the disk and survives this process.
    pub async fn write<T: Send + 'static>(&self, work: impl Work<T>) -> Result<T, StoreError> {
        self.write_sized(0, work).await
    }

    /// The same for what writes about so many bytes.
    pub async fn write_sized<T: Send + 'static>(&self, bytes: usize, work: impl Work<T>) -> Result<T, StoreError> {
        let (job, answer) = Job::new(bytes, work);
        if bytes <= SHORT {
            self.shared.waiting().push_back(job);
            self.commit_here();
        } else {
            self.errands.send(Errand::Long(job)).map_err(|_| StoreError::Closed)?;
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The same for what may take longer than others should wait for on this thread.
    pub async fn write_long<T: Send + 'static>(&self, work: impl Work<T>) -> Result<T, StoreError> {
        self.write_sized(UNKNOWN, work).await
    }

    /// Leaves no log, unless somebody reads for longer what stood before. Whether it is gone.
    pub async fn merge_log(&self, within: Duration) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.care.send(Care::Merge(within, reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what waits, if nobody else has the connection or wants it; else that one sees to it.
    fn commit_here(&self) {
        if self.shared.wanted.load(Ordering::SeqCst) > 0 {
            return;
        }
        if !self.shared.begins_anew.load(Ordering::Relaxed) && self.shared.try_commit().is_none() {
            return;
        }
        // Who came meanwhile has not found the connection free.
        if !self.shared.waiting().is_empty() {
            let _ = self.errands.send(Errand::Rest);
        }
        self.shared.ask_for_checkpoint(&self.care);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Job>> {
        lock(&self.waiting)
    }

    /// What is committed together: at least one, if any waits, and not much more than so many bytes.
    fn take(&self, bytes: usize) -> Vec<Job> {
        let mut waiting = self.waiting();
        let (mut jobs, mut sum) = (Vec::new(), 0);
        while jobs.len() < BATCH
            && sum < bytes
            && let Some(job) = waiting.pop_front()
        {
            sum += job.bytes.max(1);
            jobs.push(job);
        }
        jobs
    }

    /// Commits what waits, unless somebody else has the connection (`None`) or another process is in the way.
    fn try_commit(&self) -> Option<()> {
        let connection = match self.connection.try_lock() {
            Ok(connection) => connection,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !self.waiting().is_empty() {
            match job::begin(&connection) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                begun => self.commit(&connection, begun, self.take(SHORT)),
            }
        }
        Some(())
    }

    fn commit(&self, connection: &Connection, begun: rusqlite::Result<()>, jobs: Vec<Job>) {
        let bytes = jobs.iter().map(|job| job.bytes).sum::<usize>();
        job::commit(connection, begun, jobs);
        self.logged.fetch_add(PAGES + bytes, Ordering::Relaxed);
    }

    // ---- the thread that writes -------------------------------------------------------------------------------------

    fn run_errands(&self, errands: &mpsc::Receiver<Errand>, care: &mpsc::Sender<Care>) {
        while let Ok(errand) = errands.recv() {
            match errand {
                Errand::Rest => {}
                Errand::Long(job) => self.commit_with_patience(|_| vec![job]),
            }
            self.commit_rest();
            self.ask_for_checkpoint(care);
        }
        // The log is merged into the file by closing the last connection.
    }

    /// Commits what waits until nothing does. For whoever had the connection alone.
    fn commit_rest(&self) {
        while !self.waiting().is_empty() {
            self.commit_with_patience(|shared| shared.take(UNKNOWN));
        }
    }

    fn commit_with_patience(&self, take: impl FnOnce(&Self) -> Vec<Job>) {
        self.alone(|connection| {
            // It fails for a time that cannot be expressed, which this is not.
            let _ = connection.busy_timeout(BUSY);
            self.commit(connection, job::begin(connection), take(self));
            let _ = connection.busy_timeout(Duration::ZERO);
            self.begins_anew.store(false, Ordering::Relaxed);
        });
    }

    /// Does something while nobody else writes. What comes meanwhile waits for the look that is to be taken after this.
    fn alone<T>(&self, act: impl FnOnce(&Connection) -> T) -> T {
        struct Wanted<'a>(&'a AtomicUsize);
        impl Drop for Wanted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let _wanted = Wanted(&self.wanted);
        act(&lock(&self.connection))
    }

    // ---- the thread that looks after the log ------------------------------------------------------------------------

    fn ask_for_checkpoint(&self, care: &mpsc::Sender<Care>) {
        if self.logged.load(Ordering::Relaxed) >= CHECKPOINT {
            self.logged.store(0, Ordering::Relaxed);
            let _ = care.send(Care::Checkpoint);
        }
    }

    fn look_after_log(&self, care: &mpsc::Receiver<Care>, connection: &Connection) {
        while let Ok(care) = care.recv() {
            match care {
                Care::Checkpoint => {
                    if let Err(error) = self.checkpoint(connection) {
                        tracing::warn!(%error, "cannot merge the journal's log into its file; trying again later");
                    }
                }
                Care::Merge(within, reply) => {
                    let merged = self.alone(|_| merge_all(connection, within));
                    // Whoever asked may have given up.
                    let _ = reply.send(merged.map_err(StoreError::from));
                }
            }
            self.commit_rest();
        }
    }

    /// Brings the log into the file while others go on writing. A log begins anew only when all of it is in the file: where it has
    /// become long since it never was, writers wait for the little that they have added meanwhile.
    fn checkpoint(&self, connection: &Connection) -> rusqlite::Result<()> {
        let merge = || connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| Ok((row.get(1)?, row.get(2)?)));
        let (mut pages, mut merged): (i64, i64) = merge()?;
        if pages > LONG {
            (pages, merged) = self.alone(|_| merge())?;
        }
        if pages == merged {
            self.begins_anew.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Opens a second connection with nothing but what a checkpoint needs.
pub(super) fn for_checkpoints(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// On a connection that is open: nothing of the file is opened or closed for it (see `make_private`).
fn merge_all(connection: &Connection, within: Duration) -> rusqlite::Result<bool> {
    connection.busy_timeout(within)?;
    let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY)?;
    Ok(!is_busy?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

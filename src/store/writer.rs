//! The one connection that writes, and who may use it.
//!
//! What waits for it is committed together, so that a hundred sessions share one commit. Whoever finds the connection free commits
//! in place: to wake a thread for it, and to be woken by that, costs more than the commit of a cell. What is long, what must wait
//! for another process, and what has come meanwhile is left to a thread, as are checkpoints, which wait for the disk.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::StoreError;

/// Most jobs in one commit: the first of them waits for all.
const BATCH: usize = 256;
/// Commits between two checkpoints. A cell's commit changes some five pages, so that the log has about a thousand by then.
const CHECKPOINT: usize = 200;
/// Pages of a log that must not grow further, 8 MB.
const LONG: i64 = 2000;
/// How long a statement waits for another process (a backup, a person with `sqlite3`).
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// Told after the commit whether it held.
type Finish = Box<dyn FnOnce(Option<&StoreError>) + Send>;
/// Does its work, or hears why no transaction could begin.
type Job = Box<dyn FnOnce(Result<&Connection, &StoreError>) -> Finish + Send>;

/// Writes. The thread ends, and with it the connection, when this is dropped.
pub(super) struct Writer {
    shared: Arc<Shared>,
    errands: mpsc::Sender<Errand>,
}

struct Shared {
    waiting: Mutex<VecDeque<Job>>,
    connection: Mutex<Connection>,
    /// Whether the thread wants the connection: who commits in place would take it again and again before the thread is awake.
    is_wanted: AtomicBool,
    /// Commits since the last checkpoint.
    commits: AtomicUsize,
}

/// What is left to the thread.
enum Errand {
    /// What waits.
    Rest,
    /// This, which may be long.
    Long(Job),
    /// To bring the log into the file.
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
            is_wanted: AtomicBool::new(false),
            commits: AtomicUsize::new(0),
        });
        let (errands, queue) = mpsc::channel();
        let of_thread = shared.clone();
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || of_thread.run_errands(&queue, &checkpoints))?;
        Ok(Self { shared, errands })
    }

    /// Does `work` in the next commit; returns when that is on its way to the disk and survives this process.
    pub async fn write<T: Send + 'static>(&self, work: impl Work<T>) -> Result<T, StoreError> {
        let (job, answer) = job(work);
        self.shared.waiting().push_back(job);
        self.commit_here();
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The same for what may take longer than others should wait on this thread.
    pub async fn write_long<T: Send + 'static>(&self, work: impl Work<T>) -> Result<T, StoreError> {
        let (job, answer) = job(work);
        self.errands.send(Errand::Long(job)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Leaves no log, unless somebody reads for longer what stood before. Whether it is gone.
    pub async fn merge_log(&self, within: Duration) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.errands.send(Errand::Merge(within, reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what waits, if nobody else has the connection; else that one sees to it.
    fn commit_here(&self) {
        if self.shared.is_wanted.load(Ordering::SeqCst) {
            return;
        }
        {
            let connection = match self.shared.connection.try_lock() {
                Ok(connection) => connection,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if !self.shared.waiting().is_empty() {
                match begin(&connection) {
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                    begun => self.shared.commit(&connection, begun),
                }
            }
        }
        // Who came meanwhile has not found the connection free.
        if !self.shared.waiting().is_empty() {
            let _ = self.errands.send(Errand::Rest);
        }
        if self.shared.commits.load(Ordering::Relaxed) >= CHECKPOINT {
            self.shared.commits.store(0, Ordering::Relaxed);
            let _ = self.errands.send(Errand::Checkpoint);
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Job>> {
        lock(&self.waiting)
    }

    fn run_errands(&self, errands: &mpsc::Receiver<Errand>, checkpoints: &Connection) {
        while let Ok(errand) = errands.recv() {
            match errand {
                Errand::Rest => {}
                Errand::Long(job) => self.waiting().push_back(job),
                Errand::Checkpoint => self.checkpoint(checkpoints),
                Errand::Merge(within, reply) => {
                    let merged = self.alone(|_| merge_all(checkpoints, within));
                    // Whoever asked may have given up.
                    let _ = reply.send(merged.map_err(StoreError::from));
                }
            }
            while !self.waiting().is_empty() {
                self.commit_with_patience();
            }
        }
        // The log is merged into the file by closing the last connection.
    }

    /// Brings the log into the file while others go on writing. A log begins anew only when all of it is in the file: where it has
    /// become long since it never was, writers wait for the little that they have added meanwhile.
    fn checkpoint(&self, connection: &Connection) {
        let merge = || connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| row.get::<_, i64>(1));
        let merged = merge().and_then(|pages| if pages > LONG { self.alone(|_| merge()) } else { Ok(pages) });
        if let Err(error) = merged {
            tracing::warn!(%error, "cannot merge the journal's log into its file; trying again later");
        }
    }

    fn commit_with_patience(&self) {
        self.alone(|connection| {
            // It fails for a time that cannot be expressed, which this is not.
            let _ = connection.busy_timeout(BUSY);
            self.commit(connection, begin(connection));
            let _ = connection.busy_timeout(Duration::ZERO);
        });
    }

    /// Does something while nobody else writes. What comes meanwhile waits for the look that the thread takes after this.
    fn alone<T>(&self, act: impl FnOnce(&Connection) -> T) -> T {
        self.is_wanted.store(true, Ordering::SeqCst);
        let done = act(&lock(&self.connection));
        self.is_wanted.store(false, Ordering::SeqCst);
        done
    }

    /// Commits what waits together, or tells it why nothing could begin.
    fn commit(&self, connection: &Connection, begun: rusqlite::Result<()>) {
        let mut jobs: Vec<Job> = {
            let mut waiting = self.waiting();
            let count = waiting.len().min(BATCH);
            waiting.drain(..count).collect()
        };
        self.commits.fetch_add(1, Ordering::Relaxed);
        commit_some(connection, begun, &mut jobs);
        // One of them made SQLite give up the whole transaction.
        while !jobs.is_empty() {
            commit_some(connection, begin(connection), &mut jobs);
        }
    }
}

/// What is done in a commit, alone or with others'.
pub(super) trait Work<T>: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static {}
impl<T, W: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static> Work<T> for W {}

fn job<T: Send + 'static>(work: impl Work<T>) -> (Job, oneshot::Receiver<Result<T, StoreError>>) {
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
    (Box::new(job), answer)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

fn execute(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute(()).map(|_| ())
}

fn begin(connection: &Connection) -> rusqlite::Result<()> {
    execute(connection, "BEGIN IMMEDIATE")
}

/// Commits jobs together, in order, until there are no more, or until one makes SQLite give up the whole transaction.
fn commit_some(connection: &Connection, begun: rusqlite::Result<()>, jobs: &mut Vec<Job>) {
    let mut done = Vec::new();
    let outcome = match begun.map_err(StoreError::from) {
        Ok(()) => {
            let mut left = std::mem::take(jobs).into_iter();
            for job in left.by_ref() {
                done.push(job(Ok(connection)));
                if connection.is_autocommit() {
                    break;
                }
            }
            *jobs = left.collect();
            match connection.is_autocommit() {
                false => execute(connection, "COMMIT").map_err(StoreError::from),
                true => Err(StoreError::Failed("SQLite gave up the whole commit for one piece of it".to_owned())),
            }
        }
        Err(error) => {
            done.extend(jobs.drain(..).map(|job| job(Err(&error))));
            Err(error)
        }
    };
    if outcome.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    done.into_iter().for_each(|finish| finish(outcome.as_ref().err()));
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

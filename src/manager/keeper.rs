//! Sessions that are kept: made, found again, followed, ended, for `serve`. Everything that outlives this process is in the
//! store before it is done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::executions::Executions;
use super::journal::{Follower, Live, StoreJournal, restore_cell};
use super::kept::{KeeperError, KeeperSettings, KeptSpec, NewSession};
use super::pool::{self, Pool};
use super::record::Surroundings;
use super::room::Room;
use super::{Manager, ManagerError, SessionSpec};
use crate::artifacts::Blobs;
use crate::config::Paths;
use crate::ids::{Epoch, Seq, SessionId};
use crate::kernels::{self, Kernel, Status};
use crate::policy::{Limits, Network};
use crate::sandbox::docker::Images;
use crate::sandbox::{Sandbox, SandboxKind, SandboxRecord};
use crate::session::{self, Cell, OutputMode, SessionHandle, SessionParts, Stored};
use crate::store::{EventRow, SessionRow, Store, StoreError, TooHeavy, now_ms, seconds_in_ms};
use crate::telemetry::{self, traces};

/// How many may wait for each that is being made.
const MAX_WAITING: usize = 32;
/// The state of a session that is being made.
pub(super) const CREATING: &str = "creating";

/// A sandbox and what is known of it.
pub(super) type Found = (Arc<dyn Sandbox>, SandboxRecord);

/// A session that lives.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) principal: String,
    pub(super) handle: SessionHandle,
    pub(super) live: Arc<Live>,
    /// When somebody last asked for it, milliseconds since 1970: what is not in the journal, as files and completions.
    pub(super) last_used: Arc<AtomicI64>,
    /// Seconds that its cells may take where they say nothing themselves. Also in its row, which costs a look into the store.
    pub(super) cell_timeout: Arc<Mutex<Option<f64>>>,
    /// Held by who removes its sandbox: whoever else wants it gone waits, and finds it gone.
    pub(super) removing: Arc<tokio::sync::Mutex<()>>,
    /// `None` for one that has ended: it can be read.
    pub(super) sandbox: Option<Found>,
}

/// What its owner may change of a session.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What it is called.
    pub name: Option<String>,
    /// How it is to be.
    pub spec: KeptSpec,
    /// When it is to end, milliseconds since 1970.
    pub expires_at: Option<i64>,
}

/// Keeps sessions. Clones share them.
#[derive(Clone)]
pub struct Keeper(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) paths: Paths,
    pub(super) manager: Manager,
    pub(super) store: Store,
    pub(super) blobs: Blobs,
    pub(super) settings: KeeperSettings,
    sessions: Mutex<HashMap<SessionId, Kept>>,
    pool: Pool,
    starting: Semaphore,
    /// How many wait for their session to be made.
    waiting: AtomicUsize,
    /// Whether there is room for more data, and for whose.
    pub(super) room: Mutex<Room>,
    /// Sessions that nobody sees any more, with the sandboxes that could not be removed yet.
    pub(super) leftovers: Mutex<HashMap<SessionId, Option<Found>>>,
    /// What kernels come with, by their environment: it is the same in every session.
    pub(super) surroundings: Mutex<HashMap<String, Surroundings>>,
}

impl Keeper {
    /// A keeper of the sessions in this store. Those that an earlier server has left are taken up by [`Self::recover`].
    pub fn new(paths: &Paths, store: Store, settings: KeeperSettings) -> Self {
        Self(Arc::new(Inner {
            paths: paths.clone(),
            manager: Manager::new(paths.clone()),
            blobs: Blobs::new(&paths.blobs()),
            store,
            pool: Pool::default(),
            starting: Semaphore::new(settings.max_starting),
            waiting: AtomicUsize::new(0),
            room: Mutex::default(),
            leftovers: Mutex::default(),
            surroundings: Mutex::default(),
            settings,
            sessions: Mutex::default(),
        }))
    }

    /// Where sessions are stored.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Where their artifacts are.
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// Seconds without use after which a session ends that says nothing of it.
    pub fn idle_timeout(&self) -> u64 {
        self.0.settings.idle_timeout_seconds
    }

    /// How many live.
    pub fn living(&self) -> usize {
        self.sessions(|sessions| sessions.values().filter(|kept| kept.sandbox.is_some()).count())
    }

    /// All kernels, and the kinds of sandbox in which each can run here.
    pub async fn kernels(&self) -> Vec<(&'static Kernel, Vec<SandboxKind>)> {
        let choice = self.0.settings.sandbox;
        let images = if choice.allows(SandboxKind::Docker) { Images::connect().await.ok() } else { None };
        let mut all = Vec::new();
        for kernel in kernels::all() {
            let mut kinds = Vec::new();
            if choice.allows(SandboxKind::Process) && kernels::status(&self.0.paths, kernel) != Status::Missing {
                kinds.push(SandboxKind::Process);
            }
            if let Some(images) = &images
                && images.status(kernel).await.is_ok_and(|image| image.status != Status::Missing)
            {
                kinds.push(SandboxKind::Docker);
            }
            all.push((kernel, kinds));
        }
        all
    }

    pub(super) fn sessions<T>(&self, work: impl FnOnce(&mut HashMap<SessionId, Kept>) -> T) -> T {
        work(&mut self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn kept(&self, id: &SessionId, principal: Option<&str>) -> Result<Kept, KeeperError> {
        let found = self.sessions(|sessions| sessions.get(id).cloned());
        // Another's session is not to be told from none.
        found
            .filter(|kept| principal.is_none_or(|principal| kept.principal == principal))
            .ok_or_else(|| KeeperError::NoSession { id: id.to_string() })
    }

    /// The handle of a session, for looking at it.
    ///
    /// # Errors
    /// [`KeeperError::NoSession`].
    pub fn look(&self, id: &SessionId, principal: Option<&str>) -> Result<SessionHandle, KeeperError> {
        Ok(self.kept(id, principal)?.handle)
    }

    /// The handle of a session that this principal may see (of anybody's for none), for using it: it is not idle then.
    ///
    /// # Errors
    /// [`KeeperError::NoSession`].
    pub fn handle(&self, id: &SessionId, principal: Option<&str>) -> Result<SessionHandle, KeeperError> {
        Ok(self.used(id, principal)?.handle)
    }

    fn used(&self, id: &SessionId, principal: Option<&str>) -> Result<Kept, KeeperError> {
        let kept = self.kept(id, principal)?;
        kept.last_used.store(now_ms(), Ordering::Relaxed);
        Ok(kept)
    }

    /// The same, for beginning something that will be written down.
    ///
    /// # Errors
    /// [`KeeperError::NoSession`], [`KeeperError::NoRoom`].
    pub fn handle_for_work(&self, id: &SessionId, principal: Option<&str>) -> Result<SessionHandle, KeeperError> {
        let kept = self.used(id, principal)?;
        self.check_room(&kept.principal)?;
        Ok(kept.handle.traced(traces::current()))
    }

    fn check_room(&self, principal: &str) -> Result<(), KeeperError> {
        let room = self.0.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.is_for(principal) { Ok(()) } else { Err(KeeperError::NoRoom { limit_mb: self.0.settings.max_data_mb }) }
    }

    /// Follows a session's events from behind a number.
    ///
    /// # Errors
    /// [`KeeperError::NoSession`].
    pub fn follow(&self, id: &SessionId, principal: Option<&str>, after: Seq) -> Result<Follower, KeeperError> {
        let live = self.kept(id, principal)?.live;
        Ok(Follower { store: self.0.store.clone(), session: id.clone(), live, after })
    }

    /// What is held of a session's events from behind a number, if all of them are. Whoever looks uses the session.
    ///
    /// # Errors
    /// [`KeeperError::NoSession`].
    pub fn held_after(
        &self,
        id: &SessionId,
        principal: Option<&str>,
        after: Seq,
    ) -> Result<Option<Vec<Arc<EventRow>>>, KeeperError> {
        Ok(self.used(id, principal)?.live.after(after))
    }

    /// What is written of a session.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn row(&self, id: &SessionId, principal: Option<&str>) -> Result<SessionRow, KeeperError> {
        self.kept(id, principal)?;
        self.0.store.session(id).await?.ok_or_else(|| KeeperError::NoSession { id: id.to_string() })
    }

    /// What is written of all sessions that this principal may see.
    ///
    /// # Errors
    /// [`KeeperError::Store`].
    pub async fn rows(&self, principal: Option<&str>) -> Result<Vec<SessionRow>, KeeperError> {
        let rows = self.0.store.sessions(principal.map(str::to_owned)).await?;
        Ok(self.sessions(|sessions| rows.into_iter().filter(|row| sessions.contains_key(&row.id)).collect()))
    }

    /// A session's cells in the order of the notebook.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn cells(&self, id: &SessionId, principal: Option<&str>) -> Result<Vec<Cell>, KeeperError> {
        self.kept(id, principal)?;
        Ok(self.0.store.cells(id).await?.into_iter().filter_map(restore_cell).collect())
    }

    /// One cell.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn cell(&self, id: &SessionId, principal: Option<&str>, cell: &str) -> Result<Option<Cell>, KeeperError> {
        self.kept(id, principal)?;
        Ok(self.0.store.cell(id, cell).await?.and_then(restore_cell))
    }

    /// One cell with the events of its latest run, in one look; these only if they are of no more bytes than `most`.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn cell_and_events(
        &self,
        id: &SessionId,
        principal: Option<&str>,
        cell: &str,
        most: u64,
    ) -> Result<Option<(Cell, Result<Vec<EventRow>, TooHeavy>)>, KeeperError> {
        self.kept(id, principal)?;
        let found = self.0.store.cell_and_events(id, cell, most).await?;
        Ok(found.and_then(|(row, events)| Some((restore_cell(row)?, events))))
    }

    /// A session's cells in the order of the notebook, each with the events of its latest run, in one look.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn cells_and_events(
        &self,
        id: &SessionId,
        principal: Option<&str>,
    ) -> Result<Vec<(Cell, Vec<EventRow>)>, KeeperError> {
        self.kept(id, principal)?;
        let rows = self.0.store.cells_and_events(id).await?.into_iter();
        Ok(rows.filter_map(|(row, events)| Some((restore_cell(row)?, events))).collect())
    }

    /// How many bytes a session's outputs are, about.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn weight(&self, id: &SessionId, principal: Option<&str>) -> Result<u64, KeeperError> {
        self.kept(id, principal)?;
        Ok(self.0.store.weight(id).await?)
    }

    /// Seconds that a session's cells may take where they say nothing themselves.
    ///
    /// # Errors
    /// [`KeeperError::NoSession`].
    pub fn cell_timeout(&self, id: &SessionId, principal: Option<&str>) -> Result<Option<f64>, KeeperError> {
        Ok(*self.kept(id, principal)?.cell_timeout.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what its owner may change of a session, as it is written at that moment: nobody else's change is lost.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn change(
        &self,
        id: &SessionId,
        principal: Option<&str>,
        change: impl FnOnce(&mut Facts) + Send + 'static,
    ) -> Result<(), KeeperError> {
        let timeout = self.kept(id, principal)?.cell_timeout;
        let changed = self.0.store.change_session(id, move |row| {
            let mut facts = Facts { name: row.name.take(), spec: spec_of(row), expires_at: row.expires_at };
            change(&mut facts);
            row.spec = serde_json::to_string(&facts.spec).unwrap_or_default();
            (row.name, row.expires_at) = (facts.name, facts.expires_at);
            // In the order of the commits, as the rows are.
            *timeout.lock().unwrap_or_else(PoisonError::into_inner) = facts.spec.timeout_seconds;
        });
        if changed.await? { Ok(()) } else { Err(KeeperError::NoSession { id: id.to_string() }) }
    }

    // ---- making -----------------------------------------------------------------------------------------------------

    /// Makes a session, and waits until its kernel is ready.
    ///
    /// # Errors
    /// [`KeeperError`]; nothing is left behind then.
    pub async fn create(&self, principal: &str, new: NewSession) -> Result<SessionId, KeeperError> {
        let kernel = kernels::find(&new.kernel)?.clone();
        new.spec.limits.validate().map_err(ManagerError::Limits)?;
        self.check_room(principal)?;
        let turn = Waiting::begin(self.clone());
        let limit = self.0.settings.max_sessions;
        // Those that are being made count: they will live in a moment.
        if self.living() + turn.before >= limit {
            return Err(KeeperError::Full { limit });
        }
        if turn.before >= MAX_WAITING * self.0.settings.max_starting {
            return Err(KeeperError::Busy { waiting: turn.before });
        }
        // Whoever asked may go away meanwhile; what was begun is finished, or undone.
        let (keeper, principal) = (self.clone(), principal.to_owned());
        let making = tokio::spawn(async move {
            let _turn = turn;
            keeper.claim_or_make(principal, kernel, new).await
        });
        making.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    /// Sets the figures that are only known when somebody asks: sessions by state, the pool.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn measure(&self) -> Result<(), StoreError> {
        let mut states: HashMap<&str, usize> =
            ["starting", "idle", "busy", "interrupting", "restarting", "gone"].map(|state| (state, 0)).into();
        self.sessions(|sessions| {
            for kept in sessions.values() {
                *states.entry(kept.handle.state().name()).or_default() += 1;
            }
        });
        for (state, count) in states {
            metrics::gauge!(telemetry::SESSIONS, "state" => state.to_owned()).set(count as f64);
        }
        for (kernel, count) in self.pool_sizes() {
            metrics::gauge!(telemetry::POOL, "kernel" => kernel).set(count as f64);
        }
        metrics::gauge!(telemetry::QUEUED).set(self.0.store.count_queued().await? as f64);
        Ok(())
    }

    async fn claim_or_make(&self, principal: String, kernel: Kernel, new: NewSession) -> Result<SessionId, KeeperError> {
        let began = Instant::now();
        let told = |source: &'static str| {
            metrics::counter!(telemetry::SESSIONS_CREATED).increment(1);
            metrics::histogram!(telemetry::START_SECONDS, "source" => source).record(began.elapsed());
        };
        if let Some(id) = self.claim(&principal, &kernel, &new).await? {
            told("pool");
            return Ok(id);
        }
        let (id, kept) = self.make(&principal, &kernel, &new).await?;
        told("new");
        self.sessions(|sessions| sessions.insert(id.clone(), kept));
        Ok(id)
    }

    /// Takes a session out of the pool, if those in it are as this one is to be.
    async fn claim(&self, principal: &str, kernel: &Kernel, new: &NewSession) -> Result<Option<SessionId>, KeeperError> {
        if !new.env.is_empty() || new.spec.open_network || new.spec.limits != Limits::default() {
            return Ok(None);
        }
        let (found, dead) = self.0.pool.take(&kernel.name);
        for (id, kept) in dead {
            let keeper = self.clone();
            tokio::spawn(async move { keeper.remove(&id, Some(kept)).await });
        }
        let Some((id, kept)) = found else { return Ok(None) };
        if let Err(error) = self.0.store.claim_session(row_of(&id, principal, kernel, new)).await {
            self.0.pool.put(&kernel.name, (id, kept));
            return Err(error.into());
        }
        let cell_timeout = Arc::new(Mutex::new(new.spec.timeout_seconds));
        let kept = Kept { principal: principal.to_owned(), cell_timeout, ..kept };
        self.sessions(|sessions| sessions.insert(id.clone(), kept));
        Ok(Some(id))
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Sessions ready in the pool, by kernel.
    pub fn pool_sizes(&self) -> HashMap<String, usize> {
        self.0.pool.sizes()
    }

    pub(super) fn somebody_waits(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    pub(super) async fn make_for_pool(&self, new: NewSession) -> Result<(SessionId, Kept), KeeperError> {
        let kernel = kernels::find(&new.kernel)?.clone();
        self.make(pool::NOBODY, &kernel, &new).await
    }

    async fn make(&self, principal: &str, kernel: &Kernel, new: &NewSession) -> Result<(SessionId, Kept), KeeperError> {
        let _turn = self.0.starting.acquire().await.map_err(|_| StoreError::Closed)?;
        let id = SessionId::random();
        self.0.store.insert_session(row_of(&id, principal, kernel, new)).await?;
        match self.make_sandbox(&id, principal, kernel, new).await {
            Ok(kept) => Ok((id, kept)),
            Err((error, kept)) => {
                self.remove(&id, kept).await;
                Err(error)
            }
        }
    }

    /// Makes the sandbox and waits for the kernel. A session that did not come up is given back with the reason.
    async fn make_sandbox(
        &self,
        id: &SessionId,
        principal: &str,
        kernel: &Kernel,
        new: &NewSession,
    ) -> Result<Kept, (KeeperError, Option<Kept>)> {
        let spec = SessionSpec {
            kernel: kernel.clone(),
            sandbox: self.0.settings.sandbox,
            limits: new.spec.limits.clone(),
            network: if new.spec.open_network { Network::Open } else { Network::None },
            env: new.env.clone(),
        };
        let found = self.0.manager.sandbox_for(&spec, id, None).await.map_err(|error| (error.into(), None))?;
        let written = self.0.store.set_sandbox(id, serde_json::to_string(&found.1).unwrap_or_default()).await;
        let kept = self.start(principal, &new.spec, found, None);
        let ready = match written {
            Ok(()) => kept.handle.ready().await.map_err(|error| ManagerError::Start(error).into()),
            Err(error) => Err(error.into()),
        };
        match ready {
            Ok(()) => Ok(kept),
            Err(error) => Err((error, Some(kept))),
        }
    }

    pub(super) fn start(&self, principal: &str, spec: &KeptSpec, (sandbox, record): Found, stored: Option<Stored>) -> Kept {
        let (live, journal) = self.journal(&record.session, &record.kernel, stored.as_ref());
        let handle = session::start(SessionParts {
            sandbox: sandbox.clone(),
            record: record.clone(),
            limits: spec.limits.clone(),
            late_output: kernels::find(&record.kernel).map_or(Duration::ZERO, |kernel| kernel.late_output),
            output_mode: OutputMode::Changes,
            journal,
            durable: true,
            stored,
        });
        Kept {
            principal: principal.to_owned(),
            handle,
            live,
            last_used: Arc::default(),
            cell_timeout: Arc::new(Mutex::new(spec.timeout_seconds)),
            removing: Arc::default(),
            sandbox: Some((sandbox, record)),
        }
    }

    /// A session's journal, and what its followers wait on.
    pub(super) fn journal(&self, id: &SessionId, kernel: &str, stored: Option<&Stored>) -> (Arc<Live>, Box<StoreJournal>) {
        let live = Live::new(stored.map_or(Seq::default(), |stored| stored.last_seq));
        let cells = stored.map_or(&[][..], |stored| &stored.cells);
        let journal = StoreJournal {
            store: self.0.store.clone(),
            blobs: self.0.blobs.clone(),
            session: id.clone(),
            live: live.clone(),
            numbers: cells.iter().map(|cell| (cell.id.clone(), cell.number)).collect(),
            executions: Executions::of(id, kernel, cells),
        };
        (live, Box::new(journal))
    }

    /// Keeps the pool filled. Runs for ever.
    pub async fn fill_pool(&self) {
        pool::fill(self.clone(), self.0.settings.pool.clone()).await;
    }
}

/// A session that is being made.
struct Waiting {
    keeper: Keeper,
    /// How many were being made before it.
    before: usize,
}

impl Waiting {
    fn begin(keeper: Keeper) -> Self {
        let before = keeper.0.waiting.fetch_add(1, Ordering::Relaxed);
        Self { keeper, before }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.keeper.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a session is to be, from what is written of it.
pub(super) fn spec_of(row: &SessionRow) -> KeptSpec {
    serde_json::from_str(&row.spec).unwrap_or_default()
}

pub(super) fn row_of(id: &SessionId, principal: &str, kernel: &Kernel, new: &NewSession) -> SessionRow {
    let now = now_ms();
    SessionRow {
        id: id.clone(),
        principal: principal.to_owned(),
        name: new.name.clone(),
        kernel: kernel.name.clone(),
        language: kernel.language.clone(),
        spec: serde_json::to_string(&new.spec).unwrap_or_default(),
        state: CREATING.to_owned(),
        why: None,
        sandbox: None,
        position: (Epoch::default(), Seq::default()),
        last_seq: Seq::default(),
        resume: None,
        kernel_info: None,
        created_at: now,
        last_active_at: now,
        expires_at: new.spec.ttl_seconds.map(|seconds| now.saturating_add(seconds_in_ms(seconds))),
    }
}

//! Sessions that outlive this process: created, claimed from the pool, configured and used, for `cellkeep serve`.
//!
//! Everything that a later server needs is in the store before a request is answered. Other files add to the service:
//! `recovery` (after a restart), `removal`, `notebooks`, `files` and `variables`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Allotment};
use super::consumption::Consumption;
use super::creation_keys::{KeysInUse, Turns};
use super::environment_builds::Builds;
use super::event_feed::EventFeed;
use super::evictions::Evictions;
use super::execution_traces::ExecutionTraces;
use super::files::ArchiveLoad;
use super::journal::StoreJournal;
use super::pool::{self, POOL_OWNER, Pool, Pooled};
use super::quota::Quota;
use super::reader::SessionReader;
use super::registry::{SandboxInstance, SessionEntry, SessionRegistry};
use super::removal_backlog::RemovalBacklog;
use super::run_record::EnvironmentRecord;
use super::sandboxes::SandboxRegistry;
use super::session_config::{NewSession, ServiceError, ServiceSettings, SessionConfig};
use super::{Manager, ManagerError, SessionSpec};
use crate::artifacts::Blobs;
use crate::audit::{AuditLog, AuditRecord};
use crate::config::Paths;
use crate::counters::{UseCounter, UseGuard};
use crate::egress::Gateway;
use crate::ids::{Access, Epoch, PrincipalId, Seq, SessionId, SessionPhase};
use crate::kernels::{self, KernelSpec, Status};
use crate::machine;
use crate::policy::{Ceilings, DataMounts, Limits, Network, Secret};
use crate::sandbox::SandboxKind;
use crate::sandbox::docker::Images;
use crate::session::{self, OutputMode, SessionHandle, SessionParts, Stored};
use crate::store::{
    Commit, Durability, EventKind, EventRow, SessionChange, SessionRow, Store, StoreError, now_ms, seconds_in_ms,
};
use crate::telemetry::{self, traces};

/// The number of requests that may wait per session that is being created.
const MAX_PENDING_PER_START: usize = 32;

/// The fields of a session that its owner may change.
#[derive(Clone, Debug)]
pub struct SessionProperties {
    pub name: Option<String>,
    pub config: SessionConfig,
    /// The end of the session's lifetime, in milliseconds since 1970.
    pub expires_at: Option<i64>,
}

/// Creates, configures and ends sessions. Clones share it.
#[derive(Clone)]
pub struct SessionService(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub paths: Paths,
    pub manager: Manager,
    pub store: Store,
    pub blobs: Blobs,
    pub settings: ServiceSettings,
    pub registry: Arc<SessionRegistry>,
    pub sandboxes: SandboxRegistry,
    pub quota: Quota,
    pub admission: Admission,
    pub consumption: Consumption,
    pub evictions: Evictions,
    pub audit: AuditLog,
    pub removal_backlog: RemovalBacklog,
    pub builds: Builds,
    /// The records of kernels' environments. An environment is the same in every session that uses it.
    pub environment_records: Mutex<HashMap<String, EnvironmentRecord>>,
    pub keys_in_use: KeysInUse,
    /// Of one-shot executions.
    pub beginnings: Turns<SessionId>,
    reader: SessionReader,
    pool: Pool,
    /// Limits how many kernels start at once.
    starting: Semaphore,
    /// Requests whose sessions are being created.
    pending: Arc<UseCounter>,
    pub archive_load: Arc<ArchiveLoad>,
    /// The ends of one-shot executions.
    pub finishing: TaskTracker,
}

impl SessionService {
    /// A service for the sessions in this store. [`Self::recover`] continues those of an earlier server.
    pub fn new(paths: &Paths, store: Store, settings: ServiceSettings) -> Self {
        let blobs = Blobs::new(&paths.blobs()).flushing(settings.durability == Durability::Full);
        let registry = Arc::<SessionRegistry>::default();
        let audit = AuditLog::new(paths);
        Self(Arc::new(Inner {
            paths: paths.clone(),
            manager: Manager::with_gateway(paths.clone(), Gateway::new(settings.egress.clone(), Some(audit.clone())))
                .with_package_rules(settings.packages.clone()),
            reader: SessionReader::new(registry.clone(), store.clone(), blobs.clone()),
            blobs,
            store,
            registry,
            sandboxes: SandboxRegistry::default(),
            archive_load: Arc::default(),
            quota: Quota::new(settings.max_data_mb),
            admission: Admission::new(settings.max_sessions, machine::detect(), &settings.ceilings),
            consumption: Consumption::new(&settings.ceilings.principal),
            evictions: Evictions::default(),
            audit,
            removal_backlog: RemovalBacklog::default(),
            builds: Builds::default(),
            environment_records: Mutex::default(),
            keys_in_use: KeysInUse::default(),
            beginnings: Turns::default(),
            pool: Pool::default(),
            starting: Semaphore::new(settings.max_starting),
            pending: Arc::default(),
            finishing: TaskTracker::new(),
            settings,
        }))
    }

    pub fn reader(&self) -> &SessionReader {
        &self.0.reader
    }

    /// The idle timeout of sessions that have none of their own, in seconds.
    pub fn idle_timeout(&self) -> u64 {
        self.0.settings.idle_timeout_seconds.min(self.ceilings().idle_timeout_seconds)
    }

    pub fn audit(&self) -> &AuditLog {
        &self.0.audit
    }

    /// Records what the server did with a session.
    pub(super) fn record(&self, action: &str, id: &SessionId, principal: Option<&PrincipalId>, result: &str) {
        self.0.audit.record(&AuditRecord {
            action: action.to_owned(),
            principal: principal.map(ToString::to_string),
            session: Some(id.to_string()),
            result: result.to_owned(),
            ..AuditRecord::default()
        });
    }

    /// The most that clients may ask for.
    pub fn ceilings(&self) -> &Ceilings {
        &self.0.settings.ceilings
    }

    /// The folders that sessions may ask for.
    pub fn mounts(&self) -> &DataMounts {
        &self.0.settings.mounts
    }

    /// The secrets that sessions may ask for by name.
    pub fn secrets(&self) -> &[Secret] {
        &self.0.settings.secrets
    }

    /// How many sessions may live at once.
    pub fn max_sessions(&self) -> usize {
        self.0.settings.max_sessions
    }

    /// The living sessions of a principal, and the sum of their process limits.
    pub fn held(&self, principal: &PrincipalId) -> (u64, u64) {
        self.0.admission.held(principal)
    }

    /// The sessions of a principal that were deleted in the last day to make room.
    pub fn evicted(&self, principal: &PrincipalId) -> Vec<SessionId> {
        self.0.evictions.of(principal)
    }

    /// Appends a last event with a notice to a session that has ended.
    pub(super) async fn append_notice(&self, id: &SessionId, entry: &SessionEntry, notice: &str) -> Result<(), StoreError> {
        let Some(row) = self.0.store.session(id).await? else { return Ok(()) };
        let body = serde_json::json!({"state": SessionPhase::Gone.as_str(), "notice": notice}).to_string();
        let seq = row.last_seq.next();
        let event = EventRow { seq, first: seq, time: now_ms(), cell: None, kind: EventKind::SessionState, body };
        let session = SessionChange { last_seq: Some(seq), ..SessionChange::default() };
        self.0.store.commit(id, Commit { events: vec![event.clone()], session, ..Commit::default() }).await?;
        entry.feed.publish(vec![event]);
        Ok(())
    }

    /// The limits of sessions that ask for none.
    pub fn default_limits(&self, kernel: &KernelSpec) -> Limits {
        kernel.default_limits().at_most(&self.ceilings().limits)
    }

    /// All kernels, each with the kinds of sandbox in which it can run on this machine.
    pub async fn kernels(&self) -> Vec<(&'static KernelSpec, Vec<SandboxKind>)> {
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

    // ---- use ----------------------------------------------------------------------------------------------------------

    /// The handle of a session, for reading its state. Does not count as a use of the session.
    pub fn peek(&self, id: &SessionId, access: &Access) -> Result<SessionHandle, ServiceError> {
        Ok(self.0.registry.find_visible(id, access)?.handle.clone())
    }

    /// The handle of a session, for using it. The session is not idle then.
    pub fn handle(&self, id: &SessionId, access: &Access) -> Result<SessionHandle, ServiceError> {
        Ok(self.0.registry.find_and_touch(id, access)?.handle.clone())
    }

    /// The handle of a session, for work that writes to the journal. Fails if the quota of the owner is exceeded.
    pub fn handle_for_write(&self, id: &SessionId, access: &Access) -> Result<SessionHandle, ServiceError> {
        let entry = self.0.registry.find_and_touch(id, access)?;
        self.0.quota.check(&entry.principal)?;
        Ok(entry.handle.clone().traced(traces::current()))
    }

    /// Counts executions that are about to be queued, for the owner of the session.
    pub fn admit_executions(&self, id: &SessionId, access: &Access, count: usize) -> Result<(), ServiceError> {
        let entry = self.0.registry.find_visible(id, access)?;
        self.0.consumption.admit_executions(&entry.principal, count)
    }

    /// The default timeout of a session's cells in seconds. The ceiling may have been lowered since it was set.
    pub fn cell_timeout(&self, id: &SessionId, access: &Access) -> Result<Option<f64>, ServiceError> {
        let most = self.ceilings().timeout_seconds as f64;
        Ok(self.0.registry.find_visible(id, access)?.cell_timeout().map(|seconds| seconds.min(most)))
    }

    /// Changes properties of a session in one transaction: concurrent changes are not lost. A lifetime that would exceed the
    /// ceiling ends there. After an error, nothing has changed.
    pub async fn update(
        &self,
        id: &SessionId,
        access: &Access,
        change: impl FnOnce(&mut SessionProperties) + Send + 'static,
    ) -> Result<(), ServiceError> {
        let entry = self.0.registry.find_visible(id, access)?;
        let (service, id) = (self.clone(), id.clone());
        // In a task of its own: the client may disconnect, and what is committed must be in force.
        let changing = tokio::spawn(async move { service.change(&id, &entry, change).await });
        changing.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn change(
        &self,
        id: &SessionId,
        entry: &SessionEntry,
        change: impl FnOnce(&mut SessionProperties) + Send + 'static,
    ) -> Result<(), ServiceError> {
        let longest = self.ceilings().lifetime_seconds.map(seconds_in_ms);
        // What is in force follows the order of the commits.
        let changing = entry.changing.lock().await;
        let changed = self.0.store.change_session(id, move |row| {
            let config = SessionConfig::of_row(row);
            let mut properties = SessionProperties { name: row.name.take(), config, expires_at: row.expires_at };
            change(&mut properties);
            row.spec = properties.config.to_json();
            let latest = longest.map(|longest| row.created_at.saturating_add(longest));
            let expires_at = properties.expires_at.into_iter().chain(latest).min();
            (row.name, row.expires_at) = (properties.name, expires_at);
        });
        let changed = changed.await?.ok_or_else(|| ServiceError::not_found(id))?;
        let config = SessionConfig::of_row(&changed);
        entry.set_cell_timeout(config.timeout_seconds);
        if let Some(sandbox) = entry.sandbox().filter(|sandbox| !sandbox.is_shared()) {
            entry.set_network(&config.network);
            self.show_network_of_sandbox(&sandbox.record.id, &config.network).await?;
        }
        drop(changing);
        entry.settle_network().await;
        Ok(())
    }

    /// Sets the gauges that are computed on request: sessions by phase, pool sizes, queued cells.
    pub async fn update_gauges(&self) -> Result<(), StoreError> {
        let mut phases: HashMap<SessionPhase, usize> = SessionPhase::VISIBLE.map(|phase| (phase, 0)).into();
        for entry in self.0.registry.entries() {
            *phases.entry(entry.handle.state().phase()).or_default() += 1;
        }
        for (phase, count) in phases {
            metrics::gauge!(telemetry::SESSIONS, "state" => phase.as_str()).set(count as f64);
        }
        for (kernel, count) in self.pool_sizes() {
            metrics::gauge!(telemetry::POOL, "kernel" => kernel).set(count as f64);
        }
        metrics::gauge!(telemetry::QUEUED).set(self.0.store.count_queued().await? as f64);
        Ok(())
    }

    // ---- creation -----------------------------------------------------------------------------------------------------

    /// Creates a session, and waits until its kernel is ready. After an error, nothing is left behind. With a key that was used before,
    /// returns the session of that time.
    pub async fn create(&self, principal: &PrincipalId, new: NewSession) -> Result<SessionId, ServiceError> {
        let (owner, key) = (principal.clone(), new.key.clone());
        let make = |service: Self| async move { service.create_new(&owner, new).await };
        self.create_once(principal, key, SessionId::parse, make).await
    }

    /// Creates a session, whether or not there is one with its key.
    pub(super) async fn create_new(&self, principal: &PrincipalId, new: NewSession) -> Result<SessionId, ServiceError> {
        if let Some(sandbox) = new.sandbox.clone() {
            return self.create_in_sandbox(principal, &sandbox, new).await;
        }
        let kernel = kernels::find(&new.kernel)?.clone();
        let mut new = new;
        self.check_sandbox(&mut new)?;
        // Before it is counted: what waits for packages takes no place of others.
        self.prepare_environment(principal, &kernel, &mut new).await?;
        let allotment = self.admit(principal, new.config.limits.pids).await?;
        let turn = self.begin_creation()?;
        // In a task of its own: the client may disconnect, and what has begun must be finished or undone.
        let (service, principal) = (self.clone(), principal.clone());
        let creating = tokio::spawn(async move {
            let _turn = turn;
            service.claim_or_create(principal, kernel, new, allotment).await
        });
        creating.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    /// Checks a new sandbox against the ceilings.
    pub(super) fn check_sandbox(&self, new: &mut NewSession) -> Result<(), ServiceError> {
        new.config.limits.validate().map_err(ManagerError::Limits)?;
        new.config.check(self.ceilings())?;
        self.check_network(&new.config.network)?;
        self.mounts().find(&new.config.mounts)?;
        new.config.ttl_seconds = new.config.ttl_seconds.or(self.ceilings().lifetime_seconds);
        Ok(())
    }

    /// Checks the quotas of a principal, and counts a session with this many processes.
    pub(super) async fn admit(&self, principal: &PrincipalId, processes: u64) -> Result<Allotment, ServiceError> {
        self.0.quota.check(principal)?;
        self.0.consumption.check_seconds(principal)?;
        let is_alone = !self.0.store.has_user_beside(principal).await?;
        self.0.admission.admit(principal, processes, is_alone)
    }

    /// Counts a request whose session is being created. Beyond a number of them, another one would only delay the others.
    pub(super) fn begin_creation(&self) -> Result<UseGuard, ServiceError> {
        let turn = self.0.pending.count();
        let pending = usize::try_from(turn.before).unwrap_or(usize::MAX);
        if pending >= MAX_PENDING_PER_START * self.0.settings.max_starting {
            return Err(ServiceError::TooManyPending { pending });
        }
        Ok(turn)
    }

    /// Resolves when a session has been created, and another request may have its turn.
    pub(super) async fn pending_released(&self) {
        self.0.pending.released().await;
    }

    /// Waits until a kernel may start.
    pub(super) async fn permit_start(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.0.starting.acquire().await.map_err(|_| StoreError::Closed)
    }

    async fn claim_or_create(
        &self,
        principal: PrincipalId,
        kernel: KernelSpec,
        new: NewSession,
        allotment: Allotment,
    ) -> Result<SessionId, ServiceError> {
        let began = Instant::now();
        let record_start = |source: &'static str| {
            metrics::counter!(telemetry::SESSIONS_CREATED).increment(1);
            metrics::histogram!(telemetry::START_SECONDS, "source" => source).record(began.elapsed());
        };
        let (source, (id, entry)) = match self.claim(&principal, &kernel, &new).await? {
            Some(pooled) => {
                pooled.1.hold(allotment);
                ("pool", pooled)
            }
            None => ("new", self.start_new(&principal, &kernel, &new, Some(allotment)).await?),
        };
        record_start(source);
        self.0.registry.insert(id.clone(), Arc::new(entry));
        Ok(id)
    }

    /// Takes a session from the pool, if pooled sessions fit the request.
    async fn claim(
        &self,
        principal: &PrincipalId,
        kernel: &KernelSpec,
        new: &NewSession,
    ) -> Result<Option<Pooled>, ServiceError> {
        if !new.env.is_empty()
            || new.config.network.interface() == Network::Open
            || !self.0.manager.gateway().index_secrets(&new.config.network).is_empty()
            || !new.config.mounts.is_empty()
            || !new.secrets.is_empty()
            || new.config.environment.is_some()
            || new.config.limits != self.default_limits(kernel)
        {
            return Ok(None);
        }
        let (pooled, dead) = self.0.pool.take(&kernel.name);
        for (id, entry) in dead {
            let service = self.clone();
            tokio::spawn(async move { service.remove_unlisted(&id, Some(entry), None).await });
        }
        let Some((id, entry)) = pooled else { return Ok(None) };
        if let Err(error) = self.0.store.claim_session(new_row(&id, principal, kernel, new), new.key.clone()).await {
            self.0.pool.put(&kernel.name, (id, entry));
            return Err(error.into());
        }
        let entry = entry.claimed_by(principal.clone(), new.config.timeout_seconds);
        entry.set_network(&new.config.network);
        entry.settle_network().await;
        Ok(Some((id, entry)))
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// The number of sessions that are ready in the pool, by kernel.
    pub fn pool_sizes(&self) -> HashMap<String, usize> {
        self.0.pool.sizes()
    }

    /// Keeps the pool filled, until the server stops.
    pub async fn fill_pool(&self) {
        pool::fill(self.clone(), self.0.settings.pool.clone()).await;
    }

    /// Whether clients wait for sessions that are being created.
    pub(super) fn has_pending_requests(&self) -> bool {
        self.0.pending.total() > 0
    }

    pub(super) async fn create_for_pool(&self, kernel: &str) -> Result<Pooled, ServiceError> {
        let kernel = kernels::find(kernel)?;
        let config = SessionConfig { limits: self.default_limits(kernel), ..SessionConfig::default() };
        let new = NewSession { kernel: kernel.name.clone(), config, ..NewSession::default() };
        self.start_new(&POOL_OWNER.into(), kernel, &new, None).await
    }

    async fn start_new(
        &self,
        principal: &PrincipalId,
        kernel: &KernelSpec,
        new: &NewSession,
        allotment: Option<Allotment>,
    ) -> Result<(SessionId, SessionEntry), ServiceError> {
        let _permit = self.permit_start().await?;
        let id = SessionId::random();
        self.0.store.insert_session(new_row(&id, principal, kernel, new)).await?;
        self.put_key(principal, new, id.as_str()).await?;
        match self.start_in_sandbox(&id, principal, kernel, new).await {
            Ok(entry) => {
                allotment.into_iter().for_each(|allotment| entry.hold(allotment));
                Ok((id, entry))
            }
            Err((error, entry)) => {
                self.remove_unlisted(&id, entry, allotment).await;
                Err(error)
            }
        }
    }

    /// Creates the sandbox and waits for the kernel. A session whose kernel did not start is returned with the error.
    async fn start_in_sandbox(
        &self,
        id: &SessionId,
        principal: &PrincipalId,
        kernel: &KernelSpec,
        new: &NewSession,
    ) -> Result<SessionEntry, (ServiceError, Option<SessionEntry>)> {
        let mounts = self.mounts().find(&new.config.mounts).map_err(|error| (error.into(), None))?;
        let package_set = self.mounted_packages(new).await.map_err(|error| (error, None))?;
        let spec = SessionSpec {
            kernel: kernel.clone(),
            sandbox: self.0.settings.sandbox,
            limits: new.config.limits.clone(),
            network: new.config.network.clone(),
            env: new.env.clone(),
            mounts,
            secrets: new.secrets.clone(),
            package_set,
        };
        let created = self.0.manager.create_sandbox(&spec, id.clone().into(), Some(id), None).await;
        // Those of the pool belong to nobody yet.
        let owner = Some(principal).filter(|principal| principal.as_str() != POOL_OWNER);
        self.record("sandbox.created", id, owner, if created.is_ok() { "ok" } else { "failed" });
        let sandbox = created.map_err(|error| (error.into(), None))?;
        let recorded = self.0.store.set_sandbox(id, serde_json::to_string(&sandbox.record).unwrap_or_default()).await;
        let entry = self.start_driver(id, principal, &new.config, sandbox, None);
        let ready = match recorded {
            Ok(()) => entry.handle.ready().await.map_err(|error| ManagerError::Start(error).into()),
            Err(error) => Err(error.into()),
        };
        match ready {
            Ok(()) => {
                entry.settle_network().await;
                Ok(entry)
            }
            Err(error) => Err((error, Some(entry))),
        }
    }

    /// Starts the driver of a session. `stored` holds the state that an earlier server wrote.
    pub(super) fn start_driver(
        &self,
        id: &SessionId,
        principal: &PrincipalId,
        config: &SessionConfig,
        sandbox: SandboxInstance,
        stored: Option<Stored>,
    ) -> SessionEntry {
        let record = &sandbox.record;
        let (feed, journal) = self.open_journal(id, &record.kernel, stored.as_ref());
        let handle = session::start(SessionParts {
            session: id.clone(),
            sandbox: sandbox.engine.clone(),
            record: record.clone(),
            limits: config.limits.clone(),
            output_mode: OutputMode::Changes,
            journal,
            durable: true,
            stored,
        });
        let entry = SessionEntry::new(principal.clone(), handle, feed, config.timeout_seconds, Some(sandbox));
        entry.set_network(&config.network);
        entry
    }

    /// The journal of a session, and the feed of its committed events.
    pub(super) fn open_journal(
        &self,
        id: &SessionId,
        kernel: &str,
        stored: Option<&Stored>,
    ) -> (Arc<EventFeed>, Box<StoreJournal>) {
        let feed = EventFeed::new(stored.map_or(Seq::default(), |stored| stored.last_seq));
        let cells = stored.map_or(&[][..], |stored| &stored.cells);
        let journal = StoreJournal {
            store: self.0.store.clone(),
            blobs: self.0.blobs.clone(),
            session: id.clone(),
            feed: feed.clone(),
            cell_numbers: cells.iter().map(|cell| (cell.id.clone(), cell.number)).collect(),
            traces: ExecutionTraces::new(id, kernel, cells),
        };
        (feed, Box::new(journal))
    }
}

/// The row of a session that is about to be created.
pub(super) fn new_row(id: &SessionId, principal: &PrincipalId, kernel: &KernelSpec, new: &NewSession) -> SessionRow {
    let now = now_ms();
    SessionRow {
        id: id.clone(),
        principal: principal.clone(),
        name: new.name.clone(),
        kernel: kernel.name.clone(),
        language: kernel.language.clone(),
        spec: new.config.to_json(),
        phase: SessionPhase::Creating,
        why: None,
        sandbox: None,
        position: (Epoch::default(), Seq::default()),
        last_seq: Seq::default(),
        resume: None,
        kernel_info: None,
        created_at: now,
        last_active_at: now,
        expires_at: new.config.ttl_seconds.map(|seconds| now.saturating_add(seconds_in_ms(seconds))),
    }
}

//! Recovery after a restart. Sessions whose sandboxes live continue, the others end in the journal, and sandboxes without a
//! session are removed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ManagerError;
use super::admission::Allotment;
use super::journal::restore_cell;
use super::pool::POOL_OWNER;
use super::registry::{SandboxInstance, SessionEntry};
use super::removal_backlog::Leftover;
use super::service::SessionService;
use super::session_config::{ServiceError, SessionConfig};
use crate::ids::{Access, SandboxId, SessionPhase};
use crate::link::Position;
use crate::output::OutputTarget;
use crate::sandbox::{self, SandboxKind, SandboxRecord, SandboxState};
use crate::session::{self, Stored};
use crate::store::{SandboxRow, SessionRow, StoreError, seconds_in_ms};

/// How long an engine may take until it answers, and the time between two attempts.
const ENGINE_DEADLINE: Duration = Duration::from_secs(30);
const ENGINE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why sessions end that cannot continue.
const SANDBOX_ENDED: &str = "its sandbox ended while the server was away";
const NETWORK_NOT_ALLOWED: &str = "its network is wider than this server allows now (--allow-network)";
const MOUNT_NOT_SHARED: &str = "this server does not share one of its data mounts any more";

impl SessionService {
    /// Continues or ends the sessions that an earlier server has left, and removes sandboxes without a session. Returns when
    /// the state of every session is true, or on its way to be.
    pub async fn recover(&self) -> Result<(), ServiceError> {
        let rows = self.0.store.sessions(&Access::All).await?;
        let own_rows = self.0.store.sandboxes().await?;
        let mut sandboxes = self.list_all_sandboxes(&rows, &own_rows).await;
        let mut in_use: HashSet<SandboxId> = own_rows.iter().map(|row| row.id.clone()).collect();
        self.recover_sandboxes(own_rows, &sandboxes).await;
        for row in rows {
            let own = SandboxId::from(row.id.clone());
            let id = sandbox_record(&row).map_or(own.clone(), |record| record.id);
            let found = sandboxes.get(&id);
            let sandbox = if id == own { found.cloned() } else { found.map(|sandbox| sandbox.for_guest(&row.id)) };
            in_use.insert(id);
            if let Err(error) = self.recover_session(&row, sandbox).await {
                tracing::error!(session = %row.id, %error, "cannot recover a session");
            }
        }
        sandboxes.retain(|id, _| !in_use.contains(id));
        for (id, sandbox) in sandboxes {
            // Sandboxes of one-shot runs belong to the processes that run them.
            if sandbox.record.keep {
                tracing::info!(session = %id, "removing a sandbox without a session");
                if let Err(error) = sandbox.destroy().await {
                    tracing::warn!(session = %id, %error, "cannot remove a sandbox without a session");
                }
            }
        }
        self.recover_environments().await?;
        // The recovered sessions write already, so the artifact folder must be locked.
        let _removing = self.0.blobs.removing().await;
        let hashes: HashSet<String> = self.0.store.artifact_hashes().await?.into_iter().collect();
        if let Err(error) = self.0.blobs.keep_only(&hashes).await {
            tracing::warn!(%error, "cannot remove artifacts that no session uses");
        }
        Ok(())
    }

    async fn list_all_sandboxes(&self, rows: &[SessionRow], own_rows: &[SandboxRow]) -> HashMap<SandboxId, SandboxInstance> {
        let mut all = HashMap::new();
        for kind in [SandboxKind::Process, SandboxKind::Docker] {
            let kind_of = |row: &SessionRow| sandbox_record(row).map(|record| record.kind);
            let kind_of_own = |row: &SandboxRow| read_record(row.record.as_deref()).map(|record| record.kind);
            // Asking the Docker daemon takes longer than the rest of a start, so it is asked only if needed. A row without a
            // record belongs to an unfinished creation: its sandbox may be of any kind.
            let kinds = rows.iter().map(kind_of).chain(own_rows.iter().map(kind_of_own));
            if self.0.settings.sandbox.allows(kind) || kinds.clone().any(|its| its.is_none_or(|its| its == kind)) {
                let has_sessions = rows.iter().any(|row| row.phase != SessionPhase::Gone && kind_of(row) == Some(kind))
                    || own_rows.iter().any(|row| kind_of_own(row) == Some(kind));
                all.extend(self.list_sandboxes_with_retry(kind, has_sessions).await);
            }
        }
        all
    }

    /// The sandboxes of one kind. If sessions are known to be in such sandboxes, an engine that does not answer is retried
    /// for [`ENGINE_DEADLINE`]: after a boot it may come up later than this server, and a session whose sandbox is not found
    /// ends.
    async fn list_sandboxes_with_retry(&self, kind: SandboxKind, has_sessions: bool) -> Vec<(SandboxId, SandboxInstance)> {
        let deadline = Instant::now() + if has_sessions { ENGINE_DEADLINE } else { Duration::ZERO };
        loop {
            match self.sandboxes_of_engine(kind).await {
                Ok(sandboxes) => return sandboxes,
                // A kind that does not work on this machine has no sandboxes.
                Err(_) if !has_sessions => return Vec::new(),
                Err(error) if Instant::now() > deadline => {
                    tracing::error!(%kind, %error, "cannot list sandboxes; their sessions end");
                    return Vec::new();
                }
                Err(error) => {
                    tracing::warn!(%kind, %error, "cannot list sandboxes; retrying");
                    tokio::time::sleep(ENGINE_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn sandboxes_of_engine(&self, kind: SandboxKind) -> Result<Vec<(SandboxId, SandboxInstance)>, ManagerError> {
        let engine = self.0.manager.sandbox(kind).await?;
        if let Err(error) = sandbox::sweep(&*engine, &self.0.paths).await {
            tracing::warn!(%kind, %error, "cannot look for leftover sandboxes");
        }
        let records = engine.list().await?.into_iter();
        Ok(records.map(|record| (record.id.clone(), self.0.manager.found_sandbox(&engine, record))).collect())
    }

    pub(super) async fn recover_session(
        &self,
        row: &SessionRow,
        sandbox: Option<SandboxInstance>,
    ) -> Result<(), ServiceError> {
        let config = SessionConfig::of_row(row);
        let is_unfinished = matches!(row.phase, SessionPhase::Creating | SessionPhase::Deleting) || config.one_shot;
        if is_unfinished || row.principal.as_str() == POOL_OWNER {
            // The client that asked for it got no answer, and the pool is filled anew.
            let is_owned = sandbox.is_some() && row.principal.as_str() != POOL_OWNER;
            let allotment = is_owned.then(|| self.count_stored(row));
            self.remove_or_defer(&row.id, Leftover::new(sandbox.map(Arc::new), allotment)).await;
            return Ok(());
        }
        let stored = self.load_state(row).await?;
        let refused = self.refusal(&config);
        let is_alive = match &sandbox {
            _ if refused.is_some() => false,
            // If the sandbox cannot be inspected now, the driver finds out later.
            Some(sandbox) if row.phase != SessionPhase::Gone => {
                !matches!(sandbox.engine.inspect(&sandbox.record).await, Ok(SandboxState::Ended { .. }))
            }
            _ => false,
        };
        let entry = match sandbox {
            Some(sandbox) if is_alive => {
                let entry = self.start_driver(&row.id, &row.principal, &config, sandbox, Some(stored));
                entry.hold(self.count_stored(row));
                entry
            }
            // The reaper removes the sandbox of an ended session.
            sandbox => self.end_in_journal(row, stored, sandbox, refused.unwrap_or(SANDBOX_ENDED)).await,
        };
        self.0.registry.insert(row.id.clone(), Arc::new(entry));
        // The ceiling may have been lowered.
        let latest = self.ceilings().lifetime_seconds.map(|most| row.created_at.saturating_add(seconds_in_ms(most)));
        if is_alive && latest.is_some_and(|latest| row.expires_at.is_none_or(|at| at > latest)) {
            self.update(&row.id, &Access::All, |_| {}).await?;
        }
        Ok(())
    }

    /// Why a session of an earlier server may not go on, since this one has a narrower configuration.
    pub(super) fn refusal(&self, config: &SessionConfig) -> Option<&'static str> {
        let is_shared = || self.mounts().find(&config.mounts).is_ok();
        let network = (!self.ceilings().allows(&config.network)).then_some(NETWORK_NOT_ALLOWED);
        network.or_else(|| (!is_shared()).then_some(MOUNT_NOT_SHARED))
    }

    fn count_stored(&self, row: &SessionRow) -> Allotment {
        self.0.admission.count(&row.principal, SessionConfig::of_row(row).limits.pids)
    }

    async fn load_state(&self, row: &SessionRow) -> Result<Stored, StoreError> {
        let cells = self.0.store.cells(&row.id).await?;
        // Lists of rows leave out the long columns.
        let full_row = self.0.store.session(&row.id).await?;
        let (resume, kernel_info) = full_row.map_or((None, None), |row| (row.resume, row.kernel_info));
        let (epoch, seq) = row.position;
        let folds = self.0.store.folds(&row.id).await?;
        Ok(Stored {
            cells: cells.into_iter().filter_map(restore_cell).collect(),
            last_seq: row.last_seq,
            position: Position { epoch, seq },
            resume,
            outputs: folds.into_iter().map(|(code, json)| (OutputTarget::from_code(code), json)).collect(),
            kernel_info,
        })
    }

    /// Ends a session that cannot continue: its unfinished executions end in the journal, which can be read.
    async fn end_in_journal(
        &self,
        row: &SessionRow,
        stored: Stored,
        sandbox: Option<SandboxInstance>,
        why: &str,
    ) -> SessionEntry {
        let (feed, journal) = self.open_journal(&row.id, &row.kernel, Some(&stored));
        let why = row.why.as_deref().unwrap_or(why);
        let handle = session::end_stored(stored, row.phase == SessionPhase::Gone, why, journal).await;
        let allotment = sandbox.is_some().then(|| self.count_stored(row));
        let entry = SessionEntry::new(row.principal.clone(), handle, feed, None, sandbox);
        allotment.into_iter().for_each(|allotment| entry.hold(allotment));
        entry
    }
}

/// The record of a session's sandbox, if it was stored.
fn sandbox_record(row: &SessionRow) -> Option<SandboxRecord> {
    read_record(row.sandbox.as_deref())
}

fn read_record(json: Option<&str>) -> Option<SandboxRecord> {
    serde_json::from_str(json?).ok()
}

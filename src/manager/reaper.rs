//! Ends sessions whose lifetime is over, removes the sandboxes of ended sessions, deletes sessions that ended long ago, and
//! retries removals that failed.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;

use super::registry::SessionEntry;
use super::service::SessionService;
use super::session_config::SessionConfig;
use crate::ids::{Access, SessionId};
use crate::session::SessionState;
use crate::store::{SessionRow, now_ms, seconds_in_ms};

/// The time between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// The number of sessions that are worked on at once.
pub(super) const CONCURRENCY: usize = 32;
/// Work that takes longer than this stops counting for [`CONCURRENCY`]: sandboxes whose engine hangs must not delay the
/// others.
const SLOW_WORK: Duration = Duration::from_secs(1);
/// Why the session of a notebook job ends.
const JOB_FINISHED: &str = "its notebook has been run";

/// Work on sessions in rounds. A session has at most one piece of work at a time, however long that takes: later rounds
/// leave the session out meanwhile, and other sessions are not delayed.
#[derive(Default)]
pub(super) struct Rounds<'a> {
    busy: HashSet<SessionId>,
    work: FuturesUnordered<BoxFuture<'a, SessionId>>,
}

impl<'a> Rounds<'a> {
    pub fn start(&mut self, id: SessionId, work: impl Future<Output = ()> + Send + 'a) {
        if self.busy.insert(id.clone()) {
            self.work.push(Box::pin(async move {
                work.await;
                id
            }));
        }
    }

    pub async fn run_for(&mut self, time: Duration) {
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                Some(id) = self.work.next() => drop(self.busy.remove(&id)),
            }
        }
    }
}

/// Runs work with a permit, which is released early if the work is slow.
pub(super) async fn with_permit(permits: &Semaphore, work: impl Future<Output = ()>) {
    let permit = permits.acquire().await;
    tokio::pin!(work);
    if tokio::time::timeout(SLOW_WORK, work.as_mut()).await.is_err() {
        drop(permit);
        work.await;
    }
}

/// Enforces the lifetimes of sessions.
pub struct Reaper {
    service: SessionService,
}

impl Reaper {
    pub fn new(service: SessionService) -> Self {
        Self { service }
    }

    /// Runs for ever.
    pub async fn run(&self) {
        tokio::join!(self.reap_sessions(), self.retry_removals(), self.service.reap_sandboxes());
    }

    async fn reap_sessions(&self) {
        let permits = Semaphore::new(CONCURRENCY);
        let mut rounds = Rounds::default();
        loop {
            rounds.run_for(ROUND_INTERVAL).await;
            match self.service.0.store.sessions(&Access::All).await {
                Ok(rows) => rows.into_iter().for_each(|row| {
                    rounds.start(row.id.clone(), with_permit(&permits, async move { self.reap(&row).await }));
                }),
                Err(error) => tracing::error!(%error, "cannot list the sessions to enforce their lifetimes"),
            }
        }
    }

    async fn retry_removals(&self) {
        let permits = Semaphore::new(CONCURRENCY);
        let mut rounds = Rounds::default();
        loop {
            rounds.run_for(ROUND_INTERVAL).await;
            for id in self.service.0.removal_backlog.ids() {
                rounds.start(id.clone(), with_permit(&permits, async move { self.service.retry_removal(&id).await }));
            }
        }
    }

    async fn reap(&self, row: &SessionRow) {
        let Some(entry) = self.service.0.registry.find(&row.id) else { return };
        let now = now_ms();
        let state = entry.handle.state();
        if matches!(state, SessionState::Gone { .. }) {
            destroy_sandbox(&row.id, &entry).await;
            if now.saturating_sub(row.last_active_at) > seconds_in_ms(self.service.0.settings.keep_ended_seconds) {
                self.service.delete_ended(&row.id).await;
            }
            return;
        }
        // The time of a shared sandbox is charged once, with the sandbox.
        if !entry.sandbox().is_some_and(|sandbox| sandbox.is_shared()) {
            self.service.0.consumption.charge(&entry.principal, entry.take_uncharged_time());
        }
        if self.end_reason(row, &entry, &state, now).await.is_none() {
            return;
        }
        // The row was read before the state: meanwhile a cell may have ended, or the owner may have extended the lifetime. A
        // row that is read after the state shows that.
        let Ok(Some(row)) = self.service.0.store.session(&row.id).await else { return };
        if let Some(why) = self.end_reason(&row, &entry, &state, now).await {
            tracing::info!(session = %row.id, why, "ending a session");
            self.service.record("session.ended", &row.id, Some(&row.principal), &why);
            let _ = entry.handle.end(&why).await;
            destroy_sandbox(&row.id, &entry).await;
        }
    }

    /// Why a session must end now. `None` if it may continue.
    async fn end_reason(&self, row: &SessionRow, entry: &SessionEntry, state: &SessionState, now: i64) -> Option<String> {
        let config = SessionConfig::of_row(row);
        let spent = self.service.0.consumption.check_seconds(&entry.principal).err();
        let last_active = row.last_active_at.max(entry.last_used_ms());
        // The ceiling may have been lowered since the session was created.
        let most = self.service.ceilings().idle_timeout_seconds;
        let idle_timeout = config.idle_timeout_seconds.unwrap_or(self.service.idle_timeout()).min(most);
        let is_idle = *state == SessionState::Idle;
        if config.job.is_some() && is_idle && self.has_empty_queue(&row.id).await {
            Some(JOB_FINISHED.to_owned())
        } else if row.expires_at.is_some_and(|at| at <= now) {
            Some("its lifetime is over (ttl_seconds)".to_owned())
        } else if let Some(spent) = spent {
            Some(spent.to_string())
        } else if is_idle && now.saturating_sub(last_active) > seconds_in_ms(idle_timeout) {
            Some(format!("it was idle for {idle_timeout} s (idle_timeout_seconds)"))
        } else {
            None
        }
    }

    async fn has_empty_queue(&self, id: &SessionId) -> bool {
        self.service.0.store.count_cells(id).await.is_ok_and(|(_, queued)| queued == 0)
    }
}

/// Removes the sandbox of a session that has ended. The journal of the session stays.
async fn destroy_sandbox(id: &SessionId, entry: &SessionEntry) {
    if !entry.has_sandbox() {
        return;
    }
    let _removal = entry.removal.lock().await;
    let Some(sandbox) = entry.sandbox() else { return };
    match sandbox.destroy().await {
        Ok(()) => entry.clear_sandbox(),
        Err(error) => tracing::warn!(session = %id, %error, "cannot remove the sandbox of an ended session; retrying"),
    }
}

impl SessionService {
    /// Deletes an ended session to make room.
    pub(super) async fn delete_ended(&self, id: &SessionId) {
        if let Err(error) = self.delete(id, &Access::All).await {
            tracing::warn!(session = %id, %error, "cannot delete an ended session");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use tokio::net::UnixStream;

    use super::*;
    use crate::config::Paths;
    use crate::ids::SessionPhase;
    use crate::kernels;
    use crate::manager::registry::SandboxInstance;
    use crate::manager::removal_backlog::Leftover;
    use crate::manager::service::new_row;
    use crate::manager::{NewSession, ServiceSettings};
    use crate::policy::NetworkPolicy;
    use crate::sandbox::{Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats};
    use crate::session::{self, Stored};
    use crate::store::Store;

    /// An engine that never answers for some sandboxes.
    #[derive(Clone, Default)]
    pub(in crate::manager) struct Engine {
        hangs: Arc<Mutex<HashSet<SessionId>>>,
        /// Sandboxes that cannot be removed.
        fails: Arc<Mutex<HashSet<SessionId>>>,
        /// The sandboxes whose removal was requested.
        destroyed: Arc<Mutex<Vec<SessionId>>>,
    }

    #[async_trait]
    impl Sandbox for Engine {
        fn kind(&self) -> SandboxKind {
            SandboxKind::Process
        }
        async fn create(&self, _: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
            unreachable!()
        }
        async fn connect(&self, _: &SandboxRecord) -> Result<UnixStream, SandboxError> {
            std::future::pending().await
        }
        async fn inspect(&self, _: &SandboxRecord) -> Result<SandboxState, SandboxError> {
            Ok(SandboxState::Running)
        }
        async fn stats(&self, _: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
            unreachable!()
        }
        async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
            unreachable!()
        }
        async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
            self.destroyed.lock().unwrap().push(record.id.as_session().clone());
            if self.hangs.lock().unwrap().contains(record.id.as_session()) {
                std::future::pending::<()>().await;
            }
            if self.fails.lock().unwrap().contains(record.id.as_session()) {
                let reason = "the engine is down".to_owned();
                return Err(SandboxError::Engine { doing: "removing a sandbox".to_owned(), reason });
            }
            Ok(())
        }
    }

    pub(in crate::manager) fn service() -> (std::path::PathBuf, SessionService) {
        service_with(ServiceSettings::default())
    }

    fn service_with(settings: ServiceSettings) -> (std::path::PathBuf, SessionService) {
        let folder = std::env::temp_dir().join(format!("cellkeep-reaper-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let paths = Paths::new(&folder);
        let service = SessionService::new(&paths, Store::open(&paths.journal()).unwrap(), settings);
        (folder, service)
    }

    /// A round reads all rows at once, and works on each of them some time later.
    #[tokio::test]
    async fn extended_lifetime_is_seen_by_running_round() {
        let (folder, service) = service();
        let reaper = Reaper::new(service.clone());
        let stored_row = async |id: &SessionId| service.0.store.session(id).await.unwrap().unwrap();
        let record = SandboxRecord::in_name_only();
        let id = record.id.as_session().clone();
        let mut row = new_row(&id, &"ann".into(), kernels::find("python").unwrap(), &NewSession::default());
        row.expires_at = Some(now_ms() - 1);
        service.0.store.insert_session(row).await.unwrap();
        let config = SessionConfig::of_row(&stored_row(&id).await);
        let sandbox = SandboxInstance::new(Arc::new(Engine::default()), record, service.0.manager.gateway(), None);
        let entry = service.start_driver(&id, &"ann".into(), &config, sandbox, None);
        let handle = entry.handle.clone();
        service.0.registry.insert(id.clone(), Arc::new(entry));
        let old = stored_row(&id).await;
        let later = now_ms() + 60_000;
        let ann = Access::Principal("ann".into());
        service.update(&id, &ann, move |properties| properties.expires_at = Some(later)).await.unwrap();
        reaper.reap(&old).await;
        assert!(!matches!(handle.state(), SessionState::Gone { .. }), "{:?}", handle.state());
        service.update(&id, &ann, |properties| properties.expires_at = Some(1)).await.unwrap();
        reaper.reap(&old).await;
        let SessionState::Gone { why } = handle.state() else { panic!("{:?}", handle.state()) };
        assert!(why.contains("ttl_seconds"), "{why}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// A session with a sandbox of an earlier server.
    async fn recovered(
        service: &SessionService,
        engine: &Engine,
        config: SessionConfig,
        change: impl FnOnce(&mut SessionRow),
    ) -> SessionId {
        let record = SandboxRecord::in_name_only();
        let id = record.id.as_session().clone();
        let new = NewSession { config, ..NewSession::default() };
        let mut row = new_row(&id, &"ann".into(), kernels::find("python").unwrap(), &new);
        row.phase = SessionPhase::Idle;
        change(&mut row);
        service.0.store.insert_session(row.clone()).await.unwrap();
        let sandbox = SandboxInstance::new(Arc::new(engine.clone()), record, service.0.manager.gateway(), None);
        service.recover_session(&row, Some(sandbox)).await.unwrap();
        id
    }

    #[tokio::test]
    async fn deleted_session_counts_until_its_sandbox_is_gone() {
        let (folder, service) = service();
        let engine = Engine::default();
        let ann = "ann".into();
        let listed = recovered(&service, &engine, SessionConfig::default(), |_| {}).await;
        engine.fails.lock().unwrap().insert(listed.clone());
        service.delete(&listed, &Access::All).await.unwrap();
        assert_eq!(service.held(&ann).0, 1);
        service.retry_removal(&listed).await;
        assert_eq!(service.held(&ann).0, 1);
        engine.fails.lock().unwrap().clear();
        service.retry_removal(&listed).await;
        assert_eq!((service.held(&ann), service.0.removal_backlog.ids()), ((0, 0), Vec::new()));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn evicted_session_frees_nothing_while_its_sandbox_stays() {
        let (folder, service) = service();
        let engine = Engine::default();
        let [stuck, gone] = [
            recovered(&service, &engine, SessionConfig::default(), |row| row.phase = SessionPhase::Gone).await,
            recovered(&service, &engine, SessionConfig::default(), |row| row.phase = SessionPhase::Gone).await,
        ];
        engine.fails.lock().unwrap().insert(stuck.clone());
        assert!(matches!(service.evict(&stuck).await, Ok(false)));
        assert!(matches!(service.evict(&gone).await, Ok(true)));
        assert_eq!(service.evicted(&"ann".into()), [stuck, gone.clone()], "both are gone for their owner");
        assert!(service.evict(&gone).await.is_err());
        assert_eq!(service.evicted(&"ann".into()).len(), 2, "a failed deletion is not told");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn recovered_session_loses_network_that_is_not_allowed() {
        let (folder, service) = service();
        let engine = Engine::default();
        let open = SessionConfig { network: NetworkPolicy::Open, ..SessionConfig::default() };
        let id = recovered(&service, &engine, open, |_| {}).await;
        let state = service.peek(&id, &Access::All).unwrap().state();
        let SessionState::Gone { why } = state else { panic!("{state:?}") };
        assert!(why.contains("--allow-network"), "{why}");
        assert_eq!(service.held(&"ann".into()).0, 1, "its sandbox still lives");
        let row = service.0.store.session(&id).await.unwrap().unwrap();
        Reaper::new(service.clone()).reap(&row).await;
        assert_eq!(*engine.destroyed.lock().unwrap(), [id]);
        assert_eq!(service.held(&"ann".into()).0, 0);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn lowered_ceilings_hold_for_recovered_sessions() {
        let mut settings = ServiceSettings::default();
        (settings.ceilings.idle_timeout_seconds, settings.ceilings.lifetime_seconds) = (600, Some(1000));
        let (folder, service) = service_with(settings);
        assert_eq!(service.idle_timeout(), 600, "the default is no exception");
        let long = SessionConfig { idle_timeout_seconds: Some(86_400), ..SessionConfig::default() };
        let id = recovered(&service, &Engine::default(), long, |row| row.last_active_at -= 601_000).await;
        let row = service.0.store.session(&id).await.unwrap().unwrap();
        assert_eq!(row.expires_at, Some(row.created_at + 1_000_000));
        let entry = service.0.registry.find(&id).unwrap();
        let reason = Reaper::new(service.clone()).end_reason(&row, &entry, &SessionState::Idle, now_ms()).await;
        assert_eq!(reason.as_deref(), Some("it was idle for 600 s (idle_timeout_seconds)"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn hanging_sandboxes_delay_no_other_session() {
        let (folder, service) = service();
        let engine = Engine::default();
        let add_ended_session = async |hangs: bool| {
            let record = SandboxRecord::in_name_only();
            let id = record.id.as_session().clone();
            if hangs {
                engine.hangs.lock().unwrap().insert(id.clone());
            }
            let row = new_row(&id, &"ann".into(), kernels::find("python").unwrap(), &NewSession::default());
            service.0.store.insert_session(row).await.unwrap();
            let (feed, journal) = service.open_journal(&id, "python", None);
            let handle = session::end_stored(Stored::default(), true, "it was enough", journal).await;
            let sandbox = SandboxInstance::new(Arc::new(engine.clone()), record, service.0.manager.gateway(), None);
            let entry = SessionEntry::new("ann".into(), handle, feed, None, Some(sandbox));
            service.0.registry.insert(id.clone(), Arc::new(entry));
            id
        };
        let is_reaped = |id: &SessionId| !service.0.registry.find(id).unwrap().has_sandbox();
        let until = async |done: &dyn Fn() -> bool| {
            let waiting = async {
                while !done() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
        };
        let mut hanging = Vec::new();
        for _ in 0..CONCURRENCY + 1 {
            hanging.push(add_ended_session(true).await);
        }
        let reaping = tokio::spawn({
            let reaper = Reaper::new(service.clone());
            async move { reaper.run().await }
        });
        until(&|| hanging.iter().all(|id| engine.destroyed.lock().unwrap().contains(id))).await;
        for _ in 0..2 {
            let id = add_ended_session(false).await;
            until(&|| is_reaped(&id)).await;
        }
        assert_eq!(engine.destroyed.lock().unwrap().len(), hanging.len() + 2, "each sandbox is destroyed once");
        assert!(!hanging.iter().any(is_reaped));
        // The same holds for the removal backlog.
        let (late, last) = (add_ended_session(true).await, add_ended_session(false).await);
        for id in [late, last.clone()] {
            let sandbox = service.0.registry.remove(&id).unwrap().sandbox();
            service.0.removal_backlog.add(id, Leftover::new(sandbox, None));
        }
        until(&|| !service.0.removal_backlog.ids().contains(&last)).await;
        reaping.abort();
        std::fs::remove_dir_all(folder).unwrap();
    }
}

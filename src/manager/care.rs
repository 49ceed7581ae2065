//! What is done for kept sessions while nobody asks: they end when their time is up, their sandboxes go, what ended long ago is
//! forgotten, the events of finished text are merged, the journal shrinks after deletions, and the data stays within its limit.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;

use super::compaction;
use super::keeper::{Keeper, Kept, spec_of};
use super::room::{self, Room};
use crate::ids::SessionId;
use crate::memory;
use crate::session::SessionState;
use crate::store::{Compactable, SessionRow, StoreError, now_ms, seconds_in_ms};

/// Between two looks for sessions whose time is up.
const CULL_EVERY: Duration = Duration::from_secs(1);
/// Sessions that are looked at at once; one whose sandbox takes its time does not count for longer than this.
const AT_ONCE: (usize, Duration) = (32, Duration::from_secs(1));
/// Why the session of a notebook run ends.
const RUN_ENDED: &str = "its notebook has been run";
/// Between two looks for what can be merged, and at what all of it takes.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Cells that are found at once to be merged.
const CELLS: usize = 64;
/// Events, and bytes of them, that are merged in one commit: nobody's cell waits longer than for that.
const PAGE: (usize, usize) = (2_000, 4 << 20);

/// Rounds of work on sessions. On each there is one at a time, however long it takes: it is left out of the rounds meanwhile, and
/// holds up none of the others.
#[derive(Default)]
struct Rounds<'a> {
    busy: HashSet<SessionId>,
    work: FuturesUnordered<BoxFuture<'a, SessionId>>,
}

impl<'a> Rounds<'a> {
    fn begin(&mut self, id: SessionId, work: impl Future<Output = ()> + Send + 'a) {
        if self.busy.insert(id.clone()) {
            self.work.push(Box::pin(async move {
                work.await;
                id
            }));
        }
    }

    async fn go_on_for(&mut self, time: Duration) {
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

/// Works in one of the places; work that lasts gives its place away.
async fn in_its_place(places: &Semaphore, work: impl Future<Output = ()>) {
    let place = places.acquire().await;
    tokio::pin!(work);
    if tokio::time::timeout(AT_ONCE.1, work.as_mut()).await.is_err() {
        drop(place);
        work.await;
    }
}

impl Keeper {
    /// Looks after the sessions. Runs for ever.
    pub async fn look_after(&self) {
        tokio::join!(self.cull(), self.clear_leftovers(), self.tidy());
    }

    /// Ends sessions whose time is up, buries those that have ended, and forgets those that ended long ago.
    async fn cull(&self) {
        let places = Semaphore::new(AT_ONCE.0);
        let mut rounds = Rounds::default();
        loop {
            rounds.go_on_for(CULL_EVERY).await;
            match self.0.store.sessions(None).await {
                Ok(rows) => rows.into_iter().for_each(|row| {
                    rounds.begin(row.id.clone(), in_its_place(&places, async move { self.look_at(&row).await }));
                }),
                Err(error) => tracing::error!(%error, "cannot look after sessions"),
            }
        }
    }

    /// Tries again to remove what could not be removed.
    async fn clear_leftovers(&self) {
        let places = Semaphore::new(AT_ONCE.0);
        let mut rounds = Rounds::default();
        loop {
            rounds.go_on_for(CULL_EVERY).await;
            for id in self.leftovers() {
                rounds.begin(id.clone(), in_its_place(&places, async move { self.remove_leftover(&id).await }));
            }
        }
    }

    async fn look_at(&self, row: &SessionRow) {
        let Ok(kept) = self.kept(&row.id, None) else { return };
        let now = now_ms();
        let state = kept.handle.state();
        if matches!(state, SessionState::Gone { .. }) {
            self.bury(&row.id).await;
            if now.saturating_sub(row.last_active_at) > seconds_in_ms(self.0.settings.keep_ended_seconds) {
                self.forget_ended(&row.id).await;
            }
            return;
        }
        if self.is_due(row, &kept, &state, now).await.is_none() {
            return;
        }
        // The row was read before we knew what the session does now: a cell may have ended since, or its owner have given it more time.
        // Read after that, it tells of it.
        let Ok(Some(row)) = self.0.store.session(&row.id).await else { return };
        if let Some(why) = self.is_due(&row, &kept, &state, now).await {
            self.retire(&row.id, &why).await;
        }
    }

    /// Why it is time that a session ends, by its row and its state.
    async fn is_due(&self, row: &SessionRow, kept: &Kept, state: &SessionState, now: i64) -> Option<String> {
        let spec = spec_of(row);
        let last_active = row.last_active_at.max(kept.last_used.load(Ordering::Relaxed));
        let idle_for = spec.idle_timeout_seconds.unwrap_or(self.0.settings.idle_timeout_seconds);
        let is_idle = *state == SessionState::Idle;
        if spec.run.is_some() && is_idle && self.nothing_waits(&row.id).await {
            Some(RUN_ENDED.to_owned())
        } else if row.expires_at.is_some_and(|at| at <= now) {
            Some("its time was up (ttl_seconds)".to_owned())
        } else if is_idle && now.saturating_sub(last_active) > seconds_in_ms(idle_for) {
            Some(format!("nobody used it for {idle_for} s (idle_timeout_seconds)"))
        } else {
            None
        }
    }

    async fn nothing_waits(&self, id: &SessionId) -> bool {
        self.0.store.count_cells(id).await.is_ok_and(|(_, queued)| queued == 0)
    }

    async fn forget_ended(&self, id: &SessionId) {
        if let Err(error) = self.delete(id, None).await {
            tracing::warn!(session = %id, %error, "cannot remove an old session");
        }
    }

    /// Ends a session and keeps what it has said.
    async fn retire(&self, id: &SessionId, why: &str) {
        let Ok(kept) = self.kept(id, None) else { return };
        tracing::info!(session = %id, why, "ending a session");
        let _ = kept.handle.end(why).await;
        self.bury(id).await;
    }

    /// Removes the sandbox of a session that is over.
    pub(super) async fn bury(&self, id: &SessionId) {
        let Ok(kept) = self.kept(id, None) else { return };
        let Some((sandbox, record)) = kept.sandbox else { return };
        let _removing = kept.removing.lock().await;
        match sandbox.destroy(&record).await {
            Ok(()) => self.sessions(|sessions| {
                if let Some(kept) = sessions.get_mut(id) {
                    kept.sandbox = None;
                }
            }),
            Err(error) => tracing::warn!(session = %id, %error, "cannot remove an ended session's sandbox; trying again"),
        }
    }

    /// Merges what can be merged, and keeps the data within its limit.
    async fn tidy(&self) {
        let pause = TIDY_EVERY.min(Duration::from_secs(self.0.settings.compact_after_seconds.max(1)));
        loop {
            tokio::time::sleep(pause).await;
            if let Err(error) = self.compact().await {
                tracing::warn!(%error, "cannot merge the events of finished text");
            }
            if let Err(error) = self.give_space_back().await {
                tracing::warn!(%error, "cannot make the journal smaller");
            }
            // After a rush of readers or a flood of output.
            memory::give_back();
            if let Err(error) = self.keep_within_limit().await {
                tracing::warn!(%error, "cannot tell how much the data takes");
            }
        }
    }

    async fn give_space_back(&self) -> Result<(), StoreError> {
        while self.0.store.give_back().await? {}
        Ok(())
    }

    async fn compact(&self) -> Result<(), StoreError> {
        let before = now_ms().saturating_sub(seconds_in_ms(self.0.settings.compact_after_seconds));
        for mut cell in self.0.store.compactable(before, CELLS).await? {
            while cell.from <= cell.to {
                self.compact_page(&mut cell).await?;
            }
        }
        Ok(())
    }

    async fn compact_page(&self, cell: &mut Compactable) -> Result<(), StoreError> {
        let rows = self.0.store.events_to_compact(cell, PAGE.0, PAGE.1).await?;
        let read_all = rows.last().is_none_or(|last| last.seq >= cell.to);
        let done = if read_all { cell.to } else { rows.last().map_or(cell.to, |last| last.seq) };
        self.0.store.merge_events(cell, compaction::merge(&rows), done).await?;
        cell.from = done.next();
        Ok(())
    }

    /// Over the limit, the sessions that ended first are forgotten first. Where that is not enough, nothing new is begun for those who
    /// have the most.
    async fn keep_within_limit(&self) -> Result<(), StoreError> {
        let limit = self.0.settings.max_data_mb.saturating_mul(1 << 20);
        let mut bytes = self.0.store.bytes().await?;
        // It looks at all events: no more often than something has changed.
        let mut by_principal = None;
        if bytes > limit {
            let mut ended = self.0.store.sessions(None).await?;
            ended.retain(|row| row.state == "gone");
            let shares = self.0.store.bytes_by_principal().await?;
            let share = room::share(limit, &shares);
            // What one has filled is not taken from the others: who has more than a share forgets first.
            let is_modest = |row: &SessionRow| shares.get(&row.principal).is_none_or(|bytes| *bytes <= share);
            ended.sort_by_key(|row| (is_modest(row), row.last_active_at));
            by_principal = ended.is_empty().then_some(shares);
            for row in ended {
                tracing::info!(session = %row.id, "forgetting an ended session: the data is over its limit (max-data-mb)");
                self.forget_ended(&row.id).await;
                bytes = self.0.store.bytes().await?;
                if bytes <= limit {
                    break;
                }
            }
        }
        let room = match bytes > limit {
            true => {
                let by_principal = match by_principal {
                    Some(known) => known,
                    None => self.0.store.bytes_by_principal().await?,
                };
                Room::over(limit, bytes, by_principal)
            }
            false => Room::Enough,
        };
        let before = std::mem::replace(&mut *self.0.room.lock().unwrap_or_else(PoisonError::into_inner), room.clone());
        if before != room {
            tracing::warn!(megabytes = bytes >> 20, ?room, "the data's limit (max-data-mb)");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use tokio::net::UnixStream;

    use super::*;
    use crate::config::Paths;
    use crate::kernels;
    use crate::manager::keeper::row_of;
    use crate::manager::{KeeperSettings, NewSession};
    use crate::policy::{Isolation, IsolationLevel};
    use crate::sandbox::{
        ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats,
    };
    use crate::session::{self, Stored};
    use crate::store::Store;

    /// Sandboxes of which some cannot be removed, for the engine never answers.
    #[derive(Clone, Default)]
    struct Engine {
        hangs: Arc<Mutex<HashSet<SessionId>>>,
        asked: Arc<Mutex<Vec<SessionId>>>,
    }

    #[async_trait]
    impl Sandbox for Engine {
        fn kind(&self) -> SandboxKind {
            SandboxKind::Process
        }
        async fn create(&self, _: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
            unreachable!()
        }
        /// Nobody answers.
        async fn connect(&self, _: &SandboxRecord) -> Result<UnixStream, SandboxError> {
            std::future::pending().await
        }
        async fn inspect(&self, _: &SandboxRecord) -> Result<SandboxState, SandboxError> {
            unreachable!()
        }
        async fn stats(&self, _: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
            unreachable!()
        }
        async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
            unreachable!()
        }
        async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
            self.asked.lock().unwrap().push(record.session.clone());
            if self.hangs.lock().unwrap().contains(&record.session) {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    }

    fn record_of_nothing() -> SandboxRecord {
        SandboxRecord {
            session: SessionId::random(),
            kind: SandboxKind::Process,
            kernel: "python".to_owned(),
            socket: "/nowhere".into(),
            isolation: Isolation { level: IsolationLevel::Process, enforced: Vec::new(), not_enforced: Vec::new() },
            owner: ProcessStamp::own(),
            keep: true,
            agent_binary: "/nowhere".into(),
            agent: None,
            controllers: None,
            container: None,
        }
    }

    fn keeper() -> (std::path::PathBuf, Keeper) {
        let folder = std::env::temp_dir().join(format!("cellkeep-care-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let paths = Paths::new(&folder);
        let keeper = Keeper::new(&paths, Store::open(&paths.journal()).unwrap(), KeeperSettings::default());
        (folder, keeper)
    }

    /// A round reads all rows at once, and comes to each some time later.
    #[tokio::test]
    async fn a_session_that_was_given_more_time_meanwhile_goes_on() {
        let (folder, keeper) = keeper();
        let record = record_of_nothing();
        let id = record.session.clone();
        let mut row = row_of(&id, "ann", kernels::find("python").unwrap(), &NewSession::default());
        row.expires_at = Some(now_ms() - 1);
        keeper.0.store.insert_session(row).await.unwrap();
        let spec = spec_of(&keeper.row_as_stored(&id).await);
        let kept = keeper.start("ann", &spec, (Arc::new(Engine::default()), record), None);
        let handle = kept.handle.clone();
        keeper.sessions(|sessions| sessions.insert(id.clone(), kept));
        let old = keeper.row_as_stored(&id).await;
        let later = now_ms() + 60_000;
        keeper.change(&id, Some("ann"), move |facts| facts.expires_at = Some(later)).await.unwrap();
        keeper.look_at(&old).await;
        assert!(!matches!(handle.state(), SessionState::Gone { .. }), "{:?}", handle.state());
        keeper.change(&id, Some("ann"), |facts| facts.expires_at = Some(1)).await.unwrap();
        keeper.look_at(&old).await;
        let SessionState::Gone { why } = handle.state() else { panic!("{:?}", handle.state()) };
        assert!(why.contains("ttl_seconds"), "{why}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    impl Keeper {
        async fn row_as_stored(&self, id: &SessionId) -> SessionRow {
            self.0.store.session(id).await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn sandboxes_that_hang_delay_nobody_else() {
        let (folder, keeper) = keeper();
        let engine = Engine::default();
        // Sessions that have ended, and whose sandboxes are to go.
        let add = async |hangs: bool| {
            let record = record_of_nothing();
            let id = record.session.clone();
            if hangs {
                engine.hangs.lock().unwrap().insert(id.clone());
            }
            let row = row_of(&id, "ann", kernels::find("python").unwrap(), &NewSession::default());
            keeper.0.store.insert_session(row).await.unwrap();
            let (live, journal) = keeper.journal(&id, "python", None);
            let handle = session::end_stored(Stored::default(), true, "it was enough", journal).await;
            let sandbox: Arc<dyn Sandbox> = Arc::new(engine.clone());
            let kept = Kept {
                principal: "ann".to_owned(),
                handle,
                live,
                last_used: Arc::default(),
                cell_timeout: Arc::default(),
                removing: Arc::default(),
                sandbox: Some((sandbox, record)),
            };
            keeper.sessions(|sessions| sessions.insert(id.clone(), kept));
            id
        };
        let buried = |id: &SessionId| keeper.kept(id, None).unwrap().sandbox.is_none();
        let until = async |done: &dyn Fn() -> bool| {
            let waiting = async {
                while !done() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
        };
        let mut hung = Vec::new();
        for _ in 0..AT_ONCE.0 + 1 {
            hung.push(add(true).await);
        }
        let care = tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.look_after().await }
        });
        until(&|| hung.iter().all(|id| engine.asked.lock().unwrap().contains(id))).await;
        for _ in 0..2 {
            let id = add(false).await;
            until(&|| buried(&id)).await;
        }
        assert_eq!(engine.asked.lock().unwrap().len(), hung.len() + 2, "each was asked for once");
        assert!(!hung.iter().any(buried));
        // Those whose rows are to go, too.
        let (late, last) = (add(true).await, add(false).await);
        for id in [late, last.clone()] {
            let found = keeper.sessions(|sessions| sessions.remove(&id)).unwrap().sandbox;
            keeper.0.leftovers.lock().unwrap().insert(id, found);
        }
        until(&|| !keeper.0.leftovers.lock().unwrap().contains_key(&last)).await;
        care.abort();
        std::fs::remove_dir_all(folder).unwrap();
    }
}

//! What is done for kept sessions while nobody asks: they end when their time is up, their sandboxes go, what ended long ago is
//! forgotten, the events of finished text are merged, and the data stays within its limit.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};

use super::compaction;
use super::keeper::{Keeper, spec_of};
use super::room::{self, Room};
use crate::ids::SessionId;
use crate::memory;
use crate::session::SessionState;
use crate::store::{Compactable, SessionRow, StoreError, now_ms, seconds_in_ms};

/// Between two looks for sessions whose time is up.
const CULL_EVERY: Duration = Duration::from_secs(1);
/// Sessions that are looked at at once.
const AT_ONCE: usize = 32;
/// Why the session of a notebook run ends.
const RUN_ENDED: &str = "its notebook has been run";
/// Between two looks for what can be merged, and at what all of it takes.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Cells that are found at once to be merged.
const CELLS: usize = 64;
/// Events, and bytes of them, that are merged in one commit: nobody's cell waits longer than for that.
const PAGE: (usize, usize) = (2_000, 4 << 20);

impl Keeper {
    /// Looks after the sessions. Runs for ever.
    pub async fn look_after(&self) {
        tokio::join!(self.cull(), self.clear_leftovers(), self.tidy());
    }

    /// Ends sessions whose time is up, buries those that have ended, and forgets those that ended long ago.
    async fn cull(&self) {
        loop {
            tokio::time::sleep(CULL_EVERY).await;
            match self.0.store.sessions(None).await {
                // One whose engine takes its time holds up nobody else's end.
                Ok(rows) => stream::iter(&rows).for_each_concurrent(AT_ONCE, |row| self.look_at(row)).await,
                Err(error) => tracing::error!(%error, "cannot look after sessions"),
            }
        }
    }

    /// Tries again to remove what could not be removed.
    async fn clear_leftovers(&self) {
        loop {
            tokio::time::sleep(CULL_EVERY).await;
            self.remove_leftovers().await;
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
        let spec = spec_of(row);
        let last_active = row.last_active_at.max(kept.last_used.load(Ordering::Relaxed));
        let idle_for = spec.idle_timeout_seconds.unwrap_or(self.0.settings.idle_timeout_seconds);
        if spec.run.is_some() && state == SessionState::Idle && self.nothing_waits(&row.id).await {
            self.retire(&row.id, RUN_ENDED).await;
        } else if row.expires_at.is_some_and(|at| at <= now) && self.is_still_due(row).await {
            self.retire(&row.id, "its time was up (ttl_seconds)").await;
        } else if state == SessionState::Idle && now.saturating_sub(last_active) > seconds_in_ms(idle_for) {
            self.retire(&row.id, &format!("nobody used it for {idle_for} s (idle_timeout_seconds)")).await;
        }
    }

    /// Whether nobody has given it more time since it was looked at.
    async fn is_still_due(&self, row: &SessionRow) -> bool {
        self.0.store.session(&row.id).await.is_ok_and(|now| now.is_some_and(|now| now.expires_at == row.expires_at))
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
            // After a rush of readers or a flood of output.
            memory::give_back();
            if let Err(error) = self.keep_within_limit().await {
                tracing::warn!(%error, "cannot tell how much the data takes");
            }
        }
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
        if bytes > limit {
            let mut ended = self.0.store.sessions(None).await?;
            ended.retain(|row| row.state == "gone");
            let by_principal = self.0.store.bytes_by_principal().await?;
            let share = room::share(limit, &by_principal);
            // What one has filled is not taken from the others: who has more than a share forgets first.
            let is_modest = |row: &SessionRow| by_principal.get(&row.principal).is_none_or(|bytes| *bytes <= share);
            ended.sort_by_key(|row| (is_modest(row), row.last_active_at));
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
            true => Room::over(limit, bytes, self.0.store.bytes_by_principal().await?),
            false => Room::Enough,
        };
        let before = std::mem::replace(&mut *self.0.room.lock().unwrap_or_else(PoisonError::into_inner), room.clone());
        if before != room {
            tracing::warn!(megabytes = bytes >> 20, ?room, "the data's limit (max-data-mb)");
        }
        Ok(())
    }
}

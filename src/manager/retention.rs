//! Keeps the stored data small: merges the events of finished text, shrinks the journal after deletions, deletes ended
//! sessions when the data is above its limit, and keeps the state of the quota.

use std::collections::HashMap;
use std::time::Duration;

use super::compaction;
use super::quota::{QuotaState, fair_share};
use super::service::SessionService;
use crate::ids::{Access, PrincipalId, SessionPhase};
use crate::memory;
use crate::store::{Compactable, SessionRow, StoreError, now_ms, seconds_in_ms};

/// The time between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);
/// The number of cells that are looked up at once for compaction.
const CELLS_PER_LOOKUP: usize = 64;
/// Events, and bytes of them, that are merged in one commit. It bounds how long the commit of a cell waits for this one.
const MAX_PAGE_EVENTS: usize = 2_000;
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Enforces the limits of the stored data.
pub struct Retention {
    service: SessionService,
}

impl Retention {
    pub fn new(service: SessionService) -> Self {
        Self { service }
    }

    /// Runs for ever.
    pub async fn run(&self) {
        let compact_after = Duration::from_secs(self.service.0.settings.compact_after_seconds.max(1));
        let interval = ROUND_INTERVAL.min(compact_after);
        loop {
            tokio::time::sleep(interval).await;
            if let Err(error) = self.compact().await {
                tracing::warn!(%error, "cannot merge the events of finished text");
            }
            if let Err(error) = self.shrink_journal().await {
                tracing::warn!(%error, "cannot shrink the journal");
            }
            // Many readers or much output leave free memory behind.
            memory::release_free_memory();
            if let Err(error) = self.enforce_limit().await {
                tracing::warn!(%error, "cannot measure the data");
            }
        }
    }

    async fn shrink_journal(&self) -> Result<(), StoreError> {
        while self.service.0.store.release_free_pages().await? {}
        Ok(())
    }

    async fn compact(&self) -> Result<(), StoreError> {
        let before = now_ms().saturating_sub(seconds_in_ms(self.service.0.settings.compact_after_seconds));
        for mut cell in self.service.0.store.compactable(before, CELLS_PER_LOOKUP).await? {
            while cell.from <= cell.to {
                self.compact_page(&mut cell).await?;
            }
        }
        Ok(())
    }

    async fn compact_page(&self, cell: &mut Compactable) -> Result<(), StoreError> {
        let store = &self.service.0.store;
        let rows = store.events_to_compact(cell, MAX_PAGE_EVENTS, MAX_PAGE_BYTES).await?;
        let is_last_page = rows.last().is_none_or(|last| last.seq >= cell.to);
        let done = if is_last_page { cell.to } else { rows.last().map_or(cell.to, |last| last.seq) };
        store.merge_events(cell, compaction::merge(&rows), done).await?;
        cell.from = done.next();
        Ok(())
    }

    /// Deletes ended sessions while the data is above its limit. If that does not suffice, the quota refuses new work.
    async fn enforce_limit(&self) -> Result<(), StoreError> {
        let store = &self.service.0.store;
        let limit = self.service.0.quota.limit_bytes();
        let mut bytes = store.bytes().await?;
        // Measuring by principal reads all events, so a known result is used as long as nothing was deleted.
        let mut by_principal = None;
        if bytes > limit {
            let usage = store.bytes_by_principal().await?;
            let ended = self.ended_sessions(limit, &usage).await?;
            by_principal = ended.is_empty().then_some(usage);
            for row in ended {
                tracing::info!(session = %row.id, "deleting an ended session: the data is above its limit (max-data-mb)");
                self.service.delete_ended(&row.id).await;
                bytes = store.bytes().await?;
                if bytes <= limit {
                    break;
                }
            }
        }
        let state = if bytes > limit {
            let by_principal = match by_principal {
                Some(usage) => usage,
                None => store.bytes_by_principal().await?,
            };
            QuotaState::over_limit(limit, bytes, by_principal)
        } else {
            QuotaState::Within
        };
        if self.service.0.quota.set(state.clone()) {
            tracing::warn!(megabytes = bytes >> 20, ?state, "the state of the data limit has changed (max-data-mb)");
        }
        Ok(())
    }

    /// Ended sessions in the order of their deletion: those of principals above their share first, then by the time of their
    /// end.
    async fn ended_sessions(&self, limit: u64, usage: &HashMap<PrincipalId, u64>) -> Result<Vec<SessionRow>, StoreError> {
        let mut ended = self.service.0.store.sessions(&Access::All).await?;
        ended.retain(|row| row.phase == SessionPhase::Gone);
        let share = fair_share(limit, usage);
        let is_within_share = |row: &SessionRow| usage.get(&row.principal).is_none_or(|bytes| *bytes <= share);
        ended.sort_by_key(|row| (is_within_share(row), row.last_active_at));
        Ok(ended)
    }
}

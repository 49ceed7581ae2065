//! Keeps the stored data small: merges the events of finished text, shrinks the journal after deletions, deletes ended
//! sessions when the data is above its limit, and keeps the state of the quota.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};

use super::compaction;
use super::quota::{DataUse, Holding, QuotaState};
use super::registry::SessionEntry;
use super::service::SessionService;
use crate::allocator;
use crate::ids::{PrincipalId, SessionId, SessionPhase};
use crate::store::{Compactable, SessionBytes, StoreError, now_ms, seconds_in_ms};

/// The time between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);
/// The number of cells that are looked up at once for compaction.
const CELLS_PER_LOOKUP: usize = 64;
/// Events, and bytes of them, that are merged in one commit. It bounds how long the commit of a cell waits for this one.
const MAX_PAGE_EVENTS: usize = 2_000;
const MAX_PAGE_BYTES: usize = 4 << 20;

/// How long one deletion or notice may take before the next one: a sandbox or a session that hangs must not delay the quota.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// The number of sessions that are given a notice at once.
const CONCURRENT_NOTICES: usize = 32;

/// The notice in the events of a session that is deleted to make room.
const EVICTED: &str = "this session is deleted, because the data of its owner exceeds its share of the server";

/// The notice in the events of the living sessions of the same owner.
fn evicted_notice(count: usize) -> String {
    let which = if count == 1 { "an ended session".to_owned() } else { format!("{count} ended sessions") };
    let were = if count == 1 { "was" } else { "were" };
    format!("{which} of the same owner {were} deleted, because the owner's data exceeds its share of the server")
}

/// The sessions that have an owner. Those in the phase `gone` have ended.
fn holdings(sessions: Vec<SessionBytes>) -> Vec<Holding> {
    let holding = |SessionBytes { session, principal, phase, last_active_at, bytes }| Holding {
        session,
        principal,
        bytes,
        ended_at: (phase == SessionPhase::Gone).then_some(last_active_at),
    };
    sessions.into_iter().map(holding).collect()
}

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
            allocator::release_free_memory();
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

    /// Deletes ended sessions of principals that use more than they may. If that does not suffice, the quota refuses their new
    /// work.
    async fn enforce_limit(&self) -> Result<(), StoreError> {
        let service = &self.service.0;
        let limit = service.quota.limit_bytes();
        let limit_each = service.settings.ceilings.principal.data_mb.map(|megabytes| megabytes.saturating_mul(1 << 20));
        let mut bytes = service.store.bytes().await?;
        let mut state = QuotaState::Within;
        let mut evicted = HashMap::<PrincipalId, usize>::new();
        // Measuring each session reads the lengths of all events, so it is done only if somebody may be over.
        if bytes > limit.min(limit_each.unwrap_or(u64::MAX)) {
            let mut data = DataUse::new(limit, limit_each, bytes, holdings(service.store.session_bytes().await?));
            while let Some(next) = data.next_eviction() {
                match tokio::time::timeout(STEP_DEADLINE, self.service.evict(&next.session)).await {
                    Ok(Ok(true)) => data.count_freed(&next),
                    Ok(Ok(false)) | Err(_) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(session = %next.session, %error, "cannot delete an ended session to make room");
                        continue;
                    }
                }
                *evicted.entry(next.principal).or_default() += 1;
            }
            bytes = service.store.bytes().await?;
            state = data.state();
        }
        if service.quota.set(state.clone()) {
            tracing::warn!(megabytes = bytes >> 20, ?state, "the state of the data limit has changed (max-data-mb)");
        }
        self.send_notices(&evicted).await;
        Ok(())
    }

    /// Tells the living sessions of each principal how many of its ended ones were deleted in this round.
    async fn send_notices(&self, evicted: &HashMap<PrincipalId, usize>) {
        let living = self.service.0.registry.entries().into_iter();
        let told = living.filter_map(|entry| Some((evicted_notice(*evicted.get(&entry.principal)?), entry)));
        let tell = async |(notice, entry): (String, Arc<SessionEntry>)| {
            // An ended session takes no notices.
            let _ = tokio::time::timeout(STEP_DEADLINE, entry.handle.notify(notice)).await;
        };
        stream::iter(told).for_each_concurrent(CONCURRENT_NOTICES, tell).await;
    }
}

impl SessionService {
    /// Tells the owner of a session whose deletion to make room is committed: by a last event of the session, by a header of
    /// later answers, and in the logs.
    pub(super) async fn tell_of_eviction(&self, id: &SessionId, entry: &SessionEntry) {
        let principal = &entry.principal;
        tracing::warn!(session = %id, %principal, "deleting an ended session: its owner uses more than its share (max-data-mb)");
        self.record("session.evicted", id, Some(principal), "its owner uses more than its share");
        self.0.evictions.add(principal.clone(), id.clone());
        if let Err(error) = self.append_notice(id, entry, EVICTED).await {
            tracing::debug!(session = %id, %error, "cannot write the last event of a session");
        }
    }
}

//! The removal of sessions with all their data. The phase `deleting` is committed first; from then on nobody sees the
//! session. What cannot be removed at once is retried, by this server or by the next one.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};

use super::admission::Allotment;
use super::registry::SessionEntry;
use super::removal_backlog::Leftover;
use super::service::SessionService;
use super::session_config::ServiceError;
use crate::ids::{Access, SessionId, SessionPhase};
use crate::sandbox;
use crate::store::{Commit, SessionChange, StoreError};

/// The number of sessions that are removed at once when all of them are.
const CONCURRENT_REMOVALS: usize = 8;

/// Why a session is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RemovalCause {
    Request,
    /// Its owner uses more than its share of the data.
    Quota,
}

impl SessionService {
    /// Ends a session and removes all its data. A session whose removal has begun already needs nothing more. After an
    /// error, the session is unchanged.
    pub async fn delete(&self, id: &SessionId, access: &Access) -> Result<(), ServiceError> {
        self.delete_for(RemovalCause::Request, id, access).await.map(drop)
    }

    /// Deletes an ended session to make room, and tells its owner once that is certain. Returns whether the data is gone.
    pub(super) async fn evict(&self, id: &SessionId) -> Result<bool, ServiceError> {
        self.delete_for(RemovalCause::Quota, id, &Access::All).await
    }

    /// Returns whether all data is gone. If not, its removal is under way, or in the backlog.
    async fn delete_for(&self, cause: RemovalCause, id: &SessionId, access: &Access) -> Result<bool, ServiceError> {
        self.0.registry.find_visible(id, access)?;
        let Some(entry) = self.0.registry.remove(id) else { return Ok(false) };
        // In a task of its own: the client may disconnect meanwhile.
        let (service, id) = (self.clone(), id.clone());
        let removing = tokio::spawn(async move {
            if let Err(error) = service.commit_deletion(&id).await {
                service.0.registry.insert(id, entry);
                return Err(error);
            }
            if cause == RemovalCause::Quota {
                service.tell_of_eviction(&id, &entry).await;
            }
            Ok(service.end_and_remove(&id, Some(entry), None).await)
        });
        Ok(removing.await.map_err(|error| StoreError::Failed(error.to_string()))??)
    }

    /// Removes a session that is not in the registry: it failed to start, or it belongs to the pool. The allotment is kept
    /// until its sandbox is gone.
    pub(super) async fn remove_unlisted(&self, id: &SessionId, entry: Option<SessionEntry>, allotment: Option<Allotment>) {
        // The next server removes rows in the phases `creating` and of the pool as well, so a failure here is harmless.
        if let Err(error) = self.commit_deletion(id).await {
            tracing::warn!(session = %id, %error, "cannot commit the deletion of a session");
        }
        self.end_and_remove(id, entry.map(Arc::new), allotment).await;
    }

    /// Commits the phase `deleting`.
    pub(super) async fn commit_deletion(&self, id: &SessionId) -> Result<(), StoreError> {
        let session = SessionChange { phase: Some((SessionPhase::Deleting, None)), ..SessionChange::default() };
        self.0.store.commit(id, Commit { session, ..Commit::default() }).await
    }

    async fn end_and_remove(&self, id: &SessionId, entry: Option<Arc<SessionEntry>>, allotment: Option<Allotment>) -> bool {
        let Some(entry) = entry else { return self.remove_or_defer(id, Leftover::new(None, allotment)).await };
        entry.feed.close();
        // Fails if the session has ended before, which is fine.
        let _ = entry.handle.end("it was deleted").await;
        let _removal = entry.removal.lock().await;
        self.remove_or_defer(id, Leftover::new(entry.sandbox(), allotment.or_else(|| entry.take_allotment()))).await
    }

    /// Removes the sandbox and the rows of a session. On failure, the session goes into the removal backlog. Returns whether
    /// everything is removed.
    pub(super) async fn remove_or_defer(&self, id: &SessionId, leftover: Leftover) -> bool {
        let removed = self.try_remove(id, &leftover).await;
        if let Err(error) = &removed {
            tracing::warn!(session = %id, %error, "cannot remove all data of a session; retrying");
            self.0.removal_backlog.add(id.clone(), leftover);
        }
        removed.is_ok()
    }

    /// Retries the removal of a session in the backlog.
    pub(super) async fn retry_removal(&self, id: &SessionId) {
        let Some(leftover) = self.0.removal_backlog.get(id) else { return };
        match self.try_remove(id, &leftover).await {
            Ok(()) => self.0.removal_backlog.remove(id),
            Err(error) => tracing::debug!(session = %id, %error, "cannot remove the data of a session yet"),
        }
    }

    async fn try_remove(&self, id: &SessionId, leftover: &Leftover) -> Result<(), ServiceError> {
        match &leftover.sandbox {
            Some(sandbox) => {
                sandbox.destroy().await?;
                self.record("sandbox.removed", id, None, "ok");
            }
            None => sandbox::remove_unfinished(&self.0.paths, &id.clone().into())?,
        }
        leftover.release();
        self.remove_rows(id).await
    }

    /// Removes the rows of a session, and the artifacts that no other session uses.
    async fn remove_rows(&self, id: &SessionId) -> Result<(), ServiceError> {
        let _removing = self.0.blobs.removing().await;
        for hash in self.0.store.delete_session(id).await? {
            if let Err(error) = self.0.blobs.remove(&hash).await {
                tracing::warn!(%hash, %error, "cannot remove an artifact");
            }
        }
        Ok(())
    }

    /// Ends all sessions and removes all their data.
    pub async fn delete_all(&self) {
        let delete = async |id: SessionId| {
            if let Err(error) = self.delete(&id, &Access::All).await {
                tracing::warn!(session = %id, %error, "cannot remove a session; it lives on");
            }
        };
        stream::iter(self.0.registry.ids()).for_each_concurrent(CONCURRENT_REMOVALS, delete).await;
        self.delete_all_sandboxes().await;
    }

    /// Ends and removes the sessions of the pool.
    pub async fn drain_pool(&self) {
        for (id, entry) in self.pool().close().await {
            self.remove_unlisted(&id, Some(entry), None).await;
        }
    }
}

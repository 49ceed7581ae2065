//! The end of sessions, with all that is theirs. Once it is written down that one is to go, nobody sees it any more, and what
//! cannot be removed at once is tried again until it can: by this server, else by the next.

use std::collections::HashMap;
use std::sync::PoisonError;

use futures_util::stream::{self, StreamExt as _};

use super::keeper::{Found, Keeper, Kept};
use super::kept::KeeperError;
use crate::ids::SessionId;
use crate::sandbox;
use crate::store::{Commit, SessionChange, StoreError};

/// Sessions that are removed at once when all are.
const AT_ONCE: usize = 8;
/// The state of a session that is to be removed: a server that is killed over it goes on with it.
pub(super) const DELETING: &str = "deleting";

impl Keeper {
    /// Ends a session and removes all that is its own. Of one that is being removed, there is nothing left to do.
    ///
    /// # Errors
    /// [`KeeperError`]; then the session is as it was.
    pub async fn delete(&self, id: &SessionId, principal: Option<&str>) -> Result<(), KeeperError> {
        self.kept(id, principal)?;
        let Some(kept) = self.sessions(|sessions| sessions.remove(id)) else { return Ok(()) };
        // Whoever asked may go away meanwhile.
        let (keeper, id) = (self.clone(), id.clone());
        let removing = tokio::spawn(async move {
            if let Err(error) = keeper.condemn(&id).await {
                keeper.sessions(|sessions| sessions.insert(id, kept));
                return Err(error);
            }
            keeper.clear_away(&id, Some(kept)).await;
            Ok(())
        });
        Ok(removing.await.map_err(|error| StoreError::Failed(error.to_string()))??)
    }

    /// Removes a session that nobody sees: one that did not come up, or of the pool.
    pub(super) async fn remove(&self, id: &SessionId, kept: Option<Kept>) {
        // Its row tells the next server to remove it even so.
        if let Err(error) = self.condemn(id).await {
            tracing::warn!(session = %id, %error, "cannot write down that a session goes");
        }
        self.clear_away(id, kept).await;
    }

    /// Writes down that a session is to go.
    async fn condemn(&self, id: &SessionId) -> Result<(), StoreError> {
        let session = SessionChange { state: Some((DELETING.to_owned(), None)), ..SessionChange::default() };
        self.0.store.commit(id, Commit { session, ..Commit::default() }).await
    }

    async fn clear_away(&self, id: &SessionId, kept: Option<Kept>) {
        let Some(kept) = kept else { return self.remove_all_of(id, None).await };
        kept.live.close();
        // It may have ended before.
        let _ = kept.handle.end("it was deleted").await;
        let _removing = kept.removing.lock().await;
        self.remove_all_of(id, kept.sandbox).await;
    }

    /// Removes a session's sandbox and its rows; else notes that they are to be removed.
    pub(super) async fn remove_all_of(&self, id: &SessionId, sandbox: Option<Found>) {
        if let Err(error) = self.try_to_remove(id, sandbox.as_ref()).await {
            tracing::warn!(session = %id, %error, "cannot remove all that is a session's; trying again");
            self.with_leftovers(|leftovers| leftovers.insert(id.clone(), sandbox));
        }
    }

    /// Sessions of which something could not be removed.
    pub(super) fn leftovers(&self) -> Vec<SessionId> {
        self.with_leftovers(|leftovers| leftovers.keys().cloned().collect())
    }

    /// Tries once more to remove what could not be removed.
    pub(super) async fn remove_leftover(&self, id: &SessionId) {
        let Some(sandbox) = self.with_leftovers(|leftovers| leftovers.get(id).cloned()) else { return };
        match self.try_to_remove(id, sandbox.as_ref()).await {
            Ok(()) => drop(self.with_leftovers(|leftovers| leftovers.remove(id))),
            Err(error) => tracing::debug!(session = %id, %error, "cannot remove it yet"),
        }
    }

    fn with_leftovers<T>(&self, work: impl FnOnce(&mut HashMap<SessionId, Option<Found>>) -> T) -> T {
        work(&mut self.0.leftovers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn try_to_remove(&self, id: &SessionId, found: Option<&Found>) -> Result<(), KeeperError> {
        match found {
            Some((sandbox, record)) => sandbox.destroy(record).await?,
            None => sandbox::remove_unfinished(&self.0.paths, id)?,
        }
        self.forget(id).await
    }

    /// Removes what is written of a session.
    async fn forget(&self, id: &SessionId) -> Result<(), KeeperError> {
        let _removing = self.0.blobs.removing().await;
        for hash in self.0.store.delete_session(id).await? {
            if let Err(error) = self.0.blobs.remove(&hash).await {
                tracing::warn!(%hash, %error, "cannot remove an artifact");
            }
        }
        Ok(())
    }

    /// Ends all sessions and removes all that is theirs.
    pub async fn delete_all(&self) {
        let ids: Vec<SessionId> = self.sessions(|sessions| sessions.keys().cloned().collect());
        let delete = async |id: SessionId| {
            if let Err(error) = self.delete(&id, None).await {
                tracing::warn!(session = %id, %error, "cannot remove a session; it lives on");
            }
        };
        stream::iter(ids).for_each_concurrent(AT_ONCE, delete).await;
    }

    /// Ends the sessions of the pool, which nobody has.
    pub async fn drain_pool(&self) {
        for (id, kept) in self.pool().drain() {
            self.remove(&id, Some(kept)).await;
        }
    }
}

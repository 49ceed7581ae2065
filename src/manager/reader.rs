//! Reads sessions from the store: rows, cells, events, artifacts. It needs no session driver, so ended sessions are read the
//! same way.

use std::sync::Arc;

use super::changed_files::changed_files;
use super::event_feed::EventSubscription;
use super::journal::restore_cell;
use super::registry::SessionRegistry;
use super::session_config::ServiceError;
use crate::artifacts::Blobs;
use crate::ids::{Access, Seq, SessionId};
use crate::session::{Cell, FileChanges};
use crate::store::{EventKind, EventRow, OverByteLimit, SessionFilter, SessionPosition, SessionRow, Store, StoreError};

/// Read access to sessions. Clones share it.
#[derive(Clone)]
pub struct SessionReader {
    registry: Arc<SessionRegistry>,
    store: Store,
    blobs: Blobs,
}

impl SessionReader {
    pub(super) fn new(registry: Arc<SessionRegistry>, store: Store, blobs: Blobs) -> Self {
        Self { registry, store, blobs }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The artifacts.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Checks that the session exists and that the caller may see it.
    pub fn check_visible(&self, id: &SessionId, access: &Access) -> Result<(), ServiceError> {
        self.registry.find_visible(id, access).map(drop)
    }

    /// Subscribes to the events of a session after a sequence number.
    pub fn subscribe(&self, id: &SessionId, access: &Access, after: Seq) -> Result<EventSubscription, ServiceError> {
        let feed = self.registry.find_visible(id, access)?.feed.clone();
        Ok(EventSubscription::new(self.store.clone(), id.clone(), feed, after))
    }

    /// The events after a sequence number, if the cache holds all of them. Counts as a use of the session.
    pub fn cached_events_after(
        &self,
        id: &SessionId,
        access: &Access,
        after: Seq,
    ) -> Result<Option<Vec<Arc<EventRow>>>, ServiceError> {
        Ok(self.registry.find_and_touch(id, access)?.feed.cached_after(after))
    }

    pub async fn row(&self, id: &SessionId, access: &Access) -> Result<SessionRow, ServiceError> {
        self.check_visible(id, access)?;
        self.store.session(id).await?.ok_or_else(|| ServiceError::not_found(id))
    }

    /// A page of the visible sessions, oldest first, and the position of its last one if there are more. A session that is being
    /// created or deleted is not visible, so a page may have fewer than `limit` rows.
    pub async fn page(
        &self,
        access: &Access,
        filter: SessionFilter,
        after: Option<SessionPosition>,
        limit: usize,
    ) -> Result<(Vec<SessionRow>, Option<SessionPosition>), ServiceError> {
        let mut rows = self.store.sessions_page(access, filter, after, limit + 1).await?;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| has_more).map(|row| (row.created_at, row.id.to_string()));
        rows.retain(|row| self.registry.contains(&row.id));
        Ok((rows, next))
    }

    /// All cells in the order of the notebook.
    pub async fn cells(&self, id: &SessionId, access: &Access) -> Result<Vec<Cell>, ServiceError> {
        self.check_visible(id, access)?;
        Ok(self.store.cells(id).await?.into_iter().filter_map(restore_cell).collect())
    }

    /// The last cell in the order of the notebook.
    pub async fn last_cell(&self, id: &SessionId, access: &Access) -> Result<Option<Cell>, ServiceError> {
        self.check_visible(id, access)?;
        Ok(self.store.last_cell(id).await?.and_then(restore_cell))
    }

    pub async fn cell(&self, id: &SessionId, access: &Access, cell: &str) -> Result<Option<Cell>, ServiceError> {
        self.check_visible(id, access)?;
        Ok(self.store.cell(id, cell).await?.and_then(restore_cell))
    }

    /// The files that a cell's latest execution has changed.
    pub async fn changed_files(&self, id: &SessionId, cell: &Cell) -> Result<FileChanges, StoreError> {
        let (from, kind) = (cell.execution.first_seq, EventKind::FilesChanged);
        Ok(changed_files(&self.store.cell_events_of_kind(id, &cell.id, from, kind).await?))
    }

    /// One cell with the events of its latest execution, from one snapshot. Events above `max_bytes` are not read.
    pub async fn cell_and_events(
        &self,
        id: &SessionId,
        access: &Access,
        cell: &str,
        max_bytes: u64,
    ) -> Result<Option<(Cell, Result<Vec<EventRow>, OverByteLimit>)>, ServiceError> {
        self.check_visible(id, access)?;
        let stored = self.store.cell_and_events(id, cell, max_bytes).await?;
        Ok(stored.and_then(|(row, events)| Some((restore_cell(row)?, events))))
    }

    /// All cells in the order of the notebook, each with the events of its latest execution, from one snapshot.
    pub async fn cells_and_events(
        &self,
        id: &SessionId,
        access: &Access,
    ) -> Result<Vec<(Cell, Vec<EventRow>)>, ServiceError> {
        self.check_visible(id, access)?;
        let rows = self.store.cells_and_events(id).await?.into_iter();
        Ok(rows.filter_map(|(row, events)| Some((restore_cell(row)?, events))).collect())
    }

    /// The approximate size of all outputs of a session in bytes.
    pub async fn output_bytes(&self, id: &SessionId, access: &Access) -> Result<u64, ServiceError> {
        self.check_visible(id, access)?;
        Ok(self.store.output_bytes(id).await?)
    }
}

//! The removals that failed and must be retried.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::registry::SandboxInstance;
use crate::ids::SessionId;

/// Sessions that nobody sees any more and that could not be removed completely, with the sandboxes that are left.
#[derive(Default)]
pub(super) struct RemovalBacklog(Mutex<HashMap<SessionId, Option<Arc<SandboxInstance>>>>);

impl RemovalBacklog {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<SessionId, Option<Arc<SandboxInstance>>>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn add(&self, id: SessionId, sandbox: Option<Arc<SandboxInstance>>) {
        self.with(|backlog| backlog.insert(id, sandbox));
    }

    pub fn ids(&self) -> Vec<SessionId> {
        self.with(|backlog| backlog.keys().cloned().collect())
    }

    pub fn get(&self, id: &SessionId) -> Option<Option<Arc<SandboxInstance>>> {
        self.with(|backlog| backlog.get(id).cloned())
    }

    pub fn remove(&self, id: &SessionId) {
        self.with(|backlog| backlog.remove(id));
    }
}

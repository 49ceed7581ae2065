//! The removals that failed and must be retried.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::admission::Allotment;
use super::registry::SandboxInstance;
use crate::ids::SessionId;

/// What is left of a session that nobody sees any more. It counts for its principal until its sandbox is gone: otherwise,
/// sandboxes that cannot be removed would add up beyond every limit.
pub(super) struct Leftover {
    pub sandbox: Option<Arc<SandboxInstance>>,
    allotment: Mutex<Option<Allotment>>,
}

impl Leftover {
    pub fn new(sandbox: Option<Arc<SandboxInstance>>, allotment: Option<Allotment>) -> Self {
        Self { sandbox, allotment: Mutex::new(allotment) }
    }

    /// The session no longer counts for its principal.
    pub fn release(&self) {
        *self.allotment.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Sessions that could not be removed completely.
#[derive(Default)]
pub(super) struct RemovalBacklog(Mutex<HashMap<SessionId, Arc<Leftover>>>);

impl RemovalBacklog {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<SessionId, Arc<Leftover>>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn add(&self, id: SessionId, leftover: Leftover) {
        self.with(|backlog| backlog.insert(id, Arc::new(leftover)));
    }

    pub fn ids(&self) -> Vec<SessionId> {
        self.with(|backlog| backlog.keys().cloned().collect())
    }

    pub fn get(&self, id: &SessionId) -> Option<Arc<Leftover>> {
        self.with(|backlog| backlog.get(id).cloned())
    }

    pub fn remove(&self, id: &SessionId) {
        self.with(|backlog| backlog.remove(id));
    }
}

//! The sandboxes of this server that were created by themselves. Those of sessions are with their sessions.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::ids::{Access, PrincipalId, SandboxId};
use crate::manager::admission::Allotment;
use crate::manager::registry::SandboxInstance;
use crate::store::now_ms;

/// One sandbox. Several sessions can use it.
pub(in crate::manager) struct SandboxEntry {
    pub principal: PrincipalId,
    pub instance: SandboxInstance,
    /// The time of the last request, in milliseconds since 1970.
    last_used_ms: AtomicI64,
    /// It is being removed, and nobody sees it any more. The reaper retries what fails.
    is_ending: AtomicBool,
    /// Held while its properties are changed.
    pub changing: tokio::sync::Mutex<()>,
    /// Held while it is removed.
    pub removal: tokio::sync::Mutex<()>,
    /// What it counts for its principal.
    _allotment: Allotment,
    /// When its lifetime was last charged to its principal.
    charged_at: Mutex<Instant>,
}

impl SandboxEntry {
    pub fn new(principal: PrincipalId, instance: SandboxInstance, allotment: Allotment) -> Self {
        Self {
            principal,
            instance,
            last_used_ms: AtomicI64::new(now_ms()),
            is_ending: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
            removal: tokio::sync::Mutex::default(),
            _allotment: allotment,
            charged_at: Mutex::new(Instant::now()),
        }
    }

    /// Notes a use, so that the sandbox does not count as idle.
    pub fn touch(&self) {
        self.last_used_ms.store(now_ms(), Ordering::Relaxed);
    }

    pub fn last_used_ms(&self) -> i64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }

    pub fn set_ending(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// The time since this was asked for the last time, or since the sandbox was created.
    pub fn take_uncharged_time(&self) -> Duration {
        let mut charged_at = self.charged_at.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *charged_at, Instant::now()).elapsed()
    }
}

/// All of them by id. The guards of the map are never held across an await: methods return clones of the `Arc`s.
#[derive(Default)]
pub(in crate::manager) struct SandboxRegistry(DashMap<SandboxId, Arc<SandboxEntry>>);

impl SandboxRegistry {
    /// The sandbox, if the caller may see it.
    pub fn find_visible(&self, id: &SandboxId, access: &Access) -> Option<Arc<SandboxEntry>> {
        self.find(id).filter(|entry| access.includes(&entry.principal) && !entry.is_ending())
    }

    pub fn insert(&self, id: SandboxId, entry: Arc<SandboxEntry>) {
        self.0.insert(id, entry);
    }

    pub fn remove(&self, id: &SandboxId) {
        self.0.remove(id);
    }

    pub fn find(&self, id: &SandboxId) -> Option<Arc<SandboxEntry>> {
        self.0.get(id).map(|entry| entry.value().clone())
    }

    pub fn ids(&self) -> Vec<SandboxId> {
        self.0.iter().map(|entry| entry.key().clone()).collect()
    }
}

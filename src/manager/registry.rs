//! The sessions of this server in memory: living ones, and ended ones that can still be read.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use dashmap::DashMap;

use super::admission::Allotment;
use super::event_feed::EventFeed;
use super::sandboxes::ControlLink;
use super::session_config::ServiceError;
use crate::agent_protocol::{AnswerBody, Request};
use crate::egress::{Gateway, SandboxEgress, SandboxSecrets};
use crate::ids::{Access, PrincipalId, SessionId};
use crate::policy::NetworkPolicy;
use crate::sandbox::{Sandbox, SandboxError, SandboxRecord, SandboxState};
use crate::session::{SessionError, SessionHandle};
use crate::store::now_ms;

/// A sandbox with the engine that created it, as one session or its owner uses it. Clones share the link.
#[derive(Clone)]
pub(super) struct SandboxInstance {
    pub engine: Arc<dyn Sandbox>,
    pub record: SandboxRecord,
    /// The session that uses the sandbox without being the one that it was created for.
    guest: Option<SessionId>,
    control: ControlLink,
    pub egress: SandboxEgress,
}

impl SandboxInstance {
    pub fn new(
        engine: Arc<dyn Sandbox>,
        record: SandboxRecord,
        gateway: &Gateway,
        secrets: Option<Arc<SandboxSecrets>>,
    ) -> Self {
        let egress = SandboxEgress::new(gateway, engine.clone(), &record, secrets);
        Self { engine, record, guest: None, control: ControlLink::default(), egress }
    }

    /// The same sandbox as a session uses it that is one of several in it.
    pub fn for_guest(&self, session: &SessionId) -> Self {
        Self { guest: Some(session.clone()), ..self.clone() }
    }

    /// Whether it belongs to others than the session that uses it.
    pub fn is_shared(&self) -> bool {
        self.guest.is_some()
    }

    /// Sends a request to the sandbox itself.
    pub async fn ask(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        self.control.ask(&self.engine, &self.record, request, data).await
    }

    /// Ends the sandbox and removes what is left of it; for a guest, only its kernel. Idempotent.
    pub async fn destroy(&self) -> Result<(), SandboxError> {
        match &self.guest {
            None => {
                self.egress.stop();
                self.engine.destroy(&self.record).await
            }
            Some(session) => self.stop_kernel(session.clone()).await,
        }
    }

    async fn stop_kernel(&self, session: SessionId) -> Result<(), SandboxError> {
        if matches!(self.engine.inspect(&self.record).await, Ok(SandboxState::Ended { .. })) {
            return Ok(());
        }
        let stopped = self.ask(Request::StopKernel { session }, Bytes::new()).await;
        stopped.map(drop).map_err(|error| SandboxError::Engine {
            doing: "ending a kernel in its sandbox".to_owned(),
            reason: error.to_string(),
        })
    }
}

/// One session.
pub(super) struct SessionEntry {
    pub principal: PrincipalId,
    pub handle: SessionHandle,
    pub feed: Arc<EventFeed>,
    /// The time of the last request that the journal does not show (files, completions), in milliseconds since 1970.
    last_used_ms: AtomicI64,
    /// The default timeout of a cell in seconds. The row has it as well; reading the row would cost a store access per cell.
    cell_timeout: Mutex<Option<f64>>,
    /// Held while properties of the session are changed.
    pub changing: tokio::sync::Mutex<()>,
    /// Held while the sandbox is removed: a second removal waits, and then finds no sandbox.
    pub removal: tokio::sync::Mutex<()>,
    /// `None` once the session has ended and its sandbox is removed. The journal can still be read.
    sandbox: ArcSwapOption<SandboxInstance>,
    /// What the session counts for its principal while it lives.
    allotment: Mutex<Option<Allotment>>,
    /// When the lifetime of the session was last charged to its principal.
    charged_at: Mutex<Instant>,
}

impl SessionEntry {
    pub fn new(
        principal: PrincipalId,
        handle: SessionHandle,
        feed: Arc<EventFeed>,
        cell_timeout: Option<f64>,
        sandbox: Option<SandboxInstance>,
    ) -> Self {
        Self {
            principal,
            handle,
            feed,
            last_used_ms: AtomicI64::new(0),
            cell_timeout: Mutex::new(cell_timeout),
            changing: tokio::sync::Mutex::default(),
            removal: tokio::sync::Mutex::default(),
            sandbox: ArcSwapOption::from_pointee(sandbox),
            allotment: Mutex::default(),
            charged_at: Mutex::new(Instant::now()),
        }
    }

    /// The same session with another owner, for a session that leaves the pool.
    pub fn claimed_by(self, principal: PrincipalId, cell_timeout: Option<f64>) -> Self {
        let charged_at = Mutex::new(Instant::now());
        Self { principal, cell_timeout: Mutex::new(cell_timeout), charged_at, ..self }
    }

    /// Notes a use, so that the session does not count as idle.
    pub fn touch(&self) {
        self.last_used_ms.store(now_ms(), Ordering::Relaxed);
    }

    pub fn last_used_ms(&self) -> i64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    pub fn cell_timeout(&self) -> Option<f64> {
        *self.cell_timeout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_cell_timeout(&self, seconds: Option<f64>) {
        *self.cell_timeout.lock().unwrap_or_else(PoisonError::into_inner) = seconds;
    }

    pub fn sandbox(&self) -> Option<Arc<SandboxInstance>> {
        self.sandbox.load_full()
    }

    /// Sets the policy of the sandbox's requests, if there is a sandbox and it is the session's own.
    pub fn set_network(&self, policy: &NetworkPolicy) {
        if let Some(sandbox) = self.sandbox().filter(|sandbox| !sandbox.is_shared()) {
            sandbox.egress.set_policy(policy.clone(), Some(&self.principal));
        }
    }

    /// Waits until the policy of [`Self::set_network`] is in force.
    pub async fn settle_network(&self) {
        if let Some(sandbox) = self.sandbox() {
            sandbox.egress.settle().await;
        }
    }

    pub fn has_sandbox(&self) -> bool {
        self.sandbox.load().is_some()
    }

    pub fn clear_sandbox(&self) {
        self.sandbox.store(None);
        self.take_allotment();
    }

    /// Counts the session for its principal, until its sandbox is gone.
    pub fn hold(&self, allotment: Allotment) {
        *self.allotment.lock().unwrap_or_else(PoisonError::into_inner) = Some(allotment);
    }

    /// Takes over what the session counts for its principal.
    pub fn take_allotment(&self) -> Option<Allotment> {
        self.allotment.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The time since this was asked for the last time, or since the session was created.
    pub fn take_uncharged_time(&self) -> Duration {
        let mut charged_at = self.charged_at.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *charged_at, Instant::now()).elapsed()
    }
}

/// All sessions by id. The guards of the map are never held across an await: methods return clones of the `Arc`s.
#[derive(Default)]
pub struct SessionRegistry {
    sessions: DashMap<SessionId, Arc<SessionEntry>>,
}

impl SessionRegistry {
    pub(super) fn find(&self, id: &SessionId) -> Option<Arc<SessionEntry>> {
        self.sessions.get(id).map(|entry| entry.value().clone())
    }

    /// The session, if the caller may see it. This is the ownership check of all session requests.
    pub(super) fn find_visible(&self, id: &SessionId, access: &Access) -> Result<Arc<SessionEntry>, ServiceError> {
        let entry = self.find(id).filter(|entry| access.includes(&entry.principal));
        entry.ok_or_else(|| ServiceError::not_found(id))
    }

    /// The session like [`Self::find_visible`], noting that it is used.
    pub(super) fn find_and_touch(&self, id: &SessionId, access: &Access) -> Result<Arc<SessionEntry>, ServiceError> {
        let entry = self.find_visible(id, access)?;
        entry.touch();
        Ok(entry)
    }

    pub(super) fn insert(&self, id: SessionId, entry: Arc<SessionEntry>) {
        self.sessions.insert(id, entry);
    }

    pub(super) fn remove(&self, id: &SessionId) -> Option<Arc<SessionEntry>> {
        self.sessions.remove(id).map(|(_, entry)| entry)
    }

    pub(super) fn contains(&self, id: &SessionId) -> bool {
        self.sessions.contains_key(id)
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.sessions.iter().map(|entry| entry.key().clone()).collect()
    }

    pub(super) fn all(&self) -> Vec<(SessionId, Arc<SessionEntry>)> {
        self.sessions.iter().map(|entry| (entry.key().clone(), entry.value().clone())).collect()
    }

    pub(super) fn entries(&self) -> Vec<Arc<SessionEntry>> {
        self.sessions.iter().map(|entry| entry.value().clone()).collect()
    }
}

//! The warm pool: sessions whose kernels are ready before anybody asks for them. Claiming one changes a row, and starts
//! nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::registry::SessionEntry;
use super::service::SessionService;
use crate::ids::SessionId;
use crate::session::SessionState;

/// The owner of pooled sessions. No token has this name. A starting server removes pooled sessions of an earlier one and
/// creates new ones.
pub(super) const POOL_OWNER: &str = "";
/// The time between two attempts to start a kernel that failed to start.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// How long filling pauses while a client waits for a session of its own.
const YIELD_DELAY: Duration = Duration::from_millis(50);

/// A pooled session.
pub(super) type Pooled = (SessionId, SessionEntry);

/// Sessions ready for use, by kernel.
#[derive(Default)]
pub(super) struct Pool {
    ready: Mutex<HashMap<String, VecDeque<Pooled>>>,
    taken: Notify,
    /// Held while a session is created. Whether no more are: the server stops.
    is_closed: tokio::sync::Mutex<bool>,
}

impl Pool {
    fn with_ready<T>(&self, work: impl FnOnce(&mut HashMap<String, VecDeque<Pooled>>) -> T) -> T {
        work(&mut self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a session whose kernel is idle. The second value holds dead sessions that were found before it; the caller
    /// removes them.
    pub fn take(&self, kernel: &str) -> (Option<Pooled>, Vec<Pooled>) {
        let mut dead = Vec::new();
        let taken = self.with_ready(|ready| {
            let ready = ready.get_mut(kernel)?;
            while let Some(pooled) = ready.pop_front() {
                if pooled.1.handle.state() == SessionState::Idle {
                    return Some(pooled);
                }
                dead.push(pooled);
            }
            None
        });
        self.taken.notify_one();
        (taken, dead)
    }

    /// Adds a session, which is the first to be taken.
    pub fn put(&self, kernel: &str, pooled: Pooled) {
        self.with_ready(|ready| ready.entry(kernel.to_owned()).or_default().push_front(pooled));
    }

    /// The number of ready sessions by kernel.
    pub fn sizes(&self) -> HashMap<String, usize> {
        self.with_ready(|ready| ready.iter().map(|(kernel, sessions)| (kernel.clone(), sessions.len())).collect())
    }

    /// Takes all sessions, the one that is being created too, and keeps further ones from being created.
    pub async fn close(&self) -> Vec<Pooled> {
        *self.is_closed.lock().await = true;
        self.with_ready(|ready| ready.drain().flat_map(|(_, sessions)| sessions).collect())
    }
}

/// Keeps the pool filled, until it is closed. Requests of clients have priority. A kernel that failed to start is retried after
/// [`RETRY_DELAY`], and does not delay the other kernels.
pub(super) async fn fill(service: SessionService, wanted: Vec<(String, usize)>) {
    let mut failed: HashMap<&str, Instant> = HashMap::new();
    loop {
        let sizes = service.pool().sizes();
        let is_short = |kernel: &str, count: usize| sizes.get(kernel).copied().unwrap_or(0) < count;
        let is_backing_off = |kernel: &str| failed.get(kernel).is_some_and(|at| at.elapsed() < RETRY_DELAY);
        let next = wanted.iter().find(|(kernel, count)| is_short(kernel, *count) && !is_backing_off(kernel));
        let Some((kernel, _)) = next else {
            let taken = service.pool().taken.notified();
            // The timeout is for kernels whose back-off ends.
            let _ = tokio::time::timeout(RETRY_DELAY, taken).await;
            continue;
        };
        if service.has_pending_requests() {
            tokio::time::sleep(YIELD_DELAY).await;
            continue;
        }
        let is_closed = service.pool().is_closed.lock().await;
        if *is_closed {
            return;
        }
        match service.create_for_pool(kernel).await {
            Ok(pooled) => service.pool().put(kernel, pooled),
            Err(error) => {
                tracing::warn!(kernel, %error, "cannot fill the pool; retrying later");
                failed.insert(kernel, Instant::now());
            }
        }
    }
}

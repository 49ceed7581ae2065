//! The warm pool: sessions that are made ahead, kernel ready, and belong to nobody yet. Claiming one is a row changed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::keeper::{Keeper, Kept};
use super::kept::NewSession;
use crate::ids::SessionId;
use crate::session::SessionState;

/// Whose sessions those of the pool are. Nobody can have this name, and a server that is killed leaves none: the next makes new
/// ones.
pub(super) const NOBODY: &str = "";
/// Between two tries to make a session that could not be made.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// How long a session that somebody waits for goes before one for the pool.
const GIVE_WAY: Duration = Duration::from_millis(50);

/// A session of the pool.
pub(super) type Pooled = (SessionId, Kept);

/// Sessions ready for use, by their kernel.
#[derive(Default)]
pub(super) struct Pool {
    ready: Mutex<HashMap<String, VecDeque<Pooled>>>,
    taken: Notify,
}

impl Pool {
    fn ready<T>(&self, work: impl FnOnce(&mut HashMap<String, VecDeque<Pooled>>) -> T) -> T {
        work(&mut self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a session whose kernel lives, if there is one; and those that stood before it and do not live any more, which are to
    /// be removed.
    pub fn take(&self, kernel: &str) -> (Option<Pooled>, Vec<Pooled>) {
        let mut dead = Vec::new();
        let found = self.ready(|ready| {
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
        (found, dead)
    }

    /// Puts one in, the first to be taken.
    pub fn put(&self, kernel: &str, pooled: Pooled) {
        self.ready(|ready| ready.entry(kernel.to_owned()).or_default().push_front(pooled));
    }

    /// How many are ready, by kernel.
    pub fn sizes(&self) -> HashMap<String, usize> {
        self.ready(|ready| ready.iter().map(|(kernel, sessions)| (kernel.clone(), sessions.len())).collect())
    }

    /// All of them, taken out.
    pub fn drain(&self) -> Vec<Pooled> {
        self.ready(|ready| ready.drain().flat_map(|(_, sessions)| sessions).collect())
    }
}

/// Keeps the pool filled. Runs for ever; whoever waits for a session of their own goes first. A kernel that does not start is left
/// alone for a while, and keeps no other from being started.
pub(super) async fn fill(keeper: Keeper, wanted: Vec<(String, usize)>) {
    let mut failed: HashMap<&str, Instant> = HashMap::new();
    loop {
        let sizes = keeper.pool().sizes();
        let lacks = |kernel: &str, count: usize| sizes.get(kernel).copied().unwrap_or(0) < count;
        let rests = |kernel: &str| failed.get(kernel).is_some_and(|at| at.elapsed() < TRY_AGAIN);
        let next = wanted.iter().find(|(kernel, count)| lacks(kernel, *count) && !rests(kernel));
        let Some((kernel, _)) = next else {
            let taken = keeper.pool().taken.notified();
            // Now and then also without: for those that rest.
            let _ = tokio::time::timeout(TRY_AGAIN, taken).await;
            continue;
        };
        if keeper.somebody_waits() {
            tokio::time::sleep(GIVE_WAY).await;
            continue;
        }
        let new = NewSession { kernel: kernel.clone(), ..NewSession::default() };
        match keeper.make_for_pool(new).await {
            Ok(pooled) => keeper.pool().put(kernel, pooled),
            Err(error) => {
                tracing::warn!(kernel, %error, "cannot fill the pool; trying again later");
                failed.insert(kernel, Instant::now());
            }
        }
    }
}

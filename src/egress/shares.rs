//! What one owner may use of the way out, whatever the number of its sandboxes: connections, look-ups of names, lines of the audit log.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Look-ups of names at a time. Each occupies a thread for as long as the name server takes, which nobody can shorten.
const MAX_LOOKUPS: usize = 64;
const MAX_OWN_LOOKUPS: usize = 16;
/// Lines of the audit log about the growth of decisions: at most so many at once, and so many in a minute.
const LINES: NonZeroU32 = NonZeroU32::new(200).unwrap();
const LINES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(30).unwrap();

/// The shares of all owners. Those whose sandboxes are gone are forgotten.
pub(super) struct Shares {
    connections: Arc<Semaphore>,
    own_connections: usize,
    lookups: Arc<Semaphore>,
    owners: Mutex<HashMap<String, Weak<Share>>>,
}

impl Shares {
    /// One owner gets at most half of the connections, so that others always find some that are returned to them.
    pub fn new(max_connections: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(max_connections)),
            own_connections: max_connections.div_ceil(2),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            owners: Mutex::default(),
        }
    }

    /// The share of an owner, which all its sandboxes have together.
    pub fn of(&self, owner: &str) -> Arc<Share> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = owners.get(owner).and_then(Weak::upgrade) {
            return share;
        }
        owners.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            connections: Places::new(self.own_connections, &self.connections),
            lookups: Places::new(MAX_OWN_LOOKUPS, &self.lookups),
            lines: RateLimiter::direct(line_quota()),
        });
        owners.insert(owner.to_owned(), Arc::downgrade(&share));
        share
    }
}

/// The share of one owner.
pub(super) struct Share {
    pub connections: Places,
    pub lookups: Places,
    lines: DefaultDirectRateLimiter,
}

impl Share {
    /// Whether another line may be written to the audit log. It is counted.
    pub fn take_line(&self) -> bool {
        self.lines.check().is_ok()
    }
}

/// Places of one owner, each of which is also one of all.
pub(super) struct Places {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place in use.
pub(super) struct Place(#[expect(dead_code, reason = "the permits end with it")] [OwnedSemaphorePermit; 2]);

impl Places {
    fn new(own: usize, all: &Arc<Semaphore>) -> Self {
        Self { own: Arc::new(Semaphore::new(own)), all: all.clone() }
    }

    /// Waits for a place. An owner that has its share waits for its own places, and keeps nobody from those of all.
    pub async fn wait(&self) -> Option<Place> {
        let own = self.own.clone().acquire_owned().await.ok()?;
        Some(Place([own, self.all.clone().acquire_owned().await.ok()?]))
    }

    /// As [`Self::wait`], at most so long.
    pub async fn acquire(&self, patience: Duration) -> Option<Place> {
        tokio::time::timeout(patience, self.wait()).await.ok().flatten()
    }
}

fn line_quota() -> Quota {
    Quota::per_minute(LINES_PER_MINUTE).allow_burst(LINES)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    #[tokio::test]
    async fn one_owner_cannot_take_all_places() {
        const NO_PATIENCE: Duration = Duration::from_millis(20);
        let shares = Shares::new(4);
        let (ann, bob) = (shares.of("ann"), shares.of("bob"));
        let held = [ann.connections.acquire(NO_PATIENCE).await, shares.of("ann").connections.acquire(NO_PATIENCE).await];
        assert!(held.iter().all(Option::is_some));
        assert!(ann.connections.acquire(NO_PATIENCE).await.is_none(), "half of them are for others");
        let others = [bob.connections.acquire(NO_PATIENCE).await, bob.connections.acquire(NO_PATIENCE).await];
        assert!(others.iter().all(Option::is_some));
        drop(held);
        assert!(ann.connections.acquire(NO_PATIENCE).await.is_some());
        drop((ann, others));
        shares.of("cat");
        assert_eq!(shares.owners.lock().unwrap().len(), 2, "owners without sandboxes are forgotten");
    }

    #[test]
    fn lines_are_bounded_and_come_back() {
        let clock = FakeRelativeClock::default();
        let lines = RateLimiter::direct_with_clock(line_quota(), clock.clone());
        let take = || lines.check().is_ok();
        let most = LINES.get();
        assert_eq!((0..most + 50).filter(|_| take()).count() as u32, most);
        clock.advance(Duration::from_secs(60 / u64::from(LINES_PER_MINUTE.get())));
        assert!(take() && !take());
        clock.advance(Duration::from_secs(1 << 20));
        assert_eq!((0..2 * most).filter(|_| take()).count() as u32, most);
    }
}

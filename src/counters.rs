//! Counters of resources in use: each use is counted for as long as its guard lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::Notify;

use crate::ids::PrincipalId;

/// Amounts in use, in total and by principal.
#[derive(Debug, Default)]
pub(crate) struct UseCounter {
    total: AtomicU64,
    by_principal: DashMap<PrincipalId, u64>,
    /// Wakes one of those who wait for the end of a use.
    released: Notify,
}

/// What is in use before a new guard is added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InUse {
    pub total: u64,
    /// The part of the principal that requests the guard.
    pub own: u64,
}

impl UseCounter {
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::SeqCst)
    }

    /// Counts one use of nobody in particular.
    pub fn count(self: &Arc<Self>) -> UseGuard {
        let before = self.total.fetch_add(1, Ordering::SeqCst);
        UseGuard { counter: self.clone(), principal: None, amount: 1, before }
    }

    /// Resolves at the end of a use, for one of those who wait; at once after a use for whose end nobody waited.
    pub async fn released(&self) {
        self.released.notified().await;
    }

    /// The amount of a principal that is in use.
    pub fn own(&self, principal: &PrincipalId) -> u64 {
        self.by_principal.get(principal).map_or(0, |used| *used)
    }

    /// Counts `amount` for a principal, whatever is in use.
    pub fn count_for(self: &Arc<Self>, principal: &PrincipalId, amount: u64) -> UseGuard {
        *self.by_principal.entry(principal.clone()).or_default() += amount;
        let before = self.total.fetch_add(amount, Ordering::SeqCst);
        UseGuard { counter: self.clone(), principal: Some(principal.clone()), amount, before }
    }

    /// Counts `amount` for a principal if `admits` says so. The check and the addition are one step.
    pub fn try_count(
        self: &Arc<Self>,
        principal: &PrincipalId,
        amount: u64,
        admits: impl Fn(InUse) -> bool,
    ) -> Option<UseGuard> {
        // The entry stays locked until the end, so that no other request of this principal gets between check and addition.
        let entry = self.by_principal.entry(principal.clone());
        let own = match &entry {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(_) => 0,
        };
        let add = |total: u64| admits(InUse { total, own }).then(|| total.saturating_add(amount));
        let before = self.total.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).ok()?;
        *entry.or_default() += amount;
        Some(UseGuard { counter: self.clone(), principal: Some(principal.clone()), amount, before })
    }
}

/// A counted use. Dropping it ends the use.
#[derive(Debug)]
pub(crate) struct UseGuard {
    counter: Arc<UseCounter>,
    principal: Option<PrincipalId>,
    amount: u64,
    /// The total before this use was added.
    pub before: u64,
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        if let Some(principal) = &self.principal
            && let Entry::Occupied(mut entry) = self.counter.by_principal.entry(principal.clone())
        {
            *entry.get_mut() -= self.amount;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.counter.total.fetch_sub(self.amount, Ordering::SeqCst);
        self.counter.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_guards_leave_no_count() {
        let counter = Arc::<UseCounter>::default();
        let ann = PrincipalId::from("ann");
        let admits = |used: InUse| used.own + 3 <= 6 && used.total + 3 <= 10;
        let first = counter.try_count(&ann, 3, admits).unwrap();
        let second = counter.try_count(&ann, 3, admits).unwrap();
        assert_eq!((first.before, second.before, counter.total()), (0, 3, 6));
        assert!(counter.try_count(&ann, 3, admits).is_none());
        let other = counter.try_count(&"bob".into(), 3, admits).unwrap();
        assert!(counter.try_count(&"cat".into(), 3, admits).is_none(), "the total is bounded, too");
        drop((first, other));
        assert!(counter.try_count(&ann, 3, admits).is_some());
        let unnamed = counter.count();
        assert_eq!(counter.total(), 4);
        drop((second, unnamed));
        assert_eq!((counter.total(), counter.by_principal.len()), (0, 0));
    }
}

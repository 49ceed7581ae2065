//! The limit of the data. Above it, those who use more than their share lose their ended sessions, and may start nothing new: nobody pays
//! for what others have stored.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::session_config::ServiceError;
use crate::ids::{PrincipalId, SessionId};

/// A session, and the bytes that it occupies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub session: SessionId,
    pub principal: PrincipalId,
    pub bytes: u64,
    /// When the session ended, in milliseconds since 1970. `None` while it lives.
    pub ended_at: Option<i64>,
}

/// The stored data, and how much of it there may be.
#[derive(Clone, Debug)]
pub(super) struct DataUse {
    limit: u64,
    /// The limit of each principal.
    limit_each: Option<u64>,
    total: u64,
    holdings: Vec<Holding>,
    by_principal: HashMap<PrincipalId, u64>,
}

impl DataUse {
    /// `total` is the size of journal and artifacts. What it has more than the holdings (indexes, free space) belongs to all of them in
    /// proportion, and so does what it has less (artifacts that sessions share).
    pub fn new(limit: u64, limit_each: Option<u64>, total: u64, mut holdings: Vec<Holding>) -> Self {
        let sum: u64 = holdings.iter().map(|holding| holding.bytes).sum();
        let mut by_principal = HashMap::new();
        for holding in &mut holdings {
            let scaled = u128::from(holding.bytes) * u128::from(total) / u128::from(sum.max(1));
            holding.bytes = u64::try_from(scaled).unwrap_or(u64::MAX);
            *by_principal.entry(holding.principal.clone()).or_default() += holding.bytes;
        }
        Self { limit, limit_each, total, holdings, by_principal }
    }

    /// What each principal may use while the data is above its limit: the limit divided by the number of principals.
    fn share(&self) -> u64 {
        self.limit / (self.by_principal.len().max(1) as u64)
    }

    /// The bytes that a principal uses beyond what it may, or 0.
    fn excess(&self, principal: &PrincipalId) -> u64 {
        let used = self.by_principal.get(principal).copied().unwrap_or(0);
        let over_share = if self.total > self.limit { used.saturating_sub(self.share()) } else { 0 };
        let over_own_limit = self.limit_each.map_or(0, |limit| used.saturating_sub(limit));
        over_share.max(over_own_limit)
    }

    /// The session to delete next, each at most once: the one that ended first, of the principal with the largest excess that
    /// has an ended session. `None` if nothing must or may be deleted. It counts until [`Self::count_freed`].
    pub fn next_eviction(&mut self) -> Option<Holding> {
        let ended =
            self.holdings.iter().enumerate().filter_map(|(index, holding)| Some((index, holding, holding.ended_at?)));
        let over = ended.filter(|(_, holding, _)| self.excess(&holding.principal) > 0);
        let (index, ..) =
            over.min_by_key(|(_, holding, ended_at)| (u64::MAX - self.excess(&holding.principal), *ended_at))?;
        Some(self.holdings.swap_remove(index))
    }

    /// The data of this session is gone.
    pub fn count_freed(&mut self, evicted: &Holding) {
        self.total = self.total.saturating_sub(evicted.bytes);
        if let Some(used) = self.by_principal.get_mut(&evicted.principal) {
            *used = used.saturating_sub(evicted.bytes);
        }
    }

    /// Who may write as things are.
    pub fn state(&self) -> QuotaState {
        // Above twice the limit, the disk of the machine is at risk.
        if self.total > self.limit.saturating_mul(2) {
            return QuotaState::Exhausted;
        }
        let over: HashSet<PrincipalId> =
            self.by_principal.keys().filter(|principal| self.excess(principal) > 0).cloned().collect();
        match over.is_empty() {
            // Rows without events are nobody's.
            true if self.total > self.limit => QuotaState::Exhausted,
            true => QuotaState::Within,
            false => QuotaState::ExceededBy(over),
        }
    }
}

/// Who may write new data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum QuotaState {
    /// Everybody.
    #[default]
    Within,
    /// These principals use more than they may, and may not write.
    ExceededBy(HashSet<PrincipalId>),
    /// Nobody may write.
    Exhausted,
}

impl QuotaState {
    pub fn admits(&self, principal: &PrincipalId) -> bool {
        match self {
            Self::Within => true,
            Self::ExceededBy(over) => !over.contains(principal),
            Self::Exhausted => false,
        }
    }
}

/// The quota of this server. [`super::Retention`] keeps its state up to date.
pub(super) struct Quota {
    limit_mb: u64,
    state: Mutex<QuotaState>,
}

impl Quota {
    pub fn new(limit_mb: u64) -> Self {
        Self { limit_mb, state: Mutex::default() }
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit_mb.saturating_mul(1 << 20)
    }

    /// Refuses a principal who may not write.
    pub fn check(&self, principal: &PrincipalId) -> Result<(), ServiceError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.admits(principal) { Ok(()) } else { Err(ServiceError::QuotaExceeded { limit_mb: self.limit_mb }) }
    }

    /// Sets the state. Returns whether it has changed.
    pub fn set(&self, state: QuotaState) -> bool {
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *current != state;
        *current = state;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(principal: &str, bytes: u64, ended_at: Option<i64>) -> Holding {
        Holding { session: SessionId::random(), principal: principal.into(), bytes, ended_at }
    }

    /// The principals and ends of the evicted sessions, in order.
    fn evictions(data: &mut DataUse) -> Vec<(String, i64)> {
        let mut evict = || data.next_eviction().inspect(|evicted| data.count_freed(evicted));
        std::iter::from_fn(&mut evict).map(|evicted| (evicted.principal.to_string(), evicted.ended_at.unwrap())).collect()
    }

    #[test]
    fn session_that_cannot_be_deleted_still_counts() {
        let held = [holding("ann", 60, Some(1)), holding("ann", 60, Some(2))];
        let mut data = DataUse::new(100, None, 120, held.to_vec());
        let mut next = || data.next_eviction().and_then(|evicted| evicted.ended_at);
        assert_eq!([next(), next(), next()], [Some(1), Some(2), None], "the other one is tried, and none of them twice");
        assert!(!data.state().admits(&"ann".into()));
    }

    #[test]
    fn only_principals_above_their_share_are_evicted() {
        let held = [
            holding("modest", 30, Some(1)),
            holding("greedy", 40, Some(5)),
            holding("greedy", 30, Some(4)),
            holding("greedy", 20, None),
        ];
        let mut data = DataUse::new(100, None, 120, held.to_vec());
        assert_eq!(evictions(&mut data), [("greedy".to_owned(), 4)], "the oldest of the greedy, and no more than needed");
        assert_eq!(data.state(), QuotaState::Within);
    }

    #[test]
    fn living_data_of_the_greedy_costs_nobody_else() {
        let held = [holding("modest", 20, Some(1)), holding("greedy", 100, None)];
        let mut data = DataUse::new(100, None, 120, held.to_vec());
        assert_eq!(evictions(&mut data), []);
        assert!(!data.state().admits(&"greedy".into()) && data.state().admits(&"modest".into()));
    }

    #[test]
    fn largest_excess_is_reduced_first() {
        let held =
            [holding("a", 50, Some(1)), holding("b", 70, Some(3)), holding("b", 10, Some(2)), holding("c", 5, Some(0))];
        let mut data = DataUse::new(60, None, 135, held.to_vec());
        // b: 80, 70, then gone; a: 50 is within the limit of all when b is gone.
        assert_eq!(evictions(&mut data), [("b".to_owned(), 2), ("b".to_owned(), 3)]);
    }

    #[test]
    fn overhead_of_the_journal_belongs_to_all_in_proportion() {
        let held = [holding("ann", 45, Some(1)), holding("bob", 30, Some(2))];
        let mut data = DataUse::new(100, None, 150, held.to_vec());
        assert_eq!(evictions(&mut data), [("ann".to_owned(), 1)]);
    }

    #[test]
    fn own_limit_of_principals_holds_below_the_limit() {
        let held = [holding("ann", 30, Some(1)), holding("ann", 30, None), holding("bob", 30, Some(1))];
        let mut data = DataUse::new(1000, Some(40), 90, held.to_vec());
        assert_eq!(evictions(&mut data), [("ann".to_owned(), 1)]);
        assert_eq!(data.state(), QuotaState::Within);
        let mut living = DataUse::new(1000, Some(20), 30, vec![holding("ann", 30, None)]);
        assert_eq!(evictions(&mut living), []);
        assert!(!living.state().admits(&"ann".into()));
    }

    #[test]
    fn nobody_may_write_above_twice_the_limit() {
        let data = DataUse::new(100, None, 201, vec![holding("greedy", 190, None), holding("modest", 11, None)]);
        assert_eq!(data.state(), QuotaState::Exhausted);
        assert_eq!(DataUse::new(100, None, 110, Vec::new()).state(), QuotaState::Exhausted);
        assert!(QuotaState::default().admits(&"anybody".into()));
    }
}

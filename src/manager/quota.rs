//! The limit of the data. Above it, new work is refused for the principals that use more than their share: one principal
//! cannot use up what belongs to the others.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::session_config::ServiceError;
use crate::ids::PrincipalId;

/// The share of one principal when the data is above its limit, in bytes: the limit divided by the number of principals.
pub(super) fn fair_share(limit: u64, by_principal: &HashMap<PrincipalId, u64>) -> u64 {
    limit / (by_principal.len().max(1) as u64)
}

/// Who may write new data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum QuotaState {
    /// The data is within its limit.
    #[default]
    Within,
    /// These principals exceed their share and may not write.
    ExceededBy(HashSet<PrincipalId>),
    /// Nobody may write.
    Exhausted,
}

impl QuotaState {
    /// The state when the data is above its limit. Nobody may write above twice the limit, for then the disk of the machine
    /// is at risk.
    pub fn over_limit(limit: u64, bytes: u64, by_principal: HashMap<PrincipalId, u64>) -> Self {
        let share = fair_share(limit, &by_principal);
        if bytes > limit.saturating_mul(2) {
            return Self::Exhausted;
        }
        let over_share: HashSet<PrincipalId> =
            by_principal.into_iter().filter(|(_, bytes)| *bytes > share).map(|(principal, _)| principal).collect();
        // The journal is larger than the data in it, so it can exceed the limit although every principal is within the
        // share.
        if over_share.is_empty() { Self::Exhausted } else { Self::ExceededBy(over_share) }
    }

    pub fn admits(&self, principal: &PrincipalId) -> bool {
        match self {
            Self::Within => true,
            Self::ExceededBy(over_share) => !over_share.contains(principal),
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

    #[test]
    fn largest_principal_is_refused_first() {
        let usage = |usage: &[(&str, u64)]| usage.iter().map(|(name, bytes)| ((*name).into(), *bytes)).collect();
        let state = QuotaState::over_limit(100, 110, usage(&[("greedy", 90), ("modest", 20)]));
        assert!(!state.admits(&"greedy".into()) && state.admits(&"modest".into()) && state.admits(&"new".into()));
        assert_eq!(QuotaState::over_limit(100, 201, usage(&[("greedy", 190), ("modest", 11)])), QuotaState::Exhausted);
        assert_eq!(QuotaState::over_limit(100, 110, usage(&[("ann", 45), ("bob", 45)])), QuotaState::Exhausted);
        assert_eq!(QuotaState::over_limit(100, 110, HashMap::new()), QuotaState::Exhausted);
        assert!(QuotaState::default().admits(&"anybody".into()));
    }
}

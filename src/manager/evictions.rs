//! The sessions that were deleted because the stored data exceeded its limit. Responses to their owners name them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::ids::{PrincipalId, SessionId};

/// How long responses to an owner name a deleted session, and the most sessions that they name.
const TOLD_FOR: Duration = Duration::from_secs(86_400);
const MAX_TOLD: usize = 20;

/// Recent evictions, by principal.
#[derive(Default)]
pub(super) struct Evictions {
    recent: Mutex<HashMap<PrincipalId, VecDeque<(Instant, SessionId)>>>,
}

impl Evictions {
    pub fn add(&self, principal: PrincipalId, session: SessionId) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|_, sessions| sessions.back().is_some_and(|(at, _)| at.elapsed() < TOLD_FOR));
        let sessions = recent.entry(principal).or_default();
        sessions.push_back((Instant::now(), session));
        while sessions.len() > MAX_TOLD {
            sessions.pop_front();
        }
    }

    /// The sessions of a principal that were evicted in the last day, oldest first, at most 20.
    pub fn of(&self, principal: &PrincipalId) -> Vec<SessionId> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = recent.get(principal).into_iter().flatten();
        sessions.filter(|(at, _)| at.elapsed() < TOLD_FOR).map(|(_, session)| session.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_of_their_latest_evictions() {
        let evictions = Evictions::default();
        let ids: Vec<SessionId> = (0..25).map(|_| SessionId::random()).collect();
        ids.iter().for_each(|id| evictions.add("ann".into(), id.clone()));
        assert_eq!(evictions.of(&"ann".into()), ids[5..]);
        assert_eq!(evictions.of(&"bob".into()), []);
    }
}

//! How many living sessions and processes each principal may hold.

use std::sync::Arc;

use super::session_config::ServiceError;
use crate::counters::{InUse, UseCounter, UseGuard};
use crate::ids::PrincipalId;
use crate::policy::{Ceilings, Limits, Machine, PrincipalCeilings, leaves_a_share};

/// The sessions and processes that are held, by principal.
pub(super) struct Admission {
    sessions: Arc<UseCounter>,
    processes: Arc<UseCounter>,
    max_sessions: u64,
    max_processes: u64,
    ceilings: PrincipalCeilings,
}

/// The session and the processes that count for a principal, until it is dropped.
#[derive(Debug)]
pub(super) struct Allotment {
    _session: UseGuard,
    _processes: UseGuard,
}

impl Admission {
    pub fn new(max_sessions: usize, machine: Machine, ceilings: &Ceilings) -> Self {
        let max_sessions = max_sessions as u64;
        // The machine needs some itself. Sessions with default limits fit in any case, and so does one with the greatest.
        let of_sessions = max_sessions.saturating_mul(Limits::default().pids).max(ceilings.limits.pids);
        let max_processes = (machine.processes / 8 * 7).max(of_sessions);
        let ceilings = ceilings.principal.clone();
        Self { sessions: Arc::default(), processes: Arc::default(), max_sessions, max_processes, ceilings }
    }

    /// Counts a new session. `is_alone` says that there is no other principal, so that there is nothing to share.
    pub fn admit(&self, principal: &PrincipalId, processes: u64, is_alone: bool) -> Result<Allotment, ServiceError> {
        let fits = |used: InUse, more: u64, limit: u64, ceiling: Option<u64>| {
            let is_in_share = match ceiling {
                Some(most) => used.own.saturating_add(more) <= most,
                None => is_alone || leaves_a_share(used.own, more, used.total, limit),
            };
            used.total.saturating_add(more) <= limit && is_in_share
        };
        let session = self
            .sessions
            .try_count(principal, 1, |used| fits(used, 1, self.max_sessions, self.ceilings.sessions))
            .ok_or_else(|| self.no_session(principal))?;
        let all = self
            .processes
            .try_count(principal, processes, |used| fits(used, processes, self.max_processes, self.ceilings.processes))
            .ok_or_else(|| ServiceError::ProcessLimit { held: self.processes.own(principal), more: processes })?;
        Ok(Allotment { _session: session, _processes: all })
    }

    fn no_session(&self, principal: &PrincipalId) -> ServiceError {
        if self.sessions.total() >= self.max_sessions {
            ServiceError::SessionLimit { limit: self.max_sessions }
        } else {
            ServiceError::SessionShare { held: self.sessions.own(principal), limit: self.max_sessions }
        }
    }

    /// Resolves when a session or its processes are no longer held.
    pub async fn released(&self) {
        self.sessions.released().await;
    }

    /// Counts a session that lives already.
    pub fn count(&self, principal: &PrincipalId, processes: u64) -> Allotment {
        let session = self.sessions.count_for(principal, 1);
        Allotment { _session: session, _processes: self.processes.count_for(principal, processes) }
    }

    /// The living sessions of a principal, and the sum of their process limits.
    pub fn held(&self, principal: &PrincipalId) -> (u64, u64) {
        (self.sessions.own(principal), self.processes.own(principal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { memory_bytes: 8 << 30, cpus: 2.0, processes: 8000 };

    fn take(admission: &Admission, name: &str, processes: u64, is_alone: bool) -> Vec<Allotment> {
        std::iter::from_fn(|| admission.admit(&name.into(), processes, is_alone).ok()).collect()
    }

    #[test]
    fn only_principal_may_use_everything() {
        let admission = Admission::new(10, MACHINE, &Ceilings::of_machine(MACHINE));
        let all = take(&admission, "ann", 256, true);
        assert_eq!(all.len(), 10);
        let full = admission.admit(&"ann".into(), 256, true).unwrap_err();
        assert!(matches!(full, ServiceError::SessionLimit { limit: 10 }), "{full}");
        drop(all);
        assert_eq!(admission.held(&"ann".into()), (0, 0));
    }

    #[test]
    fn greedy_principal_leaves_sessions_for_others() {
        let admission = Admission::new(10, MACHINE, &Ceilings::of_machine(MACHINE));
        let greedy = take(&admission, "greedy", 256, false);
        assert_eq!(greedy.len(), 5);
        let refused = admission.admit(&"greedy".into(), 256, false).unwrap_err();
        assert!(matches!(refused, ServiceError::SessionShare { held: 5, limit: 10 }), "{refused}");
        let modest = take(&admission, "modest", 256, false);
        assert_eq!(modest.len(), 2);
        assert!(admission.admit(&"new".into(), 256, false).is_ok());
        drop(greedy);
        assert!(admission.admit(&"modest".into(), 256, false).is_ok());
    }

    #[test]
    fn refused_session_holds_nothing() {
        let admission = Admission::new(10, MACHINE, &Ceilings::of_machine(MACHINE));
        let all = take(&admission, "ann", 3000, true);
        assert_eq!((all.len(), admission.held(&"ann".into())), (2, (2, 6000)));
        let refused = admission.admit(&"ann".into(), 3000, true).unwrap_err();
        assert!(matches!(refused, ServiceError::ProcessLimit { held: 6000, more: 3000 }), "{refused}");
        assert_eq!(admission.held(&"ann".into()), (2, 6000));
    }

    #[test]
    fn ceilings_of_the_operator_replace_the_share() {
        let principal = PrincipalCeilings { sessions: Some(8), processes: Some(1000), ..PrincipalCeilings::default() };
        let admission = Admission::new(10, MACHINE, &Ceilings { principal, ..Ceilings::of_machine(MACHINE) });
        let all = take(&admission, "ann", 16, false);
        assert_eq!(all.len(), 8);
        assert_eq!(take(&admission, "bob", 600, false).len(), 1, "600 are within 1000, and twice as many are not");
    }

    #[test]
    fn sessions_of_an_earlier_server_count() {
        let admission = Admission::new(1, MACHINE, &Ceilings::of_machine(MACHINE));
        let living = admission.count(&"ann".into(), 256);
        assert!(admission.admit(&"ann".into(), 256, true).is_err());
        drop(living);
        assert!(admission.admit(&"ann".into(), 256, true).is_ok());
    }
}

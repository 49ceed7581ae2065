//! What each principal uses up: executions, which an hour restores evenly, and seconds that its sessions live in a day. Both are counted from the start of
//! the server.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::session_config::ServiceError;
use crate::ids::PrincipalId;
use crate::policy::PrincipalCeilings;

const DAY: Duration = Duration::from_secs(86_400);
/// The number of principals that are remembered before those without recent use are dropped.
const MAX_REMEMBERED: usize = 1024;

/// The consumption of all principals.
pub(super) struct Consumption {
    executions: Option<DefaultKeyedRateLimiter<PrincipalId>>,
    clock: DefaultClock,
    max_seconds: Option<u64>,
    days: Mutex<HashMap<PrincipalId, Day>>,
}

/// What a principal has used since the beginning of its day.
#[derive(Clone, Copy)]
struct Day {
    began: Instant,
    used: Duration,
}

impl Consumption {
    pub fn new(ceilings: &PrincipalCeilings) -> Self {
        let per_hour = ceilings.executions_per_hour.and_then(NonZeroU32::new);
        Self {
            executions: per_hour.map(|count| RateLimiter::keyed(Quota::per_hour(count))),
            clock: DefaultClock::default(),
            max_seconds: ceilings.session_seconds_per_day,
            days: Mutex::default(),
        }
    }

    /// Counts executions that a principal is about to queue: all or none.
    pub fn admit_executions(&self, principal: &PrincipalId, count: usize) -> Result<(), ServiceError> {
        let (Some(limiter), Some(count)) = (&self.executions, NonZeroU32::new(u32::try_from(count).unwrap_or(u32::MAX)))
        else {
            return Ok(());
        };
        if limiter.len() > MAX_REMEMBERED {
            limiter.retain_recent();
        }
        match limiter.check_key_n(principal, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.clock.now());
                Err(ServiceError::ExecutionLimit { retry_after: wait.as_secs().saturating_add(1) })
            }
            Err(capacity) => Err(ServiceError::TooManyAtOnce { count: count.get(), limit: capacity.0 }),
        }
    }

    /// Adds time that a session of a principal has lived.
    pub fn charge(&self, principal: &PrincipalId, time: Duration) {
        if self.max_seconds.is_some() {
            self.charge_at(principal, time, Instant::now());
        }
    }

    fn charge_at(&self, principal: &PrincipalId, time: Duration, now: Instant) {
        let mut days = self.days.lock().unwrap_or_else(PoisonError::into_inner);
        if days.len() > MAX_REMEMBERED {
            days.retain(|_, day| now.saturating_duration_since(day.began) < DAY);
        }
        let day = days.entry(principal.clone()).or_insert(Day { began: now, used: Duration::ZERO });
        if now.saturating_duration_since(day.began) >= DAY {
            *day = Day { began: now, used: Duration::ZERO };
        }
        day.used += time;
    }

    /// Refuses a principal that has used its seconds of the day.
    pub fn check_seconds(&self, principal: &PrincipalId) -> Result<(), ServiceError> {
        self.check_seconds_at(principal, Instant::now())
    }

    fn check_seconds_at(&self, principal: &PrincipalId, now: Instant) -> Result<(), ServiceError> {
        let days = self.days.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(limit), Some(day)) = (self.max_seconds, days.get(principal)) else { return Ok(()) };
        let left = DAY.saturating_sub(now.saturating_duration_since(day.began));
        if day.used < Duration::from_secs(limit) || left.is_zero() {
            return Ok(());
        }
        Err(ServiceError::SessionTimeLimit { limit, retry_after: left.as_secs().saturating_add(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_by_principal() {
        let ceilings = PrincipalCeilings { executions_per_hour: Some(10), ..PrincipalCeilings::default() };
        let consumption = Consumption::new(&ceilings);
        let admit = |name: &str, count| consumption.admit_executions(&name.into(), count);
        assert!(matches!(admit("ann", 11), Err(ServiceError::TooManyAtOnce { count: 11, limit: 10 })));
        admit("ann", 0).unwrap();
        admit("ann", 9).unwrap();
        assert!(matches!(admit("ann", 2), Err(ServiceError::ExecutionLimit { retry_after: 1..=721 })));
        admit("ann", 1).unwrap();
        assert!(admit("ann", 1).is_err());
        admit("bob", 10).unwrap();
        let unlimited = Consumption::new(&PrincipalCeilings::default());
        assert!(unlimited.admit_executions(&"ann".into(), usize::MAX).is_ok());
    }

    #[test]
    fn session_seconds_are_free_again_after_a_day() {
        let ceilings = PrincipalCeilings { session_seconds_per_day: Some(60), ..PrincipalCeilings::default() };
        let consumption = Consumption::new(&ceilings);
        let (ann, began) = (PrincipalId::from("ann"), Instant::now());
        consumption.charge_at(&ann, Duration::from_secs(59), began);
        consumption.check_seconds_at(&ann, began).unwrap();
        consumption.charge_at(&ann, Duration::from_secs(1), began + Duration::from_secs(600));
        let spent = consumption.check_seconds_at(&ann, began + Duration::from_secs(600)).unwrap_err();
        assert!(matches!(spent, ServiceError::SessionTimeLimit { limit: 60, retry_after: 85_801 }), "{spent}");
        consumption.check_seconds_at(&"bob".into(), began).unwrap();
        consumption.check_seconds_at(&ann, began + DAY).unwrap();
        consumption.charge_at(&ann, Duration::from_secs(5), began + DAY);
        consumption.check_seconds_at(&ann, began + DAY).unwrap();
    }
}

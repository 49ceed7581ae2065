//! Rate limits: requests per second of each principal, so that no principal delays the others, requests with invalid tokens
//! in total, and open streams of each principal, each of which takes memory.

use std::num::NonZeroU32;
use std::sync::Arc;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::counters::{UseCounter, UseGuard};
use crate::ids::PrincipalId;

/// Requests per second with invalid tokens. Guessing tokens is hopeless anyway; the limit keeps the log short.
const INVALID_TOKENS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// The burst, in seconds of the rate.
const BURST_SECONDS: u32 = 5;
/// The number of principals that the limiter remembers before it drops those without recent requests.
const MAX_REMEMBERED: usize = 1024;

/// The largest number of open event streams and sockets per principal. Each takes about 40 KB.
pub(super) const MAX_STREAMS: usize = 2_000;

/// The rate limits of this server.
#[derive(Debug)]
pub struct RateLimits {
    by_principal: Option<DefaultKeyedRateLimiter<PrincipalId>>,
    invalid_tokens: DefaultDirectRateLimiter,
    streams: Arc<UseCounter>,
    clock: DefaultClock,
}

/// Seconds after which the next request is accepted.
pub(super) type RetryAfter = u32;

impl RateLimits {
    /// `per_second` is the limit for each principal. 0 means no limit.
    pub fn new(per_second: u32) -> Self {
        let quota = |rate: NonZeroU32| Quota::per_second(rate).allow_burst(rate.saturating_mul(burst()));
        Self {
            by_principal: NonZeroU32::new(per_second).map(|rate| RateLimiter::keyed(quota(rate))),
            invalid_tokens: RateLimiter::direct(quota(INVALID_TOKENS_PER_SECOND)),
            streams: Arc::default(),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of a principal.
    pub(super) fn check_request(&self, principal: &PrincipalId) -> Result<(), RetryAfter> {
        let Some(limiter) = &self.by_principal else { return Ok(()) };
        if limiter.len() > MAX_REMEMBERED {
            limiter.retain_recent();
        }
        limiter.check_key(principal).map_err(|until| whole_seconds(until.wait_time_from(self.clock.now())))
    }

    /// Counts a request with an invalid token.
    pub(super) fn check_invalid_token(&self) -> Result<(), RetryAfter> {
        self.invalid_tokens.check().map_err(|until| whole_seconds(until.wait_time_from(self.clock.now())))
    }

    /// Counts an open stream of a principal. `None` if the principal has too many.
    pub(super) fn open_stream(&self, principal: &PrincipalId) -> Option<OpenStream> {
        let guard = self.streams.try_count(principal, 1, |used| used.own < MAX_STREAMS as u64)?;
        Some(OpenStream { _guard: guard })
    }

    pub(super) fn open_streams(&self) -> u64 {
        self.streams.total()
    }
}

/// An open stream. Dropping it ends the stream for the count.
#[derive(Debug)]
pub(super) struct OpenStream {
    _guard: UseGuard,
}

fn burst() -> NonZeroU32 {
    NonZeroU32::new(BURST_SECONDS).unwrap_or(NonZeroU32::MIN)
}

/// Rounds up, because `Retry-After` has whole seconds.
fn whole_seconds(wait: std::time::Duration) -> u32 {
    u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_have_separate_limits() {
        let limits = RateLimits::new(2);
        let (ann, bob) = (PrincipalId::from("ann"), PrincipalId::from("bob"));
        let accepted = (0..100).take_while(|_| limits.check_request(&ann).is_ok()).count();
        assert!((10..20).contains(&accepted), "a burst is five seconds of the rate, and not {accepted}");
        assert_eq!(limits.check_request(&ann), Err(1));
        assert_eq!(limits.check_request(&bob), Ok(()));
        let open: Vec<_> = std::iter::from_fn(|| limits.open_stream(&ann)).collect();
        assert_eq!((open.len(), limits.open_stream(&bob).is_some()), (MAX_STREAMS, true));
        drop(open);
        assert!(limits.open_stream(&ann).is_some());
        let unlimited = RateLimits::new(0);
        assert!((0..10_000).all(|_| unlimited.check_request(&ann).is_ok()));
        assert!((0..10_000).any(|_| limits.check_invalid_token().is_err()));
    }
}

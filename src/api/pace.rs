//! How many requests come in: so many a second of each principal, so that none keeps the others waiting, and so many with
//! tokens that are not valid, of everybody together. And how many streams a principal holds open, each of which takes memory.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Requests a second with tokens that are not valid. Guessing is hopeless anyway; this keeps the log short.
const BAD_TOKENS: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// Seconds of quiet that can be made up for at once.
const BURST_SECONDS: u32 = 5;
/// Principals that are remembered before those are forgotten who have made no request of late.
const REMEMBERED: usize = 1024;

/// Event streams and sockets that a principal has open at once. Each takes some 40 KB.
pub(super) const MOST_STREAMS: usize = 2_000;

/// Counts requests.
#[derive(Debug)]
pub struct Pace {
    principals: Option<DefaultKeyedRateLimiter<String>>,
    bad_tokens: DefaultDirectRateLimiter,
    streams: Arc<Streams>,
    clock: DefaultClock,
}

impl Pace {
    /// So many requests a second of each principal; 0: as many as come.
    pub fn new(per_second: u32) -> Self {
        let quota = |rate: NonZeroU32| Quota::per_second(rate).allow_burst(rate.saturating_mul(burst()));
        Self {
            principals: NonZeroU32::new(per_second).map(|rate| RateLimiter::keyed(quota(rate))),
            bad_tokens: RateLimiter::direct(quota(BAD_TOKENS)),
            streams: Arc::default(),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of a principal. Over the limit: the seconds after which the next one is taken.
    pub fn count(&self, principal: &str) -> Result<(), u32> {
        let Some(limiter) = &self.principals else { return Ok(()) };
        if limiter.len() > REMEMBERED {
            limiter.retain_recent();
        }
        limiter.check_key(&principal.to_owned()).map_err(|until| seconds(until.wait_time_from(self.clock.now())))
    }

    /// Counts a stream of a principal for as long as what is given lives. `None` if there are too many.
    pub fn open_stream(&self, principal: &str) -> Option<OpenStream> {
        let mut streams = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = streams.entry(principal.to_owned()).or_default();
        (*count < MOST_STREAMS).then(|| *count += 1)?;
        Some(OpenStream { principal: principal.to_owned(), streams: self.streams.clone() })
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.streams.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Counts a request whose token is not valid.
    pub fn count_bad_token(&self) -> Result<(), u32> {
        self.bad_tokens.check().map_err(|until| seconds(until.wait_time_from(self.clock.now())))
    }
}

/// Open streams by principal.
#[derive(Debug, Default)]
struct Streams(Mutex<HashMap<String, usize>>);

/// A stream that is open.
#[derive(Debug)]
pub struct OpenStream {
    principal: String,
    streams: Arc<Streams>,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut streams = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = streams.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.principal);
            }
        }
    }
}

fn burst() -> NonZeroU32 {
    NonZeroU32::new(BURST_SECONDS).unwrap_or(NonZeroU32::MIN)
}

/// In whole seconds, as `Retry-After` has it.
fn seconds(wait: std::time::Duration) -> u32 {
    u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_has_its_own_pace() {
        let pace = Pace::new(2);
        let taken = (0..100).take_while(|_| pace.count("ann").is_ok()).count();
        assert!((10..20).contains(&taken), "five seconds' worth at once, and not {taken}");
        assert_eq!(pace.count("ann"), Err(1));
        assert_eq!(pace.count("bob"), Ok(()));
        let open: Vec<_> = std::iter::from_fn(|| pace.open_stream("ann")).collect();
        assert_eq!((open.len(), pace.open_stream("bob").is_some()), (MOST_STREAMS, true));
        drop(open);
        assert!(pace.open_stream("ann").is_some());
        let unlimited = Pace::new(0);
        assert!((0..10_000).all(|_| unlimited.count("ann").is_ok()));
        assert!((0..10_000).any(|_| pace.count_bad_token().is_err()));
    }
}

//! Counts the bytes of connections, and holds them to the limits of their sandbox.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::streams::Meter;

/// The bytes of all connections of a sandbox.
#[derive(Debug)]
pub(super) struct Traffic {
    max_bytes: Option<u64>,
    per_second: Option<u64>,
    used: AtomicU64,
    /// When the bytes that were copied so far are paid for, at the permitted rate.
    paid_at: Mutex<Instant>,
}

/// How far ahead of its rate a sandbox may be.
const BURST: Duration = Duration::from_millis(500);

impl Traffic {
    pub fn new(max_bytes: Option<u64>, per_second: Option<u64>) -> Self {
        Self { max_bytes, per_second, used: AtomicU64::new(0), paid_at: Mutex::new(Instant::now()) }
    }

    /// Whether the volume is used up.
    pub fn is_used_up(&self) -> bool {
        self.max_bytes.is_some_and(|most| self.used.load(Ordering::Relaxed) >= most)
    }

    pub fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    async fn pass(&self, bytes: usize) -> io::Result<()> {
        self.used.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.is_used_up() {
            return Err(io::Error::other("the sandbox has used up its volume"));
        }
        if let Some(delay) = self.delay(bytes) {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    fn delay(&self, bytes: usize) -> Option<Duration> {
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second? as f64);
        let now = Instant::now();
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*paid_at).max(now);
        *paid_at = start + cost;
        (*paid_at).checked_duration_since(now + BURST)
    }
}

/// The bytes of one connection.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    traffic: &'a Traffic,
    began: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    /// The time of the last byte, milliseconds since `began`.
    active_ms: AtomicU64,
}

impl<'a> Connection<'a> {
    pub fn new(traffic: &'a Traffic) -> Self {
        let zero = AtomicU64::default;
        Self { traffic, began: Instant::now(), sent: zero(), received: zero(), active_ms: zero() }
    }

    /// Bytes that the sandbox has sent, and that it has received.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    /// Resolves when no byte has been copied for so long.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            let last = self.began + Duration::from_millis(self.active_ms.load(Ordering::Relaxed));
            match (last + limit).checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    fn touch(&self) {
        self.active_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Meter for Connection<'_> {
    async fn outward(&self, bytes: usize) -> io::Result<()> {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
        self.traffic.pass(bytes).await
    }

    async fn inward(&self, bytes: usize) -> io::Result<()> {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
        self.traffic.pass(bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn volume_is_limited() {
        let traffic = Traffic::new(Some(1000), None);
        let connection = Connection::new(&traffic);
        assert!(connection.outward(600).await.is_ok() && !traffic.is_used_up());
        assert!(connection.inward(400).await.is_err() && traffic.is_used_up());
        assert_eq!(connection.bytes(), (600, 400));
    }

    #[test]
    fn rate_delays_what_exceeds_the_burst() {
        let traffic = Traffic::new(None, Some(1_000_000));
        assert_eq!(traffic.delay(400_000), None);
        let delay = traffic.delay(1_000_000).unwrap();
        assert!(delay > Duration::from_millis(500) && delay <= Duration::from_millis(900), "{delay:?}");
        assert_eq!(Traffic::new(None, None).delay(usize::MAX), None);
    }
}

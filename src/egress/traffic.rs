//! Counts the bytes of connections, and holds them to the limits of their sandbox.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::streams::Meter;

/// The bytes of all connections of a sandbox.
#[derive(Debug)]
pub(super) struct Traffic {
    max_bytes: Option<u64>,
    per_second: Option<u64>,
    used: AtomicU64,
    /// Where the number of used bytes outlives the server.
    file: PathBuf,
    /// Notified when the number has grown by a step since it was written.
    grown: Notify,
    /// When the bytes that were copied so far are paid for, at the permitted rate.
    paid_at: Mutex<Instant>,
}

/// The number of used bytes is written so often while a volume is used up. What was used after the last time is forgotten with the server.
const STEPS: u64 = 64;
/// How far ahead of its rate a sandbox may be.
const BURST: Duration = Duration::from_millis(500);

impl Traffic {
    /// Goes on from the number in the file, if there is one.
    pub fn new(max_bytes: Option<u64>, per_second: Option<u64>, file: PathBuf) -> Self {
        let used = fs::read_to_string(&file).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let (used, paid_at) = (AtomicU64::new(used), Mutex::new(Instant::now()));
        Self { max_bytes, per_second, used, file, grown: Notify::new(), paid_at }
    }

    /// Writes the number of used bytes into the file whenever it has grown by a step. Never returns.
    pub async fn store_growth(&self) {
        loop {
            self.grown.notified().await;
            let (used, file) = (self.used.load(Ordering::Relaxed), self.file.clone());
            let written = tokio::task::spawn_blocking(move || {
                let temporary = file.with_extension("tmp");
                fs::write(&temporary, used.to_string())?;
                fs::rename(temporary, file)
            });
            if let Ok(Err(error)) = written.await {
                tracing::warn!(file = %self.file.display(), %error, "cannot store what a sandbox has transferred");
            }
        }
    }

    /// Whether the volume is used up.
    pub fn is_used_up(&self) -> bool {
        self.max_bytes.is_some_and(|most| self.used.load(Ordering::Relaxed) >= most)
    }

    pub fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    async fn pass(&self, bytes: usize) -> io::Result<()> {
        let before = self.used.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(most) = self.max_bytes {
            let step = (most / STEPS).max(1);
            if before / step != (before + bytes as u64) / step {
                self.grown.notify_one();
            }
        }
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
        let traffic = Traffic::new(Some(1000), None, PathBuf::new());
        let connection = Connection::new(&traffic);
        assert!(connection.outward(600).await.is_ok() && !traffic.is_used_up());
        assert!(connection.inward(400).await.is_err() && traffic.is_used_up());
        assert_eq!(connection.bytes(), (600, 400));
    }

    #[tokio::test]
    async fn used_volume_outlives_the_server() {
        let file = std::env::temp_dir().join(format!("cellkeep-transferred-{}", crate::ids::random_uuid()));
        let traffic = Traffic::new(Some(6400), None, file.clone());
        assert!(traffic.pass(5999).await.is_ok());
        let written = async {
            while fs::read_to_string(&file).unwrap_or_default() != "5999" {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = traffic.store_growth() => {}
            () = written => {}
        }
        let next = Traffic::new(Some(6400), None, file.clone());
        assert!(next.pass(400).await.is_ok() && next.pass(1).await.is_err());
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn rate_delays_what_exceeds_the_burst() {
        let traffic = Traffic::new(None, Some(1_000_000), PathBuf::new());
        assert_eq!(traffic.delay(400_000), None);
        let delay = traffic.delay(1_000_000).unwrap();
        assert!(delay > Duration::from_millis(500) && delay <= Duration::from_millis(900), "{delay:?}");
        assert_eq!(Traffic::new(None, None, PathBuf::new()).delay(usize::MAX), None);
    }
}

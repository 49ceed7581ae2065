//! The input of a WebSocket connection. The WebSocket library collects a message as a whole, so what arrives is counted below it, where
//! bytes are read from the connection.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::input_budget::InputLease;
use super::paced_body::{BYTES_PER_SECOND, STALL_BUDGET};

/// The input of one connection. The server reports what it reads. While the connection is HTTP, nothing is counted here: heads and read
/// buffers are small, and bodies are counted where they are collected.
#[derive(Clone, Debug, Default)]
pub struct ConnectionInput(Arc<Mutex<Option<Incomplete>>>);

/// The message of a WebSocket that has not arrived as a whole.
#[derive(Debug)]
struct Incomplete {
    lease: InputLease,
    bytes: u64,
    /// When its first byte arrived.
    since: Option<Instant>,
    is_refused: bool,
}

impl ConnectionInput {
    fn with<T>(&self, work: impl FnOnce(&mut Incomplete) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(work)
    }

    /// The connection becomes a WebSocket.
    pub(super) fn begin_socket(&self, lease: InputLease) {
        let incomplete = Incomplete { lease, bytes: 0, since: None, is_refused: false };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(incomplete);
    }

    /// Counts bytes that were read from the connection.
    ///
    /// # Errors
    /// The budget does not suffice, so the connection must end.
    pub fn received(&self, bytes: usize) -> io::Result<()> {
        let counted = self.with(|input| {
            input.bytes += bytes as u64;
            input.since.get_or_insert_with(Instant::now);
            let counted = input.lease.grow_to(input.bytes);
            input.is_refused = counted.is_err();
            counted
        });
        counted.unwrap_or(Ok(())).map_err(|error| io::Error::new(io::ErrorKind::QuotaExceeded, error))
    }

    /// A message has arrived as a whole.
    pub(super) fn end_message(&self) {
        self.with(|input| {
            (input.bytes, input.since) = (0, None);
            input.lease.clear();
        });
    }

    /// A control frame with a payload of this many bytes has arrived. It may come in the middle of a message, which goes on.
    pub(super) fn end_control_frame(&self, payload: usize) {
        // The header of a client's control frame has 6 bytes.
        self.with(|input| input.bytes = input.bytes.saturating_sub(payload as u64 + 6));
        self.with(|input| {
            if input.bytes == 0 {
                input.since = None;
            }
        });
    }

    /// Whether a message has been arriving for too long.
    pub(super) fn is_overdue(&self) -> bool {
        self.with(|input| {
            let allowed = STALL_BUDGET + Duration::from_secs_f64(input.bytes as f64 / BYTES_PER_SECOND);
            input.since.is_some_and(|since| since.elapsed() > allowed)
        })
        .unwrap_or(false)
    }

    /// Whether the connection ends because the budget did not suffice.
    pub(super) fn is_refused(&self) -> bool {
        self.with(|input| input.is_refused).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::input_budget::InputBudget;
    use super::*;

    fn open(budget: &Arc<InputBudget>) -> ConnectionInput {
        let input = ConnectionInput::default();
        input.begin_socket(budget.lease(&"a".into()));
        input
    }

    #[tokio::test(start_paused = true)]
    async fn half_sent_messages_are_bounded_together() {
        let budget = Arc::<InputBudget>::default();
        let sockets: Vec<ConnectionInput> = (0..100).map(|_| open(&budget)).collect();
        let accepted = sockets.iter().filter(|input| input.received(4_000_000).is_ok()).count();
        assert!((10..=16).contains(&accepted), "{accepted}");
        assert_eq!(sockets.iter().filter(|input| input.is_refused()).count(), 100 - accepted);
        sockets.iter().for_each(ConnectionInput::end_message);
        assert!(open(&budget).received(4_000_000).is_ok());
        assert!(ConnectionInput::default().received(usize::MAX).is_ok(), "HTTP is counted elsewhere");
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_do_not_hide_a_slow_message() {
        let input = open(&Arc::default());
        input.received(100).unwrap();
        for _ in 0..10 {
            tokio::time::sleep(STALL_BUDGET / 10).await;
            input.received(6 + 4).unwrap();
            input.end_control_frame(4);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(input.is_overdue());
        input.end_message();
        assert!(!input.is_overdue());
        input.received(6).unwrap();
        input.end_control_frame(0);
        tokio::time::sleep(10 * STALL_BUDGET).await;
        assert!(!input.is_overdue(), "a quiet connection sends nothing by halves");
    }
}

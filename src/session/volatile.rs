//! The journal of a one-shot run: nothing is kept but what its one reader has not taken yet.

use async_trait::async_trait;

use super::piece::{Journal, JournalError, Piece, SessionEvent};
use crate::link::weighed::{self, WeighedReceiver, WeighedSender};

/// Bytes of events that wait for the reader.
const QUEUED: usize = 8 << 20;

/// The events of a session, in order. Whoever does not take them holds up the session: it reads no further, and its agent
/// keeps what follows.
pub type SessionEvents = WeighedReceiver<SessionEvent>;

/// Passes events on to one reader.
pub struct VolatileJournal(WeighedSender<SessionEvent>);

impl VolatileJournal {
    /// A journal and its reader.
    pub fn new() -> (Self, SessionEvents) {
        let (sender, receiver) = weighed::channel(QUEUED);
        (Self(sender), receiver)
    }
}

#[async_trait]
impl Journal for VolatileJournal {
    async fn room(&self) {
        self.0.room().await;
    }

    async fn append(&mut self, piece: &Piece) -> Result<(), JournalError> {
        for event in &piece.events {
            // Nobody may be reading any more, which does not concern the session.
            let _ = self.0.send(event.clone(), event.size());
        }
        Ok(())
    }
}

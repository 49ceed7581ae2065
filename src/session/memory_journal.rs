//! The journal of a one-shot run: it holds only the events that its one reader has not taken yet.

use async_trait::async_trait;

use super::journal::{Journal, JournalError};
use super::transaction::{SessionEvent, Transaction};
use crate::link::byte_bounded_channel::{self, ByteBoundedReceiver, ByteBoundedSender};

/// Bytes of events that may wait for the reader.
const QUEUED: usize = 8 << 20;

/// The events of a session, in order. A reader that takes none of them stops the session from reading further; its agent buffers
/// what follows.
pub type SessionEvents = ByteBoundedReceiver<SessionEvent>;

/// Passes events on to one reader.
pub struct MemoryJournal(ByteBoundedSender<SessionEvent>);

impl MemoryJournal {
    pub fn new() -> (Self, SessionEvents) {
        let (sender, receiver) = byte_bounded_channel::channel(QUEUED);
        (Self(sender), receiver)
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn room(&self) {
        self.0.room().await;
    }

    async fn append(&mut self, transaction: &Transaction) -> Result<(), JournalError> {
        for event in &transaction.events {
            // A reader that has gone does not concern the session.
            let _ = self.0.send(event.clone(), event.size());
        }
        Ok(())
    }
}

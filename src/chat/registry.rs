//! The turns in progress, with limits in total and per principal. A turn is the answer to one message.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;

use super::AskError;
use crate::counters::{UseCounter, UseGuard};
use crate::ids::{PrincipalId, SessionId};

/// The largest number of turns in progress.
pub(super) const MAX_TURNS: usize = 64;
/// The largest number of turns in sessions of one principal, so that no principal blocks the others.
pub(super) const MAX_TURNS_PER_PRINCIPAL: usize = 16;

struct TurnEntry {
    /// The cell of the message that is being answered.
    cell: String,
    stop: watch::Sender<bool>,
    /// Closed when the turn has ended.
    ended: watch::Receiver<()>,
}

/// The turns in progress by session. Clones share them.
#[derive(Clone, Default)]
pub(super) struct TurnRegistry {
    turns: Arc<DashMap<SessionId, TurnEntry>>,
    counter: Arc<UseCounter>,
}

/// A turn in progress. Dropping it ends the turn, whatever its outcome.
pub(super) struct TurnGuard {
    registry: TurnRegistry,
    id: SessionId,
    /// Becomes true when the turn must stop.
    pub stop: watch::Receiver<bool>,
    _use: UseGuard,
    /// Dropped last, so that a waiting task finds the session free.
    _ended: watch::Sender<()>,
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        self.registry.turns.remove(&self.id);
    }
}

impl TurnRegistry {
    /// Starts the turn of a session. `cell` has the message, and `principal` owns the session.
    pub fn start(&self, id: &SessionId, principal: &PrincipalId, cell: &str) -> Result<TurnGuard, AskError> {
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = watch::channel(());
        let Entry::Vacant(entry) = self.turns.entry(id.clone()) else { return Err(AskError::TurnInProgress) };
        let count = self
            .counter
            .try_count(principal, 1, |used| used.total < MAX_TURNS as u64 && used.own < MAX_TURNS_PER_PRINCIPAL as u64);
        let count = count.ok_or(AskError::TooManyTurns)?;
        entry.insert(TurnEntry { cell: cell.to_owned(), stop, ended });
        Ok(TurnGuard { registry: self.clone(), id: id.clone(), stop: stopping, _use: count, _ended: end })
    }

    /// The cell with the message that is being answered in a session.
    pub fn cell(&self, id: &SessionId) -> Option<String> {
        self.turns.get(id).map(|turn| turn.cell.clone())
    }

    /// Tells the turn of a session to stop. Returns `false` if there is none.
    pub fn stop(&self, id: &SessionId) -> bool {
        self.turns.get(id).map(|turn| turn.stop.send_replace(true)).is_some()
    }

    /// Waits until the session has no turn.
    pub async fn until_finished(&self, id: &SessionId) {
        let ended = self.turns.get(id).map(|turn| turn.ended.clone());
        if let Some(mut ended) = ended {
            // Nothing is ever sent: this returns when the sender is dropped.
            let _ = ended.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_principal_cannot_use_all_turns() {
        let registry = TurnRegistry::default();
        let start = |principal: &str| registry.start(&SessionId::random(), &principal.into(), "c");
        let mut turns: Vec<TurnGuard> = (0..MAX_TURNS_PER_PRINCIPAL).map(|_| start("greedy").unwrap()).collect();
        assert!(matches!(start("greedy"), Err(AskError::TooManyTurns)));
        let other = start("other").unwrap();
        assert!(matches!(registry.start(&other.id, &"other".into(), "d"), Err(AskError::TurnInProgress)));
        turns.pop();
        turns.push(start("greedy").unwrap());
        let others = (turns.len() + 1..MAX_TURNS).map(|n| start(&n.to_string()).unwrap());
        turns.extend(others.collect::<Vec<_>>());
        assert!(matches!(start("late"), Err(AskError::TooManyTurns)));
    }

    #[tokio::test]
    async fn panicking_turn_frees_its_session() {
        let (registry, id) = (TurnRegistry::default(), SessionId::random());
        let me = PrincipalId::from("me");
        let turn = registry.start(&id, &me, "c").unwrap();
        assert_eq!(registry.cell(&id).as_deref(), Some("c"));
        let waiting = tokio::spawn({
            let (registry, id) = (registry.clone(), id.clone());
            async move { registry.until_finished(&id).await }
        });
        assert!(registry.stop(&id) && *turn.stop.borrow());
        let panics = tokio::spawn(async move {
            let _turn = turn;
            panic!("an internal error");
        });
        assert!(panics.await.unwrap_err().is_panic());
        waiting.await.unwrap();
        assert!(registry.cell(&id).is_none() && !registry.stop(&id));
        registry.start(&id, &me, "d").unwrap();
    }
}

//! Which sessions are answered now, and how many may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::AskError;
use crate::ids::SessionId;

/// Answers that are on their way at once.
pub(super) const MOST_TURNS: usize = 64;
/// Those of them in sessions of one principal: nobody's keep all others from being answered.
pub(super) const MOST_OF_ONE: usize = 16;

struct Answering {
    principal: String,
    cell: String,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

/// The answers that are on their way. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Table(Arc<Mutex<HashMap<SessionId, Answering>>>);

/// A session's place among them. It is given back when this is dropped, however its answer ends.
pub(super) struct Place {
    table: Table,
    id: SessionId,
    /// Whether it is to be stopped.
    pub stop: watch::Receiver<bool>,
    /// Dropped last: whoever waits for the end finds the place free.
    _ending: watch::Sender<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.with(|all| all.remove(&self.id));
    }
}

impl Table {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<SessionId, Answering>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for a session of this principal, whose message is in this cell.
    pub fn admit(&self, id: &SessionId, principal: &str, cell: &str) -> Result<Place, AskError> {
        let (stop, stopping) = watch::channel(false);
        let (ending, ended) = watch::channel(());
        let answering = Answering { principal: principal.to_owned(), cell: cell.to_owned(), stop, ended };
        self.with(|all| {
            if all.contains_key(id) {
                return Err(AskError::Answering);
            }
            let own = all.values().filter(|one| one.principal == principal).count();
            if all.len() >= MOST_TURNS || own >= MOST_OF_ONE {
                return Err(AskError::Busy);
            }
            all.insert(id.clone(), answering);
            Ok(())
        })?;
        Ok(Place { table: self.clone(), id: id.clone(), stop: stopping, _ending: ending })
    }

    /// The cell that is being answered in a session.
    pub fn cell(&self, id: &SessionId) -> Option<String> {
        self.with(|all| all.get(id).map(|one| one.cell.clone()))
    }

    /// Tells a session's answer to stop; `false` when there is none.
    pub fn stop(&self, id: &SessionId) -> bool {
        self.with(|all| all.get(id).map(|one| one.stop.send_replace(true))).is_some()
    }

    /// Waits until the session is not answered.
    pub async fn until_free(&self, id: &SessionId) {
        let ended = self.with(|all| all.get(id).map(|one| one.ended.clone()));
        if let Some(mut ended) = ended {
            // The other end is dropped, and nothing is ever sent.
            let _ = ended.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places() {
        let table = Table::default();
        let admit = |principal: &str| table.admit(&SessionId::random(), principal, "c");
        let mut places: Vec<Place> = (0..MOST_OF_ONE).map(|_| admit("greedy").unwrap()).collect();
        assert!(matches!(admit("greedy"), Err(AskError::Busy)));
        let other = admit("other").unwrap();
        assert!(matches!(table.admit(&other.id, "other", "d"), Err(AskError::Answering)));
        places.pop();
        places.push(admit("greedy").unwrap());
        let others = (places.len() + 1..MOST_TURNS).map(|n| admit(&n.to_string()).unwrap());
        places.extend(others.collect::<Vec<_>>());
        assert!(matches!(admit("late"), Err(AskError::Busy)));
    }

    #[tokio::test]
    async fn a_place_is_free_however_its_answer_ends() {
        let (table, id) = (Table::default(), SessionId::random());
        let place = table.admit(&id, "me", "c").unwrap();
        assert_eq!(table.cell(&id).as_deref(), Some("c"));
        let waiting = tokio::spawn({
            let (table, id) = (table.clone(), id.clone());
            async move { table.until_free(&id).await }
        });
        assert!(table.stop(&id) && *place.stop.borrow());
        let panics = tokio::spawn(async move {
            let _place = place;
            panic!("a fault of ours");
        });
        assert!(panics.await.unwrap_err().is_panic());
        waiting.await.unwrap();
        assert!(table.cell(&id).is_none() && !table.stop(&id));
        table.admit(&id, "me", "d").unwrap();
    }
}

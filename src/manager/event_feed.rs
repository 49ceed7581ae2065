//! The committed events of a session for its subscribers: first the backlog, then live events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::ids::{Seq, SessionId};
use crate::store::{EventKind, EventRow, Store, StoreError};

/// Bytes of the latest events that are cached for subscribers that keep up.
const CACHE_BYTES: usize = 128 << 10;
/// Events, and bytes of them, in one page of the backlog.
const MAX_PAGE_EVENTS: usize = 500;
const MAX_PAGE_BYTES: usize = 1 << 20;

/// A cache of the latest events of a session, and a signal for new ones.
#[derive(Debug)]
pub(super) struct EventFeed {
    cache: Mutex<EventCache>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    last_seq: Seq,
    /// The session was deleted, so no further events come.
    is_closed: bool,
}

#[derive(Debug, Default)]
struct EventCache {
    events: VecDeque<Arc<EventRow>>,
    bytes: usize,
}

impl EventFeed {
    pub fn new(last_seq: Seq) -> Arc<Self> {
        let progress = Progress { last_seq, is_closed: false };
        Arc::new(Self { cache: Mutex::default(), progress: watch::channel(progress).0 })
    }

    /// Publishes events after their commit.
    pub fn publish(&self, events: Vec<EventRow>) {
        let Some(last) = events.last().map(|event| event.seq) else { return };
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                cache.bytes += event.body.len();
                cache.events.push_back(Arc::new(event));
            }
            while cache.bytes > CACHE_BYTES
                && let Some(oldest) = cache.events.pop_front()
            {
                cache.bytes -= oldest.body.len();
            }
        }
        self.progress.send_modify(|progress| progress.last_seq = last);
    }

    /// Ends all subscriptions: the session is being deleted.
    pub fn close(&self) {
        self.progress.send_modify(|progress| progress.is_closed = true);
    }

    fn last_seq(&self) -> Seq {
        self.progress.borrow().last_seq
    }

    /// The events after a sequence number, if the cache holds all of them.
    pub fn cached_after(&self, seq: Seq) -> Option<Vec<Arc<EventRow>>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let first = cache.events.front()?.seq;
        let from = cache.events.partition_point(|event| event.seq <= seq);
        (first <= seq.next()).then(|| cache.events.range(from..).cloned().collect())
    }
}

/// Reads the events of a session after a cursor, until the session is deleted. A slow subscriber reads from the store, so it
/// delays nobody and loses nothing.
pub struct EventSubscription {
    store: Store,
    session: SessionId,
    feed: Arc<EventFeed>,
    /// The sequence number of the last event that was returned.
    cursor: Seq,
}

impl EventSubscription {
    pub(super) fn new(store: Store, session: SessionId, feed: Arc<EventFeed>, cursor: Seq) -> Self {
        Self { store, session, feed, cursor }
    }

    /// Whether the subscriber has received every event so far.
    pub fn is_caught_up(&self) -> bool {
        self.feed.last_seq() <= self.cursor
    }

    /// Waits for at least one event. `None` once the session is deleted. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Vec<Arc<EventRow>>>, StoreError> {
        let mut progress = self.feed.progress.subscribe();
        loop {
            let events = self.available().await?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            let cursor = self.cursor;
            match progress.wait_for(|progress| progress.is_closed || progress.last_seq > cursor).await {
                Ok(progress) if !progress.is_closed => continue,
                _ => {}
            }
            // The last event may have come together with the end.
            let last = self.available().await?;
            return Ok((!last.is_empty()).then_some(last));
        }
    }

    /// One page of the events that exist already. Empty if there are no new events.
    pub async fn available(&mut self) -> Result<Vec<Arc<EventRow>>, StoreError> {
        if self.is_caught_up() {
            return Ok(Vec::new());
        }
        let events = match self.feed.cached_after(self.cursor) {
            Some(events) => events,
            None => {
                let page = self.store.events_after(&self.session, self.cursor, MAX_PAGE_EVENTS, MAX_PAGE_BYTES).await?;
                page.into_iter().map(|event| Arc::new(seen_from(self.cursor, event))).collect()
            }
        };
        if let Some(last) = events.last() {
            self.cursor = last.seq;
        }
        Ok(events)
    }
}

/// A merged event as a subscriber at `cursor` must see it. If the subscriber has seen some of the merged events, part of the
/// text repeats, so the event is an update and not an append.
fn seen_from(cursor: Seq, event: EventRow) -> EventRow {
    if event.first <= cursor { EventRow { kind: EventKind::OutputUpdate, ..event } } else { event }
}

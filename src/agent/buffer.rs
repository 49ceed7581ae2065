//! The buffer of events that the manager has not acknowledged yet.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::Seq;

/// A numbered, encoded event. Its pieces share memory with the message.
#[derive(Clone, Debug)]
pub(super) struct BufferedEvent {
    pub seq: Seq,
    pub pieces: Vec<Bytes>,
    size: usize,
    /// Bytes of all events before this one.
    position: u64,
}

impl BufferedEvent {
    /// Memory including overhead, bytes.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Bounded by bytes. On overflow the oldest events are dropped, and readers of them get [`Lookup::Dropped`].
pub(super) struct EventBuffer {
    events: VecDeque<BufferedEvent>,
    next: Seq,
    size: usize,
    limit: usize,
    /// Bytes stored since [`EventBuffer::take_stored`].
    stored: usize,
    /// Bytes of all events so far.
    total: u64,
}

/// Charged for each event beyond its bytes, so that many tiny events cannot exceed the bound.
const OVERHEAD: usize = 256;

pub(super) enum Lookup<'a> {
    Event(&'a BufferedEvent),
    /// All events before `until` were dropped.
    Dropped {
        until: Seq,
    },
    NotYet,
}

impl EventBuffer {
    pub fn new(limit: usize) -> Self {
        Self { events: VecDeque::new(), next: Seq::FIRST, size: 0, limit, stored: 0, total: 0 }
    }

    /// Stores an event under the next number.
    pub fn push(&mut self, pieces: Vec<Bytes>) {
        let size = OVERHEAD + pieces.iter().map(Bytes::len).sum::<usize>();
        self.events.push_back(BufferedEvent { seq: self.next, pieces, size, position: self.total });
        self.total += size as u64;
        self.next = self.next.next();
        self.size += size;
        self.stored += size;
        // The newest event always stays: it may be the reply that ends an execution.
        while self.size > self.limit && self.events.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Drops all events up to `seq`, which the manager has acknowledged.
    pub fn ack(&mut self, seq: Seq) {
        while self.events.front().is_some_and(|event| event.seq <= seq) {
            self.drop_oldest();
        }
        if self.events.capacity() > 4096 && self.events.len() < self.events.capacity() / 8 {
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    /// Whether every event is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The bytes stored since the last call that returned them; `None`, without a reset, if fewer than `at_least`.
    pub fn take_stored(&mut self, at_least: usize) -> Option<usize> {
        (self.stored >= at_least).then(|| std::mem::take(&mut self.stored))
    }

    /// Memory of all events, bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes of the events from `seq` on.
    pub fn bytes_from(&self, seq: Seq) -> u64 {
        match self.get(seq) {
            Lookup::Event(event) => self.total - event.position,
            Lookup::Dropped { .. } => self.size as u64,
            Lookup::NotYet => 0,
        }
    }

    /// Drops the oldest event.
    pub fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.size -= event.size;
        }
    }

    /// The oldest number that can be replayed.
    pub fn first(&self) -> Seq {
        self.events.front().map_or(self.next, |event| event.seq)
    }

    /// The number of the next event.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    pub fn get(&self, seq: Seq) -> Lookup<'_> {
        let first = self.first();
        if seq < first {
            return Lookup::Dropped { until: first };
        }
        // Numbers are contiguous, so the index follows from the number.
        match self.events.get((seq.0 - first.0) as usize) {
            Some(event) => Lookup::Event(event),
            None => Lookup::NotYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(buffer: &mut EventBuffer, size: usize) {
        buffer.push(vec![vec![0; size].into()]);
    }

    #[test]
    fn events_replay_until_acknowledged() {
        let mut buffer = EventBuffer::new(1 << 20);
        (0..5).for_each(|_| push(&mut buffer, 10));
        assert!(matches!(buffer.get(Seq(1)), Lookup::Event(event) if event.seq == Seq(1)));
        buffer.ack(Seq(3));
        assert_eq!((buffer.first(), buffer.next_seq()), (Seq(4), Seq(6)));
        assert!(matches!(buffer.get(Seq(2)), Lookup::Dropped { until: Seq(4) }));
        assert!(matches!(buffer.get(Seq(5)), Lookup::Event(event) if event.seq == Seq(5)));
        assert!(matches!(buffer.get(Seq(6)), Lookup::NotYet));
        buffer.ack(Seq(u64::MAX));
        assert_eq!((buffer.first(), buffer.size), (Seq(6), 0));
    }

    #[test]
    fn stored_bytes_accumulate_until_taken() {
        let mut buffer = EventBuffer::new(1 << 20);
        push(&mut buffer, 100);
        assert_eq!(buffer.take_stored(1000), None);
        push(&mut buffer, 1000);
        buffer.ack(Seq(2));
        assert!(buffer.is_empty());
        assert_eq!(buffer.take_stored(1000), Some(1100 + 2 * OVERHEAD));
        assert_eq!(buffer.take_stored(1), None);
    }

    #[test]
    fn overflow_drops_oldest_keeps_newest() {
        let mut buffer = EventBuffer::new(1000);
        (0..10).for_each(|_| push(&mut buffer, 100));
        assert!(buffer.size <= 1000);
        push(&mut buffer, 5000);
        assert_eq!((buffer.first(), buffer.next_seq()), (Seq(11), Seq(12)));
    }

    proptest! {
        #[test]
        fn numbers_stay_contiguous_and_sizes_add_up(steps in prop::collection::vec((0usize..300, 0u64..50), 1..100)) {
            let mut buffer = EventBuffer::new(4000);
            for (size, ack) in steps {
                push(&mut buffer, size);
                buffer.ack(Seq(ack));
                let numbers: Vec<u64> = buffer.events.iter().map(|event| event.seq.0).collect();
                prop_assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
                prop_assert_eq!(buffer.size, buffer.events.iter().map(|event| event.size).sum::<usize>());
            }
        }
    }
}

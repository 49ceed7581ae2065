//! The window of events that the manager has not made safe yet.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::Seq;

/// An event as stored: its number and its encoded pieces, which share memory with the message they came from.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub seq: Seq,
    pub pieces: Vec<Bytes>,
    size: usize,
}

impl Stored {
    /// Bytes it takes, overhead included.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Bounded by bytes. When it overflows the oldest events go, and whoever asks for them is told.
pub(super) struct Buffer {
    events: VecDeque<Stored>,
    next: Seq,
    size: usize,
    limit: usize,
    /// Bytes stored since [`Buffer::take_stored`].
    stored: usize,
}

/// What one event costs beyond its bytes: many tiny events must not escape the bound.
const OVERHEAD: usize = 256;

/// What a reader at some number finds.
pub(super) enum Lookup<'a> {
    /// The event.
    Event(&'a Stored),
    /// Events up to (not including) this number are gone.
    Gone { until: Seq },
    /// Nothing that new yet.
    Nothing,
}

impl Buffer {
    pub fn new(limit: usize) -> Self {
        Self { events: VecDeque::new(), next: Seq::FIRST, size: 0, limit, stored: 0 }
    }

    /// Stores an event under the next number.
    pub fn push(&mut self, pieces: Vec<Bytes>) {
        let size = OVERHEAD + pieces.iter().map(Bytes::len).sum::<usize>();
        self.events.push_back(Stored { seq: self.next, pieces, size });
        self.next = self.next.next();
        self.size += size;
        self.stored += size;
        // The newest always stays: it may be the very message that says how the run ended.
        while self.size > self.limit && self.events.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Forgets everything up to `seq`: it is safe with the manager.
    pub fn ack(&mut self, seq: Seq) {
        while self.events.front().is_some_and(|event| event.seq <= seq) {
            self.drop_oldest();
        }
        if self.events.capacity() > 4096 && self.events.len() < self.events.capacity() / 8 {
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    /// Whether everything is safe with the manager.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How many bytes were stored since this was last asked, if they are `at_least` so many; else they count on.
    pub fn take_stored(&mut self, at_least: usize) -> Option<usize> {
        (self.stored >= at_least).then(|| std::mem::take(&mut self.stored))
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.size -= event.size;
        }
    }

    /// The oldest number that can be replayed.
    pub fn first(&self) -> Seq {
        self.events.front().map_or(self.next, |event| event.seq)
    }

    /// The number the next event will get.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// What stands at `seq`.
    pub fn get(&self, seq: Seq) -> Lookup<'_> {
        let first = self.first();
        if seq < first {
            return Lookup::Gone { until: first };
        }
        // Numbers are contiguous, so the place follows from the number.
        match self.events.get((seq.0 - first.0) as usize) {
            Some(event) => Lookup::Event(event),
            None => Lookup::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(buffer: &mut Buffer, size: usize) {
        buffer.push(vec![vec![0; size].into()]);
    }

    #[test]
    fn replays_until_acked() {
        let mut buffer = Buffer::new(1 << 20);
        (0..5).for_each(|_| push(&mut buffer, 10));
        assert!(matches!(buffer.get(Seq(1)), Lookup::Event(event) if event.seq == Seq(1)));
        buffer.ack(Seq(3));
        assert_eq!((buffer.first(), buffer.next_seq()), (Seq(4), Seq(6)));
        assert!(matches!(buffer.get(Seq(2)), Lookup::Gone { until: Seq(4) }));
        assert!(matches!(buffer.get(Seq(5)), Lookup::Event(event) if event.seq == Seq(5)));
        assert!(matches!(buffer.get(Seq(6)), Lookup::Nothing));
        buffer.ack(Seq(u64::MAX));
        assert_eq!((buffer.first(), buffer.size), (Seq(6), 0));
    }

    #[test]
    fn what_was_stored_is_counted_until_it_is_asked_for() {
        let mut buffer = Buffer::new(1 << 20);
        push(&mut buffer, 100);
        assert_eq!(buffer.take_stored(1000), None);
        push(&mut buffer, 1000);
        buffer.ack(Seq(2));
        assert!(buffer.is_empty());
        assert_eq!(buffer.take_stored(1000), Some(1100 + 2 * OVERHEAD));
        assert_eq!(buffer.take_stored(1), None);
    }

    #[test]
    fn overflow_drops_the_oldest_and_keeps_the_newest() {
        let mut buffer = Buffer::new(1000);
        (0..10).for_each(|_| push(&mut buffer, 100));
        assert!(buffer.size <= 1000);
        push(&mut buffer, 5000);
        assert_eq!((buffer.first(), buffer.next_seq()), (Seq(11), Seq(12)));
    }

    proptest! {
        #[test]
        fn numbers_are_contiguous_and_sizes_add_up(steps in prop::collection::vec((0usize..300, 0u64..50), 1..100)) {
            let mut buffer = Buffer::new(4000);
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

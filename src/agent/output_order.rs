//! Puts the text of a kernel's stdout and stderr and its broadcasts into the order in which they were written.
//!
//! They come through three pipes, which the agent may find filled at the same time. A broadcast says how many bytes had been
//! written to stdout and stderr before it; text is released up to there first. Between broadcasts, text keeps the order in
//! which it was read.

use std::collections::VecDeque;

use bytes::Bytes;

use super::iopub_pipe::Positions;

/// A standard stream of the kernel process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Both streams, indexed by their number.
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The name in Jupyter's `stream` messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Text that was read and not released yet.
#[derive(Default)]
pub(super) struct OutputOrder {
    waiting: VecDeque<(Stream, Bytes)>,
    /// Bytes read from each stream since the kernel's start.
    read: [u64; 2],
    /// Bytes released of each stream.
    released: [u64; 2],
}

impl OutputOrder {
    /// Adds text that was read.
    pub fn push(&mut self, stream: Stream, bytes: Bytes) {
        self.read[stream as usize] += bytes.len() as u64;
        self.waiting.push_back((stream, bytes));
    }

    /// Bytes read from `stream` since the kernel's start.
    pub fn read(&self, stream: Stream) -> u64 {
        self.read[stream as usize]
    }

    /// Whether more of `stream` was written before `positions` than has been read.
    pub fn misses(&self, stream: Stream, positions: &Positions) -> bool {
        positions[stream as usize].is_some_and(|at| at > self.read[stream as usize])
    }

    /// Releases the text that was written before `positions`; everything where the position is unknown.
    pub fn release_until(&mut self, positions: &Positions) -> Vec<(Stream, Bytes)> {
        let mut released = Vec::new();
        for (stream, mut bytes) in std::mem::take(&mut self.waiting) {
            let before = &mut self.released[stream as usize];
            let room = positions[stream as usize].map_or(u64::MAX, |at| at.saturating_sub(*before));
            let now = bytes.split_to(room.min(bytes.len() as u64) as usize);
            *before += now.len() as u64;
            if !now.is_empty() {
                released.push((stream, now));
            }
            if !bytes.is_empty() {
                self.waiting.push_back((stream, bytes));
            }
        }
        released
    }

    /// Releases all text, since every broadcast that was written before it has been handled.
    pub fn release_all(&mut self) -> Vec<(Stream, Bytes)> {
        self.release_until(&[None, None])
    }
}

#[cfg(test)]
mod tests {
    use Stream::{Stderr, Stdout};
    use proptest::prelude::*;

    use super::*;

    fn text(stream: Stream, text: &'static str) -> (Stream, Bytes) {
        (stream, Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn text_is_split_at_the_position_of_a_broadcast() {
        let mut order = OutputOrder::default();
        order.push(Stdout, "before after".into());
        order.push(Stderr, "warning".into());
        assert_eq!(order.release_until(&[Some(7), Some(0)]), [text(Stdout, "before ")]);
        assert_eq!(order.release_all(), [text(Stdout, "after"), text(Stderr, "warning")]);
        assert!(order.misses(Stdout, &[Some(13), None]) && !order.misses(Stdout, &[Some(12), None]));
    }

    #[test]
    fn unknown_or_past_positions_release_what_was_read() {
        let mut order = OutputOrder::default();
        order.push(Stdout, "a".into());
        order.push(Stderr, "b".into());
        assert_eq!(order.release_until(&[Some(99), Some(0)]), [text(Stdout, "a")]);
        assert_eq!(order.release_until(&[Some(0), None]), [text(Stderr, "b")]);
        assert!(order.release_all().is_empty());
    }

    #[derive(Clone, Debug)]
    enum Write {
        Text(Stream, Vec<u8>),
        Broadcast,
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let bytes = || prop::collection::vec(any::<u8>(), 1..9);
        let write = prop_oneof![
            bytes().prop_map(|bytes| Write::Text(Stdout, bytes)),
            bytes().prop_map(|bytes| Write::Text(Stderr, bytes)),
            Just(Write::Broadcast),
        ];
        prop::collection::vec(write, 0..30)
    }

    proptest! {
        /// Whatever is written between two broadcasts is released between them, however the pipes are read.
        #[test]
        fn text_stays_between_its_broadcasts(writes in writes()) {
            let mut written = [Vec::new(), Vec::new()];
            let mut positions: Vec<Positions> = Vec::new();
            for write in &writes {
                match write {
                    Write::Text(stream, bytes) => written[*stream as usize].extend(bytes),
                    Write::Broadcast => positions.push([0, 1].map(|stream: usize| Some(written[stream].len() as u64))),
                }
            }
            let mut order = OutputOrder::default();
            for stream in Stream::BOTH {
                order.push(stream, written[stream as usize].clone().into());
            }
            let mut seen = [0, 0];
            for at in &positions {
                for (stream, bytes) in order.release_until(at) {
                    seen[stream as usize] += bytes.len() as u64;
                }
                prop_assert_eq!(seen.map(Some), *at);
            }
            for (stream, bytes) in order.release_all() {
                seen[stream as usize] += bytes.len() as u64;
            }
            prop_assert_eq!(seen, [written[0].len() as u64, written[1].len() as u64]);
        }
    }
}

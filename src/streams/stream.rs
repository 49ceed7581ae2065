//! One stream: what has been received and not read, and how much may be sent.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::sync::Notify;

use super::Shared;
use super::copy::{Pieces, Room};
use crate::agent_protocol::{ACCEPTOR_WINDOW, OPENER_WINDOW, STREAM_CHUNK, StreamFrame};

/// Data below this size is copied together: a small piece would keep the whole buffer that it was read into.
const SMALL: usize = 16 * 1024;

/// The stream or its connection has ended before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the stream broke off")]
pub(crate) struct StreamBroken;

impl From<StreamBroken> for io::Error {
    fn from(broken: StreamBroken) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, broken)
    }
}

/// This side's half of a stream.
pub(super) struct Half {
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
    broken: Notify,
    /// The most bytes that may be received and not read.
    window: usize,
}

#[derive(Default)]
struct State {
    received: VecDeque<Bytes>,
    /// Small pieces after those of `received`.
    tail: BytesMut,
    /// How much more the other side may send.
    allowance: usize,
    /// Bytes that were read and are not allowed again yet.
    unreported: usize,
    has_peer_ended: bool,
    /// How much this side may send.
    credit: usize,
    has_ended: bool,
    is_broken: bool,
}

impl Half {
    #[cfg(any(feature = "agent", test))]
    pub fn opener() -> Self {
        Self::new(OPENER_WINDOW, ACCEPTOR_WINDOW)
    }

    pub fn acceptor() -> Self {
        Self::new(ACCEPTOR_WINDOW, OPENER_WINDOW)
    }

    fn new(window: usize, credit: usize) -> Self {
        let state = State { allowance: window, credit, ..State::default() };
        Self { state: Mutex::new(state), readable: Notify::new(), writable: Notify::new(), broken: Notify::new(), window }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, bytes: Bytes) -> Result<(), &'static str> {
        let mut state = self.state();
        if state.has_peer_ended {
            return Err("data after the end");
        }
        state.allowance = state.allowance.checked_sub(bytes.len()).ok_or("more data than allowed")?;
        if bytes.len() < SMALL {
            state.tail.extend_from_slice(&bytes);
        } else {
            let tail = state.tail.split().freeze();
            state.received.extend([tail, bytes].into_iter().filter(|piece| !piece.is_empty()));
        }
        drop(state);
        self.readable.notify_one();
        Ok(())
    }

    pub fn push_end(&self) {
        self.state().has_peer_ended = true;
        self.readable.notify_one();
    }

    pub fn add_credit(&self, bytes: u32) {
        let mut state = self.state();
        state.credit = state.credit.saturating_add(bytes as usize);
        drop(state);
        self.writable.notify_one();
    }

    pub fn break_off(&self) {
        self.state().is_broken = true;
        self.readable.notify_one();
        self.writable.notify_one();
        self.broken.notify_one();
    }
}

/// A stream. One task may receive while another one sends. Dropping it ends the stream in both directions.
pub(crate) struct ByteStream {
    id: u32,
    half: Arc<Half>,
    shared: Arc<Shared>,
}

impl ByteStream {
    pub(super) fn new(id: u32, half: Arc<Half>, shared: Arc<Shared>) -> Self {
        Self { id, half, shared }
    }

    /// The next data; `None` at the end.
    pub async fn receive(&self) -> Result<Option<Bytes>, StreamBroken> {
        loop {
            self.report_read().await?;
            {
                let mut state = self.half.state();
                let next = match state.received.pop_front() {
                    Some(piece) => piece,
                    None => state.tail.split().freeze(),
                };
                match next.len() {
                    0 if state.has_peer_ended => return Ok(None),
                    0 if state.is_broken => return Err(StreamBroken),
                    0 => {}
                    read => {
                        state.unreported += read;
                        return Ok(Some(next));
                    }
                }
            }
            self.half.readable.notified().await;
        }
    }

    /// Waits until the other side has dropped the stream or the connection has ended, even if data was received that nobody has read.
    /// One task may wait.
    #[cfg(feature = "host")]
    pub async fn broken(&self) {
        while !self.half.state().is_broken {
            self.half.broken.notified().await;
        }
    }

    /// Whether all data of the other side is here.
    #[cfg(test)]
    pub fn has_peer_ended(&self) -> bool {
        self.half.state().has_peer_ended
    }

    /// Allows the other side to send as much as was read, once that is half a window.
    async fn report_read(&self) -> Result<(), StreamBroken> {
        let is_due = |state: &State| state.unreported >= self.half.window / 2 && !state.has_peer_ended;
        if !is_due(&self.half.state()) {
            return Ok(());
        }
        let place = self.shared.frames.reserve().await.map_err(|_| StreamBroken)?;
        let mut state = self.half.state();
        let bytes = std::mem::take(&mut state.unreported);
        state.allowance += bytes;
        place.send(StreamFrame::Credit { stream: self.id, bytes: bytes as u32 });
        Ok(())
    }

    /// Waits until data can be sent, and returns how many bytes: at most [`STREAM_CHUNK`].
    async fn until_room(&self) -> Result<usize, StreamBroken> {
        loop {
            {
                let state = self.half.state();
                if state.is_broken {
                    return Err(StreamBroken);
                }
                if state.credit > 0 {
                    return Ok(state.credit.min(STREAM_CHUNK));
                }
            }
            self.half.writable.notified().await;
        }
    }

    /// Sends data, as soon as the other side allows it.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), StreamBroken> {
        while !bytes.is_empty() {
            let room = self.until_room().await?.min(bytes.len());
            let place = self.shared.frames.reserve().await.map_err(|_| StreamBroken)?;
            let mut state = self.half.state();
            if state.is_broken {
                return Err(StreamBroken);
            }
            state.credit -= room;
            place.send(StreamFrame::Data { stream: self.id, bytes: bytes.split_to(room) });
        }
        Ok(())
    }

    /// Says that no more data comes.
    pub async fn end(&self) -> Result<(), StreamBroken> {
        let place = self.shared.frames.reserve().await.map_err(|_| StreamBroken)?;
        self.half.state().has_ended = true;
        place.send(StreamFrame::End { stream: self.id });
        Ok(())
    }
}

impl Pieces for ByteStream {
    async fn receive(&self) -> io::Result<Option<Bytes>> {
        Ok(self.receive().await?)
    }

    async fn until_sendable(&self) -> io::Result<()> {
        Ok(self.until_room().await.map(drop)?)
    }

    fn room(&self) -> Room {
        Room { bytes: self.half.state().credit.clamp(1, STREAM_CHUNK), permit: None }
    }

    async fn send(&self, bytes: Bytes) -> io::Result<()> {
        Ok(self.send(bytes).await?)
    }

    async fn end(&self) -> io::Result<()> {
        Ok(self.end().await?)
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        let is_over = {
            let state = self.half.state();
            state.has_ended && state.has_peer_ended
        };
        self.shared.forget(self.id, is_over);
    }
}

//! Frames: `u32` length of kind and payload (little endian), `u8` kind, payload.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Magic bytes and protocol version, which each side sends first. Sides with different versions disconnect.
pub const PREAMBLE: [u8; 6] = *b"CKEEP\x05";

#[derive(Debug, Error)]
pub enum FrameError {
    #[error("cannot read from the other side: {0}")]
    Io(#[from] io::Error),
    /// The stream ended, inside a frame or between two.
    #[error("the other side closed the stream")]
    Closed,
    /// The preamble is foreign, or of another protocol version.
    #[error("not a cellkeep agent of this version (preamble {found:02x?})")]
    Preamble { found: [u8; 6] },
    #[error("unknown frame kind {kind:#04x}")]
    UnknownKind { kind: u8 },
    /// The frame exceeds the cap of its kind; detected before memory is allocated for it.
    #[error("frame of kind {kind:#04x} claims {length} bytes, the limit is {cap}")]
    TooLarge { kind: u8, length: usize, cap: usize },
}

/// A frame that is not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    pub kind: u8,
    pub payload: Bytes,
}

/// Reads and checks the other side's preamble.
///
/// # Errors
/// [`FrameError::Preamble`] or [`FrameError::Io`].
pub async fn read_preamble<R: AsyncRead + Unpin>(reader: &mut R) -> Result<(), FrameError> {
    let mut found = [0u8; PREAMBLE.len()];
    reader.read_exact(&mut found).await?;
    if found == PREAMBLE { Ok(()) } else { Err(FrameError::Preamble { found }) }
}

/// Reads frames. One task owns it, so that no cancellation loses half of a frame.
pub struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
    /// The cap of each kind, bytes; `None` refuses the kind.
    cap: fn(u8) -> Option<usize>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(reader: R, cap: fn(u8) -> Option<usize>) -> Self {
        Self { reader, buffer: BytesMut::with_capacity(16 * 1024), cap }
    }

    /// Reads frames of other kinds from here on.
    pub fn with_cap(self, cap: fn(u8) -> Option<usize>) -> Self {
        Self { cap, ..self }
    }

    /// The transport, for the preamble.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// Any [`FrameError`]; the stream is unusable afterwards.
    pub async fn next(&mut self) -> Result<RawFrame, FrameError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(FrameError::Closed);
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<RawFrame>, FrameError> {
        let Some(&[a, b, c, d, kind]) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let cap = (self.cap)(kind).ok_or(FrameError::UnknownKind { kind })?;
        if length == 0 || length > cap {
            return Err(FrameError::TooLarge { kind, length, cap });
        }
        if self.buffer.len() < 4 + length {
            self.buffer.reserve(4 + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some(RawFrame { kind, payload: self.buffer.split_to(length - 1).freeze() }))
    }
}

/// Prepends the head to the pieces of a payload.
pub fn encode_frame(kind: u8, payload: Vec<Bytes>) -> Vec<Bytes> {
    let length = 1 + payload.iter().map(Bytes::len).sum::<usize>();
    let mut head = BytesMut::with_capacity(5);
    head.put_u32_le(length as u32);
    head.put_u8(kind);
    std::iter::once(head.freeze()).chain(payload).collect()
}

/// Writes the pieces without copying them.
pub async fn write_all_vectored<W: AsyncWrite + Unpin>(writer: &mut W, pieces: Vec<Bytes>) -> io::Result<()> {
    /// The most pieces of one system call.
    const GATHER: usize = 64;
    let mut left = VecDeque::from(pieces);
    loop {
        while left.front().is_some_and(Bytes::is_empty) {
            left.pop_front();
        }
        if left.is_empty() {
            return writer.flush().await;
        }
        let slices: Vec<IoSlice<'_>> = left.iter().take(GATHER).map(|piece| IoSlice::new(piece)).collect();
        let mut written = writer.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(piece) = left.front_mut()
            && written > 0
        {
            let taken = written.min(piece.len());
            piece.advance(taken);
            written -= taken;
            if piece.is_empty() {
                left.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cap(kind: u8) -> Option<usize> {
        (kind == 1).then_some(1000)
    }

    async fn read_all(bytes: &[u8]) -> (Vec<RawFrame>, FrameError) {
        let mut reader = FrameReader::new(bytes, cap);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(frame) => frames.push(frame),
                Err(error) => return (frames, error),
            }
        }
    }

    #[tokio::test]
    async fn frames_round_trip_until_closed() {
        let mut bytes = Vec::new();
        for payload in [&b"hello"[..], b""] {
            write_all_vectored(&mut bytes, encode_frame(1, vec![Bytes::copy_from_slice(payload)])).await.unwrap();
        }
        let (frames, error) = read_all(&bytes).await;
        assert_eq!(frames.iter().map(|f| f.payload.as_ref()).collect::<Vec<_>>(), [&b"hello"[..], b""]);
        assert!(matches!(error, FrameError::Closed));
    }

    #[tokio::test]
    async fn frame_over_cap_is_refused_before_allocating() {
        let (_, error) = read_all(&[0xff, 0xff, 0xff, 0xff, 1, 0]).await;
        assert!(matches!(error, FrameError::TooLarge { cap: 1000, .. }), "{error}");
        let (_, error) = read_all(&[1, 0, 0, 0, 9]).await;
        assert!(matches!(error, FrameError::UnknownKind { kind: 9 }), "{error}");
        assert!(matches!(read_preamble(&mut &b"HTTP/1"[..]).await, Err(FrameError::Preamble { .. })));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(read_all(&bytes));
        }
    }
}

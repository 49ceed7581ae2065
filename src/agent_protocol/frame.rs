//! Frames: `u32` length (little endian, of kind and payload) | `u8` kind | payload.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Magic and version; each side sends it first. A change of the protocol changes the version, and unequal versions part.
pub const PREAMBLE: [u8; 6] = *b"CKEEP\x03";

/// Why a byte stream cannot be read on.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The transport failed.
    #[error("cannot read from the other side: {0}")]
    Io(#[from] io::Error),
    /// The stream ended; `inside` a frame or between two.
    #[error("the other side closed the stream")]
    Closed,
    /// The first bytes are not ours, or of another version.
    #[error("not a cellkeep agent of this version (preamble {found:02x?})")]
    Preamble {
        /// What came instead.
        found: [u8; 6],
    },
    /// A kind that this side does not take.
    #[error("unknown frame kind {kind:#04x}")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A frame longer than its kind may be, found before allocating for it.
    #[error("frame of kind {kind:#04x} claims {length} bytes, {cap} are allowed")]
    TooLarge {
        /// The kind.
        kind: u8,
        /// The claimed length.
        length: usize,
        /// The cap of that kind.
        cap: usize,
    },
}

/// One frame as read: its kind and its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// What it is.
    pub kind: u8,
    /// Its content.
    pub payload: Bytes,
}

/// Checks the other side's preamble.
///
/// # Errors
/// [`FrameError::Preamble`], or the transport's.
pub async fn read_preamble<R: AsyncRead + Unpin>(reader: &mut R) -> Result<(), FrameError> {
    let mut found = [0u8; PREAMBLE.len()];
    reader.read_exact(&mut found).await?;
    if found == PREAMBLE { Ok(()) } else { Err(FrameError::Preamble { found }) }
}

/// Reads frames. Owned by one task, so that nothing can cut a read in half.
pub struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
    /// The cap in bytes of each kind this side takes; `None` refuses the kind.
    cap: fn(u8) -> Option<usize>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that takes the kinds for which `cap` has a number.
    pub fn new(reader: R, cap: fn(u8) -> Option<usize>) -> Self {
        Self { reader, buffer: BytesMut::with_capacity(16 * 1024), cap }
    }

    /// The transport, for what comes before the first frame.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// The next frame.
    ///
    /// # Errors
    /// Any [`FrameError`]; after one the stream is of no more use.
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

/// The head and payload pieces of a frame, ready to write.
pub fn encode_frame(kind: u8, payload: Vec<Bytes>) -> Vec<Bytes> {
    let length = 1 + payload.iter().map(Bytes::len).sum::<usize>();
    let mut head = BytesMut::with_capacity(5);
    head.put_u32_le(length as u32);
    head.put_u8(kind);
    std::iter::once(head.freeze()).chain(payload).collect()
}

/// Writes the pieces, small ones gathered into one system call, large ones as they are.
///
/// # Errors
/// The transport's.
pub async fn write_all_vectored<W: AsyncWrite + Unpin>(writer: &mut W, pieces: Vec<Bytes>) -> io::Result<()> {
    const GATHER: usize = 32 * 1024;
    let mut small = BytesMut::new();
    for piece in pieces {
        if small.len() + piece.len() <= GATHER {
            small.extend_from_slice(&piece);
            continue;
        }
        writer.write_all(&small).await?;
        small.clear();
        writer.write_all(&piece).await?;
    }
    writer.write_all(&small).await?;
    writer.flush().await
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
    async fn frames_round_trip_and_the_end_is_told() {
        let mut bytes = Vec::new();
        for payload in [&b"hello"[..], b""] {
            write_all_vectored(&mut bytes, encode_frame(1, vec![Bytes::copy_from_slice(payload)])).await.unwrap();
        }
        let (frames, error) = read_all(&bytes).await;
        assert_eq!(frames.iter().map(|f| f.payload.as_ref()).collect::<Vec<_>>(), [&b"hello"[..], b""]);
        assert!(matches!(error, FrameError::Closed));
    }

    #[tokio::test]
    async fn a_huge_length_is_refused_before_allocating() {
        let (_, error) = read_all(&[0xff, 0xff, 0xff, 0xff, 1, 0]).await;
        assert!(matches!(error, FrameError::TooLarge { cap: 1000, .. }), "{error}");
        let (_, error) = read_all(&[1, 0, 0, 0, 9]).await;
        assert!(matches!(error, FrameError::UnknownKind { kind: 9 }), "{error}");
        assert!(matches!(read_preamble(&mut &b"HTTP/1"[..]).await, Err(FrameError::Preamble { .. })));
    }

    proptest! {
        #[test]
        fn garbage_ends_in_an_error_and_never_in_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(read_all(&bytes));
        }
    }
}

//! Frames of a connection that carries many byte streams: each stream has its own credit, so that one that nobody reads blocks no other.
//!
//! ```text
//! Credit{0, 0} ─▶        first, by the side that opens streams, once it is ready
//! Open{stream} ─▶        by the side that opens, with growing numbers from 1
//! Data{stream, bytes}    at most as many bytes as the other side has given credit for
//! Credit{stream, bytes}  so many more bytes may be sent
//! End{stream}            no more data in this direction
//! Reset{stream}          the stream is over in both directions
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{ProtocolError, take_u32};
use super::frame::{RawFrame, encode_frame};

/// The port of the proxy on the loopback of a sandbox.
pub const EGRESS_PORT: u16 = 3128;
/// The largest piece of data in one frame, bytes.
pub const STREAM_CHUNK: usize = 64 * 1024;
/// The credit of a new stream, bytes: of what the opening side receives, and of what it sends.
pub const OPENER_WINDOW: usize = 128 * 1024;
pub const ACCEPTOR_WINDOW: usize = 64 * 1024;

const OPEN: u8 = 0x41;
const DATA: u8 = 0x42;
const CREDIT: u8 = 0x43;
const END: u8 = 0x44;
const RESET: u8 = 0x45;

/// A frame about one stream, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamFrame {
    Open { stream: u32 },
    Data { stream: u32, bytes: Bytes },
    Credit { stream: u32, bytes: u32 },
    End { stream: u32 },
    Reset { stream: u32 },
}

impl StreamFrame {
    /// The cap of each frame kind, for [`super::FrameReader`].
    pub fn cap(kind: u8) -> Option<usize> {
        match kind {
            DATA => Some(STREAM_CHUNK + 16),
            OPEN | CREDIT | END | RESET => Some(16),
            _ => None,
        }
    }

    pub fn encode(self) -> Vec<Bytes> {
        let number = |value: u32| Bytes::copy_from_slice(&value.to_le_bytes());
        match self {
            Self::Open { stream } => encode_frame(OPEN, vec![number(stream)]),
            Self::Data { stream, bytes } => encode_frame(DATA, vec![number(stream), bytes]),
            Self::Credit { stream, bytes } => {
                let mut payload = BytesMut::with_capacity(8);
                payload.put_u32_le(stream);
                payload.put_u32_le(bytes);
                encode_frame(CREDIT, vec![payload.freeze()])
            }
            Self::End { stream } => encode_frame(END, vec![number(stream)]),
            Self::Reset { stream } => encode_frame(RESET, vec![number(stream)]),
        }
    }

    /// # Errors
    /// [`ProtocolError`] for bytes that no correct side sends.
    pub fn decode(frame: RawFrame) -> Result<Self, ProtocolError> {
        let mut payload = frame.payload;
        let stream = take_u32(&mut payload, "stream")? as u32;
        match frame.kind {
            OPEN => Ok(Self::Open { stream }),
            DATA if !payload.is_empty() => Ok(Self::Data { stream, bytes: payload }),
            CREDIT => Ok(Self::Credit { stream, bytes: take_u32(&mut payload, "credit")? as u32 }),
            END => Ok(Self::End { stream }),
            RESET => Ok(Self::Reset { stream }),
            _ => Err(ProtocolError::Malformed("stream frame")),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stream_frames_round_trip() {
        for sent in [
            StreamFrame::Open { stream: 1 },
            StreamFrame::Data { stream: u32::MAX, bytes: Bytes::from_static(b"\0x") },
            StreamFrame::Credit { stream: 2, bytes: 70_000 },
            StreamFrame::End { stream: 3 },
            StreamFrame::Reset { stream: 4 },
        ] {
            let mut bytes = Bytes::from(sent.clone().encode().concat());
            let length = bytes.get_u32_le() as usize;
            let kind = bytes.get_u8();
            assert!(length == bytes.len() + 1 && StreamFrame::cap(kind).is_some_and(|cap| length <= cap));
            assert_eq!(StreamFrame::decode(RawFrame { kind, payload: bytes }).unwrap(), sent);
        }
        let empty = RawFrame { kind: DATA, payload: Bytes::from_static(&[1, 0, 0, 0]) };
        assert!(StreamFrame::decode(empty).is_err() && StreamFrame::cap(0x01).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_stream_frames_never_panic(kind in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = StreamFrame::decode(RawFrame { kind, payload: bytes.into() });
        }
    }
}

//! Encodes and decodes frames: their kinds, their caps, and the binary layout of each payload.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::assembler::EVENT_CHUNK;
use super::frame::{RawFrame, encode_frame};
use super::process::{ProcessEvent, ProcessStream};
use super::types::{Answer, Event, FromAgent, ToAgent};
use crate::ids::{Epoch, Generation, Seq};
use crate::wire::{Channel, Message, WireError};

/// The largest message that can be submitted to the kernel, bytes.
pub const SUBMIT_MAX: usize = 16 * 1024 * 1024;
/// The size of a file chunk, bytes.
pub const FILE_CHUNK: usize = 1024 * 1024;

const OPEN: u8 = 0x05;
const ATTACH: u8 = 0x01;
const ACK: u8 = 0x02;
const SUBMIT: u8 = 0x03;
const REQUEST: u8 = 0x04;
const HELLO: u8 = 0x81;
pub(super) const EVENT: u8 = 0x82;
const LOST: u8 = 0x83;
const ANSWER: u8 = 0x84;
const ABSENT: u8 = 0x85;

/// The first byte of an event that is no message; that of a message is its channel.
const KERNEL_EVENT: u8 = 0xff;
const FILE_EVENT: u8 = 0xfe;
const PROCESS_OUTPUT: u8 = 0xfd;
const PROCESS_EXIT: u8 = 0xfc;

/// An invalid payload in a valid frame.
#[derive(Debug, Error)]
pub enum ProtocolError {
    #[error("invalid JSON in {what} frame: {source}")]
    Json { what: &'static str, source: serde_json::Error },
    /// A binary part is too short, or contains an unknown code.
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("invalid Jupyter message: {0}")]
    Message(#[from] WireError),
    /// The pieces of an event do not fit together, or claim more than [`MAX_MESSAGE`](super::MAX_MESSAGE).
    #[error("event {seq}: {what}")]
    Assembly { seq: Seq, what: &'static str },
}

impl Event {
    /// Encodes the event as pieces that share its memory.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut head = BytesMut::with_capacity(9);
        match self {
            Self::Message { channel, generation, message } => {
                head.put_u8(channel.code());
                head.put_u32_le(generation.0);
                std::iter::once(head.freeze()).chain(message.pack()).collect()
            }
            Self::Kernel { generation, event } => {
                head.put_u8(KERNEL_EVENT);
                head.put_u32_le(generation.0);
                vec![head.freeze(), to_json(event)]
            }
            Self::File { generation, file, data } => {
                let json = to_json(file);
                head.put_u8(FILE_EVENT);
                head.put_u32_le(generation.0);
                head.put_u32_le(json.len() as u32);
                vec![head.freeze(), json, data.clone()]
            }
            Self::Process(ProcessEvent::Output { stream, data }) => {
                head.put_u8(PROCESS_OUTPUT);
                head.put_u32_le(u32::from(stream.code()));
                vec![head.freeze(), data.clone()]
            }
            Self::Process(ProcessEvent::Exited(exit)) => {
                head.put_u8(PROCESS_EXIT);
                head.put_u32_le(0);
                vec![head.freeze(), to_json(exit)]
            }
        }
    }

    /// Decodes a reassembled event.
    ///
    /// # Errors
    /// [`ProtocolError`] for bytes that no correct agent sends.
    pub fn decode(mut bytes: Bytes) -> Result<Self, ProtocolError> {
        if bytes.len() < 5 {
            return Err(ProtocolError::Malformed("event"));
        }
        let (tag, number) = (bytes.get_u8(), bytes.get_u32_le());
        let generation = Generation(number);
        match tag {
            KERNEL_EVENT => Ok(Self::Kernel { generation, event: from_json("kernel event", &bytes)? }),
            FILE_EVENT => {
                let length = take_u32(&mut bytes, "file event")?;
                let json = take(&mut bytes, length, "file event")?;
                Ok(Self::File { generation, file: from_json("file event", &json)?, data: bytes })
            }
            PROCESS_OUTPUT => {
                let stream = u8::try_from(number).ok().and_then(ProcessStream::from_code);
                let stream = stream.ok_or(ProtocolError::Malformed("stream of a process"))?;
                Ok(Self::Process(ProcessEvent::Output { stream, data: bytes }))
            }
            PROCESS_EXIT => Ok(Self::Process(ProcessEvent::Exited(from_json("process exit", &bytes)?))),
            tag => {
                let channel = Channel::from_code(tag).ok_or(ProtocolError::Malformed("event channel"))?;
                Ok(Self::Message { channel, generation, message: Message::unpack(&bytes)? })
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct AttachJson {
    epoch: Epoch,
    from_seq: Seq,
}

impl ToAgent {
    /// The cap of each frame kind that an agent accepts, for [`super::FrameReader`].
    pub fn cap(kind: u8) -> Option<usize> {
        match kind {
            OPEN | ATTACH | ACK => Some(1024),
            SUBMIT => Some(SUBMIT_MAX + 64 * 1024),
            REQUEST => Some(FILE_CHUNK + 64 * 1024),
            _ => None,
        }
    }

    /// Encodes the frame.
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Open { target } => encode_frame(OPEN, vec![to_json(target)]),
            Self::Attach { epoch, from_seq } => {
                encode_frame(ATTACH, vec![to_json(&AttachJson { epoch: *epoch, from_seq: *from_seq })])
            }
            Self::Ack { seq } => encode_frame(ACK, vec![Bytes::copy_from_slice(&seq.0.to_le_bytes())]),
            Self::Submit { id, channel, generation, msg_id, message } => {
                let mut head = BytesMut::with_capacity(17 + msg_id.len());
                head.put_u64_le(*id);
                head.put_u8(channel.code());
                // Generations count from 1, so 0 encodes `None`.
                head.put_u32_le(generation.map_or(0, |generation| generation.0));
                head.put_u32_le(msg_id.len() as u32);
                head.put_slice(msg_id.as_bytes());
                encode_frame(SUBMIT, std::iter::once(head.freeze()).chain(message.pack()).collect())
            }
            Self::Request { id, request, data } => encode_frame(REQUEST, with_data(*id, to_json(request), data)),
        }
    }

    pub fn decode(frame: RawFrame) -> Result<Self, ProtocolError> {
        let mut payload = frame.payload;
        match frame.kind {
            OPEN => Ok(Self::Open { target: from_json("open", &payload)? }),
            ATTACH => {
                let AttachJson { epoch, from_seq } = from_json("attach", &payload)?;
                Ok(Self::Attach { epoch, from_seq })
            }
            ACK => Ok(Self::Ack { seq: Seq(take_u64(&mut payload, "ack")?) }),
            SUBMIT => {
                let id = take_u64(&mut payload, "submit")?;
                let code = take(&mut payload, 1, "submit")?[0];
                let channel = Channel::from_code(code).ok_or(ProtocolError::Malformed("submit channel"))?;
                let generation = take_u32(&mut payload, "submit")? as u32;
                let generation = (generation != 0).then_some(Generation(generation));
                let length = take_u32(&mut payload, "submit")?;
                let msg_id = String::from_utf8_lossy(&take(&mut payload, length, "submit")?).into_owned();
                Ok(Self::Submit { id, channel, generation, msg_id, message: Message::unpack(&payload)? })
            }
            REQUEST => {
                let (id, json, data) = split_data(payload, "request")?;
                Ok(Self::Request { id, request: from_json("request", &json)?, data })
            }
            _ => Err(ProtocolError::Malformed("frame kind")),
        }
    }
}

impl FromAgent {
    /// The cap of each frame kind that a manager accepts, for [`super::FrameReader`].
    pub fn cap(kind: u8) -> Option<usize> {
        match kind {
            HELLO | LOST | ABSENT => Some(4096),
            EVENT => Some(EVENT_CHUNK + 64),
            ANSWER => Some(4 * FILE_CHUNK),
            _ => None,
        }
    }

    /// Encodes the frame. For whole events see [`encode_event_frames`](super::encode_event_frames).
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Hello(hello) => encode_frame(HELLO, vec![to_json(hello)]),
            Self::Absent => encode_frame(ABSENT, Vec::new()),
            Self::EventPiece { seq, total, piece } => {
                let mut head = BytesMut::with_capacity(12);
                head.put_u64_le(seq.0);
                head.put_u32_le(*total as u32);
                encode_frame(EVENT, vec![head.freeze(), piece.clone()])
            }
            Self::Lost { from, to } => {
                let mut body = BytesMut::with_capacity(16);
                body.put_u64_le(from.0);
                body.put_u64_le(to.0);
                encode_frame(LOST, vec![body.freeze()])
            }
            Self::Answer(answer) => encode_frame(ANSWER, with_data(answer.id, to_json(&answer.body), &answer.data)),
        }
    }

    pub fn decode(frame: RawFrame) -> Result<Self, ProtocolError> {
        let mut payload = frame.payload;
        match frame.kind {
            HELLO => Ok(Self::Hello(from_json("hello", &payload)?)),
            ABSENT => Ok(Self::Absent),
            EVENT => {
                let seq = Seq(take_u64(&mut payload, "event")?);
                let total = take_u32(&mut payload, "event")?;
                Ok(Self::EventPiece { seq, total, piece: payload })
            }
            LOST => {
                let (from, to) = (take_u64(&mut payload, "lost")?, take_u64(&mut payload, "lost")?);
                Ok(Self::Lost { from: Seq(from), to: Seq(to) })
            }
            ANSWER => {
                let (id, json, data) = split_data(payload, "answer")?;
                Ok(Self::Answer(Answer { id, body: from_json("answer", &json)?, data }))
            }
            _ => Err(ProtocolError::Malformed("frame kind")),
        }
    }
}

fn to_json<T: Serialize>(value: &T) -> Bytes {
    // Cannot fail: our types have string keys and infallible serialisers. The other side would refuse an empty payload.
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn from_json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(bytes).map_err(|source| ProtocolError::Json { what, source })
}

fn with_data(id: u64, json: Bytes, data: &Bytes) -> Vec<Bytes> {
    let mut head = BytesMut::with_capacity(12);
    head.put_u64_le(id);
    head.put_u32_le(json.len() as u32);
    vec![head.freeze(), json, data.clone()]
}

fn split_data(mut payload: Bytes, what: &'static str) -> Result<(u64, Bytes, Bytes), ProtocolError> {
    let id = take_u64(&mut payload, what)?;
    let length = take_u32(&mut payload, what)?;
    let json = take(&mut payload, length, what)?;
    Ok((id, json, payload))
}

fn take(payload: &mut Bytes, length: usize, what: &'static str) -> Result<Bytes, ProtocolError> {
    if payload.len() < length { Err(ProtocolError::Malformed(what)) } else { Ok(payload.split_to(length)) }
}

fn take_u64(payload: &mut Bytes, what: &'static str) -> Result<u64, ProtocolError> {
    take(payload, 8, what).map(|mut bytes| bytes.get_u64_le())
}

pub(super) fn take_u32(payload: &mut Bytes, what: &'static str) -> Result<usize, ProtocolError> {
    take(payload, 4, what).map(|mut bytes| bytes.get_u32_le() as usize)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent_protocol::{
        AnswerBody, ChangeKind, CollectedFile, FileChange, FileChanges, Hello, KernelEvent, KernelState, ProcessExit,
        PutOptions, Request, Target, UsageReading,
    };
    use crate::ids::SessionId;

    pub fn frame(pieces: Vec<Bytes>) -> RawFrame {
        let all: Bytes = pieces.concat().into();
        RawFrame { kind: all[4], payload: all.slice(5..) }
    }

    pub fn message(size: usize) -> Message {
        Message::new_request("s", "stream", &serde_json::json!({"text": "x".repeat(size)}))
    }

    #[test]
    fn frames_to_agent_round_trip() {
        let frames = [
            ToAgent::Open { target: Target::Kernel(SessionId::random()) },
            ToAgent::Open { target: Target::Sandbox },
            ToAgent::Attach { epoch: Epoch(u64::MAX), from_seq: Seq(3) },
            ToAgent::Ack { seq: Seq(9) },
            ToAgent::Submit {
                id: 7,
                channel: Channel::Stdin,
                generation: Some(Generation(3)),
                msg_id: "m".into(),
                message: message(10),
            },
            ToAgent::Request {
                id: 8,
                request: Request::FilePut {
                    upload: 3,
                    path: "a".into(),
                    offset: 5,
                    last: true,
                    options: PutOptions::default(),
                },
                data: Bytes::from_static(b"\0\xff"),
            },
        ];
        for sent in frames {
            assert_eq!(ToAgent::decode(frame(sent.encode())).unwrap(), sent);
        }
    }

    #[test]
    fn frames_from_agent_round_trip() {
        let hello = Hello {
            epoch: Epoch(u64::MAX),
            generation: Generation(2),
            first_seq: Seq(1),
            next_seq: Seq(5),
            kernel_state: KernelState::Ready,
            version: "0".into(),
        };
        let usage = UsageReading { memory_bytes: 1, peak_memory_bytes: 2, cpu_seconds: 0.5, processes: 3 };
        let frames = [
            FromAgent::Hello(hello),
            FromAgent::Absent,
            FromAgent::Lost { from: Seq(1), to: Seq(2) },
            FromAgent::Answer(Answer { id: 1, body: AnswerBody::Usage(usage), data: Bytes::new() }),
        ];
        for sent in frames {
            assert_eq!(FromAgent::decode(frame(sent.encode())).unwrap(), sent);
        }
    }

    #[test]
    fn events_round_trip() {
        let change = FileChange {
            path: "out/ä.csv".into(),
            change: ChangeKind::Created,
            size: 3,
            sha256: None,
            artifact: true,
            not_kept: None,
        };
        let changes = FileChanges { files: vec![change.clone()], truncated: true };
        let file = CollectedFile { msg_id: "m".into(), change };
        let generation = Generation(7);
        for event in [
            Event::Message { channel: Channel::Iopub, generation, message: message(10) },
            Event::Kernel { generation, event: KernelEvent::FilesChanged { msg_id: "m".into(), changes } },
            Event::File { generation, file, data: Bytes::from_static(b"\0\xff\n") },
            Event::Process(ProcessEvent::Output { stream: ProcessStream::Stderr, data: Bytes::from_static(b"\0\xff") }),
            Event::Process(ProcessEvent::Exited(ProcessExit { code: Some(3), ..ProcessExit::default() })),
        ] {
            assert_eq!(Event::decode(event.encode().concat().into()).unwrap(), event);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(kind in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let raw = RawFrame { kind, payload: bytes.clone().into() };
            let _ = ToAgent::decode(raw.clone());
            let _ = FromAgent::decode(raw);
            let _ = Event::decode(bytes.into());
        }
    }
}

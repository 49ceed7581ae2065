//! The meaning of frames: what each kind carries and how it is written.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::frame::{RawFrame, encode_frame};
use crate::ids::{Epoch, Generation, Seq};
use crate::wire::{Channel, Message, WireError};

/// The largest Jupyter message that is carried, bytes. Larger than the default output limit, so that the limit speaks first.
pub const MAX_MESSAGE: usize = 160 * 1024 * 1024;
/// An event travels in pieces of this size, so that acks and answers are never stuck behind a big one.
pub const EVENT_CHUNK: usize = 256 * 1024;
/// The largest request that can be submitted, bytes.
pub const SUBMIT_MAX: usize = 16 * 1024 * 1024;
/// Files travel in pieces of this size.
pub const FILE_CHUNK: usize = 1024 * 1024;

const ATTACH: u8 = 0x01;
const ACK: u8 = 0x02;
const SUBMIT: u8 = 0x03;
const REQUEST: u8 = 0x04;
const HELLO: u8 = 0x81;
const EVENT: u8 = 0x82;
const LOST: u8 = 0x83;
const ANSWER: u8 = 0x84;

/// Why a well-framed payload makes no sense.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// JSON of a control frame cannot be read.
    #[error("bad {what}: {source}")]
    Json {
        /// Which frame.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A binary part is too short, or a code is unknown.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// The Jupyter message inside is malformed.
    #[error("bad message: {0}")]
    Message(#[from] WireError),
    /// An event's pieces do not fit together, or claim more than [`MAX_MESSAGE`].
    #[error("event {seq}: {what}")]
    Assembly {
        /// Which event.
        seq: Seq,
        /// What is wrong.
        what: &'static str,
    },
}

/// The kernel's state as the agent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelState {
    /// Started, has not answered yet.
    Starting,
    /// Answers.
    Ready,
    /// Its process is gone.
    Exited,
}

/// The agent's first frame on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's life.
    pub epoch: Epoch,
    /// The kernel's life within it.
    pub generation: Generation,
    /// The oldest event that can be replayed.
    pub first_seq: Seq,
    /// The number the next event will get.
    pub next_seq: Seq,
    /// The kernel's state.
    pub kernel_state: KernelState,
    /// The agent's version, for logs.
    pub version: String,
}

/// A signal to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// The kernelspec's interrupt: SIGINT to the process group, or `interrupt_request`.
    Interrupt,
    /// SIGTERM to the process group.
    Terminate,
    /// SIGKILL to everything in the sandbox but the agent.
    Kill,
}

/// What the manager may ask. Every request is answered exactly once, or the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Send a signal to the kernel of that life; ignored when another one runs by now.
    Signal {
        /// Which.
        signal: SignalKind,
        /// The life it is meant for.
        generation: Generation,
    },
    /// End every process and start the kernel anew, in place.
    Restart {
        /// The life that is to end; nothing is done when another one runs by now.
        generation: Generation,
    },
    /// End everything, the agent included.
    Terminate,
    /// Read the sandbox's usage.
    Usage,
    /// Read a piece of a regular file.
    FileGet {
        /// Relative to the workspace.
        path: String,
        /// From where, bytes.
        offset: u64,
    },
    /// Take a piece of a file; the frame's data is the content. The first piece has offset 0, and with the last one the file is
    /// there: until then, and if it never comes, what was there stays as it was.
    FilePut {
        /// The manager's number for this upload, of which a connection has one of that number at a time.
        upload: u64,
        /// Relative to the workspace.
        path: String,
        /// How many bytes came before.
        offset: u64,
        /// Whether nothing follows.
        last: bool,
    },
    /// Forget an upload that is not finished, if there is one.
    FileDrop {
        /// Which.
        upload: u64,
    },
    /// List a folder.
    FileList {
        /// Relative to the workspace; empty for itself.
        path: String,
    },
    /// Remove a file or an empty folder.
    FileRemove {
        /// Relative to the workspace.
        path: String,
    },
}

/// Memory and CPU of the whole sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageReading {
    /// Memory now, bytes.
    pub memory_bytes: u64,
    /// The most there was, bytes.
    pub peak_memory_bytes: u64,
    /// CPU time used, seconds.
    pub cpu_seconds: f64,
    /// Processes now.
    pub processes: u64,
}

/// What one run of code has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunUsage {
    /// CPU time of all the sandbox's processes from its begin to its reply, seconds.
    pub cpu_seconds: f64,
    /// The most memory that the sandbox has had meanwhile, bytes: exact where it was the most of all its life, else the most of
    /// several looks a second.
    pub peak_memory_bytes: u64,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name within the folder (lossy where it is not UTF-8).
    pub name: String,
    /// `file`, `folder`, `link` or `other`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
}

impl FileEntry {
    /// How many bytes it takes in an answer, at most.
    pub fn json_size(&self) -> usize {
        let escaped = |text: &str| text.chars().map(|c| if c < ' ' { 6 } else { c.len_utf8() + 1 }).sum::<usize>();
        escaped(&self.name) + escaped(&self.kind) + 64
    }
}

/// Why the agent did not do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A sentence for people.
    pub reason: String,
    /// What it is, for programs.
    #[serde(default)]
    pub cause: Cause,
}

/// Causes of a refusal that callers tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// What was asked for cannot be done as it was asked.
    #[default]
    Unfit,
    /// There is nothing of that name.
    Missing,
    /// There is no room for it.
    NoRoom,
    /// Too much is asked at once: later it can be done.
    Busy,
    /// What came before it is lost.
    Cut,
}

impl<T: Into<String>> From<T> for Refused {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), cause: Cause::Unfit }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The agent's answer to a [`Request`] or a submission.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerBody {
    /// Done. For a submission: handed to the kernel now, or already earlier.
    Done {
        /// Whether the submission had been seen before.
        repeated: bool,
    },
    /// Not done, and why.
    Refused(Refused),
    /// The usage asked for.
    Usage(UsageReading),
    /// A piece of a file; its bytes are the frame's data.
    File {
        /// The file's size when it was opened.
        size: u64,
        /// Which file it was: a path may lead to another one by the next piece.
        inode: u64,
    },
    /// A folder's entries.
    Listing {
        /// In no particular order.
        entries: Vec<FileEntry>,
        /// Whether there are more than one answer holds.
        truncated: bool,
    },
}

/// An answer with its request's id.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The id the manager chose.
    pub id: u64,
    /// The answer.
    pub body: AnswerBody,
    /// File content.
    pub data: Bytes,
}

/// Why the agent itself ended the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// The manager asked.
    Asked,
    /// The manager asked for a restart.
    Restart,
    /// Memory went over the limit where no cgroup holds it.
    Memory,
}

/// How a kernel process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelExit {
    /// Exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the memory limit did: the cgroup counted an OOM kill since the kernel's start, or the agent's own watch did it.
    pub out_of_memory: bool,
    /// The reason we recorded before sending a signal, if it was us.
    pub reason: Option<KillReason>,
    /// The last of what the process wrote to its own stdout and stderr, for people.
    pub last_words: String,
}

/// What happens to the kernel process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelEvent {
    /// The process was started.
    Starting,
    /// It answered `kernel_info_request` and iopub is heard.
    Ready {
        /// The content of its `kernel_info_reply`, as JSON text.
        info: String,
    },
    /// The process is gone.
    Exited(KernelExit),
    /// It could not be started.
    Failed {
        /// Why.
        reason: String,
    },
    /// A process in the sandbox was killed for memory, but not the kernel.
    ChildOutOfMemory,
    /// A run produced more than the output limit; what follows of it is dropped at the source.
    OutputCapped {
        /// The `msg_id` of the run.
        msg_id: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// What a run has used; comes before its reply.
    RunUsed {
        /// The `msg_id` of the run.
        msg_id: String,
        /// What.
        used: RunUsage,
    },
    /// A message from the kernel's sockets was refused.
    BadMessage {
        /// Why.
        reason: String,
    },
}

impl KernelEvent {
    /// Bytes of its texts.
    fn size(&self) -> usize {
        match self {
            Self::Ready { info: text } | Self::Failed { reason: text } | Self::BadMessage { reason: text } => text.len(),
            Self::Exited(exit) => exit.last_words.len(),
            Self::OutputCapped { msg_id, .. } | Self::RunUsed { msg_id, .. } => msg_id.len(),
            Self::Starting | Self::ChildOutOfMemory => 0,
        }
    }
}

/// One numbered event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message from the kernel.
    Message {
        /// Where it came from.
        channel: Channel,
        /// Which life of the kernel sent it.
        generation: Generation,
        /// The message.
        message: Message,
    },
    /// Something happened to the kernel.
    Kernel {
        /// Which life.
        generation: Generation,
        /// What.
        event: KernelEvent,
    },
}

impl Event {
    /// Bytes that it holds, roughly.
    pub fn size(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.size(),
            Self::Kernel { event, .. } => event.size(),
        }
    }

    /// The event as pieces that share its memory.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut head = BytesMut::with_capacity(6);
        match self {
            Self::Message { channel, generation, message } => {
                head.put_u8(channel.code());
                head.put_u32_le(generation.0);
                std::iter::once(head.freeze()).chain(message.pack()).collect()
            }
            Self::Kernel { generation, event } => {
                head.put_u8(0xff);
                head.put_u32_le(generation.0);
                vec![head.freeze(), to_json(event)]
            }
        }
    }

    /// Reads an assembled event.
    ///
    /// # Errors
    /// [`ProtocolError`] for what no agent of ours would write.
    pub fn decode(mut bytes: Bytes) -> Result<Self, ProtocolError> {
        if bytes.len() < 5 {
            return Err(ProtocolError::Malformed("event"));
        }
        let (tag, generation) = (bytes.get_u8(), Generation(bytes.get_u32_le()));
        if tag == 0xff {
            return Ok(Self::Kernel { generation, event: from_json("kernel event", &bytes)? });
        }
        let channel = Channel::from_code(tag).ok_or(ProtocolError::Malformed("event channel"))?;
        Ok(Self::Message { channel, generation, message: Message::unpack(&bytes)? })
    }
}

/// The frames of one event: each is seq (u64), total length (u32), and the next piece.
pub fn encode_event_frames(seq: Seq, pieces: &[Bytes]) -> Vec<Vec<Bytes>> {
    let total = pieces.iter().map(Bytes::len).sum::<usize>();
    let mut frames = Vec::with_capacity(total / EVENT_CHUNK + 1);
    let (mut chunk, mut room) = (Vec::new(), EVENT_CHUNK);
    let close = |chunk: &mut Vec<Bytes>| {
        let mut head = BytesMut::with_capacity(12);
        head.put_u64_le(seq.0);
        head.put_u32_le(total as u32);
        encode_frame(EVENT, std::iter::once(head.freeze()).chain(chunk.drain(..)).collect())
    };
    for piece in pieces {
        let mut piece = piece.clone();
        while piece.len() > room {
            chunk.push(piece.split_to(room));
            frames.push(close(&mut chunk));
            room = EVENT_CHUNK;
        }
        room -= piece.len();
        chunk.push(piece);
    }
    frames.push(close(&mut chunk));
    frames
}

/// Puts the pieces of events together again.
#[derive(Default)]
pub struct EventAssembler {
    seq: Seq,
    total: usize,
    bytes: BytesMut,
}

impl EventAssembler {
    /// Takes one piece; gives the event when it was the last. Memory grows with what has arrived, not with what is claimed.
    ///
    /// # Errors
    /// [`ProtocolError`] where pieces do not fit together or the event makes no sense.
    pub fn push(&mut self, seq: Seq, total: usize, piece: Bytes) -> Result<Option<Event>, ProtocolError> {
        let fail = |what| Err(ProtocolError::Assembly { seq, what });
        if total > MAX_MESSAGE + EVENT_CHUNK {
            return fail("larger than any message may be");
        }
        if self.bytes.is_empty() {
            if piece.len() == total {
                return Event::decode(piece).map(Some);
            }
            (self.seq, self.total) = (seq, total);
        } else if (self.seq, self.total) != (seq, total) {
            return fail("begins inside another event");
        }
        if piece.is_empty() || self.bytes.len() + piece.len() > total {
            return fail("pieces do not add up");
        }
        self.bytes.extend_from_slice(&piece);
        if self.bytes.len() < total {
            return Ok(None);
        }
        Event::decode(std::mem::take(&mut self.bytes).freeze()).map(Some)
    }
}

/// Frames from the manager.
#[derive(Clone, Debug, PartialEq)]
pub enum ToAgent {
    /// Send events from here on. With another epoch than the agent's: from the oldest it has.
    Attach {
        /// The epoch the number belongs to.
        epoch: Epoch,
        /// The first number wanted.
        from_seq: Seq,
    },
    /// Everything up to here is safe with the manager.
    Ack {
        /// The last number that is safe.
        seq: Seq,
    },
    /// A message for the kernel. Submitting the same `msg_id` twice runs it once.
    Submit {
        /// For the answer.
        id: u64,
        /// Where to.
        channel: Channel,
        /// The life of the kernel that it is meant for; `None` for whichever there is.
        generation: Option<Generation>,
        /// The message's own id.
        msg_id: String,
        /// The message.
        message: Message,
    },
    /// Anything else.
    Request {
        /// For the answer.
        id: u64,
        /// What.
        request: Request,
        /// File content.
        data: Bytes,
    },
}

#[derive(Serialize, Deserialize)]
struct AttachJson {
    epoch: Epoch,
    from_seq: Seq,
}

impl ToAgent {
    /// The cap of each kind that an agent takes, for [`super::FrameReader`].
    pub fn cap(kind: u8) -> Option<usize> {
        match kind {
            ATTACH | ACK => Some(1024),
            SUBMIT => Some(SUBMIT_MAX + 64 * 1024),
            REQUEST => Some(FILE_CHUNK + 64 * 1024),
            _ => None,
        }
    }

    /// The frame to write.
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Attach { epoch, from_seq } => {
                encode_frame(ATTACH, vec![to_json(&AttachJson { epoch: *epoch, from_seq: *from_seq })])
            }
            Self::Ack { seq } => encode_frame(ACK, vec![Bytes::copy_from_slice(&seq.0.to_le_bytes())]),
            Self::Submit { id, channel, generation, msg_id, message } => {
                let mut head = BytesMut::with_capacity(17 + msg_id.len());
                head.put_u64_le(*id);
                head.put_u8(channel.code());
                // Lives are counted from 1.
                head.put_u32_le(generation.map_or(0, |generation| generation.0));
                head.put_u32_le(msg_id.len() as u32);
                head.put_slice(msg_id.as_bytes());
                encode_frame(SUBMIT, std::iter::once(head.freeze()).chain(message.pack()).collect())
            }
            Self::Request { id, request, data } => encode_frame(REQUEST, with_data(*id, to_json(request), data)),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn decode(frame: RawFrame) -> Result<Self, ProtocolError> {
        let mut payload = frame.payload;
        match frame.kind {
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

/// Frames from the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum FromAgent {
    /// First on every connection.
    Hello(Hello),
    /// A piece of an event.
    EventPiece {
        /// The event's number.
        seq: Seq,
        /// The whole event's length, bytes.
        total: usize,
        /// The piece.
        piece: Bytes,
    },
    /// The bounded buffer overflowed before these numbers were taken: a gap is named, never silent.
    Lost {
        /// First number lost.
        from: Seq,
        /// Last number lost.
        to: Seq,
    },
    /// To a request or a submission.
    Answer(Answer),
}

impl FromAgent {
    /// The cap of each kind that a manager takes, for [`super::FrameReader`].
    pub fn cap(kind: u8) -> Option<usize> {
        match kind {
            HELLO | LOST => Some(4096),
            EVENT => Some(EVENT_CHUNK + 64),
            ANSWER => Some(4 * FILE_CHUNK),
            _ => None,
        }
    }

    /// The frame to write. Events are written by [`encode_event_frames`].
    pub fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Hello(hello) => encode_frame(HELLO, vec![to_json(hello)]),
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

    /// Reads a frame.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn decode(frame: RawFrame) -> Result<Self, ProtocolError> {
        let mut payload = frame.payload;
        match frame.kind {
            HELLO => Ok(Self::Hello(from_json("hello", &payload)?)),
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
    // Our own types have string keys and no failing serialisers; an empty payload would be refused by the other side.
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

fn take_u32(payload: &mut Bytes, what: &'static str) -> Result<usize, ProtocolError> {
    take(payload, 4, what).map(|mut bytes| bytes.get_u32_le() as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(pieces: Vec<Bytes>) -> RawFrame {
        let all: Bytes = pieces.concat().into();
        RawFrame { kind: all[4], payload: all.slice(5..) }
    }

    fn message(size: usize) -> Message {
        Message::new_request("s", "stream", &serde_json::json!({"text": "x".repeat(size)}))
    }

    #[test]
    fn frames_to_the_agent_round_trip() {
        let frames = [
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
                request: Request::FilePut { upload: 3, path: "a".into(), offset: 5, last: true },
                data: Bytes::from_static(b"\0\xff"),
            },
        ];
        for sent in frames {
            assert_eq!(ToAgent::decode(frame(sent.encode())).unwrap(), sent);
        }
    }

    #[test]
    fn frames_from_the_agent_round_trip() {
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
            FromAgent::Lost { from: Seq(1), to: Seq(2) },
            FromAgent::Answer(Answer { id: 1, body: AnswerBody::Usage(usage), data: Bytes::new() }),
        ];
        for sent in frames {
            assert_eq!(FromAgent::decode(frame(sent.encode())).unwrap(), sent);
        }
    }

    fn carry(event: &Event) -> Option<Event> {
        let mut assembler = EventAssembler::default();
        let mut last = None;
        for pieces in encode_event_frames(Seq(4), &event.encode()) {
            let raw = frame(pieces);
            assert!(raw.payload.len() < FromAgent::cap(raw.kind).unwrap());
            let FromAgent::EventPiece { seq, total, piece } = FromAgent::decode(raw).unwrap() else { panic!() };
            assert!(last.is_none());
            last = assembler.push(seq, total, piece).unwrap();
        }
        last
    }

    #[test]
    fn events_of_any_size_are_cut_and_put_together() {
        for size in [0, 1, EVENT_CHUNK - 300, EVENT_CHUNK, 3 * EVENT_CHUNK + 17] {
            let event = Event::Message { channel: Channel::Iopub, generation: Generation(1), message: message(size) };
            assert_eq!(carry(&event), Some(event));
        }
        let exit = KernelExit { code: None, signal: Some(9), out_of_memory: true, reason: None, last_words: "x".into() };
        let event = Event::Kernel { generation: Generation(1), event: KernelEvent::Exited(exit) };
        assert_eq!(carry(&event), Some(event));
    }

    #[test]
    fn forged_pieces_are_refused() {
        let mut assembler = EventAssembler::default();
        assert!(assembler.push(Seq(1), usize::MAX, Bytes::new()).is_err());
        assert!(assembler.push(Seq(1), 10, Bytes::from_static(b"12345")).unwrap().is_none());
        assert!(assembler.push(Seq(2), 10, Bytes::from_static(b"12345")).is_err());
        assert!(assembler.push(Seq(1), 10, Bytes::from_static(b"123456")).is_err());
    }

    proptest! {
        #[test]
        fn payloads_never_panic(kind in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let raw = RawFrame { kind, payload: bytes.clone().into() };
            let _ = ToAgent::decode(raw.clone());
            let _ = FromAgent::decode(raw);
            let _ = Event::decode(bytes.into());
        }
    }
}

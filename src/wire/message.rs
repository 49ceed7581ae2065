//! One message: raw frames in, raw frames out.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;
use thiserror::Error;

use super::{Signer, json};
use crate::ids;

/// The frame between routing identities and message.
const DELIMITER: &[u8] = b"<IDS|MSG>";
/// The most frames that are accepted. Real messages have fewer (widgets send a handful of buffers).
const MAX_FRAMES: usize = 4096;
/// The largest header or parent header, bytes. Real ones have a few hundred.
const MAX_HEADER: usize = 64 * 1024;

/// The sockets of a kernel. The heartbeat is not used: it does not prove liveness (R answers it only when idle).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Requests in order: execute, complete, inspect, comms.
    Shell,
    /// Requests that overtake the shell: interrupt, shutdown, debug.
    Control,
    /// `input_request` from the kernel, `input_reply` to it.
    Stdin,
    /// The kernel's broadcasts: outputs and status.
    Iopub,
}

impl Channel {
    /// All channels, indexed by code.
    pub const ALL: [Self; 4] = [Self::Shell, Self::Control, Self::Stdin, Self::Iopub];

    /// The code in the agent protocol.
    pub fn code(self) -> u8 {
        match self {
            Self::Shell => 0,
            Self::Control => 1,
            Self::Stdin => 2,
            Self::Iopub => 3,
        }
    }

    /// `None` for an unknown code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The name in the Jupyter protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
            Self::Iopub => "iopub",
        }
    }
}

/// Invalid bytes of a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// No `<IDS|MSG>` among the frames.
    #[error("no <IDS|MSG> delimiter among {frames} frames")]
    NoDelimiter { frames: usize },
    /// Fewer than signature and four JSON frames after the delimiter.
    #[error("{frames} frames after the delimiter, at least 5 are needed")]
    TooShort { frames: usize },
    #[error("{frames} frames, at most {MAX_FRAMES} are accepted")]
    TooManyFrames { frames: usize },
    /// The signature is missing or does not match.
    #[error("wrong signature")]
    BadSignature,
    /// The packed form is truncated or its lengths are inconsistent.
    #[error("malformed packed message")]
    Packed,
    #[error("a header of {bytes} bytes, at most {MAX_HEADER} are accepted")]
    HeaderTooLarge { bytes: usize },
}

/// Headers are parsed for every message, so their size is limited.
fn check_headers(header: &Bytes, parent: &Bytes) -> Result<(), WireError> {
    match header.len().max(parent.len()) {
        bytes if bytes > MAX_HEADER => Err(WireError::HeaderTooLarge { bytes }),
        _ => Ok(()),
    }
}

/// The parsed fields of a header. Absent or mistyped fields are empty; the raw header is what is passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub msg_id: String,
    /// For example `execute_request`.
    pub msg_type: String,
    /// The sender's session.
    pub session: String,
    /// ISO 8601 time of sending, as sent.
    pub date: String,
}

impl Header {
    fn read(raw: &[u8]) -> Self {
        let fields = json::string_fields(raw, ["msg_id", "msg_type", "session", "date"]).unwrap_or_default();
        let [msg_id, msg_type, session, date] = fields;
        Self { msg_id, msg_type, session, date }
    }
}

/// A Jupyter message, as received. Cloning is cheap: all frames are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// ZeroMQ routing identities or the iopub topic; empty on the agent's byte stream.
    pub identities: Vec<Bytes>,
    /// Raw JSON of the header.
    pub header: Bytes,
    /// Raw JSON of the parent's header; `{}` when there is none.
    pub parent_header: Bytes,
    /// Raw JSON of the metadata.
    pub metadata: Bytes,
    /// Raw JSON of the content.
    pub content: Bytes,
    /// Binary buffers (widgets).
    pub buffers: Vec<Bytes>,
}

impl Message {
    /// A request of protocol version 5.3 with the given id, sent now.
    pub fn request(msg_id: &str, session: &str, msg_type: &str, content: &Value) -> Self {
        Self::from_content(msg_id, session, msg_type, content.to_string().into(), SystemTime::now())
    }

    /// As [`Self::request`], with serialised content and the time of sending from the caller.
    pub fn from_content(msg_id: &str, session: &str, msg_type: &str, content: Bytes, sent_at: SystemTime) -> Self {
        let header = serde_json::json!({
            "msg_id": msg_id, "msg_type": msg_type, "session": session, "username": "cellkeep",
            "date": crate::wire::content::iso8601(sent_at), "version": "5.3",
        });
        Self {
            identities: Vec::new(),
            header: header.to_string().into(),
            parent_header: Bytes::from_static(b"{}"),
            metadata: Bytes::from_static(b"{}"),
            content,
            buffers: Vec::new(),
        }
    }

    /// As [`Self::request`], with a random id.
    pub fn new_request(session: &str, msg_type: &str, content: &Value) -> Self {
        Self::request(&ids::random_uuid(), session, msg_type, content)
    }

    /// Addresses a subshell, which answers while the main shell runs a cell. Source: `subshell_id` in the header,
    /// jupyter_client's messaging, "Subshells" (JEP 91).
    pub fn in_subshell(mut self, id: &str) -> Self {
        if let Ok(Value::Object(mut header)) = json::parse_lenient(&self.header) {
            header.insert("subshell_id".to_owned(), id.into());
            self.header = Value::Object(header).to_string().into();
        }
        self
    }

    pub fn header(&self) -> Header {
        Header::read(&self.header)
    }

    /// The parent header; all fields are empty for a message without a parent.
    pub fn parent(&self) -> Header {
        Header::read(&self.parent_header)
    }

    /// Size of all parts except identities, bytes.
    pub fn size(&self) -> usize {
        let parts = [&self.header, &self.parent_header, &self.metadata, &self.content];
        parts.into_iter().chain(&self.buffers).map(Bytes::len).sum()
    }

    /// The size that counts towards the output limit, bytes: metadata, content and buffers plus a constant per message.
    /// Headers, which are longer than a line of text, are not the user's output.
    pub fn output_size(&self) -> u64 {
        const MESSAGE: usize = 256;
        (MESSAGE + self.metadata.len() + self.content.len() + self.buffers.iter().map(Bytes::len).sum::<usize>()) as u64
    }

    /// The content, with deviations of kernels repaired; `null` if it is not JSON at all.
    pub fn content_value(&self) -> Value {
        json::parse_lenient(&self.content).unwrap_or(Value::Null)
    }

    /// Parses the frames of one ZeroMQ message. The signature is verified over the received bytes; unsigned messages are
    /// refused.
    ///
    /// # Errors
    /// Any [`WireError`] except `Packed`.
    pub fn from_frames(mut frames: Vec<Bytes>, signer: &Signer) -> Result<Self, WireError> {
        if frames.len() > MAX_FRAMES {
            return Err(WireError::TooManyFrames { frames: frames.len() });
        }
        let Some(at) = frames.iter().position(|frame| frame == DELIMITER) else {
            return Err(WireError::NoDelimiter { frames: frames.len() });
        };
        let mut body = frames.split_off(at).into_iter().skip(1);
        let count = body.len();
        let (Some(signature), Some(header), Some(parent_header), Some(metadata), Some(content)) =
            (body.next(), body.next(), body.next(), body.next(), body.next())
        else {
            return Err(WireError::TooShort { frames: count });
        };
        if !signer.verify(&signature, [&header, &parent_header, &metadata, &content]) {
            return Err(WireError::BadSignature);
        }
        check_headers(&header, &parent_header)?;
        Ok(Self { identities: frames, header, parent_header, metadata, content, buffers: body.collect() })
    }

    /// The signed frames for ZeroMQ.
    pub fn to_frames(&self, signer: &Signer) -> Vec<Bytes> {
        let parts = [&self.header, &self.parent_header, &self.metadata, &self.content];
        let signature = signer.sign(parts.map(|part| part.as_ref()));
        let mut frames = self.identities.clone();
        frames.push(Bytes::from_static(DELIMITER));
        frames.push(signature.into());
        frames.extend(parts.map(Bytes::clone));
        frames.extend(self.buffers.iter().cloned());
        frames
    }

    /// The packed form for the agent protocol, as pieces that share the message's memory: a count (u32, little endian), a
    /// length (u32) per part, then header, parent, metadata, content and buffers. It needs no identities and no signature,
    /// since the stream has only two ends.
    pub fn pack(&self) -> Vec<Bytes> {
        let parts: Vec<&Bytes> =
            [&self.header, &self.parent_header, &self.metadata, &self.content].into_iter().chain(&self.buffers).collect();
        let mut index = BytesMut::with_capacity(4 * (parts.len() + 1));
        index.put_u32_le(parts.len() as u32);
        parts.iter().for_each(|part| index.put_u32_le(part.len() as u32));
        std::iter::once(index.freeze()).chain(parts.into_iter().cloned()).collect()
    }

    /// Parses the packed form. Parts are slices of `bytes`, so claimed lengths allocate nothing.
    ///
    /// # Errors
    /// [`WireError::Packed`] if counts and lengths do not fit the bytes, and those of headers and frame count.
    pub fn unpack(bytes: &Bytes) -> Result<Self, WireError> {
        let number = |at: usize| -> Option<usize> {
            let four = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
        };
        let count = number(0).ok_or(WireError::Packed)?;
        if count > MAX_FRAMES {
            return Err(WireError::TooManyFrames { frames: count });
        }
        let mut at = 4 * (count + 1);
        let mut parts = Vec::with_capacity(count);
        for index in 0..count {
            let end = number(4 * (index + 1)).and_then(|length| at.checked_add(length)).ok_or(WireError::Packed)?;
            if end > bytes.len() {
                return Err(WireError::Packed);
            }
            parts.push(bytes.slice(at..end));
            at = end;
        }
        let buffers = if count >= 4 { parts.split_off(4) } else { return Err(WireError::Packed) };
        let [header, parent_header, metadata, content] = <[Bytes; 4]>::try_from(parts).map_err(|_| WireError::Packed)?;
        if at != bytes.len() {
            return Err(WireError::Packed);
        }
        check_headers(&header, &parent_header)?;
        Ok(Self { identities: Vec::new(), header, parent_header, metadata, content, buffers })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signer() -> Signer {
        Signer::new(b"secret").unwrap()
    }

    fn message() -> Message {
        let mut message = Message::new_request("s", "execute_request", &serde_json::json!({"code": "1"}));
        message.identities = vec![Bytes::from_static(b"topic")];
        message.buffers = vec![Bytes::from_static(&[0, 159, 146]), Bytes::new()];
        message
    }

    fn packed(message: &Message) -> Bytes {
        message.pack().concat().into()
    }

    #[test]
    fn frames_round_trip_with_identities_and_buffers() {
        let message = message();
        assert_eq!(Message::from_frames(message.to_frames(&signer()), &signer()), Ok(message));
    }

    #[test]
    fn changed_or_unsigned_message_is_refused() {
        for frame in [2, 3, 4, 5, 6] {
            let mut frames = message().to_frames(&signer());
            frames[frame] = [frames[frame].as_ref(), b" "].concat().into();
            assert_eq!(Message::from_frames(frames, &signer()), Err(WireError::BadSignature));
        }
        let mut unsigned = message().to_frames(&signer());
        unsigned[2] = Bytes::new();
        assert_eq!(Message::from_frames(unsigned, &signer()), Err(WireError::BadSignature));
    }

    #[test]
    fn messages_with_wrong_frame_count_are_refused() {
        assert_eq!(Message::from_frames(vec![], &signer()), Err(WireError::NoDelimiter { frames: 0 }));
        let short = vec![Bytes::from_static(DELIMITER), Bytes::new()];
        assert_eq!(Message::from_frames(short, &signer()), Err(WireError::TooShort { frames: 1 }));
        let endless = vec![Bytes::new(); MAX_FRAMES + 1];
        assert!(matches!(Message::from_frames(endless, &signer()), Err(WireError::TooManyFrames { .. })));
    }

    #[test]
    fn malformed_headers_are_read_leniently() {
        let mut message = message();
        message.header = Bytes::from_static(br#"{"msg_id": 7, "msg_type": "status", "username": null}"#);
        assert_eq!(message.header().msg_type, "status");
        assert_eq!(message.header().msg_id, "");
        message.header = Bytes::from_static(b"garbage");
        assert_eq!(message.header(), Header::default());
    }

    proptest! {
        #[test]
        fn any_frames_round_trip(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 4..9)) {
            let mut parts = parts.into_iter().map(Bytes::from);
            let mut next = || parts.next().unwrap_or_default();
            let mut message = Message {
                identities: vec![], header: next(), parent_header: next(), metadata: next(), content: next(), buffers: vec![],
            };
            message.buffers = parts.collect();
            // A delimiter among the JSON frames makes a different message.
            prop_assume!(!message.to_frames(&signer())[1..].iter().any(|f| f == DELIMITER));
            prop_assert_eq!(Message::from_frames(message.to_frames(&signer()), &signer()), Ok(message.clone()));
            prop_assert_eq!(Message::unpack(&packed(&message)), Ok(message));
        }

        #[test]
        fn unpack_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::unpack(&bytes.into());
        }

        #[test]
        fn truncated_packed_message_is_refused(cut in 1usize..60) {
            let bytes = packed(&message());
            prop_assert_eq!(Message::unpack(&bytes.slice(..bytes.len() - cut)), Err(WireError::Packed));
        }
    }
}

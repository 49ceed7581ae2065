//! Joins adjacent `stream` messages, so that a loop of flushed prints becomes tens of events instead of tens of thousands.
//!
//! The first message after a quiet period is forwarded at once; messages that follow within [`WINDOW`] are joined. Texts are
//! joined as raw JSON string bodies without decoding. A message with an unknown field is never joined.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::wire::Message;

/// How long text is held back.
pub(super) const WINDOW: Duration = Duration::from_millis(20);
/// The largest joined text, bytes: existing clients disconnect at 1 MiB.
const MAX_TEXT: usize = 512 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamContent<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
    #[serde(borrow)]
    text: &'a RawValue,
}

impl<'a> StreamContent<'a> {
    /// The raw name and the raw body of the text, without its quotes.
    fn read(content: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let Self { name, text } = serde_json::from_slice(content).ok()?;
        Some((name.get(), text.get().strip_prefix('"')?.strip_suffix('"')?))
    }
}

struct Pending {
    first: Message,
    name: String,
    text: String,
}

/// Holds back at most one joined message.
#[derive(Default)]
pub(super) struct Coalescer {
    pending: Option<Pending>,
    last_flush: Option<Instant>,
}

impl Coalescer {
    /// Adds a stream message; messages that are due are passed to `out`, in order.
    pub fn push(&mut self, message: Message, now: Instant, out: &mut impl FnMut(Message)) {
        let large = message.content.len() > MAX_TEXT;
        let Some((name, text)) = StreamContent::read(&message.content).filter(|_| !large) else {
            // Large messages are not copied: the sandbox may have little memory left.
            self.flush(now, out);
            return out(message);
        };
        if let Some(pending) = &mut self.pending {
            if pending.can_join(&message, name, text) {
                return pending.text.push_str(text);
            }
            self.flush(now, out);
        } else if self.last_flush.is_none_or(|last| now.duration_since(last) >= WINDOW) {
            self.last_flush = Some(now);
            return out(message);
        }
        let (name, text) = (name.to_owned(), text.to_owned());
        self.pending = Some(Pending { first: message, name, text });
    }

    /// Passes the held message to `out`.
    pub fn flush(&mut self, now: Instant, out: &mut impl FnMut(Message)) {
        if let Some(pending) = self.pending.take() {
            self.last_flush = Some(now);
            out(pending.join());
        }
    }

    /// When [`Self::flush`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.pending.as_ref().and(self.last_flush).map(|last| last + WINDOW)
    }
}

impl Pending {
    fn can_join(&self, message: &Message, name: &str, text: &str) -> bool {
        self.name == name
            && self.first.parent_header == message.parent_header
            && self.first.metadata == message.metadata
            && self.first.buffers.is_empty()
            && message.buffers.is_empty()
            && self.text.len() + text.len() <= MAX_TEXT
    }

    fn join(self) -> Message {
        let content = format!(r#"{{"name":{},"text":"{}"}}"#, self.name, self.text);
        Message { content: Bytes::from(content), ..self.first }
    }
}

/// The message with its text truncated to at most `max_bytes`, at a character boundary. `None` if nothing is left, or if it
/// is not a valid stream message.
pub(super) fn truncate_text(message: &Message, max_bytes: usize) -> Option<Message> {
    let content = message.content_value();
    let (name, text) = (content.get("name")?, content.get("text")?.as_str()?);
    let kept = &text[..text.floor_char_boundary(max_bytes)];
    let content = serde_json::json!({"name": name, "text": kept}).to_string();
    (!kept.is_empty()).then(|| Message { content: content.into(), ..message.clone() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn stream(parent: &str, name: &str, text: &str) -> Message {
        let mut message = Message::new_request("k", "stream", &json!({"name": name, "text": text}));
        message.parent_header = parent.to_owned().into();
        message
    }

    fn text(message: &Message) -> String {
        message.content_value()["text"].as_str().unwrap().to_owned()
    }

    #[test]
    fn first_message_is_immediate_burst_is_joined() {
        let (mut coalescer, mut out, start) = (Coalescer::default(), Vec::new(), Instant::now());
        for line in ["a\n", "b\"\\\n", "ü😀\n"] {
            coalescer.push(stream("{}", "stdout", line), start, &mut |m| out.push(m));
        }
        assert_eq!(out.len(), 1);
        assert_eq!(coalescer.deadline(), Some(start + WINDOW));
        coalescer.flush(start + WINDOW, &mut |m| out.push(m));
        assert_eq!(out.iter().map(text).collect::<Vec<_>>(), ["a\n", "b\"\\\nü😀\n"]);
        assert_eq!(coalescer.deadline(), None);
    }

    #[test]
    fn different_or_unknown_messages_are_not_joined() {
        let (mut coalescer, mut out, now) = (Coalescer::default(), Vec::new(), Instant::now());
        let mut odd = stream("1", "stderr", "4");
        odd.content = Bytes::from_static(br#"{"name":"stderr","text":"4","extra":1}"#);
        let all = [stream("1", "stdout", "1"), stream("1", "stderr", "2"), stream("2", "stderr", "3"), odd];
        for message in all {
            coalescer.push(message, now, &mut |m| out.push(m));
        }
        assert_eq!(out.iter().map(text).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
    }

    #[test]
    fn text_is_truncated_at_character_boundary() {
        let cut = truncate_text(&stream("{}", "stdout", "aüb"), 2).unwrap();
        assert_eq!(text(&cut), "a");
        assert!(truncate_text(&stream("{}", "stdout", "aüb"), 0).is_none());
    }

    proptest! {
        #[test]
        fn no_text_is_lost_or_reordered(chunks in prop::collection::vec((any::<bool>(), ".{0,20}", 0u64..30), 0..60)) {
            let (mut coalescer, mut out, mut now) = (Coalescer::default(), Vec::new(), Instant::now());
            let mut sent = Vec::new();
            for (stdout, chunk, wait) in chunks {
                now += Duration::from_millis(wait);
                if coalescer.deadline().is_some_and(|at| at <= now) {
                    coalescer.flush(now, &mut |m| out.push(m));
                }
                let name = if stdout { "stdout" } else { "stderr" };
                sent.push((name.to_owned(), chunk.clone()));
                coalescer.push(stream("{}", name, &chunk), now, &mut |m| out.push(m));
            }
            coalescer.flush(now, &mut |m| out.push(m));
            let runs = |items: Vec<(String, String)>| {
                let mut joined: Vec<(String, String)> = Vec::new();
                for (name, text) in items.into_iter().filter(|(_, text)| !text.is_empty()) {
                    match joined.last_mut() {
                        Some((last, all)) if *last == name => all.push_str(&text),
                        _ => joined.push((name, text)),
                    }
                }
                joined
            };
            let received = out.iter().map(|m| (m.content_value()["name"].as_str().unwrap().to_owned(), text(m))).collect();
            prop_assert_eq!(runs(received), runs(sent));
        }
    }
}

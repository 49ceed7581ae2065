//! What a model's endpoint sends: server-sent events cut anywhere, and in them an answer by pieces. Pure, and bounded in all that it
//! keeps: an endpoint is not trusted more than a kernel.

use serde_json::Value;

use super::error::ChatError;
use crate::wire::json as wire_json;

/// Bytes of one event.
const MAX_EVENT: usize = 1 << 20;
/// Bytes of one answer's text.
const MAX_TEXT: usize = 256 << 10;
/// Bytes of what one call is given.
const MAX_ARGUMENTS: usize = 256 << 10;
/// Calls in one answer.
const MAX_CALLS: usize = 8;
/// Bytes of a name or an id.
const MAX_NAME: usize = 256;

/// Puts server-sent events together from pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Frames {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
}

impl Frames {
    /// The data of the events that are whole now.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<String>, ChatError> {
        let mut events = Vec::new();
        for &byte in piece {
            let ends_line = matches!(byte, b'\n' | b'\r');
            let is_second = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            if is_second {
                continue;
            }
            if ends_line {
                let line = std::mem::take(&mut self.line);
                events.extend(self.line_ends(&line));
            } else {
                self.line.push(byte);
            }
            if self.line.len() + self.data.len() > MAX_EVENT {
                return Err(ChatError::BadStream(format!("one event has more than {} MB", MAX_EVENT >> 20)));
            }
        }
        Ok(events)
    }

    fn line_ends(&mut self, line: &[u8]) -> Option<String> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then_some(data);
        }
        let rest = line.strip_prefix(b"data:")?;
        if self.has_data {
            self.data.push('\n');
        }
        self.has_data = true;
        self.data.push_str(&String::from_utf8_lossy(rest.strip_prefix(b" ").unwrap_or(rest)));
        None
    }

    /// The event that the stream's end has cut: some endpoints leave out the last empty line.
    pub fn finish(mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        self.line_ends(&line).or_else(|| self.has_data.then_some(self.data))
    }
}

/// What the model wants done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// An answer, as far as it has come.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub text: String,
    pub calls: Vec<Call>,
    /// Why the model stopped, in its own words.
    pub finish: Option<String>,
    /// Whether the endpoint said that this is all.
    pub done: bool,
}

impl Answer {
    /// Takes in one event of a stream.
    pub fn take(&mut self, event: &str) -> Result<(), ChatError> {
        if event.trim() == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let value = wire_json::parse_lenient(event.as_bytes())
            .map_err(|error| ChatError::BadStream(format!("an event is not JSON: {error}")))?;
        self.take_value(&value, "delta")
    }

    /// Takes in a whole answer, from an endpoint that does not stream.
    pub fn take_whole(&mut self, body: &[u8]) -> Result<(), ChatError> {
        let value = wire_json::parse_lenient(body)
            .map_err(|error| ChatError::BadStream(format!("the answer is neither a stream nor JSON: {error}")))?;
        self.take_value(&value, "message")?;
        self.done = true;
        Ok(())
    }

    fn take_value(&mut self, value: &Value, part: &str) -> Result<(), ChatError> {
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            return Err(ChatError::Endpoint { status: 200, detail: message_of(error) });
        }
        // The last event may tell of usage alone.
        let Some(choice) = value.get("choices").and_then(|choices| choices.get(0)) else { return Ok(()) };
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish = Some(reason.chars().take(MAX_NAME).collect());
        }
        let Some(delta) = choice.get(part) else { return Ok(()) };
        if let Some(text) = delta.get("content").and_then(Value::as_str) {
            append(&mut self.text, text, MAX_TEXT, "its text")?;
        }
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.take_call(call)?;
        }
        Ok(())
    }

    fn take_call(&mut self, delta: &Value) -> Result<(), ChatError> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = text(delta, "id");
        let begins = self.calls.last().is_none_or(|last| !id.is_empty() && last.id != id);
        // Some endpoints do not number calls: an id that is new begins one.
        let at = match delta.get("index").and_then(Value::as_u64) {
            Some(index) => usize::try_from(index).unwrap_or(usize::MAX),
            None => self.calls.len() - usize::from(!begins),
        };
        if at >= MAX_CALLS {
            return Err(ChatError::BadStream(format!("it calls for more than {MAX_CALLS} runs at once")));
        }
        if at >= self.calls.len() {
            self.calls.resize(at + 1, Call::default());
        }
        let call = &mut self.calls[at];
        if call.id.is_empty() {
            append(&mut call.id, &id, MAX_NAME, "a call's id")?;
        }
        let Some(function) = delta.get("function") else { return Ok(()) };
        append(&mut call.name, &text(function, "name"), MAX_NAME, "a call's name")?;
        match function.get("arguments") {
            Some(Value::String(piece)) => append(&mut call.arguments, piece, MAX_ARGUMENTS, "a call's code"),
            // Not as the protocol has it, and clear all the same.
            Some(object @ Value::Object(_)) => {
                append(&mut call.arguments, &object.to_string(), MAX_ARGUMENTS, "a call's code")
            }
            _ => Ok(()),
        }
    }

    /// Checks that it is whole, and gives names to calls that have none.
    pub fn finish(mut self, step: usize) -> Result<Self, ChatError> {
        if !self.done && self.finish.is_none() {
            return Err(ChatError::BadStream("it was cut off before its end".to_owned()));
        }
        self.calls.retain(|call| *call != Call::default());
        for (number, call) in self.calls.iter_mut().enumerate().filter(|(_, call)| call.id.is_empty()) {
            call.id = format!("call_{step}_{number}");
        }
        Ok(self)
    }
}

fn append(text: &mut String, more: &str, most: usize, what: &str) -> Result<(), ChatError> {
    if text.len() + more.len() > most {
        return Err(ChatError::BadStream(format!("{what} is longer than {} kB", most.div_ceil(1024))));
    }
    text.push_str(more);
    Ok(())
}

/// What an endpoint says of an error, as one line of text that can be shown.
pub(super) fn message_of(error: &Value) -> String {
    let text = match error {
        Value::String(text) => text.clone(),
        other => match other.get("message").or_else(|| other.get("error")).or_else(|| other.get("detail")) {
            Some(inner) => return message_of(inner),
            None => other.to_string(),
        },
    };
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    shown.trim().to_owned()
}

/// The code that a call is given.
pub(super) fn code_of(call: &Call) -> Result<String, String> {
    if call.name != "run_code" {
        return Err(format!("there is no tool {:?}; run_code is the only one", call.name));
    }
    match wire_json::parse_lenient(call.arguments.as_bytes()) {
        Ok(Value::Object(mut object)) => match object.remove("code") {
            Some(Value::String(code)) if !code.trim().is_empty() => Ok(code),
            _ => Err("run_code takes {\"code\": \"...\"}, and there is no code".to_owned()),
        },
        _ => Err("the arguments of run_code are not JSON; give {\"code\": \"...\"}".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn collect(pieces: &[&[u8]]) -> Vec<String> {
        let mut frames = Frames::default();
        let mut events: Vec<String> = pieces.iter().flat_map(|piece| frames.push(piece).unwrap()).collect();
        events.extend(frames.finish());
        events
    }

    #[test]
    fn events_are_put_together_however_lines_end() {
        let text = b": hello\r\ndata: a\r\n\r\nid: 7\ndata:b\ndata: c\n\ndata: d\r\rdata: e";
        assert_eq!(collect(&[text]), ["a", "b\nc", "d", "e"]);
        assert_eq!(collect(&[b"\n\n: nothing\n\n"]), [""; 0]);
        let mut frames = Frames::default();
        assert!(frames.push(&vec![b'x'; MAX_EVENT + 1]).is_err());
    }

    proptest! {
        #[test]
        fn where_a_stream_is_cut_makes_no_difference(
            text in "(data: [aä{}\r]{0,5}|: x|\n|\r\n){0,12}", cuts in prop::collection::vec(0usize..80, 0..6)
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(collect(&pieces), collect(&[bytes]));
        }

        #[test]
        fn no_event_makes_it_panic(event in ".{0,200}", index in any::<u64>(), name in ".{0,8}") {
            let mut answer = Answer::default();
            let _ = answer.take(&event);
            let call = json!({"choices": [{"delta": {"tool_calls": [{"index": index, "function": {"name": name}}, {}]}}]});
            let _ = answer.take(&call.to_string());
            prop_assert!(answer.calls.len() <= MAX_CALLS);
        }
    }

    fn answer(events: &[Value]) -> Result<Answer, ChatError> {
        let mut answer = Answer::default();
        for event in events {
            answer.take(&event.to_string())?;
        }
        answer.finish(3)
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    #[test]
    fn an_answer_comes_by_pieces() {
        let call = |index: u64, id: Option<&str>, name: Option<&str>, arguments: &str| {
            delta(json!({"tool_calls": [{"index": index, "id": id, "function": {"name": name, "arguments": arguments}}]}))
        };
        let whole = answer(&[
            delta(json!({"role": "assistant", "content": ""})),
            delta(json!({"content": "Let me "})),
            delta(json!({"content": "look."})),
            call(0, Some("a"), Some("run_code"), ""),
            call(0, None, None, "{\"code\":"),
            call(1, None, Some("run_code"), "{}"),
            call(0, None, None, " \"1+1\"}"),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"choices": [], "usage": {"total_tokens": 9}}),
        ])
        .unwrap();
        assert_eq!((whole.text.as_str(), whole.finish.as_deref()), ("Let me look.", Some("tool_calls")));
        assert_eq!(whole.calls.iter().map(|call| call.id.as_str()).collect::<Vec<_>>(), ["a", "call_3_1"]);
        assert_eq!(code_of(&whole.calls[0]).unwrap(), "1+1");
        assert!(code_of(&whole.calls[1]).unwrap_err().contains("no code"));
    }

    #[test]
    fn calls_without_numbers_are_told_apart_by_their_ids() {
        let call = |id: &str, arguments: Value| {
            delta(json!({"tool_calls": [{"id": id, "function": {"name": "run_code", "arguments": arguments}}]}))
        };
        let mut events = vec![call("a", json!("{\"code\": \"1\"}")), call("b", json!({"code": "2"}))];
        events.push(json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
        let whole = answer(&events).unwrap();
        assert_eq!(whole.calls.iter().map(|call| code_of(call).unwrap()).collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let cut = answer(&[delta(json!({"content": "Let"}))]).unwrap_err();
        assert!(cut.to_string().contains("cut off"), "{cut}");
        let told = answer(&[json!({"error": {"message": "out of\nmemory"}})]).unwrap_err();
        assert!(told.to_string().contains("out of memory"), "{told}");
        let mut many = Answer::default();
        let long = delta(json!({"content": "x".repeat(MAX_TEXT / 2 + 1)})).to_string();
        many.take(&long).unwrap();
        assert!(many.take(&long).is_err());
        assert!(Answer::default().take("{").is_err());
        let mut whole = Answer::default();
        whole.take_whole(br#"{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}"#).unwrap();
        assert_eq!(whole.finish(1).unwrap().text, "hi");
    }
}

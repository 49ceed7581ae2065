//! Collects the reply of a model from the server-sent events of its endpoint. Pure. All state is bounded, because an endpoint is as
//! untrusted as a kernel.

use serde_json::Value;

use super::error::ChatError;
use crate::wire::json as wire_json;

/// The largest text of a reply in bytes.
const MAX_TEXT: usize = 256 << 10;
/// The largest arguments of a tool call in bytes.
const MAX_ARGUMENTS: usize = 256 << 10;
/// The largest number of tool calls in a reply.
const MAX_CALLS: usize = 8;
/// The largest name or id in bytes.
const MAX_NAME: usize = 256;

/// A tool call of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON text from the model, not validated.
    pub arguments: String,
}

/// A reply of the model, as far as it has arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ModelReply {
    pub text: String,
    pub calls: Vec<ToolCall>,
    /// The `finish_reason` of the protocol.
    pub finish: Option<String>,
    /// Whether the endpoint has marked the end of the stream.
    pub done: bool,
}

impl ModelReply {
    /// Adds an event of a stream.
    pub fn push_event(&mut self, event: &str) -> Result<(), ChatError> {
        if event.trim() == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let value = wire_json::parse_lenient(event.as_bytes())
            .map_err(|error| ChatError::BadStream(format!("an event is not JSON: {error}")))?;
        self.add_value(&value, "delta")
    }

    /// Parses a whole reply, from an endpoint that does not stream.
    pub fn parse_whole(&mut self, body: &[u8]) -> Result<(), ChatError> {
        let value = wire_json::parse_lenient(body)
            .map_err(|error| ChatError::BadStream(format!("the response is neither a stream nor JSON: {error}")))?;
        self.add_value(&value, "message")?;
        self.done = true;
        Ok(())
    }

    fn add_value(&mut self, value: &Value, part: &str) -> Result<(), ChatError> {
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            return Err(ChatError::Endpoint { status: 200, detail: error_message(error) });
        }
        // The last event may have the usage only.
        let Some(choice) = value.get("choices").and_then(|choices| choices.get(0)) else { return Ok(()) };
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish = Some(reason.chars().take(MAX_NAME).collect());
        }
        let Some(delta) = choice.get(part) else { return Ok(()) };
        if let Some(text) = delta.get("content").and_then(Value::as_str) {
            append(&mut self.text, text, MAX_TEXT, "the text of a reply")?;
        }
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.add_call(call)?;
        }
        Ok(())
    }

    fn add_call(&mut self, delta: &Value) -> Result<(), ChatError> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = text(delta, "id");
        let is_new = self.calls.last().is_none_or(|last| !id.is_empty() && last.id != id);
        // Some endpoints do not number calls. Then a new id starts a new call.
        let at = match delta.get("index").and_then(Value::as_u64) {
            Some(index) => usize::try_from(index).unwrap_or(usize::MAX),
            None => self.calls.len() - usize::from(!is_new),
        };
        if at >= MAX_CALLS {
            return Err(ChatError::BadStream(format!("a reply has more than {MAX_CALLS} tool calls")));
        }
        if at >= self.calls.len() {
            self.calls.resize(at + 1, ToolCall::default());
        }
        let call = &mut self.calls[at];
        if call.id.is_empty() {
            append(&mut call.id, &id, MAX_NAME, "the id of a tool call")?;
        }
        let Some(function) = delta.get("function") else { return Ok(()) };
        append(&mut call.name, &text(function, "name"), MAX_NAME, "the name of a tool call")?;
        match function.get("arguments") {
            Some(Value::String(piece)) => append(&mut call.arguments, piece, MAX_ARGUMENTS, "the code of a tool call"),
            // The protocol requires a string. Some endpoints send an object.
            Some(object @ Value::Object(_)) => {
                append(&mut call.arguments, &object.to_string(), MAX_ARGUMENTS, "the code of a tool call")
            }
            _ => Ok(()),
        }
    }

    /// Checks that the reply is complete, and adds ids to tool calls without one.
    pub fn finish(mut self, step: usize) -> Result<Self, ChatError> {
        if !self.done && self.finish.is_none() {
            return Err(ChatError::BadStream("it was cut off".to_owned()));
        }
        self.calls.retain(|call| *call != ToolCall::default());
        for (number, call) in self.calls.iter_mut().enumerate().filter(|(_, call)| call.id.is_empty()) {
            call.id = format!("call_{step}_{number}");
        }
        Ok(self)
    }
}

fn append(text: &mut String, more: &str, max: usize, what: &str) -> Result<(), ChatError> {
    if text.len() + more.len() > max {
        return Err(ChatError::BadStream(format!("{what} exceeds {} kB", max.div_ceil(1024))));
    }
    text.push_str(more);
    Ok(())
}

/// The message in an endpoint's error, as one line of text.
pub(super) fn error_message(error: &Value) -> String {
    let text = match error {
        Value::String(text) => text.clone(),
        other => match other.get("message").or_else(|| other.get("error")).or_else(|| other.get("detail")) {
            Some(inner) => return error_message(inner),
            None => other.to_string(),
        },
    };
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    line.trim().to_owned()
}

/// The code of a tool call. The error is a message to the model.
pub(super) fn parse_code(call: &ToolCall) -> Result<String, String> {
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

    proptest! {
        #[test]
        fn arbitrary_events_do_not_panic(event in ".{0,200}", index in any::<u64>(), name in ".{0,8}") {
            let mut answer = ModelReply::default();
            let _ = answer.push_event(&event);
            let call = json!({"choices": [{"delta": {"tool_calls": [{"index": index, "function": {"name": name}}, {}]}}]});
            let _ = answer.push_event(&call.to_string());
            prop_assert!(answer.calls.len() <= MAX_CALLS);
        }
    }

    fn answer(events: &[Value]) -> Result<ModelReply, ChatError> {
        let mut answer = ModelReply::default();
        for event in events {
            answer.push_event(&event.to_string())?;
        }
        answer.finish(3)
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    #[test]
    fn reply_is_assembled_from_parts() {
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
        assert_eq!(parse_code(&whole.calls[0]).unwrap(), "1+1");
        assert!(parse_code(&whole.calls[1]).unwrap_err().contains("no code"));
    }

    #[test]
    fn calls_without_index_are_separated_by_id() {
        let call = |id: &str, arguments: Value| {
            delta(json!({"tool_calls": [{"id": id, "function": {"name": "run_code", "arguments": arguments}}]}))
        };
        let mut events = vec![call("a", json!("{\"code\": \"1\"}")), call("b", json!({"code": "2"}))];
        events.push(json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
        let whole = answer(&events).unwrap();
        assert_eq!(whole.calls.iter().map(|call| parse_code(call).unwrap()).collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn invalid_replies_are_reported() {
        let cut = answer(&[delta(json!({"content": "Let"}))]).unwrap_err();
        assert!(cut.to_string().contains("cut off"), "{cut}");
        let failed = answer(&[json!({"error": {"message": "out of\nmemory"}})]).unwrap_err();
        assert!(failed.to_string().contains("out of memory"), "{failed}");
        let mut many = ModelReply::default();
        let long = delta(json!({"content": "x".repeat(MAX_TEXT / 2 + 1)})).to_string();
        many.push_event(&long).unwrap();
        assert!(many.push_event(&long).is_err());
        assert!(ModelReply::default().push_event("{").is_err());
        let mut whole = ModelReply::default();
        whole.parse_whole(br#"{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}"#).unwrap();
        assert_eq!(whole.finish(1).unwrap().text, "hi");
    }
}

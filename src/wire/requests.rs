//! The requests that we send to kernels, built by the crate `jupyter-protocol`.
//!
//! Only contents come from the crate. Headers, metadata and everything that kernels send stay raw bytes ([`Message`]). The
//! agent does without it: its requests have no fields, and the crate would bring chrono, uuid and futures into each sandbox.

use std::time::SystemTime;

use bytes::Bytes;
use jupyter_protocol::{CompleteRequest, ExecuteRequest, InputReply, InspectRequest, KernelInfoRequest};
use serde::Serialize;
use serde_json::Value;

use super::Message;

/// The type and content of a request, before it has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRequest {
    pub msg_type: &'static str,
    /// JSON.
    pub content: Bytes,
}

impl KernelRequest {
    /// `execute_request` for a cell.
    pub fn execute(code: &str, allow_stdin: bool) -> Self {
        let request = ExecuteRequest { allow_stdin, stop_on_error: STOP_ON_ERROR, ..ExecuteRequest::new(code.to_owned()) };
        Self::new("execute_request", &request)
    }

    /// `execute_request` that is not counted, not stored in the history, and whose output kernels do not publish.
    pub fn execute_silently(code: &str) -> Self {
        let request = ExecuteRequest {
            silent: true,
            store_history: false,
            stop_on_error: STOP_ON_ERROR,
            ..ExecuteRequest::new(code.to_owned())
        };
        Self::new("execute_request", &request)
    }

    /// `complete_request`; `cursor` counts Unicode characters.
    pub fn complete(code: &str, cursor: usize) -> Self {
        Self::new("complete_request", &CompleteRequest { code: code.to_owned(), cursor_pos: cursor })
    }

    /// `inspect_request` without source code; `cursor` counts Unicode characters.
    pub fn inspect(code: &str, cursor: usize) -> Self {
        let request = InspectRequest { code: code.to_owned(), cursor_pos: cursor, detail_level: Some(0) };
        Self::new("inspect_request", &request)
    }

    /// `kernel_info_request`.
    pub fn kernel_info() -> Self {
        Self::new("kernel_info_request", &KernelInfoRequest {})
    }

    /// `input_reply`. Besides the value it has `"status": "ok"`: the protocol gives every reply a status, and JupyterLab
    /// sends it too.
    pub fn input_reply(value: &str) -> Self {
        Self::new("input_reply", &InputReply { value: value.to_owned(), ..InputReply::default() })
    }

    /// `create_subshell_request` (JEP 91), which the crate does not know.
    pub fn create_subshell() -> Self {
        Self { msg_type: "create_subshell_request", content: Bytes::from_static(b"{}") }
    }

    /// `comm_msg`, whose content is a widget's own.
    pub fn comm_msg(content: &Value) -> Self {
        Self { msg_type: "comm_msg", content: content.to_string().into() }
    }

    fn new(msg_type: &'static str, content: &impl Serialize) -> Self {
        // Cannot fail: the crate's types have string keys and infallible serialisers.
        Self { msg_type, content: serde_json::to_vec(content).unwrap_or_default().into() }
    }

    pub fn into_message(self, msg_id: &str, session: &str, sent_at: SystemTime) -> Message {
        Message::from_content(msg_id, session, self.msg_type, self.content, sent_at)
    }
}

/// The session has its own queue and decides what happens to cells behind a failed one; kernels must not abort them.
const STOP_ON_ERROR: bool = false;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn content(request: KernelRequest) -> String {
        String::from_utf8(request.content.to_vec()).unwrap()
    }

    /// Byte for byte, also in the order of the keys.
    fn assert_content(request: KernelRequest, expected: &Value) {
        assert_eq!(content(request), expected.to_string());
    }

    #[test]
    fn contents_are_those_of_jupyter_front_ends() {
        assert_content(
            KernelRequest::execute("1", true),
            &json!({
                "code": "1", "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": true,
                "stop_on_error": false,
            }),
        );
        assert_content(
            KernelRequest::execute_silently("ä\n"),
            &json!({
                "code": "ä\n", "silent": true, "store_history": false, "user_expressions": {}, "allow_stdin": false,
                "stop_on_error": false,
            }),
        );
        assert_content(KernelRequest::complete("pri", 3), &json!({"code": "pri", "cursor_pos": 3}));
        assert_content(KernelRequest::inspect("len", 2), &json!({"code": "len", "cursor_pos": 2, "detail_level": 0}));
        assert_content(KernelRequest::kernel_info(), &json!({}));
        assert_content(KernelRequest::input_reply("yes"), &json!({"value": "yes", "status": "ok"}));
    }

    #[test]
    fn message_equals_one_built_from_json() {
        let content = json!({"code": "pri", "cursor_pos": 3});
        let mut expected = Message::request("id", "session", "complete_request", &content);
        let message = KernelRequest::complete("pri", 3).into_message("id", "session", SystemTime::now());
        // The headers differ in their date only.
        assert_eq!(message.header().msg_type, "complete_request");
        expected.header = message.header.clone();
        assert_eq!(message, expected);
    }
}

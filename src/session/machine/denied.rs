//! Why a session refuses a command.

use thiserror::Error;

use crate::agent_protocol::SUBMIT_MAX;

/// Largest code in one request to the kernel, in bytes of its JSON form. The rest of the request takes less than what is left of
/// [`SUBMIT_MAX`].
pub(super) const MAX_SOURCE: usize = SUBMIT_MAX - (64 << 10);

/// Why a session refuses a command. Nothing has changed when it is returned.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    #[error("the session is over: {why}")]
    Gone { why: String },
    #[error("there is no cell {id:?} in this session")]
    NoCell { id: String },
    #[error("there is a cell {id:?} already")]
    IdTaken { id: String },
    #[error("{id:?} is no cell id: use 1 to 64 letters, digits, - and _")]
    BadId { id: String },
    #[error("cell {id:?} is no code cell")]
    NotCode { id: String },
    /// `phase` is `queued` or `running`.
    #[error("cell {id:?} is {phase} already")]
    InProgress { id: String, phase: &'static str },
    #[error("cell {id:?} is not queued or running")]
    NotInProgress { id: String },
    /// A limit on what one session keeps: cells, bytes, queued cells, unanswered requests.
    #[error("{what}: at most {limit} are kept in one session")]
    TooMany { what: &'static str, limit: usize },
    /// `what` is the field of the request: `source`, `code` or `value`.
    #[error("{what} is too large: a kernel can be sent at most {limit} bytes of it, counted as JSON")]
    TooLarge { what: &'static str, limit: usize },
    #[error("nothing in this session waits for input")]
    NotAsking,
    #[error("the kernel is {state} and cannot answer now")]
    NotReady { state: &'static str },
    #[error("the journal is not writable, so the request was rejected: {0}")]
    Storage(String),
}

/// Checks that a request with this text can be sent to a kernel.
pub(super) fn check_sendable(what: &'static str, text: &str) -> Result<(), Denied> {
    // One byte becomes six at most, so short texts need no counting.
    if text.len() > MAX_SOURCE / 6 && json_len(text) > MAX_SOURCE {
        return Err(Denied::TooLarge { what, limit: MAX_SOURCE });
    }
    Ok(())
}

/// Bytes of a text inside a JSON string as serde_json writes it, without the quotes. Counted without building the string.
fn json_len(text: &str) -> usize {
    let len = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(len).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::wire::Message;

    #[test]
    fn source_over_the_request_limit_is_rejected() {
        for (text, fits) in
            [("x".repeat(MAX_SOURCE), true), ("x".repeat(MAX_SOURCE + 1), false), ("\n".repeat(MAX_SOURCE / 2 + 1), false)]
        {
            assert_eq!(check_sendable("source", &text).is_ok(), fits);
        }
        let content = json!({"code": "x".repeat(MAX_SOURCE)});
        let message = Message::new_request("session", "execute_request", &content);
        assert!(message.pack().iter().map(Bytes::len).sum::<usize>() <= SUBMIT_MAX);
    }

    proptest! {
        #[test]
        fn json_len_equals_serde_json(text in any::<String>()) {
            prop_assert_eq!(json_len(&text) + 2, serde_json::to_string(&text).unwrap().len());
        }
    }
}

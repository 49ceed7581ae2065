//! Requests to the kernel besides its cells: completion, inspection, and silent code between two cells.
//!
//! A kernel answers on its shell channel in order, so a request there waits for the cell that runs. Kernels with subshells
//! (ipykernel 7) answer there at once. One subshell is made for all requests, when the first one comes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::context::Context;
use super::denied::Denied;
use crate::wire::requests::KernelRequest;
use crate::wire::{Channel, Message};

/// Most requests that may be unanswered.
const MAX_OPEN: usize = 32;
/// How long a kernel may take to make a subshell. It answers on its control channel even while a cell runs.
const SUBSHELL_DEADLINE: Duration = Duration::from_secs(5);

/// A request to the kernel whose reply a client waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session) enum Query {
    /// `cursor` counts Unicode characters.
    Complete { code: String, cursor: usize },
    /// `cursor` counts Unicode characters.
    Inspect { code: String, cursor: usize },
    /// Silent code: it is not counted, and its output is dropped.
    Execute { code: String },
}

impl Query {
    pub fn code(&self) -> &str {
        match self {
            Self::Complete { code, .. } | Self::Inspect { code, .. } | Self::Execute { code } => code,
        }
    }

    fn request(&self) -> KernelRequest {
        match self {
            Self::Complete { code, cursor } => KernelRequest::complete(code, *cursor),
            Self::Inspect { code, cursor } => KernelRequest::inspect(code, *cursor),
            Self::Execute { code } => KernelRequest::execute_silently(code),
        }
    }
}

/// See the [module](self) text.
#[derive(Debug, Default)]
pub(super) struct Introspection {
    /// Ids of requests that the kernel has not answered.
    open: BTreeSet<String>,
    subshell: Subshell,
}

/// Where the kernel answers. It is forgotten with the kernel, and a later server makes another one.
#[derive(Debug, Default)]
enum Subshell {
    /// No request has come yet.
    #[default]
    Unknown,
    /// The kernel was asked for a subshell by the request of this id. Other requests wait for it.
    Requested { request: String, waiting: Vec<Message>, until: Instant },
    /// The kernel's subshell has this id.
    Ready(String),
    /// The kernel has none, so its main shell answers.
    Unsupported,
}

/// Messages to be sent to the kernel, in order.
pub(super) type Outgoing = Vec<(Channel, Message)>;

/// What a message from the kernel is to the open requests.
#[derive(Debug)]
pub(super) enum Answered {
    /// It is none of theirs.
    No,
    /// It answers this request.
    Request { id: String, content: Value },
    /// The subshell is there, or will not be: these messages were waiting for it.
    Subshell(Outgoing),
}

impl Introspection {
    /// Sends a request that the caller has checked. Returns its id, by which it is answered later.
    pub fn ask(
        &mut self,
        cx: Context,
        session: &str,
        kernel_info: &Value,
        query: &Query,
    ) -> Result<(String, Outgoing), Denied> {
        if self.open.len() >= MAX_OPEN {
            return Err(Denied::TooMany { what: "unanswered requests", limit: MAX_OPEN });
        }
        let message = cx.message(session, query.request());
        let id = message.header().msg_id;
        self.open.insert(id.clone());
        // Code changes the main shell's namespace and belongs between its cells.
        if matches!(query, Query::Execute { .. }) {
            return Ok((id, vec![(Channel::Shell, message)]));
        }
        let mut outgoing = Outgoing::new();
        if matches!(self.subshell, Subshell::Unknown) {
            self.subshell = request_subshell(cx, session, kernel_info, &mut outgoing);
        }
        match &mut self.subshell {
            Subshell::Requested { waiting, .. } => waiting.push(message),
            Subshell::Ready(subshell) => outgoing.push((Channel::Shell, message.in_subshell(subshell))),
            Subshell::Unknown | Subshell::Unsupported => outgoing.push((Channel::Shell, message)),
        }
        Ok((id, outgoing))
    }

    /// Takes in a reply whose parent is `parent`.
    pub fn take_reply(&mut self, channel: Channel, parent: &str, message: &Message) -> Answered {
        match (channel, &mut self.subshell) {
            (Channel::Shell, _) if self.open.remove(parent) => {
                Answered::Request { id: parent.to_owned(), content: message.content_value() }
            }
            (Channel::Control, Subshell::Requested { request, .. }) if request == parent => {
                let content = message.content_value();
                Answered::Subshell(self.settle_subshell(content.get("subshell_id").and_then(Value::as_str)))
            }
            _ => Answered::No,
        }
    }

    /// Sends what has waited for a subshell into this one, or into the main shell.
    fn settle_subshell(&mut self, id: Option<&str>) -> Outgoing {
        let settled = id.map_or(Subshell::Unsupported, |id| Subshell::Ready(id.to_owned()));
        let Subshell::Requested { waiting, .. } = std::mem::replace(&mut self.subshell, settled) else {
            return Outgoing::new();
        };
        let addressed = waiting.into_iter().map(|message| match id {
            Some(id) => message.in_subshell(id),
            None => message,
        });
        addressed.map(|message| (Channel::Shell, message)).collect()
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.subshell {
            Subshell::Requested { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// A kernel that has promised subshells and made none is asked in its main shell.
    pub fn expire(&mut self, now: Instant) -> Outgoing {
        if self.deadline().is_some_and(|until| until <= now) { self.settle_subshell(None) } else { Outgoing::new() }
    }

    /// The kernel has ended, or replies were lost. Returns the requests that will not be answered.
    pub fn give_up(&mut self) -> BTreeSet<String> {
        self.subshell = Subshell::default();
        std::mem::take(&mut self.open)
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

fn request_subshell(cx: Context, session: &str, kernel_info: &Value, outgoing: &mut Outgoing) -> Subshell {
    let features = kernel_info.get("supported_features").and_then(Value::as_array);
    if !features.is_some_and(|features| features.iter().any(|feature| feature == "kernel subshells")) {
        return Subshell::Unsupported;
    }
    let message = cx.message(session, KernelRequest::create_subshell());
    let request = message.header().msg_id;
    outgoing.push((Channel::Control, message));
    Subshell::Requested { request, waiting: Vec::new(), until: cx.instant + SUBSHELL_DEADLINE }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;

    fn query() -> Query {
        Query::Complete { code: String::new(), cursor: 0 }
    }

    fn cx() -> Context {
        Context { instant: Instant::now(), time: SystemTime::UNIX_EPOCH, make_uuid: crate::ids::random_uuid }
    }

    #[test]
    fn unanswered_requests_are_limited() {
        let mut introspection = Introspection::default();
        for _ in 0..MAX_OPEN {
            introspection.ask(cx(), "s", &Value::Null, &query()).unwrap();
        }
        let denied = introspection.ask(cx(), "s", &Value::Null, &query());
        assert!(matches!(denied, Err(Denied::TooMany { limit: MAX_OPEN, .. })));
        assert_eq!(introspection.give_up().len(), MAX_OPEN);
        assert!(introspection.ask(cx(), "s", &Value::Null, &query()).is_ok());
    }

    #[test]
    fn foreign_replies_answer_nothing() {
        let mut introspection = Introspection::default();
        let (id, _) = introspection.ask(cx(), "s", &Value::Null, &query()).unwrap();
        let reply = Message::new_request("kernel", "inspect_reply", &json!({"found": false}));
        assert!(matches!(introspection.take_reply(Channel::Shell, "other", &reply), Answered::No));
        assert!(matches!(introspection.take_reply(Channel::Iopub, &id, &reply), Answered::No));
        assert!(matches!(introspection.take_reply(Channel::Shell, &id, &reply), Answered::Request { .. }));
        assert!(matches!(introspection.take_reply(Channel::Shell, &id, &reply), Answered::No), "it was answered");
    }
}

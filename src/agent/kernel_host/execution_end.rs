//! The end of an execution in a kernel that broadcasts outputs after the reply and the idle status.
//!
//! Deno queues its outputs, and a reply may overtake them. So reply and idle are held back, and a marker is executed whose
//! broadcast goes through the same queue; when it has arrived, all outputs have.

use std::time::{Duration, Instant};

use super::KernelHost;
use crate::agent_protocol::END_MARKER;
use crate::wire::{Channel, Header, Message};

/// The reply and the idle status of an execution. They wait here until the marker has arrived.
pub(super) struct ExecutionEnd {
    /// The `msg_id` of the `execute_request`.
    execution: String,
    held: Vec<(Channel, Message)>,
    /// When the messages are passed on without the marker. Set by the marker's reply, which normally follows the marker.
    pub give_up_at: Option<Instant>,
}

/// How long the marker may come after its reply.
const MARKER_GRACE: Duration = Duration::from_secs(1);

impl KernelHost {
    /// Emits the reply or the idle status of an execution; for a kernel that needs a marker, when the marker has arrived.
    pub(super) fn emit_end(&mut self, channel: Channel, execution: &str, message: Message) {
        let Some(marker) = self.sandbox.config.end_marker.clone() else { return self.emit_message(channel, message) };
        if self.kernel.end.as_ref().is_some_and(|end| end.execution != execution) {
            self.pass_on_end();
        }
        let end = self.kernel.end.get_or_insert_with(|| ExecutionEnd {
            execution: execution.to_owned(),
            held: Vec::new(),
            give_up_at: None,
        });
        end.held.push((channel, message));
        if channel == Channel::Shell {
            self.run_silently(&marker);
        }
    }

    /// Passes on what was held back: the marker has arrived, or cannot arrive any more.
    pub(super) fn pass_on_end(&mut self) {
        for (channel, message) in self.kernel.end.take().map(|end| end.held).unwrap_or_default() {
            self.emit_message(channel, message);
        }
    }

    /// Handles a message whose request was the agent's own. Gives back outputs: broadcasts of code that an earlier execution
    /// left running, which the kernel attributes to its latest request.
    pub(super) fn receive_own(&mut self, channel: Channel, header: &Header, mut message: Message) -> Option<Message> {
        match header.msg_type.as_str() {
            "kernel_info_reply" => self.kernel.info = Some(String::from_utf8_lossy(&message.content).into_owned()),
            "execute_reply" => {
                self.kernel.prepared = true;
                if let Some(end) = &mut self.kernel.end {
                    end.give_up_at = Some(Instant::now() + MARKER_GRACE);
                }
            }
            END_MARKER => self.pass_on_end(),
            "status" | "execute_input" | "iopub_welcome" => {}
            _ if channel == Channel::Iopub && self.executions.newest_header().is_some() => {
                message.parent_header = self.executions.newest_header().unwrap_or_default();
                return Some(message);
            }
            _ => {}
        }
        self.check_ready();
        None
    }
}

/// Whether a status message says that the kernel is idle.
pub(super) fn is_idle(status: &Message) -> bool {
    status.content_value().get("execution_state").is_some_and(|state| state == "idle")
}

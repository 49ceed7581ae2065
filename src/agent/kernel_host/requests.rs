//! Handles the manager's frames.

use std::time::Instant;

use bytes::Bytes;

use super::KernelHost;
use crate::agent::execution_context;
use crate::agent::file_requests::{self, DONE};
use crate::agent::sandbox::MEMORY_INTERVAL;
use crate::agent_protocol::{Answer, AnswerBody, FromAgent, KernelState, Request, ToAgent};
use crate::allocator;
use crate::ids::Generation;
use crate::wire::{Channel, Message};

/// Bytes of stored events after which the allocator may retain enough memory to be worth a trim.
const TRIM_AFTER: usize = 256 * 1024;
/// How many ids of submissions are remembered, to recognise repetitions.
const MAX_SUBMITTED_IDS: usize = 4096;

impl KernelHost {
    pub(super) fn handle_frame(&mut self, frame: ToAgent) {
        match frame {
            ToAgent::Attach { epoch, from_seq } => {
                if let Some(connection) = &self.connection {
                    connection.attach(self.sandbox.epoch, epoch, from_seq);
                }
            }
            ToAgent::Ack { seq } => {
                self.buffer.borrow_mut().ack(seq);
                self.trim_memory();
            }
            ToAgent::Submit { id, channel, generation, msg_id, message } => {
                let body = self.submit(channel, generation, msg_id, message);
                self.answer(id, body, Bytes::new());
            }
            ToAgent::Request { id, request, data } => {
                let files = file_requests::answer(&self.sandbox, &mut self.uploads, &request, &data);
                let (body, data) = files.unwrap_or_else(|| (self.handle_request(request), Bytes::new()));
                self.answer(id, body, data);
            }
            // Only the first frame of a connection.
            ToAgent::Open { .. } => {}
        }
    }

    /// Returns free memory to the system after a burst of output, between two executions. It takes some hundred
    /// microseconds, so it is not done after every few lines.
    fn trim_memory(&mut self) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() && !self.executions.is_running() && buffer.take_stored(TRIM_AFTER).is_some() {
            allocator::release_free_memory();
        }
    }

    fn submit(&mut self, channel: Channel, generation: Option<Generation>, msg_id: String, message: Message) -> AnswerBody {
        if self.submitted.contains(&msg_id) {
            return AnswerBody::Done { repeated: true };
        }
        if generation.is_some_and(|generation| generation != self.kernel.generation) {
            return AnswerBody::Refused("the kernel it was meant for has exited".to_owned().into());
        }
        let senders = match (&self.kernel.senders, self.kernel.state) {
            (Some(senders), KernelState::Ready) => senders,
            (_, state) => return AnswerBody::Refused(format!("the kernel is not ready ({state:?})").into()),
        };
        let (header, context) = (message.header(), execution_context::read(&message));
        let raw_header = message.header.clone();
        if let Some(folder) = &context.cwd {
            // If it cannot be created, the kernel says so.
            let _ = self.sandbox.files.create_folders(folder.as_bytes());
        }
        let message = match &self.sandbox.config.context_code {
            Some(template) => execution_context::prefix_code(message, &context, template),
            None => message,
        };
        if !senders.send(channel, message) {
            return AnswerBody::Refused(format!("cannot send on {}", channel.name()).into());
        }
        if channel == Channel::Shell && header.msg_type == "execute_request" {
            // What changed before belongs to the execution before.
            if self.sandbox.note_executor(&self.session) {
                self.report_changes();
            }
            self.executions.submit(header.msg_id, raw_header, context);
            self.baseline_due = true;
            self.next_sample = Some(Instant::now() + MEMORY_INTERVAL);
            self.kernel.interrupt_deferred = false;
        }
        self.submitted.insert(msg_id.clone());
        self.submitted_order.push_back(msg_id);
        if self.submitted_order.len() > MAX_SUBMITTED_IDS {
            let oldest = self.submitted_order.pop_front();
            oldest.map(|id| self.submitted.remove(&id));
        }
        DONE
    }

    fn handle_request(&mut self, request: Request) -> AnswerBody {
        match request {
            Request::Signal { signal, generation } => self.signal(signal, generation),
            Request::Restart { generation } => {
                if generation == self.kernel.generation {
                    self.restart();
                }
                DONE
            }
            Request::Usage => AnswerBody::Usage(self.sandbox.meter.borrow_mut().read()),
            _ => AnswerBody::Refused("the request belongs to the sandbox".to_owned().into()),
        }
    }

    fn answer(&mut self, id: u64, body: AnswerBody, data: Bytes) {
        let Some(connection) = &self.connection else { return };
        if !connection.answer(FromAgent::Answer(Answer { id, body, data })) {
            self.close(connection.id);
        }
    }
}

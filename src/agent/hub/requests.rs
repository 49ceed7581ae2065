//! Handles the manager's frames.

use std::time::Instant;

use bytes::Bytes;

use super::{Hub, MEMORY_INTERVAL};
use crate::agent::uploads::Chunk;
use crate::agent::{execution_context, kernel};
use crate::agent_protocol::{Answer, AnswerBody, FromAgent, KernelState, Refused, Request, ToAgent};
use crate::ids::Generation;
use crate::memory;
use crate::wire::{Channel, Message};

/// Bytes of stored events after which the allocator may retain enough memory to be worth a trim.
const TRIM_AFTER: usize = 256 * 1024;
/// How many ids of submissions are remembered, to recognise repetitions.
const MAX_SUBMITTED_IDS: usize = 4096;

/// The answer to a request that returns nothing.
const DONE: AnswerBody = AnswerBody::Done { repeated: false };

impl Hub {
    pub(super) async fn handle_frame(&mut self, frame: ToAgent) -> bool {
        match frame {
            ToAgent::Attach { epoch, from_seq } => {
                if let Some(connection) = &self.connection {
                    connection.attach(self.epoch, epoch, from_seq);
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
            ToAgent::Request { id, request: Request::Terminate, .. } => {
                self.answer(id, DONE, Bytes::new());
                if let Some(connection) = &self.connection {
                    connection.drain().await;
                }
                kernel::kill_all(self.kernel.pid);
                return true;
            }
            ToAgent::Request { id, request, data } => {
                let changed = changed_paths(&request);
                let (body, data) = self.handle_request(request, &data);
                // A recursive removal takes several requests.
                if !matches!(body, AnswerBody::Refused(_) | AnswerBody::Removed { more: true }) {
                    changed.iter().for_each(|path| self.changes.absorb(&self.files, path));
                }
                self.answer(id, body, data);
            }
        }
        false
    }

    /// Returns free memory to the system after a burst of output, between two executions. It takes some hundred
    /// microseconds, so it is not done after every few lines.
    fn trim_memory(&mut self) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() && !self.executions.is_running() && buffer.take_stored(TRIM_AFTER).is_some() {
            memory::release_free_memory();
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
            let _ = self.files.create_folders(folder.as_bytes());
        }
        let message = match &self.config.context_code {
            Some(template) => execution_context::prefix_code(message, &context, template),
            None => message,
        };
        if !senders.send(channel, message) {
            return AnswerBody::Refused(format!("cannot send on {}", channel.name()).into());
        }
        if channel == Channel::Shell && header.msg_type == "execute_request" {
            // What changed before belongs to the execution before.
            self.report_changes();
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

    fn handle_request(&mut self, request: Request, data: &[u8]) -> (AnswerBody, Bytes) {
        let body = match request {
            Request::Signal { signal, generation } => self.signal(signal, generation),
            Request::Restart { generation } => {
                if generation == self.kernel.generation {
                    self.restart();
                }
                DONE
            }
            Request::Usage => AnswerBody::Usage(self.meter.read()),
            Request::FileGet { path, offset, length } => match self.files.get(&path, offset, length) {
                Ok((stat, data)) => return (AnswerBody::File(stat), data),
                Err(refused) => AnswerBody::Refused(refused),
            },
            Request::FilePut { upload, path, offset, last, options } => {
                let chunk = Chunk { upload, path: &path, offset, last, options };
                to_answer(self.uploads.write_chunk(&self.files, &chunk, data), |stat| stat.map_or(DONE, AnswerBody::File))
            }
            Request::FileDrop { upload } => {
                self.uploads.discard(upload);
                DONE
            }
            Request::FileStat { path } => to_answer(self.files.stat(&path), AnswerBody::Entry),
            Request::FileList { path, after, limit } => {
                let page = self.files.list(&path, &after, limit);
                to_answer(page, |(entries, next)| AnswerBody::Listing { entries, next })
            }
            Request::FileMakeFolder { path } => to_answer(self.files.make_folder(&path), |()| DONE),
            Request::FileLink { path, target } => to_answer(self.files.make_link(&path, &target), |()| DONE),
            Request::FileMove { path, to, replace } => to_answer(self.files.rename(&path, &to, replace), |()| DONE),
            Request::FileRemove { path, recursive } => {
                to_answer(self.files.remove(&path, recursive), |more| AnswerBody::Removed { more })
            }
            Request::Terminate => AnswerBody::Refused("the agent is already terminating".to_owned().into()),
        };
        (body, Bytes::new())
    }

    fn answer(&mut self, id: u64, body: AnswerBody, data: Bytes) {
        let Some(connection) = &self.connection else { return };
        if !connection.answer(FromAgent::Answer(Answer { id, body, data })) {
            self.close(connection.id);
        }
    }
}

/// The answer to a request about files.
fn to_answer<T>(result: Result<T, Refused>, answer: impl FnOnce(T) -> AnswerBody) -> AnswerBody {
    result.map_or_else(AnswerBody::Refused, answer)
}

/// The paths whose files a request of the manager changes.
fn changed_paths(request: &Request) -> Vec<String> {
    match request {
        Request::FilePut { path, last: true, .. } | Request::FileRemove { path, .. } => vec![path.clone()],
        Request::FileMove { path, to, .. } => vec![path.clone(), to.clone()],
        _ => Vec::new(),
    }
}

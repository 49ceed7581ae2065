//! What the manager asks.

use std::time::Instant;

use bytes::Bytes;

use super::{Hub, WATCH};
use crate::agent::files::{Opened, done};
use crate::agent::kernel;
use crate::agent::uploads::Piece;
use crate::agent_protocol::{Answer, AnswerBody, FromAgent, KernelState, Request, ToAgent};
use crate::ids::Generation;
use crate::memory;
use crate::wire::{Channel, Message};

/// Bytes of events after which the allocator may have kept enough to be worth a trim.
const TRIM_AFTER: usize = 256 * 1024;
/// How many submissions are remembered, so that a repeated one is recognised.
const REMEMBERED: usize = 4096;

impl Hub {
    pub(super) async fn take_frame(&mut self, frame: ToAgent) -> bool {
        match frame {
            ToAgent::Attach { epoch, from_seq } => {
                if let Some(connection) = &self.connection {
                    connection.attach(self.epoch, epoch, from_seq);
                }
            }
            ToAgent::Ack { seq } => {
                self.buffer.borrow_mut().ack(seq);
                self.give_memory_back();
            }
            ToAgent::Submit { id, channel, generation, msg_id, message } => {
                let body = self.submit(channel, generation, msg_id, message);
                self.answer(id, body, Bytes::new());
            }
            ToAgent::Request { id, request: Request::Terminate, .. } => {
                self.answer(id, AnswerBody::Done { repeated: false }, Bytes::new());
                if let Some(connection) = &self.connection {
                    connection.drain().await;
                }
                kernel::kill_all(self.kernel.pid);
                return true;
            }
            ToAgent::Request { id, request, data } => {
                let (body, data) = self.serve(request, &data);
                self.answer(id, body, data);
            }
        }
        false
    }

    /// After a flood, between two runs: what the allocator has kept of it goes back to the system. It costs some hundred
    /// microseconds, so not for every few lines.
    fn give_memory_back(&mut self) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() && !self.runs.is_open() && buffer.take_stored(TRIM_AFTER).is_some() {
            memory::give_back();
        }
    }

    fn submit(&mut self, channel: Channel, generation: Option<Generation>, msg_id: String, message: Message) -> AnswerBody {
        if self.submitted.contains(&msg_id) {
            return AnswerBody::Done { repeated: true };
        }
        if generation.is_some_and(|generation| generation != self.kernel.generation) {
            return AnswerBody::Refused("the kernel that it was meant for has ended".to_owned().into());
        }
        let senders = match (&self.kernel.senders, self.kernel.state) {
            (Some(senders), KernelState::Ready) => senders,
            (_, state) => return AnswerBody::Refused(format!("the kernel is not ready ({state:?})").into()),
        };
        let header = message.header();
        let raw_header = message.header.clone();
        if !senders.send(channel, message) {
            return AnswerBody::Refused(format!("nothing can be sent on {}", channel.name()).into());
        }
        if channel == Channel::Shell && header.msg_type == "execute_request" {
            self.runs.begin(header.msg_id, raw_header);
            self.has_begun = true;
            self.next_look = Some(Instant::now() + WATCH);
            self.kernel.interrupt_held = false;
        }
        self.submitted.insert(msg_id.clone());
        self.submitted_order.push_back(msg_id);
        if self.submitted_order.len() > REMEMBERED {
            let oldest = self.submitted_order.pop_front();
            oldest.map(|id| self.submitted.remove(&id));
        }
        AnswerBody::Done { repeated: false }
    }

    fn serve(&mut self, request: Request, data: &[u8]) -> (AnswerBody, Bytes) {
        let body = match request {
            Request::Signal { signal, generation } => self.signal(signal, generation),
            Request::Restart { generation } => {
                if generation == self.kernel.generation {
                    self.restart();
                }
                AnswerBody::Done { repeated: false }
            }
            Request::Usage => AnswerBody::Usage(self.meter.read()),
            Request::FileGet { path, offset } => match self.files.get(&path, offset) {
                Ok((Opened { size, inode }, data)) => return (AnswerBody::File { size, inode }, data),
                Err(refused) => AnswerBody::Refused(refused),
            },
            Request::FilePut { upload, path, offset, last } => {
                let piece = Piece { upload, path: &path, offset, last };
                done(self.uploads.put(&self.files, &piece, data))
            }
            Request::FileDrop { upload } => {
                self.uploads.drop_one(upload);
                AnswerBody::Done { repeated: false }
            }
            Request::FileRemove { path } => done(self.files.remove(&path)),
            Request::FileList { path } => match self.files.list(&path) {
                Ok((entries, truncated)) => AnswerBody::Listing { entries, truncated },
                Err(refused) => AnswerBody::Refused(refused),
            },
            Request::Terminate => AnswerBody::Refused("already ending".to_owned().into()),
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

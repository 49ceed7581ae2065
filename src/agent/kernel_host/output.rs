//! Turns the kernel's messages, and what its process writes to stdout and stderr, into events.

use std::time::Instant;

use bytes::Bytes;
use serde_json::json;

use super::KernelHost;
use super::execution_end::is_idle;
use super::kernel_process::DRAIN_QUIET;
use crate::agent::channels::Received;
use crate::agent::coalesce;
use crate::agent::executions::OutputAllowance;
use crate::agent::iopub_pipe::Broadcast;
use crate::agent::output_order::Stream;
use crate::agent::output_pipes::{Output, OutputPipes};
use crate::agent_protocol::{Event, KernelEvent, KernelState, MAX_MESSAGE};
use crate::wire::{Channel, Header, Message};

/// How many rejected messages of one execution are reported.
const MAX_REPORTED_REJECTIONS: u32 = 10;

impl KernelHost {
    /// Waits until the kernel's process has written something.
    pub(super) async fn output_readable(&self) {
        match &self.kernel.output {
            Some(output) => output.readable().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn read_output(&mut self) {
        self.handle_outputs(OutputPipes::read);
    }

    /// Handles the rest of the output of an exited kernel.
    pub(super) fn finish_output(&mut self) {
        self.handle_outputs(OutputPipes::finish);
        self.kernel.output = None;
    }

    fn handle_outputs(&mut self, read: impl FnOnce(&mut OutputPipes) -> Vec<Output>) {
        for output in self.kernel.output.as_mut().map(read).unwrap_or_default() {
            match output {
                Output::Text(stream, bytes) => self.process_output(stream, &bytes),
                Output::Broadcast(Broadcast::Message(message)) => self.receive((Channel::Iopub, message)),
                Output::Broadcast(Broadcast::TextOwner(owner)) => self.kernel.text_owner = owner,
                Output::Broadcast(Broadcast::TooLarge) => {
                    self.reject(&format!("the message is larger than {} MB", MAX_MESSAGE >> 20));
                }
                Output::Broadcast(Broadcast::Malformed) => {
                    self.reject("the iopub pipe has malformed data; it is not read any more")
                }
            }
        }
    }

    pub(super) fn receive(&mut self, (channel, message): Received) {
        // The kernel has exited: its report waits until the sockets are drained.
        if let Some((_, settled)) = &mut self.kernel.exit {
            *settled = Instant::now() + DRAIN_QUIET;
        }
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.reject(&error.to_string()),
        };
        let header = message.header();
        if channel == Channel::Iopub {
            self.kernel.iopub_seen = true;
        }
        if message.parent().session != self.own_session && header.msg_type != "iopub_welcome" {
            self.check_ready();
            self.receive_message(channel, &header, message);
        } else if let Some(output) = self.receive_own(channel, &header, message) {
            self.receive_message(channel, &header, output);
        }
    }

    fn receive_message(&mut self, channel: Channel, header: &Header, message: Message) {
        let parent = message.parent();
        if message.size() > MAX_MESSAGE {
            return self.reject(&format!("the message is larger than {} MB", MAX_MESSAGE >> 20));
        }
        match channel {
            Channel::Iopub => {
                if header.msg_type != "status"
                    && self.executions.mark_started(&parent.msg_id)
                    && self.kernel.interrupt_deferred
                {
                    self.interrupt();
                }
                self.broadcast(header, &parent.msg_id, message);
            }
            Channel::Shell if header.msg_type == "execute_reply" && self.executions.finish(&parent.msg_id) => {
                self.check_child_oom();
                self.finish_changes(&parent.msg_id);
                self.emit_usage(parent.msg_id.clone());
                self.emit_end(channel, &parent.msg_id, message);
            }
            _ => self.emit_message(channel, message),
        }
    }

    fn broadcast(&mut self, header: &Header, run: &str, message: Message) {
        match header.msg_type.as_str() {
            "stream" => {
                let mut out = Vec::new();
                self.coalescer.push(message, Instant::now(), &mut |message| out.push(message));
                out.into_iter().for_each(|text| self.store_text(text));
            }
            "status" if self.executions.header(run).is_some() && is_idle(&message) => {
                self.emit_end(Channel::Iopub, run, message);
            }
            "status" | "execute_input" => self.emit_message(Channel::Iopub, message),
            _ => {
                self.flush_streams();
                self.store_output(run, message, false);
            }
        }
    }

    /// Text is charged after coalescing: a thousand flushed lines count as one message.
    fn store_text(&mut self, message: Message) {
        self.store_output(&message.parent().msg_id, message, true);
    }

    fn store_output(&mut self, run: &str, message: Message, is_text: bool) {
        match self.executions.charge_output(run, message.output_size()) {
            OutputAllowance::Full => self.store_message(Channel::Iopub, message),
            OutputAllowance::Partial { bytes, msg_id } => self.cap_output(is_text.then_some(message), bytes, msg_id),
            OutputAllowance::Exhausted => {}
        }
    }

    /// Reports that an execution exceeded the output limit; the rest of its output is dropped. Text is kept up to the limit;
    /// other outputs cannot be cut.
    fn cap_output(&mut self, stream: Option<Message>, room: u64, msg_id: String) {
        if let Some(cut) = stream.and_then(|message| coalesce::truncate_text(&message, room as usize)) {
            self.store_message(Channel::Iopub, cut);
        }
        let limit = self.sandbox.config.limits.output_bytes();
        self.emit_kernel(KernelEvent::OutputCapped { msg_id, limit });
    }

    /// Reports a rejected message, a limited number of times: a kernel can send garbage faster than reports can be read.
    fn reject(&mut self, reason: &str) {
        if self.executions.count_rejected() > MAX_REPORTED_REJECTIONS {
            return;
        }
        self.emit_kernel(KernelEvent::BadMessage { reason: reason.to_owned() });
    }

    fn check_child_oom(&mut self) {
        let kills = self.sandbox.meter.borrow().oom_kills();
        if kills > self.kernel.oom_kills_before {
            self.kernel.oom_kills_before = kills;
            self.emit_kernel(KernelEvent::ChildOutOfMemory);
        }
    }

    /// Emits the usage of an execution. Called before the reply or the kernel's exit ends it.
    pub(super) fn emit_usage(&mut self, msg_id: String) {
        let used = self.executions.usage(&msg_id, self.sandbox.meter.borrow().sample());
        self.emit_kernel(KernelEvent::RunUsed { msg_id, used });
    }

    /// Text that the process or its children wrote to stdout or stderr. It belongs to the execution that the kernel named, or
    /// else to the running one; without any it has no parent and belongs to the session. Text of a starting kernel is no output.
    fn process_output(&mut self, stream: Stream, bytes: &[u8]) {
        if self.kernel.state == KernelState::Starting {
            return self.kernel.start_log.push(bytes);
        }
        let content = json!({"name": stream.name(), "text": String::from_utf8_lossy(bytes)});
        let mut message = Message::new_request(&self.own_session, "stream", &content);
        if let Some(parent_header) = self.text_parent() {
            message.parent_header = parent_header;
        }
        let (header, parent) = (message.header(), message.parent());
        self.broadcast(&header, &parent.msg_id, message);
    }

    fn text_parent(&self) -> Option<Bytes> {
        let Some(owner) = &self.kernel.text_owner else { return self.executions.running_header() };
        self.executions.header(owner).or_else(|| Some(json!({"msg_id": owner}).to_string().into()))
    }

    pub(super) fn emit_message(&mut self, channel: Channel, message: Message) {
        self.flush_streams();
        self.store_message(channel, message);
    }

    pub(super) fn emit_kernel(&mut self, event: KernelEvent) {
        self.flush_streams();
        self.store(&Event::Kernel { generation: self.kernel.generation, event });
    }

    pub(super) fn flush_streams(&mut self) {
        let mut held = None;
        self.coalescer.flush(Instant::now(), &mut |message| held = Some(message));
        if let Some(message) = held {
            self.store_text(message);
        }
    }

    fn store_message(&mut self, channel: Channel, message: Message) {
        self.store(&Event::Message { channel, generation: self.kernel.generation, message });
    }

    pub(super) fn store(&mut self, event: &Event) {
        self.buffer.borrow_mut().push(event.encode());
        if let Some(connection) = &self.connection {
            connection.wake();
        }
    }
}

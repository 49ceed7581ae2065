//! What the kernel says, on its sockets and past them, and how it becomes events.

use std::time::Instant;

use serde_json::json;

use super::Hub;
use super::life::SETTLE;
use crate::agent::channels::Received;
use crate::agent::coalesce;
use crate::agent::runs::Room;
use crate::agent_protocol::{Event, KernelEvent, MAX_MESSAGE};
use crate::wire::{Channel, Header, Message};

/// How many refused messages of one run are told.
const REFUSALS_TOLD: u32 = 10;

impl Hub {
    pub(super) fn receive(&mut self, (channel, message): Received) {
        // The kernel is dying: its exit waits until it has said everything.
        if let Some((_, settled)) = &mut self.kernel.exit {
            *settled = Instant::now() + SETTLE;
        }
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.refuse(&error.to_string()),
        };
        let (header, parent) = (message.header(), message.parent());
        if channel == Channel::Iopub {
            self.kernel.heard = true;
        }
        if parent.session == self.own_session || header.msg_type == "iopub_welcome" {
            if header.msg_type == "kernel_info_reply" {
                self.kernel.replied = Some(String::from_utf8_lossy(&message.content).into_owned());
            }
            return self.become_ready();
        }
        self.become_ready();
        if message.size() > MAX_MESSAGE {
            return self.refuse(&format!("it is larger than {} MB", MAX_MESSAGE >> 20));
        }
        match channel {
            Channel::Iopub => {
                if header.msg_type != "status" && self.runs.begun(&parent.msg_id) && self.kernel.interrupt_held {
                    self.interrupt();
                }
                self.broadcast(&header, &parent.msg_id, message);
            }
            Channel::Shell if header.msg_type == "execute_reply" && self.runs.replied(&parent.msg_id) => {
                self.check_child_oom();
                self.tell_usage(parent.msg_id);
                self.emit_message(channel, message);
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
            "status" | "execute_input" => self.emit_message(Channel::Iopub, message),
            _ => {
                self.flush_streams();
                self.store_output(run, message, false);
            }
        }
    }

    /// Text counts as it is kept, a thousand flushed lines as one message.
    fn store_text(&mut self, message: Message) {
        self.store_output(&message.parent().msg_id, message, true);
    }

    fn store_output(&mut self, run: &str, message: Message, is_text: bool) {
        match self.runs.take(run, message.output_size()) {
            Room::Enough => self.store_message(Channel::Iopub, message),
            Room::Only { bytes, msg_id } => self.cap_output(is_text.then_some(message), bytes, msg_id),
            Room::None => {}
        }
    }

    /// Says that a run has produced too much; the rest of it is let go. Text is kept up to the limit, half an image is none.
    fn cap_output(&mut self, stream: Option<Message>, room: u64, msg_id: String) {
        if let Some(cut) = stream.and_then(|message| coalesce::cut_text(&message, room as usize)) {
            self.store_message(Channel::Iopub, cut);
        }
        let limit = self.config.limits.output_bytes();
        self.emit_kernel(KernelEvent::OutputCapped { msg_id, limit });
    }

    /// Told a few times and then no more: a kernel can send garbage faster than anyone can read of it.
    fn refuse(&mut self, reason: &str) {
        if self.runs.refuse() > REFUSALS_TOLD {
            return;
        }
        self.emit_kernel(KernelEvent::BadMessage { reason: reason.to_owned() });
    }

    fn check_child_oom(&mut self) {
        let kills = self.meter.oom_kills();
        if kills > self.kernel.oom_kills_before {
            self.kernel.oom_kills_before = kills;
            self.emit_kernel(KernelEvent::ChildOutOfMemory);
        }
    }

    /// What a run has used, told before its reply or the kernel's end ends it.
    pub(super) fn tell_usage(&mut self, msg_id: String) {
        let used = self.runs.used(&msg_id, self.meter.read_quickly());
        self.emit_kernel(KernelEvent::RunUsed { msg_id, used });
    }

    /// What the process writes past the protocol (C code, child processes) is output of the running cell all the same. Outside
    /// of any it has no parent, and is the session's.
    pub(super) fn stdio(&mut self, name: &'static str, bytes: &[u8]) {
        self.kernel.last_words.push(bytes);
        if let Some((_, settled)) = &mut self.kernel.exit {
            *settled = Instant::now() + SETTLE;
        }
        let content = json!({"name": name, "text": String::from_utf8_lossy(bytes)});
        let mut message = Message::new_request(&self.own_session, "stream", &content);
        if let Some(parent_header) = self.runs.open_header() {
            message.parent_header = parent_header;
        }
        let (header, parent) = (message.header(), message.parent());
        self.broadcast(&header, &parent.msg_id, message);
    }

    fn emit_message(&mut self, channel: Channel, message: Message) {
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

    fn store(&mut self, event: &Event) {
        self.buffer.borrow_mut().push(event.encode());
        if let Some(connection) = &self.connection {
            connection.wake();
        }
    }
}

//! What the agent tells: messages of the kernel and what happens to it.

use serde_json::Value;

use super::core::Core;
use super::handle::SessionState;
use super::piece::{EventBody, Telling, value_size};
use super::run::{Meaning, Now, StopReason};
use crate::agent_protocol::{Event, KernelEvent};
use crate::link::LinkEvent;
use crate::output::Change;
use crate::wire::content::InputRequest;
use crate::wire::{Channel, Header, Message};

/// Bytes of what a kernel process says before its first cell that are passed on.
const MAX_CHATTER: usize = 64 << 10;

/// Bytes of text in one event.
const MAX_TEXT: usize = 256 << 10;

/// Messages that add an output.
const ADDS: [&str; 4] = ["stream", "display_data", "execute_result", "error"];

/// Takes off what is more than one event holds: the stream's name, how much stays, and the rest.
pub(super) fn rest_of_stream(output: &mut Value) -> Option<(String, usize, String)> {
    let name = output.get("name")?.as_str()?.to_owned();
    let Some(Value::String(text)) = output.get_mut("text") else { return None };
    let keep = text.floor_char_boundary(MAX_TEXT);
    (keep < text.len()).then(|| (name, keep, text.split_off(keep)))
}

impl Core {
    /// Takes in what the link tells.
    pub fn take(&mut self, now: Now, event: LinkEvent) {
        if self.is_gone() {
            return;
        }
        let bytes = event.weight();
        match event {
            LinkEvent::Attached(hello) => self.attached(now, hello),
            LinkEvent::Event { seq, event } => {
                self.count_unwritten(now, bytes);
                self.take_event(now, event);
                self.taken(now, seq);
            }
            LinkEvent::Lost { from, to } => self.lost(now, from, to),
            LinkEvent::Detached { .. } => self.detached(),
            LinkEvent::Broken { reason } => {
                self.end(now, &format!("the agent in its sandbox does not keep to the protocol: {reason}"));
            }
        }
    }

    fn take_event(&mut self, now: Now, event: Event) {
        match event {
            // From a kernel that has ended: its runs have, too.
            Event::Message { generation, .. } | Event::Kernel { generation, .. } if generation < self.generation => {}
            Event::Message { channel, generation, message } => {
                if generation > self.generation && self.is_of_active(&message) {
                    // The run was handed to that one.
                    self.generation = generation;
                }
                self.heard_of(now, generation);
                self.take_message(now, channel, &message);
            }
            Event::Kernel { generation, event } => {
                self.heard_of(now, generation);
                self.take_kernel_event(now, event);
            }
        }
    }

    fn is_of_active(&self, message: &Message) -> bool {
        self.active.as_ref().is_some_and(|active| active.run.id().0 == message.parent().msg_id)
    }

    fn take_kernel_event(&mut self, now: Now, event: KernelEvent) {
        match event {
            KernelEvent::Starting => {}
            KernelEvent::Ready { info } => self.kernel_ready(now, &info),
            KernelEvent::Exited(exit) => self.kernel_exited(now, &exit),
            KernelEvent::Failed { reason } => self.end(now, &reason),
            KernelEvent::ChildOutOfMemory => {
                self.notice(now, "a process that the cell started was killed for memory".to_owned());
            }
            KernelEvent::OutputCapped { msg_id, limit } => {
                if self.active.as_ref().is_some_and(|active| active.run.id().0 == msg_id) {
                    self.stop(now, StopReason::OutputExceeded(limit));
                }
            }
            KernelEvent::RunUsed { msg_id, used } => {
                if let Some(active) = self.active.as_mut().filter(|active| active.run.id().0 == msg_id) {
                    active.run.used(used);
                }
            }
            KernelEvent::BadMessage { reason } => {
                self.notice(now, format!("the kernel sent something that is no message: {reason}"));
            }
        }
    }

    fn take_message(&mut self, now: Now, channel: Channel, message: &Message) {
        let (header, parent) = (message.header(), message.parent());
        if self.take_answer(channel, &parent.msg_id, message) {
            return;
        }
        let is_probe = channel == Channel::Shell && self.probe.take_if(|probe| *probe == parent.msg_id).is_some();
        let is_there = self.kernel_is_there();
        match &mut self.active {
            Some(active) if is_probe => active.run.reply_lost(now.instant),
            // That it is ready was lost too; what it answers is what it would have told then.
            None if is_probe && !is_there => {
                return self.kernel_ready(now, &String::from_utf8_lossy(&message.content));
            }
            Some(active) if active.run.id().0 == parent.msg_id => {
                let number = active.number;
                match active.run.take(channel, &header, || message.content_value(), now.instant) {
                    Meaning::Output => self.output(now, number, &header, message),
                    Meaning::Input => self.input_request(now, number, message),
                    Meaning::Internal => {}
                }
            }
            _ if channel == Channel::Iopub => self.late_output(now, &header, &parent.msg_id, message),
            _ => {}
        }
        self.finish_if_done(now);
    }

    /// Output after its cell's end: a thread of it goes on printing, or a process that it has started, of whose output nobody
    /// knows the cell. That is shown where the reader looks, at the last cell; so is what comes of a run whose outputs
    /// cannot be added to any more, for it was long ago or its cell was run again. What it has shown by a display id still changes.
    fn late_output(&mut self, now: Now, header: &Header, run: &str, message: &Message) {
        let is_stray = run.is_empty() && header.msg_type == "stream";
        let own = self.recents.cell_of(run);
        let shows = header.msg_type == "update_display_data" || ADDS.contains(&header.msg_type.as_str());
        let shown = own.or_else(|| {
            let is_runs = shows && self.runs.had(run);
            let running = self.active.as_ref().filter(|_| is_runs).map(|active| active.number);
            self.recents.last().filter(|_| is_stray || is_runs).or(running)
        });
        match shown {
            Some(number) => self.output(now, number, header, message),
            None if is_stray && message.content.len() <= MAX_CHATTER => {
                let text = message.content_value().get("text").and_then(|text| text.as_str().map(str::to_owned));
                self.notice(now, format!("the kernel process says: {}", text.unwrap_or_default().trim_end()));
            }
            None => {}
        }
    }

    fn output(&mut self, now: Now, number: u32, header: &Header, message: &Message) {
        if !self.charge(now, number, message.output_size()) {
            return;
        }
        if self.facts.telling == Telling::Messages {
            let (msg_type, message) = (header.msg_type.clone(), message.clone());
            self.event(now, Some(number), EventBody::Message { msg_type, message });
            return;
        }
        if matches!(header.msg_type.as_str(), "comm_open" | "comm_msg" | "comm_close") {
            let (msg_type, content) = (header.msg_type.clone(), message.content_value());
            self.capture_comm(&msg_type, &content);
            self.event(now, Some(number), EventBody::Comm { msg_type, content, buffers: message.buffers.clone() });
            return;
        }
        let key = self.folded_as(number, &header.msg_type, message);
        if ADDS.contains(&header.msg_type.as_str()) {
            self.clear_before_catching(now, number, key);
        }
        for change in self.fold.apply(key, &header.msg_type, &message.content) {
            self.write_change(now, number, change);
        }
    }

    /// Writes a growing text down in pieces: a reader holds one event at least, and there may be many readers.
    pub(super) fn write_text(&mut self, now: Now, number: u32, change: EventBody) {
        let EventBody::Stream { index, name, mut keep, text, mut grows } = change else { return };
        let mut left = text.as_str();
        loop {
            let (piece, rest) = left.split_at(left.floor_char_boundary(MAX_TEXT));
            let (name, text) = (name.clone(), piece.to_owned());
            self.event(now, Some(number), EventBody::Stream { index, name, keep, text, grows });
            if rest.is_empty() {
                return;
            }
            (keep, grows, left) = (keep + piece.len(), true, rest);
        }
    }

    /// Writes down what a message of the cell `from` has changed.
    pub(super) fn write_change(&mut self, now: Now, from: u32, change: Change) {
        let Some(change) = self.write_captured(now, from, change) else { return };
        match change {
            Change::Append { cell, index, mut output } => {
                let rest = rest_of_stream(&mut output);
                self.event(now, Some(cell.0), EventBody::Append { index, output });
                if let Some((name, keep, text)) = rest {
                    self.write_text(now, cell.0, EventBody::Stream { index, name, keep, text, grows: true });
                }
            }
            Change::Stream { cell, index, name, keep, text, grows } => {
                self.write_text(now, cell.0, EventBody::Stream { index, name, keep, text, grows });
            }
            Change::Update { places, data, metadata } => {
                // Each copy is written down, so each is charged: a message came once and is shown many times. It is charged
                // to who sent it: whose copies are shown may have ended long ago.
                let size = (value_size(&data) + value_size(&metadata)) as u64;
                for place in places {
                    if !self.charge(now, from, size) {
                        break;
                    }
                    let output = place.output(data.clone(), metadata.clone());
                    if let Some((cell, index)) = self.shown_place(place.cell, place.index) {
                        self.event(now, Some(cell), EventBody::Update { index, output });
                    }
                }
            }
            Change::Clear { cell } => {
                self.captures_leave(cell.0);
                self.event(now, Some(cell.0), EventBody::Clear);
            }
        }
    }

    /// Counts output of the running cell, or late output of an earlier one. `false` when that is over its limit: a running
    /// cell is stopped then, and what follows is not taken.
    fn charge(&mut self, now: Now, number: u32, size: u64) -> bool {
        let cap = self.output_cap();
        let running = self.active.as_mut().filter(|active| active.number == number);
        let is_running = running.is_some();
        let running = running.map(|active| &mut active.bytes);
        let Some(bytes) = running.or_else(|| self.recents.bytes_of(number)) else { return false };
        *bytes = bytes.saturating_add(size);
        let fits = *bytes <= cap;
        if !fits && is_running {
            self.stop(now, StopReason::OutputExceeded(self.facts.limits.output_bytes()));
        }
        fits
    }

    fn input_request(&mut self, now: Now, number: u32, message: &Message) {
        if !self.charge(now, number, message.output_size()) {
            return;
        }
        let InputRequest { prompt, password } = InputRequest::read(&message.content_value());
        if let Some(active) = &mut self.active {
            (active.input, active.answered) = (Some(message.header.clone()), false);
        }
        self.event(now, Some(number), EventBody::Input { prompt, password });
    }

    /// Whether the session can take commands for its kernel.
    pub(super) fn kernel_is_there(&self) -> bool {
        matches!(self.state, SessionState::Idle | SessionState::Busy | SessionState::Interrupting)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::session::core_tests::Bench;
    use crate::session::piece::EventBody;
    use crate::wire::Channel;

    impl Bench {
        /// The texts that have been told of, and of which cells.
        fn told(&mut self) -> Vec<(String, String)> {
            let text = |body: EventBody| match body {
                EventBody::Append { output, .. } | EventBody::Update { output, .. } => {
                    Some(output["text"].as_str().or(output["data"]["text/plain"].as_str())?.to_owned())
                }
                EventBody::Stream { text, .. } => Some(text),
                _ => None,
            };
            let events = self.out().0.events;
            events.into_iter().filter_map(|event| Some((event.cell?, text(event.body)?))).collect()
        }
    }

    fn pair(cell: &str, text: &str) -> (String, String) {
        (cell.to_owned(), text.to_owned())
    }

    #[test]
    fn what_an_earlier_run_of_a_cell_still_prints_is_shown_at_the_last_cell() {
        let mut bench = Bench::ready();
        let former = bench.run("a");
        bench.prints(&former, "first");
        bench.replies(&former);
        bench.core.run_cell(bench.now, "a", None, None).unwrap();
        let again = bench.cell("a").run.run.clone().unwrap().0;
        bench.told();
        // It is the only one.
        bench.prints(&former, "thread");
        bench.replies(&again);
        let other = bench.run("b");
        bench.replies(&other);
        bench.prints(&former, "again");
        bench.prints(&again, "its own");
        bench.core.delete_cell(bench.now, "a").unwrap();
        bench.prints(&again, "of one that is gone");
        bench.prints("nobody's", "dropped");
        assert_eq!(
            bench.told(),
            [pair("a", "thread"), pair("b", "again"), pair("a", "its own"), pair("b", "of one that is gone")]
        );
    }

    #[test]
    fn a_later_server_knows_all_earlier_runs() {
        let mut bench = Bench::ready();
        let [former, gone] = ["a", "gone"].map(|id| {
            let run = bench.run(id);
            bench.replies(&run);
            run
        });
        bench.core.delete_cell(bench.now, "gone").unwrap();
        for number in 0..40 {
            let run = bench.run(&format!("c{number}"));
            bench.replies(&run);
        }
        bench.core.run_cell(bench.now, "a", None, None).unwrap();
        let again = bench.cell("a").run.run.clone().unwrap().0;
        bench.replies(&again);
        bench.restore(|resume| resume);
        bench.attach();
        bench.told();
        bench.prints(&former, "of its run before");
        bench.prints(&gone, "of one that is gone");
        // Ids of none: the next one, and others that look alike.
        let (name, number) = again.rsplit_once('-').unwrap();
        let next = format!("{name}-{:012x}", u64::from_str_radix(number, 16).unwrap() + 1);
        for unknown in [&next, &format!("{name}-000000000000"), &format!("{name}-1"), &format!("x{former}"), "nobody's"] {
            bench.prints(unknown, "dropped");
        }
        assert_eq!(bench.told(), [pair("a", "of its run before"), pair("a", "of one that is gone")]);
        assert_eq!(bench.run("b"), next, "no id is given twice");
    }

    #[test]
    fn a_display_of_long_ago_is_still_kept_up_to_date() {
        let mut bench = Bench::ready();
        let first = bench.run("first");
        let content = |text: &str| json!({"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": "d"}});
        bench.says(Channel::Iopub, &first, "display_data", &content("0 %"));
        bench.replies(&first);
        for number in 0..40 {
            let run = bench.run(&format!("c{number}"));
            bench.replies(&run);
        }
        bench.told();
        bench.says(Channel::Iopub, &first, "update_display_data", &content("50 %"));
        bench.restore(|resume| resume);
        bench.attach();
        bench.says(Channel::Iopub, &first, "update_display_data", &content("100 %"));
        assert_eq!(bench.told().last(), Some(&pair("first", "100 %")));
    }
}

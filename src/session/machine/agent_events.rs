//! What the link reports: messages of the kernel, and what happens to the kernel and to the connection.

use bytes::Bytes;

use super::executions::Charge;
use super::introspection::Answered;
use super::link_state::Attached;
use super::outbox::Effect;
use super::outputs::adds_output;
use super::progress::Meaning;
use super::{Context, Machine};
use crate::agent_protocol::{CollectedFile, Event, FileChanges, Hello, KernelEvent, KernelExit, KernelState, KillReason};
use crate::ids::{CellNumber, Generation, Seq};
use crate::link::LinkEvent;
use crate::session::execution::{StopReason, describe_failed_start};
use crate::session::state::SessionState;
use crate::session::transaction::{EventBody, OutputMode};
use crate::wire::content::InputRequest;
use crate::wire::{Channel, Header, Message};

/// Most bytes of a kernel process's output before its first cell that are shown as a notice.
const MAX_START_OUTPUT: usize = 64 << 10;

impl Machine {
    /// Takes in an event of the link.
    pub fn take(&mut self, cx: Context, event: LinkEvent) {
        if self.is_gone() {
            return;
        }
        let bytes = event.weight();
        match event {
            LinkEvent::Attached(hello) => self.attached(cx, hello),
            LinkEvent::Event { seq, event } => {
                self.outbox.defer(cx, bytes);
                self.take_event(cx, event);
                self.advance(cx, seq);
            }
            LinkEvent::Lost { from, to } => self.lost(cx, from, to),
            LinkEvent::Detached { .. } => {
                self.link.detach();
                self.outbox.add_effect(Effect::WatchSandbox(true));
            }
            LinkEvent::Absent => self.end(cx, "its kernel was ended in its sandbox"),
            LinkEvent::Broken { reason } => {
                self.end(cx, &format!("the agent in its sandbox does not keep to the protocol: {reason}"));
            }
        }
    }

    fn take_event(&mut self, cx: Context, event: Event) {
        let known = self.kernel.generation();
        match event {
            // Of a kernel that has ended, and its executions with it.
            Event::Message { generation, .. } | Event::Kernel { generation, .. } | Event::File { generation, .. }
                if generation < known => {}
            // The agent sends these to readers of processes only.
            Event::Process(_) => {}
            Event::Message { channel, generation, message } => {
                if generation > known && self.executions.is_active(&message.parent().msg_id) {
                    // The active execution was submitted to that kernel.
                    self.kernel.set_generation(generation);
                }
                self.heard_of(cx, generation);
                self.take_message(cx, channel, &message);
            }
            Event::Kernel { generation, event } => {
                self.heard_of(cx, generation);
                self.take_kernel_event(cx, event);
            }
            Event::File { generation, file, data } => {
                self.heard_of(cx, generation);
                self.file_collected(cx, file, data);
            }
        }
    }

    fn take_kernel_event(&mut self, cx: Context, event: KernelEvent) {
        match event {
            KernelEvent::Starting => {}
            KernelEvent::Ready { info } => self.kernel_ready(cx, &info),
            KernelEvent::Exited(exit) => self.kernel_exited(cx, &exit),
            KernelEvent::Failed { reason } => self.end(cx, &reason),
            KernelEvent::ChildOutOfMemory => {
                self.notice(cx, "a process that the cell started was killed for memory".to_owned());
            }
            KernelEvent::OutputCapped { msg_id, limit } => {
                if self.executions.is_active(&msg_id) {
                    self.stop(cx, StopReason::OutputExceeded(limit));
                }
            }
            KernelEvent::RunUsed { msg_id, used } => {
                if let Some(active) = self.executions.active_mut().filter(|active| active.id().0 == msg_id) {
                    active.progress.set_usage(used);
                }
            }
            KernelEvent::FilesChanged { msg_id, changes } => self.files_changed(cx, &msg_id, changes),
            KernelEvent::BadMessage { reason } => {
                self.notice(cx, format!("the kernel sent something that is no message: {reason}"));
            }
        }
    }

    // ---- files --------------------------------------------------------------------------------------------------------

    /// Records changed files. If the execution is neither active nor recent, the event has no cell.
    fn files_changed(&mut self, cx: Context, execution: &str, changes: FileChanges) {
        let number = self.cell_of(execution);
        let changes = changes.sanitized();
        if self.has_room_for(number, changes.size() as u64) {
            self.event(cx, number, EventBody::Files(changes));
        }
    }

    /// Charges a report to its cell. It does not stop the cell: reports are not what the code prints.
    fn has_room_for(&mut self, number: Option<CellNumber>, bytes: u64) -> bool {
        number.is_none_or(|number| self.executions.charge(number, bytes) == Charge::Accepted)
    }

    fn file_collected(&mut self, cx: Context, file: CollectedFile, data: Bytes) {
        let CollectedFile { msg_id, change } = file;
        let Some(number) = self.cell_of(&msg_id) else { return };
        let is_kept = change.artifact;
        let Some(mut change) = change.sanitized() else { return };
        if self.has_room_for(Some(number), (change.size() + data.len()) as u64) {
            change.artifact = is_kept;
            self.event(cx, Some(number), EventBody::ArtifactFile { change, data });
        }
    }

    /// The cell of an execution that is active or recent. That of an older one may have been executed again.
    fn cell_of(&self, execution: &str) -> Option<CellNumber> {
        let active = self.executions.active().filter(|active| active.id().0 == execution);
        active.map(|active| active.number).or_else(|| self.executions.recent_cell(execution))
    }

    // ---- messages -----------------------------------------------------------------------------------------------------

    fn take_message(&mut self, cx: Context, channel: Channel, message: &Message) {
        let (header, parent) = (message.header(), message.parent());
        match self.introspection.take_reply(channel, &parent.msg_id, message) {
            Answered::No => {}
            Answered::Request { id, content } => {
                return self.outbox.add_effect(Effect::Answer { request: id, content: Ok(content) });
            }
            Answered::Subshell(outgoing) => return self.send_all(outgoing),
        }
        let is_probe = channel == Channel::Shell && self.link.take_probe_answer(&parent.msg_id);
        let is_ready = self.kernel.is_ready();
        match self.executions.active_mut() {
            Some(active) if is_probe => active.progress.assume_reply_lost(cx.instant),
            // That the kernel is ready was lost too. The probe's answer is what it would have said then.
            None if is_probe && !is_ready => {
                return self.kernel_ready(cx, &String::from_utf8_lossy(&message.content));
            }
            Some(active) if active.id().0 == parent.msg_id => {
                let number = active.number;
                match active.progress.take(channel, &header, || message.content_value(), cx) {
                    Meaning::Output => self.output(cx, number, &header, message),
                    Meaning::InputRequest => self.input_requested(cx, number, message),
                    Meaning::Internal => {}
                }
            }
            _ if channel == Channel::Iopub => self.late_output(cx, &header, &parent.msg_id, message),
            _ => {}
        }
        self.finish_if_done(cx);
    }

    /// Output of an execution that has ended (a thread goes on printing), or of a process whose cell nobody knows. What cannot be
    /// added to its own cell any more is shown where the reader looks, at the last cell. Updates of displays still reach them.
    fn late_output(&mut self, cx: Context, header: &Header, execution: &str, message: &Message) {
        let is_stray = execution.is_empty() && header.msg_type == "stream";
        let is_output = header.msg_type == "update_display_data" || adds_output(&header.msg_type);
        match self.executions.late_output_cell(execution, is_output, is_stray) {
            Some(number) => self.output(cx, number, header, message),
            None if is_stray && message.content.len() <= MAX_START_OUTPUT => {
                let text = message.content_value().get("text").and_then(|text| text.as_str().map(str::to_owned));
                self.notice(cx, format!("the kernel process says: {}", text.unwrap_or_default().trim_end()));
            }
            None => {}
        }
    }

    fn output(&mut self, cx: Context, number: CellNumber, header: &Header, message: &Message) {
        if !self.charge(cx, number, message.output_size()) {
            return;
        }
        let msg_type = header.msg_type.as_str();
        if self.config.output_mode == OutputMode::Messages {
            let body = EventBody::Message { msg_type: msg_type.to_owned(), message: message.clone() };
            self.event(cx, Some(number), body);
            return;
        }
        if matches!(msg_type, "comm_open" | "comm_msg" | "comm_close") {
            let content = message.content_value();
            let released = self.outputs.apply_comm(msg_type, &content);
            self.release(released);
            let (msg_type, buffers) = (msg_type.to_owned(), message.buffers.clone());
            self.event(cx, Some(number), EventBody::Comm { msg_type, content, buffers });
            return;
        }
        let executions = &mut self.executions;
        let mut exceeded = false;
        let mut charge = |bytes| {
            let charge = executions.charge(number, bytes);
            exceeded |= charge == Charge::OverLimit { is_running: true };
            charge == Charge::Accepted
        };
        let shown = self.outputs.apply(number, msg_type, message, &mut charge);
        self.show(cx, shown);
        if exceeded {
            self.stop_for_output(cx);
        }
    }

    /// Counts output of a cell. `false` when it is over the limit: a running cell is stopped then, and the output is not taken.
    fn charge(&mut self, cx: Context, number: CellNumber, bytes: u64) -> bool {
        let charge = self.executions.charge(number, bytes);
        if charge == (Charge::OverLimit { is_running: true }) {
            self.stop_for_output(cx);
        }
        charge == Charge::Accepted
    }

    fn stop_for_output(&mut self, cx: Context) {
        self.stop(cx, StopReason::OutputExceeded(self.config.limits.output_bytes()));
    }

    fn input_requested(&mut self, cx: Context, number: CellNumber, message: &Message) {
        if !self.charge(cx, number, message.output_size()) {
            return;
        }
        let InputRequest { prompt, password } = InputRequest::read(&message.content_value());
        if let Some(active) = self.executions.active_mut() {
            active.await_input(message.header.clone());
        }
        self.event(cx, Some(number), EventBody::Input { prompt, password });
    }

    // ---- the kernel ---------------------------------------------------------------------------------------------------

    fn kernel_ready(&mut self, cx: Context, info: &str) {
        if self.kernel.became_ready(info) && self.executions.active().is_none() {
            self.become_idle(cx);
        }
    }

    fn kernel_exited(&mut self, cx: Context, exit: &KernelExit) {
        let had_started = !self.kernel.is_starting() || self.link.is_replaying();
        self.drop_kernel_state();
        if let Some(active) = self.executions.active() {
            let result = active.progress.kernel_died(exit, self.config.limits.memory_mb, cx.instant);
            self.finish(cx, result);
        }
        if exit.reason == Some(KillReason::Restart) || self.kernel.restart_is_pending() {
            // A new kernel was asked for, and the queued cells are for that one.
            return self.await_start(cx);
        }
        if had_started {
            // A kernel that we killed did not die by itself.
            self.replace_kernel(cx, exit.reason != Some(KillReason::Requested));
        } else {
            self.cancel_queue(cx, "the kernel died before it");
            self.end(cx, &describe_failed_start(exit));
        }
    }

    /// Something was heard of this generation. If it is a later one, the end of the one before was lost or was reported already.
    fn heard_of(&mut self, cx: Context, generation: Generation) {
        if !self.kernel.advance_generation(generation) {
            return;
        }
        self.outbox.drop_restart();
        if let Some(active) = self.executions.active() {
            let result = active.progress.sandbox_gone("its kernel was replaced while nobody listened", cx.instant);
            self.finish(cx, result);
        }
        self.drop_kernel_state();
        if self.kernel.is_ready() {
            // The new kernel has not said yet that it is ready.
            self.await_start(cx);
        }
    }

    // ---- the connection -----------------------------------------------------------------------------------------------

    fn attached(&mut self, cx: Context, hello: Hello) {
        self.kernel.forget_requests();
        self.outbox.add_effect(Effect::WatchSandbox(false));
        match self.link.attach(hello, self.kernel.generation()) {
            Attached::Continued => {}
            Attached::First(generation) => self.kernel.set_generation(generation),
            Attached::Impossible(why) => return self.end(cx, why),
        }
        if !self.link.is_replaying() {
            self.caught_up(cx);
        }
    }

    /// The agent's events up to `seq` have been taken in.
    fn advance(&mut self, cx: Context, seq: Seq) {
        let replay_ended = self.link.advance(seq);
        self.outbox.set_position(self.link.position());
        if replay_ended {
            self.caught_up(cx);
        }
    }

    /// Events of the agent are gone, a kernel's end or a new one's start perhaps among them. A later kernel is noticed by what it says,
    /// at the latest when the replay has ended: what follows the gap may still be of the kernel that is known.
    fn lost(&mut self, cx: Context, from: Seq, to: Seq) {
        let number = self.executions.active_number();
        self.event(cx, number, EventBody::Lost { from, to });
        self.drop_kernel_state();
        self.link.require_probe();
        self.advance(cx, to);
        if self.link.is_current() {
            self.probe_if_needed(cx);
        }
    }

    fn probe_if_needed(&mut self, cx: Context) {
        if let Some(message) = self.link.take_probe_request(cx, &self.config.session) {
            // To whichever kernel there is: that another one was started may be what was lost.
            self.outbox.add_effect(Effect::Send { channel: Channel::Shell, generation: None, message });
        }
    }

    /// What is known is up to date: what was cut off can go on.
    fn caught_up(&mut self, cx: Context) {
        if self.is_gone() {
            return;
        }
        let at_attach = self.link.kernel_at_attach();
        self.heard_of(cx, at_attach.map_or(self.kernel.generation(), |kernel| kernel.generation));
        if let Some(active) = self.executions.active_mut() {
            active.resume_after_cut(cx);
        }
        let is_ready = at_attach.is_some_and(|kernel| kernel.state == KernelState::Ready);
        if self.kernel.restart_is_pending() {
            // The request may not have arrived. The active execution ends by the restart.
            self.restart_kernel(cx);
        } else if self.executions.active().is_some_and(|active| active.is_unconfirmed) {
            self.submit_again(cx);
        } else if is_ready && self.executions.active().is_none() {
            self.kernel.forget_restart();
            self.become_idle(cx);
        }
        // After the execution's request: before it, the answer would say nothing about it.
        self.probe_if_needed(cx);
    }

    fn submit_again(&mut self, cx: Context) {
        self.kernel.end_start();
        let is_stopping = self.executions.active().is_some_and(|active| active.progress.is_stopping());
        self.set_state(cx, if is_stopping { SessionState::Interrupting } else { SessionState::Busy });
        if let Some(submission) = self.executions.resubmit(cx, &self.cells, &self.config.session) {
            let (execution, message, generation) = (submission.id, submission.message, self.kernel.generation());
            self.outbox.add_effect(Effect::Submit { execution, generation, message });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::session::machine::bench::Bench;
    use crate::session::transaction::EventBody;
    use crate::wire::Channel;

    impl Bench {
        /// The texts in the committed events, with their cells.
        fn texts(&mut self) -> Vec<(String, String)> {
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
    fn output_of_former_execution_goes_to_last_cell() {
        let mut bench = Bench::ready();
        let former = bench.run("a");
        bench.prints(&former, "first");
        bench.replies(&former);
        bench.machine.run_cell(bench.cx, "a", None, None).unwrap();
        let again = bench.cell("a").execution.id.clone().unwrap().0;
        bench.texts();
        // It is the only one.
        bench.prints(&former, "thread");
        bench.replies(&again);
        let other = bench.run("b");
        bench.replies(&other);
        bench.prints(&former, "again");
        bench.prints(&again, "its own");
        bench.machine.delete_cell(bench.cx, "a").unwrap();
        bench.prints(&again, "of one that is gone");
        bench.prints("nobody's", "dropped");
        assert_eq!(
            bench.texts(),
            [pair("a", "thread"), pair("b", "again"), pair("a", "its own"), pair("b", "of one that is gone")]
        );
    }

    #[test]
    fn later_server_knows_all_earlier_executions() {
        let mut bench = Bench::ready();
        let [former, gone] = ["a", "gone"].map(|id| {
            let run = bench.run(id);
            bench.replies(&run);
            run
        });
        bench.machine.delete_cell(bench.cx, "gone").unwrap();
        for number in 0..40 {
            let run = bench.run(&format!("c{number}"));
            bench.replies(&run);
        }
        bench.machine.run_cell(bench.cx, "a", None, None).unwrap();
        let again = bench.cell("a").execution.id.clone().unwrap().0;
        bench.replies(&again);
        bench.restore(|resume| resume);
        bench.attach();
        bench.texts();
        bench.prints(&former, "of its run before");
        bench.prints(&gone, "of one that is gone");
        // Ids of none: the next one, and others that look alike.
        let (name, number) = again.rsplit_once('-').unwrap();
        let next = format!("{name}-{:012x}", u64::from_str_radix(number, 16).unwrap() + 1);
        for unknown in [&next, &format!("{name}-000000000000"), &format!("{name}-1"), &format!("x{former}"), "nobody's"] {
            bench.prints(unknown, "dropped");
        }
        assert_eq!(bench.texts(), [pair("a", "of its run before"), pair("a", "of one that is gone")]);
        assert_eq!(bench.run("b"), next, "no id is given twice");
    }

    #[test]
    fn old_display_is_updated_across_a_restore() {
        let mut bench = Bench::ready();
        let first = bench.run("first");
        let content = |text: &str| json!({"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": "d"}});
        bench.says(Channel::Iopub, &first, "display_data", &content("0 %"));
        bench.replies(&first);
        for number in 0..40 {
            let run = bench.run(&format!("c{number}"));
            bench.replies(&run);
        }
        bench.texts();
        bench.says(Channel::Iopub, &first, "update_display_data", &content("50 %"));
        bench.restore(|resume| resume);
        bench.attach();
        bench.says(Channel::Iopub, &first, "update_display_data", &content("100 %"));
        assert_eq!(bench.texts().last(), Some(&pair("first", "100 %")));
    }
}

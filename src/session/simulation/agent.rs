//! The other end as a session sees it: an agent with a bounded buffer of events, and a kernel that executes sources of one-letter
//! instructions.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::agent_protocol::{Event, Hello, KernelEvent, KernelExit, KernelState, KillReason, SignalKind};
use crate::ids::{Epoch, Generation, Seq};
use crate::link::LinkEvent;
use crate::wire::{Channel, Message};

/// Sources of cells, as a regular expression:
/// `p q w` print, `d a b o` show (with display ids), `A B` update a display, `c C` clear (`C`: when more comes), `m` a comm
/// message, `l` output after the end; then `i` asks for input, `r` raises, `x` dies, `s` runs until interrupted, `z` until
/// killed, `k` produces too much; then `2` idle before the reply, `3` no idle, `4` aborted.
pub(super) const SOURCES: &str = "[pqwdabABcCmlo]{0,6}[ppppiirxszk]?[pdB]{0,2}[p234]?";

/// A frame to the agent.
#[derive(Clone, Debug)]
pub(super) enum Frame {
    Submit { channel: Channel, generation: Option<Generation>, message: Message, tell: bool },
    Signal { signal: SignalKind, generation: Generation },
    Restart(Generation),
    Ack(Seq),
}

/// A request in the kernel's queue.
#[derive(Debug)]
struct Job {
    id: String,
    header: Bytes,
    msg_type: String,
    code: String,
    todo: VecDeque<char>,
    begun: bool,
    asking: bool,
    may_ask: bool,
    idle: char,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub epoch: Epoch,
    pub generation: Generation,
    pub state: KernelState,
    /// Requests that the kernel has begun since the last look, with their code.
    pub begun: Vec<(String, String)>,
    events: VecDeque<(Seq, Event)>,
    next: Seq,
    limit: usize,
    submitted: HashSet<String>,
    jobs: VecDeque<Job>,
    /// Parent headers of what threads will print after their cells.
    late: VecDeque<Bytes>,
    dying: Option<KernelExit>,
    interrupt_held: bool,
    /// Makes every output unique.
    count: u32,
}

impl Agent {
    /// A fresh agent that buffers this many events.
    pub fn new(epoch: u64, limit: usize) -> Self {
        let mut agent = Self {
            epoch: Epoch(epoch),
            generation: Generation(0),
            state: KernelState::Exited,
            begun: Vec::new(),
            events: VecDeque::new(),
            next: Seq::FIRST,
            limit,
            submitted: HashSet::new(),
            jobs: VecDeque::new(),
            late: VecDeque::new(),
            dying: None,
            interrupt_held: false,
            count: 0,
        };
        agent.start();
        agent
    }

    pub fn hello(&self) -> Hello {
        Hello {
            epoch: self.epoch,
            generation: self.generation,
            first_seq: self.first(),
            next_seq: self.next,
            kernel_state: self.state,
            version: String::new(),
        }
    }

    fn first(&self) -> Seq {
        self.events.front().map_or(self.next, |(seq, _)| *seq)
    }

    /// The event that a reader at `cursor` gets next.
    pub fn read(&self, cursor: Seq) -> Option<LinkEvent> {
        let first = self.first();
        if cursor < first {
            return Some(LinkEvent::Lost { from: cursor, to: Seq(first.0 - 1) });
        }
        let (seq, event) = self.events.get((cursor.0 - first.0) as usize)?;
        Some(LinkEvent::Event { seq: *seq, event: event.clone() })
    }

    /// Whether only a signal can move the kernel on.
    pub fn is_stuck(&self) -> bool {
        self.jobs.front().is_some_and(|job| matches!(job.todo.front(), Some('s' | 'z' | 'k')))
    }

    /// Whether the code waits for input.
    pub fn is_asking(&self) -> bool {
        self.jobs.front().is_some_and(|job| job.asking)
    }

    /// Whether the kernel has done all that it can.
    pub fn is_done(&self) -> bool {
        self.dying.is_none() && self.state != KernelState::Starting && self.jobs.is_empty() && self.late.is_empty()
    }

    // ---- frames from the manager ------------------------------------------------------------------------------------

    /// Takes in a frame. Returns whether it was a repeat, or why it is refused.
    pub fn take(&mut self, frame: Frame) -> Result<bool, String> {
        match frame {
            Frame::Ack(seq) => self.events.retain(|(number, _)| *number > seq),
            Frame::Submit { channel, generation, message, .. } => return self.submit(channel, generation, &message),
            Frame::Signal { signal, generation } => self.signal(signal, generation),
            Frame::Restart(meant) if meant != self.generation => {}
            Frame::Restart(_) => match (&mut self.dying, self.state) {
                (Some(exit), _) => exit.reason = Some(KillReason::Restart),
                (None, KernelState::Exited) => self.start(),
                (None, _) => self.die(Some(KillReason::Restart)),
            },
        }
        Ok(false)
    }

    fn submit(&mut self, channel: Channel, generation: Option<Generation>, message: &Message) -> Result<bool, String> {
        let header = message.header();
        if self.submitted.contains(&header.msg_id) {
            return Ok(true);
        }
        if generation.is_some_and(|meant| meant != self.generation) || self.state != KernelState::Ready {
            return Err("the kernel is not ready".to_owned());
        }
        self.submitted.insert(header.msg_id.clone());
        if self.dying.is_some() {
            return Ok(false);
        }
        let content = message.content_value();
        if channel == Channel::Stdin {
            if let Some(job) = self.jobs.front_mut().filter(|job| job.header == message.parent_header || job.asking) {
                job.asking = false;
            }
            return Ok(false);
        }
        let code = content["code"].as_str().unwrap_or_default();
        self.jobs.push_back(Job {
            id: header.msg_id,
            code: code.to_owned(),
            header: message.header.clone(),
            todo: code.chars().filter(|word| !word.is_ascii_digit()).collect(),
            idle: code.chars().last().unwrap_or('1'),
            begun: false,
            asking: false,
            may_ask: content["allow_stdin"] == true,
            msg_type: header.msg_type,
        });
        Ok(false)
    }

    fn signal(&mut self, signal: SignalKind, generation: Generation) {
        if generation != self.generation || self.dying.is_some() || self.state == KernelState::Exited {
            return;
        }
        let is_deaf = self.jobs.front().is_some_and(|job| job.begun && job.todo.front() == Some(&'z'));
        match signal {
            SignalKind::Kill => self.die(Some(KillReason::Requested)),
            _ if is_deaf => {}
            SignalKind::Terminate => self.die(Some(KillReason::Requested)),
            SignalKind::Interrupt => match self.jobs.front() {
                Some(job) if job.begun => self.interrupt(),
                Some(_) => self.interrupt_held = true,
                None => {}
            },
        }
    }

    fn interrupt(&mut self) {
        self.interrupt_held = false;
        if let Some(job) = self.jobs.pop_front() {
            self.raise(&job, "KeyboardInterrupt");
        }
    }

    // ---- the kernel -------------------------------------------------------------------------------------------------

    fn start(&mut self) {
        self.generation.0 += 1;
        self.state = KernelState::Starting;
        self.emit_kernel(KernelEvent::Starting);
    }

    /// The process ends, which is reported at its next step.
    pub fn die(&mut self, reason: Option<KillReason>) {
        if self.state != KernelState::Exited && self.dying.is_none() {
            let start_log = String::new();
            self.dying = Some(KernelExit { code: None, signal: Some(9), out_of_memory: false, reason, start_log });
            (self.jobs, self.late) = (VecDeque::new(), VecDeque::new());
            self.interrupt_held = false;
        }
    }

    pub fn child_out_of_memory(&mut self) {
        self.emit_kernel(KernelEvent::ChildOutOfMemory);
    }

    /// Does the next step.
    pub fn step(&mut self) {
        if let Some(exit) = self.dying.take() {
            self.state = KernelState::Exited;
            let restarts = exit.reason == Some(KillReason::Restart);
            self.emit_kernel(KernelEvent::Exited(exit));
            if restarts {
                self.start();
            }
            return;
        }
        if self.state == KernelState::Starting {
            self.state = KernelState::Ready;
            return self.emit_kernel(KernelEvent::Ready { info: json!({"implementation": "model"}).to_string() });
        }
        self.count += 1;
        if (self.jobs.is_empty() || self.count.is_multiple_of(3))
            && let Some(parent) = self.late.pop_front()
        {
            return self.iopub(&parent, "stream", &json!({"name": "stdout", "text": format!("late {}\n", self.count)}));
        }
        if let Some(job) = self.jobs.pop_front()
            && let Some(job) = self.work(job)
        {
            self.jobs.push_front(job);
        }
    }

    /// Works on a request. Returns what is left of it.
    fn work(&mut self, mut job: Job) -> Option<Job> {
        if job.msg_type != "execute_request" {
            let reply = job.msg_type.replace("request", "reply");
            self.message(Channel::Shell, &job.header, &reply, &json!({"status": "ok"}));
            return None;
        }
        if !job.begun {
            job.begun = true;
            self.begun.push((job.id.clone(), job.code.clone()));
            self.iopub(&job.header, "status", &json!({"execution_state": "busy"}));
            self.iopub(&job.header, "execute_input", &json!({"execution_count": self.count}));
            if self.interrupt_held {
                self.interrupt_held = false;
                self.raise(&job, "KeyboardInterrupt");
                return None;
            }
            return Some(job);
        }
        if job.asking || matches!(job.todo.front(), Some('s' | 'z')) {
            return Some(job);
        }
        let Some(word) = job.todo.pop_front() else {
            let status = if job.idle == '4' { "aborted" } else { "ok" };
            self.end(&job, &json!({"status": status, "execution_count": self.count}));
            return None;
        };
        match word {
            'r' => {
                self.raise(&job, "ValueError");
                return None;
            }
            'x' => {
                self.die(None);
                return None;
            }
            'i' if job.may_ask => {
                job.asking = true;
                self.message(Channel::Stdin, &job.header, "input_request", &json!({"prompt": "?", "password": false}));
            }
            'k' => {
                self.emit_kernel(KernelEvent::OutputCapped { msg_id: job.id.clone(), limit: 1 });
                job.todo.push_front('s');
            }
            word => self.say(&job, word),
        }
        Some(job)
    }

    fn say(&mut self, job: &Job, word: char) {
        let count = self.count;
        let data = json!({"text/plain": format!("value {count}")});
        let id = word.to_ascii_lowercase().to_string();
        let (msg_type, content) = match word {
            'p' => ("stream", json!({"name": "stdout", "text": format!("line {count}\n")})),
            'q' => ("stream", json!({"name": "stdout", "text": format!("\rprogress {count}")})),
            'w' => ("stream", json!({"name": "stderr", "text": format!("warning {count}\n")})),
            'd' => ("display_data", json!({"data": data, "metadata": {}})),
            'o' => ("execute_result", json!({"data": data, "metadata": {}, "execution_count": count})),
            'a' | 'b' => ("display_data", json!({"data": data, "metadata": {}, "transient": {"display_id": id}})),
            'A' | 'B' => ("update_display_data", json!({"data": data, "metadata": {}, "transient": {"display_id": id}})),
            'c' => ("clear_output", json!({"wait": false})),
            'C' => ("clear_output", json!({"wait": true})),
            'm' => ("comm_msg", json!({"comm_id": "c", "data": {"n": count}})),
            'l' => return self.late.push_back(job.header.clone()),
            _ => return,
        };
        self.iopub(&job.header, msg_type, &content);
    }

    fn raise(&mut self, job: &Job, ename: &str) {
        let error = json!({"ename": ename, "evalue": "", "traceback": [ename]});
        self.iopub(&job.header, "error", &error);
        let mut reply = error;
        reply["status"] = "error".into();
        self.end(job, &reply);
    }

    fn end(&mut self, job: &Job, reply: &Value) {
        let idle = json!({"execution_state": "idle"});
        if job.idle == '2' {
            self.iopub(&job.header, "status", &idle);
        }
        self.message(Channel::Shell, &job.header, "execute_reply", reply);
        if !matches!(job.idle, '2' | '3' | '4') {
            self.iopub(&job.header, "status", &idle);
        }
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    fn iopub(&mut self, parent: &Bytes, msg_type: &str, content: &Value) {
        self.message(Channel::Iopub, parent, msg_type, content);
    }

    fn message(&mut self, channel: Channel, parent: &Bytes, msg_type: &str, content: &Value) {
        let mut message = Message::new_request("kernel", msg_type, content);
        message.parent_header = parent.clone();
        self.emit(Event::Message { channel, generation: self.generation, message });
    }

    fn emit_kernel(&mut self, event: KernelEvent) {
        self.emit(Event::Kernel { generation: self.generation, event });
    }

    fn emit(&mut self, event: Event) {
        self.events.push_back((self.next, event));
        self.next = self.next.next();
        // The newest event always stays, as in the real agent.
        while self.events.len() > self.limit.max(1) {
            self.events.pop_front();
        }
    }
}

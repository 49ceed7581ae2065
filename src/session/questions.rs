//! Questions to the kernel beside its cells: completion and inspection.
//!
//! A kernel answers on its shell channel in order, so a question waits for the cell that runs. Kernels that have subshells
//! (ipykernel 7) answer there at once. One subshell is made for all questions, when the first is asked.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::commands::{Denied, check_sent};
use super::core::{Core, Effect};
use super::handle::SessionState;
use super::run::Now;
use crate::wire::{Channel, Message};

/// Questions that wait for the kernel.
const MAX_ASKED: usize = 32;
/// How long a kernel may take to make a subshell. Its control channel answers also while a cell runs.
const SUBSHELL_DEADLINE: Duration = Duration::from_secs(5);

/// Where questions are asked. It is forgotten with the kernel; and a later server makes another.
#[derive(Debug, Default)]
pub(super) enum Subshell {
    /// Nobody has asked yet.
    #[default]
    Unknown,
    /// The kernel was asked for one, by the message of this id. The questions wait for it.
    Awaited { request: String, waiting: Vec<Message>, until: Instant },
    /// It has this id.
    Ready(String),
    /// The kernel has none: its main shell answers.
    None,
}

impl Core {
    /// Asks the kernel something that changes nothing. Its answer comes as [`Effect::Answer`] to the question of this id.
    pub fn ask_kernel(&mut self, now: Now, msg_type: &str, content: &Value) -> Result<String, Denied> {
        self.check_alive()?;
        if !self.kernel_is_there() {
            return Err(Denied::NotReady { state: self.state.name() });
        }
        // Code belongs between the cells: behind one it would be taken for the run that works.
        if msg_type == "execute_request" && self.state != SessionState::Idle {
            return Err(Denied::NotReady { state: self.state.name() });
        }
        if self.asked.len() >= MAX_ASKED {
            return Err(Denied::TooMany { what: "unanswered questions", limit: MAX_ASKED });
        }
        check_sent("code", content.get("code").and_then(Value::as_str).unwrap_or_default())?;
        let message = Message::new_request(&self.facts.name, msg_type, content);
        let question = message.header().msg_id;
        self.asked.insert(question.clone());
        if msg_type == "execute_request" {
            self.send(Channel::Shell, message);
            return Ok(question);
        }
        if matches!(self.subshell, Subshell::Unknown) {
            self.subshell = self.await_subshell(now);
        }
        match &mut self.subshell {
            Subshell::Awaited { waiting, .. } => waiting.push(message),
            Subshell::Ready(id) => {
                let message = message.in_subshell(id);
                self.send(Channel::Shell, message);
            }
            Subshell::Unknown | Subshell::None => self.send(Channel::Shell, message),
        }
        Ok(question)
    }

    fn await_subshell(&mut self, now: Now) -> Subshell {
        let features = self.info.get("supported_features").and_then(Value::as_array);
        if !features.is_some_and(|features| features.iter().any(|feature| feature == "kernel subshells")) {
            return Subshell::None;
        }
        let message = Message::new_request(&self.facts.name, "create_subshell_request", &json!({}));
        let request = message.header().msg_id;
        self.send(Channel::Control, message);
        Subshell::Awaited { request, waiting: Vec::new(), until: now.instant + SUBSHELL_DEADLINE }
    }

    fn send(&mut self, channel: Channel, message: Message) {
        self.effects.push(Effect::Send { channel, generation: Some(self.generation), message });
    }

    /// Takes a reply in, if it is one to a question of ours.
    pub(super) fn take_answer(&mut self, channel: Channel, request: &str, message: &Message) -> bool {
        match channel {
            Channel::Shell if self.asked.remove(request) => {
                let content = Ok(message.content_value());
                self.effects.push(Effect::Answer { question: request.to_owned(), content });
                true
            }
            Channel::Control => self.take_subshell(request, message),
            _ => false,
        }
    }

    fn take_subshell(&mut self, request: &str, message: &Message) -> bool {
        let waiting = match &mut self.subshell {
            Subshell::Awaited { request: awaited, waiting, .. } if awaited == request => std::mem::take(waiting),
            _ => return false,
        };
        let content = message.content_value();
        self.ask_in(content.get("subshell_id").and_then(Value::as_str), waiting);
        true
    }

    /// Asks what has waited for a subshell, in this one or, for none, in the main shell.
    fn ask_in(&mut self, id: Option<&str>, waiting: Vec<Message>) {
        self.subshell = id.map_or(Subshell::None, |id| Subshell::Ready(id.to_owned()));
        for question in waiting {
            let question = match id {
                Some(id) => question.in_subshell(id),
                None => question,
            };
            self.send(Channel::Shell, question);
        }
    }

    /// When a kernel that promised subshells must have made one.
    pub(super) fn subshell_deadline(&self) -> Option<Instant> {
        match &self.subshell {
            Subshell::Awaited { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// A kernel that did not make its subshell is asked in its main shell.
    pub(super) fn stop_awaiting_subshell(&mut self, now: Now) {
        if let Subshell::Awaited { waiting, until, .. } = &mut self.subshell
            && *until <= now.instant
        {
            let waiting = std::mem::take(waiting);
            self.ask_in(None, waiting);
        }
    }

    /// The answers will not come.
    pub(super) fn give_up_questions(&mut self) {
        self.subshell = Subshell::default();
        let denied = Denied::NotReady { state: self.state.name() };
        let answers = std::mem::take(&mut self.asked).into_iter();
        self.effects.extend(answers.map(|question| Effect::Answer { question, content: Err(denied.clone()) }));
    }
}

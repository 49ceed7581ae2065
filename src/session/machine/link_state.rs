//! What the session knows of the connection to its agent: how far its events have been taken in, whether what is known is up to
//! date, and what to do after events were lost.

use super::context::Context;
use crate::agent_protocol::{Hello, KernelState};
use crate::ids::{Epoch, Generation, Seq};
use crate::link::Position;
use crate::wire::Message;
use crate::wire::requests::KernelRequest;

/// See the [module](self) text.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    /// The last event of the agent that was taken in.
    position: Position,
    attached: bool,
    /// After attaching: the agent's last event from before. Until it is taken in, what is known is out of date.
    replay_to: Option<Seq>,
    /// Whether events were lost and the kernel has not been probed since.
    needs_probe: bool,
    /// Id of a request whose answer shows that the kernel is there and has done with the execution before it.
    probe: Option<String>,
    hello: Option<Hello>,
}

/// How the kernel stood when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelAtAttach {
    pub generation: Generation,
    pub state: KernelState,
}

/// What attaching to an agent led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// The agent goes on with the events that are known.
    Continued,
    /// The first attach: the agent's epoch was not known.
    First(Generation),
    /// The session cannot go on, for this reason.
    Impossible(&'static str),
}

impl LinkState {
    pub fn restore(position: Position, needs_probe: bool) -> Self {
        Self { position, needs_probe, ..Self::default() }
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether events from before the connection are still being replayed.
    pub fn is_replaying(&self) -> bool {
        self.replay_to.is_some()
    }

    /// Whether what is known is up to date.
    pub fn is_current(&self) -> bool {
        self.attached && self.replay_to.is_none()
    }

    pub fn kernel_at_attach(&self) -> Option<KernelAtAttach> {
        self.hello.as_ref().map(|hello| KernelAtAttach { generation: hello.generation, state: hello.kernel_state })
    }

    /// A connection stands; `generation` is the kernel's as far as it is known. The agent replays its events up to the last one.
    pub fn attach(&mut self, hello: Hello, generation: Generation) -> Attached {
        self.attached = true;
        if hello.epoch == self.position.epoch && hello.generation < generation {
            return Attached::Impossible(
                "the agent in its sandbox does not keep to the protocol: its kernel is one that ended before",
            );
        }
        let mut attached = Attached::Continued;
        if self.position.epoch != hello.epoch {
            if self.position.epoch != Epoch::default() {
                return Attached::Impossible("its sandbox was started anew by somebody else");
            }
            self.position = Position { epoch: hello.epoch, seq: Seq::default() };
            attached = Attached::First(hello.generation);
        }
        let last = Seq(hello.next_seq.0.saturating_sub(1));
        self.replay_to = (self.position.seq < last).then_some(last);
        self.hello = Some(hello);
        attached
    }

    pub fn detach(&mut self) {
        self.attached = false;
    }

    /// Events up to `seq` have been taken in. Returns whether the replay ended with it.
    pub fn advance(&mut self, seq: Seq) -> bool {
        self.position.seq = seq;
        self.replay_to.take_if(|last| *last <= seq).is_some()
    }

    /// Events were lost, an execution's reply or a new kernel's start perhaps among them.
    pub fn require_probe(&mut self) {
        self.needs_probe = true;
    }

    /// The probe to be sent, if one is needed. A kernel answers in order: once it answers this one, it is there and has done with
    /// the execution before. A kernel that is not there refuses it, and reports when it is ready.
    pub fn take_probe_request(&mut self, cx: Context, session: &str) -> Option<Message> {
        std::mem::take(&mut self.needs_probe).then(|| {
            let message = cx.message(session, KernelRequest::kernel_info());
            self.probe = Some(message.header().msg_id);
            message
        })
    }

    /// Whether a shell message with this parent answers the probe.
    pub fn take_probe_answer(&mut self, parent: &str) -> bool {
        self.probe.take_if(|probe| *probe == parent).is_some()
    }

    /// An execution begins or ends: an answer to an earlier probe would say nothing about the next.
    pub fn drop_probe(&mut self) {
        self.probe = None;
    }

    /// Whether a later server must probe: an unanswered probe is lost with this one.
    pub fn is_probe_due(&self) -> bool {
        self.needs_probe || self.probe.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(epoch: u64, generation: u32, next_seq: u64) -> Hello {
        Hello {
            epoch: Epoch(epoch),
            generation: Generation(generation),
            first_seq: Seq::FIRST,
            next_seq: Seq(next_seq),
            kernel_state: KernelState::Ready,
            version: String::new(),
        }
    }

    #[test]
    fn replay_ends_with_the_last_event_from_before() {
        let mut link = LinkState::default();
        assert_eq!(link.attach(hello(1, 1, 4), Generation(0)), Attached::First(Generation(1)));
        assert!(!link.is_current());
        assert_eq!([1, 2, 3, 4].map(|seq| link.advance(Seq(seq))), [false, false, true, false]);
        assert!(link.is_current());
        link.detach();
        assert_eq!(link.attach(hello(1, 1, 5), Generation(1)), Attached::Continued);
        assert!(link.is_current(), "nothing new happened meanwhile");
    }

    #[test]
    fn foreign_epoch_and_older_kernel_are_impossible() {
        let mut link = LinkState::default();
        link.attach(hello(1, 2, 1), Generation(0));
        for (epoch, generation) in [(2, 2), (1, 1)] {
            assert!(matches!(link.attach(hello(epoch, generation, 1), Generation(2)), Attached::Impossible(_)));
        }
    }
}

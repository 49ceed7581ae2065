//! How an interrupt escalates: asked twice, then told, then killed. Each step has its time, and each is reported.

use std::time::{Duration, Instant};

use crate::agent_protocol::SignalKind;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A signal to the kernel.
    Signal(SignalKind),
    /// Not even SIGKILL was heard of: whoever should answer does not, and the session is over.
    GiveUp,
}

/// The steps and how long after the one before each follows.
const STEPS: [(Step, Duration); 5] = [
    (Step::Signal(SignalKind::Interrupt), Duration::ZERO),
    (Step::Signal(SignalKind::Interrupt), Duration::from_secs(2)),
    (Step::Signal(SignalKind::Terminate), Duration::from_secs(3)),
    (Step::Signal(SignalKind::Kill), Duration::from_secs(2)),
    (Step::GiveUp, Duration::from_secs(15)),
];

/// Which step is the kill.
const KILL: usize = 3;

/// One escalation in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ladder {
    step: usize,
    next_at: Instant,
}

impl Ladder {
    /// Begins at once.
    pub fn new(now: Instant) -> Self {
        Self { step: 0, next_at: now }
    }

    /// When the next step is due. `None` after the last: there is nothing stronger.
    pub fn deadline(&self) -> Option<Instant> {
        (self.step < STEPS.len()).then_some(self.next_at)
    }

    /// The step that is due now, if any.
    pub fn due(&mut self, now: Instant) -> Option<Step> {
        let (step, _) = STEPS.get(self.step).filter(|_| self.next_at <= now)?;
        self.step += 1;
        if let Some((_, wait)) = STEPS.get(self.step) {
            self.next_at = now + *wait;
        }
        Some(*step)
    }

    /// Does the last step once more, with its time after it: it may not have been heard.
    pub fn repeat(&mut self, now: Instant) {
        if self.step > 0 && self.step < STEPS.len() {
            (self.step, self.next_at) = (self.step - 1, now);
        }
    }

    /// Goes to the kill at once, if it has not been reached.
    pub fn hurry(&mut self, now: Instant) {
        if self.step < KILL {
            (self.step, self.next_at) = (KILL, now);
        }
    }
}

/// What a step is, for people.
pub(super) fn describe_step(signal: SignalKind) -> &'static str {
    match signal {
        SignalKind::Interrupt => "interrupting the kernel",
        SignalKind::Terminate => "the kernel does not heed the interrupt; terminating it",
        SignalKind::Kill => "killing the kernel",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_in_order_each_once() {
        let start = Instant::now();
        let mut ladder = Ladder::new(start);
        let mut seen = Vec::new();
        for second in 0..40 {
            seen.extend(ladder.due(start + Duration::from_secs(second)));
        }
        assert_eq!(
            seen,
            [
                Step::Signal(SignalKind::Interrupt),
                Step::Signal(SignalKind::Interrupt),
                Step::Signal(SignalKind::Terminate),
                Step::Signal(SignalKind::Kill),
                Step::GiveUp,
            ]
        );
        assert_eq!(ladder.deadline(), None);
    }

    #[test]
    fn hurrying_kills_next() {
        let start = Instant::now();
        let mut ladder = Ladder::new(start);
        ladder.due(start);
        ladder.hurry(start);
        assert_eq!(ladder.due(start), Some(Step::Signal(SignalKind::Kill)));
        assert_eq!(ladder.due(start + Duration::from_secs(9)), None);
    }
}

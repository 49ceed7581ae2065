//! How an interrupt escalates: SIGINT twice, then SIGTERM, then SIGKILL. Each step waits for a time of its own.

use std::time::{Duration, Instant};

use crate::agent_protocol::SignalKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Signal(SignalKind),
    /// Even SIGKILL had no effect that was reported: the sandbox does not answer, and the session ends.
    GiveUp,
}

/// The steps, each with its delay after the one before.
const STEPS: [(Step, Duration); 5] = [
    (Step::Signal(SignalKind::Interrupt), Duration::ZERO),
    (Step::Signal(SignalKind::Interrupt), Duration::from_secs(2)),
    (Step::Signal(SignalKind::Terminate), Duration::from_secs(2)),
    (Step::Signal(SignalKind::Kill), Duration::from_secs(1)),
    (Step::GiveUp, Duration::from_secs(15)),
];

/// Index of SIGKILL in [`STEPS`].
const KILL: usize = 3;

/// One escalation in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterruptEscalation {
    step: usize,
    next_at: Instant,
}

impl InterruptEscalation {
    /// The first step is due at once.
    pub fn new(now: Instant) -> Self {
        Self { step: 0, next_at: now }
    }

    /// When the next step is due; `None` after the last.
    pub fn deadline(&self) -> Option<Instant> {
        (self.step < STEPS.len()).then_some(self.next_at)
    }

    /// Takes the step that is due, if any.
    pub fn take_due(&mut self, now: Instant) -> Option<Step> {
        let (step, _) = STEPS.get(self.step).filter(|_| self.next_at <= now)?;
        self.step += 1;
        if let Some((_, wait)) = STEPS.get(self.step) {
            self.next_at = now + *wait;
        }
        Some(*step)
    }

    /// Makes the last step due once more: a cut connection may have lost it.
    pub fn repeat(&mut self, now: Instant) {
        if self.step > 0 && self.step < STEPS.len() {
            (self.step, self.next_at) = (self.step - 1, now);
        }
    }

    /// Makes SIGKILL due at once, unless it was sent already.
    pub fn skip_to_kill(&mut self, now: Instant) {
        if self.step < KILL {
            (self.step, self.next_at) = (KILL, now);
        }
    }
}

/// The notice that goes with a signal.
pub(super) fn describe_step(signal: SignalKind) -> &'static str {
    match signal {
        SignalKind::Interrupt => "interrupting the kernel",
        SignalKind::Terminate => "the kernel ignores the interrupt; terminating it",
        SignalKind::Kill => "killing the kernel",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_due_once_in_order() {
        let start = Instant::now();
        let mut escalation = InterruptEscalation::new(start);
        let mut seen = Vec::new();
        for second in 0..40 {
            seen.extend(escalation.take_due(start + Duration::from_secs(second)));
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
        assert_eq!(escalation.deadline(), None);
    }

    #[test]
    fn skip_to_kill_makes_sigkill_next() {
        let start = Instant::now();
        let mut escalation = InterruptEscalation::new(start);
        escalation.take_due(start);
        escalation.skip_to_kill(start);
        assert_eq!(escalation.take_due(start), Some(Step::Signal(SignalKind::Kill)));
        assert_eq!(escalation.take_due(start + Duration::from_secs(9)), None);
    }
}

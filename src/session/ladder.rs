//! How an interrupt escalates: asked twice, then told, then killed. Each step has its time, and each is reported.

use std::time::{Duration, Instant};

use crate::agent_protocol::SignalKind;

/// The steps and how long after the one before each follows.
const STEPS: [(SignalKind, Duration); 4] = [
    (SignalKind::Interrupt, Duration::ZERO),
    (SignalKind::Interrupt, Duration::from_secs(2)),
    (SignalKind::Terminate, Duration::from_secs(3)),
    (SignalKind::Kill, Duration::from_secs(2)),
];

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
    pub fn due(&mut self, now: Instant) -> Option<SignalKind> {
        let (signal, _) = STEPS.get(self.step).filter(|_| self.next_at <= now)?;
        self.step += 1;
        if let Some((_, wait)) = STEPS.get(self.step) {
            self.next_at = now + *wait;
        }
        Some(*signal)
    }

    /// Goes to the last step at once.
    pub fn hurry(&mut self, now: Instant) {
        self.step = self.step.max(STEPS.len() - 1);
        self.next_at = self.next_at.min(now);
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
        for second in 0..20 {
            seen.extend(ladder.due(start + Duration::from_secs(second)));
        }
        assert_eq!(seen, [SignalKind::Interrupt, SignalKind::Interrupt, SignalKind::Terminate, SignalKind::Kill]);
        assert_eq!(ladder.deadline(), None);
    }

    #[test]
    fn hurrying_kills_next() {
        let start = Instant::now();
        let mut ladder = Ladder::new(start);
        ladder.due(start);
        ladder.hurry(start);
        assert_eq!(ladder.due(start), Some(SignalKind::Kill));
        assert_eq!(ladder.due(start + Duration::from_secs(9)), None);
    }
}

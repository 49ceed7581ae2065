//! Executions that have ended, but whose output may still come: threads go on printing after their cell.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::ids::{CellNumber, ExecutionId};

/// How many ended executions late output still finds.
const MAX_RECENT: usize = 32;

/// An ended execution, the last one of its cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RecentExecution {
    pub id: ExecutionId,
    pub number: CellNumber,
    /// Bytes of its output so far, late output included.
    pub output_bytes: u64,
}

/// The executions that ended last, in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct RecentExecutions {
    executions: VecDeque<RecentExecution>,
    /// Cells whose entry is not as it was last journaled.
    changed: BTreeSet<CellNumber>,
}

impl RecentExecutions {
    /// Executions as they were journaled, oldest first.
    pub fn restore(executions: Vec<RecentExecution>) -> Self {
        Self { executions: executions.into(), changed: BTreeSet::new() }
    }

    /// Adds an execution that has ended. Returns the cell of the one that was evicted for it.
    pub fn push(&mut self, ended: RecentExecution) -> Option<CellNumber> {
        self.changed.insert(ended.number);
        self.executions.push_back(ended);
        let evicted = if self.executions.len() > MAX_RECENT { self.executions.pop_front() } else { None };
        let evicted = evicted.map(|evicted| evicted.number);
        self.changed.extend(evicted);
        evicted
    }

    /// The cell was queued again or deleted: its former execution is no longer recent. Late output of it goes to the last cell, as that of
    /// any old execution does.
    pub fn forget(&mut self, number: CellNumber) {
        self.changed.insert(number);
        self.executions.retain(|execution| execution.number != number);
    }

    pub fn cell_of(&self, id: &str) -> Option<CellNumber> {
        self.executions.iter().find(|execution| execution.id.0 == id).map(|execution| execution.number)
    }

    /// The cell whose execution ended last.
    pub fn last_cell(&self) -> Option<CellNumber> {
        self.executions.back().map(|execution| execution.number)
    }

    pub fn of_cell(&self, number: CellNumber) -> Option<&RecentExecution> {
        self.executions.iter().rev().find(|execution| execution.number == number)
    }

    /// The output counter of a cell's ended execution, to be added to.
    pub fn output_bytes_of(&mut self, number: CellNumber) -> Option<&mut u64> {
        let execution = self.executions.iter_mut().rev().find(|execution| execution.number == number)?;
        self.changed.insert(number);
        Some(&mut execution.output_bytes)
    }

    /// The cells whose entry changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<CellNumber> {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(number: u32) -> RecentExecution {
        RecentExecution { id: ExecutionId(format!("e{number}")), number: CellNumber(number), output_bytes: 0 }
    }

    #[test]
    fn oldest_is_evicted_and_reported_as_changed() {
        let mut recent = RecentExecutions::default();
        for number in 0..MAX_RECENT as u32 {
            assert_eq!(recent.push(ended(number)), None);
        }
        recent.take_changed();
        assert_eq!(recent.push(ended(99)), Some(CellNumber(0)));
        assert_eq!(recent.take_changed(), BTreeSet::from([CellNumber(0), CellNumber(99)]));
        assert_eq!((recent.cell_of("e0"), recent.cell_of("e1")), (None, Some(CellNumber(1))));
        assert_eq!(recent.last_cell(), Some(CellNumber(99)));
    }

    #[test]
    fn counting_output_marks_the_cell_as_changed() {
        let mut recent = RecentExecutions::restore(vec![ended(1), ended(2)]);
        *recent.output_bytes_of(CellNumber(1)).unwrap() += 5;
        assert_eq!(recent.take_changed(), BTreeSet::from([CellNumber(1)]));
        assert_eq!(recent.of_cell(CellNumber(1)).unwrap().output_bytes, 5);
        recent.forget(CellNumber(1));
        assert!(recent.of_cell(CellNumber(1)).is_none() && recent.output_bytes_of(CellNumber(1)).is_none());
    }
}

//! Output that may still come of cells whose runs have ended: what is known of them, and how that is written down. Each cell is
//! written for itself, and only when something of it has changed: what thirty cells look like is a megabyte, which no message of
//! another cell is to wait for.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::piece::FoldChange;
use crate::ids::RunId;
use crate::output::{CellKey, FoldedCell, StoredCell};

/// Ended runs that late output still finds: threads go on printing after their cell.
const MOST: usize = 32;

/// A run that has ended, the last one of its cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Recent {
    pub run: RunId,
    pub number: u32,
    /// Bytes of its output so far.
    pub bytes: u64,
}

/// The runs that ended last, in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Recents {
    runs: VecDeque<Recent>,
    /// Cells of which something is not written down yet.
    changed: BTreeSet<u32>,
}

impl Recents {
    /// Takes in a run that has ended. Gives the cell of the one that is known no more.
    pub fn push(&mut self, recent: Recent) -> Option<u32> {
        self.changed.insert(recent.number);
        self.runs.push_back(recent);
        let old = if self.runs.len() > MOST { self.runs.pop_front() } else { None };
        self.changed.extend(old.iter().map(|old| old.number));
        old.map(|old| old.number)
    }

    /// Nothing more comes of the cell's former run.
    pub fn forget(&mut self, number: u32) {
        self.changed.insert(number);
        self.runs.retain(|recent| recent.number != number);
    }

    /// The cell of a run.
    pub fn cell_of(&self, run: &str) -> Option<u32> {
        self.runs.iter().find(|recent| recent.run.0 == run).map(|recent| recent.number)
    }

    /// The cell whose run ended last.
    pub fn last(&self) -> Option<u32> {
        self.runs.back().map(|recent| recent.number)
    }

    pub fn of_cell(&self, number: u32) -> Option<&Recent> {
        self.runs.iter().rev().find(|recent| recent.number == number)
    }

    /// Its bytes, to be counted on.
    pub fn bytes_of(&mut self, number: u32) -> Option<&mut u64> {
        let recent = self.runs.iter_mut().rev().find(|recent| recent.number == number)?;
        self.changed.insert(number);
        Some(&mut recent.bytes)
    }
}

/// What is written down of one cell.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    recent: Option<&'a Recent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fold: Option<FoldedCell<'a>>,
}

/// The same, as it was written down.
#[derive(Deserialize)]
pub(super) struct StoredRow {
    recent: Option<Recent>,
    fold: Option<StoredCell>,
}

impl Core {
    /// What is to be written down of cells and Output widgets, by their numbers in the fold.
    pub(super) fn take_folds(&mut self) -> Vec<FoldChange> {
        let mut changed = std::mem::take(&mut self.recents.changed);
        changed.extend(self.fold.take_changed().into_iter().map(|key| key.0));
        if !self.facts.durable {
            return Vec::new();
        }
        changed.into_iter().filter_map(|number| self.fold_change(number)).collect()
    }

    fn fold_change(&mut self, number: u32) -> Option<FoldChange> {
        let row = Row { recent: self.recents.of_cell(number), fold: self.fold.folded(CellKey(number)) };
        if row.recent.is_none() && row.fold.is_none() {
            return self.written.folds.remove(&number).then_some(FoldChange { number, json: None });
        }
        let json = serde_json::to_string(&row).ok()?;
        self.written.folds.insert(number);
        Some(FoldChange { number, json: Some(json) })
    }

    /// Reads what was written down. `None` where that cannot be read.
    pub(super) fn read_folds(rows: &[(u32, String)]) -> Option<Vec<(u32, StoredRow)>> {
        rows.iter().map(|(number, json)| Some((*number, serde_json::from_str(json).ok()?))).collect()
    }

    /// Goes on from it. The cells are there already.
    pub(super) fn restore_folds(&mut self, rows: Vec<(u32, StoredRow)>) {
        let mut recents = Vec::new();
        for (number, row) in rows {
            self.written.folds.insert(number);
            row.fold.into_iter().for_each(|stored| self.fold.restore(CellKey(number), stored));
            recents.extend(row.recent);
        }
        // They ended in the order in which they were queued.
        recents.sort_by_key(|recent| self.cells.get(recent.number).map(|cell| cell.run.first_seq));
        self.recents.runs = recents.into();
    }
}

/// Keeps what is written down.
#[cfg(test)]
pub(super) fn keep_folds(changes: &[FoldChange], rows: &mut std::collections::BTreeMap<u32, String>) {
    for FoldChange { number, json } in changes {
        match json {
            Some(json) => drop(rows.insert(*number, json.clone())),
            None => assert!(rows.remove(number).is_some(), "only what is there is removed"),
        }
    }
}

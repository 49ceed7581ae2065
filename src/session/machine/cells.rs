//! The notebook of a session: its cells, their order and their sizes.

use std::collections::HashMap;
use std::time::SystemTime;

use super::context::Context;
use super::denied::Denied;
use crate::ids::{CellNumber, ExecutionId};
use crate::session::cell::{Cell, CellExecution, CellPhase, CellType, ExecutionOptions, NewCell, QueuedExecution};
use crate::wire::json;

/// Most cells of one session.
pub(super) const MAX_CELLS: usize = 100_000;
/// Most bytes of all sources and metadata of one session.
pub(super) const MAX_NOTEBOOK: usize = 256 << 20;
/// Longest cell id, by nbformat's rules.
const MAX_CELL_ID: usize = 64;

/// All cells of a session.
#[derive(Debug, Default)]
pub(in crate::session) struct Cells {
    cells: HashMap<CellNumber, Cell>,
    by_id: HashMap<String, CellNumber>,
    last_number: u32,
    /// Upper bound of all places.
    last_place: f64,
    bytes: usize,
}

/// A sort key between two cells. Where none was left, all cells got new ones: `renumbered` are all of them.
pub(super) struct Placement {
    pub place: f64,
    pub renumbered: Vec<Cell>,
}

impl Cells {
    pub fn restore(stored: Vec<Cell>) -> Self {
        let mut cells = Self::default();
        for cell in stored {
            cells.last_number = cells.last_number.max(cell.number.0);
            cells.put(cell);
        }
        cells
    }

    pub fn iter(&self) -> impl Iterator<Item = &Cell> {
        self.cells.values()
    }

    pub fn get(&self, number: CellNumber) -> Option<&Cell> {
        self.cells.get(&number)
    }

    pub fn number_of(&self, id: &str) -> Result<CellNumber, Denied> {
        self.by_id.get(id).copied().ok_or_else(|| Denied::NoCell { id: id.to_owned() })
    }

    pub fn find(&self, id: &str) -> Result<&Cell, Denied> {
        let number = self.number_of(id)?;
        self.cells.get(&number).ok_or_else(|| Denied::NoCell { id: id.to_owned() })
    }

    /// A copy of the cell as it is now.
    pub fn view(&self, number: CellNumber) -> Result<Cell, Denied> {
        self.cells.get(&number).cloned().ok_or_else(|| Denied::NoCell { id: number.to_string() })
    }

    /// The cell once this execution of it has ended, `None` before. The cell may have been queued again since.
    pub fn ended(&self, execution: QueuedExecution) -> Option<Result<Cell, Denied>> {
        let in_progress = self.cells.get(&execution.number).is_some_and(|cell| {
            cell.execution.first_seq == execution.first_seq && cell.execution.phase != CellPhase::Finished
        });
        (!in_progress).then(|| self.view(execution.number))
    }

    /// A code cell that is neither queued nor running.
    pub fn find_runnable(&self, id: &str) -> Result<&Cell, Denied> {
        let cell = self.find(id)?;
        if cell.cell_type != CellType::Code {
            return Err(Denied::NotCode { id: id.to_owned() });
        }
        if cell.execution.phase != CellPhase::Finished {
            return Err(Denied::InProgress { id: id.to_owned(), phase: cell.execution.phase.as_str() });
        }
        Ok(cell)
    }

    /// A cell made from `new`, not yet part of the notebook: [`Self::put`] adds it.
    pub fn prepare(&mut self, cx: Context, new: NewCell) -> Result<(Cell, Vec<Cell>), Denied> {
        let id = self.new_id(cx, new.id)?;
        let number = CellNumber(self.last_number + 1);
        let (cell_type, source) = (new.cell_type.unwrap_or(CellType::Code), new.source);
        let (metadata, options, execution) = (new.metadata, new.options, CellExecution::default());
        let mut cell = Cell { number, id, place: 0.0, cell_type, source, metadata, options, execution };
        self.check_fits(&cell, None)?;
        // Last, since it may renumber: nothing can be refused after that.
        let placement = new.after.map(|after| self.place_after(Some(&after))).transpose()?;
        self.last_number = number.0;
        let Placement { place, renumbered } =
            placement.unwrap_or_else(|| Placement { place: self.last_place.floor() + 1.0, renumbered: Vec::new() });
        cell.place = place;
        Ok((cell, renumbered))
    }

    /// Checks the limits of the notebook; `size_before` is what the cell takes now, `None` for a new one.
    pub fn check_fits(&self, cell: &Cell, size_before: Option<usize>) -> Result<(), Denied> {
        if size_before.is_none() && self.cells.len() >= MAX_CELLS {
            return Err(Denied::TooMany { what: "cells", limit: MAX_CELLS });
        }
        if self.bytes - size_before.unwrap_or(0) + size_of_cell(cell) > MAX_NOTEBOOK {
            return Err(Denied::TooMany { what: "bytes of source", limit: MAX_NOTEBOOK });
        }
        Ok(())
    }

    /// A place between this cell and the next one; `None` for one before the first cell.
    pub fn place_after(&mut self, id: Option<&str>) -> Result<Placement, Denied> {
        let number = id.map(|id| self.number_of(id)).transpose()?;
        let (from, place, next) = self.gap_after(number);
        if from < place && place < next {
            return Ok(Placement { place, renumbered: Vec::new() });
        }
        // About fifty insertions at one spot use up the precision of the sort keys.
        let renumbered = self.renumber_places();
        Ok(Placement { place: self.gap_after(number).1, renumbered })
    }

    fn gap_after(&self, number: Option<CellNumber>) -> (f64, f64, f64) {
        let from = number.and_then(|number| self.cells.get(&number)).map_or(0.0, |cell| cell.place);
        let later = self.cells.values().map(|cell| cell.place).filter(|place| *place > from);
        let next = later.fold(from + 2.0, f64::min);
        (from, f64::midpoint(from, next), next)
    }

    /// Gives all cells whole numbers as places, in their order.
    fn renumber_places(&mut self) -> Vec<Cell> {
        // A cell that is appended next must come behind all of them.
        self.last_place = self.cells.len() as f64;
        let mut cells: Vec<&mut Cell> = self.cells.values_mut().collect();
        cells.sort_by(|a, b| a.place.total_cmp(&b.place).then(a.number.cmp(&b.number)));
        let renumbered = cells.into_iter().enumerate().map(|(index, cell)| {
            cell.place = index as f64 + 1.0;
            cell.clone()
        });
        renumbered.collect()
    }

    fn new_id(&self, cx: Context, wanted: Option<String>) -> Result<String, Denied> {
        let Some(id) = wanted else {
            // Eight characters, as nbformat makes them. A clash is all but impossible, and cheap to rule out.
            let fresh = std::iter::repeat_with(|| (cx.make_uuid)().chars().take(8).collect::<String>());
            return Ok(fresh.take(8).find(|id| !self.by_id.contains_key(id)).unwrap_or_else(cx.make_uuid));
        };
        let is_valid = (1..=MAX_CELL_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        match (is_valid, self.by_id.contains_key(&id)) {
            (false, _) => Err(Denied::BadId { id }),
            (true, true) => Err(Denied::IdTaken { id }),
            (true, false) => Ok(id),
        }
    }

    /// Adds a cell, or replaces the one of the same number.
    pub fn put(&mut self, cell: Cell) {
        self.remove(cell.number);
        self.last_place = self.last_place.max(cell.place);
        self.bytes += size_of_cell(&cell);
        self.by_id.insert(cell.id.clone(), cell.number);
        self.cells.insert(cell.number, cell);
    }

    pub fn remove(&mut self, number: CellNumber) -> Option<Cell> {
        let cell = self.cells.remove(&number)?;
        self.by_id.remove(&cell.id);
        self.bytes -= size_of_cell(&cell);
        Some(cell)
    }

    pub fn set_options(&mut self, number: CellNumber, options: ExecutionOptions) {
        if let Some(cell) = self.cells.get_mut(&number) {
            cell.options = options;
        }
    }

    pub fn execution_mut(&mut self, number: CellNumber) -> Option<&mut CellExecution> {
        self.cells.get_mut(&number).map(|cell| &mut cell.execution)
    }

    /// Records that the kernel was given the cell.
    pub fn begin_execution(&mut self, number: CellNumber, id: &ExecutionId, now: SystemTime) {
        if let Some(execution) = self.execution_mut(number) {
            (execution.phase, execution.id, execution.started_at) = (CellPhase::Running, Some(id.clone()), Some(now));
        }
    }
}

/// Bytes that a cell counts against [`MAX_NOTEBOOK`].
pub(super) fn size_of_cell(cell: &Cell) -> usize {
    const OVERHEAD: usize = 512;
    OVERHEAD + cell.id.len() + cell.source.len() + json::map_size(&cell.metadata)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::*;

    fn cx() -> Context {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let make_uuid = || format!("{:08}-made", COUNT.fetch_add(1, Ordering::Relaxed));
        Context { instant: Instant::now(), time: SystemTime::UNIX_EPOCH, make_uuid }
    }

    fn add(cells: &mut Cells, id: Option<&str>, after: Option<&str>) -> Result<CellNumber, Denied> {
        let new = NewCell { id: id.map(str::to_owned), after: after.map(str::to_owned), ..NewCell::default() };
        let (cell, _) = cells.prepare(cx(), new)?;
        let number = cell.number;
        cells.put(cell);
        Ok(number)
    }

    #[test]
    fn made_ids_skip_those_that_are_taken() {
        fn always_the_same() -> String {
            "deadbeef-0000".to_owned()
        }
        let mut cells = Cells::default();
        let cx = Context { make_uuid: always_the_same, ..cx() };
        for expected in ["deadbeef", "deadbeef-0000"] {
            let (cell, _) = cells.prepare(cx, NewCell::default()).unwrap();
            assert_eq!(cell.id, expected);
            cells.put(cell);
        }
    }

    #[test]
    fn exhausted_places_are_renumbered_in_order() {
        let mut cells = Cells::default();
        add(&mut cells, Some("first"), None).unwrap();
        let mut renumbered = 0;
        for number in 0..200 {
            let new = NewCell { id: Some(format!("c{number}")), after: Some("first".to_owned()), ..NewCell::default() };
            let (cell, all) = cells.prepare(cx(), new).unwrap();
            renumbered += usize::from(!all.is_empty());
            cells.put(cell);
        }
        assert!((2..8).contains(&renumbered), "{renumbered}");
        let mut order: Vec<&Cell> = cells.iter().collect();
        order.sort_by(|a, b| a.place.total_cmp(&b.place));
        assert_eq!((order[0].id.as_str(), order[1].id.as_str(), order[200].id.as_str()), ("first", "c199", "c0"));
    }

    #[test]
    fn numbers_are_never_given_twice() {
        let mut cells = Cells::default();
        let first = add(&mut cells, Some("a"), None).unwrap();
        cells.remove(first);
        assert_ne!(add(&mut cells, Some("a"), None).unwrap(), first);
        assert_eq!(add(&mut cells, Some("a"), None), Err(Denied::IdTaken { id: "a".to_owned() }));
    }
}

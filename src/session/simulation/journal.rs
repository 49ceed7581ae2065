//! A journal in memory that checks each transaction against the promises that a session makes to its readers.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::agent_protocol::Event;
use crate::ids::{CellNumber, Seq};
use crate::link::LinkEvent;
use crate::link::Position;
use crate::output::{OutputTarget, Outputs};
use crate::session::machine::bench::keep_outputs;
use crate::session::{
    Cell, CellChange, CellPhase, EventBody, NotebookChange, SessionEvent, SessionState, Stored, Transaction,
};
use crate::wire::Channel;

/// How often a text occurs in the outputs.
fn count_text(outputs: &[Value], text: &str) -> usize {
    outputs.iter().filter_map(|output| output["text"].as_str()).map(|shown| shown.matches(text).count()).sum()
}

/// A cell as its events describe it.
#[derive(Debug)]
struct View {
    number: CellNumber,
    outputs: Vec<Value>,
    phase: CellPhase,
    first_seq: Seq,
    last_seq: Seq,
}

#[derive(Debug)]
struct RunView {
    cell: CellNumber,
    source: String,
    ended: bool,
}

#[derive(Debug, Default)]
pub(super) struct CheckedJournal {
    cells: BTreeMap<CellNumber, Cell>,
    last_seq: Seq,
    position: Position,
    resume: Option<String>,
    outputs: BTreeMap<OutputTarget, String>,
    kernel_info: Option<String>,
    pub state: Option<SessionState>,
    views: HashMap<String, View>,
    /// Queued cells, in order.
    waiting: Vec<String>,
    /// The outputs that an undisturbed fold makes of the kernel's messages.
    truth: Outputs,
    /// Output of former executions of cells. It is shown at another cell, at most once.
    strays: Vec<String>,
    /// Executions that have begun.
    runs: HashMap<String, RunView>,
    pub finished: u32,
    pub losses: u32,
}

impl CheckedJournal {
    pub fn stored(&self) -> Stored {
        Stored {
            cells: self.cells.values().cloned().collect(),
            last_seq: self.last_seq,
            position: self.position,
            resume: self.resume.clone(),
            outputs: self.outputs.clone().into_iter().collect(),
            kernel_info: self.kernel_info.clone(),
        }
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.state, Some(SessionState::Gone { .. }))
    }

    /// Commits a transaction that contains the link events `taken`.
    pub fn append(&mut self, transaction: &Transaction, taken: &[LinkEvent]) {
        assert!(!self.is_gone(), "something is committed after the end: {transaction:?}");
        taken.iter().for_each(|event| self.take_truth(event));
        transaction.cells.iter().for_each(|change| self.change(change));
        for event in &transaction.events {
            assert_eq!(event.seq, self.last_seq.next(), "numbers have no gap");
            self.last_seq = event.seq;
            self.read(event);
        }
        if let Some(state) = &transaction.state {
            self.state = Some(state.clone());
        }
        if let Some(last) = taken.iter().filter_map(number_of).next_back() {
            let position = transaction.position.expect("what was taken in is acknowledged");
            assert_eq!(position.seq, last, "the position is that of the last event in the transaction");
        }
        self.position = transaction.position.unwrap_or(self.position);
        self.resume = transaction.resume.clone().or(self.resume.take());
        keep_outputs(&transaction.outputs, &mut self.outputs);
        self.kernel_info = transaction.kernel_info.clone().or(self.kernel_info.take());
        assert!(self.resume.is_some(), "a later server can go on from here");
        self.check();
    }

    /// Events and rows agree, and the outputs are those that the kernel sent.
    fn check(&self) {
        assert_eq!(self.views.len(), self.cells.len());
        for (id, view) in &self.views {
            let run = &self.cells.get(&view.number).expect("a row").execution;
            assert_eq!((run.phase, run.first_seq, run.last_seq), (view.phase, view.first_seq, view.last_seq), "cell {id}");
            let truth = self.truth.outputs(OutputTarget::Cell(view.number));
            if self.strays.iter().any(|stray| count_text(&view.outputs, stray) > 0) {
                // A stray between two texts of a stream makes two outputs of them.
                assert_eq!(self.without_strays(&view.outputs), self.without_strays(truth), "outputs of cell {id}");
            } else {
                assert_eq!(view.outputs, truth, "outputs of cell {id}");
            }
        }
        for stray in &self.strays {
            let shown = self.views.values().map(|view| count_text(&view.outputs, stray)).sum::<usize>();
            assert!(shown <= 1, "{stray:?} is shown {shown} times");
        }
        let is_running = |view: &&View| view.phase == CellPhase::Running;
        assert!(self.views.values().filter(is_running).count() <= 1, "one runs at a time");
    }

    /// The text of each stream, and the other outputs.
    fn without_strays(&self, outputs: &[Value]) -> (BTreeMap<String, String>, Vec<Value>) {
        let (mut texts, mut others) = (BTreeMap::<String, String>::new(), Vec::new());
        for output in outputs {
            match (output["name"].as_str(), output["text"].as_str()) {
                (Some(name), Some(text)) => texts.entry(name.to_owned()).or_default().push_str(text),
                _ => others.push(output.clone()),
            }
        }
        for text in texts.values_mut() {
            *text = self.strays.iter().fold(std::mem::take(text), |text, stray| text.replace(stray, ""));
        }
        texts.retain(|_, text| !text.is_empty());
        (texts, others)
    }

    fn take_truth(&mut self, event: &LinkEvent) {
        let LinkEvent::Event { event: Event::Message { channel: Channel::Iopub, message, .. }, .. } = event else { return };
        let Some(RunView { cell: number, .. }) = self.runs.get(&message.parent().msg_id) else { return };
        let current = self.cells.get(number).and_then(|cell| cell.execution.id.as_ref());
        if current.is_some_and(|run| run.0 == message.parent().msg_id) {
            self.truth.apply(OutputTarget::Cell(*number), &message.header().msg_type, &message.content);
        } else if let Some(text) = message.content_value()["text"].as_str() {
            self.strays.push(text.to_owned());
        }
    }

    fn change(&mut self, change: &CellChange) {
        match change {
            CellChange::Put(cell) => {
                self.cells.insert(cell.number, (**cell).clone());
            }
            CellChange::Options { number, options } => {
                self.cells.get_mut(number).expect("a known cell").options = options.clone();
            }
            CellChange::Execution { number, execution } => {
                self.cells.get_mut(number).expect("a known cell").execution = (**execution).clone();
            }
            CellChange::Delete { number } => {
                self.cells.remove(number).expect("a known cell");
            }
        }
    }

    fn read(&mut self, event: &SessionEvent) {
        if matches!(event.body, EventBody::Lost { .. }) {
            self.losses += 1;
        }
        let Some(id) = &event.cell else {
            let needs_cell = !matches!(event.body, EventBody::State { .. } | EventBody::Lost { .. });
            return assert!(!needs_cell, "of no cell: {event:?}");
        };
        if event.body == EventBody::Notebook(NotebookChange::Added) {
            let (number, phase) = (self.number_of(id), CellPhase::Finished);
            let view = View { number, outputs: Vec::new(), phase, first_seq: event.seq, last_seq: event.seq };
            self.truth.start(OutputTarget::Cell(number));
            assert!(self.views.insert(id.clone(), view).is_none(), "added twice");
            return;
        }
        let view = self.views.get_mut(id).expect("a known cell");
        view.last_seq = event.seq;
        let key = OutputTarget::Cell(view.number);
        match &event.body {
            EventBody::Queued => {
                assert_eq!(view.phase, CellPhase::Finished, "queued while in progress");
                (view.phase, view.first_seq) = (CellPhase::Queued, event.seq);
                view.outputs.clear();
                self.truth.start(key);
                self.waiting.push(id.clone());
            }
            EventBody::Started => {
                assert_eq!((view.phase, self.waiting.first()), (CellPhase::Queued, Some(id)), "the queue runs in order");
                view.phase = CellPhase::Running;
                self.waiting.remove(0);
                let cell = self.cells.get(&view.number).expect("a row");
                let id = cell.execution.id.clone().expect("a run has an id").0;
                let run = RunView { cell: view.number, source: cell.source.clone(), ended: false };
                assert!(self.runs.insert(id, run).is_none(), "each run has its own id");
            }
            EventBody::Finished(_) => {
                assert_ne!(view.phase, CellPhase::Finished, "a run ends once: {event:?}");
                view.phase = CellPhase::Finished;
                self.waiting.retain(|waiting| waiting != id);
                self.runs.values_mut().filter(|run| run.cell == view.number).for_each(|run| run.ended = true);
                self.finished += 1;
            }
            EventBody::Notebook(NotebookChange::Deleted) => {
                assert_eq!(view.phase, CellPhase::Finished);
                let number = view.number;
                self.views.remove(id);
                self.truth.start(key);
                self.runs.retain(|_, run| run.cell != number);
            }
            body => view.show(body),
        }
    }

    fn number_of(&self, id: &str) -> CellNumber {
        self.cells.values().find(|cell| cell.id == *id).expect("a row for each cell").number
    }

    /// The kernel has begun with this execution.
    pub fn executes(&self, run: &str, code: &str) {
        let run = self.runs.get(run).expect("an execution is committed before it begins");
        assert_eq!(run.source, code, "an execution has the source that it was begun with");
        assert!(!run.ended, "an execution that has ended is not begun");
    }

    /// Nothing is queued or running any more.
    pub fn check_settled(&self) {
        assert!(self.waiting.is_empty());
        for (id, view) in &self.views {
            assert_eq!(view.phase, CellPhase::Finished, "cell {id} has ended");
        }
    }

    pub fn same_cells<'a>(&self, cells: impl Iterator<Item = &'a Cell>) {
        let held: BTreeMap<CellNumber, &Cell> = cells.map(|cell| (cell.number, cell)).collect();
        let stored: BTreeMap<CellNumber, &Cell> = self.cells.iter().map(|(number, cell)| (*number, cell)).collect();
        assert_eq!(held, stored, "the stored cells are those of the machine");
    }
}

impl View {
    fn show(&mut self, body: &EventBody) {
        match body {
            EventBody::Append { index, output } => {
                assert_eq!(*index, self.outputs.len());
                self.outputs.push(output.clone());
            }
            EventBody::Stream { index, name, keep, text, .. } => {
                let output = self.outputs.get_mut(*index).expect("a stream that is there");
                assert_eq!(output["name"], **name);
                let before = output["text"].as_str().unwrap_or_default().to_owned();
                output["text"] = format!("{}{text}", before.get(..keep.bytes).expect("the kept text is there")).into();
            }
            EventBody::Update { index, output } => {
                *self.outputs.get_mut(*index).expect("an output that is there") = output.clone();
            }
            EventBody::Clear => self.outputs.clear(),
            EventBody::State { .. } | EventBody::Lost { .. } | EventBody::Comm { .. } => {}
            EventBody::Notebook(_) | EventBody::Input { .. } => {}
            EventBody::Files(_) | EventBody::ArtifactFile { .. } => {}
            body => panic!("not expected: {body:?}"),
        }
    }
}

fn number_of(event: &LinkEvent) -> Option<Seq> {
    match event {
        LinkEvent::Event { seq, .. } => Some(*seq),
        LinkEvent::Lost { to, .. } => Some(*to),
        _ => None,
    }
}

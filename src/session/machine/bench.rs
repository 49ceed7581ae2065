//! A machine driven by hand, for unit tests: its agent says what the test makes it say.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::{Context, Denied, Effect, Machine, MachineConfig, Stored};
use crate::agent_protocol::{Event, Hello, KernelEvent, KernelExit, KernelState, KillReason};
use crate::ids::{self, Epoch, ExecutionId, Generation, Seq};
use crate::link::LinkEvent;
use crate::output::OutputTarget;
use crate::policy::Limits;
use crate::session::transaction::{OutputMode, OutputState, Transaction};
use crate::session::{Cell, ExecutionStatus, NewCell, SessionState};
use crate::wire::{Channel, Message};

fn config() -> MachineConfig {
    let limits = Limits { output_mb: 1, ..Limits::default() };
    MachineConfig { session: "test".to_owned(), limits, durable: true, output_mode: OutputMode::Changes }
}

fn context() -> Context {
    Context { instant: Instant::now(), time: SystemTime::now(), make_uuid: ids::random_uuid }
}

/// Applies journaled rows of outputs to what was journaled before.
pub(in crate::session) fn keep_outputs(changes: &[OutputState], rows: &mut BTreeMap<OutputTarget, String>) {
    for OutputState { target, json } in changes {
        match json {
            Some(json) => drop(rows.insert(*target, json.clone())),
            None => assert!(rows.remove(target).is_some(), "only a row that exists is removed"),
        }
    }
}

impl Machine {
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter()
    }

    pub fn active_id(&self) -> Option<ExecutionId> {
        self.executions.active().map(|active| active.id().clone())
    }

    /// Whether nothing is queued, active or unanswered.
    pub fn is_at_rest(&self) -> bool {
        self.executions.is_at_rest() && self.introspection.is_empty()
    }

    pub fn has_no_open_requests(&self) -> bool {
        self.introspection.is_empty()
    }

    pub fn committed_resume(&self) -> Option<String> {
        self.outbox.committed_resume()
    }
}

/// A machine whose agent says what the test makes it say.
pub(in crate::session) struct Bench {
    pub machine: Machine,
    pub cx: Context,
    /// Journaled rows of outputs.
    outputs: BTreeMap<OutputTarget, String>,
    /// Number of the last event that the agent sent.
    pub seq: u64,
    generation: u32,
}

impl Bench {
    pub fn new() -> Self {
        let cx = context();
        Self { machine: Machine::new(config(), cx), cx, outputs: BTreeMap::new(), seq: 0, generation: 1 }
    }

    /// One whose kernel is ready.
    pub fn ready() -> Self {
        let mut bench = Self::new();
        bench.attach();
        bench.kernel(KernelEvent::Starting);
        bench.kernel(KernelEvent::Ready { info: "{}".to_owned() });
        assert_eq!(*bench.machine.state(), SessionState::Idle);
        bench.out();
        bench
    }

    pub fn attach(&mut self) {
        self.machine.take(
            self.cx,
            LinkEvent::Attached(Hello {
                epoch: Epoch(1),
                generation: Generation(self.generation),
                first_seq: Seq::FIRST,
                next_seq: Seq(self.seq + 1),
                kernel_state: KernelState::Ready,
                version: String::new(),
            }),
        );
    }

    pub fn tell(&mut self, event: Event) {
        self.seq += 1;
        self.machine.take(self.cx, LinkEvent::Event { seq: Seq(self.seq), event });
        self.machine.tick(self.cx);
    }

    pub fn kernel(&mut self, event: KernelEvent) {
        self.tell(Event::Kernel { generation: Generation(self.generation), event });
    }

    pub fn exits(&mut self, reason: Option<KillReason>) {
        let start_log = String::new();
        self.kernel(KernelEvent::Exited(KernelExit {
            code: None,
            signal: Some(9),
            out_of_memory: false,
            reason,
            start_log,
        }));
    }

    pub fn starts_again(&mut self) {
        self.generation += 1;
        self.kernel(KernelEvent::Starting);
        self.kernel(KernelEvent::Ready { info: "{}".to_owned() });
    }

    pub fn says(&mut self, channel: Channel, parent: &str, msg_type: &str, content: &Value) {
        let mut message = Message::new_request("kernel", msg_type, content);
        message.parent_header = json!({"msg_id": parent}).to_string().into();
        self.tell(Event::Message { channel, generation: Generation(self.generation), message });
    }

    pub fn prints(&mut self, run: &str, text: &str) {
        self.says(Channel::Iopub, run, "stream", &json!({"name": "stdout", "text": text}));
    }

    pub fn replies(&mut self, run: &str) {
        self.says(Channel::Iopub, run, "status", &json!({"execution_state": "idle"}));
        self.says(Channel::Shell, run, "execute_reply", &json!({"status": "ok", "execution_count": 1}));
    }

    pub fn add(&mut self, id: &str, run: bool) -> Result<Cell, Denied> {
        self.machine.add_cell(self.cx, NewCell { id: Some(id.to_owned()), run, ..NewCell::default() }, None)
    }

    /// Adds a cell that runs at once; gives its run.
    pub fn run(&mut self, id: &str) -> String {
        self.add(id, true).unwrap();
        self.cell(id).execution.id.clone().unwrap().0
    }

    pub fn cell(&self, id: &str) -> &Cell {
        self.machine.cells().find(|cell| cell.id == id).unwrap()
    }

    pub fn status(&self, id: &str) -> Option<ExecutionStatus> {
        self.cell(id).execution.status()
    }

    pub fn order(&self) -> Vec<&str> {
        let mut cells: Vec<&Cell> = self.machine.cells().collect();
        cells.sort_by(|a, b| a.place.total_cmp(&b.place).then(a.number.cmp(&b.number)));
        cells.into_iter().map(|cell| cell.id.as_str()).collect()
    }

    pub fn out(&mut self) -> (Transaction, Vec<Effect>) {
        let (transaction, effects) = self.machine.take_out(self.cx);
        keep_outputs(&transaction.outputs, &mut self.outputs);
        (transaction, effects)
    }

    pub fn effects(&mut self) -> Vec<Effect> {
        self.out().1
    }

    /// Kills the server and restores the machine from what was committed last.
    pub fn restore(&mut self, change: impl FnOnce(Option<String>) -> Option<String>) {
        let (transaction, _) = self.out();
        let cells = self.machine.cells().cloned().collect();
        let last_seq = transaction.events.last().expect("something happened last").seq;
        let resume = change(self.machine.committed_resume());
        let outputs = self.outputs.clone().into_iter().collect();
        let stored = Stored { cells, last_seq, position: self.machine.position(), resume, outputs, kernel_info: None };
        self.machine = Machine::restore(config(), stored, self.cx);
    }
}

//! What the simulation does not reach: places, limits, ids, and single steps whose outcome should be named.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::commands::{CellEdit, Denied, NewCell};
use super::core::{Core, Effect, Facts, Stored};
use super::late::keep_folds;
use super::piece::{EventBody, Piece, Telling};
use super::run::Now;
use super::{Cell, CellPhase, CellType, RunOptions, RunStatus, SessionState};
use crate::agent_protocol::{Event, Hello, KernelEvent, KernelExit, KernelState, KillReason, SignalKind};
use crate::ids::{Epoch, Generation, RunId, Seq};
use crate::link::{LinkError, LinkEvent};
use crate::policy::Limits;
use crate::wire::{Channel, Message};

fn facts() -> Facts {
    let (limits, late_output) = (Limits { output_mb: 1, ..Limits::default() }, Duration::ZERO);
    Facts { name: "test".to_owned(), limits, late_output, durable: true, telling: Telling::Changes }
}

fn now() -> Now {
    Now { instant: Instant::now(), time: SystemTime::now() }
}

/// A machine whose agent tells what the test says.
pub(super) struct Bench {
    pub core: Core,
    pub now: Now,
    /// What is written down of cells' outputs.
    folds: BTreeMap<u32, String>,
    seq: u64,
    generation: u32,
}

impl Bench {
    pub fn new() -> Self {
        let now = now();
        Self { core: Core::new(facts(), now), now, folds: BTreeMap::new(), seq: 0, generation: 1 }
    }

    /// One whose kernel is ready.
    pub fn ready() -> Self {
        let mut bench = Self::new();
        bench.attach();
        bench.kernel(KernelEvent::Starting);
        bench.kernel(KernelEvent::Ready { info: "{}".to_owned() });
        assert_eq!(bench.core.state, SessionState::Idle);
        bench.out();
        bench
    }

    pub fn attach(&mut self) {
        self.core.take(
            self.now,
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
        self.core.take(self.now, LinkEvent::Event { seq: Seq(self.seq), event });
        self.core.tick(self.now);
    }

    pub fn kernel(&mut self, event: KernelEvent) {
        self.tell(Event::Kernel { generation: Generation(self.generation), event });
    }

    pub fn exits(&mut self, reason: Option<KillReason>) {
        let last_words = String::new();
        self.kernel(KernelEvent::Exited(KernelExit {
            code: None,
            signal: Some(9),
            out_of_memory: false,
            reason,
            last_words,
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
        self.core.add_cell(self.now, NewCell { id: Some(id.to_owned()), run, ..NewCell::default() }, None)
    }

    /// Adds a cell that runs at once; gives its run.
    pub fn run(&mut self, id: &str) -> String {
        self.add(id, true).unwrap();
        self.cell(id).run.run.clone().unwrap().0
    }

    pub fn cell(&self, id: &str) -> &Cell {
        self.core.cells.iter().find(|cell| cell.id == id).unwrap()
    }

    pub fn status(&self, id: &str) -> Option<RunStatus> {
        self.cell(id).run.status()
    }

    pub fn order(&self) -> Vec<&str> {
        let mut cells: Vec<&Cell> = self.core.cells.iter().collect();
        cells.sort_by(|a, b| a.place.total_cmp(&b.place).then(a.number.cmp(&b.number)));
        cells.into_iter().map(|cell| cell.id.as_str()).collect()
    }

    pub fn out(&mut self) -> (Piece, Vec<Effect>) {
        let (piece, effects) = self.core.take_out(self.now);
        keep_folds(&piece.folds, &mut self.folds);
        (piece, effects)
    }

    pub fn effects(&mut self) -> Vec<Effect> {
        self.out().1
    }

    /// Killed, and gone on from what was written last.
    pub fn restore(&mut self, change: impl FnOnce(Option<String>) -> Option<String>) {
        let (piece, _) = self.out();
        let cells = self.core.cells.iter().cloned().collect();
        let last_seq = piece.events.last().expect("something happened last").seq;
        let resume = change(self.core.written.resume.clone());
        let folds = self.folds.clone().into_iter().collect();
        let stored = Stored { cells, last_seq, position: self.core.position, resume, folds, kernel_info: None };
        self.core = Core::restore(facts(), stored, self.now);
    }
}

fn behind(id: &str) -> CellEdit {
    CellEdit { after: Some(Some(id.to_owned())), ..CellEdit::default() }
}

// ---- places ---------------------------------------------------------------------------------------------------------

#[test]
fn cells_stand_where_they_are_put() {
    let mut bench = Bench::new();
    for id in ["a", "b", "c"] {
        bench.add(id, false).unwrap();
    }
    let new = NewCell { id: Some("d".to_owned()), after: Some("a".to_owned()), ..NewCell::default() };
    bench.core.add_cell(bench.now, new, None).unwrap();
    assert_eq!(bench.order(), ["a", "d", "b", "c"]);
    bench.core.edit_cell(bench.now, "c", CellEdit { after: Some(None), ..CellEdit::default() }).unwrap();
    bench.core.edit_cell(bench.now, "a", behind("b")).unwrap();
    assert_eq!(bench.order(), ["c", "d", "b", "a"]);
    assert!(matches!(bench.core.edit_cell(bench.now, "a", behind("x")), Err(Denied::NoCell { .. })));
}

#[test]
fn there_is_always_room_between_two_cells_and_behind_all() {
    let mut bench = Bench::new();
    bench.add("first", false).unwrap();
    let mut expected = vec!["first".to_owned()];
    for number in 0..1200 {
        let (id, at_front) = (format!("c{number}"), number % 2 == 0);
        let after = (!at_front).then(|| expected[0].clone());
        let edit = CellEdit { after: Some(after), ..CellEdit::default() };
        bench.add(&id, false).unwrap();
        bench.core.edit_cell(bench.now, &id, edit).unwrap();
        expected.insert(usize::from(!at_front), id);
    }
    bench.add("last", false).unwrap();
    expected.push("last".to_owned());
    assert_eq!(bench.order(), expected);
}

#[test]
fn after_room_was_made_new_cells_still_come_last() {
    let mut bench = Bench::new();
    bench.add("first", false).unwrap();
    for number in 0..60 {
        let new = NewCell { id: Some(format!("c{number}")), after: Some("first".to_owned()), ..NewCell::default() };
        bench.core.add_cell(bench.now, new, None).unwrap();
    }
    bench.add("last", false).unwrap();
    assert_eq!(bench.order().last(), Some(&"last"));
}

// ---- ids and limits -------------------------------------------------------------------------------------------------

#[test]
fn ids_follow_nbformat() {
    let mut bench = Bench::new();
    for bad in ["", "ä", "a b", "a/b", &"x".repeat(65)] {
        assert!(matches!(bench.add(bad, false), Err(Denied::BadId { .. })), "{bad:?}");
    }
    bench.add("a-B_9", false).unwrap();
    assert!(matches!(bench.add("a-B_9", false), Err(Denied::IdTaken { .. })));
    let made = bench.core.add_cell(bench.now, NewCell::default(), None).unwrap();
    assert_eq!(made.id.len(), 8);
    bench.core.delete_cell(bench.now, "a-B_9").unwrap();
    bench.add("a-B_9", false).unwrap();
}

#[test]
fn the_queue_and_the_notebook_are_bounded() {
    let mut bench = Bench::new();
    for number in 0..10_000 {
        bench.add(&format!("c{number}"), true).unwrap();
    }
    assert!(matches!(bench.add("more", true), Err(Denied::TooMany { limit: 10_000, .. })));
    bench.add("idle", false).unwrap();
    assert!(matches!(bench.core.run_cell(bench.now, "idle", None, None), Err(Denied::TooMany { .. })));
    bench.core.cancel_cell(bench.now, "c500").unwrap();
    bench.core.run_cell(bench.now, "idle", None, None).unwrap();

    let large = |bytes| CellEdit { source: Some("x".repeat(bytes)), ..CellEdit::default() };
    bench.add("a", false).unwrap();
    bench.add("b", false).unwrap();
    bench.core.edit_cell(bench.now, "a", large(150 << 20)).unwrap();
    assert!(matches!(bench.core.edit_cell(bench.now, "b", large(150 << 20)), Err(Denied::TooMany { .. })));
    bench.core.edit_cell(bench.now, "a", large(1)).unwrap();
    bench.core.edit_cell(bench.now, "b", large(150 << 20)).unwrap();
    // What waits for its turn is what a kernel can be sent.
    assert!(matches!(bench.core.edit_cell(bench.now, "c1", large(17 << 20)), Err(Denied::TooLarge { what: "source", .. })));
}

#[test]
fn what_cannot_be_done_is_denied_by_name() {
    let mut bench = Bench::ready();
    let text = NewCell { id: Some("t".to_owned()), cell_type: Some(CellType::Markdown), run: true, ..NewCell::default() };
    assert_eq!(bench.core.add_cell(bench.now, text, None).unwrap().run.phase, CellPhase::Finished, "text is not run");
    assert!(matches!(bench.core.run_cell(bench.now, "t", None, None), Err(Denied::NotCode { .. })));
    bench.run("a");
    bench.add("b", true).unwrap();
    let to_text = CellEdit { cell_type: Some(CellType::Raw), ..CellEdit::default() };
    for (id, phase) in [("a", "running"), ("b", "queued")] {
        let busy = Denied::InProgress { id: id.to_owned(), phase };
        assert_eq!(bench.core.run_cell(bench.now, id, None, None), Err(busy.clone()));
        assert_eq!(bench.core.edit_cell(bench.now, id, to_text.clone()), Err(busy));
    }
    assert!(matches!(bench.core.delete_cell(bench.now, "a"), Err(Denied::InProgress { .. })));
    assert!(matches!(bench.core.cancel_cell(bench.now, "t"), Err(Denied::NotInProgress { .. })));
    assert_eq!(bench.core.input("x").err(), Some(Denied::NotAsking));
    bench.core.delete_cell(bench.now, "b").unwrap();
    let events = bench.out().0.events;
    let told = |wanted: fn(&EventBody) -> bool| events.iter().filter(|event| wanted(&event.body)).count();
    assert_eq!(told(|body| matches!(body, EventBody::Finished(_))), 1, "it was cancelled before it went");
}

// ---- the queue ------------------------------------------------------------------------------------------------------

#[test]
fn a_restart_cancels_what_waits_and_keeps_what_comes_after_it() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.add("b", true).unwrap();
    bench.core.restart(bench.now).unwrap();
    assert_eq!(bench.status("b"), Some(RunStatus::Cancelled));
    bench.add("c", true).unwrap();
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(RunStatus::Interrupted));
    assert_eq!(bench.cell("c").run.phase, CellPhase::Queued, "the old kernel gets nothing more");
    bench.exits(Some(KillReason::Restart));
    bench.starts_again();
    assert_eq!(bench.cell("c").run.phase, CellPhase::Running);
}

#[test]
fn a_death_cancels_what_waits_and_a_new_kernel_is_asked_for() {
    let mut bench = Bench::ready();
    bench.run("a");
    bench.add("b", true).unwrap();
    bench.exits(None);
    assert_eq!((bench.status("a"), bench.status("b")), (Some(RunStatus::KernelDied), Some(RunStatus::Cancelled)));
    assert!(bench.effects().iter().any(|effect| matches!(effect, Effect::RestartKernel(_))));
    assert_eq!(bench.core.state, SessionState::Restarting);
}

#[test]
fn only_deaths_of_its_own_making_end_a_session() {
    let mut bench = Bench::ready();
    for number in 0..6 {
        bench.run(&format!("killed{number}"));
        bench.core.kill(bench.now).unwrap();
        bench.exits(Some(KillReason::Asked));
        bench.starts_again();
    }
    for number in 0..3 {
        bench.run(&format!("crashes{number}"));
        bench.exits(None);
        bench.starts_again();
    }
    assert_eq!(bench.core.state, SessionState::Idle);
    let run = bench.run("good");
    bench.replies(&run);
    for number in 0..4 {
        bench.run(&format!("again{number}"));
        bench.exits(None);
        bench.starts_again();
    }
    assert!(bench.core.is_gone(), "so often in a row, and nothing between");
}

#[test]
fn a_kernel_that_takes_no_request_is_replaced() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.add("b", true).unwrap();
    bench.effects();
    bench.core.submitted(bench.now, &RunId(run), Err(LinkError::Refused("not ready".into())));
    assert_eq!((bench.status("a"), bench.status("b")), (Some(RunStatus::KernelDied), Some(RunStatus::Cancelled)));
    bench.exits(None);
    let restarts = bench.effects().into_iter().filter(|effect| matches!(effect, Effect::RestartKernel(_))).count();
    assert_eq!(restarts, 1, "its death was known by then");
    let run = {
        bench.starts_again();
        bench.run("c")
    };
    bench.add("d", true).unwrap();
    bench.core.submitted(bench.now, &RunId(run), Err(LinkError::TooLarge { size: 1 }));
    assert_eq!((bench.status("c"), bench.cell("d").run.phase), (Some(RunStatus::Error), CellPhase::Running));
}

// ---- outputs --------------------------------------------------------------------------------------------------------

#[test]
fn a_display_is_updated_however_long_ago_its_cell_ran() {
    let mut bench = Bench::ready();
    let show = |msg_type: &'static str| (msg_type, json!({"data": {}, "metadata": {}, "transient": {"display_id": "x"}}));
    for number in 0..50 {
        let run = bench.run(&format!("c{number}"));
        if number == 0 {
            let (msg_type, content) = show("display_data");
            bench.says(Channel::Iopub, &run, msg_type, &content);
        }
        bench.replies(&run);
    }
    bench.out();
    let run = bench.run("last");
    let (msg_type, content) = show("update_display_data");
    bench.says(Channel::Iopub, &run, msg_type, &content);
    let is_update = |body: &EventBody| matches!(body, EventBody::Update { .. });
    let updated = bench.out().0.events.into_iter().find(|event| is_update(&event.body)).unwrap();
    assert_eq!(updated.cell.as_deref(), Some("c0"));
}

#[test]
fn what_the_agent_does_not_cap_is_capped_here() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    for _ in 0..40 {
        bench.prints(&run, &"x".repeat(100_000));
    }
    assert_eq!(bench.core.state, SessionState::Interrupting);
    let (piece, effects) = bench.out();
    assert!(piece.events.iter().map(super::SessionEvent::size).sum::<usize>() < 3 << 20);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Signal { signal: SignalKind::Interrupt, .. })));
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(RunStatus::OutputExceeded));
}

#[test]
fn a_cut_between_a_reply_and_its_outputs_ends_nothing() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.says(Channel::Shell, &run, "execute_reply", &json!({"status": "ok"}));
    bench.core.take(bench.now, LinkEvent::Detached { reason: "cut".to_owned() });
    bench.now.instant += Duration::from_secs(60);
    bench.core.tick(bench.now);
    assert_eq!(bench.cell("a").run.phase, CellPhase::Running);
    bench.seq += 2;
    bench.attach();
    bench.seq -= 2;
    bench.prints(&run, "late");
    bench.says(Channel::Iopub, &run, "status", &json!({"execution_state": "idle"}));
    assert_eq!(bench.status("a"), Some(RunStatus::Ok));
    let bodies: Vec<EventBody> = bench.out().0.events.into_iter().map(|event| event.body).collect();
    let at = |wanted: fn(&EventBody) -> bool| bodies.iter().position(wanted).unwrap();
    let appended = at(|body| matches!(body, EventBody::Append { .. }));
    assert!(appended < at(|body| matches!(body, EventBody::Finished(_))), "the end comes after all outputs");
}

// ---- after a crash --------------------------------------------------------------------------------------------------

#[test]
fn what_a_thread_of_long_ago_prints_is_shown_at_the_last_cell() {
    let mut bench = Bench::ready();
    let mut runs = Vec::new();
    for number in 0..40 {
        let run = bench.run(&format!("c{number}"));
        bench.replies(&run);
        runs.push(run);
    }
    bench.out();
    bench.prints(&runs[39], "own");
    bench.prints(&runs[0], "of long ago");
    bench.says(Channel::Iopub, &runs[0], "clear_output", &json!({"wait": false}));
    bench.prints("nobody's", "x");
    bench.prints(&runs[20], "earlier");
    let (piece, _) = bench.out();
    let told: Vec<(&str, String)> = piece
        .events
        .iter()
        .map(|event| match &event.body {
            EventBody::Append { output, .. } => {
                (event.cell.as_deref().unwrap(), output["text"].as_str().unwrap().to_owned())
            }
            EventBody::Stream { text, .. } => (event.cell.as_deref().unwrap(), text.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [("c39", "own".to_owned()), ("c39", "of long ago".to_owned()), ("c20", "earlier".to_owned())]);
}

#[test]
fn what_a_later_server_cannot_read_costs_the_run_and_not_the_session() {
    let mut bench = Bench::ready();
    bench.run("a");
    bench.add("b", true).unwrap();
    bench.restore(|_| Some("of another version".to_owned()));
    assert_eq!(bench.status("a"), Some(RunStatus::KernelDied));
    bench.attach();
    let run = bench.cell("b").run.run.clone().expect("what waited is run").0;
    bench.replies(&run);
    assert_eq!(bench.status("b"), Some(RunStatus::Ok), "the kernel's life is known again");
}

#[test]
fn a_question_is_still_open_after_a_crash() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.says(Channel::Stdin, &run, "input_request", &json!({"prompt": "?", "password": false}));
    bench.restore(|resume| resume);
    bench.attach();
    bench.effects();
    let (_, message) = bench.core.input("42").unwrap();
    assert_eq!(message.parent().msg_type, "input_request", "the kernel knows its question by its header");
    assert_eq!(message.content_value(), json!({"value": "42"}));
}

#[test]
fn what_is_handed_over_again_is_what_was_begun() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    let edit = CellEdit { source: Some("edited".to_owned()), ..CellEdit::default() };
    bench.core.edit_cell(bench.now, "a", edit).unwrap();
    bench.restore(|resume| resume);
    bench.attach();
    let effects = bench.effects();
    let submitted = effects.iter().find_map(|effect| match effect {
        Effect::Submit { run, message, .. } => Some((run.0.clone(), message.content_value()["code"].clone())),
        _ => None,
    });
    assert_eq!(submitted, Some((run, json!(""))));
}

// ---- signals and questions ------------------------------------------------------------------------------------------

#[test]
fn a_signal_that_a_cut_may_have_lost_is_sent_again() {
    let mut bench = Bench::ready();
    bench.run("a");
    bench.core.kill(bench.now).unwrap();
    bench.core.tick(bench.now);
    bench.effects();
    bench.core.take(bench.now, LinkEvent::Detached { reason: "cut".to_owned() });
    bench.now.instant += Duration::from_secs(10);
    bench.attach();
    bench.core.tick(bench.now);
    let is_kill = |effect: &Effect| matches!(effect, Effect::Signal { signal: SignalKind::Kill, .. });
    assert!(bench.effects().iter().any(is_kill));
    bench.now.instant += Duration::from_secs(10);
    bench.core.tick(bench.now);
    assert!(!bench.core.is_gone(), "it has its time anew");
}

#[test]
fn an_answer_from_before_a_run_does_not_end_it() {
    let mut bench = Bench::ready();
    let from = Seq(bench.seq + 1);
    bench.seq += 3;
    bench.core.take(bench.now, LinkEvent::Lost { from, to: Seq(bench.seq) });
    let effects = bench.effects();
    let [Effect::Send { channel: Channel::Shell, message, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    let run = bench.run("a");
    bench.says(Channel::Shell, &message.header().msg_id, "kernel_info_reply", &json!({}));
    assert_eq!(bench.cell("a").run.phase, CellPhase::Running);
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(RunStatus::Ok));
}

#[test]
fn what_a_dead_kernel_was_asked_is_answered_with_a_no() {
    let mut bench = Bench::ready();
    let asked = bench.core.ask_kernel(bench.now, "complete_request", &json!({})).unwrap();
    bench.effects();
    bench.exits(None);
    let is_no = |effect: &Effect| matches!(effect, Effect::Answer { question, content: Err(_) } if *question == asked);
    assert!(bench.effects().iter().any(is_no));
}

#[test]
fn questions_are_asked_in_a_subshell_where_the_kernel_has_them() {
    let mut bench = Bench::new();
    bench.attach();
    bench.kernel(KernelEvent::Ready { info: json!({"supported_features": ["kernel subshells"]}).to_string() });
    bench.out();
    let sent = |effects: Vec<Effect>| -> Vec<(Channel, String, Value)> {
        let messages = effects.into_iter().filter_map(|effect| match effect {
            Effect::Send { channel, message, .. } => Some((channel, message)),
            _ => None,
        });
        let header = |message: &Message| serde_json::from_slice::<Value>(&message.header).unwrap();
        messages.map(|(to, message)| (to, message.header().msg_id, header(&message)["subshell_id"].clone())).collect()
    };
    let first = bench.core.ask_kernel(bench.now, "complete_request", &json!({})).unwrap();
    let asked = sent(bench.effects());
    assert_eq!((asked.len(), asked[0].0), (1, Channel::Control), "the subshell first");
    let second = bench.core.ask_kernel(bench.now, "inspect_request", &json!({})).unwrap();
    assert!(sent(bench.effects()).is_empty());
    bench.says(Channel::Control, &asked[0].1, "create_subshell_reply", &json!({"status": "ok", "subshell_id": "s1"}));
    let in_subshell = |id: String| (Channel::Shell, id, json!("s1"));
    assert_eq!(sent(bench.effects()), [in_subshell(first), in_subshell(second)]);
    let third = bench.core.ask_kernel(bench.now, "complete_request", &json!({})).unwrap();
    assert_eq!(sent(bench.effects()), [in_subshell(third)]);
    // The next kernel has another.
    bench.exits(None);
    bench.starts_again();
    bench.effects();
    let plain = bench.core.ask_kernel(bench.now, "complete_request", &json!({})).unwrap();
    assert_eq!(sent(bench.effects()), [(Channel::Shell, plain, Value::Null)], "this one has none");
}

#[test]
fn a_kernel_that_does_not_make_its_subshell_is_asked_in_its_main_shell() {
    let mut bench = Bench::new();
    bench.attach();
    bench.kernel(KernelEvent::Ready { info: json!({"supported_features": ["kernel subshells"]}).to_string() });
    let question = bench.core.ask_kernel(bench.now, "complete_request", &json!({})).unwrap();
    bench.effects();
    bench.now.instant = bench.core.next_deadline().unwrap();
    bench.core.tick(bench.now);
    let sent = bench.effects().into_iter().find_map(|effect| match effect {
        Effect::Send { channel: Channel::Shell, message, .. } => Some(message.header().msg_id),
        _ => None,
    });
    assert_eq!(sent, Some(question));
    assert_eq!(bench.core.next_deadline(), None);
}

#[test]
fn a_cell_that_fails_cancels_its_group_and_nothing_else() {
    let mut bench = Bench::ready();
    let together = |allow_error| RunOptions { group: Some("g".to_owned()), allow_error, ..RunOptions::default() };
    for id in ["a", "b", "c", "alone"] {
        bench.add(id, false).unwrap();
    }
    let runs = |ids: &[&str], allow_error| ids.iter().map(|id| ((*id).to_owned(), together(allow_error))).collect();
    assert!(matches!(bench.core.run_cells(bench.now, runs(&["a", "nowhere"], false), None), Err(Denied::NoCell { .. })));
    assert_eq!(bench.cell("a").run.phase, CellPhase::Finished, "all are queued, or none");
    bench.core.run_cells(bench.now, runs(&["a", "b"], true), None).unwrap();
    bench.core.run_cells(bench.now, runs(&["c"], false), None).unwrap();
    bench.core.run_cell(bench.now, "alone", None, None).unwrap();
    let fail = |bench: &mut Bench, id: &str| {
        let run = bench.cell(id).run.run.clone().unwrap().0;
        bench.says(Channel::Iopub, &run, "status", &json!({"execution_state": "idle"}));
        bench.says(Channel::Shell, &run, "execute_reply", &json!({"status": "error", "ename": "E", "evalue": ""}));
    };
    fail(&mut bench, "a");
    assert_eq!(bench.cell("b").run.phase, CellPhase::Running, "an allowed error leaves the rest alone");
    bench.core.interrupt(bench.now).unwrap();
    fail(&mut bench, "b");
    assert_eq!(bench.status("c"), Some(RunStatus::Cancelled), "an interrupt does not");
    assert_eq!(bench.cell("alone").run.phase, CellPhase::Running);
}

#[test]
fn cells_are_replaced_with_their_outputs() {
    let mut bench = Bench::ready();
    bench.add("old", false).unwrap();
    let output = json!({"output_type": "stream", "name": "stdout", "text": "x".repeat(300 << 10)});
    let new = NewCell { id: Some("new".to_owned()), outputs: vec![output], ..NewCell::default() };
    bench.core.replace_cells(bench.now, vec![new.clone()], String::new()).unwrap();
    assert_eq!(bench.order(), ["new"]);
    let told = bench
        .out()
        .0
        .events
        .into_iter()
        .filter(|event| matches!(event.body, EventBody::Append { .. } | EventBody::Stream { .. }));
    assert_eq!(told.count(), 2, "long text comes in pieces");
    bench.run("runs");
    assert!(matches!(bench.core.replace_cells(bench.now, vec![new], String::new()), Err(Denied::InProgress { .. })));
}

#[test]
fn metadata_is_counted() {
    let mut bench = Bench::new();
    let metadata = Map::from_iter([("k".to_owned(), Value::from("x".repeat(300 << 20)))]);
    let new = NewCell { metadata, ..NewCell::default() };
    assert!(matches!(bench.core.add_cell(bench.now, new, None), Err(Denied::TooMany { .. })));
}

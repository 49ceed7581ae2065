//! What the simulation does not reach: places, limits, ids, and single steps whose outcome should be named.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::bench::Bench;
use super::{Denied, Effect, Query};
use crate::agent_protocol::{KernelEvent, KillReason, SignalKind};
use crate::ids::{ExecutionId, Seq};
use crate::link::{LinkError, LinkEvent};
use crate::session::transaction::{EventBody, OutputState, SessionEvent};
use crate::session::{CellEdit, CellPhase, CellType, ExecutionOptions, ExecutionStatus, NewCell, SessionState};
use crate::wire::{Channel, Message};

fn complete() -> Query {
    Query::Complete { code: String::new(), cursor: 0 }
}

fn behind(id: &str) -> CellEdit {
    CellEdit { after: Some(Some(id.to_owned())), ..CellEdit::default() }
}

// ---- places ---------------------------------------------------------------------------------------------------------

#[test]
fn cells_keep_the_order_of_insertion() {
    let mut bench = Bench::new();
    for id in ["a", "b", "c"] {
        bench.add(id, false).unwrap();
    }
    let new = NewCell { id: Some("d".to_owned()), after: Some("a".to_owned()), ..NewCell::default() };
    bench.machine.add_cell(bench.cx, new, None).unwrap();
    assert_eq!(bench.order(), ["a", "d", "b", "c"]);
    bench.machine.edit_cell(bench.cx, "c", CellEdit { after: Some(None), ..CellEdit::default() }).unwrap();
    bench.machine.edit_cell(bench.cx, "a", behind("b")).unwrap();
    assert_eq!(bench.order(), ["c", "d", "b", "a"]);
    assert!(matches!(bench.machine.edit_cell(bench.cx, "a", behind("x")), Err(Denied::NoCell { .. })));
}

#[test]
fn insertions_never_run_out_of_places() {
    let mut bench = Bench::new();
    bench.add("first", false).unwrap();
    let mut expected = vec!["first".to_owned()];
    for number in 0..1200 {
        let (id, at_front) = (format!("c{number}"), number % 2 == 0);
        let after = (!at_front).then(|| expected[0].clone());
        let edit = CellEdit { after: Some(after), ..CellEdit::default() };
        bench.add(&id, false).unwrap();
        bench.machine.edit_cell(bench.cx, &id, edit).unwrap();
        expected.insert(usize::from(!at_front), id);
    }
    bench.add("last", false).unwrap();
    expected.push("last".to_owned());
    assert_eq!(bench.order(), expected);
}

#[test]
fn appended_cell_is_last_after_renumbering() {
    let mut bench = Bench::new();
    bench.add("first", false).unwrap();
    for number in 0..60 {
        let new = NewCell { id: Some(format!("c{number}")), after: Some("first".to_owned()), ..NewCell::default() };
        bench.machine.add_cell(bench.cx, new, None).unwrap();
    }
    bench.add("last", false).unwrap();
    assert_eq!(bench.order().last(), Some(&"last"));
}

// ---- ids and limits -------------------------------------------------------------------------------------------------

#[test]
fn cell_ids_follow_nbformat() {
    let mut bench = Bench::new();
    for bad in ["", "ä", "a b", "a/b", &"x".repeat(65)] {
        assert!(matches!(bench.add(bad, false), Err(Denied::BadId { .. })), "{bad:?}");
    }
    bench.add("a-B_9", false).unwrap();
    assert!(matches!(bench.add("a-B_9", false), Err(Denied::IdTaken { .. })));
    let made = bench.machine.add_cell(bench.cx, NewCell::default(), None).unwrap();
    assert_eq!(made.id.len(), 8);
    bench.machine.delete_cell(bench.cx, "a-B_9").unwrap();
    bench.add("a-B_9", false).unwrap();
}

#[test]
fn queue_and_notebook_are_bounded() {
    let mut bench = Bench::new();
    for number in 0..10_000 {
        bench.add(&format!("c{number}"), true).unwrap();
    }
    assert!(matches!(bench.add("more", true), Err(Denied::TooMany { limit: 10_000, .. })));
    bench.add("idle", false).unwrap();
    assert!(matches!(bench.machine.run_cell(bench.cx, "idle", None, None), Err(Denied::TooMany { .. })));
    bench.machine.cancel_cell(bench.cx, "c500").unwrap();
    bench.machine.run_cell(bench.cx, "idle", None, None).unwrap();

    let large = |bytes| CellEdit { source: Some("x".repeat(bytes)), ..CellEdit::default() };
    bench.add("a", false).unwrap();
    bench.add("b", false).unwrap();
    bench.machine.edit_cell(bench.cx, "a", large(150 << 20)).unwrap();
    assert!(matches!(bench.machine.edit_cell(bench.cx, "b", large(150 << 20)), Err(Denied::TooMany { .. })));
    bench.machine.edit_cell(bench.cx, "a", large(1)).unwrap();
    bench.machine.edit_cell(bench.cx, "b", large(150 << 20)).unwrap();
    // What waits for its turn is what a kernel can be sent.
    assert!(matches!(
        bench.machine.edit_cell(bench.cx, "c1", large(17 << 20)),
        Err(Denied::TooLarge { what: "source", .. })
    ));
}

#[test]
fn impossible_commands_are_denied_by_name() {
    let mut bench = Bench::ready();
    let text = NewCell { id: Some("t".to_owned()), cell_type: Some(CellType::Markdown), run: true, ..NewCell::default() };
    assert_eq!(
        bench.machine.add_cell(bench.cx, text, None).unwrap().execution.phase,
        CellPhase::Finished,
        "text is not run"
    );
    assert!(matches!(bench.machine.run_cell(bench.cx, "t", None, None), Err(Denied::NotCode { .. })));
    bench.run("a");
    bench.add("b", true).unwrap();
    let to_text = CellEdit { cell_type: Some(CellType::Raw), ..CellEdit::default() };
    for (id, phase) in [("a", "running"), ("b", "queued")] {
        let busy = Denied::InProgress { id: id.to_owned(), phase };
        assert_eq!(bench.machine.run_cell(bench.cx, id, None, None), Err(busy.clone()));
        assert_eq!(bench.machine.edit_cell(bench.cx, id, to_text.clone()), Err(busy));
    }
    assert!(matches!(bench.machine.delete_cell(bench.cx, "a"), Err(Denied::InProgress { .. })));
    assert!(matches!(bench.machine.cancel_cell(bench.cx, "t"), Err(Denied::NotInProgress { .. })));
    assert_eq!(bench.machine.input(bench.cx, "x").err(), Some(Denied::NotAsking));
    bench.machine.delete_cell(bench.cx, "b").unwrap();
    let events = bench.out().0.events;
    let told = |wanted: fn(&EventBody) -> bool| events.iter().filter(|event| wanted(&event.body)).count();
    assert_eq!(told(|body| matches!(body, EventBody::Finished(_))), 1, "it was cancelled before it went");
}

// ---- the queue ------------------------------------------------------------------------------------------------------

#[test]
fn restart_cancels_queue_and_keeps_later_cells() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.add("b", true).unwrap();
    bench.machine.restart(bench.cx).unwrap();
    assert_eq!(bench.status("b"), Some(ExecutionStatus::Cancelled));
    bench.add("c", true).unwrap();
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(ExecutionStatus::Interrupted));
    assert_eq!(bench.cell("c").execution.phase, CellPhase::Queued, "the old kernel gets nothing more");
    bench.exits(Some(KillReason::Restart));
    bench.starts_again();
    assert_eq!(bench.cell("c").execution.phase, CellPhase::Running);
}

#[test]
fn kernel_death_cancels_queue_and_restarts() {
    let mut bench = Bench::ready();
    bench.run("a");
    bench.add("b", true).unwrap();
    bench.exits(None);
    assert_eq!(
        (bench.status("a"), bench.status("b")),
        (Some(ExecutionStatus::KernelDied), Some(ExecutionStatus::Cancelled))
    );
    assert!(bench.effects().iter().any(|effect| matches!(effect, Effect::RestartKernel(_))));
    assert_eq!(*bench.machine.state(), SessionState::Restarting);
}

#[test]
fn only_unprovoked_deaths_end_a_session() {
    let mut bench = Bench::ready();
    for number in 0..6 {
        bench.run(&format!("killed{number}"));
        bench.machine.kill(bench.cx).unwrap();
        bench.exits(Some(KillReason::Requested));
        bench.starts_again();
    }
    for number in 0..3 {
        bench.run(&format!("crashes{number}"));
        bench.exits(None);
        bench.starts_again();
    }
    assert_eq!(*bench.machine.state(), SessionState::Idle);
    let run = bench.run("good");
    bench.replies(&run);
    for number in 0..4 {
        bench.run(&format!("again{number}"));
        bench.exits(None);
        bench.starts_again();
    }
    assert!(bench.machine.is_gone(), "so often in a row, and nothing between");
}

#[test]
fn kernel_that_rejects_requests_is_replaced() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.add("b", true).unwrap();
    bench.effects();
    bench.machine.submitted(bench.cx, &ExecutionId(run), Err(LinkError::Refused("not ready".into())));
    assert_eq!(
        (bench.status("a"), bench.status("b")),
        (Some(ExecutionStatus::KernelDied), Some(ExecutionStatus::Cancelled))
    );
    bench.exits(None);
    let restarts = bench.effects().into_iter().filter(|effect| matches!(effect, Effect::RestartKernel(_))).count();
    assert_eq!(restarts, 1, "its death was known by then");
    let run = {
        bench.starts_again();
        bench.run("c")
    };
    bench.add("d", true).unwrap();
    bench.machine.submitted(bench.cx, &ExecutionId(run), Err(LinkError::TooLarge { size: 1 }));
    assert_eq!((bench.status("c"), bench.cell("d").execution.phase), (Some(ExecutionStatus::Error), CellPhase::Running));
}

// ---- outputs --------------------------------------------------------------------------------------------------------

#[test]
fn display_is_updated_long_after_its_cell() {
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
fn output_is_capped_without_the_agent() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    for _ in 0..40 {
        bench.prints(&run, &"x".repeat(100_000));
    }
    assert_eq!(*bench.machine.state(), SessionState::Interrupting);
    let (transaction, effects) = bench.out();
    assert!(transaction.events.iter().map(SessionEvent::size).sum::<usize>() < 3 << 20);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Signal { signal: SignalKind::Interrupt, .. })));
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(ExecutionStatus::OutputExceeded));
}

/// Each message rewrites up to a hundred lines with a few bytes. What is stored counts, not what was sent.
#[test]
fn text_changed_by_the_cursor_is_capped() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.prints(&run, &format!("{}\n", "x".repeat(1000)).repeat(99));
    for _ in 0..100 {
        bench.prints(&run, "\u{1b}[99Ay\u{1b}[99B");
    }
    assert_eq!(*bench.machine.state(), SessionState::Interrupting);
    let stored = bench.out().0.events.iter().map(SessionEvent::size).sum::<usize>();
    assert!(stored < 3 << 20, "{stored}");
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(ExecutionStatus::OutputExceeded));
}

#[test]
fn cut_between_reply_and_outputs_ends_nothing() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.says(Channel::Shell, &run, "execute_reply", &json!({"status": "ok"}));
    bench.machine.take(bench.cx, LinkEvent::Detached { reason: "cut".to_owned() });
    bench.cx.instant += Duration::from_secs(60);
    bench.machine.tick(bench.cx);
    assert_eq!(bench.cell("a").execution.phase, CellPhase::Running);
    bench.seq += 2;
    bench.attach();
    bench.seq -= 2;
    bench.prints(&run, "late");
    bench.says(Channel::Iopub, &run, "status", &json!({"execution_state": "idle"}));
    assert_eq!(bench.status("a"), Some(ExecutionStatus::Ok));
    let bodies: Vec<EventBody> = bench.out().0.events.into_iter().map(|event| event.body).collect();
    let at = |wanted: fn(&EventBody) -> bool| bodies.iter().position(wanted).unwrap();
    let appended = at(|body| matches!(body, EventBody::Append { .. }));
    assert!(appended < at(|body| matches!(body, EventBody::Finished(_))), "the end comes after all outputs");
}

// ---- after a crash --------------------------------------------------------------------------------------------------

#[test]
fn old_thread_output_goes_to_last_cell() {
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
    let (transaction, _) = bench.out();
    let texts: Vec<(&str, String)> = transaction
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
    assert_eq!(texts, [("c39", "own".to_owned()), ("c39", "of long ago".to_owned()), ("c20", "earlier".to_owned())]);
}

#[test]
fn unreadable_state_costs_the_execution_only() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.prints(&run, "of a row that is of no use then");
    bench.add("b", true).unwrap();
    bench.restore(|_| Some("of another version".to_owned()));
    let is_removed = |state: &OutputState| state.json.is_none();
    assert!(bench.out().0.outputs.iter().any(is_removed), "else every later server would find it unreadable");
    assert_eq!(bench.status("a"), Some(ExecutionStatus::KernelDied));
    bench.attach();
    let run = bench.cell("b").execution.id.clone().expect("what waited is run").0;
    bench.replies(&run);
    assert_eq!(bench.status("b"), Some(ExecutionStatus::Ok), "the kernel's life is known again");
}

#[test]
fn input_request_is_open_after_a_crash() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    bench.says(Channel::Stdin, &run, "input_request", &json!({"prompt": "?", "password": false}));
    bench.restore(|resume| resume);
    bench.attach();
    bench.effects();
    let (_, message) = bench.machine.input(bench.cx, "42").unwrap();
    assert_eq!(message.parent().msg_type, "input_request", "the kernel knows its question by its header");
    assert_eq!(message.content_value(), json!({"value": "42", "status": "ok"}));
}

#[test]
fn resubmitted_source_is_the_one_begun() {
    let mut bench = Bench::ready();
    let run = bench.run("a");
    let edit = CellEdit { source: Some("edited".to_owned()), ..CellEdit::default() };
    bench.machine.edit_cell(bench.cx, "a", edit).unwrap();
    bench.restore(|resume| resume);
    bench.attach();
    let effects = bench.effects();
    let submitted = effects.iter().find_map(|effect| match effect {
        Effect::Submit { execution, message, .. } => Some((execution.0.clone(), message.content_value()["code"].clone())),
        _ => None,
    });
    assert_eq!(submitted, Some((run, json!(""))));
}

// ---- signals and questions ------------------------------------------------------------------------------------------

#[test]
fn signal_is_repeated_after_a_cut() {
    let mut bench = Bench::ready();
    bench.run("a");
    bench.machine.kill(bench.cx).unwrap();
    bench.machine.tick(bench.cx);
    bench.effects();
    bench.machine.take(bench.cx, LinkEvent::Detached { reason: "cut".to_owned() });
    bench.cx.instant += Duration::from_secs(10);
    bench.attach();
    bench.machine.tick(bench.cx);
    let is_kill = |effect: &Effect| matches!(effect, Effect::Signal { signal: SignalKind::Kill, .. });
    assert!(bench.effects().iter().any(is_kill));
    bench.cx.instant += Duration::from_secs(10);
    bench.machine.tick(bench.cx);
    assert!(!bench.machine.is_gone(), "it has its time anew");
}

#[test]
fn earlier_probe_answer_does_not_end_execution() {
    let mut bench = Bench::ready();
    let from = Seq(bench.seq + 1);
    bench.seq += 3;
    bench.machine.take(bench.cx, LinkEvent::Lost { from, to: Seq(bench.seq) });
    let effects = bench.effects();
    let [Effect::Send { channel: Channel::Shell, message, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    let run = bench.run("a");
    bench.says(Channel::Shell, &message.header().msg_id, "kernel_info_reply", &json!({}));
    assert_eq!(bench.cell("a").execution.phase, CellPhase::Running);
    bench.replies(&run);
    assert_eq!(bench.status("a"), Some(ExecutionStatus::Ok));
}

#[test]
fn requests_to_dead_kernel_are_denied() {
    let mut bench = Bench::ready();
    let asked = bench.machine.query(bench.cx, &complete()).unwrap();
    bench.effects();
    bench.exits(None);
    let is_no = |effect: &Effect| matches!(effect, Effect::Answer { request, content: Err(_) } if *request == asked);
    assert!(bench.effects().iter().any(is_no));
}

#[test]
fn requests_use_the_subshell_if_supported() {
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
    let first = bench.machine.query(bench.cx, &complete()).unwrap();
    let asked = sent(bench.effects());
    assert_eq!((asked.len(), asked[0].0), (1, Channel::Control), "the subshell first");
    let second = bench.machine.query(bench.cx, &complete()).unwrap();
    assert!(sent(bench.effects()).is_empty());
    bench.says(Channel::Control, &asked[0].1, "create_subshell_reply", &json!({"status": "ok", "subshell_id": "s1"}));
    let in_subshell = |id: String| (Channel::Shell, id, json!("s1"));
    assert_eq!(sent(bench.effects()), [in_subshell(first), in_subshell(second)]);
    let third = bench.machine.query(bench.cx, &complete()).unwrap();
    assert_eq!(sent(bench.effects()), [in_subshell(third)]);
    // The next kernel has another.
    bench.exits(None);
    bench.starts_again();
    bench.effects();
    let plain = bench.machine.query(bench.cx, &complete()).unwrap();
    assert_eq!(sent(bench.effects()), [(Channel::Shell, plain, Value::Null)], "this one has none");
}

#[test]
fn missing_subshell_falls_back_to_main_shell() {
    let mut bench = Bench::new();
    bench.attach();
    bench.kernel(KernelEvent::Ready { info: json!({"supported_features": ["kernel subshells"]}).to_string() });
    let question = bench.machine.query(bench.cx, &complete()).unwrap();
    bench.effects();
    bench.cx.instant = bench.machine.next_deadline().unwrap();
    bench.machine.tick(bench.cx);
    let sent = bench.effects().into_iter().find_map(|effect| match effect {
        Effect::Send { channel: Channel::Shell, message, .. } => Some(message.header().msg_id),
        _ => None,
    });
    assert_eq!(sent, Some(question));
    assert_eq!(bench.machine.next_deadline(), None);
}

#[test]
fn failed_cell_cancels_only_its_group() {
    let mut bench = Bench::ready();
    let together =
        |allow_error| ExecutionOptions { group: Some("g".to_owned()), allow_error, ..ExecutionOptions::default() };
    for id in ["a", "b", "c", "alone"] {
        bench.add(id, false).unwrap();
    }
    let runs = |ids: &[&str], allow_error| ids.iter().map(|id| ((*id).to_owned(), together(allow_error))).collect();
    assert!(matches!(bench.machine.run_cells(bench.cx, runs(&["a", "nowhere"], false), None), Err(Denied::NoCell { .. })));
    assert_eq!(bench.cell("a").execution.phase, CellPhase::Finished, "all are queued, or none");
    bench.machine.run_cells(bench.cx, runs(&["a", "b"], true), None).unwrap();
    bench.machine.run_cells(bench.cx, runs(&["c"], false), None).unwrap();
    bench.machine.run_cell(bench.cx, "alone", None, None).unwrap();
    let fail = |bench: &mut Bench, id: &str| {
        let run = bench.cell(id).execution.id.clone().unwrap().0;
        bench.says(Channel::Iopub, &run, "status", &json!({"execution_state": "idle"}));
        bench.says(Channel::Shell, &run, "execute_reply", &json!({"status": "error", "ename": "E", "evalue": ""}));
    };
    fail(&mut bench, "a");
    assert_eq!(bench.cell("b").execution.phase, CellPhase::Running, "an allowed error leaves the rest alone");
    bench.machine.interrupt(bench.cx).unwrap();
    fail(&mut bench, "b");
    assert_eq!(bench.status("c"), Some(ExecutionStatus::Cancelled), "an interrupt does not");
    assert_eq!(bench.cell("alone").execution.phase, CellPhase::Running);
}

#[test]
fn replaced_cells_keep_their_outputs() {
    let mut bench = Bench::ready();
    bench.add("old", false).unwrap();
    let output = json!({"output_type": "stream", "name": "stdout", "text": "x".repeat(300 << 10)});
    let new = NewCell { id: Some("new".to_owned()), outputs: vec![output], ..NewCell::default() };
    bench.machine.replace_cells(bench.cx, vec![new.clone()], String::new()).unwrap();
    assert_eq!(bench.order(), ["new"]);
    let told = bench
        .out()
        .0
        .events
        .into_iter()
        .filter(|event| matches!(event.body, EventBody::Append { .. } | EventBody::Stream { .. }));
    assert_eq!(told.count(), 2, "long text comes in pieces");
    bench.run("runs");
    assert!(matches!(bench.machine.replace_cells(bench.cx, vec![new], String::new()), Err(Denied::InProgress { .. })));
}

#[test]
fn metadata_counts_against_the_limit() {
    let mut bench = Bench::new();
    let metadata = Map::from_iter([("k".to_owned(), Value::from("x".repeat(300 << 20)))]);
    let new = NewCell { metadata, ..NewCell::default() };
    assert!(matches!(bench.machine.add_cell(bench.cx, new, None), Err(Denied::TooMany { .. })));
}

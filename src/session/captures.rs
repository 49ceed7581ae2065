//! Output widgets (`with out:`), as far as a session without a browser can have them: what one catches is shown in the cell that shows
//! the widget.
//!
//! The kernel leaves it to its front end to put outputs into such a widget: it names the run whose outputs it wants, by a `comm`
//! message. What is caught is folded as the outputs of a cell of its own, whose places are then places among the outputs of the cell that
//! shows the widget; before any does, of the one that runs. A place that is cleared shows an empty text until something else is put there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::core::Core;
use super::messages::rest_of_stream;
use super::piece::EventBody;
use super::run::Now;
use crate::output::{CellKey, Change, MAX_ID};
use crate::wire::Message;

/// Output widgets of one kernel that are followed. What others would catch is shown where it is made.
const MOST: usize = 200;
/// Places of one widget that are known, and can be cleared.
const PLACES: usize = 256;
/// Where their numbers in the fold begin: no cell's is as large.
const FIRST: u32 = 1 << 31;
/// What marks an output that was cleared and whose place is kept: no file has it, and no kernel's output.
pub const CLEARED: &str = "cellkeep_cleared";
/// What shows a widget.
const VIEW: &str = "application/vnd.jupyter.widget-view+json";

/// The Output widgets of a kernel.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Captures {
    widgets: BTreeMap<String, Capture>,
    /// Runs whose outputs are caught, and the widget that does; the last one gets them.
    catching: Vec<(String, String)>,
    made: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Capture {
    /// Its outputs, in the fold.
    key: CellKey,
    /// The cell that shows it.
    shown_in: Option<u32>,
    /// Where its outputs are: in which cell, and there by their order in the widget.
    cell: Option<u32>,
    places: Vec<usize>,
    /// The last of them, where there are more than are known.
    last: Option<(usize, usize)>,
}

impl Capture {
    fn place(&self, at: usize) -> Option<usize> {
        let last = self.last.filter(|(last, _)| *last == at).map(|(_, place)| place);
        self.places.get(at).copied().or(last)
    }

    fn is_in(&self, cell: u32) -> bool {
        self.shown_in == Some(cell) || self.cell == Some(cell)
    }

    fn leave(&mut self) {
        (self.cell, self.last) = (None, None);
        self.places.clear();
    }
}

impl Captures {
    /// Where in the fold the outputs of a run go.
    fn catcher(&self, run: &str) -> Option<CellKey> {
        let (_, id) = self.catching.iter().rev().find(|(caught, _)| caught == run)?;
        self.widgets.get(id).map(|capture| capture.key)
    }

    fn by_key(&mut self, key: CellKey) -> Option<&mut Capture> {
        if key.0 < FIRST { None } else { self.widgets.values_mut().find(|capture| capture.key == key) }
    }

    /// Whether outputs of the cell can still be changed by one.
    pub fn are_in(&self, cell: u32) -> bool {
        self.widgets.values().any(|capture| capture.is_in(cell))
    }

    fn open(&mut self, id: &str) {
        if self.widgets.len() < MOST && !self.widgets.contains_key(id) {
            let key = CellKey(FIRST | self.made);
            self.made = self.made.wrapping_add(1) % FIRST;
            let capture = Capture { key, shown_in: None, cell: None, places: Vec::new(), last: None };
            self.widgets.insert(id.to_owned(), capture);
        }
    }

    /// A widget begins to catch what a run says, or (an empty id) ends that.
    fn catch(&mut self, id: &str, run: &str) {
        if !run.is_empty() {
            if self.catching.len() < MOST {
                self.catching.push((run.to_owned(), id.to_owned()));
            }
        } else if let Some(at) = self.catching.iter().rposition(|(_, widget)| widget == id) {
            self.catching.remove(at);
        }
    }
}

/// Whether a widget that is opened is an Output widget.
fn is_output_widget(content: &Value) -> bool {
    let state = &content["data"]["state"];
    content["target_name"] == "jupyter.widget"
        && state["_model_module"] == "@jupyter-widgets/output"
        && state["_model_name"] == "OutputModel"
}

impl Core {
    /// Takes in what a widget's own message says of catching outputs.
    pub(super) fn capture_comm(&mut self, msg_type: &str, content: &Value) {
        let fits = |id: &&str| id.len() <= MAX_ID;
        let Some(id) = content["comm_id"].as_str().filter(fits) else { return };
        match msg_type {
            "comm_open" if is_output_widget(content) => self.captures.open(id),
            "comm_close" => return self.end_capture(id),
            _ => {}
        }
        if let Some(run) = content["data"]["state"]["msg_id"].as_str().filter(fits)
            && self.captures.widgets.contains_key(id)
        {
            self.captures.catch(id, run);
        }
    }

    /// Where in the fold a message of a cell belongs. Also notes which cell shows a widget.
    pub(super) fn folded_as(&mut self, number: u32, msg_type: &str, message: &Message) -> CellKey {
        if self.captures.widgets.is_empty() {
            return CellKey(number);
        }
        let catcher = self.captures.catcher(&message.parent().msg_id);
        if matches!(msg_type, "display_data" | "execute_result") {
            let cell = catcher.and_then(|key| self.captures.by_key(key)?.cell).unwrap_or(number);
            self.note_view(cell, message);
        }
        catcher.unwrap_or(CellKey(number))
    }

    fn note_view(&mut self, cell: u32, message: &Message) {
        // It is read once more only if it may show a widget.
        if !message.content.windows(VIEW.len()).any(|text| text == VIEW.as_bytes()) {
            return;
        }
        let content = message.content_value();
        let Some(capture) = content["data"][VIEW]["model_id"].as_str().and_then(|id| self.captures.widgets.get_mut(id))
        else {
            return;
        };
        let before = capture.shown_in.replace(cell);
        if capture.cell.is_some_and(|other| other != cell) {
            // What it has caught elsewhere stays there.
            capture.leave();
            self.fold.start(capture.key);
        }
        before.into_iter().for_each(|cell| self.settle(cell));
    }

    /// An output is about to be caught. What the cell that will show it wants cleared goes before it is folded, also what was caught there:
    /// its places are then counted anew.
    pub(super) fn clear_before_catching(&mut self, now: Now, from: u32, key: CellKey) {
        let Some(capture) = self.captures.by_key(key) else { return };
        let cell = CellKey(capture.cell.or(capture.shown_in).unwrap_or(from));
        for change in self.fold.clear_pending(cell) {
            self.write_change(now, from, change);
        }
    }

    /// Writes down what has changed in a widget. Gives back what is about no widget.
    pub(super) fn write_captured(&mut self, now: Now, from: u32, change: Change) -> Option<Change> {
        let key = match &change {
            Change::Append { cell, .. } | Change::Stream { cell, .. } | Change::Clear { cell } => *cell,
            Change::Update { .. } => return Some(change),
        };
        let Some(capture) = self.captures.by_key(key) else { return Some(change) };
        let cell = *capture.cell.get_or_insert(capture.shown_in.unwrap_or(from));
        match change {
            Change::Append { index: at, output, .. } => self.put_captured(now, cell, key, at, output),
            Change::Stream { index: at, name, keep, text, grows, .. } => {
                if let Some(index) = capture.place(at) {
                    self.write_text(now, cell, EventBody::Stream { index, name, keep, text, grows });
                }
            }
            Change::Clear { .. } => {
                for index in capture.places.clone() {
                    let output = json!({"output_type": "stream", "name": "stdout", "text": "", CLEARED: true});
                    self.event(now, Some(cell), EventBody::Update { index, output });
                }
            }
            Change::Update { .. } => {}
        }
        None
    }

    /// Puts an output into a place that was cleared, or into a new one.
    fn put_captured(&mut self, now: Now, cell: u32, key: CellKey, at: usize, mut output: Value) {
        let rest = rest_of_stream(&mut output);
        let place = self.captures.by_key(key).and_then(|capture| capture.place(at));
        let index = match place {
            Some(index) => {
                self.event(now, Some(cell), EventBody::Update { index, output });
                index
            }
            None => {
                let index = self.fold.reserve(CellKey(cell));
                if let Some(capture) = self.captures.by_key(key) {
                    capture.cell = Some(cell);
                    if capture.places.len() == at && at < PLACES {
                        capture.places.push(index);
                    } else {
                        capture.last = Some((at, index));
                    }
                }
                self.event(now, Some(cell), EventBody::Append { index, output });
                index
            }
        };
        if let Some((name, keep, text)) = rest {
            self.write_text(now, cell, EventBody::Stream { index, name, keep, text, grows: true });
        }
    }

    /// A place in the fold as a cell's. `None`: it is in a widget, and shown nowhere any more.
    pub(super) fn shown_place(&mut self, cell: CellKey, index: usize) -> Option<(u32, usize)> {
        if cell.0 < FIRST {
            return Some((cell.0, index));
        }
        let capture = self.captures.by_key(cell)?;
        Some((capture.cell?, capture.place(index)?))
    }

    /// The outputs of a cell are gone, those of widgets among them.
    pub(super) fn captures_leave(&mut self, cell: u32) {
        for capture in self.captures.widgets.values_mut().filter(|capture| capture.is_in(cell)) {
            if capture.cell == Some(cell) {
                capture.leave();
                self.fold.start(capture.key);
            }
            capture.shown_in.take_if(|shown_in| *shown_in == cell);
        }
    }

    fn end_capture(&mut self, id: &str) {
        let Some(capture) = self.captures.widgets.remove(id) else { return };
        self.captures.catching.retain(|(_, widget)| widget != id);
        self.fold.forget(capture.key);
        [capture.cell, capture.shown_in].into_iter().flatten().for_each(|cell| self.settle(cell));
    }

    /// The kernel has ended, and with it all widgets. What they have caught stays where it is.
    pub(super) fn end_captures(&mut self) {
        let ids: Vec<String> = self.captures.widgets.keys().cloned().collect();
        ids.iter().for_each(|id| self.end_capture(id));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use crate::session::RunStatus;
    use crate::session::core_tests::Bench;
    use crate::session::piece::{EventBody, Piece};
    use crate::wire::Channel;

    impl Bench {
        fn comm(&mut self, run: &str, msg_type: &str, id: &str, state: &Value) {
            let content =
                json!({"comm_id": id, "target_name": "jupyter.widget", "data": {"method": "update", "state": state}});
            self.says(Channel::Iopub, run, msg_type, &content);
        }

        fn output_widget(&mut self, run: &str, id: &str) {
            let state = json!({"_model_module": "@jupyter-widgets/output", "_model_name": "OutputModel", "outputs": [], "msg_id": ""});
            self.comm(run, "comm_open", id, &state);
        }

        fn catches(&mut self, run: &str, id: &str, whose: &str) {
            self.comm(run, "comm_msg", id, &json!({"msg_id": whose}));
        }

        fn displays(&mut self, run: &str, data: &Value, display_id: Option<&str>) {
            let content = json!({"data": data, "metadata": {}, "transient": {"display_id": display_id}});
            self.says(Channel::Iopub, run, "display_data", &content);
        }

        fn views(&mut self, run: &str, id: &str) {
            let data = json!({"text/plain": "Output()", "application/vnd.jupyter.widget-view+json": {"model_id": id}});
            self.displays(run, &data, None);
        }

        fn clears(&mut self, run: &str, wait: bool) {
            self.says(Channel::Iopub, run, "clear_output", &json!({"wait": wait}));
        }
    }

    /// What the cells show, by the events of all pieces: texts, and the plain text of displays.
    fn apply_to(shown: &mut BTreeMap<String, Vec<String>>, piece: &Piece) {
        let text = |output: &Value| {
            output["text"].as_str().or(output["data"]["text/plain"].as_str()).unwrap_or_default().to_owned()
        };
        for event in &piece.events {
            let Some(outputs) = event.cell.as_ref().map(|cell| shown.entry(cell.clone()).or_default()) else { continue };
            match &event.body {
                EventBody::Append { index, output } => {
                    assert_eq!(*index, outputs.len());
                    outputs.push(text(output));
                }
                EventBody::Update { index, output } => outputs[*index] = text(output),
                EventBody::Stream { index, keep, text, .. } => {
                    outputs[*index].truncate(*keep);
                    outputs[*index].push_str(text);
                }
                EventBody::Clear | EventBody::Queued => outputs.clear(),
                _ => {}
            }
        }
    }

    #[test]
    fn what_a_widget_catches_is_shown_where_the_widget_is() {
        let mut bench = Bench::ready();
        let mut shown = BTreeMap::new();
        let first = bench.run("first");
        bench.output_widget(&first, "w");
        bench.prints(&first, "own\n");
        bench.views(&first, "w");
        bench.replies(&first);
        for number in 0..40 {
            let run = bench.run(&format!("c{number}"));
            bench.replies(&run);
        }
        let run = bench.run("second");
        bench.prints(&run, "before\n");
        bench.catches(&run, "w", &run);
        bench.prints(&run, "caught ");
        bench.prints(&run, "here\n");
        bench.displays(&run, &json!({"text/plain": "a plot"}), Some("d"));
        apply_to(&mut shown, &bench.out().0);
        // Killed in the middle, it is caught all the same.
        bench.prints(&run, "x");
        let (piece, _) = bench.out();
        apply_to(&mut shown, &piece);
        bench.prints(&run, "y\n");
        bench.restore(|resume| resume);
        bench.attach();
        bench.prints(&run, "z\n");
        bench.catches(&run, "w", "");
        bench.prints(&run, "after\n");
        bench.says(
            Channel::Iopub,
            &run,
            "update_display_data",
            &json!({"data": {"text/plain": "a newer plot"}, "metadata": {}, "transient": {"display_id": "d"}}),
        );
        apply_to(&mut shown, &bench.out().0);
        assert_eq!(shown["first"][..4], ["own\n", "Output()", "caught here\n", "a newer plot"]);
        assert!(shown["first"][4].starts_with('x') && shown["first"][4].ends_with("z\n"), "{shown:?}");
        assert_eq!(shown["second"], ["before\nafter\n"]);
        // A new state takes the places of the old one, as a plot that is drawn again and again does.
        bench.catches(&run, "w", &run);
        for number in 0..3 {
            bench.clears(&run, true);
            bench.displays(&run, &json!({"text/plain": format!("plot {number}")}), None);
        }
        bench.catches(&run, "w", "");
        let (piece, _) = bench.out();
        apply_to(&mut shown, &piece);
        assert_eq!(shown["first"], ["own\n", "Output()", "plot 2", "", ""]);
        // What stands empty says so, and nothing else.
        for event in &piece.events {
            if let EventBody::Update { output, .. } = &event.body {
                assert_eq!(output.get(super::CLEARED).is_some(), output["text"] == "", "{output}");
            }
        }
        // Cleared from outside, only the cell's own go.
        bench.clears(&run, false);
        apply_to(&mut shown, &bench.out().0);
        assert_eq!((shown["first"].len(), shown["second"].len()), (5, 0));
        bench.replies(&run);
        // Run again, the cell shows nothing of it; what is caught is then shown where it is made.
        bench.core.run_cell(bench.now, "first", None, None).unwrap();
        let again = bench.cell("first").run.run.clone().unwrap().0;
        bench.replies(&again);
        let third = bench.run("third");
        bench.catches(&third, "w", &third);
        bench.prints(&third, "one\n");
        bench.views(&third, "w");
        bench.prints(&third, "two\n");
        bench.comm(&third, "comm_close", "w", &json!({}));
        bench.prints(&third, "three\n");
        apply_to(&mut shown, &bench.out().0);
        assert_eq!(
            (shown["first"].len(), &shown["third"]),
            (0, &vec!["one\n".to_owned(), "Output()".into(), "two\n".into(), "three\n".into()])
        );
    }

    #[test]
    fn a_clearing_that_waits_is_done_before_what_is_caught() {
        let mut bench = Bench::ready();
        let mut shown = BTreeMap::new();
        let run = bench.run("a");
        bench.output_widget(&run, "w");
        bench.prints(&run, "p");
        bench.clears(&run, true);
        bench.catches(&run, "w", &run);
        bench.prints(&run, "x");
        bench.displays(&run, &json!({"text/plain": "between"}), None);
        bench.prints(&run, "y");
        apply_to(&mut shown, &bench.out().0);
        assert_eq!(shown["a"], ["x", "between", "y"]);
        // Where it has caught before, too: what only grows is begun anew.
        bench.catches(&run, "w", "");
        bench.clears(&run, true);
        bench.catches(&run, "w", &run);
        bench.prints(&run, "z");
        bench.prints(&run, "!");
        apply_to(&mut shown, &bench.out().0);
        assert_eq!(shown["a"], ["z!"]);
    }

    #[test]
    fn a_widget_keeps_what_it_catches_however_many_others_begin_to() {
        let mut bench = Bench::ready();
        let mut shown = BTreeMap::new();
        let first = bench.run("first");
        bench.output_widget(&first, "w");
        bench.output_widget(&first, "other");
        bench.views(&first, "w");
        bench.replies(&first);
        let run = bench.run("second");
        bench.catches(&run, "w", &run);
        for number in 1..super::MOST {
            bench.catches(&run, "other", &format!("run {number}"));
        }
        bench.catches(&run, "w", "one too many");
        bench.prints(&run, "caught");
        apply_to(&mut shown, &bench.out().0);
        assert_eq!(shown["first"], ["Output()", "caught"]);
    }

    #[test]
    fn odd_and_endless_widgets_cost_a_bounded_memory() {
        let mut bench = Bench::ready();
        let run = bench.run("a");
        for content in
            [json!(null), json!({"comm_id": 7}), json!({"comm_id": "w", "data": [1]}), json!({"data": {"state": 1}})]
        {
            for msg_type in ["comm_open", "comm_msg", "comm_close"] {
                bench.says(Channel::Iopub, &run, msg_type, &content);
            }
        }
        for number in 0..1000 {
            bench.output_widget(&run, &format!("w{number}"));
            bench.catches(&run, &format!("w{number}"), &format!("run {number}"));
            bench.catches(&run, "w0", &run);
        }
        for _ in 0..1000 {
            bench.displays(&run, &json!({"text/plain": "x"}), None);
        }
        bench.comm(&run, "comm_close", "w1", &json!({}));
        let long = "i".repeat(70 << 10);
        bench.output_widget(&run, &long);
        bench.catches(&run, "w0", &long);
        bench.displays(&run, &json!({"text/plain": "x"}), Some(&long));
        bench.out();
        let resume = bench.core.written.resume.as_ref().unwrap().len();
        assert!(resume < 64 << 10, "{resume}");
        bench.views(&run, "w0");
        bench.clears(&run, false);
        bench.exits(None);
        assert_eq!(bench.status("a"), Some(RunStatus::KernelDied));
        bench.starts_again();
        let run = bench.run("b");
        bench.prints(&run, "plain");
        let mut shown = BTreeMap::new();
        apply_to(
            &mut shown,
            &bench.out().0.events.into_iter().filter(|event| event.cell.as_deref() == Some("b")).fold(
                Piece::default(),
                |mut piece, event| {
                    piece.events.push(event);
                    piece
                },
            ),
        );
        assert_eq!(shown["b"], ["plain"]);
    }
}

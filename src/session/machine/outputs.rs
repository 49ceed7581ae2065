//! The outputs of a session's cells: kernel messages become events, and Output widgets show what they capture.
//!
//! What an Output widget captures is folded as a target of its own, and shown in the cell that displays the widget; before any cell
//! does, in the one that runs. The widget's outputs have places among the outputs of that cell, so readers need not know of widgets.
//! A place that was cleared shows an empty text until another output takes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::recent_executions::RecentExecution;
use crate::ids::CellNumber;
use crate::output::{
    Change, Fold, FoldedOutputs, OutputTarget, OutputWidgets, StoredOutputs, StreamStyle, TextOffset, WidgetId,
};
use crate::session::transaction::{EventBody, OutputState};
use crate::wire::{Message, json};

/// Most Output widgets of one kernel. What others would capture is shown where it is made.
pub(super) const MAX_WIDGETS: usize = 200;
/// Most places of one widget that are remembered, so that they can be cleared.
const MAX_PLACES: usize = 256;
/// Most bytes of text in one event: a reader holds at least one event in memory, and there may be many readers.
const MAX_TEXT: usize = 256 << 10;
/// Marks an output that was cleared and whose place is kept. No file and no kernel has it.
pub const CLEARED: &str = "cellkeep_cleared";
/// MIME type by which a cell displays a widget.
const WIDGET_VIEW: &str = "application/vnd.jupyter.widget-view+json";

/// Whether messages of this type add an output.
pub(super) fn adds_output(msg_type: &str) -> bool {
    matches!(msg_type, "stream" | "display_data" | "execute_result" | "error")
}

/// See the [module](self) text.
#[derive(Debug)]
pub(super) struct CellOutputs {
    fold: Fold,
    widgets: OutputWidgets,
    placements: BTreeMap<WidgetId, Placement>,
    /// Targets of which a row is in the journal.
    journaled: BTreeSet<OutputTarget>,
}

/// Where the outputs of a widget are shown.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Placement {
    /// The cell that displays the widget.
    displayed_in: Option<CellNumber>,
    /// The cell that holds the captured outputs.
    cell: Option<CellNumber>,
    /// Their indexes there, by their order in the widget.
    places: Vec<usize>,
    /// Order and index of the last one, where there are more than are remembered.
    last: Option<(usize, usize)>,
}

impl Placement {
    fn place(&self, order: usize) -> Option<usize> {
        let last = self.last.filter(|(last, _)| *last == order).map(|(_, index)| index);
        self.places.get(order).copied().or(last)
    }

    fn add(&mut self, order: usize, index: usize) {
        if self.places.len() == order && order < MAX_PLACES {
            self.places.push(index);
        } else {
            self.last = Some((order, index));
        }
    }

    fn is_in(&self, cell: CellNumber) -> bool {
        self.displayed_in == Some(cell) || self.cell == Some(cell)
    }

    /// What was captured so far stays where it is; further outputs get new places.
    fn leave(&mut self) {
        (self.cell, self.last) = (None, None);
        self.places.clear();
    }
}

/// What a message led to.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Events of cells, in order.
    pub events: Vec<(CellNumber, EventBody)>,
    /// Cells that a widget no longer shows anything in.
    pub released: Vec<CellNumber>,
}

/// Widgets and their placements, as they are journaled.
#[derive(Serialize)]
pub(super) struct WidgetsRef<'a> {
    widgets: &'a OutputWidgets,
    placements: &'a BTreeMap<WidgetId, Placement>,
}

/// The same, read back.
#[derive(Deserialize)]
pub(super) struct JournaledWidgets {
    widgets: OutputWidgets,
    placements: BTreeMap<WidgetId, Placement>,
}

/// What is journaled of the outputs of one target.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    recent: Option<&'a RecentExecution>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fold: Option<FoldedOutputs<'a>>,
}

/// The same, read back.
#[derive(Deserialize)]
pub(super) struct StoredRow {
    recent: Option<RecentExecution>,
    fold: Option<StoredOutputs>,
}

impl Default for CellOutputs {
    fn default() -> Self {
        Self {
            fold: Fold::new(StreamStyle::Terminal),
            widgets: OutputWidgets::new(MAX_WIDGETS),
            placements: BTreeMap::new(),
            journaled: BTreeSet::new(),
        }
    }
}

impl CellOutputs {
    // ---- messages -----------------------------------------------------------------------------------------------------

    /// Takes in an output message of the cell `from`. `charge` counts bytes against that cell's output limit, and refuses what is over
    /// it: one update can be shown in a thousand places.
    pub fn apply(
        &mut self,
        from: CellNumber,
        msg_type: &str,
        message: &Message,
        charge: &mut dyn FnMut(u64) -> bool,
    ) -> Shown {
        let mut shown = Shown::default();
        let target = self.target_of(from, msg_type, message, &mut shown);
        if adds_output(msg_type) {
            self.clear_before_capture(from, target, &mut shown);
        }
        for change in self.fold.apply(target, msg_type, &message.content) {
            // A few bytes can change much text: they move the cursor to a far column, or to a line far above. The message itself is
            // charged already.
            let more = change.text_bytes().saturating_sub(message.content.len());
            if more > 0 && !charge(more as u64) {
                break;
            }
            self.show(from, change, charge, &mut shown);
        }
        shown
    }

    /// Takes in a comm message. Returns the cells that a widget no longer shows anything in.
    pub fn apply_comm(&mut self, msg_type: &str, content: &Value) -> Vec<CellNumber> {
        if msg_type != "comm_close" {
            self.widgets.update(msg_type, content);
            return Vec::new();
        }
        content["comm_id"].as_str().map(|comm_id| self.close_widget(comm_id)).unwrap_or_default()
    }

    /// Outputs that a cell had before it became part of the session.
    pub fn import(&mut self, number: CellNumber, outputs: Vec<Value>) -> Vec<(CellNumber, EventBody)> {
        let mut events = Vec::new();
        for (index, output) in outputs.into_iter().enumerate() {
            append(number, index, output, &mut events);
        }
        events
    }

    /// An execution of the cell starts: it has no outputs yet.
    pub fn start(&mut self, number: CellNumber) {
        self.fold.start(OutputTarget::Cell(number));
    }

    /// The cell's outputs are gone, and nothing may reach them any more: neither a display id nor late output.
    pub fn discard(&mut self, number: CellNumber) {
        self.detach_widgets(number);
        self.fold.forget(OutputTarget::Cell(number));
    }

    /// Whether later messages can still change outputs of the cell: by a display id, or through a widget.
    pub fn can_change(&self, number: CellNumber) -> bool {
        self.fold.has_displays(OutputTarget::Cell(number)) || self.placements.values().any(|place| place.is_in(number))
    }

    /// Frees what is remembered of a cell that no message can change any more. Its outputs stay.
    pub fn forget(&mut self, number: CellNumber) {
        self.fold.forget(OutputTarget::Cell(number));
    }

    /// The kernel has ended, and its widgets with it. What they have captured stays where it is. Returns the cells that they showed
    /// something in.
    pub fn end_widgets(&mut self) -> Vec<CellNumber> {
        self.widgets.comm_ids().into_iter().flat_map(|comm_id| self.close_widget(&comm_id)).collect()
    }

    // ---- widgets ------------------------------------------------------------------------------------------------------

    /// The target of a message of the cell `from`. Also notices where a widget is displayed.
    fn target_of(&mut self, from: CellNumber, msg_type: &str, message: &Message, shown: &mut Shown) -> OutputTarget {
        if self.widgets.is_empty() {
            return OutputTarget::Cell(from);
        }
        let widget = self.widgets.target_of(&message.parent().msg_id);
        if matches!(msg_type, "display_data" | "execute_result") {
            let cell = widget.and_then(|widget| self.placements.get(&widget)?.cell).unwrap_or(from);
            self.note_display(cell, message, shown);
        }
        widget.map_or(OutputTarget::Cell(from), OutputTarget::Widget)
    }

    fn note_display(&mut self, cell: CellNumber, message: &Message, shown: &mut Shown) {
        // The content is parsed once more only if it may display a widget.
        if !message.content.windows(WIDGET_VIEW.len()).any(|text| text == WIDGET_VIEW.as_bytes()) {
            return;
        }
        let content = message.content_value();
        let comm_id = content["data"][WIDGET_VIEW]["model_id"].as_str();
        let Some(widget) = comm_id.and_then(|comm_id| self.widgets.get(comm_id)) else { return };
        let placement = self.placements.entry(widget).or_default();
        let before = placement.displayed_in.replace(cell);
        if placement.cell.is_some_and(|other| other != cell) {
            placement.leave();
            self.fold.start(OutputTarget::Widget(widget));
        }
        shown.released.extend(before);
    }

    /// An output is about to be captured. A clear that is pending in the cell that will show it happens first, because the places of
    /// what was captured there are counted anew after it.
    fn clear_before_capture(&mut self, from: CellNumber, target: OutputTarget, shown: &mut Shown) {
        let OutputTarget::Widget(widget) = target else { return };
        let placement = self.placements.entry(widget).or_default();
        let cell = placement.cell.or(placement.displayed_in).unwrap_or(from);
        for change in self.fold.clear_pending(OutputTarget::Cell(cell)) {
            self.show(from, change, &mut |_| true, shown);
        }
    }

    /// Widgets show nothing in the cell any more.
    fn detach_widgets(&mut self, cell: CellNumber) {
        for (widget, placement) in self.placements.iter_mut().filter(|(_, placement)| placement.is_in(cell)) {
            if placement.cell == Some(cell) {
                placement.leave();
                self.fold.start(OutputTarget::Widget(*widget));
            }
            placement.displayed_in.take_if(|displayed_in| *displayed_in == cell);
        }
    }

    fn close_widget(&mut self, comm_id: &str) -> Vec<CellNumber> {
        let Some(widget) = self.widgets.close(comm_id) else { return Vec::new() };
        self.fold.forget(OutputTarget::Widget(widget));
        let placement = self.placements.remove(&widget).unwrap_or_default();
        [placement.cell, placement.displayed_in].into_iter().flatten().collect()
    }

    // ---- changes become events ----------------------------------------------------------------------------------------

    fn show(&mut self, from: CellNumber, change: Change, charge: &mut dyn FnMut(u64) -> bool, shown: &mut Shown) {
        let events = &mut shown.events;
        match change {
            Change::Append { target: OutputTarget::Cell(cell), index, output } => append(cell, index, output, events),
            Change::Append { target: OutputTarget::Widget(widget), index, output } => {
                self.place_captured(from, widget, index, output, events);
            }
            Change::Stream { target, index, name, keep, text, grows } => {
                if let Some((cell, index)) = self.shown_at(from, target, index) {
                    push_text(cell, StreamEdit { index, name, keep, text, grows }, events);
                }
            }
            Change::Update { places, data, metadata } => {
                // Each copy becomes an event, so each is charged, and to the sender: the cells that show it may have ended long ago.
                let size = (json::size(&data) + json::size(&metadata)) as u64;
                for place in places {
                    if !charge(size) {
                        break;
                    }
                    let output = place.output(data.clone(), metadata.clone());
                    if let Some((cell, index)) = self.shown_now(place.target, place.index) {
                        events.push((cell, EventBody::Update { index, output }));
                    }
                }
            }
            Change::Clear { target: OutputTarget::Cell(cell) } => {
                self.detach_widgets(cell);
                events.push((cell, EventBody::Clear));
            }
            Change::Clear { target: OutputTarget::Widget(widget) } => self.clear_captured(from, widget, events),
        }
    }

    /// Puts a captured output into a place that was cleared, or into a new one.
    fn place_captured(
        &mut self,
        from: CellNumber,
        widget: WidgetId,
        order: usize,
        mut output: Value,
        events: &mut Vec<(CellNumber, EventBody)>,
    ) {
        let placement = self.placements.entry(widget).or_default();
        let cell = *placement.cell.get_or_insert(placement.displayed_in.unwrap_or(from));
        let Some(index) = placement.place(order) else {
            let index = self.fold.reserve(OutputTarget::Cell(cell));
            placement.add(order, index);
            return append(cell, index, output, events);
        };
        let rest = split_long_stream(index, &mut output);
        events.push((cell, EventBody::Update { index, output }));
        rest.into_iter().for_each(|edit| push_text(cell, edit, events));
    }

    fn clear_captured(&mut self, from: CellNumber, widget: WidgetId, events: &mut Vec<(CellNumber, EventBody)>) {
        let placement = self.placements.entry(widget).or_default();
        let cell = *placement.cell.get_or_insert(placement.displayed_in.unwrap_or(from));
        for index in placement.places.iter().copied() {
            let output = json!({"output_type": "stream", "name": "stdout", "text": "", CLEARED: true});
            events.push((cell, EventBody::Update { index, output }));
        }
    }

    /// Where a changed stream is shown. A widget that shows nothing yet begins in the cell that displays it, or in `from`.
    fn shown_at(&mut self, from: CellNumber, target: OutputTarget, index: usize) -> Option<(CellNumber, usize)> {
        match target {
            OutputTarget::Cell(cell) => Some((cell, index)),
            OutputTarget::Widget(widget) => {
                let placement = self.placements.get_mut(&widget)?;
                let cell = *placement.cell.get_or_insert(placement.displayed_in.unwrap_or(from));
                placement.place(index).map(|index| (cell, index))
            }
        }
    }

    /// Where an output is shown now; `None` for one of a widget that is shown nowhere any more.
    fn shown_now(&self, target: OutputTarget, index: usize) -> Option<(CellNumber, usize)> {
        match target {
            OutputTarget::Cell(cell) => Some((cell, index)),
            OutputTarget::Widget(widget) => {
                let placement = self.placements.get(&widget)?;
                Some((placement.cell?, placement.place(index)?))
            }
        }
    }

    // ---- journal ------------------------------------------------------------------------------------------------------

    pub fn widgets_to_journal(&self) -> WidgetsRef<'_> {
        WidgetsRef { widgets: &self.widgets, placements: &self.placements }
    }

    pub fn restore_widgets(&mut self, stored: JournaledWidgets) {
        (self.widgets, self.placements) = (stored.widgets, stored.placements);
    }

    /// The targets whose state changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<OutputTarget> {
        self.fold.take_changed()
    }

    /// The row that is to be journaled for a target; `None` where there is none and was none.
    pub fn row(&mut self, target: OutputTarget, recent: Option<&RecentExecution>) -> Option<OutputState> {
        let row = Row { recent, fold: self.fold.folded(target) };
        if row.recent.is_none() && row.fold.is_none() {
            return self.journaled.remove(&target).then_some(OutputState { target, json: None });
        }
        let json = serde_json::to_string(&row).ok()?;
        self.journaled.insert(target);
        Some(OutputState { target, json: Some(json) })
    }

    /// A row in the journal cannot be used: the next transaction removes it.
    pub fn discard_row(&mut self, target: OutputTarget) {
        self.journaled.insert(target);
        self.fold.forget(target);
    }

    /// Goes on from a row. Returns the execution in it.
    pub fn restore_row(&mut self, target: OutputTarget, row: StoredRow) -> Option<RecentExecution> {
        self.journaled.insert(target);
        if let Some(fold) = row.fold {
            self.fold.restore(target, fold);
        }
        row.recent
    }
}

/// How a stream output changes: `keep` bytes of the former text stand, and `text` follows them.
struct StreamEdit {
    index: usize,
    name: String,
    keep: TextOffset,
    text: String,
    grows: bool,
}

fn append(cell: CellNumber, index: usize, mut output: Value, events: &mut Vec<(CellNumber, EventBody)>) {
    let rest = split_long_stream(index, &mut output);
    events.push((cell, EventBody::Append { index, output }));
    rest.into_iter().for_each(|edit| push_text(cell, edit, events));
}

/// Splits off what of a stream output is more than one event holds.
fn split_long_stream(index: usize, output: &mut Value) -> Option<StreamEdit> {
    let name = output.get("name")?.as_str()?.to_owned();
    let Some(Value::String(text)) = output.get_mut("text") else { return None };
    let cut = text.floor_char_boundary(MAX_TEXT);
    (cut < text.len()).then(|| {
        let rest = text.split_off(cut);
        StreamEdit { index, name, keep: TextOffset::of(text), text: rest, grows: true }
    })
}

/// Adds a stream's text as events of at most [`MAX_TEXT`] bytes each.
fn push_text(cell: CellNumber, edit: StreamEdit, events: &mut Vec<(CellNumber, EventBody)>) {
    let StreamEdit { index, name, mut keep, text, mut grows } = edit;
    if text.len() <= MAX_TEXT {
        return events.push((cell, EventBody::Stream { index, name, keep, text, grows }));
    }
    let mut left = text.as_str();
    while !left.is_empty() {
        let (part, rest) = left.split_at(left.floor_char_boundary(MAX_TEXT));
        let (name, text) = (name.clone(), part.to_owned());
        events.push((cell, EventBody::Stream { index, name, keep, text, grows }));
        (keep, grows, left) = (keep + TextOffset::of(part), true, rest);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use crate::output::TextOffset;
    use crate::session::ExecutionStatus;
    use crate::session::machine::bench::Bench;
    use crate::session::transaction::{EventBody, Transaction};
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

    /// What the cells show, by the events of all transactions: texts, and the plain text of displays.
    fn apply_to(shown: &mut BTreeMap<String, Vec<String>>, transaction: &Transaction) {
        let text = |output: &Value| {
            output["text"].as_str().or(output["data"]["text/plain"].as_str()).unwrap_or_default().to_owned()
        };
        for event in &transaction.events {
            let Some(outputs) = event.cell.as_ref().map(|cell| shown.entry(cell.clone()).or_default()) else { continue };
            match &event.body {
                EventBody::Append { index, output } => {
                    assert_eq!(*index, outputs.len());
                    outputs.push(text(output));
                }
                EventBody::Update { index, output } => outputs[*index] = text(output),
                EventBody::Stream { index, keep, text, .. } => {
                    // A test may leave a transaction out.
                    let kept = outputs[*index].get(..keep.bytes);
                    assert!(kept.is_none_or(|kept| TextOffset::of(kept) == *keep));
                    outputs[*index].truncate(keep.bytes);
                    outputs[*index].push_str(text);
                }
                EventBody::Clear | EventBody::Queued => outputs.clear(),
                _ => {}
            }
        }
    }

    #[test]
    fn captured_output_is_shown_where_widget_is() {
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
        let (transaction, _) = bench.out();
        apply_to(&mut shown, &transaction);
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
        let (transaction, _) = bench.out();
        apply_to(&mut shown, &transaction);
        assert_eq!(shown["first"], ["own\n", "Output()", "plot 2", "", ""]);
        // What stands empty says so, and nothing else.
        for event in &transaction.events {
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
        bench.machine.run_cell(bench.cx, "first", None, None).unwrap();
        let again = bench.cell("first").execution.id.clone().unwrap().0;
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
    fn pending_clear_happens_before_captured_output() {
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
    fn widget_keeps_captures_when_limit_is_reached() {
        let mut bench = Bench::ready();
        let mut shown = BTreeMap::new();
        let first = bench.run("first");
        bench.output_widget(&first, "w");
        bench.output_widget(&first, "other");
        bench.views(&first, "w");
        bench.replies(&first);
        let run = bench.run("second");
        bench.catches(&run, "w", &run);
        for number in 1..super::MAX_WIDGETS {
            bench.catches(&run, "other", &format!("run {number}"));
        }
        bench.catches(&run, "w", "one too many");
        bench.prints(&run, "caught");
        apply_to(&mut shown, &bench.out().0);
        assert_eq!(shown["first"], ["Output()", "caught"]);
    }

    #[test]
    fn odd_and_endless_widgets_cost_bounded_memory() {
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
        let resume = bench.machine.committed_resume().unwrap().len();
        assert!(resume < 64 << 10, "{resume}");
        bench.views(&run, "w0");
        bench.clears(&run, false);
        bench.exits(None);
        assert_eq!(bench.status("a"), Some(ExecutionStatus::KernelDied));
        bench.starts_again();
        let run = bench.run("b");
        bench.prints(&run, "plain");
        let mut shown = BTreeMap::new();
        apply_to(
            &mut shown,
            &bench.out().0.events.into_iter().filter(|event| event.cell.as_deref() == Some("b")).fold(
                Transaction::default(),
                |mut transaction, event| {
                    transaction.events.push(event);
                    transaction
                },
            ),
        );
        assert_eq!(shown["b"], ["plain"]);
    }
}

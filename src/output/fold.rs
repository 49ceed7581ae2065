//! How each message type changes the outputs. Holds no outputs, only what later messages need to know of earlier ones.

use super::content::{self, Reading};
use super::terminal_text::{Edit, Terminal};
use super::{Change, OutputTarget, Place, StreamStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Most copies of one display id that are kept up to date. Without a bound, a loop that displays the same id for ever would cost the
/// square of its messages.
const MAX_COPIES: usize = 1000;

/// Turns messages into changes of outputs. See the [module](super) text.
///
/// It can be journaled target by target ([`Fold::folded`]), for a later server to go on from there ([`Fold::restore`]).
#[derive(Debug, Default)]
pub struct Fold {
    style: StreamStyle,
    targets: BTreeMap<OutputTarget, TargetState>,
    /// The outputs that show each display id.
    displays: BTreeMap<String, Vec<Place>>,
    /// Targets that changed since [`Fold::take_changed`].
    changed: BTreeSet<OutputTarget>,
}

/// What has to be known of a target's outputs to go on with them.
#[derive(Debug, Serialize)]
pub struct FoldedOutputs<'a> {
    state: &'a TargetState,
    /// Its outputs that show display ids.
    places: Vec<(&'a str, &'a Place)>,
}

/// A [`FoldedOutputs`], read back.
#[derive(Debug, Deserialize)]
pub struct StoredOutputs {
    state: TargetState,
    places: Vec<(String, Place)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct TargetState {
    /// Number of outputs.
    len: usize,
    /// The stream that may still grow; only ever the last output.
    open: Option<Open>,
    /// After `clear_output(wait=True)`: the next appended output replaces all others.
    clear_pending: bool,
    /// Display ids with a copy here, so that clearing does not visit all ids.
    #[serde(skip)]
    display_ids: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Open {
    name: String,
    terminal: Box<Terminal>,
}

fn stream_output(name: &str, text: &str) -> Value {
    json!({"output_type": "stream", "name": name, "text": text})
}

impl Fold {
    pub fn new(style: StreamStyle) -> Self {
        Self { style, ..Self::default() }
    }

    /// An execution starts: outputs, a pending clear and display ids of the target are forgotten.
    pub fn start(&mut self, target: OutputTarget) {
        self.forget_displays(target);
        *self.state(target) = TargetState::default();
    }

    /// Takes in one iopub message of the target. `content` is the raw JSON of the message's content. Types that make no output (status,
    /// execute_input, comms, ...) change nothing, and their content is not read.
    pub fn apply(&mut self, target: OutputTarget, msg_type: &str, content: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        match content::read(msg_type, content) {
            Reading::Nothing => {}
            Reading::Stream { name, text } => self.stream(target, name, &text, &mut changes),
            Reading::Output { output, display_id } => self.display(target, output, display_id, &mut changes),
            // nbclient drops pages.
            Reading::Pages(_) if self.style == StreamStyle::Nbclient => {}
            Reading::Pages(pages) => pages.into_iter().for_each(|page| self.push(target, page, &mut changes)),
            Reading::Update { data, metadata, display_id } => self.update(&display_id, data, metadata, &mut changes),
            Reading::Clear { wait } => self.clear(target, wait, &mut changes),
        }
        changes
    }

    /// Whether a later message can still change outputs of this target by a display id.
    pub fn has_displays(&self, target: OutputTarget) -> bool {
        self.targets.get(&target).is_some_and(|state| !state.display_ids.is_empty())
    }

    /// Forgets a target, as if it had never been started.
    pub fn forget(&mut self, target: OutputTarget) {
        self.forget_displays(target);
        self.targets.remove(&target);
        self.changed.insert(target);
    }

    /// The targets that changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<OutputTarget> {
        std::mem::take(&mut self.changed)
    }

    /// What is to be journaled of a target; `None` if nothing has to be known of it.
    pub fn folded(&self, target: OutputTarget) -> Option<FoldedOutputs<'_>> {
        let state = self.targets.get(&target).filter(|state| state.len > 0 || state.clear_pending)?;
        let places = state.display_ids.iter().flat_map(|id| {
            let copies = self.displays.get(id).into_iter().flatten();
            copies.filter(|copy| copy.target == target).map(|copy| (id.as_str(), copy))
        });
        Some(FoldedOutputs { state, places: places.collect() })
    }

    /// Goes on with a target as it was journaled.
    pub fn restore(&mut self, target: OutputTarget, stored: StoredOutputs) {
        let StoredOutputs { mut state, places } = stored;
        for (id, place) in places {
            if state.display_ids.last() != Some(&id) {
                state.display_ids.push(id.clone());
            }
            self.displays.entry(id).or_default().push(Place { target, ..place });
        }
        self.targets.insert(target, state);
    }

    fn state(&mut self, target: OutputTarget) -> &mut TargetState {
        self.changed.insert(target);
        self.targets.entry(target).or_default()
    }

    /// Carries out a clear that waits for the target's next output.
    pub fn clear_pending(&mut self, target: OutputTarget) -> Vec<Change> {
        let mut changes = Vec::new();
        self.clear_if_pending(target, &mut changes);
        changes
    }

    /// Reserves the index at the end of the target's list for an output that another target follows. A pending clear must be carried out
    /// before.
    pub fn reserve(&mut self, target: OutputTarget) -> usize {
        let state = self.state(target);
        state.open = None;
        state.len += 1;
        state.len - 1
    }

    fn stream(&mut self, target: OutputTarget, name: String, text: &str, changes: &mut Vec<Change>) {
        if self.style == StreamStyle::Nbclient {
            return self.push(target, stream_output(&name, text), changes);
        }
        self.clear_if_pending(target, changes);
        if text.is_empty() {
            return;
        }
        let state = self.state(target);
        if let Some(open) = state.open.as_mut().filter(|open| open.name == name) {
            let before = open.terminal.len();
            let Edit { keep, tail } = open.terminal.write(text);
            let (index, grows) = (state.len - 1, keep.bytes == before);
            changes.push(Change::Stream { target, index, name, keep, text: tail, grows });
            return;
        }
        let mut terminal = Box::new(Terminal::new());
        let shown = terminal.write(text).tail;
        self.push(target, stream_output(&name, &shown), changes);
        self.state(target).open = Some(Open { name, terminal });
    }

    fn display(&mut self, target: OutputTarget, output: Value, display_id: Option<String>, changes: &mut Vec<Change>) {
        let Some(id) = display_id else { return self.push(target, output, changes) };
        // Earlier copies show the newest state too. Those of this target go if a clear is pending.
        self.clear_if_pending(target, changes);
        if self.displays.contains_key(&id) {
            let part = |key| output.get(key).cloned().unwrap_or_else(|| Value::Object(Map::new()));
            self.update(&id, part("data"), part("metadata"), changes);
        }
        let is_result = output.get("output_type").is_some_and(|kind| kind == "execute_result");
        let execution_count = output.get("execution_count").and_then(Value::as_u64);
        self.push(target, output, changes);
        let state = self.targets.entry(target).or_default();
        let copies = self.displays.entry(id.clone()).or_default();
        if copies.len() < MAX_COPIES {
            if !copies.iter().any(|copy| copy.target == target) {
                state.display_ids.push(id);
            }
            copies.push(Place { target, index: state.len - 1, is_result, execution_count });
        }
    }

    fn update(&mut self, id: &str, data: Value, metadata: Value, changes: &mut Vec<Change>) {
        if let Some(places) = self.displays.get(id) {
            changes.push(Change::Update { places: places.clone(), data, metadata });
        }
    }

    fn push(&mut self, target: OutputTarget, output: Value, changes: &mut Vec<Change>) {
        self.clear_if_pending(target, changes);
        let state = self.state(target);
        // A stream with an output behind it cannot grow any more.
        state.open = None;
        state.len += 1;
        changes.push(Change::Append { target, index: state.len - 1, output });
    }

    fn clear(&mut self, target: OutputTarget, wait: bool, changes: &mut Vec<Change>) {
        if wait {
            self.state(target).clear_pending = true;
        } else {
            self.clear_now(target, changes);
        }
    }

    fn clear_if_pending(&mut self, target: OutputTarget, changes: &mut Vec<Change>) {
        if self.targets.get(&target).is_some_and(|state| state.clear_pending) {
            self.clear_now(target, changes);
        }
    }

    fn clear_now(&mut self, target: OutputTarget, changes: &mut Vec<Change>) {
        self.forget_displays(target);
        let state = self.state(target);
        let had_any = std::mem::take(state).len > 0;
        if had_any {
            changes.push(Change::Clear { target });
        }
    }

    fn forget_displays(&mut self, target: OutputTarget) {
        let Some(state) = self.targets.get_mut(&target) else { return };
        for id in std::mem::take(&mut state.display_ids) {
            let Some(copies) = self.displays.get_mut(&id) else { continue };
            copies.retain(|copy| copy.target != target);
            if copies.is_empty() {
                self.displays.remove(&id);
            }
        }
    }
}

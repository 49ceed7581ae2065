//! Who says what in a conversation with a model: its cells tell by their metadata, and a reader sees it by a word above each message.

use crate::notebook::Cell;
use serde_json::Value;

/// Who has spoken last, while a notebook is gone over.
#[derive(Debug, Default)]
pub(super) struct Speakers(Option<(&'static str, String)>);

impl Speakers {
    /// The word above this cell, if it begins a message. Cells that a person ran by hand are nobody's.
    pub(super) fn begins(&mut self, cell: Cell<'_>) -> Option<&'static str> {
        let before = std::mem::replace(&mut self.0, speaker(cell));
        let now = self.0.as_ref().filter(|now| before.as_ref() != Some(*now));
        now.map(|(who, _)| *who)
    }
}

/// Who says a cell, and in which answer.
fn speaker(cell: Cell<'_>) -> Option<(&'static str, String)> {
    let mark = cell.metadata()?.get("cellkeep")?;
    let who = match mark.get("role")?.as_str()? {
        "user" => "You",
        "assistant" => "Model",
        _ => return None,
    };
    // Each message of a person is one.
    let which = if who == "You" { cell.id() } else { mark.get("turn").and_then(Value::as_str).unwrap_or_default() };
    Some((who, which.to_owned()))
}

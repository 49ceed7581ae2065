//! The roles of cells in a conversation with a model, from their metadata: a label above each message says who wrote it.

use crate::notebook::Cell;
use serde_json::Value;

/// Assigns labels to the cells of a notebook in order. Holds the author and the message of the previous cell.
#[derive(Debug, Default)]
pub(super) struct RoleLabels(Option<(&'static str, String)>);

impl RoleLabels {
    /// The label above this cell, if it starts a message. Cells outside the conversation have none.
    pub(super) fn label(&mut self, cell: Cell<'_>) -> Option<&'static str> {
        let before = std::mem::replace(&mut self.0, author(cell));
        let now = self.0.as_ref().filter(|now| before.as_ref() != Some(*now));
        now.map(|(label, _)| *label)
    }
}

/// The label of the author of a cell, and the id of its message.
fn author(cell: Cell<'_>) -> Option<(&'static str, String)> {
    let mark = cell.metadata()?.get("cellkeep")?;
    let label = match mark.get("role")?.as_str()? {
        "user" => "You",
        "assistant" => "Model",
        _ => return None,
    };
    // Each cell of a person is a message; an answer of the model may have many cells.
    let message = if label == "You" { cell.id() } else { mark.get("turn").and_then(Value::as_str).unwrap_or_default() };
    Some((label, message.to_owned()))
}

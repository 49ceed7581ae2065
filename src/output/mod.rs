//! Folds Jupyter iopub messages into nbformat 4.5 outputs, for all cells of a notebook at once, because a display id reaches across
//! cells.
//!
//! The semantics are nbclient's, with one difference: neighbouring messages of the same stream make one output, which holds what a
//! terminal would show ([`StreamStyle::Terminal`]).
//!
//! Message contents come from kernels that user code controls. Odd content causes neither a panic nor a refusal: it gets its most
//! sensible reading, and content without one is kept as text that says so.

use crate::ids::CellNumber;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod artifact;
mod content;
mod fold;
mod image_size;
mod output_widgets;
mod outputs;
mod repair;
mod terminal_text;
mod text;
mod text_offset;
mod widgets;

pub use artifact::{Artifact, ArtifactError, ArtifactOptions, artifacts, artifacts_of};
pub use fold::{Fold, FoldedOutputs, StoredOutputs};
pub use image_size::image_size;
pub use output_widgets::{OutputWidgets, WidgetId};
pub use outputs::Outputs;
pub use repair::repair_output;
pub(crate) use terminal_text::{Escape, measure};
pub use terminal_text::{strip_ansi, terminal_text};
pub use text::{joined, text_of};
pub use text_offset::TextOffset;
pub use widgets::{Sync, Widgets};

/// Longest id of a display, a comm or an execution that is accepted from a kernel, in bytes; usual ones have 36. Ids are kept and
/// journaled, and a kernel may send one as large as a message. A longer one counts as none.
pub(crate) const MAX_ID: usize = 256;

/// What outputs belong to: a cell, or an Output widget that captures them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutputTarget {
    Cell(CellNumber),
    Widget(WidgetId),
}

impl OutputTarget {
    /// The bit that tells a widget from a cell in [`Self::code`].
    const WIDGET: u32 = 1 << 31;

    /// A cell, by its number in a session or its index in a notebook.
    pub const fn cell(number: u32) -> Self {
        Self::Cell(CellNumber(number))
    }

    /// The cell's number or index; `None` for a widget.
    pub fn cell_index(self) -> Option<usize> {
        match self {
            Self::Cell(CellNumber(number)) => Some(number as usize),
            Self::Widget(_) => None,
        }
    }

    /// The target as one number, for storage. No session has so many cells or widgets that they would collide.
    pub fn code(self) -> u32 {
        match self {
            Self::Cell(CellNumber(number)) => number,
            Self::Widget(WidgetId(number)) => number | Self::WIDGET,
        }
    }

    /// The inverse of [`Self::code`].
    pub fn from_code(code: u32) -> Self {
        if code < Self::WIDGET { Self::cell(code) } else { Self::Widget(WidgetId(code & !Self::WIDGET)) }
    }
}

/// How stream messages become outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StreamStyle {
    /// Neighbouring messages of one stream are merged into the text that a terminal would show.
    #[default]
    Terminal,
    /// Every message is an output of its own with its raw text, as in nbclient.
    Nbclient,
}

/// An output that shows a display id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub target: OutputTarget,
    /// Index of the output in the target's list.
    pub index: usize,
    /// Whether the output is an `execute_result`, else a `display_data`.
    is_result: bool,
    execution_count: Option<u64>,
}

impl Place {
    /// The whole output here once the display id has this state.
    pub fn output(&self, data: Value, metadata: Value) -> Value {
        if self.is_result {
            let count = self.execution_count;
            json!({"output_type": "execute_result", "data": data, "metadata": metadata, "execution_count": count})
        } else {
            json!({"output_type": "display_data", "data": data, "metadata": metadata})
        }
    }
}

/// A change of the outputs, for a client that mirrors them.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new output at the end of the target's list.
    Append {
        target: OutputTarget,
        index: usize,
        /// An nbformat object. The text of a stream is one string, which may grow by [`Change::Stream`].
        output: Value,
    },
    /// A newer state of a display id: the data and metadata of all outputs that show it are replaced.
    Update {
        /// The outputs that show it.
        places: Vec<Place>,
        /// The MIME bundle.
        data: Value,
        metadata: Value,
    },
    /// A stream output changed: its text before `keep` stays, and `text` follows it. Mostly `keep` is the whole
    /// former text; after a carriage return it is less.
    Stream {
        target: OutputTarget,
        index: usize,
        /// `stdout` or `stderr`.
        name: String,
        keep: TextOffset,
        text: String,
        /// Whether all of the former text stays.
        grows: bool,
    },
    /// All outputs of the target are gone.
    Clear { target: OutputTarget },
}

impl Change {
    /// The bytes of a stream's text in this change.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Stream { text, .. } => text.len(),
            Self::Append { output, .. } => output.get("text").and_then(Value::as_str).map_or(0, str::len),
            Self::Update { .. } | Self::Clear { .. } => 0,
        }
    }
}

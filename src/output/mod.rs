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
mod escape;
mod fold;
mod held;
mod line;
mod output_widgets;
mod pen;
mod repair;
mod terminal;
mod text;
mod widgets;

pub use artifact::{Artifact, ArtifactError, ArtifactOptions, artifacts, artifacts_of};
pub use escape::strip_ansi;
pub(crate) use escape::{Escape, measure};
pub use fold::{Fold, FoldedOutputs, StoredOutputs};
pub use held::Outputs;
pub use output_widgets::{OutputWidgets, WidgetId};
pub use repair::repair_output;
pub use terminal::terminal_text;
pub use text::{joined, text_of};
pub use widgets::{Sync, Widgets};

/// Bytes of an id that a kernel makes (of a display, a comm, a run): its own have 36. Ids are kept, and written down with every piece,
/// and a kernel may send one as large as a message; what has a longer one is taken as if it had none.
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
    /// Neighbouring messages of one stream are merged, and the text is what a terminal would show.
    #[default]
    Terminal,
    /// Every message is an output of its own with its raw text, as nbclient stores them.
    Nbclient,
}

/// An output that shows a display id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub target: OutputTarget,
    /// Index of the output in the target's list.
    pub index: usize,
    /// Whether it is a result and not a display.
    is_result: bool,
    /// The result's count.
    execution_count: Option<u64>,
}

impl Place {
    /// The whole output that stands here once the display id has this state.
    pub fn output(&self, data: Value, metadata: Value) -> Value {
        if self.is_result {
            let count = self.execution_count;
            json!({"output_type": "execute_result", "data": data, "metadata": metadata, "execution_count": count})
        } else {
            json!({"output_type": "display_data", "data": data, "metadata": metadata})
        }
    }
}

/// What one message changed, in the words of a client that mirrors the outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new output at the end of the cell's list.
    Append {
        target: OutputTarget,
        /// Its place in the cell's list.
        index: usize,
        /// The output, as nbformat has it. A stream's text is one string, and may grow by [`Change::Stream`].
        output: Value,
    },
    /// A newer state of a display id: the data and metadata of all outputs that show it are replaced.
    Update {
        /// The outputs that show it.
        places: Vec<Place>,
        /// The MIME bundle.
        data: Value,
        /// Its metadata.
        metadata: Value,
    },
    /// A stream output changed: keep the first `keep` bytes (UTF-8) of its text and put `text` behind them. Mostly
    /// `keep` is the whole former text; after a carriage return less.
    Stream {
        target: OutputTarget,
        /// Place of the output in the cell's list.
        index: usize,
        /// `stdout` or `stderr`.
        name: String,
        /// Bytes of the former text that stand.
        keep: usize,
        /// What follows them.
        text: String,
        /// Whether all of the former text stands.
        grows: bool,
    },
    /// All outputs of the cell are gone.
    Clear { target: OutputTarget },
}

//! One line of a stream: its verbatim text, or single characters once the cursor went back into it.

use super::style::StyleState;
use crate::output::TextOffset;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A style as the escape sequence that sets it; `None` is plain.
pub(super) type Style = Option<Arc<str>>;

const RESET: &str = "\u{1b}[0m";

/// One character and its style.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Glyph {
    pub(super) symbol: char,
    pub(super) style: Style,
}

/// The content of a line.
#[derive(Debug, Serialize, Deserialize)]
enum Body {
    /// The text with its escape sequences, its length, the number of columns, and the style at the end.
    Verbatim { text: String, length: TextOffset, width: usize, end: Style },
    /// A line that was overwritten.
    Glyphs(Vec<Glyph>),
}

/// One line of a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    body: Body,
    /// The style in force where the line begins.
    start: Style,
    /// Whether the line ends in a line feed (`false` for the last one and where an over-long line was cut).
    pub(super) ended: bool,
}

impl Line {
    /// An empty line that starts in this style.
    pub(super) fn new(style: &Style) -> Self {
        Self::reusing(String::new(), style)
    }

    /// As [`Line::new`], in the buffer of a former line.
    pub(super) fn reusing(mut text: String, style: &Style) -> Self {
        text.clear();
        let body = Body::Verbatim { text, length: TextOffset::default(), width: 0, end: style.clone() };
        Self { body, start: style.clone(), ended: false }
    }

    /// The buffer of the line, for the next one.
    pub(super) fn into_buffer(self) -> String {
        match self.body {
            Body::Verbatim { text, .. } => text,
            Body::Glyphs(_) => String::new(),
        }
    }

    /// The style in force where the line begins.
    pub(super) fn start(&self) -> &Style {
        &self.start
    }

    /// Columns in use.
    pub(super) fn width(&self) -> usize {
        match &self.body {
            Body::Verbatim { width, .. } => *width,
            Body::Glyphs(glyphs) => glyphs.len(),
        }
    }

    /// Whether text in `style` can be appended without rewriting the line.
    pub(super) fn is_open_for(&self, style: &Style) -> bool {
        matches!(&self.body, Body::Verbatim { end, .. } if same(end, style))
    }

    /// Appends text of `columns` columns. Returns false where the line is no longer verbatim.
    pub(super) fn push_verbatim(&mut self, more: &str, columns: usize) -> bool {
        let Body::Verbatim { text, length, width, .. } = &mut self.body else { return false };
        text.push_str(more);
        *length += TextOffset::of(more);
        *width += columns;
        true
    }

    /// Records that the verbatim text now ends in this style.
    pub(super) fn set_end(&mut self, style: &Style) {
        if let Body::Verbatim { end, .. } = &mut self.body {
            end.clone_from(style);
        }
    }

    /// The line as single characters; the first call splits it.
    pub(super) fn glyphs(&mut self) -> &mut Vec<Glyph> {
        if let Body::Verbatim { text, .. } = &self.body {
            let glyphs = split_glyphs(text, &self.start);
            self.body = Body::Glyphs(glyphs);
        }
        match &mut self.body {
            Body::Glyphs(glyphs) => glyphs,
            Body::Verbatim { .. } => unreachable!("the line was just split"),
        }
    }

    /// Writes the line to `out`, so that a terminal in the line's first style ends in style `next`.
    pub(super) fn render(&self, next: &Style, out: &mut String) {
        match &self.body {
            Body::Verbatim { text, .. } => out.push_str(text),
            Body::Glyphs(glyphs) => {
                let mut style = &self.start;
                for glyph in glyphs {
                    turn(style, &glyph.style, out);
                    style = &glyph.style;
                    out.push(glyph.symbol);
                }
                turn(style, next, out);
            }
        }
        if self.ended {
            out.push('\n');
        }
    }

    /// Length of what [`Line::render`] writes.
    pub(super) fn rendered_len(&self, next: &Style) -> TextOffset {
        match &self.body {
            Body::Verbatim { length, .. } if self.ended => *length + TextOffset { bytes: 1, utf16: 1 },
            Body::Verbatim { length, .. } => *length,
            Body::Glyphs(_) => {
                let mut out = String::new();
                self.render(next, &mut out);
                TextOffset::of(&out)
            }
        }
    }
}

/// Whether two styles are equal. Pointers are compared first, because styles are mostly clones of one another.
pub(super) fn same(a: &Style, b: &Style) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => false,
    }
}

fn turn(from: &Style, to: &Style, out: &mut String) {
    if same(from, to) {
        return;
    }
    if from.is_some() {
        out.push_str(RESET);
    }
    out.push_str(to.as_deref().unwrap_or_default());
}

/// Splits verbatim text into characters with styles. Sequences other than colours have no column and are dropped.
fn split_glyphs(text: &str, start: &Style) -> Vec<Glyph> {
    use super::escape::{Escape, measure};
    let mut state = StyleState::default();
    if let Some(start) = start {
        state.apply(sgr_parameters(start).unwrap_or_default());
    }
    let mut glyphs = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(symbol) = rest.chars().next() {
        let mut step = symbol.len_utf8();
        if symbol == '\u{1b}' {
            if let Escape::Sequence(len) = measure(rest) {
                step = len;
                if let Some(parameters) = sgr_parameters(&rest[..len]) {
                    state.apply(parameters);
                }
            }
        } else if has_column(symbol) {
            glyphs.push(Glyph { symbol, style: state.style().clone() });
        }
        rest = &rest[step..];
    }
    glyphs
}

/// Whether a character takes a column: all do except control characters other than the tab.
pub(super) fn has_column(symbol: char) -> bool {
    symbol == '\t' || !(symbol.is_ascii_control())
}

/// The parameters of a colour sequence; `None` for every other sequence.
pub(super) fn sgr_parameters(sequence: &str) -> Option<&str> {
    let parameters = sequence.strip_prefix("\u{1b}[")?.strip_suffix('m')?;
    parameters.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')).then_some(parameters)
}

//! The text of a stream as a terminal would show it, updated with each write.
//!
//! A progress bar sends the same line a thousand times with carriage returns between; a notebook should hold its last state only.
//! The model is a cursor over lines. `\r` moves to the start of the line, where later text overwrites; `\b` moves one column back,
//! `\n` to the next line; `CSI K` erases in the line; `CSI A` and relatives move between the last lines, for bars above bars. Colours
//! have no width. They stay as they came while their line is only appended to, and become equivalent colours when it is overwritten.
//! Other control characters and sequences have no width either, and go when their line is overwritten.
//!
//! Only the last [`LIVE_LINES`] lines can still change, and only they are kept: a write returns its effect on the text as an [`Edit`],
//! and the caller keeps the text. So neither memory nor the cost of a write depends on what came before. Columns are characters. A line
//! longer than [`WRAP`] columns continues on the next one without a line feed, as on a very wide screen, which bounds the memory of
//! overwritten lines; cursor movements reach no further than a screen of [`SCREEN`] columns, or to the end of a longer line.

mod escape;
mod line;
mod style;

use crate::output::TextOffset;
pub use escape::strip_ansi;
pub(crate) use escape::{Escape, measure};
use line::{Glyph, Line, Style, sgr_parameters};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::Add;
use style::StyleState;

/// Lines that the cursor can move back to.
const LIVE_LINES: usize = 100;
/// Most columns of a line.
const WRAP: usize = 8192;
/// The column that cursor movements reach on a line that is shorter: the width of a screen. Each blank up to there is stored, so a few
/// bytes must not reach far.
const SCREEN: usize = 200;

/// The effect of a write on the text: what is before `keep` stays, and `tail` follows it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::output) struct Edit {
    pub keep: TextOffset,
    pub tail: String,
}

/// What a terminal shows after the whole text was written to it: progress bars in their last state. Colours stay.
pub fn terminal_text(text: &str) -> String {
    Terminal::new().write(text).tail
}

/// The state of one stream.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::output) struct Terminal {
    /// Length of the text, without an unfinished sequence at its end.
    shown: TextOffset,
    /// Length of the lines that can no longer change, except those in `settling`.
    settled: TextOffset,
    /// Rendered lines that this write made unchangeable. Empty between writes.
    #[serde(skip)]
    settling: String,
    /// Number of lines that can no longer change.
    settled_lines: usize,
    /// The last lines; never empty.
    live: VecDeque<Line>,
    /// Cursor: index in `live`, and column, which may be past the end of the line.
    row: usize,
    column: usize,
    style_state: StyleState,
    /// The start of an escape sequence whose end has not come yet.
    partial: String,
    /// During a write: the first line, counted from the stream's start, that changed other than by growing, and where it began if it
    /// has settled since.
    #[serde(skip)]
    dirty_line: Option<usize>,
    #[serde(skip)]
    dirty_start: Option<TextOffset>,
}

impl Terminal {
    pub fn new() -> Self {
        Self {
            shown: TextOffset::default(),
            settled: TextOffset::default(),
            settling: String::new(),
            settled_lines: 0,
            live: VecDeque::from([Line::new(&None)]),
            row: 0,
            column: 0,
            style_state: StyleState::default(),
            partial: String::new(),
            dirty_line: None,
            dirty_start: None,
        }
    }

    /// Takes in a chunk of the stream.
    pub fn write(&mut self, chunk: &str) -> Edit {
        (self.dirty_line, self.dirty_start) = (None, None);
        if self.partial.is_empty() {
            self.process(chunk);
        } else {
            let mut text = std::mem::take(&mut self.partial);
            text.push_str(chunk);
            self.process(&text);
        }
        let keep = self.dirty_from().map_or(self.shown, |dirty| dirty.min(self.shown));
        let tail = self.tail(keep.bytes);
        self.shown = keep + TextOffset::of(&tail[..tail.len() - self.partial.len()]);
        Edit { keep, tail }
    }

    /// The text after its first `keep` bytes, which end in or before what this write has settled.
    fn tail(&mut self, keep: usize) -> String {
        let mut out = std::mem::take(&mut self.settling);
        let mut from = self.settled.bytes;
        self.settled += TextOffset::of(&out);
        let mut at = self.settled.bytes;
        for (index, line) in self.live.iter().enumerate() {
            let next = self.style_after(index);
            let end = at + line.rendered_len(next).bytes;
            if end > keep {
                line.render(next, &mut out);
            } else {
                // The lines before `keep` are never rendered: a write to the last line costs that line.
                out.clear();
                from = end;
            }
            at = end;
        }
        out.push_str(&self.partial);
        out.drain(..keep.saturating_sub(from).min(out.len()));
        out
    }

    /// The style that must be in force after a live line.
    fn style_after(&self, index: usize) -> &Style {
        self.live.get(index + 1).map_or(self.style_state.style(), Line::start)
    }

    /// Bytes of the text.
    pub fn len(&self) -> usize {
        self.shown.bytes + self.partial.len()
    }

    /// Length of the first `count` live lines.
    fn live_len(&self, count: usize) -> TextOffset {
        let lengths =
            self.live.iter().take(count).enumerate().map(|(index, line)| line.rendered_len(self.style_after(index)));
        lengths.fold(TextOffset::default(), TextOffset::add)
    }

    /// Where the first line begins that this write has changed other than by growing.
    fn dirty_from(&self) -> Option<TextOffset> {
        let line = self.dirty_line?;
        self.dirty_start.or_else(|| {
            let live = self.live_len(line - self.settled_lines);
            Some(self.settled + TextOffset::of(&self.settling) + live)
        })
    }

    fn mark_dirty(&mut self, row: usize) {
        let line = self.settled_lines + row;
        self.dirty_line = Some(self.dirty_line.map_or(line, |dirty| dirty.min(line)));
    }

    fn process(&mut self, mut rest: &str) {
        while !rest.is_empty() {
            let run = rest.bytes().position(|byte| byte.is_ascii_control() && byte != b'\t').unwrap_or(rest.len());
            self.print(&rest[..run]);
            rest = &rest[run..];
            let Some(control) = rest.bytes().next() else { return };
            match control {
                b'\n' => self.next_line(true),
                b'\r' => self.column = 0,
                0x08 => self.column = self.column.saturating_sub(1),
                0x1b => match measure(rest) {
                    Escape::Sequence(len) => {
                        self.sequence(&rest[..len]);
                        rest = &rest[len..];
                        continue;
                    }
                    Escape::Incomplete => {
                        rest.clone_into(&mut self.partial);
                        return;
                    }
                    // If it were kept, it could form a sequence with later text that was never sent.
                    Escape::Alone => {}
                },
                _ => self.keep_if_appending(&rest[..1]),
            }
            rest = &rest[1..];
        }
    }

    /// Whether the cursor is at the end of a line that can be appended to verbatim.
    fn is_appending(&self) -> bool {
        let line = &self.live[self.row];
        self.column == line.width() && line.is_open_for(self.style_state.style())
    }

    fn keep_if_appending(&mut self, zero_width: &str) {
        if self.is_appending() {
            self.live[self.row].push_verbatim(zero_width, 0);
            self.mark_if_inner();
        }
    }

    /// Growth of a line that is not the last one is a change in the middle of the text.
    fn mark_if_inner(&mut self) {
        if self.row + 1 < self.live.len() {
            self.mark_dirty(self.row);
        }
    }

    /// Writes text without control characters at the cursor.
    fn print(&mut self, mut run: &str) {
        while !run.is_empty() {
            if self.column >= WRAP {
                self.next_line(false);
            }
            let room = WRAP - self.column;
            let cut = match run.len() <= room {
                true => run.len(),
                false => run.char_indices().nth(room).map_or(run.len(), |(at, _)| at),
            };
            let (part, rest) = run.split_at(cut);
            if self.is_appending() {
                let columns = part.chars().count();
                self.live[self.row].push_verbatim(part, columns);
                self.column += columns;
                self.mark_if_inner();
            } else {
                self.overwrite(part);
            }
            run = rest;
        }
    }

    fn overwrite(&mut self, text: &str) {
        self.mark_dirty(self.row);
        let style = self.style_state.style();
        let glyphs = self.live[self.row].glyphs();
        if glyphs.len() < self.column {
            glyphs.resize(self.column, Glyph { symbol: ' ', style: None });
        }
        for symbol in text.chars() {
            let glyph = Glyph { symbol, style: style.clone() };
            match glyphs.get_mut(self.column) {
                Some(old) => *old = glyph,
                None => glyphs.push(glyph),
            }
            self.column += 1;
        }
    }

    /// Moves to the start of the next line, which is made if there is none; `by_line_feed` is false at the edge of the screen.
    fn next_line(&mut self, by_line_feed: bool) {
        self.column = 0;
        if self.row + 1 < self.live.len() {
            self.row += 1;
            return;
        }
        if !self.live[self.row].is_open_for(self.style_state.style()) {
            // The colour changed while the cursor was elsewhere. The line must end in it, because the next one begins in it.
            self.mark_dirty(self.row);
            self.live[self.row].glyphs();
        }
        self.live[self.row].ended = by_line_feed;
        let buffer = if self.live.len() == LIVE_LINES { self.settle_first() } else { String::new() };
        self.live.push_back(Line::reusing(buffer, self.style_state.style()));
        self.row = self.live.len() - 1;
    }

    /// Moves the oldest live line to the settled text and returns its buffer. A new line is pushed right after.
    fn settle_first(&mut self) -> String {
        let Some(line) = self.live.pop_front() else { return String::new() };
        if self.dirty_line == Some(self.settled_lines) {
            self.dirty_start = Some(self.settled + TextOffset::of(&self.settling));
        }
        let next = self.live.front().map_or(self.style_state.style(), Line::start);
        line.render(next, &mut self.settling);
        self.settled_lines += 1;
        line.into_buffer()
    }

    /// Carries out one whole escape sequence.
    fn sequence(&mut self, sequence: &str) {
        if let Some(parameters) = sgr_parameters(sequence) {
            return self.colour(sequence, parameters);
        }
        let control = sequence.strip_prefix("\u{1b}[").and_then(|body| {
            let (parameters, letter) = body.split_at(body.len() - 1);
            let number = if parameters.is_empty() { 0 } else { parameters.parse::<usize>().ok()? };
            Some((letter, number))
        });
        let Some((letter, number)) = control else { return self.keep_if_appending(sequence) };
        let steps = number.clamp(1, WRAP);
        match letter {
            "A" | "F" => self.row = self.row.saturating_sub(steps),
            "B" | "E" => self.row = (self.row + steps).min(self.live.len() - 1),
            "C" => self.column = (self.column + steps).min(self.last_column()),
            "D" => self.column = self.column.saturating_sub(steps),
            "G" => self.column = (steps - 1).min(self.last_column()),
            "K" => self.erase_in_line(number),
            _ => self.keep_if_appending(sequence),
        }
        if matches!(letter, "E" | "F") {
            self.column = 0;
        }
    }

    /// The last column that a movement in the cursor's line reaches: the end of its text, or of a screen.
    fn last_column(&self) -> usize {
        self.live[self.row].width().max(self.column).clamp(SCREEN - 1, WRAP - 1)
    }

    fn colour(&mut self, sequence: &str, parameters: &str) {
        let last = self.live.len() - 1;
        let verbatim = self.row == last && self.is_appending();
        self.style_state.apply(parameters);
        if verbatim {
            self.live[last].push_verbatim(sequence, 0);
            self.live[last].set_end(self.style_state.style());
        } else {
            // The rendering of the last line ends in the current colour.
            self.mark_dirty(last);
        }
    }

    /// `CSI K`: 0 erases from the cursor to the line's end, 1 from its start to the cursor, 2 all of it.
    fn erase_in_line(&mut self, mode: usize) {
        let (row, column) = (self.row, self.column);
        let width = self.live[row].width();
        if width == 0 || (mode == 0 && column >= width) || mode > 2 {
            return;
        }
        self.mark_dirty(row);
        let glyphs = self.live[row].glyphs();
        match mode {
            0 => glyphs.truncate(column),
            1 if column + 1 < width => glyphs[..=column].fill(Glyph { symbol: ' ', style: None }),
            _ => glyphs.clear(),
        }
    }
}

#[cfg(test)]
mod tests;

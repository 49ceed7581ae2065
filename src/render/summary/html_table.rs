//! HTML tables as markdown. The input is foreign: data frames of libraries, and anything else that code prints as HTML.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

/// The longest HTML that is read, bytes. The time of the tokenizer grows with the square of the attributes of one tag.
const MAX_HTML: usize = 64 << 10;
/// The most columns of a table.
const MAX_COLUMNS: usize = 100;

/// The text of HTML that holds a table, with its tables as markdown. `None` if there is no table.
pub(super) fn as_markdown(html: &str) -> Option<String> {
    let read = &html[..html.floor_char_boundary(MAX_HTML)];
    let tokenizer = Tokenizer::new(Reader::default(), TokenizerOpts::default());
    let queue = BufferQueue::default();
    queue.push_back(StrTendril::from(read));
    // Pauses belong to scripts, which a fragment without a parser never runs.
    let _ = tokenizer.feed(&queue);
    tokenizer.end();
    let Document { has_table, mut blocks, .. } = tokenizer.sink.0.into_inner().finish();
    if !has_table {
        return None;
    }
    if read.len() < html.len() {
        blocks.push(format!("[… the rest of the table, {} bytes of HTML, is left out here …]", html.len() - read.len()));
    }
    Some(blocks.join("\n")).filter(|text| !text.is_empty())
}

/// What was read so far.
#[derive(Default)]
struct Document {
    has_table: bool,
    /// Finished paragraphs and tables.
    blocks: Vec<String>,
    /// Text outside of tables.
    text: String,
    table: Option<Table>,
    /// In an element whose text is not shown.
    hidden: bool,
}

impl Document {
    fn finish(mut self) -> Self {
        self.end_table();
        self.end_text();
        self
    }

    fn add_text(&mut self, text: &str) {
        match &mut self.table {
            _ if self.hidden => {}
            Some(table) => table.cell().push_str(text),
            None => self.text.push_str(text),
        }
    }

    fn end_text(&mut self) {
        let text = one_line(&std::mem::take(&mut self.text));
        if !text.is_empty() {
            self.blocks.push(text);
        }
    }

    fn end_table(&mut self) {
        self.blocks.extend(self.table.take().and_then(Table::finish));
    }

    fn start(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        match (&*tag.name, &mut self.table) {
            ("style" | "script", _) => {
                self.hidden = true;
                return TokenSinkResult::RawData(RawKind::Rawtext);
            }
            ("table", None) => {
                self.end_text();
                (self.has_table, self.table) = (true, Some(Table::default()));
            }
            ("tr", Some(table)) => table.begin_row(),
            ("td" | "th", Some(table)) => table.begin_cell(span(tag, "colspan"), span(tag, "rowspan")),
            ("br", _) => self.add_text(" "),
            _ => {}
        }
        TokenSinkResult::Continue
    }

    fn end(&mut self, tag: &Tag) {
        match &*tag.name {
            "style" | "script" => self.hidden = false,
            "table" => self.end_table(),
            "p" | "div" | "li" | "h1" | "h2" | "h3" | "caption" if self.table.is_none() => self.end_text(),
            _ => {}
        }
    }
}

fn span(tag: &Tag, name: &str) -> usize {
    let value =
        tag.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| attribute.value.trim().parse());
    value.and_then(Result::ok).unwrap_or(1).clamp(1, MAX_COLUMNS)
}

#[derive(Default)]
struct Table {
    rows: Vec<Vec<String>>,
    /// For each column, the number of following rows that an earlier cell covers.
    covered: Vec<usize>,
    /// Row and column of the cell that text belongs to.
    current: (usize, usize),
    /// Text outside of any cell.
    stray: String,
}

impl Table {
    fn begin_row(&mut self) {
        self.rows.push(Vec::new());
        self.skip_covered();
    }

    /// Adds empty cells where cells of earlier rows reach into this one.
    fn skip_covered(&mut self) {
        let Some(row) = self.rows.last_mut() else { return };
        while let Some(covered) = self.covered.get_mut(row.len()).filter(|covered| **covered > 0) {
            *covered -= 1;
            row.push(String::new());
        }
    }

    fn begin_cell(&mut self, columns: usize, rows: usize) {
        if self.rows.is_empty() {
            self.begin_row();
        }
        self.skip_covered();
        let Some(row) = self.rows.last_mut() else { return };
        let first = row.len();
        let end = MAX_COLUMNS.min(first + columns);
        row.resize(end.max(first), String::new());
        self.covered.resize(self.covered.len().max(end), 0);
        self.covered[first.min(end)..end].fill(rows - 1);
        // The text goes into the first of the cells that it spans.
        self.current = (self.rows.len() - 1, first);
    }

    fn cell(&mut self) -> &mut String {
        let (row, column) = self.current;
        match self.rows.get_mut(row).and_then(|row| row.get_mut(column)) {
            Some(cell) => cell,
            None => &mut self.stray,
        }
    }

    fn finish(self) -> Option<String> {
        let columns = self.rows.iter().map(Vec::len).max().filter(|columns| *columns > 0)?;
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        for (index, row) in self.rows.iter().filter(|row| !row.is_empty()).enumerate() {
            let cells = row.iter().map(|cell| one_line(cell).replace('|', "\\|"));
            let cells: Vec<String> = cells.chain(std::iter::repeat_n(String::new(), columns - row.len())).collect();
            lines.push(format!("| {} |", cells.join(" | ")));
            if index == 0 {
                lines.push(format!("|{}", "---|".repeat(columns)));
            }
        }
        Some(lines.join("\n"))
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[derive(Default)]
struct Reader(RefCell<Document>);

impl TokenSink for Reader {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut document = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => return document.start(&tag),
            Token::TagToken(tag) => document.end(&tag),
            Token::CharacterTokens(text) => document.add_text(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_become_empty_cells() {
        let html = "<table><tr><th colspan=2>both</th><th>c</th></tr><tr><td rowspan=2>x</td><td>1</td><td>2</td></tr>\
                    <tr><td>3</td><td>4</td></tr></table><p>3 rows × 3 columns</p>";
        let expected = "| both |  | c |\n|---|---|---|\n| x | 1 | 2 |\n|  | 3 | 4 |\n3 rows × 3 columns";
        assert_eq!(as_markdown(html).unwrap(), expected);
    }

    #[test]
    fn entities_tags_and_line_breaks_are_text() {
        let html = "before <table><tr><td>a &lt; <b>b</b><br>c\n d</td></tr></table><script>if (a<b) {}</script>after";
        assert_eq!(as_markdown(html).unwrap(), "before\n| a < b c d |\n|---|\nafter");
    }

    #[test]
    fn html_without_table_is_none() {
        assert_eq!(as_markdown("<p>no</p>"), None);
        assert_eq!(as_markdown(""), None);
        assert_eq!(as_markdown("<table></table>"), None);
    }

    #[test]
    fn long_table_is_cut_with_a_note() {
        let row = "<tr><td>1</td></tr>";
        let text = as_markdown(&format!("<table>{}</table>", row.repeat(10_000))).unwrap();
        assert!(text.ends_with("is left out here …]") && text.len() < MAX_HTML);
    }

    proptest! {
        #[test]
        fn any_markup_gives_bounded_text(
            parts in prop::collection::vec("<table>|</table>|<tr>|<td>|<td colspan=99 rowspan=9>|<th>|</td>|text|<|\\||&amp;|<!--|<style>", 0..80)
        ) {
            if let Some(text) = as_markdown(&parts.concat()) {
                prop_assert!(text.len() <= 1000 * (parts.len() + 1));
            }
        }
    }
}

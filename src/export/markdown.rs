//! A notebook as markdown, with images and attachments as files beside it.

use super::chat_roles::RoleLabels;
use super::text::{self, field};
use super::visibility::{self, CellVisibility, Visibility};
use super::{ExportOptions, Exported, bundle, language};
use crate::mime;
use crate::notebook::{Cell, Notebook};
use crate::output::strip_ansi;
use crate::render::{Allowance, escaped};
use crate::wire::json;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// Characters that are escaped in links.
const LINK_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// The most attachments of a cell: the time grows with their number times the length of the cell.
const MAX_ATTACHMENTS: usize = 1000;

pub(super) fn document(notebook: &Notebook, options: &ExportOptions) -> Exported {
    let mut document = Document {
        options,
        language: language(notebook),
        allowance: Allowance::for_source(notebook.cells().map(|cell| json::size(cell.json())).sum()),
        out: String::new(),
        files: Vec::new(),
        names: HashSet::new(),
        copies: HashMap::new(),
        notes: Vec::new(),
    };
    let mut role_labels = RoleLabels::default();
    for (index, cell) in notebook.cells().enumerate() {
        let visible = CellVisibility::of(cell, options);
        if visible.cell != Visibility::Hidden {
            if let Some(who) = role_labels.label(cell) {
                document.block(&format!("**{who}:**"));
            }
            document.folded(visible.cell, "Cell", |document| document.cell(index, cell, visible));
        }
    }
    let Document { mut out, files, notes, .. } = document;
    out.truncate(out.trim_end().len());
    out.push('\n');
    Exported { files, notes, ..Exported::plain(out, "text/markdown", "md") }
}

struct Document<'a> {
    options: &'a ExportOptions,
    language: String,
    allowance: Allowance,
    out: String,
    files: Vec<(String, Vec<u8>)>,
    /// The names of side files that are taken.
    names: HashSet<String>,
    /// How often each name was wanted.
    copies: HashMap<String, usize>,
    notes: Vec<String>,
}

impl Document<'_> {
    /// Writes a part, inside `<details>` if it is folded (GitHub renders it).
    fn folded(&mut self, show: Visibility, what: &str, write: impl FnOnce(&mut Self)) {
        if show == Visibility::Folded {
            self.block(&format!("<details><summary>{what}</summary>"));
        }
        write(self);
        if show == Visibility::Folded {
            self.block("</details>");
        }
    }

    /// Appends a paragraph and an empty line.
    fn block(&mut self, text: &str) {
        let text = text.trim_end();
        if !text.trim().is_empty() {
            self.out.push_str(text.trim_start_matches(['\n', '\r']));
            self.out.push_str("\n\n");
        }
    }

    fn cell(&mut self, index: usize, cell: Cell<'_>, visible: CellVisibility) {
        let source = cell.source();
        match cell.cell_type() {
            "markdown" => {
                let text = self.with_attachments(index, cell, &source);
                self.block(&text);
            }
            "code" => {
                if visible.input != Visibility::Hidden && !source.trim().is_empty() {
                    let language = self.language.clone();
                    self.folded(visible.input, "Code", |document| document.fenced(&language, &source));
                }
                let shown: Vec<_> =
                    cell.outputs().iter().enumerate().map(|(at, output)| (at, output, visibility::output(output))).collect();
                if visible.outputs != Visibility::Hidden && shown.iter().any(|(.., show)| *show != Visibility::Hidden) {
                    self.folded(visible.outputs, "Output", |document| {
                        for (at, output, show) in shown.into_iter().filter(|(.., show)| *show != Visibility::Hidden) {
                            document.folded(show, "Output", |document| document.output(index, at, output));
                        }
                    });
                }
            }
            // A raw cell is meant for one target format.
            _ => match raw_format(cell) {
                None | Some("text/markdown" | "markdown" | "text/html" | "html" | "") => self.block(&source),
                Some(_) => {}
            },
        }
    }

    /// Appends a code block, with a fence longer than any in the text.
    fn fenced(&mut self, language: &str, text: &str) {
        let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
        let fence = "`".repeat(longest.max(2) + 1);
        let word: String = language.chars().filter(|c| c.is_alphanumeric() || matches!(c, '+' | '-' | '#' | '_')).collect();
        let text = text::trimmed(text);
        self.out.push_str(&format!("{fence}{word}\n{text}\n{fence}\n\n"));
    }

    fn output(&mut self, cell: usize, at: usize, output: &Value) {
        match output.get("output_type").and_then(Value::as_str) {
            Some("stream") => self.plain(&text::as_terminal(field(output, "text"))),
            Some("error") => self.plain(&text::plain(output)),
            _ => match bundle(output) {
                Some(data) => self.display(cell, at, data, output),
                None => self.plain(&text::plain(output)),
            },
        }
    }

    fn plain(&mut self, text: &str) {
        let text = strip_ansi(text);
        if !text.trim().is_empty() {
            self.fenced("text", &text);
        }
    }

    fn display(&mut self, cell: usize, at: usize, data: &Map<String, Value>, output: &Value) {
        let mut order = mime::display_order(data.keys().map(String::as_str));
        // Types that need a browser with scripts come last.
        order.sort_by_key(|mime| needs_browser(mime, &data[*mime]));
        let Some(best) = order.first() else { return };
        let value = &data[*best];
        let kind = mime::essence(best);
        match kind.as_str() {
            "text/html" if needs_browser(best, value) => {
                self.file(cell, at, best, text::text(value).into_owned().into_bytes(), "An interactive output");
            }
            // An empty line would end the HTML block.
            "text/html" => {
                let html: Vec<String> =
                    text::text(value).lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
                self.block(&html.join("\n"));
            }
            "text/markdown" => self.block(&text::text(value)),
            "text/latex" => self.latex(&text::text(value)),
            "text/plain" => self.plain(&text::as_terminal(text::text(value))),
            "application/javascript" | "text/javascript" => self.fenced("javascript", &text::text(value)),
            _ if kind == "application/json" => self.fenced("json", &serde_json::to_string_pretty(value).unwrap_or_default()),
            _ if mime::is_binary(best) => match text::bytes(value) {
                Some(bytes) => self.file(cell, at, best, bytes, &alt(data, output)),
                None => {
                    self.notes.push(format!("cell {}: the {kind} of output {} is not base64; left out", cell + 1, at + 1))
                }
            },
            _ if mime::is_json(best) || kind.ends_with(".json") => {
                self.file(cell, at, best, text::text(value).into_owned().into_bytes(), &format!("Data of type {kind}"));
            }
            "image/svg+xml" => self.file(cell, at, best, text::text(value).into_owned().into_bytes(), &alt(data, output)),
            _ => self.plain(&text::text(value)),
        }
    }

    /// A formula as markdown, or a code block if markdown has no such formula.
    fn latex(&mut self, source: &str) {
        let source = source.trim();
        if source.starts_with('$') || !source.starts_with("\\begin{tab") && source.starts_with("\\begin{") {
            self.block(source);
        } else {
            self.fenced("latex", source);
        }
    }

    /// Adds a side file, and its picture or link to the text.
    fn file(&mut self, cell: usize, at: usize, mime: &str, bytes: Vec<u8>, label: &str) {
        let name = self.unused_name(&format!("cell-{:02}-output-{}", cell + 1, at + 1), mime::extension(mime));
        let is_picture = mime::essence(mime).starts_with("image/");
        let url = self.store(name, mime, bytes);
        let label = label.replace(['[', ']', '\n', '\r', '`', '<', '\\', '!'], " ");
        self.block(&format!("{}[{}]({url})", if is_picture { "!" } else { "" }, label.trim()));
    }

    /// Stores a file. Returns its relative path, or a data URL with `inline_files`.
    fn store(&mut self, name: String, mime: &str, bytes: Vec<u8>) -> String {
        if self.options.inline_files {
            use base64::Engine as _;
            let kind = mime::essence(mime);
            let safe = kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'+' | b'-' | b'.'));
            let kind = if safe { kind.as_str() } else { "application/octet-stream" };
            return format!("data:{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes));
        }
        let url = utf8_percent_encode(&name, LINK_ESCAPES).to_string();
        self.files.push((name, bytes));
        url
    }

    /// An unused name in the folder of side files.
    fn unused_name(&mut self, stem: &str, extension: &str) -> String {
        let folder: String =
            self.options.name.chars().map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c }).collect();
        let base = format!("{folder}_files/{stem}");
        let copies = self.copies.entry(format!("{base}.{extension}")).or_default();
        loop {
            *copies += 1;
            let name = if *copies == 1 { format!("{base}.{extension}") } else { format!("{base}-{copies}.{extension}") };
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }

    /// The text with links to extracted files instead of `attachment:` links.
    fn with_attachments(&mut self, index: usize, cell: Cell<'_>, source: &str) -> String {
        let mut text = source.to_owned();
        let attachments = cell.json().get("attachments").and_then(Value::as_object);
        // Longest names first: one name may be a prefix of another.
        let mut names: Vec<&String> = attachments.into_iter().flat_map(Map::keys).collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        if names.len() > MAX_ATTACHMENTS {
            self.notes.push(format!(
                "cell {}: only {MAX_ATTACHMENTS} of {} attachments are exported",
                index + 1,
                names.len()
            ));
            names.truncate(MAX_ATTACHMENTS);
        }
        for name in names {
            let Some(bundle) = attachments.and_then(|all| all[name].as_object()) else { continue };
            let Some((mime, value)) =
                bundle.iter().find(|(mime, _)| mime.starts_with("image/")).or_else(|| bundle.iter().next())
            else {
                continue;
            };
            let links = [format!("attachment:{name}"), format!("attachment:{}", utf8_percent_encode(name, LINK_ESCAPES))];
            if !links.iter().any(|link| text.contains(link.as_str())) {
                continue;
            }
            let bytes =
                if mime::is_binary(mime) { text::bytes(value) } else { Some(text::text(value).into_owned().into_bytes()) };
            let Some(bytes) = bytes else {
                self.notes.push(format!("cell {}: the attachment {name:?} is not base64; left out", index + 1));
                continue;
            };
            let stem: String =
                name.chars().take(60).map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
            let stem = stem.strip_suffix(&format!("_{}", mime::extension(mime))).unwrap_or(&stem).to_owned();
            let file = self.unused_name(&format!("cell-{:02}-{stem}", index + 1), mime::extension(mime));
            let url = self.store(file, mime, bytes);
            // One copy is as long as the attachment; further ones are taken from the allowance.
            let mut is_first = true;
            let mut affordable = || std::mem::take(&mut is_first) || self.allowance.take(url.len());
            let mut is_whole = true;
            for link in links.iter().rev() {
                is_whole &= replace_while(&mut text, link, &url, &mut affordable);
            }
            if !is_whole {
                self.notes
                    .push(format!("cell {}: the attachment {name:?} is shown too often; some links to it stay", index + 1));
            }
        }
        text
    }
}

/// Whether only a browser with scripts can show a value.
fn needs_browser(mime: &str, value: &Value) -> bool {
    match mime::essence(mime).as_str() {
        "text/html" => crate::render::sanitize::has_script(&text::text(value)),
        kind => {
            mime::is_plotly(kind)
                || mime::is_vega(kind)
                || kind.contains("widget-view")
                || kind.contains("bokeh")
                || kind.contains("holoviews")
        }
    }
}

/// The alternative text of a picture, from the metadata or from `text/plain`.
fn alt(data: &Map<String, Value>, output: &Value) -> String {
    let declared = output.get("metadata").and_then(|metadata| metadata.get("alt")).and_then(Value::as_str);
    let plain = data.get("text/plain").map(|value| text::text(value).into_owned()).filter(|text| !text.starts_with('<'));
    let label = declared.map(str::to_owned).or(plain).unwrap_or_else(|| "output".to_owned());
    escaped(&label.chars().take(120).collect::<String>())
}

/// The target format of a raw cell.
fn raw_format(cell: Cell<'_>) -> Option<&str> {
    let metadata = cell.metadata()?;
    metadata.get("format").or_else(|| metadata.get("raw_mimetype"))?.as_str()
}

/// Replaces the occurrences of a link as long as `affordable` returns true. Whether all were replaced.
fn replace_while(text: &mut String, link: &str, url: &str, affordable: &mut dyn FnMut() -> bool) -> bool {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    let mut is_whole = true;
    for (at, _) in text.match_indices(link) {
        if !affordable() {
            is_whole = false;
            break;
        }
        out.push_str(&text[from..at]);
        out.push_str(url);
        from = at + link.len();
    }
    out.push_str(&text[from..]);
    *text = out;
    is_whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::notebook_of;
    use serde_json::json;

    fn of(outputs: Value) -> Exported {
        let cells = json!([{"cell_type": "code", "id": "a", "metadata": {}, "source": "x", "outputs": outputs, "execution_count": 1}]);
        document(&notebook_of(cells), &ExportOptions { name: "a b".to_owned(), ..ExportOptions::default() })
    }

    #[test]
    fn fences_are_longer_than_those_in_the_text() {
        let body = of(json!([{"output_type": "stream", "name": "stdout", "text": "\u{1b}[31m```\n````\u{1b}[0m"}])).body;
        assert_eq!(body, "```python\nx\n```\n\n`````text\n```\n````\n`````\n");
    }

    #[test]
    fn pictures_become_side_files() {
        let data = json!({"image/png": "iVBORw0K\nGgo=", "text/plain": "<Figure>"});
        let exported = of(json!([{"output_type": "display_data", "metadata": {}, "data": data}]));
        assert!(exported.body.ends_with("![output](a%20b_files/cell-01-output-1.png)\n"), "{}", exported.body);
        assert_eq!(exported.files, [("a b_files/cell-01-output-1.png".to_owned(), b"\x89PNG\r\n\x1a\n".to_vec())]);
    }

    #[test]
    fn tables_are_kept_and_scripts_dropped() {
        let html = |html: &str| {
            of(json!([{"output_type": "display_data", "metadata": {}, "data": {"text/html": html, "text/plain": "p"}}]))
        };
        assert!(html("<table>\n\n<tr></tr></table>").body.ends_with("<table>\n<tr></tr></table>\n"));
        assert!(html("<script>x</script>").body.ends_with("```text\np\n```\n"));
    }

    #[test]
    fn attachments_become_side_files_or_data_urls() {
        let cells = json!([{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "![x](attachment:a%20b.png) ![y](attachment:q)",
            "attachments": {"a b.png": {"image/png": "AAAA"}}}]);
        let exported = document(&notebook_of(cells.clone()), &ExportOptions::default());
        assert_eq!(exported.body, "![x](notebook_files/cell-01-a_b.png) ![y](attachment:q)\n");
        assert_eq!(exported.files.len(), 1);
        let inline = document(&notebook_of(cells), &ExportOptions { inline_files: true, ..ExportOptions::default() });
        assert!(inline.files.is_empty() && inline.body.starts_with("![x](data:image/png;base64,AAAA)"));
    }
}

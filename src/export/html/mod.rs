//! A notebook as one self-contained HTML page.
//!
//! Passive content is part of the page: texts, tables without script, pictures as `<img>`, JSON trees. Active content (HTML
//! with scripts or styles of its own, JavaScript, interactive plots) runs in frames without an origin (`sandbox` without
//! `allow-same-origin`). The content security policy forbids all requests. If no frame has foreign scripts, it lists every
//! script by its hash.

mod display;
mod errors;
mod frames;
mod json_tree;
mod remote_references;
mod terminal_text;

use super::chat_roles::RoleLabels;
use super::text;
use super::visibility::{self, CellVisibility, Visibility};
use super::{ExportOptions, Exported, Theme, TitleSource, language, title};
use crate::mime;
use crate::notebook::{Cell, Notebook};
use crate::render::markdown::Heading;
use crate::render::{Allowance, code, escape, escaped, markdown};
use crate::wire::json;
use frames::Frames;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashSet;

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");

/// With fewer headings, the page has no table of contents.
const MIN_HEADINGS_FOR_CONTENTS: usize = 4;

pub(super) fn page(notebook: &Notebook, options: &ExportOptions) -> Exported {
    let (title, title_source) = title(notebook, options);
    let mut page = Page {
        options,
        language: language(notebook),
        out: String::with_capacity(64 << 10),
        allowance: Allowance::for_source(notebook.cells().map(|cell| json::size(cell.json())).sum()),
        headings: Vec::new(),
        frames: Frames::new(options.eager),
        notes: Vec::new(),
        position: Position::default(),
        role_labels: RoleLabels::default(),
    };
    page.head(&title);
    let policy_at = page.out.len();
    page.opening(notebook, &title, title_source);
    let contents_at = page.out.len();
    for (index, cell) in notebook.cells().enumerate() {
        page.cell(index, cell);
    }
    page.closing();
    page.contents(contents_at);
    // The policy depends on all frames, so it is known only now.
    let policy = format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n", page.frames.policy(SCRIPT));
    page.out.insert_str(policy_at, &policy);
    Exported { notes: page.notes, ..Exported::plain(page.out, "text/html; charset=utf-8", "html") }
}

/// The current cell and output, for labels. Numbers start at 1.
#[derive(Debug, Default, Clone, Copy)]
struct Position {
    cell: usize,
    output: usize,
}

struct Page<'a> {
    options: &'a ExportOptions,
    language: String,
    out: String,
    allowance: Allowance,
    headings: Vec<Heading>,
    frames: Frames,
    notes: Vec<String>,
    position: Position,
    role_labels: RoleLabels,
}

impl Page<'_> {
    fn push(&mut self, html: &str) {
        self.out.push_str(html);
    }

    fn push_escaped(&mut self, text: &str) {
        escape(text, &mut self.out);
    }

    fn head(&mut self, title: &str) {
        let theme = match self.options.theme {
            Theme::Auto => "",
            Theme::Light => " data-theme=\"light\"",
            Theme::Dark => " data-theme=\"dark\"",
        };
        let eager = if self.options.eager { " data-eager=\"1\"" } else { "" };
        self.push(&format!("<!doctype html>\n<html lang=\"en\"{theme}{eager}>\n<head>\n<meta charset=\"utf-8\">\n<title>"));
        self.push_escaped(title);
        self.push("</title>\n");
    }

    fn opening(&mut self, notebook: &Notebook, title: &str, title_source: TitleSource) {
        self.push(
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta name=\"referrer\" content=\"no-referrer\">\n<meta name=\"generator\" content=\"Cellkeep\">\n<style>\n",
        );
        self.push(STYLE);
        self.push("</style>\n</head>\n");
        self.push(if self.options.prompts { "<body>\n" } else { "<body class=\"bare\">\n" });
        self.push("<a class=\"vh skip\" href=\"#notebook\">Skip to the notebook</a>\n<header>\n");
        if title_source == TitleSource::Outside {
            self.push("<h1>");
            self.push_escaped(title);
            self.push("</h1>\n");
        }
        self.push("<p class=\"about\">");
        let kernel = notebook.metadata().and_then(|metadata| metadata.get("kernelspec")?.get("display_name")?.as_str());
        let version = notebook.metadata().and_then(|metadata| metadata.get("language_info")?.get("version")?.as_str());
        let language = format!("{} {}", self.language, version.unwrap_or_default());
        let cells = match notebook.len() {
            1 => "1 cell".to_owned(),
            cells => format!("{cells} cells"),
        };
        for about in [kernel.unwrap_or_default(), language.trim(), &cells].into_iter().filter(|about| !about.is_empty()) {
            self.push("<span>");
            self.push_escaped(&about.chars().take(80).collect::<String>());
            self.push("</span>");
        }
        self.push("</p>\n<div class=\"tools\">");
        if self.options.inputs && notebook.cells().any(|cell| cell.is_code()) {
            self.push("<button type=\"button\" id=\"code\">Hide code</button>");
        }
        self.push("<button type=\"button\" id=\"theme\">Dark</button></div>\n</header>\n");
        self.push("<main id=\"notebook\">\n");
    }

    fn closing(&mut self) {
        self.push("</main>\n<footer>Exported by Cellkeep</footer>\n");
        self.frames.shared_blocks(&mut self.out);
        self.push("<script>");
        self.push(SCRIPT);
        self.push("</script>\n</body>\n</html>\n");
    }

    /// Inserts the table of contents before the cells, if there are enough headings.
    fn contents(&mut self, at: usize) {
        if self.headings.len() < MIN_HEADINGS_FOR_CONTENTS {
            return;
        }
        let top = self.headings.iter().map(|heading| heading.level).min().unwrap_or(1);
        let mut contents =
            String::from("<nav class=\"toc\" aria-label=\"Contents\"><details><summary>Contents</summary><ul>\n");
        for heading in self.headings.iter().filter(|heading| heading.level < top + 3) {
            contents.push_str(&format!("<li class=\"l{}\"><a href=\"#", heading.level - top + 1));
            escape(&heading.id, &mut contents);
            contents.push_str("\">");
            escape(&heading.text, &mut contents);
            contents.push_str("</a></li>\n");
        }
        contents.push_str("</ul></details></nav>\n");
        self.out.insert_str(at, &contents);
    }

    /// Writes a part, inside `<details>` if it is folded.
    fn folded(&mut self, show: Visibility, what: &str, write: impl FnOnce(&mut Self)) {
        if show == Visibility::Folded {
            self.push(&format!("<details class=\"fold\"><summary>{what}</summary>\n"));
        }
        write(self);
        if show == Visibility::Folded {
            self.push("</details>\n");
        }
    }

    fn cell(&mut self, index: usize, cell: Cell<'_>) {
        self.position = Position { cell: index + 1, output: 0 };
        let visible = CellVisibility::of(cell, self.options);
        if visible.cell == Visibility::Hidden {
            return;
        }
        let kind = match cell.cell_type() {
            "code" => "code",
            "markdown" => "markdown",
            _ => "raw",
        };
        let label = if kind == "markdown" { "text" } else { kind };
        self.push(&format!(
            "<section class=\"cell {kind}\" id=\"cell-{}\" aria-label=\"Cell {}, {label}\">\n",
            escaped(cell.id()),
            index + 1
        ));
        if let Some(who) = self.role_labels.label(cell) {
            self.push(&format!("<p class=\"who\">{who}</p>\n"));
        }
        self.folded(visible.cell, "Cell", |page| match kind {
            "code" => page.code_cell(cell, visible),
            "markdown" => page.markdown_cell(cell),
            _ => page.raw_cell(cell),
        });
        self.push("</section>\n");
    }

    fn markdown_cell(&mut self, cell: Cell<'_>) {
        let attachments = cell.json().get("attachments");
        let shown = RefCell::new(HashSet::new());
        let embedded = |name: &str| {
            let bundle = attachments?.get(name)?;
            // The first copy is as long as the attachment; further ones are taken from the allowance.
            let is_first = shown.borrow_mut().insert(name.to_owned());
            if is_first || self.allowance.take(json::size(bundle)) { attachment(bundle) } else { None }
        };
        let (html, headings) = markdown::html(&cell.source(), &embedded, &self.allowance);
        self.headings.extend(headings);
        self.push("<div class=\"md\">\n");
        self.push(&html);
        self.push("</div>\n");
    }

    fn raw_cell(&mut self, cell: Cell<'_>) {
        let source = cell.source();
        if !source.trim().is_empty() {
            self.push("<pre class=\"raw\">");
            self.push_escaped(&source);
            self.push("</pre>\n");
        }
    }

    fn code_cell(&mut self, cell: Cell<'_>, visible: CellVisibility) {
        let source = cell.source();
        let prompt = match cell.execution_count() {
            Some(count) => format!("[{count}]"),
            None => "[ ]".to_owned(),
        };
        if visible.input != Visibility::Hidden && !source.trim().is_empty() {
            self.input(&source, &prompt, visible.input);
        }
        let shown: Vec<(&Value, Visibility)> =
            cell.outputs().iter().map(|output| (output, visibility::output(output))).collect();
        if visible.outputs == Visibility::Hidden || shown.iter().all(|(_, show)| *show == Visibility::Hidden) {
            return;
        }
        self.push(&format!("<div class=\"out\" role=\"group\" aria-label=\"Output of cell {}\">\n", self.position.cell));
        self.folded(visible.outputs, "Output", |page| {
            for (at, (output, show)) in shown.into_iter().enumerate().filter(|(_, (_, show))| *show != Visibility::Hidden) {
                page.position.output = at + 1;
                page.folded(show, "Output", |page| page.output(output));
            }
        });
        self.push("</div>\n");
    }

    fn input(&mut self, source: &str, prompt: &str, show: Visibility) {
        let open = if show == Visibility::Open { " open" } else { "" };
        let lines = source.trim_end().lines().count();
        let unit = if lines == 1 { "line" } else { "lines" };
        let cell = self.position.cell;
        self.push(&format!("<details class=\"in\"{open}><summary><span class=\"vh\">Code of cell {cell} </span>"));
        if self.options.prompts {
            self.push(&format!("<span class=\"p\">{prompt}</span>"));
        }
        self.push(&format!(
            "<span class=\"more\">{lines} {unit} of code</span></summary>\n<pre class=\"code\" tabindex=\"0\"><code>"
        ));
        code::html(source.trim_end(), &self.language, &mut self.out);
        self.push("</code></pre></details>\n");
    }

    fn output(&mut self, output: &Value) {
        match output.get("output_type").and_then(Value::as_str) {
            Some("stream") => self.stream(output),
            Some("error") => self.error(output),
            _ => self.display(output),
        }
    }

    fn stream(&mut self, output: &Value) {
        let text = text::as_terminal(text::field(output, "text"));
        let text = text::trimmed(&text);
        if text.is_empty() {
            return;
        }
        let is_stderr = text::field(output, "name") == "stderr";
        if is_stderr {
            self.push("<div class=\"err-stream\" role=\"group\" aria-label=\"Standard error\"><span class=\"label\">stderr</span>\n");
        }
        terminal_text::html(text, "", &mut self.out);
        if is_stderr {
            self.push("</div>\n");
        }
    }
}

/// The data URL of a picture in a cell's attachments. An attachment is a MIME bundle, as in outputs.
fn attachment(bundle: &Value) -> Option<String> {
    let bundle = bundle.as_object()?;
    let mimes = mime::display_order(bundle.keys().map(String::as_str));
    let mime = mimes.into_iter().find(|mime| display::picture(mime).is_some())?;
    let kind = display::picture(mime)?;
    let mut url = format!("data:{kind};base64,");
    if kind == "image/svg+xml" {
        text::encode(&display::svg(&text::text(&bundle[mime])), &mut url);
    } else if !text::push_base64(&bundle[mime], &mut url) {
        return None;
    }
    Some(url)
}

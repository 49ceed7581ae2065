//! Displays and results in a page: which representation of the MIME bundle is shown, and how.

use super::{Page, terminal_text};
use crate::export::{bundle, text};
use crate::mime;
use crate::output::strip_ansi;
use crate::render::{code, escape, markdown, math, sanitize};
use crate::web::Library;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// In bytes. For a larger SVG, a bitmap is preferred if the output has one.
const LARGE_SVG: usize = 300 << 10;
/// Rows of a CSV table, with the header.
const MAX_ROWS: usize = 200;

/// How a representation is written into the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rendering {
    Plotly(Library),
    Vega,
    Html,
    Frame,
    Markdown,
    Latex,
    Svg,
    Picture,
    Audio,
    Video,
    Csv,
    Script,
    Json,
    Text,
}

/// The MIME type of a picture for a data URL; `None` if browsers do not show the type as a picture.
pub(super) fn picture(mime: &str) -> Option<&'static str> {
    const KNOWN: &[&str] =
        &["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp", "image/svg+xml", "image/x-icon"];
    let kind = mime::essence(mime);
    if kind == "image/jpg" {
        return Some("image/jpeg");
    }
    KNOWN.iter().find(|known| **known == kind).copied()
}

/// An SVG with its namespace, without which browsers do not show it as a picture. Some kernels omit it.
pub(super) fn svg(source: &str) -> String {
    match source.find("<svg") {
        Some(at) if !source[at..].split('>').next().unwrap_or_default().contains("xmlns=") => {
            format!("{}<svg xmlns=\"http://www.w3.org/2000/svg\"{}", &source[..at], &source[at + 4..])
        }
        _ => source.to_owned(),
    }
}

impl Page<'_> {
    pub(super) fn display(&mut self, output: &Value) {
        let Some(data) = bundle(output) else {
            // An output type that the format does not have: its text is better than nothing.
            return terminal_text::html(&text::plain(output), "", &mut self.out);
        };
        if self.options.prompts
            && let Some(count) = output.get("execution_count").and_then(Value::as_u64)
        {
            self.push(&format!("<p class=\"p\"><span class=\"vh\">Result </span>[{count}]:</p>\n"));
        }
        let none = Map::new();
        let metadata = output.get("metadata").and_then(Value::as_object).unwrap_or(&none);
        let order = mime::display_order(data.keys().map(String::as_str));
        for mime in &order {
            if let Some(rendering) = rendering_of(mime, data)
                && self.represent(rendering, mime, data, metadata)
            {
                self.alternatives(mime, rendering, data);
                return;
            }
        }
        self.fallback(&order, data);
    }

    /// For bundles without a representation that a page can show: plots without their library, widgets, unknown types.
    fn fallback(&mut self, order: &[&str], data: &Map<String, Value>) {
        let Some(mime) = order.first() else {
            return self.push("<p class=\"hint\">An empty output.</p>\n");
        };
        let value = &data[*mime];
        let kind = mime::essence(mime);
        if mime::is_plotly(&kind) || mime::is_vega(&kind) {
            self.push("<p class=\"hint\">An interactive plot. This page was made without its library; here is its specification.</p>\n");
            let spec = value.as_str().and_then(|text| crate::wire::json::parse_lenient(text.as_bytes()).ok());
            super::json_tree::html(spec.as_ref().unwrap_or(value), "plot", false, &self.allowance, &mut self.out);
        } else if kind.contains("widget-view") || kind.contains("bokeh") || kind.contains("holoviews") {
            self.push("<p class=\"hint\">An interactive output (<code>");
            self.push_escaped(&kind);
            self.push("</code>) that needs a running kernel.</p>\n");
        } else {
            self.download_link(mime, value);
        }
    }

    fn represent(
        &mut self,
        rendering: Rendering,
        mime: &str,
        data: &Map<String, Value>,
        metadata: &Map<String, Value>,
    ) -> bool {
        let value = &data[mime];
        match rendering {
            Rendering::Plotly(library) => return self.plotly(library, value),
            Rendering::Vega => return self.vega(mime, value),
            Rendering::Html => {
                let cleaned = sanitize::html(&text::text(value), &self.allowance);
                self.push("<div class=\"html\" role=\"region\" tabindex=\"0\" aria-label=\"");
                self.label("Table or text");
                self.push("\">");
                self.push(&cleaned);
                self.push("</div>\n");
            }
            Rendering::Frame => self.framed(&text::text(value)),
            Rendering::Markdown => {
                let (html, _) = markdown::html(&text::text(value), &|_| None, &self.allowance);
                self.push("<div class=\"md\" style=\"margin-left:0\">");
                self.push(&html);
                self.push("</div>\n");
            }
            Rendering::Latex => {
                math::latex_html(&text::text(value), &self.allowance, &mut self.out);
                self.push("\n");
            }
            Rendering::Svg => {
                let mut url = String::from("data:image/svg+xml;base64,");
                text::encode(&svg(&text::text(value)), &mut url);
                self.picture(mime, data, metadata, |out| {
                    out.push_str(&url);
                    true
                });
            }
            Rendering::Picture => self.picture(mime, data, metadata, |out| {
                out.push_str("data:");
                out.push_str(picture(mime).unwrap_or("image/png"));
                out.push_str(";base64,");
                text::push_base64(value, out)
            }),
            Rendering::Audio | Rendering::Video => return self.media(rendering, mime, value),
            Rendering::Csv => return self.csv(&text::text(value)),
            Rendering::Script => {
                // The script finds an element to write into, as in Jupyter.
                let script = text::text(value).replace("</script", "<\\/script").replace("<!--", "<\\!--");
                self.framed(&format!(
                    "<div id=\"output\"></div><script>const element=document.getElementById(\"output\");</script><script>{script}</script>"
                ));
            }
            Rendering::Json => {
                let own = |key: &str| metadata.get(mime).and_then(|own| own.get(key)).or_else(|| metadata.get(key));
                let open = own("expanded").and_then(Value::as_bool).unwrap_or(false);
                let root = own("root").and_then(Value::as_str).unwrap_or("root").to_owned();
                super::json_tree::html(value, &root, open, &self.allowance, &mut self.out);
            }
            Rendering::Text => {
                let shown = text::as_terminal(text::text(value));
                terminal_text::html(text::trimmed(&shown), "wide", &mut self.out);
            }
        }
        true
    }

    /// Appends a label for screen readers.
    fn label(&mut self, what: &str) {
        let _ = write!(self.out, "{what}, output {} of cell {}", self.position.output, self.position.cell);
    }

    fn framed(&mut self, html: &str) {
        if !self.allowance.take(super::frames::FRAME_BYTES) {
            return self.push("<p class=\"hint\">This page has too many active outputs to show this one.</p>\n");
        }
        let library = super::remote_references::library(html, plotly_bundle).filter(|library| library.is_available());
        let (html, disabled) = super::remote_references::disable(html);
        let title = format!("Output {} of cell {}", self.position.output, self.position.cell);
        if let Some(library) = library {
            return self.frames.plot_html(library, &html, &title, &mut self.out);
        }
        if disabled > 0 {
            let cell = self.position.cell;
            self.push(
                "<p class=\"hint\">This output wants files from the network, which an exported page does not load.</p>\n",
            );
            self.notes.push(format!("cell {cell}: an output refers to files on the network, which the page does not load"));
        }
        self.frames.html(&html, &title, &mut self.out);
    }

    fn plotly(&mut self, library: Library, value: &Value) -> bool {
        if !library.is_available() {
            self.library_missing("plotly");
            return false;
        }
        let height = value.pointer("/layout/height").and_then(Value::as_u64).unwrap_or(450);
        let traces = value.get("data").and_then(Value::as_array).map_or(0, Vec::len);
        let kind = value.pointer("/data/0/type").and_then(Value::as_str).unwrap_or("scatter");
        let name = value.pointer("/layout/title/text").or_else(|| value.pointer("/layout/title")).and_then(Value::as_str);
        let title =
            format!("Plotly figure {}· {kind} · {traces} traces", name.map(|name| format!("{name} ")).unwrap_or_default());
        let spec = serde_json::json!({ "spec": value }).to_string();
        self.frames.plot(library, &spec, Some(height), &title, &mut self.out);
        true
    }

    fn vega(&mut self, mime: &str, value: &Value) -> bool {
        if !Library::Vega.is_available() {
            self.library_missing("vega");
            return false;
        }
        let mode = if mime::essence(mime).contains("vegalite") { "vega-lite" } else { "vega" };
        // Some programs send the specification as text.
        let parsed = value.as_str().and_then(|text| crate::wire::json::parse_lenient(text.as_bytes()).ok());
        let value = parsed.as_ref().unwrap_or(value);
        let name = value.get("title").and_then(|title| title.as_str().or_else(|| title.get("text")?.as_str()));
        let title = format!("Vega plot {}", name.unwrap_or_default());
        let spec = serde_json::json!({ "spec": value, "mode": mode }).to_string();
        self.frames.plot(Library::Vega, &spec, None, title.trim(), &mut self.out);
        true
    }

    fn library_missing(&mut self, name: &str) {
        let note = format!("this build has no {name} library (make web builds it), so {name} plots are not interactive");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn picture(
        &mut self,
        mime: &str,
        data: &Map<String, Value>,
        metadata: &Map<String, Value>,
        source: impl FnOnce(&mut String) -> bool,
    ) {
        let own = |key: &str| metadata.get(mime).and_then(|own| own.get(key)).or_else(|| metadata.get(key));
        let before = self.out.len();
        let mut class = String::from("pic");
        match own("needs_background").and_then(Value::as_str) {
            Some("light") => class.push_str(" light"),
            Some("dark") => class.push_str(" dark"),
            _ => {}
        }
        if own("unconfined").and_then(Value::as_bool) == Some(true) {
            class.push_str(" free");
        }
        self.push(&format!("<figure class=\"{class}\"><img decoding=\"async\" "));
        let size =
            |key: &str| own(key).and_then(Value::as_f64).filter(|size| (1.0..=20_000.0).contains(size)).map(f64::round);
        let (width, height) = match (size("width"), size("height")) {
            (None, None) => png_size(mime, &data[mime]).unwrap_or((None, None)),
            sizes => sizes,
        };
        for (name, size) in [("width", width), ("height", height)] {
            if let Some(size) = size {
                self.push(&format!("{name}=\"{size}\" "));
            }
        }
        self.push("alt=\"");
        self.alt(data, own("alt"));
        self.push("\" src=\"");
        if source(&mut self.out) {
            self.push("\"></figure>\n");
        } else {
            self.out.truncate(before);
            self.push("<p class=\"hint\">A picture (");
            self.push_escaped(&mime::essence(mime));
            self.push(") whose data is not valid base64.</p>\n");
            self.notes.push(format!("cell {}: a picture is not valid base64", self.position.cell));
        }
    }

    fn alt(&mut self, data: &Map<String, Value>, declared: Option<&Value>) {
        let plain = data.get("text/plain").map(|value| strip_ansi(&text::text(value)));
        let declared = declared.and_then(Value::as_str).map(str::to_owned);
        // `<Figure size 640x480 with 1 Axes>` tells less than the position.
        match declared.or(plain).filter(|text| !text.trim().is_empty() && !text.starts_with('<')) {
            Some(text) => {
                let short: String = text.trim().chars().take(300).collect();
                self.push_escaped(&short);
            }
            None => self.label("Picture"),
        }
    }

    fn media(&mut self, rendering: Rendering, mime: &str, value: &Value) -> bool {
        let kind = safe_mime(mime);
        let tag = if rendering == Rendering::Audio { "audio" } else { "video" };
        let before = self.out.len();
        self.push(&format!("<{tag} controls preload=\"metadata\" aria-label=\""));
        self.label(if rendering == Rendering::Audio { "Sound" } else { "Film" });
        self.push(&format!("\" src=\"data:{kind};base64,"));
        if !text::push_base64(value, &mut self.out) {
            self.out.truncate(before);
            return false;
        }
        self.push(&format!("\"></{tag}>\n"));
        true
    }

    fn csv(&mut self, source: &str) -> bool {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source.as_bytes());
        let rows: Vec<csv::StringRecord> = reader.records().take(MAX_ROWS + 1).map_while(Result::ok).collect();
        if rows.is_empty() {
            return false;
        }
        self.push("<div class=\"html\" role=\"region\" tabindex=\"0\" aria-label=\"");
        self.label("Table");
        self.push("\"><table>");
        for (at, row) in rows.iter().take(MAX_ROWS).enumerate() {
            let cell = if at == 0 { "th" } else { "td" };
            self.push(match at {
                0 => "<thead><tr>",
                1 => "<tbody><tr>",
                _ => "<tr>",
            });
            for field in row {
                self.push(&format!("<{cell}>"));
                self.push_escaped(field);
                self.push(&format!("</{cell}>"));
            }
            self.push(if at == 0 { "</tr></thead>" } else { "</tr>" });
        }
        self.push("</tbody></table>");
        if rows.len() > MAX_ROWS {
            self.push(&format!("<p class=\"hint\">The first {MAX_ROWS} rows.</p>"));
        }
        self.push("</div>\n");
        if rows.len() > MAX_ROWS {
            self.download_link("text/csv", &Value::from(source));
        }
        true
    }

    /// A link that saves the value, for types that browsers do not show.
    fn download_link(&mut self, mime: &str, value: &Value) {
        let extension = mime::extension(mime);
        self.push(&format!(
            "<a class=\"chip\" download=\"cell-{:02}-output-{}.{extension}\" href=\"data:application/octet-stream;base64,",
            self.position.cell, self.position.output
        ));
        if !mime::is_binary(mime) || !text::push_base64(value, &mut self.out) {
            text::encode(&text::text(value), &mut self.out);
        }
        self.push("\">Download <small>");
        let short: String = mime.chars().take(100).collect();
        self.push_escaped(&short);
        self.push("</small></a>\n");
    }

    /// The text representations of an output that shows another one.
    fn alternatives(&mut self, shown: &str, rendering: Rendering, data: &Map<String, Value>) {
        if matches!(rendering, Rendering::Text | Rendering::Json) {
            return;
        }
        let alternatives = ["text/plain", "text/latex"].into_iter().filter(|mime| *mime != shown).filter_map(|mime| {
            let text = strip_ansi(&text::text(data.get(mime)?));
            // `<Object at 0x…>` tells the reader nothing.
            (!text.trim().is_empty() && !text.starts_with('<') && text.len() <= 4000).then_some((mime, text))
        });
        for (mime, text) in alternatives.collect::<Vec<_>>() {
            let what = if mime == "text/plain" { "as text" } else { "as LaTeX" };
            self.push(&format!("<details class=\"alts\"><summary>{what}</summary><pre class=\"wide\">\n"));
            if mime == "text/latex" {
                code::html(&text, "latex", &mut self.out)
            } else {
                escape(&text, &mut self.out)
            }
            self.push("</pre></details>\n");
        }
    }
}

/// How a type is rendered; `None` if a page cannot show it.
fn rendering_of(mime: &str, data: &Map<String, Value>) -> Option<Rendering> {
    let kind = mime::essence(mime);
    let value = &data[mime];
    let has_bitmap = || data.keys().any(|other| other != mime && picture(other).is_some_and(|kind| kind != "image/svg+xml"));
    Some(match kind.as_str() {
        _ if mime::is_plotly(&kind) && value.is_object() => Rendering::Plotly(plotly_bundle(value)),
        _ if mime::is_vega(&kind) && (value.is_object() || value.is_string()) => Rendering::Vega,
        _ if mime::is_plotly(&kind) || mime::is_vega(&kind) => return None,
        _ if kind.contains("widget-view") || kind.contains("bokehjs") || kind.contains("holoviews") => return None,
        "text/html" if sanitize::needs_frame(&text::text(value)) => Rendering::Frame,
        "text/html" => Rendering::Html,
        "text/markdown" => Rendering::Markdown,
        "text/latex" => Rendering::Latex,
        "image/svg+xml" if has_bitmap() && text::pieces(value).map(str::len).sum::<usize>() > LARGE_SVG => return None,
        "image/svg+xml" => Rendering::Svg,
        _ if picture(&kind).is_some() => Rendering::Picture,
        _ if kind.starts_with("audio/") => Rendering::Audio,
        _ if kind.starts_with("video/") => Rendering::Video,
        "text/csv" => Rendering::Csv,
        "application/javascript" | "text/javascript" => Rendering::Script,
        "application/json" => Rendering::Json,
        _ if kind.ends_with("+json") || kind.ends_with(".json") => Rendering::Json,
        _ if kind.starts_with("text/") => Rendering::Text,
        _ => return None,
    })
}

/// The smallest bundle of Plotly that can draw all traces.
fn plotly_bundle(figure: &Value) -> Library {
    const BASIC: &[&str] = &["scatter", "bar", "pie"];
    const CARTESIAN: &[&str] = &[
        "box",
        "contour",
        "heatmap",
        "histogram",
        "histogram2d",
        "histogram2dcontour",
        "image",
        "scatterternary",
        "violin",
    ];
    // Traces in a template are not drawn.
    let traces = figure.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |trace: &Value| match trace.get("type").map_or(Some("scatter"), Value::as_str) {
        Some(kind) if BASIC.contains(&kind) => Library::PlotlyBasic,
        Some(kind) if CARTESIAN.contains(&kind) => Library::PlotlyCartesian,
        _ => Library::PlotlyFull,
    };
    traces.iter().map(of).max().unwrap_or(Library::PlotlyBasic)
}

/// The MIME type if it is safe in an attribute and a data URL; otherwise `application/octet-stream`.
fn safe_mime(mime: &str) -> String {
    let kind = mime::essence(mime);
    let safe = kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'+' | b'.'));
    if safe { kind } else { "application/octet-stream".to_owned() }
}

/// Width and height from the header of a PNG, so that the page does not jump when the picture appears.
fn png_size(mime: &str, value: &Value) -> Option<(Option<f64>, Option<f64>)> {
    if mime::essence(mime) != "image/png" {
        return None;
    }
    let start: String = text::pieces(value).flat_map(str::chars).filter(|c| !c.is_ascii_whitespace()).take(32).collect();
    let bytes = text::bytes(&Value::String(start))?;
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (bytes.get(12..16)? == b"IHDR").then(|| Some((Some(f64::from(number(16)?)), Some(f64::from(number(20)?)))))?
}

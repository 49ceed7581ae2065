//! Frames without an origin for active outputs, the scripts that they share, and the page's content security policy.

use crate::render::{escape, sanitize};
use crate::web::Library;
use base64::Engine as _;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

const STYLE: &str = include_str!("assets/frame.css");
const SCRIPT: &str = include_str!("assets/frame.js");
const LOADER: &str = include_str!("assets/loader.js");
/// Removes WebRTC, which can connect to any host and which no content security policy forbids.
const NO_RTC: &str = include_str!("assets/no_rtc.js");

/// What a frame adds to its content, with escapes. A unit test compares. Bytes.
pub(super) const FRAME_BYTES: usize = 8 << 10;

#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Whether all frames load at once and not when they come into view.
    eager: bool,
    /// Whether a frame has scripts of the notebook.
    foreign_scripts: bool,
    /// Whether a frame has foreign HTML.
    html: bool,
    plots: bool,
    /// The smallest bundle that draws all Plotly figures of the page.
    plotly: Option<Library>,
    vega: bool,
    /// The hashes of the libraries in the page.
    hashes: Vec<String>,
}

/// The policy of a frame: these scripts, and no requests.
fn inner_policy(scripts: &str) -> String {
    format!(
        "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data: blob:; \
         worker-src blob:"
    )
}

const ANY_SCRIPT: &str = "'unsafe-inline' 'unsafe-eval' data: blob:";

fn head(policy: &str) -> String {
    format!(
        "<!doctype html><html><head><meta charset=\"utf-8\"><meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\
         <style>{STYLE}</style></head><body>"
    )
}

fn hash(script: &str) -> String {
    format!("'sha256-{}'", base64::engine::general_purpose::STANDARD.encode(Sha256::digest(script)))
}

impl Frames {
    pub(super) fn new(eager: bool) -> Self {
        Self { eager, ..Self::default() }
    }

    /// A frame with foreign HTML. If the HTML has no scripts, its policy permits none.
    pub(super) fn html(&mut self, html: &str, title: &str, out: &mut String) {
        let has_script = sanitize::has_script(html);
        self.foreign_scripts |= has_script;
        self.html = true;
        let policy = if has_script { inner_policy(ANY_SCRIPT) } else { inner_policy(&hash(SCRIPT)) };
        out.push_str("<iframe class=\"frame\" sandbox=\"allow-scripts allow-downloads\" ");
        out.push_str(if self.eager { "title=\"" } else { "loading=\"lazy\" title=\"" });
        escape(title, out);
        out.push_str("\" srcdoc=\"");
        let webrtc_guard = if has_script { format!("<script>{NO_RTC}</script>") } else { String::new() };
        for part in [&head(&policy), &webrtc_guard, html, "\n<script>", SCRIPT, "</script></body></html>"] {
            escape(part, out);
        }
        out.push_str("\"></iframe>\n");
    }

    /// The placeholder of a plot: the page's script creates its frame from the specification and the library.
    pub(super) fn plot(&mut self, library: Library, json: &str, height: Option<u64>, title: &str, out: &mut String) {
        let height = height.map(|height| format!(" data-height=\"{}\"", height.min(4000))).unwrap_or_default();
        self.placeholder(library, &height, json, title, out);
    }

    /// The placeholder of foreign HTML that loads a library from a CDN. The page contains that library.
    pub(super) fn plot_html(&mut self, library: Library, html: &str, title: &str, out: &mut String) {
        self.foreign_scripts = true;
        self.placeholder(library, " data-html=\"1\"", &serde_json::json!({ "html": html }).to_string(), title, out);
    }

    fn placeholder(&mut self, library: Library, attributes: &str, json: &str, title: &str, out: &mut String) {
        self.plots = true;
        let name = if library == Library::Vega {
            self.vega = true;
            "vega"
        } else {
            self.plotly = self.plotly.max(Some(library));
            "plotly"
        };
        out.push_str(&format!("<div class=\"plot\" data-lib=\"{name}\"{attributes} role=\"figure\" data-title=\""));
        escape(title, out);
        out.push_str("\" aria-label=\"");
        escape(title, out);
        out.push_str("\"><script type=\"application/json\">");
        // In JSON, `<` occurs only in strings, where it can be escaped.
        out.push_str(&json.replace('<', "\\u003c"));
        out.push_str("</script><noscript><p class=\"hint\">This plot needs JavaScript.</p></noscript></div>\n");
    }

    /// What all plots share, once per page: text that the page's script inserts into each frame.
    pub(super) fn shared_blocks(&mut self, out: &mut String) {
        if !self.plots {
            return;
        }
        let block = |id: &str, text: &str, out: &mut String| {
            out.push_str(&format!("<script type=\"text/plain\" id=\"{id}\">"));
            out.push_str(text);
            out.push_str("</script>\n");
        };
        block("frame-head", &head(&inner_policy(ANY_SCRIPT)), out);
        block("frame-script", SCRIPT, out);
        block("frame-loader", &[NO_RTC, LOADER].concat(), out);
        let libraries =
            [self.plotly.map(|library| ("lib-plotly", library)), self.vega.then_some(("lib-vega", Library::Vega))];
        for (id, library) in libraries.into_iter().flatten() {
            if let Some(script) = library.script() {
                self.hashes.push(hash(&script));
                block(id, &script, out);
            }
        }
    }

    /// The page's content security policy. Frames inherit it, so it permits what they need. Scripts are listed by their
    /// hashes, unless a frame has foreign scripts.
    pub(super) fn policy(&self, page_script: &str) -> String {
        let mut scripts = BTreeSet::from([hash(page_script)]);
        if self.html || self.plots {
            scripts.insert(hash(SCRIPT));
        }
        scripts.extend(self.hashes.iter().cloned());
        // The 3D plots of Plotly create functions from text.
        if self.plotly == Some(Library::PlotlyFull) {
            scripts.insert("'unsafe-eval'".to_owned());
        }
        let known = scripts.into_iter().collect::<Vec<_>>().join(" ");
        let scripts = if self.foreign_scripts { ANY_SCRIPT } else { &known };
        let framed = self.html || self.plots;
        format!(
            "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:{blobs}; media-src data:{blobs}; \
             font-src data:; {workers}base-uri 'none'; form-action 'none'",
            blobs = if framed { " blob:" } else { "" },
            workers = if framed { "worker-src blob:; " } else { "" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_as_long_as_declared_at_most() {
        let mut out = String::new();
        Frames::new(false).html("<script></script>", "Output 1 of cell 1", &mut out);
        assert!((1 << 10..=FRAME_BYTES).contains(&out.len()), "{}", out.len());
    }
}

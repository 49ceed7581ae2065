//! Remote references in the HTML of a frame: they are disabled, since a page loads nothing and a blocked script is an error.
//!
//! The scanner renames attributes in place and leaves all other bytes unchanged. The API of `lol_html` can set and remove
//! attributes but not rename them, so it would move them within their tags and change exported pages.

use crate::web::Library;
use serde_json::{Value, json};

/// The library that HTML of Altair or Plotly loads from a CDN. `bundle` selects the bundle of Plotly for a figure.
pub(super) fn library(html: &str, bundle: impl Fn(&Value) -> Library) -> Option<Library> {
    if html.contains("vega-embed") && html.contains("vegaEmbed") && html.contains("https://") {
        return Some(Library::Vega);
    }
    let call = html.find("Plotly.newPlot(")?;
    // This HTML contains Plotly itself, which is larger than any call.
    if html[..call].len() > 500_000 {
        return None;
    }
    let from = call + html[call..].find('[')?;
    let traces = crate::wire::json::parse_lenient(&html.as_bytes()[from..from + list_len(&html[from..])]).ok()?;
    Some(bundle(&json!({ "data": traces })))
}

/// Length in bytes of the JSON list at the start.
fn list_len(text: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// Renames attributes with remote addresses. Returns the HTML and the number of them.
pub(super) fn disable(html: &str) -> (String, usize) {
    let mut out = String::with_capacity(html.len());
    let mut rest = html;
    let mut count = 0;
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let name_len = rest[1..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        let name = rest[1..1 + name_len].to_ascii_lowercase();
        if !matches!(
            name.as_str(),
            "script" | "link" | "img" | "iframe" | "source" | "video" | "audio" | "embed" | "object" | "image"
        ) {
            out.push('<');
            rest = &rest[1..];
            continue;
        }
        let end = tag_len(rest);
        let (tag, found) = disable_in_tag(&rest[..end]);
        out.push_str(&tag);
        count += found;
        rest = &rest[end..];
        // The text of a script is not HTML.
        if name == "script" {
            let end = rest.to_ascii_lowercase().find("</script").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    (out, count)
}

/// Length in bytes of the tag at the start; `>` inside quotes does not end it.
fn tag_len(text: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (byte, quote) {
            (b'"' | b'\'', None) => quote = Some(byte),
            (_, Some(open)) if open == byte => quote = None,
            (b'>', None) => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A tag with its remote attributes renamed, and the number of them.
fn disable_in_tag(tag: &str) -> (String, usize) {
    let lower = tag.to_ascii_lowercase();
    let mut out = String::with_capacity(tag.len());
    let (mut from, mut count) = (0, 0);
    for name in ["src", "href", "srcset", "poster", "data", "xlink:href"] {
        let mut at = 0;
        while let Some(found) = lower[at..].find(name).map(|found| at + found) {
            at = found + name.len();
            let starts_name = lower[..found].ends_with(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '/'));
            let Some(value) = lower[at..].trim_start().strip_prefix('=') else { continue };
            let value = value.trim_start().trim_start_matches(['"', '\'']).trim_start();
            let is_local = value.starts_with("data:")
                || value.starts_with("blob:")
                || value.starts_with('#')
                || value.starts_with("about:");
            if starts_name && !is_local && found >= from {
                out.push_str(&tag[from..found]);
                out.push_str("data-not-loaded-");
                from = found;
                count += 1;
            }
        }
    }
    out.push_str(&tag[from..]);
    (out, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_altair_and_plotly_are_found() {
        let bundle =
            |figure: &Value| if figure["data"][0]["type"] == "bar" { Library::PlotlyBasic } else { Library::PlotlyFull };
        let plotly = "<script src='https://cdn'></script><script>Plotly.newPlot(\"a\", [{\"type\":\"bar\",\"x\":\"]\"}], {\"x\":[]})</script>";
        assert_eq!(library(plotly, bundle), Some(Library::PlotlyBasic));
        assert_eq!(library("<script>s={'vega-embed':'https://cdn'};f(vegaEmbed)</script>", bundle), Some(Library::Vega));
        assert_eq!(library("<script>Plotly.newPlot(</script>", bundle), None);
        assert_eq!(library("<b>vega-embed</b>", bundle), None);
    }

    #[test]
    fn remote_addresses_are_disabled() {
        let html = "<script src=\"https://cdn/x.js\"></script><script>a='<img src=x>'</script><img src='data:image/png;base64,a' alt='src'>";
        let (out, count) = disable(html);
        assert_eq!(count, 1);
        assert!(
            out.starts_with("<script data-not-loaded-src=\"https://cdn/x.js\"></script><script>a='<img src=x>'"),
            "{out}"
        );
        assert!(out.ends_with("<img src='data:image/png;base64,a' alt='src'>"));
        assert_eq!(disable("<link rel=stylesheet href=//x><iframe src=/y></iframe><b src=x>").1, 2);
        assert_eq!(disable("<img"), ("<img".to_owned(), 0));
    }
}

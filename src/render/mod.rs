//! The texts of notebooks as passive HTML: terminal colours, code, markdown, formulas, foreign HTML; and
//! outputs as short plain text ([`summary`]).
//!
//! For any input, the HTML has no script, no event handler, no links other than `http`, `https`, `mailto` and `#`, and
//! nothing that a browser fetches. Pages add their own style: the classes are those of [`code::Kind`] and [`ansi::Style`].

mod allowance;
pub mod ansi;
pub mod code;
pub mod markdown;
pub mod math;
mod math_spans;
mod parser_limits;
mod pictures;
pub mod sanitize;
pub mod summary;

pub use allowance::Allowance;

/// Appends a text, escaped for element content and for attributes in double quotes.
pub fn escape(text: &str, out: &mut String) {
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let entity = match byte {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'"' => "&quot;",
            b'\'' => "&#39;",
            _ => continue,
        };
        out.push_str(&text[from..at]);
        out.push_str(entity);
        from = at + 1;
    }
    out.push_str(&text[from..]);
}

/// As [`escape`], but returns the text.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    escape(text, &mut out);
    out
}

/// Whether a link is permitted in a page: `http`, `https`, `mailto`, or an anchor in the page.
pub fn is_safe_link(url: &str) -> bool {
    // Browsers ignore spaces and control characters in front of a scheme.
    let lower = url.trim_start_matches(|c: char| c <= ' ').to_ascii_lowercase();
    ["http://", "https://", "mailto:", "#"].iter().any(|scheme| lower.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_covers_text_and_attributes() {
        assert_eq!(escaped("<a b='c' d=\"e\">é&"), "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;é&amp;");
    }

    #[test]
    fn only_harmless_link_schemes_are_safe() {
        for safe in ["https://a.b", " HTTP://x", "mailto:a@b", "#part"] {
            assert!(is_safe_link(safe), "{safe}");
        }
        for unsafe_ in
            ["javascript:alert(1)", " java\nscript:x", "data:text/html,x", "//host", "file:///etc", "vbscript:x", ""]
        {
            assert!(!is_safe_link(unsafe_), "{unsafe_}");
        }
    }
}

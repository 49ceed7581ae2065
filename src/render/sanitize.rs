//! Foreign HTML: the part that is safe in a page, and whether it needs a frame instead.

use super::allowance::Allowance;
use super::code::CLASSES;
use super::pictures::{self, ATTACHMENT};
use super::{escape, is_safe_link, parser_limits};
use ammonia::Builder;
use std::borrow::Cow;
use std::sync::LazyLock;

/// Prefix of ids in foreign HTML and of links to them, so that they do not collide with ids of the page.
const ID_PREFIX: &str = "c-";

/// Elements that sanitising would remove together with their purpose: they need a frame.
const FRAMED: &[&str] = &[
    "script", "style", "iframe", "object", "embed", "link", "form", "canvas", "svg", "math", "button", "input", "select",
    "textarea", "template", "frameset", "dialog", "portal", "base", "meta",
];

static BUILDER: LazyLock<Builder<'static>> = LazyLock::new(builder);

fn builder() -> Builder<'static> {
    let mut builder = Builder::default();
    builder
        .add_tags(["audio", "video", "source", "section", "u", "font", "big"])
        .add_tag_attributes("audio", ["controls", "src", "loop"])
        .add_tag_attributes("video", ["controls", "src", "loop", "width", "height", "muted"])
        .add_tag_attributes("source", ["src", "type"])
        .add_tag_attributes("details", ["open"])
        .add_tag_attributes("td", ["valign"])
        .add_tag_attributes("th", ["valign"])
        .add_tag_attributes("font", ["color"])
        .add_generic_attributes(["id", "dir", "style", "role", "aria-label", "aria-hidden"])
        .filter_style_properties(STYLES.iter().copied().collect())
        .add_allowed_classes("span", CLASSES.iter().copied())
        .add_allowed_classes("span", ["task", "done"])
        .add_allowed_classes("pre", ["code"])
        .add_allowed_classes("sup", ["fn-ref"])
        .add_allowed_classes("div", ["alert", "alert-info", "alert-success", "alert-warning", "alert-danger", "footnote"])
        .url_schemes(["http", "https", "mailto", "data", "attachment"].into_iter().collect())
        .link_rel(Some("noopener noreferrer nofollow"))
        .id_prefix(Some(ID_PREFIX))
        .attribute_filter(attribute);
    builder
}

/// Permitted style properties: appearance, nothing that could cover the page or load a resource.
const STYLES: &[&str] = &[
    "background-color",
    "border",
    "border-bottom",
    "border-collapse",
    "border-color",
    "border-left",
    "border-right",
    "border-spacing",
    "border-style",
    "border-top",
    "border-width",
    "color",
    "font-family",
    "font-size",
    "font-style",
    "font-weight",
    "height",
    "line-height",
    "list-style-type",
    "max-height",
    "max-width",
    "min-width",
    "opacity",
    "padding",
    "padding-bottom",
    "padding-left",
    "padding-right",
    "padding-top",
    "text-align",
    "text-decoration",
    "text-indent",
    "text-transform",
    "vertical-align",
    "white-space",
    "width",
    "word-break",
];

/// Checks links and sources by element. ammonia has checked their schemes.
fn attribute<'u>(element: &str, attribute: &str, value: &'u str) -> Option<Cow<'u, str>> {
    match (element, attribute) {
        (_, "style") if value.contains(['(', '\\', '@', '<']) => harmless_style(value),
        ("a", "href") => match value.trim().strip_prefix('#') {
            Some(place) => Some(format!("#{ID_PREFIX}{place}").into()),
            None => is_safe_link(value).then_some(Cow::Borrowed(value)),
        },
        ("img", "src") if is_data_of(value, "image/") || value.starts_with(ATTACHMENT) => Some(Cow::Borrowed(value)),
        ("img", "src") => Some(pictures::not_loaded(value).into()),
        ("audio" | "video" | "source", "src") => {
            (is_data_of(value, "audio/") || is_data_of(value, "video/")).then_some(Cow::Borrowed(value))
        }
        (_, "href" | "src" | "cite" | "background" | "poster" | "srcset") => None,
        _ => Some(Cow::Borrowed(value)),
    }
}

/// Colour functions are permitted; `url(…)` and similar ones are not.
fn harmless_style(value: &str) -> Option<Cow<'_, str>> {
    let lower = value.to_ascii_lowercase();
    let fetches = ["url", "image", "expression", "\\", "@", "<", "src("].iter().any(|word| lower.contains(word));
    (!fetches).then_some(Cow::Borrowed(value))
}

fn is_data_of(url: &str, family: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
        && url.get(5..5 + family.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(family))
}

/// The part of foreign HTML that is safe in a page. Pictures that it does not have are replaced by their names.
pub fn html(html: &str, allowance: &Allowance) -> String {
    pictures::embed(clean(html), &|_| None, allowance)
}

/// As [`html()`], but with the sources of pictures as [`pictures::embed`] reads them.
pub(super) fn clean(html: &str) -> String {
    if parser_limits::exceeds(html) {
        let mut out = String::from("<pre>");
        escape(html, &mut out);
        out.push_str("</pre>");
        return out;
    }
    BUILDER.clean(html).to_string()
}

/// Whether [`clean`] would remove something that a frame can show: scripts, styles, drawings, forms.
pub fn needs_frame(html: &str) -> bool {
    tags(html).any(|(name, rest)| match name.as_str() {
        // pandas writes one with each table; the page has its own style for tables.
        "style" => !rest.trim_start().starts_with("scoped"),
        _ => FRAMED.contains(&name.as_str()) || has_handler(rest),
    })
}

/// Whether HTML contains anything that runs.
pub fn has_script(html: &str) -> bool {
    tags(html).any(|(name, rest)| matches!(name.as_str(), "script" | "iframe") || has_handler(rest))
}

/// The opening tags: their names in lower case, and the text after the name. Each byte belongs to at most one tag, so the
/// time is linear for any input.
fn tags(html: &str) -> impl Iterator<Item = (String, &str)> {
    let mut rest = html;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find('<')? + 1..];
            let name = rest.bytes().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(rest.len());
            if name > 0 {
                let end = rest.find('>').unwrap_or(rest.len());
                let tag = (rest[..name.min(20)].to_ascii_lowercase(), &rest[name..end.max(name)]);
                rest = &rest[end.max(name)..];
                return Some(tag);
            }
        }
    })
}

/// Whether a tag has an attribute such as `onclick=`, or a link that is a script.
fn has_handler(tag: &str) -> bool {
    let lower = tag.to_ascii_lowercase();
    lower.contains("javascript:")
        || lower.match_indices("on").any(|(at, _)| {
            let begins = lower[..at].ends_with(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '/'));
            begins && is_assigned(&lower[at + 2..])
        })
}

/// Whether the text starts with letters and an equals sign. The longest event name has 25 letters.
fn is_assigned(text: &str) -> bool {
    let letters = text.bytes().take(30).take_while(u8::is_ascii_alphabetic).count();
    letters > 0 && text[letters..].trim_start().starts_with('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_kept_and_scripts_removed() {
        let pandas = "<div>\n<style scoped>.dataframe tbody tr th { x }</style>\n<table border=\"1\" class=\"dataframe\"><thead>\
            <tr style=\"text-align: right;\"><th></th><th>a</th></tr></thead><tbody><tr><th>0</th><td>1</td></tr></tbody></table></div>";
        assert!(!needs_frame(pandas));
        let table = clean(pandas);
        assert!(table.contains("<td>1</td>") && table.contains("text-align:right"), "{table}");
        assert!(!table.contains("style scoped") && !table.contains("dataframe"), "{table}");
    }

    #[test]
    fn remote_sources_are_removed_and_ids_prefixed() {
        let cleaned = html(
            "<img src=\"http://x/a.png\" alt=\"a\"><img src=\"data:image/png;base64,aaaa\"><a href=\"#p\" id=\"q\">l</a>",
            &Allowance::for_source(0),
        );
        assert!(cleaned.contains("data:image/svg+xml;base64") && !cleaned.contains("http://x"), "{cleaned}");
        assert!(cleaned.contains("href=\"#c-p\"") && cleaned.contains("id=\"c-q\""), "{cleaned}");
        for gone in [
            "<a href=\"data:text/html,x\">",
            "<a href=\"attachment:a\">",
            "<video poster=\"http://x\">",
            "<p style=\"background-color:url(x)\">",
        ] {
            let cleaned = clean(gone);
            assert!(!cleaned.contains("href=") && !cleaned.contains("poster") && !cleaned.contains("url("), "{cleaned}");
        }
    }

    #[test]
    fn active_or_styled_html_needs_a_frame() {
        for html in [
            "<SCRIPT>",
            "<style>",
            "<svg/>",
            "<b onclick=x>",
            "<img src=x onerror =y>",
            "<img/onerror=y>",
            "<a href='javascript:x'>",
            "<form>",
            "<a\nonclick='x'>",
        ] {
            assert!(needs_frame(html), "{html}");
        }
        for html in ["<b>on = 1</b>", "a < script", "<table><tr><td>once=1</td></tr></table>", "<p class=\"only\">"] {
            assert!(!needs_frame(html), "{html}");
        }
        assert!(has_script("<b onclick=x>") && !has_script("<style>"));
    }

    #[test]
    fn deep_nesting_is_refused_quickly() {
        let begun = std::time::Instant::now();
        for tag in ["<div>", "<b>", "<blockquote>", "<table>", "<td>", "<p>", "<li>", "<a>"] {
            clean(&tag.repeat(20_000));
        }
        for piece in ["<a ", "on", "<a on", "<", "<a onx", "<script>", "<a o'\"> "] {
            let html = format!("<a {}", piece.repeat(200_000));
            needs_frame(&html);
            has_script(&html);
        }
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}

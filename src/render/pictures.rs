//! Pictures in sanitised HTML: attachments of the cell are embedded, and pictures from elsewhere, which a page does not load, are
//! replaced by their names.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::allowance::Allowance;
use super::escape;

/// Scheme of pictures that are attachments of the cell.
pub(super) const ATTACHMENT: &str = "attachment:";
/// Scheme that the sanitiser gives to pictures that are not loaded. Foreign HTML cannot have it: the sanitiser knows no such scheme.
pub(super) const NOT_LOADED: &str = "not-loaded:";
/// The longest name of a picture that is not loaded, in characters.
const MAX_NAME: usize = 60;
/// A picture without content, of which browsers show the alternative text.
const EMPTY: &str = "data:,";

/// The source of a picture that is not loaded, for [`embed`].
pub(super) fn not_loaded(source: &str) -> String {
    let name: String = source.chars().take(MAX_NAME).collect();
    format!("{NOT_LOADED}{name}")
}

/// Replaces the sources of pictures. `attachment` returns the data URL of an attachment by its name.
pub(super) fn embed(clean: String, attachment: &dyn Fn(&str) -> Option<String>, allowance: &Allowance) -> String {
    if !clean.contains(ATTACHMENT) && !clean.contains(NOT_LOADED) {
        return clean;
    }
    let mut out = String::with_capacity(clean.len() + 256);
    let mut rest = clean.as_str();
    while let Some(at) = rest.find("<img ") {
        let end = at + tag_len(&rest[at..]);
        out.push_str(&rest[..at]);
        embed_in_tag(&rest[at..end], attachment, allowance, &mut out);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn embed_in_tag(tag: &str, attachment: &dyn Fn(&str) -> Option<String>, allowance: &Allowance, out: &mut String) {
    const SOURCE: &str = " src=\"";
    let source = tag.find(SOURCE).map(|at| at + SOURCE.len());
    let Some((before, source, after)) = source.and_then(|from| {
        let end = from + tag[from..].find('"')?;
        Some((&tag[..from], &tag[from..end], &tag[end..]))
    }) else {
        return out.push_str(tag);
    };
    let url: Cow<'_, str> = if let Some(name) = source.strip_prefix(ATTACHMENT) {
        let name = unescaped(name);
        attachment(&name).map_or_else(|| name_picture(&format!("{ATTACHMENT}{name}"), allowance), Cow::from)
    } else if let Some(name) = source.strip_prefix(NOT_LOADED) {
        name_picture(&name.replace("&amp;", "&"), allowance)
    } else {
        source.into()
    };
    out.push_str(before);
    match url {
        Cow::Borrowed(unchanged) => out.push_str(unchanged),
        Cow::Owned(url) => escape(&url, out),
    }
    out.push_str(after);
}

/// A picture of the name of one that is not loaded.
fn name_picture(name: &str, allowance: &Allowance) -> Cow<'static, str> {
    let short: String = name.chars().take(MAX_NAME).collect();
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"420\" height=\"40\"><rect width=\"419\" height=\"39\" x=\".5\" y=\".5\" \
         rx=\"6\" fill=\"#f4f4f5\" stroke=\"#a1a1aa\"/><text x=\"12\" y=\"25\" font-family=\"sans-serif\" font-size=\"12\" \
         fill=\"#52525b\">not in this page: ",
    );
    escape(&short, &mut svg);
    svg.push_str("</text></svg>");
    let url = format!("data:image/svg+xml;base64,{}", STANDARD.encode(svg));
    if allowance.take(url.len()) { url.into() } else { EMPTY.into() }
}

/// The name of an attachment, decoded from HTML and URL escapes.
fn unescaped(name: &str) -> String {
    let plain = name.replace("&amp;", "&");
    percent_encoding::percent_decode_str(&plain).decode_utf8().map_or_else(|_| plain.clone(), Cow::into_owned)
}

/// Length in bytes of the tag at the start; `>` inside quotes does not end it.
pub(super) fn tag_len(text: &str) -> usize {
    let mut quote = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quote = !quote,
            b'>' if !quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_pictures_are_replaced() {
        let attachment = |name: &str| (name == "a b").then(|| "data:image/png;base64,AA\"".to_owned());
        let of = |html: &str| embed(html.to_owned(), &attachment, &Allowance::for_source(0));
        assert_eq!(
            of("<img alt=\">\" src=\"attachment:a%20b\" x>"),
            "<img alt=\">\" src=\"data:image/png;base64,AA&quot;\" x>"
        );
        assert!(of("<img src=\"attachment:other\">").starts_with("<img src=\"data:image/svg+xml;base64,"));
        assert!(of("<img src=\"not-loaded:http://x\">").starts_with("<img src=\"data:image/svg+xml;base64,"));
        for unchanged in ["attachment:a b <img src=\"data:,x\">", "<a href=\"attachment:q\">", "<img alt=\"attachment:\">"] {
            assert_eq!(of(unchanged), unchanged);
        }
    }

    #[test]
    fn names_are_left_out_without_allowance() {
        let allowance = Allowance::for_source(0);
        while allowance.take(100) {}
        let page = embed("<img src=\"not-loaded:x\">".to_owned(), &|_| None, &allowance);
        assert_eq!(page, "<img src=\"data:,\">");
    }
}

//! Which foreign HTML the parser (html5ever) reads in linear time. Its time is quadratic in the depth of elements and in the number of
//! attributes of a tag.

/// Deepest nesting; browsers flatten at 512.
const MAX_DEPTH: usize = 256;
/// The most attributes of a tag.
const MAX_ATTRIBUTES: u32 = 256;

/// Whether the parser would take much longer than for other HTML of this length.
pub(super) fn exceeds(html: &str) -> bool {
    is_too_deep(html) || has_too_many_attributes(html)
}

/// Counts opening tags without closing ones. An estimate, too small by the void elements at most.
fn is_too_deep(html: &str) -> bool {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let bytes = html.as_bytes();
    for at in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'<').map(|(at, _)| at) {
        match bytes.get(at + 1) {
            Some(b'/') => depth = depth.saturating_sub(1),
            Some(byte) if byte.is_ascii_alphabetic() && !is_void(&html[at + 1..]) => depth += 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest > MAX_DEPTH
}

fn is_void(tag: &str) -> bool {
    const VOID: &[&str] =
        &["area", "br", "col", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "p", "li", "td", "th", "tr"];
    let end = tag.bytes().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(tag.len());
    VOID.iter().any(|void| void.eq_ignore_ascii_case(&tag[..end]))
}

/// The states of the HTML standard's tokenizer inside a tag.
#[derive(Clone, Copy, Debug, PartialEq)]
enum InTag {
    Name,
    BeforeAttribute,
    AttributeName,
    AfterAttributeName,
    BeforeValue,
    Unquoted,
    DoubleQuoted,
    SingleQuoted,
}

const STATES: [InTag; 8] = [
    InTag::Name,
    InTag::BeforeAttribute,
    InTag::AttributeName,
    InTag::AfterAttributeName,
    InTag::BeforeValue,
    InTag::Unquoted,
    InTag::DoubleQuoted,
    InTag::SingleQuoted,
];

/// Whether a tag may have too many attributes. Where a tag begins depends on comments and raw text, so every `<` with a letter is
/// followed as one, all at the same time: of those in the same state only the one with the most attributes matters.
fn has_too_many_attributes(html: &str) -> bool {
    let mut counts = [None::<u32>; STATES.len()];
    let mut before = [0; 2];
    for byte in html.bytes() {
        let mut next = [None; STATES.len()];
        for state in STATES {
            let Some(count) = counts[state as usize] else { continue };
            let Some((state, new)) = step(state, byte) else { continue };
            let count = count + u32::from(new);
            if count > MAX_ATTRIBUTES {
                return true;
            }
            next[state as usize] = next[state as usize].max(Some(count));
        }
        // `<a` and `</a`; an end tag can have attributes too.
        if byte.is_ascii_alphabetic() && (before[1] == b'<' || before == *b"</") {
            next[InTag::Name as usize] = next[InTag::Name as usize].max(Some(0));
        }
        (counts, before) = (next, [before[1], byte]);
    }
    false
}

/// The next state, and whether an attribute begins. `None` at the end of the tag.
fn step(state: InTag, byte: u8) -> Option<(InTag, bool)> {
    use InTag::{
        AfterAttributeName, AttributeName, BeforeAttribute, BeforeValue, DoubleQuoted, Name, SingleQuoted, Unquoted,
    };
    let is_blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c');
    let next = match (state, byte) {
        (DoubleQuoted, b'"') | (SingleQuoted, b'\'') => BeforeAttribute,
        (DoubleQuoted | SingleQuoted, _) => state,
        (_, b'>') => return None,
        (BeforeValue, b'"') => DoubleQuoted,
        (BeforeValue, b'\'') => SingleQuoted,
        (BeforeValue, _) => {
            if is_blank {
                BeforeValue
            } else {
                Unquoted
            }
        }
        (Unquoted, _) => {
            if is_blank {
                BeforeAttribute
            } else {
                Unquoted
            }
        }
        (AttributeName | AfterAttributeName, b'=') => BeforeValue,
        (_, b'/') => BeforeAttribute,
        (Name, _) => {
            if is_blank {
                BeforeAttribute
            } else {
                Name
            }
        }
        (AttributeName, _) => {
            if is_blank {
                AfterAttributeName
            } else {
                AttributeName
            }
        }
        (BeforeAttribute | AfterAttributeName, _) if is_blank => state,
        (BeforeAttribute | AfterAttributeName, _) => return Some((AttributeName, true)),
    };
    Some((next, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_counted_in_every_form() {
        let most = MAX_ATTRIBUTES as usize;
        for attribute in [" a", " a=1", " a=\">\"", " a='<b>'", "/a", " a = \"x\"", "a=\"\"", " <a", "\ta=\n'\"'"] {
            let tag = |count: usize| format!("<a {}>", attribute.repeat(count));
            assert!(has_too_many_attributes(&tag(most + 1)), "{attribute}");
            assert!(!has_too_many_attributes(&tag(most - 1)), "{attribute}");
        }
        let many = " a".repeat(most + 1);
        for hidden in [
            format!("<!-- <a x=\" --><b{many}>"),
            format!("<xmp><a x='</xmp><b{many}>"),
            format!("<a x=\"<b>\"{many}>"),
            format!("</b{many}>"),
        ] {
            assert!(has_too_many_attributes(&hidden));
        }
    }

    #[test]
    fn text_and_tables_are_within_the_limits() {
        let words = "a = \"b\" c ".repeat(1000);
        for html in [
            format!("<pre>{words}</pre>"),
            format!("<p>1 < 2 {words}"),
            "<table>".to_owned() + &"<tr><td class=\"a\" style='b'>x</td></tr>".repeat(1000),
        ] {
            assert!(!exceeds(&html));
        }
        assert!(exceeds(&"<div>".repeat(300)));
    }
}

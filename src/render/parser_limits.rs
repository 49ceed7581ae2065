//! Which foreign HTML the parser (html5ever) reads in linear time, with a result that is not much larger than the HTML. Its time is
//! quadratic in the number of attributes of a tag, and in the number of open elements. Formatting elements that are never closed are
//! opened again in each paragraph, so four bytes can become hundreds of elements. What the parser makes of a text only the parser
//! knows, so it reads the text once without keeping anything, and stops as soon as a limit is exceeded.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;

use html5ever::tendril::{StrTendril, TendrilSink as _};
use html5ever::tree_builder::{ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::{Attribute, ExpandedName, ParseOpts, QualName, local_name, ns, parse_fragment};

/// The most open elements; browsers flatten at a depth of 512.
const MAX_OPEN: usize = 256;
/// The most attributes of a tag.
const MAX_ATTRIBUTES: u32 = 256;
/// The most bytes of elements for each byte of HTML, and those of any HTML.
const MAX_FACTOR: usize = 8;
const BASE: usize = 64 << 10;
/// The limits are checked after each piece of this many bytes.
const PIECE: usize = 1 << 10;

/// Whether the parser would take much longer than for other HTML of this length, or make much more of it.
pub(super) fn exceeds(html: &str) -> bool {
    has_too_many_attributes(html) || grows_too_much(html)
}

fn grows_too_much(html: &str) -> bool {
    let counts = Rc::<Counts>::default();
    let most_made = BASE + MAX_FACTOR * html.len();
    let context = QualName::new(None, ns!(html), local_name!("div"));
    let mut parser = parse_fragment(Dropped(counts.clone()), ParseOpts::default(), context, Vec::new(), false);
    let mut rest = html;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE));
        parser.process(StrTendril::from(piece));
        if counts.open.get() > MAX_OPEN || counts.made.get() > most_made {
            return true;
        }
        rest = after;
    }
    false
}

/// What the parser holds and has made.
#[derive(Debug, Default)]
struct Counts {
    /// Elements that the parser refers to: the open ones, and the formatting elements that it may open again.
    open: Cell<usize>,
    /// The size of all elements with their attributes, in bytes.
    made: Cell<usize>,
}

/// An element. Nothing but the parser refers to it.
#[derive(Debug)]
struct Element {
    name: QualName,
    counts: Rc<Counts>,
}

impl Drop for Element {
    fn drop(&mut self) {
        self.counts.open.set(self.counts.open.get().saturating_sub(1));
    }
}

/// A tree that keeps no elements.
struct Dropped(Rc<Counts>);

impl Dropped {
    fn element(&self, name: QualName, attributes: &[Attribute]) -> Rc<Element> {
        const TAG: usize = 8;
        let size = |attribute: &Attribute| TAG + attribute.name.local.len() + attribute.value.len();
        let bytes = TAG + attributes.iter().map(size).sum::<usize>();
        self.0.made.set(self.0.made.get().saturating_add(bytes));
        self.0.open.set(self.0.open.get() + 1);
        Rc::new(Element { name, counts: self.0.clone() })
    }

    fn nameless(&self) -> Rc<Element> {
        self.element(QualName::new(None, ns!(), local_name!("")), &[])
    }
}

impl TreeSink for Dropped {
    type Handle = Rc<Element>;
    type Output = ();
    type ElemName<'a> = ExpandedName<'a>;

    fn finish(self) {}

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> Rc<Element> {
        self.nameless()
    }

    fn elem_name<'a>(&'a self, element: &'a Rc<Element>) -> ExpandedName<'a> {
        element.name.expanded()
    }

    fn create_element(&self, name: QualName, attributes: Vec<Attribute>, _: ElementFlags) -> Rc<Element> {
        self.element(name, &attributes)
    }

    fn create_comment(&self, _: StrTendril) -> Rc<Element> {
        self.nameless()
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> Rc<Element> {
        self.nameless()
    }

    fn append(&self, _: &Rc<Element>, _: NodeOrText<Rc<Element>>) {}

    fn append_based_on_parent_node(&self, _: &Rc<Element>, _: &Rc<Element>, _: NodeOrText<Rc<Element>>) {}

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    fn get_template_contents(&self, template: &Rc<Element>) -> Rc<Element> {
        template.clone()
    }

    fn same_node(&self, a: &Rc<Element>, b: &Rc<Element>) -> bool {
        Rc::ptr_eq(a, b)
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn append_before_sibling(&self, _: &Rc<Element>, _: NodeOrText<Rc<Element>>) {}

    fn add_attrs_if_missing(&self, _: &Rc<Element>, _: Vec<Attribute>) {}

    fn remove_from_parent(&self, _: &Rc<Element>) {}

    fn reparent_children(&self, _: &Rc<Element>, _: &Rc<Element>) {}
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
            "<b><i>x</i></b>".repeat(10_000),
            "<p><b>x</p><p>y</b></p>".repeat(10_000),
            "<tr><td>x<td><b>y</b>".repeat(1000),
        ] {
            assert!(!exceeds(&html), "{}", &html[..40]);
        }
    }

    #[test]
    fn open_elements_are_counted_as_the_parser_sees_them() {
        let unclosed = (0..250).map(|n| format!("<b a={n}>")).collect::<String>();
        for html in [
            "<div>".repeat(300),
            "<div></x>".repeat(300),
            (0..300).map(|n| format!("<b a={n}><table></b></table>")).collect(),
            format!("<p>{unclosed}{}", "<p>x".repeat(100_000)),
            format!("<p><b title=\"{}\">{}", "x".repeat(10_000), "<p>x".repeat(10_000)),
        ] {
            assert!(exceeds(&html), "{}", &html[..20]);
        }
    }
}

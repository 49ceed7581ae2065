//! The width and height of an image, from its first bytes.

use crate::mime;

/// Where the size is looked for, bytes. A photograph has previews and colour profiles before it.
const MAX_HEADER: usize = 1 << 20;
/// As [`MAX_HEADER`], for the start tag of an SVG.
const MAX_SVG_HEADER: usize = 64 << 10;
/// CSS pixels per unit of length.
const UNITS: &[(&str, f64)] =
    &[("px", 1.0), ("pt", 4.0 / 3.0), ("pc", 16.0), ("in", 96.0), ("cm", 96.0 / 2.54), ("mm", 9.6 / 2.54), ("", 1.0)];

/// Width and height in pixels; of an SVG in CSS pixels. `None` for other files, and for images without a size.
pub fn image_size(mime: &str, bytes: &[u8]) -> Option<(u32, u32)> {
    let essence = mime::essence(mime);
    if !essence.starts_with("image/") {
        return None;
    }
    let (width, height) = if essence == "image/svg+xml" {
        svg_size(&String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SVG_HEADER)]))?
    } else {
        let size = imagesize::blob_size(&bytes[..bytes.len().min(MAX_HEADER)]).ok()?;
        (u32::try_from(size.width).ok()?, u32::try_from(size.height).ok()?)
    };
    (width > 0 && height > 0).then_some((width, height))
}

/// The size that the start tag says; a side that it does not say follows from its `viewBox`.
fn svg_size(text: &str) -> Option<(u32, u32)> {
    let tag = svg_tag(text)?;
    let view_box = attribute(tag, "viewBox").and_then(|value| {
        let mut numbers = value.split([' ', ',', '\t', '\n', '\r']).filter(|part| !part.is_empty());
        let numbers = [numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?];
        let [width, height] = [numbers[2].parse::<f64>().ok()?, numbers[3].parse::<f64>().ok()?];
        (width > 0.0 && height > 0.0).then_some((width, height))
    });
    let side = |name| attribute(tag, name).and_then(pixels);
    let (width, height) = match (side("width"), side("height"), view_box) {
        (Some(width), Some(height), _) => (width, height),
        (Some(width), None, Some(view_box)) => (width, width * view_box.1 / view_box.0),
        (None, Some(height), Some(view_box)) => (height * view_box.0 / view_box.1, height),
        (None, None, Some(view_box)) => view_box,
        _ => return None,
    };
    // A conversion from a float saturates, so sizes beyond `u32` are left out before.
    let whole = |number: f64| (number < f64::from(u32::MAX)).then(|| number.round() as u32);
    Some((whole(width)?, whole(height)?))
}

/// The inside of the first `<svg ...>`.
fn svg_tag(text: &str) -> Option<&str> {
    let start = text.match_indices("<svg").map(|(at, name)| &text[at + name.len()..]);
    let tag = start.into_iter().find(|rest| rest.starts_with(|c: char| c.is_ascii_whitespace() || c == '>'))?;
    let mut quote = None;
    for (at, c) in tag.char_indices() {
        match quote {
            None if c == '>' => return Some(&tag[..at]),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

/// The value of an attribute in the inside of a tag.
fn attribute<'a>(tag: &'a str, wanted: &str) -> Option<&'a str> {
    let mut rest = tag;
    while let Some((name, after)) = rest.split_once('=') {
        let value = after.trim_start();
        let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (value, after) = value[1..].split_once(quote)?;
        if name.trim() == wanted {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// A length in CSS pixels. `None` for one that depends on where the image is shown (`100%`, `2em`).
fn pixels(length: &str) -> Option<f64> {
    let length = length.trim();
    let (number, factor) = UNITS.iter().find_map(|(unit, factor)| Some((length.strip_suffix(unit)?, factor)))?;
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number > 0.0).then_some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn svg(text: &str) -> Option<(u32, u32)> {
        image_size("image/svg+xml", text.as_bytes())
    }

    #[test]
    fn size_is_read_from_header() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\x80\0\0\x01\xe0\x08\x06\0\0\0";
        assert_eq!(image_size("image/png", png), Some((640, 480)));
        assert_eq!(image_size("image/gif", b"GIF89a\x03\0\x02\0\0\0\0"), Some((3, 2)));
        let jpeg = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc0\0\x11\x08\0\x07\0\x09\x03\x01\x22\0\x02\x11\x01\x03\x11\x01";
        assert_eq!(image_size("image/jpeg", jpeg), Some((9, 7)));
        let webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\x04\x40\0\0\x07\x10\x11\x11\x88\x88\xfe\x07";
        assert_eq!(image_size("image/webp", webp), Some((5, 2)));
        assert_eq!(image_size("application/pdf", png), None);
        assert_eq!(image_size("image/png", b"\x89PNG\r\n\x1a\n\0\0"), None);
        assert_eq!(image_size("image/gif", b"GIF89a\0\0\x02\0\0\0\0"), None);
    }

    #[test]
    fn svg_size_is_from_attributes_or_view_box() {
        for (text, size) in [
            (
                r#"<?xml version="1.0"?><!-- <svgx> --><svg xmlns="x" width="460.8pt" height="345.6pt" viewBox="0 0 1 1">"#,
                Some((614, 461)),
            ),
            (r#"<svg width='300' height='2in'/>"#, Some((300, 192))),
            (r#"<svg viewBox="0 0 24,12">"#, Some((24, 12))),
            (r#"<svg width="100%" viewBox="0 0 24 12">"#, Some((24, 12))),
            (r#"<svg width="48" viewBox="0 0 24 12">"#, Some((48, 24))),
            (r#"<svg data-width="9" title="a > b" width = "5px" height="6">"#, Some((5, 6))),
            ("<svg>", None),
            ("<svg width=5 height=5>", None),
            (r#"<svg width="-5" height="5">"#, None),
            (r#"<svg width="1e300" height="5">"#, None),
            (r#"<svg width="5" height="5"#, None),
            ("<g width='5'>", None),
        ] {
            assert_eq!(svg(text), size, "{text}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_give_no_panic(head in 0..7_usize, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let head: &[u8] = [&b""[..], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a", b"\xff\xd8", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8X", b"<svg width='"][head];
            let all = [head, &bytes].concat();
            for mime in ["image/png", "image/svg+xml"] {
                image_size(mime, &all);
            }
        }

        #[test]
        fn hostile_svg_gives_no_panic(text in r#"<svg [a-z='" <>é0-9.]{0,60}(viewBox|width|height)="[0-9 .,%a-z-]{0,20}[">]"#) {
            svg(&text);
        }
    }
}

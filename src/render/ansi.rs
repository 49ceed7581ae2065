//! Terminal colours and hyperlinks as spans of one style each.

use super::{escape, is_safe_link};
use crate::output::{Escape, measure};
use std::fmt::Write as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// One of the 16 colours of the theme: 8 normal, 8 bright.
    Theme(u8),
    /// A fixed colour.
    Rgb(u8, u8, u8),
}

/// The style of a span. In HTML: classes `ab` bold, `ad` dim, `ai` italic, `au` underlined, `as` struck out, `ah` hidden,
/// `avf` and `avg` the page's colours swapped, `f0` to `f15` and `g0` to `g15` for foreground and background of the theme.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Style {
    pub foreground: Option<Color>,
    pub background: Option<Color>,
    pub bold: bool,
    pub dim: bool,
    pub italic: bool,
    pub underline: bool,
    pub strike: bool,
    /// Foreground and background swapped.
    pub inverse: bool,
    pub hidden: bool,
    /// The address of a hyperlink (OSC 8); only safe ones.
    pub link: Option<String>,
}

/// A piece of text of one style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span<'a> {
    /// The text, without escape sequences.
    pub text: &'a str,
    pub style: Style,
}

/// Splits a text at its escape sequences. Sequences without a style (cursor movement, titles) are removed.
pub fn spans(text: &str) -> Vec<Span<'_>> {
    let mut spans = Vec::new();
    let mut style = Style::default();
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        push(&mut spans, &rest[..at], &style);
        rest = &rest[at..];
        rest = match measure(rest) {
            Escape::Sequence(len) => {
                style.apply(&rest[..len]);
                &rest[len..]
            }
            Escape::Incomplete => "",
            Escape::Alone => &rest[1..],
        };
    }
    push(&mut spans, rest, &style);
    spans
}

fn push<'a>(spans: &mut Vec<Span<'a>>, text: &'a str, style: &Style) {
    if !text.is_empty() {
        spans.push(Span { text, style: style.clone() });
    }
}

/// Appends a text with its colours as HTML.
pub fn html(text: &str, out: &mut String) {
    spans(text).iter().for_each(|span| span.html(span.text, out));
}

impl Span<'_> {
    /// Appends a piece of the span's text as HTML in the span's style.
    pub fn html(&self, text: &str, out: &mut String) {
        let style = &self.style;
        if *style == Style::default() {
            return escape_visible(text, out);
        }
        if let Some(link) = &style.link {
            out.push_str("<a rel=\"noopener noreferrer nofollow\" href=\"");
            escape(link, out);
            out.push_str("\">");
        }
        out.push_str("<span");
        style.attributes(out);
        out.push('>');
        escape_visible(text, out);
        out.push_str("</span>");
        if style.link.is_some() {
            out.push_str("</a>");
        }
    }
}

/// Escapes a text and removes control characters, except those for layout.
fn escape_visible(text: &str, out: &mut String) {
    if text.bytes().any(|byte| byte < b' ' && !matches!(byte, b'\n' | b'\t' | b'\r')) {
        let clean: String = text.chars().filter(|c| *c >= ' ' || matches!(c, '\n' | '\t' | '\r')).collect();
        escape(&clean, out);
    } else {
        escape(text, out);
    }
}

impl Style {
    fn apply(&mut self, sequence: &str) {
        if let Some(parameters) = sequence.strip_prefix("\u{1b}[").and_then(|rest| rest.strip_suffix('m')) {
            self.select(parameters);
        } else if let Some(link) = sequence.strip_prefix("\u{1b}]8;") {
            let link = link.trim_end_matches(['\u{7}', '\\', '\u{1b}']);
            let url = link.split_once(';').map_or("", |(_, url)| url);
            self.link = is_safe_link(url).then(|| url.to_owned());
        }
    }

    /// Applies the parameters of `ESC [ … m`.
    fn select(&mut self, parameters: &str) {
        let mut codes = parameters.split(';');
        while let Some(code) = codes.next() {
            let number: u16 = code.split(':').next().unwrap_or_default().parse().unwrap_or(0);
            match number {
                0 => *self = Self { link: self.link.take(), ..Self::default() },
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                // 4:0 turns underlining off.
                4 => self.underline = code != "4:0",
                21 => self.underline = true,
                7 => self.inverse = true,
                8 => self.hidden = true,
                9 => self.strike = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underline = false,
                27 => self.inverse = false,
                28 => self.hidden = false,
                29 => self.strike = false,
                30..=37 => self.foreground = theme(number - 30),
                38 => self.foreground = extended(code, &mut codes).or(self.foreground),
                39 => self.foreground = None,
                40..=47 => self.background = theme(number - 40),
                48 => self.background = extended(code, &mut codes).or(self.background),
                49 => self.background = None,
                58 => drop(extended(code, &mut codes)),
                90..=97 => self.foreground = theme(number - 82),
                100..=107 => self.background = theme(number - 92),
                _ => {}
            }
        }
    }

    fn attributes(&self, out: &mut String) {
        let (foreground, background) =
            if self.inverse { (self.background, self.foreground) } else { (self.foreground, self.background) };
        let mut classes = String::new();
        let mut colors = String::new();
        let flags = [
            (self.bold, "ab "),
            (self.dim, "ad "),
            (self.italic, "ai "),
            (self.underline, "au "),
            (self.strike, "as "),
            (self.hidden, "ah "),
            // Where no colour is set, the page's own colours are swapped.
            (self.inverse && foreground.is_none(), "avf "),
            (self.inverse && background.is_none(), "avg "),
        ];
        flags.iter().filter(|(on, _)| *on).for_each(|(_, class)| classes.push_str(class));
        // On the page's background, a fixed colour must be readable in both themes.
        let alone = background.is_none() && !self.inverse;
        for (color, class, property) in [(foreground, 'f', "color"), (background, 'g', "background")] {
            // Writing to a String cannot fail.
            let _ = match color {
                Some(Color::Theme(index)) => write!(classes, "{class}{index} "),
                Some(Color::Rgb(red, green, blue)) => {
                    let rgb = [red, green, blue];
                    let (light, dark) = (hex(darkened(rgb)), hex(lightened(rgb)));
                    match write!(colors, "{property}:{};", hex(rgb)) {
                        Ok(()) if alone && light != dark => write!(colors, "{property}:light-dark({light},{dark});"),
                        done => done,
                    }
                }
                None => Ok(()),
            };
        }
        if !classes.is_empty() {
            let _ = write!(out, " class=\"{}\"", classes.trim_end());
        }
        if !colors.is_empty() {
            let _ = write!(out, " style=\"{}\"", colors.trim_end_matches(';'));
        }
    }
}

/// Relative luminance of the brightest readable text on a light page, and of the darkest on a dark page (contrast 4.5).
const BRIGHTEST: f64 = 0.155;
const DARKEST: f64 = 0.27;

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Relative luminance, by the contrast rules of WCAG.
fn luminance(rgb: [u8; 3]) -> f64 {
    let linear = rgb.map(|channel| {
        let channel = f64::from(channel) / 255.0;
        if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

fn darkened(mut rgb: [u8; 3]) -> [u8; 3] {
    while luminance(rgb) > BRIGHTEST {
        rgb = rgb.map(|channel| channel - channel.div_ceil(16));
    }
    rgb
}

fn lightened(mut rgb: [u8; 3]) -> [u8; 3] {
    while luminance(rgb) < DARKEST {
        rgb = rgb.map(|channel| channel + (255 - channel).div_ceil(16));
    }
    rgb
}

fn theme(index: u16) -> Option<Color> {
    u8::try_from(index).ok().map(Color::Theme)
}

/// The colour after 38 or 48: `5;N` or `2;R;G;B`, or the colon form in the code itself.
fn extended<'a>(code: &'a str, codes: &mut impl Iterator<Item = &'a str>) -> Option<Color> {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u8>().ok());
    if let Some((_, inner)) = code.split_once(':') {
        let parts: Vec<&str> = inner.split(':').collect();
        return match parts.as_slice() {
            ["5", index, ..] => number(Some(index)).map(indexed),
            // With or without a colour space before the three values.
            ["2", .., red, green, blue] => Some(Color::Rgb(number(Some(red))?, number(Some(green))?, number(Some(blue))?)),
            _ => None,
        };
    }
    match codes.next() {
        Some("5") => number(codes.next()).map(indexed),
        Some("2") => {
            let (red, green, blue) = (number(codes.next()), number(codes.next()), number(codes.next()));
            Some(Color::Rgb(red?, green?, blue?))
        }
        _ => None,
    }
}

/// xterm's 256 colours: the theme's 16, a cube of six levels, 24 greys.
fn indexed(index: u8) -> Color {
    match index {
        0..=15 => Color::Theme(index),
        16..=231 => {
            let cube = index - 16;
            let level = |step: u8| if step == 0 { 0 } else { 55 + 40 * step };
            Color::Rgb(level(cube / 36), level(cube / 6 % 6), level(cube % 6))
        }
        232..=255 => {
            let grey = 8 + 10 * (index - 232);
            Color::Rgb(grey, grey, grey)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(text: &str) -> String {
        let mut out = String::new();
        html(&text.replace('E', "\u{1b}"), &mut out);
        out
    }

    #[test]
    fn colours_of_every_depth_become_html() {
        assert_eq!(page("E[31mredE[0m E[1;92mok"), "<span class=\"f1\">red</span> <span class=\"ab f10\">ok</span>");
        assert_eq!(page("E[38;5;208mx"), "<span style=\"color:#ff8700;color:light-dark(#a05400,#ff8700)\">x</span>");
        assert_eq!(page("E[48;2;10;20;30mx"), "<span style=\"background:#0a141e\">x</span>");
        assert_eq!(
            page("E[38:2::1:2:3mxE[38:5:3my"),
            "<span style=\"color:#010203;color:light-dark(#010203,#8e8e8f)\">x</span><span class=\"f3\">y</span>"
        );
        assert_eq!(page("E[38;5;244mx"), "<span style=\"color:#808080;color:light-dark(#696969,#909090)\">x</span>");
        assert_eq!(page("E[4muE[24m E[9msE[29m"), "<span class=\"au\">u</span> <span class=\"as\">s</span>");
    }

    #[test]
    fn inverse_swaps_colours_or_those_of_the_page() {
        assert_eq!(page("E[7mx"), "<span class=\"avf avg\">x</span>");
        assert_eq!(page("E[31;7mx"), "<span class=\"avf g1\">x</span>");
        assert_eq!(page("E[31;42;7mxE[27my"), "<span class=\"f2 g1\">x</span><span class=\"f1 g2\">y</span>");
    }

    #[test]
    fn only_safe_hyperlinks_become_links() {
        let link = "<a rel=\"noopener noreferrer nofollow\" href=\"https://a.b\"><span>t</span></a>";
        assert_eq!(page("E]8;;https://a.bE\\tE]8;;E\\"), link);
        assert_eq!(page("E]8;;javascript:alert(1)\u{7}tE]8;;\u{7}"), "t");
        assert!(!page("E]8;;https://a\"onmouseover=x\u{7}tE]8;;\u{7}").contains("\"onmouseover"));
    }

    #[test]
    fn fixed_colours_are_readable_in_both_themes() {
        for red in (0..=255).step_by(51) {
            for green in (0..=255).step_by(51) {
                for blue in (0..=255).step_by(51) {
                    let rgb = [red, green, blue];
                    assert!(luminance(darkened(rgb)) <= BRIGHTEST && luminance(lightened(rgb)) >= DARKEST);
                }
            }
        }
        assert_eq!(darkened([0, 0, 128]), [0, 0, 128]);
    }

    proptest! {
        #[test]
        fn any_text_keeps_its_characters_without_tags(text in "[\u{1b}\\[\\]0-9;:m<>&a\u{7}\n]{0,60}") {
            let mut out = String::new();
            html(&text, &mut out);
            let escapes = out.matches('\u{1b}').count();
            prop_assert_eq!(escapes, 0);
            let tags: String = out.split('<').skip(1).map(|tag| tag.split(['>', ' ']).next().unwrap_or_default()).collect();
            prop_assert!(tags.replace("/span", "").replace("span", "").is_empty(), "{}", out);
        }
    }
}

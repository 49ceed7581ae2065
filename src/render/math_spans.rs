//! Finds the formulas of a text: `$…$`, `$$…$$`, `\begin{…}…\end{…}`, and brackets with backslashes.
//!
//! Formulas are found before markdown is parsed, which would interpret their underscores, asterisks and line starts.

use std::collections::HashSet;
use std::ops::Range;

/// Longest formula, in bytes: an opening delimiter without a closing one must not cost a scan of the whole text.
const MAX_FORMULA: usize = 16 << 10;

/// A formula in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Formula {
    /// The range with delimiters.
    pub(super) whole: Range<usize>,
    /// The range without delimiters.
    pub(super) tex: Range<usize>,
    /// Whether it is displayed on a line of its own.
    pub(super) display: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    /// Code is skipped; brackets have two backslashes (`\\(`), since markdown removes one.
    Markdown,
    /// Brackets have one backslash.
    Latex,
}

/// The formulas of a text, in order.
pub(super) fn find(text: &str, context: Context) -> Vec<Formula> {
    let mut finder = Finder { text, context, at: 0, unmatched: HashSet::new() };
    let mut found = Vec::new();
    while finder.at < text.len() {
        if let Some(formula) = finder.step() {
            finder.at = formula.whole.end;
            found.push(formula);
        }
    }
    found
}

struct Finder<'a> {
    text: &'a str,
    context: Context,
    at: usize,
    /// Lengths of backtick runs that do not occur again.
    unmatched: HashSet<usize>,
}

impl Finder<'_> {
    /// The formula at the current position. Otherwise `None`, and the position is after the current element.
    fn step(&mut self) -> Option<Formula> {
        let rest = &self.text.as_bytes()[self.at..];
        let markdown = self.context == Context::Markdown;
        match rest {
            [b'`' | b'~', ..] if markdown => self.skip_code(),
            [b'$', b'$', ..] => return self.between("$$", "$$", true).or_else(|| self.skip(2)),
            [b'$', ..] => return self.inline().or_else(|| self.skip(1)),
            [b'\\', b'\\', b'[', ..] if markdown => return self.between("\\\\[", "\\\\]", true).or_else(|| self.skip(3)),
            [b'\\', b'\\', b'(', ..] if markdown => return self.between("\\\\(", "\\\\)", false).or_else(|| self.skip(3)),
            [b'\\', b'[', ..] if !markdown => return self.between("\\[", "\\]", true).or_else(|| self.skip(2)),
            [b'\\', b'(', ..] if !markdown => return self.between("\\(", "\\)", false).or_else(|| self.skip(2)),
            [b'\\', b'b', ..] => return self.environment().or_else(|| self.skip(1)),
            // An escaped dollar, backtick or backslash is literal.
            [b'\\', _, ..] => self.at += 2,
            _ => {
                // All delimiters are ASCII, so this stops at a character boundary.
                let next = rest[1..].iter().position(|byte| matches!(byte, b'`' | b'~' | b'$' | b'\\'));
                self.at += next.map_or(rest.len(), |next| next + 1);
            }
        }
        None
    }

    fn skip(&mut self, bytes: usize) -> Option<Formula> {
        self.at += bytes;
        None
    }

    /// Skips a fenced block or a code span.
    fn skip_code(&mut self) {
        let rest = &self.text[self.at..];
        let tick = rest.as_bytes()[0];
        let run = rest.bytes().take_while(|byte| *byte == tick).count();
        let line = self.text[..self.at].rfind('\n').map_or(0, |end| end + 1);
        let indent = &self.text[line..self.at];
        if run >= 3 && indent.len() < 200 && indent.trim_matches([' ', '\t', '>', '-', '*', '+']).is_empty() {
            self.at += fence_len(rest, tick, run);
        } else if tick == b'~' || self.unmatched.contains(&run) {
            self.at += run;
        } else if let Some(end) = closing_run(&rest[run..], run) {
            self.at += run + end;
        } else {
            self.unmatched.insert(run);
            self.at += run;
        }
    }

    fn between(&self, open: &str, close: &str, display: bool) -> Option<Formula> {
        let start = self.at + open.len();
        let inner = limited(&self.text[start..]);
        let inner = &inner[..paragraph_end(inner)];
        let len = inner.match_indices(close).map(|(at, _)| at).find(|at| !is_escaped(inner, *at))?;
        let tex = start..start + len;
        (!self.text[tex.clone()].trim().is_empty()).then(|| Formula { whole: self.at..tex.end + close.len(), tex, display })
    }

    /// `$…$`. To exclude prices, blanks must be inside both delimiters or neither, and no digit may follow.
    fn inline(&self) -> Option<Formula> {
        let start = self.at + 1;
        let inner = limited(&self.text[start..]);
        let inner = &inner[..paragraph_end(inner)];
        let blank = inner.starts_with(|c: char| c.is_whitespace());
        let mut depth = 0_i32;
        let mut escaped = false;
        for (at, byte) in inner.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b'$' if depth <= 0 => {
                    let digit = inner[at + 1..].starts_with(|c: char| c.is_ascii_digit());
                    if at == 0 || digit || inner[..at].ends_with(|c: char| c.is_whitespace()) != blank {
                        return None;
                    }
                    let tex = start..start + at;
                    let empty = self.text[tex.clone()].trim().is_empty();
                    return (!empty).then(|| Formula { whole: self.at..tex.end + 1, tex, display: false });
                }
                _ => {}
            }
        }
        None
    }

    /// `\begin{align}…\end{align}`: the delimiters are part of the formula.
    fn environment(&self) -> Option<Formula> {
        let rest = limited(&self.text[self.at..]);
        let name = rest.strip_prefix("\\begin{")?.split('}').next()?;
        if name.is_empty() || name.len() > 20 || !name.trim_end_matches('*').bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return None;
        }
        let (open, close) = (format!("\\begin{{{name}}}"), format!("\\end{{{name}}}"));
        let mut from = open.len();
        let mut depth = 1;
        while depth > 0 {
            let end = from + rest[from..].find(&close)?;
            depth += rest[from..end].matches(&open).count();
            depth -= 1;
            from = end + close.len();
        }
        let whole = self.at..self.at + from;
        Some(Formula { tex: whole.clone(), whole, display: true })
    }
}

/// The text up to the longest formula.
fn limited(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_FORMULA)]
}

/// The end of the paragraph: a formula cannot contain an empty line.
fn paragraph_end(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find('\n') {
        let line = from + at + 1;
        let next = text[line..].find('\n').map_or(text.len(), |end| line + end);
        if next < text.len() && text[line..next].trim().is_empty() {
            return line;
        }
        from = line;
    }
    text.len()
}

fn is_escaped(text: &str, at: usize) -> bool {
    text[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// Length in bytes of a fenced block, with both fences.
fn fence_len(text: &str, tick: u8, run: usize) -> usize {
    let mut at = text.find('\n').map_or(text.len(), |end| end + 1);
    for line in text[at..].split_inclusive('\n') {
        let bare = line.trim().trim_start_matches('>').trim_start();
        at += line.len();
        if bare.len() >= run && bare.bytes().all(|byte| byte == tick) {
            break;
        }
    }
    at
}

/// The end of the next run of exactly this many backticks.
fn closing_run(text: &str, run: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'`') {
        at += found;
        let len = bytes[at..].iter().take_while(|byte| **byte == b'`').count();
        at += len;
        if len == run {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<&str> {
        find(text, Context::Markdown).into_iter().map(|formula| &text[formula.whole]).collect()
    }

    #[test]
    fn every_delimiter_is_recognized() {
        assert_eq!(found("a $x_1$ b $$y\n+ z$$ c"), ["$x_1$", "$$y\n+ z$$"]);
        assert_eq!(found("\\\\(a\\\\) \\\\[b\\\\]"), ["\\\\(a\\\\)", "\\\\[b\\\\]"]);
        let nested = "\\begin{align*}\\begin{align*}a\\end{align*}\n\nb\\end{align*}";
        assert_eq!(found(nested), [nested]);
        assert_eq!(found("$ x $ and $\\text{a $y$ b}$"), ["$ x $", "$\\text{a $y$ b}$"]);
    }

    #[test]
    fn prices_code_and_escapes_are_no_formulas() {
        for text in
            ["$5 and $10", "\\$x$", "`$x$`", "```\n$x$\n```", "~~~tex\n$$x$$\n~~~", "$a\n\nb$", "``a`$x$ ``", "$$", "$ $"]
        {
            assert_eq!(found(text), [""; 0], "{text}");
        }
        assert_eq!(found("`a $x$"), ["$x$"]);
        assert_eq!(found("> ```\n> $a$\n> ```\n$b$"), ["$b$"]);
    }

    #[test]
    fn latex_brackets_have_single_backslashes() {
        let text = "\\[ a \\] and \\(b\\) `$c$`";
        let found: Vec<&str> = find(text, Context::Latex).into_iter().map(|formula| &text[formula.tex]).collect();
        assert_eq!(found, [" a ", "b", "c"]);
    }

    proptest! {
        #[test]
        fn formulas_are_in_order_and_inside_the_text(text in "[a-c$`~\\\\\\[\\](){}é \n]{0,80}") {
            let mut end = 0;
            for formula in find(&text, Context::Markdown) {
                prop_assert!(formula.whole.start >= end && formula.whole.end > formula.whole.start);
                prop_assert!(!text[formula.tex.clone()].trim().is_empty());
                end = formula.whole.end;
            }
            prop_assert!(end <= text.len());
        }
    }
}

//! Syntax colours of code.
//!
//! A lexer of our own, driven by the rows of [`languages`], instead of a highlighting library: libraries with all our
//! languages load and compile their grammars at the first cell. syntect with two-face's grammars, measured on two slow
//! cores, takes 74 ms for the first Python cell and 1 ms for each of 500 small ones, while a whole export may take 10 ms for
//! a tiny notebook and 50 ms for 500 cells. With this lexer a page of those 500 cells takes 20 ms, process start included.
//! Its time is linear in the code.

use super::escape;
use crate::languages::{self, BlockComment, LexerStyle, LexerTable, StringSyntax};

/// Longest regular expression, in bytes: a slash that starts none must not cost a scan of its whole line.
const MAX_REGEX: usize = 1000;

/// Kind of a token, with its HTML class in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Names, operators, white space (no class).
    Text,
    /// (k)
    Keyword,
    /// A named value (l).
    Constant,
    /// A name that needs no import (b).
    Builtin,
    /// (s)
    String,
    /// (n)
    Number,
    /// (c)
    Comment,
    /// The name of a function that is called or defined (fn).
    Function,
    /// Decorators, macros, magics (m).
    Meta,
    /// A shell's variable (v).
    Variable,
}

impl Kind {
    pub fn class(self) -> Option<&'static str> {
        match self {
            Self::Text => None,
            Self::Keyword => Some("k"),
            Self::Constant => Some("l"),
            Self::Builtin => Some("b"),
            Self::String => Some("s"),
            Self::Number => Some("n"),
            Self::Comment => Some("c"),
            Self::Function => Some("fn"),
            Self::Meta => Some("m"),
            Self::Variable => Some("v"),
        }
    }
}

/// All classes that code can have.
pub const CLASSES: &[&str] = &["k", "l", "b", "s", "n", "c", "fn", "m", "v"];

/// Code as HTML. Code in an unknown language has no colours.
pub fn html(source: &str, language: &str, out: &mut String) {
    for (kind, text) in tokens(source, language) {
        match kind.class() {
            None => escape(text, out),
            Some(class) => {
                out.push_str("<span class=\"");
                out.push_str(class);
                out.push_str("\">");
                escape(text, out);
                out.push_str("</span>");
            }
        }
    }
}

/// Splits code into tokens. Concatenated, they are the code again. A Python cell that begins with the magic of another
/// language (`%%bash`) is split as that language.
pub fn tokens<'a>(source: &'a str, language: &str) -> Vec<(Kind, &'a str)> {
    let Some((table, line_comment)) = find(language) else { return vec![(Kind::Text, source)] };
    if table.style == LexerStyle::Python
        && let Some(magic) = source.strip_prefix("%%")
    {
        let name = magic.split([' ', '\n', '\r']).next().unwrap_or_default();
        let line = source.find('\n').unwrap_or(source.len());
        let inner = match name {
            "time" | "timeit" | "capture" | "prun" => Some("python"),
            "script" => Some("bash"),
            other => Some(other),
        };
        let mut all = vec![(Kind::Meta, &source[..line])];
        all.extend(tokens(&source[line..], inner.unwrap_or_default()));
        return all;
    }
    let mut lexer =
        Lexer { source, table, line_comment, at: 0, tokens: Vec::new(), last: Last::Nothing, line_is_blank: true };
    lexer.run();
    lexer.tokens
}

/// The lexer table and the line comment of a language.
fn find(name: &str) -> Option<(&'static LexerTable, &'static str)> {
    let language = languages::find(name)?;
    Some((language.lexer()?, &language.line_comment))
}

/// The previous token, white space ignored: it decides what `/` and `'` mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Value,
    Operator,
}

struct Lexer<'a> {
    source: &'a str,
    table: &'static LexerTable,
    line_comment: &'static str,
    at: usize,
    tokens: Vec<(Kind, &'a str)>,
    last: Last,
    /// Whether the line has only white space so far.
    line_is_blank: bool,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) {
        while let Some(first) = self.rest().chars().next() {
            let (kind, len) = self.next(first);
            self.last = match kind {
                Kind::Comment => self.last,
                Kind::Text if first.is_whitespace() => self.last,
                Kind::Text if !is_word(first) && !matches!(first, ')' | ']' | '}') => Last::Operator,
                Kind::Keyword => Last::Operator,
                _ => Last::Value,
            };
            self.line_is_blank = first == '\n' || self.line_is_blank && first.is_whitespace();
            self.push(kind, len);
        }
    }

    /// The kind and length in bytes of the next token.
    fn next(&self, first: char) -> (Kind, usize) {
        let rest = self.rest();
        if let Some(token) = self.comment().or_else(|| self.line_magic()).or_else(|| self.special(first)) {
            return token;
        }
        if let Some(quote) = self.table.strings.iter().find(|quote| rest.starts_with(&quote.open)) {
            return (Kind::String, string_len(rest, 0, quote, quote.escapes));
        }
        if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            return (Kind::Number, number_len(rest));
        }
        if Some(first) == self.table.decorator && rest[1..].starts_with(is_word) {
            return (Kind::Meta, 1 + word_len(&rest[1..], "."));
        }
        if is_word(first) || (first == '$' && self.table.word_characters.contains('$')) {
            return self.word();
        }
        (Kind::Text, first.len_utf8())
    }

    fn word(&self) -> (Kind, usize) {
        let rest = self.rest();
        let len = word_len(rest, &self.table.word_characters).max(rest.chars().next().map_or(1, char::len_utf8));
        let (word, behind) = rest.split_at(len);
        if let Some(token) = self.prefixed_string(word, behind) {
            return token;
        }
        // A name after a dot is a member, even if it is a keyword.
        let member = self.source[..self.at].ends_with('.') && !self.source[..self.at].ends_with("..");
        let lower = if self.table.style == LexerStyle::Sql { word.to_ascii_lowercase() } else { String::new() };
        let word = if lower.is_empty() { word } else { &lower };
        let is_in = |list: &str| !member && list.split_ascii_whitespace().any(|known| known == word);
        let kind = match () {
            () if is_in(&self.table.keywords) => Kind::Keyword,
            () if is_in(&self.table.constants) => Kind::Constant,
            () if is_in(&self.table.builtins) => Kind::Builtin,
            () if behind.starts_with('(') => Kind::Function,
            () => Kind::Text,
        };
        (kind, len)
    }

    /// `rb"…"` of Python, `raw"…"` of Julia: the word is part of the string.
    fn prefixed_string(&self, word: &str, behind: &str) -> Option<(Kind, usize)> {
        let raw = match self.table.style {
            LexerStyle::Python if word.len() <= 2 && word.bytes().all(|byte| b"rRbBuUfFtT".contains(&byte)) => false,
            LexerStyle::Julia => true,
            _ => return None,
        };
        let quote =
            self.table.strings.iter().find(|quote| behind.starts_with(&quote.open) && (!raw || quote.open != "'"))?;
        // Even in a raw string, a quote after a backslash does not end it.
        Some((Kind::String, string_len(self.rest(), word.len(), quote, true)))
    }

    fn comment(&self) -> Option<(Kind, usize)> {
        let rest = self.rest();
        if let Some(block) = &self.table.block_comment
            && rest.starts_with(&block.open)
        {
            return Some((Kind::Comment, block_len(rest, block)));
        }
        if !rest.starts_with(self.line_comment) {
            return None;
        }
        let glued = self.source[..self.at].ends_with(|c: char| !c.is_whitespace() && !matches!(c, ';' | '(' | '|' | '&'));
        (self.table.style != LexerStyle::Shell || !glued).then(|| (Kind::Comment, line_len(rest)))
    }

    /// IPython syntax: `%matplotlib inline`, `!ls`.
    fn line_magic(&self) -> Option<(Kind, usize)> {
        let rest = self.rest();
        let begins = self.table.style == LexerStyle::Python && self.line_is_blank && rest.starts_with(['%', '!']);
        // A `%` before a blank is an operator, on a continuation line inside brackets.
        let magic = begins && rest[1..].starts_with(|c: char| is_word(c) || matches!(c, '%' | '!' | '.' | '/'));
        magic.then(|| (Kind::Meta, line_len(rest)))
    }

    /// Tokens that only some languages have.
    fn special(&self, first: char) -> Option<(Kind, usize)> {
        let rest = self.rest();
        match (self.table.style, first) {
            (LexerStyle::Shell, '$') => variable_len(rest).map(|len| (Kind::Variable, len)),
            (LexerStyle::Shell, '\\') => Some((Kind::Text, 1 + rest[1..].chars().next().map_or(0, char::len_utf8))),
            (LexerStyle::Script, '/') if self.last != Last::Value => regex_len(rest).map(|len| (Kind::String, len)),
            (LexerStyle::Julia, '\'') => {
                let behind_value =
                    self.source[..self.at].ends_with(|c: char| is_word(c) || matches!(c, ')' | ']' | '\'' | '.'));
                behind_value.then_some((Kind::Text, 1))
            }
            _ => None,
        }
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// Adds a token, merged with the previous one of the same kind.
    fn push(&mut self, kind: Kind, len: usize) {
        let end = self.at + len;
        match self.tokens.last_mut() {
            Some((last, text)) if *last == kind => *text = &self.source[self.at - text.len()..end],
            _ => self.tokens.push((kind, &self.source[self.at..end])),
        }
        self.at = end;
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_len(text: &str, more: &str) -> usize {
    text.find(|c: char| !is_word(c) && !more.contains(c)).unwrap_or(text.len())
}

fn line_len(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let exponent = !hex && at > 0 && matches!(bytes[at - 1], b'e' | b'E') && matches!(byte, b'+' | b'-');
        let point = *byte == b'.' && bytes.get(at + 1) != Some(&b'.');
        if !(byte.is_ascii_alphanumeric() || *byte == b'_' || exponent || point) {
            break;
        }
        at += 1;
    }
    at.max(1)
}

/// Length of a string literal whose content starts at `before`, in bytes. An unclosed literal reaches to the end of its line
/// or of the text.
fn string_len(text: &str, before: usize, quote: &StringSyntax, escapes: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = before + quote.open.len();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 1,
            b'\n' if !quote.multiline => return at,
            _ if bytes[at..].starts_with(quote.close.as_bytes()) => return at + quote.close.len(),
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

fn block_len(text: &str, block: &BlockComment) -> usize {
    let BlockComment { open, close, nests } = block;
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (open.len(), 1);
    while at < bytes.len() {
        if bytes[at..].starts_with(close.as_bytes()) {
            depth -= 1;
            at += close.len();
            if depth == 0 {
                return at;
            }
        } else if *nests && bytes[at..].starts_with(open.as_bytes()) {
            depth += 1;
            at += open.len();
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// `$name`, `${…}`, `$1`, `$?`.
fn variable_len(text: &str) -> Option<usize> {
    let behind = &text[1..];
    if behind.starts_with('{') {
        return Some(
            behind
                .find(['}', '\n'])
                .map_or(text.len(), |end| if behind[end..].starts_with('}') { end + 2 } else { end + 1 }),
        );
    }
    match word_len(behind, "") {
        0 => behind.starts_with(['?', '@', '#', '*', '!', '$', '-']).then_some(2),
        len => Some(1 + len),
    }
}

/// Length of a regular expression with its flags, if it ends on this line.
fn regex_len(text: &str) -> Option<usize> {
    let (mut in_class, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate().take(MAX_REGEX).skip(1) {
        match byte {
            b'\n' => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'/' if !in_class => return (at > 1).then(|| at + 1 + word_len(&text[at + 1..], "")),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens with a kind, as `kind:text`.
    fn described(source: &str, language: &str) -> Vec<String> {
        let tokens = tokens(source, language).into_iter();
        tokens.filter_map(|(kind, text)| Some(format!("{}:{text}", kind.class()?))).collect()
    }

    #[test]
    fn python_tokens_have_kinds() {
        let source = "@cache\ndef f(x: int = 0x1F) -> str:\n    return rf'{x}\\'' + \"\"\"a\n\"b\"\"\"  # no\n%time f(1e-5)\n!ls\nx = a %b";
        let expected = [
            "m:@cache",
            "k:def",
            "fn:f",
            "b:int",
            "n:0x1F",
            "b:str",
            "k:return",
            "s:rf'{x}\\''",
            "s:\"\"\"a\n\"b\"\"\"",
            "c:# no",
            "m:%time f(1e-5)",
            "m:!ls",
        ];
        assert_eq!(described(source, "python"), expected);
        assert_eq!(described("%%bash\necho $HOME", "python"), ["m:%%bash", "b:echo", "v:$HOME"]);
        assert_eq!(described("df.max().type", "py"), ["fn:max"]);
    }

    #[test]
    fn r_and_julia_tokens_have_kinds() {
        assert_eq!(
            described("x <- c(1L, NA) # n\n`a b` %in% data.frame(y='z')", "R"),
            ["b:c", "n:1L", "l:NA", "c:# n", "s:`a b`", "k:in", "b:data.frame", "s:'z'"]
        );
        assert_eq!(
            described("@time A' * 'c' #= a #= b =# =# r\"x\" push!(v)\nfor i in 1:10 end", "julia"),
            ["m:@time", "s:'c'", "c:#= a #= b =# =#", "s:r\"x\"", "b:push!", "k:for", "k:in", "n:1", "n:10", "k:end"]
        );
    }

    #[test]
    fn typescript_and_shell_tokens_have_kinds() {
        assert_eq!(
            described("const re: RegExp = /a[/]b/gi; // c\nx = a / b / c; `t${1}`", "typescript"),
            ["k:const", "b:RegExp", "s:/a[/]b/gi", "c:// c", "s:`t${1}`"]
        );
        assert_eq!(
            described("if x; then echo \"a\" ${B} a#b; fi # c", "bash"),
            ["k:if", "k:then", "b:echo", "s:\"a\"", "v:${B}", "k:fi", "c:# c"]
        );
        assert_eq!(described("SELECT count(*) FROM t -- c", "sql"), ["k:SELECT", "b:count", "k:FROM", "c:-- c"]);
    }

    #[test]
    fn unknown_languages_have_no_colours() {
        assert_eq!(tokens("if <x>", "no \"such\""), [(Kind::Text, "if <x>")]);
    }

    proptest! {
        #[test]
        fn tokens_concatenate_to_the_text(text in "[a-z0-9'\"`/#$%!@\\\\{}()=*é \n.-]{0,60}", language in 0..languages::all().len()) {
            let pieces: String = tokens(&text, &languages::all()[language].name).into_iter().map(|(_, text)| text).collect();
            prop_assert_eq!(pieces, text);
        }
    }
}

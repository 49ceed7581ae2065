//! Infers the parameters of a notebook from its tagged cell: names, types, defaults and trailing comments.

use super::syntax::Syntax;

/// A parameter that a notebook declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredParameter {
    /// Its name.
    pub name: String,
    /// Its type, if the cell names one (an annotation, or a comment `type: int`).
    pub kind: Option<String>,
    /// The default, as code.
    pub default: String,
    /// The trailing comment.
    pub help: String,
    /// The keyword before it, such as `let`, `const`, `var` or `export`; mostly empty.
    pub keyword: &'static str,
}

/// The top-level assignments of a cell.
pub(super) fn infer(syntax: Syntax, source: &str) -> Vec<DeclaredParameter> {
    let mut declared: Vec<DeclaredParameter> = Vec::new();
    for (code, comment) in statements(syntax, source) {
        let Some(mut found) = assignment(syntax, &code) else { continue };
        let mut help = comment.trim();
        if let Some(rest) = help.strip_prefix("type:") {
            let (kind, rest) = rest.trim_start().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
            (found.kind, help) = (Some(kind.to_owned()), rest.trim());
        }
        found.help = help.to_owned();
        declared.retain(|earlier| earlier.name != found.name);
        declared.push(found);
    }
    declared
}

/// The statements that start in the first column, each with its trailing comment. Brackets and strings join lines.
fn statements(syntax: Syntax, source: &str) -> Vec<(String, String)> {
    let (mut all, mut code, mut comment) = (Vec::new(), String::new(), String::new());
    let (mut depth, mut quote) = (0usize, None::<String>);
    let mut rest = source;
    while let Some(symbol) = rest.chars().next() {
        let mut taken = symbol.len_utf8();
        match &quote {
            Some(_) if symbol == '\\' => taken += rest[1..].chars().next().map_or(0, char::len_utf8),
            Some(end) if rest.starts_with(end.as_str()) => {
                taken = end.len();
                quote = None;
            }
            // An unclosed string on one line is a syntax error, which the kernel will report.
            Some(end) if symbol == '\n' && end.len() == 1 && !matches!(end.as_str(), "`") => quote = None,
            Some(_) => {}
            None if rest.starts_with(syntax.comment) => {
                let line = rest.split('\n').next().unwrap_or_default();
                comment = line[syntax.comment.len()..].to_owned();
                rest = &rest[line.len()..];
                continue;
            }
            None => match symbol {
                '"' | '\'' | '`' => {
                    let long = symbol.to_string().repeat(3);
                    let end = if rest.starts_with(&long) { long } else { symbol.to_string() };
                    taken = end.len();
                    quote = Some(end);
                }
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                '\n' if depth == 0 => {
                    all.push((std::mem::take(&mut code), std::mem::take(&mut comment)));
                    rest = &rest[1..];
                    continue;
                }
                _ => {}
            },
        }
        code.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    all.push((code, comment));
    all.retain(|(code, _)| !code.trim().is_empty() && !code.starts_with([' ', '\t']));
    all
}

fn assignment(syntax: Syntax, code: &str) -> Option<DeclaredParameter> {
    let mut code = code.trim_end().trim_end_matches(';').trim_end();
    let rules = syntax.rules;
    let mut keyword = "";
    for word in &rules.declaration_words {
        if let Some(rest) = code.strip_prefix(word.as_str()).filter(|rest| rest.starts_with([' ', '\t'])) {
            (keyword, code) = (word, rest.trim_start());
        }
    }
    let end = code.find(|c: char| !syntax.is_in_name(c)).unwrap_or(code.len());
    let (name, mut rest) = code.split_at(end);
    if !syntax.accepts_name(name) {
        return None;
    }
    let annotation = rules.annotation.as_deref().and_then(|sign| rest.trim_start().strip_prefix(sign));
    let mut kind = None;
    if let Some(annotated) = annotation {
        let (named, value) = annotated.split_once('=')?;
        kind = Some(named.trim().trim_matches(['"', '\'']).to_owned()).filter(|kind| !kind.is_empty());
        rest = &annotated[annotated.len() - value.len() - 1..];
    }
    let rest = if rules.blanks_around_sign { rest.trim_start() } else { rest };
    let value = rules.assignment_signs.iter().find_map(|sign| rest.strip_prefix(sign.as_str()))?;
    let is_comparison = value.starts_with('=');
    let default = value.trim().to_owned();
    (!is_comparison).then(|| DeclaredParameter { name: name.to_owned(), kind, default, help: String::new(), keyword })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn syntax(language: &str) -> Syntax {
        Syntax::of(language).unwrap()
    }

    fn described(syntax: Syntax, source: &str) -> Vec<String> {
        let tell =
            |one: DeclaredParameter| format!("{}|{}|{}|{}", one.name, one.kind.unwrap_or_default(), one.default, one.help);
        infer(syntax, source).into_iter().map(tell).collect()
    }

    #[test]
    fn assignments_of_every_language_are_found() {
        let python = "import x\na = 1  # how many\nb: float = 2.5\nc = [1,\n  2]  # type: List[int] a list\nd = 'a # b' # text\nif a == 1:\n    e = 2\na == 3\nf: 'Optional[int]' = None\nx.y = 1\na = 9";
        assert_eq!(
            described(syntax("python"), python),
            ["b|float|2.5|", "c|List[int]|[1,\n  2]|a list", "d||'a # b'|text", "f|Optional[int]|None|", "a||9|"]
        );
        assert_eq!(described(syntax("r"), "a <- 1 # n\nmy.b = 'x'\nf(a = 1)"), ["a||1|n", "my.b||'x'|"]);
        assert_eq!(described(syntax("julia"), "n::Int = 3\nconst s = \"x\""), ["n|Int|3|", "s||\"x\"|"]);
        assert_eq!(
            described(syntax("typescript"), "let n: number = 1; // n\nvar s = `a\n=b`;"),
            ["n|number|1|n", "s||`a\n=b`|"]
        );
        assert_eq!(described(syntax("bash"), "A=1 # one\nexport B='x y'\nC = 1"), ["A||1|one", "B||'x y'|"]);
    }

    proptest! {
        #[test]
        fn any_source_is_accepted(source in "[a-c=:#'\"`\\\\\n (){}é/-]{0,60}") {
            for language in crate::languages::with_parameters() {
                infer(syntax(language), &source);
            }
        }
    }
}

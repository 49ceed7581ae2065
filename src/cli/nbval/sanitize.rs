//! Sanitize files of nbval: regular expressions whose matches are replaced in stored and fresh outputs before they are
//! compared.

use regex::Regex;

struct Rule {
    pattern: Regex,
    replacement: String,
}

/// Rules in the order in which they are applied.
#[derive(Default)]
pub(in crate::cli) struct SanitizeRules {
    rules: Vec<Rule>,
}

impl SanitizeRules {
    /// Parses nbval's format: pairs of lines `regex: ...` and `replace: ...`, with optional `[section]` headers and
    /// comments.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (mut rules, mut pattern) = (Vec::new(), None);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let invalid = |what: &str| anyhow::anyhow!("line {}: {what}", number + 1);
            if let Some(rest) = line.strip_prefix("regex:") {
                if pattern.is_some() {
                    return Err(invalid("the `regex:` before it has no `replace:`"));
                }
                pattern = Some(Regex::new(rest.trim()).map_err(|error| invalid(&error.to_string()))?);
            } else if let Some(rest) = line.strip_prefix("replace:") {
                let pattern = pattern.take().ok_or_else(|| invalid("a `replace:` without a `regex:` before it"))?;
                rules.push(Rule { pattern, replacement: python_groups(rest.trim()) });
            } else if !(line.is_empty() || line.starts_with(['[', '#', ';'])) {
                return Err(invalid("expected `regex:`, `replace:`, a [section] or a # comment"));
            }
        }
        match pattern {
            Some(_) => Err(anyhow::anyhow!("the last `regex:` has no `replace:`")),
            None => Ok(Self { rules }),
        }
    }

    /// Adds rules for values that differ in every run: memory addresses, temporary paths, file names of cells.
    pub fn add_volatile(&mut self) {
        let patterns =
            [(r"0x[0-9a-fA-F]{6,16}", "0xADDRESS"), (r"/tmp/[\w./-]+", "/tmp/PATH"), (r"ipykernel_\d+", "ipykernel")];
        self.rules.extend(patterns.into_iter().filter_map(|(pattern, replacement)| {
            Some(Rule { pattern: Regex::new(pattern).ok()?, replacement: replacement.to_owned() })
        }));
    }

    pub(super) fn apply(&self, text: &str) -> String {
        self.rules
            .iter()
            .fold(text.to_owned(), |text, rule| rule.pattern.replace_all(&text, rule.replacement.as_str()).into_owned())
    }
}

/// Converts Python's group references (`\1`, `\g<name>`) to those of the `regex` crate.
fn python_groups(replacement: &str) -> String {
    let mut out = String::new();
    let mut rest = replacement.replace('$', "$$");
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let behind = rest[at + 1..].to_owned();
        let name: String = match behind.strip_prefix("g<") {
            Some(named) => named.split('>').next().unwrap_or_default().to_owned(),
            None => behind.chars().take_while(char::is_ascii_digit).collect(),
        };
        if name.is_empty() {
            out.push('\\');
            rest = behind;
        } else {
            out.push_str(&format!("${{{name}}}"));
            rest = behind[if behind.starts_with("g<") { name.len() + 3 } else { name.len() }.min(behind.len())..].to_owned();
        }
    }
    out + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nbval_format_is_parsed_and_applied() {
        let text = "# comment\n[dates]\nregex: (\\d+)/(\\d+)\nreplace: \\2.\\1 $x\n\n[second]\nregex: a+\nreplace: A";
        let rules = SanitizeRules::parse(text).unwrap();
        assert_eq!(rules.apply("1/2 aaa"), "2.1 $x A");
        for bad in ["regex: a", "replace: a", "nonsense", "regex: (\nreplace: x", "regex: a\nregex: b\nreplace: c"] {
            assert!(SanitizeRules::parse(bad).is_err(), "{bad}");
        }
        let mut rules = SanitizeRules::default();
        rules.add_volatile();
        assert_eq!(rules.apply("<A at 0x7f0012345678> /tmp/x/y.py"), "<A at 0xADDRESS> /tmp/PATH");
    }
}

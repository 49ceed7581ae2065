//! What can be done about the error of an execution: the rules of `suggestions.toml`, which says how to add one. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use regex::{Captures, Regex, RegexBuilder};
use serde::{Deserialize, Deserializer};

use super::ReportStatus;
use crate::languages;

const RULES: &str = include_str!("suggestions.toml");
/// The most suggestions for one error.
const MAX_SUGGESTIONS: usize = 5;
/// The end of the message in which rules look, bytes.
const MAX_TEXT: usize = 16 << 10;
/// The longest name that is compared or shown, in characters.
const MAX_NAME: usize = 200;
/// The most names of the code, and the most names or files of its surroundings, that are compared.
const MAX_CANDIDATES: usize = 2000;
/// How many near names are shown, and how much of a name must be the same.
const MAX_NEAR: usize = 3;
const MIN_SIMILARITY: f64 = 0.6;
/// The size to which a compiled pattern is limited, bytes.
const MAX_PATTERN: usize = 1 << 20;

/// An execution that did not succeed.
pub struct Failure<'a> {
    /// The name of its language.
    pub language: &'a str,
    pub code: &'a str,
    pub status: ReportStatus,
    /// The end of standard error, and after it the error as `type: message`.
    pub text: String,
}

/// What an execution could see.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The variables of its session. The names in the code itself are known anyway.
    pub names: Vec<String>,
    /// The paths in its workspace.
    pub files: Vec<String>,
    pub has_network: bool,
    pub memory_mb: u64,
    pub timeout_seconds: f64,
}

/// Which of its surroundings the rules for a failure compare with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub names: bool,
    pub files: bool,
}

/// One rule. Every field is explained in `suggestions.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    languages: Vec<String>,
    #[serde(default = "error_status")]
    status: RuleStatus,
    #[serde(default, deserialize_with = "patterns")]
    patterns: Vec<Regex>,
    near: Option<Near>,
    has_network: Option<bool>,
    #[serde(default)]
    is_module: bool,
    suggestions: Vec<String>,
    /// Messages of real failures, for the test.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test"))]
    examples: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RuleStatus {
    Error,
    Timeout,
    MemoryExceeded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Near {
    Names,
    Files,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rules: Vec<Rule>,
    /// The package that has a module or function of another name, by language.
    packages: BTreeMap<String, BTreeMap<String, String>>,
}

fn error_status() -> RuleStatus {
    RuleStatus::Error
}

fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Regex>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let build = |text: &String| RegexBuilder::new(text).multi_line(true).size_limit(MAX_PATTERN).build();
    texts.iter().map(build).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

/// The rules, which a test parses; so they cannot be wrong here.
fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| toml::from_str(RULES).unwrap_or_else(|_| Table { rules: Vec::new(), packages: BTreeMap::new() }))
}

/// Which surroundings must be read before [`suggest`].
pub fn wanted(failure: &Failure<'_>) -> Wanted {
    let near = |near| matching(failure).any(|(rule, _)| rule.near == Some(near));
    Wanted { names: near(Near::Names), files: near(Near::Files) }
}

/// At most [`MAX_SUGGESTIONS`], those of the first rules first.
pub fn suggest(failure: &Failure<'_>, surroundings: &Surroundings) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (rule, captures) in matching(failure) {
        if rule.has_network.is_some_and(|has_network| has_network != surroundings.has_network) {
            continue;
        }
        let values = Values::new(failure, surroundings, rule, captures.as_ref());
        for text in rule.suggestions.iter().filter_map(|template| values.fill(template)) {
            if !all.contains(&text) {
                all.push(text);
            }
        }
    }
    all.truncate(MAX_SUGGESTIONS);
    all
}

fn matching<'a>(failure: &'a Failure<'_>) -> impl Iterator<Item = (&'static Rule, Option<Captures<'a>>)> {
    let start = failure.text.ceil_char_boundary(failure.text.len().saturating_sub(MAX_TEXT));
    let (text, language, status) = (&failure.text[start..], failure.language.to_lowercase(), failure.status);
    table().rules.iter().filter_map(move |rule| {
        let is_of_status = match status {
            ReportStatus::Success => false,
            ReportStatus::Error => rule.status == RuleStatus::Error,
            ReportStatus::Timeout => rule.status == RuleStatus::Timeout,
            ReportStatus::MemoryExceeded => rule.status == RuleStatus::MemoryExceeded,
        };
        if !is_of_status || !rule.languages.is_empty() && !rule.languages.contains(&language) {
            return None;
        }
        if rule.patterns.is_empty() {
            return Some((rule, None));
        }
        // The last match: what was printed before may look like an error, too.
        let mut found = rule.patterns.iter().filter_map(|pattern| pattern.captures_iter(text).last());
        found.next().map(|captures| (rule, Some(captures)))
    })
}

/// What stands for the placeholders of a rule's suggestions.
struct Values {
    name: Option<String>,
    package: Option<String>,
    near: Option<String>,
    memory: String,
    timeout: String,
}

impl Values {
    fn new(failure: &Failure<'_>, surroundings: &Surroundings, rule: &Rule, captures: Option<&Captures<'_>>) -> Self {
        let name = captures.and_then(|captures| captures.name("name")).map(|name| shorten(name.as_str()));
        let near = name.as_ref().zip(rule.near).and_then(|(name, near)| match near {
            Near::Names => near_names(name, failure, surroundings),
            Near::Files => near_files(name, surroundings),
        });
        let package = name.as_ref().and_then(|name| package_of(&failure.language.to_lowercase(), name, rule.is_module));
        Self {
            package,
            near,
            name,
            memory: surroundings.memory_mb.to_string(),
            timeout: surroundings.timeout_seconds.to_string(),
        }
    }

    /// A suggestion, unless one of its placeholders has no value.
    fn fill(&self, template: &str) -> Option<String> {
        let mut text = template.to_owned();
        let values = [
            ("{package}", self.package.as_deref()),
            ("{near}", self.near.as_deref()),
            ("{memory}", Some(self.memory.as_str())),
            ("{timeout}", Some(self.timeout.as_str())),
            // Last, since a name may hold anything.
            ("{name}", self.name.as_deref()),
        ];
        for (placeholder, value) in values {
            if text.contains(placeholder) {
                text = text.replace(placeholder, value?);
            }
        }
        Some(text)
    }
}

fn shorten(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(MAX_NAME).collect()
}

/// The package of a module or function. A module is mostly in the package of its name, a function is not.
fn package_of(language: &str, name: &str, is_module: bool) -> Option<String> {
    let known = table().packages.get(language).and_then(|packages| packages.get(name));
    known.cloned().or_else(|| is_module.then(|| name.to_owned()))
}

/// The names of the session, the code and the language that are near.
fn near_names(name: &str, failure: &Failure<'_>, surroundings: &Surroundings) -> Option<String> {
    let mut candidates: BTreeSet<&str> = surroundings.names.iter().map(String::as_str).take(MAX_CANDIDATES).collect();
    let words = failure.code.split(|character: char| !(character.is_alphanumeric() || matches!(character, '_' | '.')));
    candidates.extend(words.flat_map(|word| [word, word.trim_start_matches('.')]).take(MAX_CANDIDATES));
    if let Some(lexer) = languages::find(&failure.language.to_lowercase()).and_then(languages::Language::lexer) {
        candidates.extend(lexer.builtins.split_whitespace().chain(lexer.constants.split_whitespace()));
        candidates.extend(lexer.keywords.split_whitespace());
    }
    list(nearest(name, candidates.into_iter().map(|candidate| (candidate, candidate))))
}

/// The files whose paths or names are near.
fn near_files(path: &str, surroundings: &Surroundings) -> Option<String> {
    let name = |path: &'_ str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let asked = name(path);
    let names: Vec<(String, &str)> =
        surroundings.files.iter().take(MAX_CANDIDATES).map(|file| (name(file), file.as_str())).collect();
    list(nearest(&asked, names.iter().map(|(name, path)| (name.as_str(), *path))))
}

/// What is shown for the candidates that are most like a name, by similarity. A name that differs in its case is nearest.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let lower = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = candidates
        .filter(|(candidate, shown)| !candidate.is_empty() && *shown != name && candidate.len() <= 4 * MAX_NAME)
        .map(|(candidate, shown)| (strsim::normalized_damerau_levenshtein(&lower, &candidate.to_lowercase()), shown))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .collect();
    scored.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
    scored.iter().take(MAX_NEAR).map(|(_, shown)| shorten(shown)).collect()
}

fn list(names: Vec<String>) -> Option<String> {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => None,
        [only] => Some(only.clone()),
        [first @ .., last] => Some(format!("{} or {last}", first.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure<'a>(language: &'a str, code: &'a str, text: &str) -> Failure<'a> {
        Failure { language, code, status: ReportStatus::Error, text: text.to_owned() }
    }

    #[test]
    fn every_rule_gives_a_suggestion_for_its_examples() {
        let table: Table = toml::from_str(RULES).unwrap();
        assert!(!table.rules.is_empty());
        for rule in &table.rules {
            let language = rule.languages.first().map_or("python", String::as_str);
            assert!(
                rule.languages.iter().all(|name| languages::find(name).is_some_and(|known| known.name == *name)),
                "{rule:?}"
            );
            assert!(!rule.examples.is_empty(), "{rule:?} has no example");
            for example in &rule.examples {
                let status = match rule.status {
                    RuleStatus::Error => ReportStatus::Error,
                    RuleStatus::Timeout => ReportStatus::Timeout,
                    RuleStatus::MemoryExceeded => ReportStatus::MemoryExceeded,
                };
                let surroundings =
                    Surroundings { has_network: rule.has_network.unwrap_or(false), ..Surroundings::default() };
                let failure = Failure { status, ..failure(language, "", example) };
                let found = matching(&failure).any(|(found, _)| found.suggestions == rule.suggestions);
                assert!(found, "{example:?} does not match {rule:?}");
                let is_near = rule.suggestions.iter().all(|text| text.contains("{near}"));
                assert!(is_near || !suggest(&failure, &surroundings).is_empty(), "nothing for {example:?}");
            }
        }
    }

    #[test]
    fn modules_are_in_packages_of_other_names() {
        let missing = failure("python", "", "ModuleNotFoundError: No module named 'cv2'");
        let suggestions = suggest(&missing, &Surroundings::default());
        assert!(suggestions[0].contains("`opencv-python-headless`"), "{suggestions:?}");
        let other = failure("python", "", "ModuleNotFoundError: No module named 'humanize'");
        assert!(suggest(&other, &Surroundings::default())[0].contains("`humanize`"));
    }

    #[test]
    fn near_names_come_from_session_code_and_language() {
        let surroundings = Surroundings { names: vec!["revenue".to_owned()], ..Surroundings::default() };
        let near = |code, name| {
            let text = format!("NameError: name '{name}' is not defined");
            suggest(&failure("python", code, &text), &surroundings).join(" ")
        };
        assert!(near("print(revenu)", "revenu").contains("`revenue`"));
        assert!(near("total = 1\nprint(totl)", "totl").contains("`total`"));
        assert!(near("pint(1)", "pint").contains("`print`"));
        assert!(!near("x = qqqqqq", "qqqqqq").contains("Did you mean"));
    }

    #[test]
    fn near_files_are_named_by_path() {
        let files = ["data/sales_2026.csv", "notes.txt"].map(str::to_owned).to_vec();
        let surroundings = Surroundings { files, ..Surroundings::default() };
        let text = "FileNotFoundError: [Errno 2] No such file or directory: 'sales-2026.csv'";
        let suggestions = suggest(&failure("python", "", text), &surroundings);
        assert!(suggestions[0].contains("`data/sales_2026.csv`"), "{suggestions:?}");
    }

    #[test]
    fn hostile_messages_are_bounded() {
        let long = format!("NameError: name '{}' is not defined", "a".repeat(1 << 20));
        let surroundings = Surroundings { names: vec!["b".repeat(100_000); 5000], ..Surroundings::default() };
        let suggestions = suggest(&failure("python", "", &long), &surroundings);
        assert!(suggestions.iter().map(String::len).sum::<usize>() < 5000, "{suggestions:?}");
        let filled = suggest(&failure("python", "", "ModuleNotFoundError: No module named '{near}{name}'"), &surroundings);
        assert!(filled.iter().all(|text| text.len() < 1000));
    }
}

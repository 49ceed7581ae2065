//! What Cellkeep knows of each language: one row, `languages/NAME.toml`, for names, file endings, comments, colours, parameters, and
//! the code that seeds a kernel or lists its packages and variables. The page reads the same rows (`web/build.mjs`).
//!
//! `docs/add-a-kernel.md` shows how to add one.

use std::sync::OnceLock;

use rust_embed::RustEmbed;
use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(RustEmbed)]
#[folder = "languages/"]
struct Files;

/// A language.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// Lower case; the name of the row's file.
    #[serde(skip)]
    pub name: String,
    /// Other names, lower case: of kernelspecs, file endings, editors.
    aliases: Vec<String>,
    /// Ending of a file in this language, without the dot.
    pub extension: String,
    /// Endings of files that `exec FILE` runs in this language, as they are written.
    #[serde(default)]
    source_extensions: Vec<String>,
    /// MIME type of a file in this language.
    pub mime: String,
    /// First line of a script.
    pub shebang: Option<String>,
    pub line_comment: String,
    /// Whether lines may be IPython's: magics, shell commands, questions.
    #[serde(default)]
    pub ipython_lines: bool,
    /// The language whose sections this one shares where it has none of its own.
    like: Option<String>,
    lexer: Option<LexerTable>,
    parameters: Option<ParameterSyntax>,
    session: Option<SessionCode>,
    /// For the page.
    #[serde(default)]
    #[expect(dead_code, reason = "read by web/build.mjs")]
    editor: Option<IgnoredAny>,
    #[serde(default)]
    #[expect(dead_code, reason = "read by web/build.mjs")]
    examples: Option<IgnoredAny>,
}

/// What the lexer needs to colour code.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LexerTable {
    #[serde(default)]
    pub style: LexerStyle,
    /// Words, separated by blanks.
    #[serde(default)]
    pub keywords: String,
    /// Names of values.
    #[serde(default)]
    pub constants: String,
    /// Names that are there without an import.
    #[serde(default)]
    pub builtins: String,
    pub block_comment: Option<BlockComment>,
    /// Longest first.
    #[serde(default = "usual_strings")]
    pub strings: Vec<StringSyntax>,
    /// Characters that words may hold besides letters, digits and `_`.
    #[serde(default)]
    pub word_characters: String,
    /// What a decorator or macro begins with.
    pub decorator: Option<char>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockComment {
    pub open: String,
    pub close: String,
    pub nests: bool,
}

/// One kind of string literal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StringSyntax {
    pub open: String,
    pub close: String,
    /// Whether a backslash escapes the next character.
    pub escapes: bool,
    /// Whether the string may go on over line ends.
    pub multiline: bool,
}

fn usual_strings() -> Vec<StringSyntax> {
    let quoted = |quote: &str| StringSyntax { open: quote.into(), close: quote.into(), escapes: true, multiline: false };
    vec![quoted("\""), quoted("'")]
}

/// Rules of the lexer that a table cannot express.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LexerStyle {
    #[default]
    Plain,
    /// IPython: lines that begin with `%` or `!`; prefixes of strings.
    Python,
    /// `/` begins a regular expression where a value is expected.
    Script,
    /// `$name`; `#` is a comment only before a word.
    Shell,
    /// `'` behind a value is a transposition; prefixes of strings.
    Julia,
    /// Keywords in any case.
    Sql,
}

/// How a notebook's parameters are written as assignments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterSyntax {
    pub null: String,
    #[serde(rename = "true")]
    pub true_literal: String,
    #[serde(rename = "false")]
    pub false_literal: String,
    pub nan: String,
    pub infinity: String,
    /// How text is escaped.
    pub strings: StringEscape,
    /// Follows integers that a double cannot hold exactly.
    #[serde(default)]
    pub big_integer_suffix: String,
    pub list: ListSyntax,
    /// `None`: the language has no literal for a mapping.
    pub map: Option<MapSyntax>,
    /// Template with `{name}` and `{value}`.
    pub assignment: String,
    /// Template with `{word}` too, for a name that is declared with one of `redeclaration_words` before.
    #[serde(default)]
    pub redeclaration: String,
    #[serde(default)]
    pub redeclaration_words: Vec<String>,
    /// Words that may stand before a declared name.
    #[serde(default)]
    pub declaration_words: Vec<String>,
    /// What stands between a name and its type.
    pub annotation: Option<String>,
    #[serde(default = "usual_signs")]
    pub assignment_signs: Vec<String>,
    /// Whether blanks may stand before the sign.
    #[serde(default = "yes")]
    pub blanks_around_sign: bool,
    /// Characters of names besides letters, digits and `_`.
    #[serde(default)]
    pub name_characters: String,
    #[serde(default = "yes")]
    pub leading_underscore: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSyntax {
    pub open: String,
    pub close: String,
    pub separator: String,
    /// Whether an item may be a list.
    #[serde(default = "yes")]
    pub nests: bool,
    /// Opens a list of items of different types, where `open` would convert them to one type.
    pub mixed_open: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSyntax {
    pub open: String,
    pub close: String,
    /// Stands between key and value.
    pub pair: String,
    /// The mapping without entries, where it is not just `open` and `close`.
    pub empty: Option<String>,
    /// Whether a key may be empty.
    #[serde(default = "yes")]
    pub empty_keys: bool,
    /// Keys that are written in square brackets.
    #[serde(default)]
    pub computed_keys: Vec<String>,
}

/// How text becomes a string literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StringEscape {
    /// A JSON string. Only for languages that replace nothing in such a literal: neither `$name` nor `#{code}`.
    Json,
    /// As JSON, with `$` escaped.
    Julia,
    /// As JSON, with `#` escaped.
    Ruby,
    /// As JSON; a NUL cannot be written.
    R,
    /// In single quotes, or `$'…'` for control characters; a NUL cannot be written.
    Bash,
}

/// Code that runs silently between two cells.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionCode {
    seed: Option<String>,
    seed_env: Option<String>,
    packages: Option<String>,
    /// File beside the row.
    variables: Option<String>,
    variables_call: Option<String>,
}

fn usual_signs() -> Vec<String> {
    vec!["=".to_owned()]
}

fn yes() -> bool {
    true
}

/// All languages, sorted by name.
pub fn all() -> &'static [Language] {
    static ALL: OnceLock<Vec<Language>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut languages: Vec<Language> = Files::iter().filter_map(|file| read(&file).ok()).collect();
        languages.sort_by(|a, b| a.name.cmp(&b.name));
        languages
    })
}

/// Reads one row. A unit test ensures that all rows can be read.
fn read(file: &str) -> Result<Language, String> {
    let name = file.strip_suffix(".toml").ok_or("no row")?;
    let text = Files::get(file).ok_or("no file")?.data;
    let text = std::str::from_utf8(&text).map_err(|error| error.to_string())?;
    parse(name, text).map_err(|error| format!("{file}: {error}"))
}

fn parse(name: &str, text: &str) -> Result<Language, toml::de::Error> {
    let language: Language = toml::from_str(text)?;
    Ok(Language { name: name.to_owned(), ..language })
}

/// Finds a language by its name or an alias, in any case; a version behind the name is ignored (`julia-1.11`).
pub fn find(name: &str) -> Option<&'static Language> {
    let name = name.trim().to_ascii_lowercase();
    let exact =
        |name: &str| all().iter().find(|language| language.name == name || language.aliases.iter().any(|a| a == name));
    let unversioned = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '_'));
    // Short names with a number are names of their own: s3, c99.
    exact(&name).or_else(|| exact(unversioned).filter(|_| unversioned.len() > 2))
}

/// The language of a source file with this ending (without the dot).
pub fn of_source_file(extension: &str) -> Option<&'static Language> {
    all().iter().find(|language| language.source_extensions.iter().any(|known| known == extension))
}

/// Names of the languages that parameters can be written in.
pub fn with_parameters() -> impl Iterator<Item = &'static str> {
    all().iter().filter(|language| language.parameters().is_some()).map(|language| language.name.as_str())
}

impl Language {
    fn parent(&self) -> Option<&'static Self> {
        find(self.like.as_deref()?)
    }

    /// `None`: code in this language stays without colours.
    pub fn lexer(&self) -> Option<&LexerTable> {
        self.lexer.as_ref().or_else(|| self.parent()?.lexer.as_ref())
    }

    /// `None`: parameters cannot be written in this language.
    pub fn parameters(&self) -> Option<&ParameterSyntax> {
        self.parameters.as_ref().or_else(|| self.parent()?.parameters.as_ref())
    }

    fn session(&self) -> Option<&SessionCode> {
        self.session.as_ref().or_else(|| self.parent()?.session.as_ref())
    }

    /// Code that seeds the kernel's random number generators; `None` where it has none that can be seeded.
    pub fn seed_code(&self, seed: u32) -> Option<String> {
        Some(self.session()?.seed.as_ref()?.replace("{seed}", &seed.to_string()))
    }

    /// The variable that must hold the seed before the kernel starts.
    pub fn seed_variable(&self) -> Option<&str> {
        self.session()?.seed_env.as_deref()
    }

    /// Code that writes a line `name==version` for each installed package into the file `path`, and leaves no name behind.
    pub fn packages_code(&self, path: &str) -> Option<String> {
        Some(self.session()?.packages.as_ref()?.replace("{path}", path))
    }

    /// Code that writes a line for each variable into the file `path`, at most `most`: name, type and a summary, separated by tabs.
    /// It leaves no name behind and runs no code of the values' own.
    pub fn variables_code(&self, path: &str, most: usize) -> Option<String> {
        let session = self.session()?;
        let script = Files::get(session.variables.as_ref()?)?.data;
        let (script, path, most) = (String::from_utf8_lossy(&script), quoted(path), most.to_string());
        let call = session.variables_call.as_ref()?;
        let call = call.replace("{path}", &path).replace("{most}", &most).replace("{script}", &quoted(&script));
        Some(call.replace("{source}", &script.replace("PATH", &path).replace("MOST", &most)))
    }
}

/// As a JSON string, which is a string of Python, R and bash too for what stands in paths and scripts.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The row in the documentation, for tests.
#[cfg(test)]
pub(crate) fn documented_example() -> Language {
    let document = include_str!("../docs/add-a-kernel.md");
    let row = document.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    parse("ruby", row).unwrap()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_is_readable() {
        for file in Files::iter().filter(|file| file.ends_with(".toml")) {
            let language = read(&file).unwrap();
            assert!(language.like.is_none() || language.parent().is_some(), "{file}: like");
            let script = language.session.as_ref().and_then(|session| session.variables.as_ref());
            assert!(script.is_none_or(|script| Files::get(script).is_some()), "{file}: variables");
        }
    }

    #[test]
    fn documented_row_adds_a_language() {
        let ruby = documented_example();
        assert!(find("ruby").is_none(), "the example is a language that is not there");
        assert_eq!((ruby.extension.as_str(), ruby.lexer().unwrap().style), ("rb", LexerStyle::Plain));
        assert_eq!(ruby.seed_code(7).as_deref(), Some("srand(7)"));
        assert!(ruby.packages_code("/work/x").unwrap().starts_with("File.write(\"/work/x\""));
        // Ruby runs what is between `#{` and `}` in a double-quoted string.
        assert_eq!(ruby.parameters().unwrap().strings, StringEscape::Ruby);
    }

    #[test]
    fn no_name_belongs_to_two_languages() {
        let mut seen = BTreeSet::new();
        for language in all() {
            for name in language.aliases.iter().chain([&language.name]) {
                assert!(seen.insert(name), "{name}");
                assert_eq!(*name, name.to_lowercase());
            }
        }
    }

    #[test]
    fn languages_are_found_by_all_names() {
        for (name, found) in [
            ("Python", "python"),
            ("python3", "python"),
            ("python3.11", "python"),
            ("julia-1.11", "julia"),
            ("ir", "r"),
            ("deno", "typescript"),
            ("c++", "c++"),
        ] {
            assert_eq!(find(name).map(|language| language.name.as_str()), Some(found), "{name}");
        }
        assert!(["cobol", "", "3", "s3", "c99"].into_iter().all(|unknown| find(unknown).is_none()));
        assert_eq!(of_source_file("R").map(|language| language.name.as_str()), Some("r"));
    }

    #[test]
    fn shared_sections_come_from_the_other_language() {
        let typescript = find("typescript").unwrap();
        assert!(typescript.lexer().is_some() && typescript.parameters().is_some());
        assert!(typescript.packages_code("/work/x").unwrap().contains("(\"/work/x\","));
    }

    #[test]
    fn session_code_has_its_values_filled_in() {
        for (name, path) in [("python", "'path': \"/work/x\""), ("R", "\"/work/x\""), ("bash", "> \"/work/x\"")] {
            let code = find(name).unwrap().variables_code("/work/x", 7).unwrap();
            assert!(code.contains(path) && code.contains('7') && !code.contains("PATH") && !code.contains("MOST"), "{code}");
        }
        assert_eq!(find("r").unwrap().seed_code(3).unwrap(), "set.seed(3)");
        assert_eq!(
            (find("python").unwrap().seed_variable(), find("r").unwrap().seed_variable()),
            (Some("PYTHONHASHSEED"), None)
        );
        assert!(find("typescript").unwrap().variables_code("x", 1).is_none());
    }
}

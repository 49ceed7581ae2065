//! The packages that a notebook says it needs: a block of inline script metadata (PEP 723), and commands that install packages in cells
//! at the top, before other code.

use std::borrow::Cow;

use super::Notebook;

/// The most text of one cell that is looked at, bytes.
const MAX_SOURCE: usize = 256 << 10;
/// The beginnings of commands that install packages. `pip` alone is IPython's automagic.
const COMMANDS: &[&str] = &[
    "%pip install",
    "!pip install",
    "!pip3 install",
    "pip install",
    "!python -m pip install",
    "!python3 -m pip install",
    "!{sys.executable} -m pip install",
    "%uv pip install",
    "!uv pip install",
];
/// Options without a value that change nothing about which packages are meant.
const FLAGS: &[&str] =
    &["-q", "-qq", "-qqq", "--quiet", "-U", "--upgrade", "--user", "--no-cache-dir", "--system", "-y", "--yes", "-v"];

/// The packages that a notebook says it needs, each once, in the order of the notebook.
pub fn requirements(notebook: &Notebook) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut is_top = true;
    for cell in notebook.cells().filter(|cell| cell.is_code()) {
        let source = cell.source();
        if source.len() > MAX_SOURCE {
            is_top = false;
            continue;
        }
        let mut of_cell = script_dependencies(&source).unwrap_or_default();
        match install_commands(&source).filter(|_| is_top) {
            Some(installed) => of_cell.extend(installed),
            None => is_top = false,
        }
        for requirement in of_cell {
            if !found.contains(&requirement) {
                found.push(requirement);
            }
        }
    }
    found
}

/// The dependencies of a `# /// script` block.
fn script_dependencies(source: &str) -> Option<Vec<String>> {
    let mut lines = source.lines().skip_while(|line| line.trim_end() != "# /// script").skip(1);
    let mut text = String::new();
    loop {
        let line = lines.next()?.trim_end();
        if line == "# ///" {
            break;
        }
        // Every line of the block is a comment; the first character after `#` is a space.
        let content = line.strip_prefix('#')?;
        text.push_str(content.strip_prefix(' ').unwrap_or(content));
        text.push('\n');
    }
    let table: toml::Table = text.parse().ok()?;
    let dependencies = table.get("dependencies")?.as_array()?;
    Some(dependencies.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
}

/// The packages of a cell that does nothing but install some. `None` for another cell, also for one whose command has options that
/// choose other sources.
fn install_commands(source: &str) -> Option<Vec<String>> {
    let joined: Cow<'_, str> = source.replace("\\\n", " ").into();
    let mut found = Vec::new();
    for line in joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        // For `sys.executable`.
        if matches!(line, "%%capture" | "import sys") {
            continue;
        }
        let command = COMMANDS.iter().find_map(|command| line.strip_prefix(command))?;
        let arguments = words(command.split(" #").next().unwrap_or_default())?;
        found.extend(arguments.into_iter().filter(|argument| !FLAGS.contains(&argument.as_str())));
    }
    found.iter().all(|argument| !argument.starts_with('-')).then_some(found)
}

/// Splits a command line at white space outside of quotes. `None` if a shell would do more with it.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in text.chars() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (';' | '&' | '|' | '$' | '`' | '{' | '(', None) => return None,
            (' ' | '\t', None) => words.extend(word.take()),
            (_, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notebook::NewCell;

    fn of(cells: &[&str]) -> Vec<String> {
        let mut notebook = Notebook::new("python3", "Python 3", "python");
        for (index, source) in cells.iter().enumerate() {
            notebook.insert_cell(index, NewCell::code(*source));
        }
        requirements(&notebook)
    }

    #[test]
    fn needs_are_found_in_metadata_and_first_cells() {
        let script = "# /// script\n# requires-python = \">=3.11\"\n# dependencies = [\n#   \"polars>=1\",\n#   \"rich\",\n# ]\n# ///\nimport rich";
        assert_eq!(of(&[script]), ["polars>=1", "rich"]);
        let install = "# what we need\n%pip install -q 'numpy<2' pandas[excel] \\\n    rich  # colours\n!uv pip install --system seaborn";
        assert_eq!(
            of(&[install, "%pip install more", "import rich", "%pip install late"]),
            ["numpy<2", "pandas[excel]", "rich", "seaborn", "more"]
        );
        assert_eq!(of(&["import os", script]), ["polars>=1", "rich"], "a block counts anywhere");
        assert_eq!(of(&["%%capture\n!pip install a a"]), ["a"]);
        assert_eq!(of(&["import sys\n!{sys.executable} -m pip install a", "!python3 -m pip install b"]), ["a", "b"]);
    }

    #[test]
    fn other_commands_say_nothing() {
        for source in [
            "%pip install -r requirements.txt",
            "%pip install --index-url https://a b",
            "!pip install $NAME",
            "!pip install a && rm -rf /",
            "!pip install 'a",
            "%pip list",
            "print('pip install a')",
            "%pip install a\nimport a",
            "# /// script\n# dependencies = 3\n# ///",
            "# /// script\ndependencies = ['a']\n# ///",
        ] {
            assert_eq!(of(&[source]), Vec::<String>::new(), "{source}");
        }
    }
}

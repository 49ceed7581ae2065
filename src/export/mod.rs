//! A notebook as a document for readers: a page, markdown, a script, or a notebook file.
//!
//! [`export`] is a function of the notebook and the options alone, so files, runs and live sessions share it. A page
//! holds all it needs; markdown has files beside it.

mod html;
mod markdown;
mod percent;
mod script;
mod speaker;
mod text;
mod visible;

use crate::languages;
use crate::notebook::Notebook;
use serde_json::Value;
#[cfg(test)]
use serde_json::json;

/// What a notebook is made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One self-contained page.
    Html,
    /// Markdown, with images and attachments as files beside it.
    Markdown,
    /// The code in the notebook's language.
    Script,
    /// A notebook file.
    Ipynb,
}

/// The colours of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Theme {
    /// As the reader's system has it; a switch in the page changes it.
    #[default]
    Auto,
    /// Light until the reader changes it.
    Light,
    /// Dark until the reader changes it.
    Dark,
}

/// The form of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScriptStyle {
    /// Code one after the other, the rest as comments: a program that can be run.
    #[default]
    Plain,
    /// Cells behind `# %%`, as editors and jupytext read them: a notebook that can be read back.
    Percent,
}

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The notebook's name without extension: a title where there is none, and the folder of side files.
    pub name: String,
    /// The title, if not the notebook's own.
    pub title: Option<String>,
    /// The page's colours.
    pub theme: Theme,
    /// Whether code is shown.
    pub inputs: bool,
    /// Whether execution counts are shown.
    pub prompts: bool,
    /// Whether outputs are shown.
    pub outputs: bool,
    /// The form of scripts.
    pub script_style: ScriptStyle,
    /// Puts what would be side files into the document itself, where a document has no place beside it.
    pub inline_files: bool,
    /// Draws all plots of a page at once and not as they come into view: for printing.
    pub eager: bool,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            name: "notebook".to_owned(),
            title: None,
            theme: Theme::default(),
            inputs: true,
            prompts: true,
            outputs: true,
            script_style: ScriptStyle::default(),
            inline_files: false,
            eager: false,
        }
    }
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The document.
    pub body: String,
    /// Its type.
    pub mime: &'static str,
    /// Its file extension, without the dot.
    pub extension: &'static str,
    /// Files that it refers to: a relative path, and the bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// What a person should know about it, as that a plot is not interactive.
    pub notes: Vec<String>,
}

/// Makes a document of a notebook.
pub fn export(notebook: &Notebook, format: Format, options: &ExportOptions) -> Exported {
    match format {
        Format::Html => html::page(notebook, options),
        Format::Markdown => markdown::document(notebook, options),
        Format::Script => script::script(notebook, options),
        Format::Ipynb => Exported::plain(ipynb(notebook, options), "application/x-ipynb+json", "ipynb"),
    }
}

impl Exported {
    fn plain(body: String, mime: &'static str, extension: &'static str) -> Self {
        Self { body, mime, extension, files: Vec::new(), notes: Vec::new() }
    }
}

/// The notebook as it is, or as if it had never been run.
fn ipynb(notebook: &Notebook, options: &ExportOptions) -> String {
    if options.outputs {
        return notebook.print();
    }
    let mut bare = notebook.clone();
    let code: Vec<usize> = notebook.cells().enumerate().filter(|(_, cell)| cell.is_code()).map(|(index, _)| index).collect();
    for index in code {
        // The cells were just found to be code, so neither call can fail.
        let _ = bare.set_outputs(index, Vec::new(), None);
        let _ = bare.set_execution_timing(index, &[]);
    }
    bare.metadata_mut().shift_remove("widgets");
    bare.print()
}

/// The title: as asked for, else as the metadata says, else the first heading, else the name.
fn title(notebook: &Notebook, options: &ExportOptions) -> (String, TitleFrom) {
    let own = |key: &str| notebook.metadata()?.get(key)?.as_str().filter(|title| !title.trim().is_empty());
    if let Some(title) = options.title.as_deref().or_else(|| own("title")) {
        return (title.trim().to_owned(), TitleFrom::Outside);
    }
    let heading = notebook.cells().filter(|cell| cell.cell_type() == "markdown").find_map(|cell| {
        let source = cell.source();
        let line = source.lines().find_map(|line| line.strip_prefix("# "))?;
        Some(line.trim().trim_end_matches('#').trim().replace(['*', '`'], "")).filter(|title| !title.is_empty())
    });
    match heading {
        Some(heading) => (heading, TitleFrom::Heading),
        None => (options.name.clone(), TitleFrom::Outside),
    }
}

/// Where a title comes from: one that is a heading of the text is not said twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TitleFrom {
    Heading,
    Outside,
}

/// The notebook's language for colours and comments.
fn language(notebook: &Notebook) -> String {
    let named = notebook.language().filter(|name| !name.is_empty());
    let by_kernel = || {
        let kernelspec = notebook.kernelspec_name()?;
        Some(languages::find(kernelspec).map_or(kernelspec, |language| language.name.as_str()))
    };
    named.or_else(by_kernel).unwrap_or("python").to_lowercase()
}

/// An empty bundle for outputs that have none.
fn bundle(output: &Value) -> Option<&serde_json::Map<String, Value>> {
    output.get("data").and_then(Value::as_object)
}

/// A notebook of these cells, for tests.
#[cfg(test)]
fn notebook_of(cells: Value) -> Notebook {
    let root =
        json!({"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5});
    Notebook::parse(root.to_string().as_bytes()).unwrap()
}

#[cfg(test)]
mod tests;

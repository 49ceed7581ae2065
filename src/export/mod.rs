//! A notebook as a document for readers: a page, markdown, a script, or a notebook file.
//!
//! [`export`] depends only on the notebook and the options, so files, runs and live sessions share it. A page is
//! self-contained; markdown has side files.

mod chat_roles;
mod html;
mod markdown;
mod percent;
mod script;
mod text;
mod visibility;

use crate::languages;
use crate::notebook::Notebook;
use serde_json::Value;
#[cfg(test)]
use serde_json::json;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One self-contained HTML page.
    Html,
    /// Markdown, with images and attachments as side files.
    Markdown,
    /// Source code in the notebook's language.
    Script,
    Ipynb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Theme {
    /// As the reader's system; a button in the page changes it.
    #[default]
    Auto,
    Light,
    Dark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScriptStyle {
    /// A program: the code of all cells, everything else as comments.
    #[default]
    Plain,
    /// Percent cells (`# %%`), which editors and jupytext can read back as a notebook.
    Percent,
}

#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The notebook's name without extension: the title if the notebook has none, and the folder of side files.
    pub name: String,
    /// Replaces the notebook's own title.
    pub title: Option<String>,
    pub theme: Theme,
    pub inputs: bool,
    pub prompts: bool,
    pub outputs: bool,
    pub script_style: ScriptStyle,
    /// Embeds side files into the document as data URLs.
    pub inline_files: bool,
    /// Draws all plots of a page at load and not when they come into view: for printing.
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub body: String,
    pub mime: &'static str,
    /// Its file extension, without the dot.
    pub extension: &'static str,
    /// Side files: relative path and bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// Warnings for the person, for example that a plot is not interactive.
    pub notes: Vec<String>,
}

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

/// The notebook file; without outputs, as if it had never been executed.
fn ipynb(notebook: &Notebook, options: &ExportOptions) -> String {
    if options.outputs {
        return notebook.print();
    }
    let mut bare = notebook.clone();
    let code: Vec<usize> = notebook.cells().enumerate().filter(|(_, cell)| cell.is_code()).map(|(index, _)| index).collect();
    for index in code {
        // These are code cells, so neither call can fail.
        let _ = bare.set_outputs(index, Vec::new(), None);
        let _ = bare.set_execution_timing(index, &[]);
    }
    bare.metadata_mut().shift_remove("widgets");
    bare.print()
}

/// The title from the options, the metadata, the first heading or the name, in this order.
fn title(notebook: &Notebook, options: &ExportOptions) -> (String, TitleSource) {
    let own = |key: &str| notebook.metadata()?.get(key)?.as_str().filter(|title| !title.trim().is_empty());
    if let Some(title) = options.title.as_deref().or_else(|| own("title")) {
        return (title.trim().to_owned(), TitleSource::Outside);
    }
    let heading = notebook.cells().filter(|cell| cell.cell_type() == "markdown").find_map(|cell| {
        let source = cell.source();
        let line = source.lines().find_map(|line| line.strip_prefix("# "))?;
        Some(line.trim().trim_end_matches('#').trim().replace(['*', '`'], "")).filter(|title| !title.is_empty())
    });
    match heading {
        Some(heading) => (heading, TitleSource::Heading),
        None => (options.name.clone(), TitleSource::Outside),
    }
}

/// Where a title comes from. A heading is already in the text, so it is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TitleSource {
    Heading,
    Outside,
}

/// The notebook's language in lower case, for colours and comments.
fn language(notebook: &Notebook) -> String {
    let named = notebook.language().filter(|name| !name.is_empty());
    let by_kernel = || {
        let kernelspec = notebook.kernelspec_name()?;
        // Environments are often named after their language: `python38-azureml`, `julia-1.9-nthreads-4`.
        let by_prefix =
            || ["python", "julia"].into_iter().find(|name| kernelspec.starts_with(name)).and_then(languages::find);
        let language = languages::find(kernelspec).or_else(by_prefix);
        Some(language.map_or(kernelspec, |language| language.name.as_str()))
    };
    named.or_else(by_kernel).unwrap_or("python").to_lowercase()
}

/// The MIME bundle of an output.
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

//! `cellkeep export`: exports notebooks to documents.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::notebook_file::read_notebook;
use super::options::write_atomically;
use super::print::{bytes_to_stdout, explain};
use super::{Exit, Failure, chromium};
use crate::export::{ExportOptions, Exported, Format, ScriptStyle, Theme, export};
use crate::notebook::Notebook;

/// Export notebooks to HTML, markdown, scripts, PDF or notebooks. Nothing runs: the outputs are those in the file.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep export analysis.ipynb                         writes analysis.html, one file that works offline
  cellkeep export analysis.ipynb --to html,pdf --no-input
  cellkeep export a.ipynb b.ipynb --to markdown --output-dir docs
                                                         docs/a.md, with its images in docs/a_files
  cellkeep export analysis.ipynb --to script --script-style percent
                                                         analysis.py with # %% cells, which jupytext reads
  cellkeep export analysis.ipynb --to ipynb --no-outputs -o clean.ipynb
  cellkeep export - --to html -o - < in.ipynb > out.html

The tags remove-cell, remove-input and remove-output leave cells, code and outputs out; hide-cell,
hide-input and hide-output fold them. PDF export prints with Chromium: chromium, chromium-browser or
google-chrome in PATH, or the program that CELLKEEP_CHROMIUM names.")]
pub(super) struct ExportArgs {
    /// Notebooks, or - for standard input
    #[arg(value_name = "NOTEBOOK|-", required = true)]
    notebooks: Vec<PathBuf>,
    /// The formats to export to
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FORMAT,...", default_value = "html")]
    to: Vec<Target>,
    /// The file to write, or - for standard output [default: beside the notebook, with the extension of the format]
    #[arg(short, long, value_name = "OUT|-")]
    output: Option<PathBuf>,
    /// The folder to write into [default: the folder of each notebook]
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    output_dir: Option<PathBuf>,
    #[command(flatten)]
    look: LookArgs,
}

/// Options for the look of a document.
#[derive(Args)]
pub(super) struct LookArgs {
    /// Leave out the code
    #[arg(long, help_heading = "What is shown")]
    no_input: bool,
    /// Leave out the execution counts
    #[arg(long, help_heading = "What is shown")]
    no_prompt: bool,
    /// Leave out the outputs
    #[arg(long, alias = "clear-outputs", alias = "clear-output", help_heading = "What is shown")]
    no_outputs: bool,
    /// The title [default: from the notebook's metadata, else its first heading]
    #[arg(long, value_name = "TITLE", help_heading = "What is shown")]
    title: Option<String>,
    /// The colours of the page; its reader can change them
    #[arg(long, value_enum, default_value = "auto", help_heading = "What is shown")]
    theme: ThemeName,
    /// The form of a script: a plain program, or cells that can be read back
    #[arg(long, value_enum, default_value = "plain", help_heading = "What is shown")]
    script_style: StyleName,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Target {
    /// One self-contained page
    Html,
    /// Markdown, with images as files beside it
    #[value(alias = "md")]
    Markdown,
    /// A script in the notebook's language
    #[value(alias = "py")]
    Script,
    /// A notebook
    #[value(alias = "notebook")]
    Ipynb,
    /// The page, printed by Chromium
    Pdf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ThemeName {
    /// The setting of the reader's system
    Auto,
    Light,
    Dark,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StyleName {
    /// A program, with text as comments
    Plain,
    /// Cells after "# %%" lines
    Percent,
}

/// A finished document and the files beside it.
struct Document {
    bytes: Vec<u8>,
    extension: &'static str,
    files: Vec<(String, Vec<u8>)>,
}

pub(super) async fn run(args: ExportArgs) -> Result<Exit, Failure> {
    check_arguments(&args).map_err(Failure::usage)?;
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    let mut failed = false;
    for path in &args.notebooks {
        // A notebook that fails does not stop the others.
        if let Err(error) = export_one(&args, path, to_stdout).await {
            if args.notebooks.len() == 1 {
                return Err(Failure::usage(error));
            }
            eprint_line!("error: {}", explain(&error));
            failed = true;
        }
    }
    Ok(if failed { Exit::Usage } else { Exit::Ok })
}

/// Refuses arguments that would write two documents to one file.
fn check_arguments(args: &ExportArgs) -> anyhow::Result<()> {
    let documents = args.notebooks.len() * args.to.len();
    if args.output.is_some() && documents > 1 {
        bail!(
            "-o names one file, but {documents} documents are requested; use --output-dir, or one notebook and one format"
        );
    }
    if args.notebooks.iter().filter(|path| *path == Path::new("-")).count() > 1 {
        bail!("- (standard input) can be given only once");
    }
    let mut targets: Vec<PathBuf> = Vec::new();
    for path in &args.notebooks {
        let target = folder(args, path).join(name(path));
        if targets.contains(&target) {
            bail!("two of the notebooks would be written to {}; export them separately", target.display());
        }
        targets.push(target);
    }
    Ok(())
}

async fn export_one(args: &ExportArgs, path: &Path, to_stdout: bool) -> anyhow::Result<()> {
    let notebook = read_notebook(path)?;
    for warning in notebook.warnings() {
        eprint_line!("warning: {}: {warning}", path.display());
    }
    let from_stdin = path == Path::new("-");
    // Standard input is exported to standard output, unless a target is given.
    let to_stdout = to_stdout || from_stdin && args.output.is_none() && args.output_dir.is_none();
    for target in &args.to {
        let stem = args.output.as_deref().filter(|_| !to_stdout).map_or_else(|| name(path), name);
        let options = ExportOptions { inline_files: to_stdout, ..args.look.options(stem.clone()) };
        let document = render(&notebook, *target, options).await?;
        if to_stdout {
            bytes_to_stdout(&document.bytes);
            continue;
        }
        let file = format!("{stem}.{}", document.extension);
        let out = args.output.clone().unwrap_or_else(|| folder(args, path).join(file));
        if !from_stdin && is_same(&out, path) {
            bail!("{} is the notebook itself; name another file with -o", out.display());
        }
        let files = write(&out, document)?;
        eprint_line!(
            "wrote {}{}",
            out.display(),
            match files.len() {
                0 => String::new(),
                1 => " and 1 file beside it".to_owned(),
                files => format!(" and {files} files beside it"),
            }
        );
    }
    Ok(())
}

/// Exports an executed notebook beside its file, under its name. Returns all files that were written.
pub(super) async fn write_beside(
    notebook: &Notebook,
    path: &Path,
    targets: &[Target],
    look: &LookArgs,
) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for target in targets {
        let document = render(notebook, *target, look.options(name(path))).await?;
        let out = path.with_extension(document.extension);
        if out == path {
            bail!("--to ipynb would replace the executed notebook; it is for `cellkeep export`");
        }
        let files = write(&out, document)?;
        written.push(out);
        written.extend(files);
    }
    Ok(written)
}

fn is_same(out: &Path, notebook: &Path) -> bool {
    matches!((out.canonicalize(), notebook.canonicalize()), (Ok(out), Ok(notebook)) if out == notebook)
}

async fn render(notebook: &Notebook, target: Target, options: ExportOptions) -> anyhow::Result<Document> {
    let format = match target {
        Target::Html | Target::Pdf => Format::Html,
        Target::Markdown => Format::Markdown,
        Target::Script => Format::Script,
        Target::Ipynb => Format::Ipynb,
    };
    let is_pdf = target == Target::Pdf;
    // Without a browser nothing else is worth doing, so it is looked up first.
    let browser = if is_pdf { Some(chromium::find()?) } else { None };
    let Exported { body, extension, files, notes, .. } =
        export(notebook, format, &ExportOptions { eager: is_pdf, ..options });
    for note in notes {
        eprint_line!("note: {note}");
    }
    Ok(match browser {
        Some(browser) => Document { bytes: chromium::print(&browser, &body).await?, extension: "pdf", files },
        None => Document { bytes: body.into_bytes(), extension, files },
    })
}

/// Writes a document and the files beside it; returns the latter.
fn write(out: &Path, document: Document) -> anyhow::Result<Vec<PathBuf>> {
    let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut files = Vec::new();
    for (name, bytes) in &document.files {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        write_atomically(&path, bytes)?;
        files.push(path);
    }
    // Devices and pipes are written to; they cannot be replaced.
    if out.exists() && !out.is_file() && !out.is_dir() {
        std::fs::write(out, &document.bytes).with_context(|| format!("cannot write {}", out.display()))?;
    } else {
        write_atomically(out, &document.bytes)?;
    }
    Ok(files)
}

impl LookArgs {
    /// The export options for a notebook of this name.
    pub(super) fn options(&self, name: String) -> ExportOptions {
        ExportOptions {
            name,
            title: self.title.clone(),
            theme: match self.theme {
                ThemeName::Auto => Theme::Auto,
                ThemeName::Light => Theme::Light,
                ThemeName::Dark => Theme::Dark,
            },
            inputs: !self.no_input,
            // As in nbconvert, --no-input leaves out the counts too.
            prompts: !self.no_prompt && !self.no_input,
            outputs: !self.no_outputs,
            script_style: match self.script_style {
                StyleName::Plain => ScriptStyle::Plain,
                StyleName::Percent => ScriptStyle::Percent,
            },
            ..ExportOptions::default()
        }
    }
}

/// The file name without its extension.
fn name(path: &Path) -> String {
    if path == Path::new("-") {
        return "notebook".to_owned();
    }
    path.file_stem().map(OsStr::to_string_lossy).map_or_else(|| "notebook".to_owned(), Into::into)
}

fn folder(args: &ExportArgs, notebook: &Path) -> PathBuf {
    let own = notebook.parent().filter(|_| notebook != Path::new("-")).unwrap_or(Path::new(""));
    args.output_dir.clone().unwrap_or_else(|| own.to_owned())
}

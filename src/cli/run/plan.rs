//! Plans the jobs of a command: finds the notebooks, and decides where each is written.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};

use super::parameter_args::placeholder_values;
use crate::cli::options::resolve_links;
use crate::notebook::parameters::{self, Parameters};

/// The most notebooks of one command.
const MAX_NOTEBOOKS: usize = 10_000;

/// One notebook to be run.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Job {
    /// The notebook file, or `-` for standard input.
    pub source: PathBuf,
    /// Where the executed notebook is written; `None` for nowhere.
    pub target: Option<PathBuf>,
    /// The folder for its artifacts.
    pub artifacts: Option<PathBuf>,
    /// A random UUID.
    pub run_id: String,
}

/// A notebook that was found: its path, and its path below the folder that was named.
type Found = (PathBuf, PathBuf);

/// Finds the notebooks that a command line names: files, and those in folders. In folders, executed notebooks
/// (`*.out.ipynb`) and checkpoints are skipped.
pub(in crate::cli) fn find_notebooks(named: &[PathBuf]) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    for path in named {
        if path.is_dir() {
            let before = found.len();
            search_folder(path, path, &mut found)?;
            found[before..].sort();
        } else {
            found.push((path.clone(), PathBuf::from(path.file_name().unwrap_or(path.as_os_str()))));
        }
    }
    let mut seen = HashSet::new();
    found.retain(|(path, _)| seen.insert(path.clone()));
    make_unique(&mut found);
    if found.is_empty() {
        bail!(
            "there is no notebook in {}",
            named.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(found)
}

/// Gives notebooks of equal names from different folders the names of their folders too.
fn make_unique(found: &mut [Found]) {
    let mut count = HashMap::new();
    for (_, below) in &*found {
        *count.entry(below.clone()).or_insert(0) += 1;
    }
    for (path, below) in found.iter_mut().filter(|(_, below)| count[below] > 1) {
        *below = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    }
}

fn search_folder(top: &Path, folder: &Path, found: &mut Vec<Found>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links to folders are not followed: they may form a loop.
        if kind.is_dir() && name != ".ipynb_checkpoints" {
            search_folder(top, &path, found)?;
        } else if !kind.is_dir() && name.ends_with(".ipynb") && !name.ends_with(".out.ipynb") {
            let below = path.strip_prefix(top).unwrap_or(&path).to_owned();
            found.push((path, below));
        }
        if found.len() > MAX_NOTEBOOKS {
            bail!("there are more than {MAX_NOTEBOOKS} notebooks in {}", top.display());
        }
    }
    Ok(())
}

/// The default target: `NAME.out.ipynb` beside the notebook.
pub(in crate::cli) fn default_output(notebook: &Path) -> PathBuf {
    if notebook == Path::new("-") { PathBuf::from("-") } else { notebook.with_extension("out.ipynb") }
}

/// Replaces `{NAME}` in a path by the parameter's value.
pub(in crate::cli) fn expand_placeholders(path: &Path, parameters: &Parameters, run_id: &str) -> anyhow::Result<PathBuf> {
    match path.to_str() {
        // An existing file whose name has braces is used as it is.
        Some(text) if text.contains(['{', '}']) && !path.exists() => {
            Ok(parameters::expand(text, &placeholder_values(parameters, run_id)?)?.into())
        }
        _ => Ok(path.to_owned()),
    }
}

/// Fails early if a target is not writable, rather than after an hour of cells.
pub(in crate::cli) fn check_target(target: &Path) -> anyhow::Result<()> {
    let target = &resolve_links(target);
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if target == Path::new("-") || target.exists() && !target.is_dir() && !target.is_file() {
        return Ok(());
    }
    if target.is_dir() {
        bail!("{} is a folder; give the file to write", target.display());
    }
    std::fs::create_dir_all(parent)
        .with_context(|| format!("cannot make the folder {} for the executed notebook", parent.display()))?;
    let probe = parent.join(format!(".cellkeep-{}", crate::ids::random_uuid()));
    std::fs::write(&probe, b"")
        .and_then(|()| std::fs::remove_file(&probe))
        .with_context(|| format!("cannot write into {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_search_skips_checkpoints_and_executed_notebooks() {
        let top = std::env::temp_dir().join(format!("cellkeep-plan-{}", std::process::id()));
        for name in ["b.ipynb", "a/c.ipynb", "a/.ipynb_checkpoints/c.ipynb", "a/c.out.ipynb", "x.txt"] {
            let path = top.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = find_notebooks(&[top.clone(), top.join("b.ipynb")]).unwrap();
        let below: Vec<&str> = found.iter().map(|(_, below)| below.to_str().unwrap()).collect();
        assert_eq!(below, ["a/c.ipynb", "b.ipynb"], "each once");
        let named = ["a/c.ipynb", "../b/c.ipynb", "d.ipynb"].map(PathBuf::from);
        let apart: Vec<PathBuf> = find_notebooks(&named).unwrap().into_iter().map(|(_, below)| below).collect();
        assert_eq!(apart, ["a/c.ipynb", "b/c.ipynb", "d.ipynb"].map(PathBuf::from));
        assert!(
            find_notebooks(&[top.join("a/.ipynb_checkpoints").join("none")]).is_ok(),
            "a missing file is reported when it is read"
        );
        std::fs::remove_dir_all(&top).unwrap();
    }
}

//! Which notebooks a command line means, and where each is written.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};

use super::given::for_paths;
use crate::cli::options::behind_links;
use crate::notebook::parameters::{self, Parameters};

/// Notebooks of one command.
const MAX_NOTEBOOKS: usize = 10_000;

/// One notebook to be run.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Job {
    /// What it is, or `-`.
    pub source: PathBuf,
    /// Where it goes; `None` for nowhere.
    pub target: Option<PathBuf>,
    /// Where its plots and documents go, if anywhere.
    pub artifacts: Option<PathBuf>,
    /// Names this run.
    pub run_id: String,
}

/// The notebooks that are meant: files as they are, and all in folders, whose own outputs and checkpoints are left out. The second
/// is the path below the folder that was named.
pub(in crate::cli) fn notebooks(named: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for path in named {
        if path.is_dir() {
            let before = found.len();
            in_folder(path, path, &mut found)?;
            found[before..].sort();
        } else {
            found.push((path.clone(), PathBuf::from(path.file_name().unwrap_or(path.as_os_str()))));
        }
    }
    let mut seen = HashSet::new();
    found.retain(|(path, _)| seen.insert(path.clone()));
    tell_apart(&mut found);
    if found.is_empty() {
        bail!(
            "there is no notebook in {}",
            named.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(found)
}

/// Notebooks of one name from several places go below the names of these.
fn tell_apart(found: &mut [(PathBuf, PathBuf)]) {
    let mut times = HashMap::new();
    for (_, below) in &*found {
        *times.entry(below.clone()).or_insert(0) += 1;
    }
    for (path, below) in found.iter_mut().filter(|(_, below)| times[below] > 1) {
        *below = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    }
}

fn in_folder(top: &Path, folder: &Path, found: &mut Vec<(PathBuf, PathBuf)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links to folders are not followed: they may lead back.
        if kind.is_dir() && name != ".ipynb_checkpoints" {
            in_folder(top, &path, found)?;
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

/// The file beside a notebook that it is written to where nobody says otherwise.
pub(in crate::cli) fn default_output(notebook: &Path) -> PathBuf {
    if notebook == Path::new("-") { PathBuf::from("-") } else { notebook.with_extension("out.ipynb") }
}

/// A path with the values of the names in it.
pub(in crate::cli) fn filled(path: &Path, parameters: &Parameters, run_id: &str) -> anyhow::Result<PathBuf> {
    match path.to_str() {
        // A file that is called so is meant.
        Some(text) if text.contains(['{', '}']) && !path.exists() => {
            Ok(parameters::expand(text, &for_paths(parameters, run_id)?)?.into())
        }
        _ => Ok(path.to_owned()),
    }
}

/// A result that cannot be written is found out before an hour of cells, not after.
pub(in crate::cli) fn check_target(target: &Path) -> anyhow::Result<()> {
    let target = &behind_links(target);
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
    fn folders_are_searched_without_checkpoints_and_outputs() {
        let top = std::env::temp_dir().join(format!("cellkeep-plan-{}", std::process::id()));
        for name in ["b.ipynb", "a/c.ipynb", "a/.ipynb_checkpoints/c.ipynb", "a/c.out.ipynb", "x.txt"] {
            let path = top.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = notebooks(&[top.clone(), top.join("b.ipynb")]).unwrap();
        let below: Vec<&str> = found.iter().map(|(_, below)| below.to_str().unwrap()).collect();
        assert_eq!(below, ["a/c.ipynb", "b.ipynb"], "each once");
        let named = ["a/c.ipynb", "../b/c.ipynb", "d.ipynb"].map(PathBuf::from);
        let apart: Vec<PathBuf> = notebooks(&named).unwrap().into_iter().map(|(_, below)| below).collect();
        assert_eq!(apart, ["a/c.ipynb", "b/c.ipynb", "d.ipynb"].map(PathBuf::from));
        assert!(
            notebooks(&[top.join("a/.ipynb_checkpoints").join("none")]).is_ok(),
            "a file that is missing is told when read"
        );
        std::fs::remove_dir_all(&top).unwrap();
    }
}

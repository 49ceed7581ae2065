//! Kernels that an operator adds: any Jupyter kernelspec, with the folders of the machine that its program needs, an image, or both.
//!
//! The files of the kernelspec are copied into an environment, as for our own kernels, so that sandboxes see them at
//! `/opt/kernel/spec` whatever happens to the original.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::catalog::{self, KernelSpec};
use crate::config::KernelConfig;

/// Where sandboxes see the files of the kernelspec.
const SPEC: &str = "/opt/kernel/spec";
/// The most files of a kernelspec, and their bytes together: the folder is read into memory.
const MAX_FILES: usize = 200;
const MAX_BYTES: u64 = 16 << 20;
/// Turns the staging folder into an environment: the commands and fonts of our own kernels.
const BAKE: &str = "#!/bin/sh
set -eu
sh \"$1/common/commands.sh\" \"$1\"
sh \"$1/common/fonts.sh\" \"$1\" || echo 'warning: without fonts' >&2
chmod -R a+rx \"$1/spec\"
";

/// What only an operator's kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// The files of its environment besides those of all kernels.
    pub files: Arc<BTreeMap<String, Vec<u8>>>,
    /// Folders of the machine that process sandboxes see at the same paths, read-only.
    pub folders: Vec<PathBuf>,
    /// The image of docker sandboxes.
    pub image: Option<String>,
    /// Whether its program is one of this machine.
    pub on_machine: bool,
}

#[derive(Debug, Error)]
pub enum OwnKernelError {
    #[error("a name of a kernel has lower-case letters, digits, - _ and ., at most 64, and begins with a letter or digit")]
    Name,
    #[error("{}: {reason}", path.display())]
    Kernelspec { path: PathBuf, reason: String },
    #[error("its program {0:?} is not on this machine; name an image that has it")]
    NoProgram(String),
    #[error("sandboxes cannot show {} at its own path, because they have something else there", .0.display())]
    Folder(PathBuf),
}

/// Folders that sandboxes have themselves. A kernel in them needs no folder, or cannot be shown.
const OCCUPIED: &[&str] =
    &["/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/bin", "/lib", "/work", "/mnt", "/opt/kernel", "/opt/packages"];

/// Reads a kernel of the configuration.
///
/// # Errors
/// If the kernelspec is missing, too large or malformed, its program is nowhere, or a folder cannot be shown.
pub fn read(name: &str, config: &KernelConfig) -> Result<KernelSpec, OwnKernelError> {
    if !is_kernel_name(name) {
        return Err(OwnKernelError::Name);
    }
    let bad = |reason: String| OwnKernelError::Kernelspec { path: config.kernelspec.clone(), reason };
    let mut files = BTreeMap::new();
    read_folder(&config.kernelspec, "spec", &mut files).map_err(bad)?;
    let kernelspec = files.get("spec/kernel.json").ok_or_else(|| bad("it has no kernel.json".to_owned()))?;
    let text_file = |file: &str| String::from_utf8(files.get(&format!("spec/{file}"))?.clone()).ok();
    let mut kernel = catalog::parse(name, kernelspec, text_file).map_err(bad)?;
    for folder in &config.folders {
        let is_occupied = OCCUPIED.iter().any(|occupied| folder.starts_with(occupied));
        if !folder.is_absolute() || folder == Path::new("/") || is_occupied && folder != Path::new(LOCAL) {
            return Err(OwnKernelError::Folder(folder.clone()));
        }
    }
    files.insert("bake.sh".to_owned(), BAKE.into());
    let program = kernel.argv.first().cloned().unwrap_or_default();
    let found = find_program(&program, &config.kernelspec);
    let on_machine = found.is_some() && (config.image.is_none() || !config.folders.is_empty());
    if !on_machine && config.image.is_none() {
        return Err(OwnKernelError::NoProgram(program));
    }
    if on_machine && let (Some(path), Some(first)) = (found, kernel.argv.first_mut()) {
        *first = path.display().to_string();
    }
    for argument in kernel.argv.iter_mut().chain(&mut kernel.install_packages) {
        *argument = argument.replace("{resource_dir}", SPEC);
    }
    kernel.env = environment(&kernel);
    let own = Own { files: files.into(), folders: config.folders.clone(), image: config.image.clone(), on_machine };
    Ok(kernel.added(own, &config.kernelspec))
}

/// The variables that our own kernels set, below those of the kernelspec.
fn environment(kernel: &KernelSpec) -> BTreeMap<String, String> {
    let folder = kernel.argv.first().and_then(|program| Path::new(program).parent()).filter(|folder| folder.is_absolute());
    let own = folder.map(|folder| format!("{}:", folder.display())).unwrap_or_default();
    let path = format!("{own}/opt/kernel/commands:/opt/conda/bin:/usr/local/bin:/usr/bin:/bin");
    let defaults = [
        ("USER", "cellkeep"),
        ("LOGNAME", "cellkeep"),
        ("LANG", "C.UTF-8"),
        ("IPYTHONDIR", "/tmp/.ipython"),
        ("PATH", &path),
        // ipykernel's debugger, which nothing here uses, warns at each start.
        ("PYDEVD_DISABLE_FILE_VALIDATION", "1"),
    ];
    let mut env: BTreeMap<_, _> = defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    env.extend(kernel.env.clone());
    env
}

/// Reads the files of a kernelspec. Subfolders are part of it.
fn read_folder(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let mut entries: Vec<_> = fs::read_dir(folder).and_then(Iterator::collect).map_err(|error| error.to_string())?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|name| format!("{} is not UTF-8", name.display()))?;
        let (path, name) = (entry.path(), format!("{prefix}/{name}"));
        let found = fs::symlink_metadata(&path).map_err(|error| format!("{name}: {error}"))?;
        if found.is_symlink() {
            // Its target may be a file that sandboxes must not read, and would be read again at each start.
            return Err(format!("{name} is a link; put a copy in its place"));
        }
        if found.is_dir() {
            read_folder(&path, &name, files)?;
            continue;
        }
        let bytes: usize = files.values().map(Vec::len).sum();
        if !found.is_file() || files.len() >= MAX_FILES || bytes as u64 + found.len() > MAX_BYTES {
            return Err(format!("it is not a kernelspec: more than {MAX_FILES} files or {} MB, or {name}", MAX_BYTES >> 20));
        }
        files.insert(name.clone(), fs::read(&path).map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(())
}

/// Whether an operator's kernel may have this name, which becomes that of a folder.
pub fn is_kernel_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = name.bytes();
    bytes.next().is_some_and(is_plain) && bytes.all(|byte| is_plain(byte) || b"-_.".contains(&byte)) && name.len() <= 64
}

const LOCAL: &str = "/usr/local";

/// The program of a kernelspec on this machine. A bare name means the one beside the kernelspec (`PREFIX/bin`, for a kernelspec in
/// `PREFIX/share/jupyter/kernels/NAME`), as pip installs it, else one in PATH.
fn find_program(program: &str, kernelspec: &Path) -> Option<PathBuf> {
    if program.contains('/') {
        let path = PathBuf::from(program.replace("{resource_dir}", &kernelspec.display().to_string()));
        return path.is_file().then(|| PathBuf::from(program.replace("{resource_dir}", SPEC)));
    }
    let kernelspec = fs::canonicalize(kernelspec).ok()?;
    let beside = kernelspec.ancestors().nth(4).map(|prefix| prefix.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The folders that a program needs besides those of the system, as far as they can be told: the environment that it is in (venv,
/// conda), and the Python below a venv.
///
/// # Errors
/// The folder of the program, if that is no environment: it may hold anything, such as a home folder.
pub fn needed_folders(kernelspec: &Path) -> Result<Vec<PathBuf>, PathBuf> {
    let text = fs::read(kernelspec.join("kernel.json")).unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let Some(program) = spec["argv"][0].as_str().and_then(|program| find_program(program, kernelspec)) else {
        return Ok(Vec::new());
    };
    let mut folders: Vec<PathBuf> = Vec::new();
    let resolved = fs::canonicalize(&program).unwrap_or_else(|_| program.clone());
    for path in [program, resolved] {
        add_prefix(&path, &mut folders)?;
    }
    Ok(folders)
}

fn add_prefix(program: &Path, folders: &mut Vec<PathBuf>) -> Result<(), PathBuf> {
    let of_system = program.starts_with("/usr") && !program.starts_with(LOCAL)
        || ["/bin", "/opt/kernel"].iter().any(|folder| program.starts_with(folder));
    if of_system || folders.iter().any(|folder| program.starts_with(folder)) {
        return Ok(());
    }
    let bin = program.parent().unwrap_or(program);
    let prefix = bin.parent().filter(|_| bin.ends_with("bin")).unwrap_or(bin);
    let config = fs::read_to_string(prefix.join("pyvenv.cfg")).ok();
    if config.is_none() && !prefix.join("conda-meta").is_dir() && !has_standard_library(prefix) && prefix != Path::new(LOCAL)
    {
        return Err(bin.to_owned());
    }
    folders.push(prefix.to_owned());
    let home = config.as_deref().and_then(|config| config.lines().find_map(|line| line.strip_prefix("home = ")));
    match home {
        Some(home) => add_prefix(&Path::new(home.trim()).join("python3"), folders),
        None => Ok(()),
    }
}

/// Whether a folder is that of a Python installation, rather than one that also has Python packages, like `~/.local`.
fn has_standard_library(prefix: &Path) -> bool {
    let versions = fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    versions.map(|version| version.path()).any(|version| version.join("os.py").is_file())
}

/// The kernelspecs in Jupyter's own paths: name and folder.
pub fn available() -> Vec<(String, PathBuf)> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".local/share/jupyter"));
    let data = variable("JUPYTER_DATA_DIR").map(PathBuf::from).or_else(home);
    let named = variable("JUPYTER_PATH").map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>()).unwrap_or_default();
    let prefixes = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(PathBuf::from);
    let system = [LOCAL, "/usr"].map(PathBuf::from);
    let of_prefixes = prefixes.chain(system).map(|prefix| prefix.join("share/jupyter"));
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for folder in named.into_iter().chain(data).chain(of_prefixes).map(|folder| folder.join("kernels")) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if path.join("kernel.json").is_file() && !found.iter().any(|(_, known)| *known == path) {
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

//! The catalog of kernels: the embedded kernel folders, and the names that refer to them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use jupyter_protocol::JupyterKernelspec;
use rust_embed::RustEmbed;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::own::Own;
use crate::policy::Limits;
use crate::wire::connection_file::Transport;

#[derive(RustEmbed)]
#[folder = "kernel-images/"]
struct Folders;

/// The folder of files that all kernels share: fonts, commands.
const COMMON: &str = "common";

/// A kernel that Cellkeep can run: its kernelspec and our settings for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// The name of its folder, such as `python`.
    pub name: String,
    pub display_name: String,
    /// As in its kernelspec.
    pub language: String,
    /// The command line, which contains `{connection_file}`.
    pub argv: Vec<String>,
    /// Environment variables in addition to those of every sandbox.
    pub env: BTreeMap<String, String>,
    /// Whether it is interrupted by `interrupt_request` instead of SIGINT.
    pub interrupt_by_message: bool,
    pub transport: Transport,
    /// Whether it broadcasts on an inherited pipe; see `agent::iopub_pipe`.
    pub iopub_pipe: bool,
    /// Code that runs silently after each start; the content of the file that `metadata.cellkeep.startup_file` names.
    pub startup_code: Option<String>,
    /// Code that sets the context of an execution; see `AgentConfig`.
    pub context_code: Option<String>,
    /// Whether it cannot set the environment and the working folder of one execution.
    pub ignores_context: bool,
    /// Code that marks the end of an execution's outputs; see `AgentConfig`.
    pub end_marker: Option<String>,
    /// The command that installs package sets; see `manager::package_sets`. Empty if there is none.
    pub install_packages: Vec<String>,
    /// Environment variables of sandboxes with a package set.
    pub packages_env: BTreeMap<String, String>,
    /// The default memory limit of its sessions, MiB, if it needs another one than [`Limits::default`].
    memory_mb: Option<u64>,
    /// Whether notebooks name it with its version, as its own kernelspec does (`Julia 1.11`).
    versioned_name: bool,
    /// The kernel whose folder has the files that its own lacks.
    extends: Option<String>,
    /// What only a kernel has that an operator added.
    own: Option<Own>,
    aliases: Vec<String>,
    kernelspec_names: Vec<String>,
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no kernel {name:?}; available: {known} (see `cellkeep kernels list`)")]
pub struct KernelError {
    name: String,
    known: String,
}

/// `metadata.cellkeep` of a kernelspec.
#[derive(Deserialize)]
struct CellkeepMetadata {
    #[serde(default = "tcp")]
    transport: Transport,
    #[serde(default)]
    iopub_pipe: bool,
    startup_file: Option<String>,
    context_code: Option<String>,
    #[serde(default)]
    ignores_context: bool,
    end_marker: Option<String>,
    #[serde(default)]
    install_packages: Vec<String>,
    #[serde(default)]
    packages_env: BTreeMap<String, String>,
    memory_mb: Option<u64>,
    #[serde(default)]
    versioned_name: bool,
    extends: Option<String>,
    #[serde(default)]
    language_aliases: Vec<String>,
    #[serde(default)]
    kernelspec_names: Vec<String>,
}

/// The transport that every kernel has.
fn tcp() -> Transport {
    Transport::Tcp
}

static ALL: OnceLock<Vec<KernelSpec>> = OnceLock::new();

/// All kernels: our own by name, then those that the operator added.
pub fn all() -> &'static [KernelSpec] {
    ALL.get_or_init(embedded)
}

/// Adds kernels of the operator, before the first use of the catalog. Those whose names mean one of our own are returned instead.
pub fn add(own: Vec<KernelSpec>) -> Vec<KernelSpec> {
    let mut all = embedded();
    let (taken, added): (Vec<_>, Vec<_>) =
        own.into_iter().partition(|kernel| all.iter().any(|known| known.matches_name(&kernel.name)));
    all.extend(added);
    // Set already: a second call in one process, which only tests make.
    let _ = ALL.set(all);
    taken
}

fn embedded() -> Vec<KernelSpec> {
    let mut kernels: Vec<KernelSpec> = Folders::iter().filter_map(|path| read(&path)).collect();
    // The default kernel comes first.
    kernels.sort_by_key(|kernel| (kernel.name != "python", kernel.name.clone()));
    kernels
}

/// Reads the kernelspec at `path`. `None` for other files; a unit test ensures that no kernelspec is skipped as malformed.
fn read(path: &str) -> Option<KernelSpec> {
    let name = path.strip_suffix("/kernel.json")?;
    parse(name, &Folders::get(path)?.data, |file| text_file(name, file)).ok()
}

/// Reads a kernelspec. `text_file` returns other files of its folder.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(
    name: &str,
    kernelspec: &[u8],
    text_file: impl Fn(&str) -> Option<String>,
) -> Result<KernelSpec, String> {
    let spec: JupyterKernelspec = serde_json::from_slice(kernelspec).map_err(|error| format!("kernel.json: {error}"))?;
    if !spec.argv.iter().any(|argument| argument.contains("{connection_file}")) {
        return Err("kernel.json: argv has no {connection_file}".to_owned());
    }
    let own = spec.metadata.and_then(|mut metadata| metadata.remove("cellkeep"));
    // A kernel that knows nothing of Cellkeep cannot set the context of an execution.
    let own = own.unwrap_or_else(|| serde_json::json!({"ignores_context": true}));
    let own: CellkeepMetadata =
        serde_json::from_value(own).map_err(|error| format!("kernel.json: metadata.cellkeep: {error}"))?;
    let startup_code = match own.startup_file {
        Some(file) => Some(text_file(&file).ok_or_else(|| format!("the startup file {file:?} is missing"))?),
        None => None,
    };
    Ok(KernelSpec {
        name: name.to_owned(),
        display_name: spec.display_name,
        language: spec.language,
        argv: spec.argv,
        env: spec.env.unwrap_or_default().into_iter().collect(),
        interrupt_by_message: spec.interrupt_mode.as_deref() == Some("message"),
        transport: own.transport,
        iopub_pipe: own.iopub_pipe,
        startup_code,
        context_code: own.context_code,
        ignores_context: own.ignores_context,
        end_marker: own.end_marker,
        install_packages: own.install_packages,
        packages_env: own.packages_env,
        memory_mb: own.memory_mb,
        versioned_name: own.versioned_name,
        extends: own.extends,
        own: None,
        aliases: own.language_aliases,
        kernelspec_names: own.kernelspec_names,
    })
}

/// A file in the folder of a kernel. `None` if it does not exist or is not UTF-8.
fn text_file(kernel: &str, file: &str) -> Option<String> {
    String::from_utf8(Folders::get(&format!("{kernel}/{file}"))?.data.into_owned()).ok()
}

/// Finds a kernel by its name, an alias (`py`, `js`, `sh`, ...) or a kernelspec name (`python3`, `ir`, `julia-1.11`).
pub fn find(name: &str) -> Result<&'static KernelSpec, KernelError> {
    let wanted = name.trim().to_ascii_lowercase();
    all().iter().find(|kernel| kernel.matches_name(&wanted)).ok_or_else(|| KernelError {
        name: name.to_owned(),
        known: all().iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// Finds the kernel for a notebook. A user's own kernelspec ("my-env") is mapped by its language; the default is Python, as
/// in Jupyter.
///
/// # Errors
/// If neither kernelspec nor language is known.
pub fn for_notebook(kernelspec: Option<&str>, language: Option<&str>) -> Result<&'static KernelSpec, KernelError> {
    match (kernelspec, language) {
        (None, None) => find("python"),
        (Some(name), None) | (None, Some(name)) => find(name),
        (Some(name), Some(language)) => find(name).or_else(|error| find(language).map_err(|_| error)),
    }
}

/// The files of a kernel's folder, of the one that it extends, and of the folder [`COMMON`], sorted by name: the build context
/// of its image.
pub fn context(kernel: &KernelSpec) -> Vec<(String, Cow<'static, [u8]>)> {
    let mut files = folder(COMMON, &format!("{COMMON}/"));
    if let Some(own) = &kernel.own {
        files.extend(own.files.iter().map(|(name, data)| (name.clone(), Cow::Owned(data.clone()))));
        return files.into_iter().collect();
    }
    files.extend(kernel.extends.iter().flat_map(|base| folder(base, "")));
    files.extend(folder(&kernel.name, ""));
    files.into_iter().collect()
}

/// The files of a folder, with `prefix` before their names in it.
fn folder(name: &str, prefix: &str) -> BTreeMap<String, Cow<'static, [u8]>> {
    let file = |path: Cow<'static, str>| {
        let in_folder = path.strip_prefix(name)?.strip_prefix('/')?;
        Some((format!("{prefix}{in_folder}"), Folders::get(&path)?.data))
    };
    Folders::iter().filter_map(file).collect()
}

impl KernelSpec {
    fn matches_name(&self, wanted: &str) -> bool {
        let mut names = self.aliases.iter().chain(&self.kernelspec_names);
        self.name == wanted
            || self.language.eq_ignore_ascii_case(wanted)
            // `julia-*` matches all versions.
            || names.any(|name| name == wanted || name.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix)))
    }

    /// A hash of [`context()`]; images and environments with another one are stale.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (name, data) in context(self) {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((data.len() as u64).to_le_bytes());
            hash.update(&data);
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The limits of a session that does not set its own.
    pub fn default_limits(&self) -> Limits {
        let default = Limits::default();
        Limits { memory_mb: self.memory_mb.unwrap_or(default.memory_mb), ..default }
    }

    /// The name for people in a notebook. `version`: that of the language, as the running kernel says.
    pub fn display_name_in_notebook(&self, version: Option<&str>) -> String {
        let Some(version) = version.filter(|_| self.versioned_name) else { return self.display_name.clone() };
        let major_and_minor: Vec<&str> = version.splitn(3, '.').take(2).collect();
        format!("{} {}", self.display_name, major_and_minor.join("."))
    }

    /// The kernelspec name in Jupyter, for notebooks without one.
    pub fn kernelspec_name(&self) -> &str {
        let named = self.kernelspec_names.iter().find(|name| !name.ends_with('*'));
        named.map_or(self.name.as_str(), String::as_str)
    }

    /// A file of the kernel's folder, or of the one that it extends, as text; empty if there is none.
    pub fn file(&self, name: &str) -> String {
        let folders = std::iter::once(&self.name).chain(&self.extends);
        folders.filter_map(|folder| text_file(folder, name)).next().unwrap_or_default()
    }

    /// Whether it can run in the process sandbox. If not, it exists only as a container image.
    pub fn has_environment(&self) -> bool {
        self.own.as_ref().map_or_else(|| !self.file("bake.sh").is_empty(), |own| own.on_machine)
    }

    /// The image of its docker sandboxes. `None` for a kernel of the operator without one.
    pub fn image(&self) -> Option<String> {
        self.own.as_ref().map_or_else(|| Some(format!("cellkeep/{}:latest", self.name)), |own| own.image.clone())
    }

    /// Whether an operator added it.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The folders of the machine that its process sandboxes see at the same paths.
    pub fn folders(&self) -> &[PathBuf] {
        self.own.as_ref().map_or(&[], |own| &own.folders)
    }

    /// As a kernel of the operator. Notebooks name it by the folder of its kernelspec.
    pub(super) fn added(mut self, own: Own, kernelspec: &Path) -> Self {
        let folder = kernelspec.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase());
        self.kernelspec_names.extend(folder);
        Self { own: Some(own), extends: None, ..self }
    }

    /// The Debian packages that it requires.
    pub fn packages(&self) -> Vec<String> {
        words(&self.file("apt.txt"))
    }
}

/// The Debian packages of the commands that sandboxes have. A kernel works without them.
pub fn command_packages() -> Vec<String> {
    words(&text_file(COMMON, "packages.txt").unwrap_or_default())
}

/// The names of the commands that sandboxes have, apart from those of the kernels.
pub fn commands() -> Vec<String> {
    words(&text_file(COMMON, "commands.txt").unwrap_or_default())
}

fn words(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_has_a_readable_kernelspec() {
        let folders: std::collections::BTreeSet<_> = Folders::iter()
            .filter_map(|path| Some(path.split_once('/')?.0.to_owned()))
            .filter(|name| name != COMMON)
            .collect();
        let kernels: std::collections::BTreeSet<_> = all().iter().map(|kernel| kernel.name.clone()).collect();
        assert_eq!(kernels, folders);
        assert_eq!(kernels.len(), 6);
        for kernel in all() {
            assert!(kernel.argv.iter().any(|argument| argument.contains("{connection_file}")), "{}", kernel.name);
            assert!(!kernel.file("Dockerfile").is_empty());
        }
    }

    #[test]
    fn julia_has_its_own_memory_and_name() {
        let (julia, python) = (find("julia").unwrap(), find("python").unwrap());
        assert_eq!((julia.default_limits().memory_mb, python.default_limits()), (1024, Limits::default()));
        assert_eq!(julia.display_name_in_notebook(Some("1.5.3")), "Julia 1.5");
        assert_eq!(julia.display_name_in_notebook(None), "Julia");
        assert_eq!(python.display_name_in_notebook(Some("3.11.2")), "Python 3");
    }

    #[test]
    fn extending_kernel_has_both_folders() {
        let (minimal, python) = (find("python-minimal").unwrap(), find("python").unwrap());
        let files = |kernel| context(kernel).into_iter().collect::<BTreeMap<_, _>>();
        let (own, base) = (files(minimal), files(python));
        assert_eq!(own.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
        let differing: Vec<_> = own.iter().filter(|(name, data)| base[*name] != **data).map(|(name, _)| name).collect();
        assert_eq!(differing, ["kernel.json", "modules.txt", "requirements.in", "requirements.txt"]);
        assert!(minimal.has_environment() && minimal.packages() == python.packages());
        assert_eq!(find("python3").unwrap().name, "python", "it has no other names");
    }

    /// `pip install --require-hashes` refuses packages without one. `make pins` makes the files.
    #[test]
    fn pinned_packages_have_hashes_of_current_inputs() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let of_kernels = Folders::iter()
            .filter_map(|path| Some(format!("kernel-images/{}", path.strip_suffix("requirements.txt")?)))
            .map(|folder| format!("{folder}requirements"));
        let others =
            ["test-requirements", "bench-requirements", "release/requirements"].map(|name| format!("scripts/{name}"));
        for path in of_kernels.chain(others).chain(["src/kernels/uv-requirements".to_owned()]) {
            let read = |extension: &str| std::fs::read_to_string(root.join(format!("{path}.{extension}"))).unwrap();
            let (input, pinned) = (read("in"), read("txt"));
            let hash: String = Sha256::digest(&input).iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(pinned.lines().next().unwrap().contains(&hash), "{path}.in has changed; run: make pins");
            let packages: Vec<&str> = pinned.split("\n").filter(|line| line.starts_with(char::is_alphanumeric)).collect();
            let followed = pinned.matches(" \\\n    --hash=sha256:").count();
            let normal = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
            let has = |name: &str| packages.iter().any(|line| normal(line).starts_with(&format!("{}==", normal(name))));
            assert!(packages.iter().all(|line| line.contains("==") && line.ends_with(" \\")), "{path}: {packages:?}");
            assert!(followed >= packages.len() && !packages.is_empty(), "{path}");
            for name in input.lines().filter(|line| line.starts_with(char::is_alphanumeric)) {
                assert!(has(name), "{path}: {name} is not pinned; run: make pins");
            }
        }
    }

    #[test]
    fn documented_kernelspec_adds_a_kernel() {
        let document = include_str!("../../docs/add-a-kernel.md");
        let kernelspec = document.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
        let ruby = parse("ruby", kernelspec.as_bytes(), |_| None).unwrap();
        assert_eq!((ruby.language.as_str(), ruby.transport), ("ruby", Transport::Ipc));
        assert!(["ruby", "rb", "ruby3.3"].iter().all(|name| ruby.matches_name(name)));
    }

    #[test]
    fn kernels_are_found_by_all_names() {
        for (name, kernel) in [
            ("python", "python"),
            ("py", "python"),
            ("python3", "python"),
            ("Python", "python"),
            ("r", "r"),
            ("ir", "r"),
            ("R", "r"),
            ("julia-1.11", "julia"),
            ("deno", "deno"),
            ("js", "deno"),
            ("ts", "deno"),
            ("javascript", "deno"),
            ("typescript", "deno"),
            ("bash", "bash"),
            ("sh", "bash"),
        ] {
            assert_eq!(find(name).unwrap().name, kernel, "{name}");
        }
        assert!(find("cobol").unwrap_err().to_string().contains("python"));
        assert_eq!(for_notebook(None, None).unwrap().name, "python");
        assert_eq!(for_notebook(Some("my-env"), Some("R")).unwrap().name, "r");
        assert!(for_notebook(Some("my-env"), None).unwrap_err().to_string().contains("my-env"));
    }
}

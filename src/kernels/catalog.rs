//! The embedded kernel folders and the names by which people and notebooks call them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use rust_embed::RustEmbed;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::wire::connection_file::Transport;

#[derive(RustEmbed)]
#[folder = "kernel-images/"]
struct Folders;

/// A kernel that Cellkeep knows how to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// Our name for it: `python`, `r`, `julia`, `deno`, `bash`.
    pub name: String,
    /// As shown to people.
    pub display_name: String,
    /// The language, as kernelspecs name it.
    pub language: String,
    /// How it is started, with `{connection_file}`.
    pub argv: Vec<String>,
    /// Its environment beyond what every sandbox sets.
    pub env: BTreeMap<String, String>,
    /// Whether it is interrupted by a message instead of SIGINT.
    pub interrupt_by_message: bool,
    /// How its sockets are reached.
    pub transport: Transport,
    /// How long its iopub must be quiet before a run has ended, for a kernel that sends output after `idle` (Deno).
    pub late_output: Duration,
    aliases: Vec<String>,
    kernelspec_names: Vec<String>,
}

/// No kernel of that name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no kernel {name:?}; there are {known} (`cellkeep kernels list` shows them)")]
pub struct KernelError {
    name: String,
    known: String,
}

#[derive(Deserialize)]
struct KernelJson {
    argv: Vec<String>,
    display_name: String,
    language: String,
    #[serde(default)]
    interrupt_mode: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    metadata: MetadataJson,
}

#[derive(Deserialize)]
struct MetadataJson {
    cellkeep: OwnJson,
}

#[derive(Deserialize)]
struct OwnJson {
    transport: Transport,
    #[serde(default)]
    late_output_ms: u64,
    #[serde(default)]
    language_aliases: Vec<String>,
    #[serde(default)]
    kernelspec_names: Vec<String>,
}

/// All kernels, by name.
pub fn all() -> &'static [KernelSpec] {
    static ALL: OnceLock<Vec<KernelSpec>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut kernels: Vec<KernelSpec> = Folders::iter().filter_map(|path| read(&path)).collect();
        // The one people mean when they say nothing comes first.
        kernels.sort_by_key(|kernel| (kernel.name != "python", kernel.name.clone()));
        kernels
    })
}

/// Reads the kernelspec at `path`. `None` for the other files; a unit test reads all kernelspecs, so none is left out here
/// for being malformed.
fn read(path: &str) -> Option<KernelSpec> {
    let name = path.strip_suffix("/kernel.json")?;
    let json: KernelJson = serde_json::from_slice(&Folders::get(path)?.data).ok()?;
    Some(KernelSpec {
        name: name.to_owned(),
        display_name: json.display_name,
        language: json.language,
        argv: json.argv,
        env: json.env,
        interrupt_by_message: json.interrupt_mode == "message",
        transport: json.metadata.cellkeep.transport,
        late_output: Duration::from_millis(json.metadata.cellkeep.late_output_ms),
        aliases: json.metadata.cellkeep.language_aliases,
        kernelspec_names: json.metadata.cellkeep.kernelspec_names,
    })
}

/// The kernel called `name`: our name, an alias (`py`, `js`, `sh`, ...) or a kernelspec's name (`python3`, `ir`, `julia-1.11`).
///
/// # Errors
/// [`KernelError`], which names those there are.
pub fn find(name: &str) -> Result<&'static KernelSpec, KernelError> {
    let wanted = name.trim().to_ascii_lowercase();
    all().iter().find(|kernel| kernel.is_called(&wanted)).ok_or_else(|| KernelError {
        name: name.to_owned(),
        known: all().iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// The kernel for a notebook that names a kernelspec and perhaps a language. A kernelspec of a user's own ("my-env") is
/// mapped by its language; a notebook that says nothing is Python, as in Jupyter.
///
/// # Errors
/// [`KernelError`] when neither is known.
pub fn for_notebook(kernelspec: Option<&str>, language: Option<&str>) -> Result<&'static KernelSpec, KernelError> {
    match (kernelspec, language) {
        (None, None) => find("python"),
        (Some(name), None) | (None, Some(name)) => find(name),
        (Some(name), Some(language)) => find(name).or_else(|error| find(language).map_err(|_| error)),
    }
}

/// The files of a kernel's folder, by name: the build context of its image.
pub fn context(kernel: &KernelSpec) -> Vec<(String, Cow<'static, [u8]>)> {
    let prefix = format!("{}/", kernel.name);
    let mut files: Vec<_> = Folders::iter()
        .filter_map(|path| Some((path.strip_prefix(&prefix)?.to_owned(), Folders::get(&path)?.data)))
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

impl KernelSpec {
    fn is_called(&self, wanted: &str) -> bool {
        let mut names = self.aliases.iter().chain(&self.kernelspec_names);
        self.name == wanted
            || self.language.eq_ignore_ascii_case(wanted)
            // `julia-*` stands for all its versions.
            || names.any(|name| name == wanted || name.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix)))
    }

    /// A fingerprint of the kernel's folder, by which a stale image or environment is told.
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

    /// The name that Jupyter knows it by, for notebooks that name none.
    pub fn kernelspec_name(&self) -> &str {
        let named = self.kernelspec_names.iter().find(|name| !name.ends_with('*'));
        named.map_or(self.name.as_str(), String::as_str)
    }

    /// One file of the kernel's folder as text; empty where there is none.
    pub fn file(&self, name: &str) -> String {
        Folders::get(&format!("{}/{name}", self.name))
            .map(|file| String::from_utf8_lossy(&file.data).into_owned())
            .unwrap_or_default()
    }

    /// Whether the process sandbox can have it. Without, it exists as a container image only.
    pub fn has_environment(&self) -> bool {
        !self.file("bake.sh").is_empty()
    }

    /// Debian packages that it needs.
    pub fn packages(&self) -> Vec<String> {
        let text = self.file("apt.txt");
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_has_a_readable_kernelspec() {
        let folders: std::collections::BTreeSet<_> =
            Folders::iter().filter_map(|path| Some(path.split_once('/')?.0.to_owned())).collect();
        let kernels: std::collections::BTreeSet<_> = all().iter().map(|kernel| kernel.name.clone()).collect();
        assert_eq!(kernels, folders);
        assert_eq!(kernels.len(), 5);
        for kernel in all() {
            assert!(kernel.argv.iter().any(|argument| argument.contains("{connection_file}")), "{}", kernel.name);
            assert!(!kernel.file("Dockerfile").is_empty());
        }
    }

    #[test]
    fn people_and_notebooks_find_their_kernel() {
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

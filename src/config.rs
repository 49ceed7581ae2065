//! Where things are. Flags over environment over defaults.

use std::path::{Path, PathBuf};

/// The folders that Cellkeep uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    data: PathBuf,
}

impl Paths {
    /// The data folder from `CELLKEEP_DATA`, else `/var/lib/cellkeep` for root (a sandbox's own uid must be able to reach
    /// the kernel environments in it, which root's home forbids), else the user's data folder.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || variable("HOME").unwrap_or_else(|| PathBuf::from("/tmp")).join(".local/share");
        let data = variable("CELLKEEP_DATA").unwrap_or_else(|| {
            if rustix::process::geteuid().is_root() {
                PathBuf::from("/var/lib/cellkeep")
            } else {
                variable("XDG_DATA_HOME").unwrap_or_else(home).join("cellkeep")
            }
        });
        Self::new(&data)
    }

    /// Folders beneath `data`.
    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Managed kernel environments, one folder each.
    pub fn kernels(&self) -> PathBuf {
        self.data.join("kernels")
    }

    /// One folder per sandbox: its record and its socket.
    pub fn sandboxes(&self) -> PathBuf {
        self.data.join("s")
    }

    /// The journal of `serve`.
    pub fn journal(&self) -> PathBuf {
        self.data.join("journal.db")
    }

    /// Artifacts by their hash.
    pub fn blobs(&self) -> PathBuf {
        self.data.join("blobs")
    }

    /// The agent binary, written out to be mounted.
    pub fn agent(&self) -> PathBuf {
        self.data.join("agent")
    }

    /// Tools that were installed for our own use (`uv`).
    pub fn tools(&self) -> PathBuf {
        self.data.join("tools")
    }
}

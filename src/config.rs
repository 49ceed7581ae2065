//! Where things are, and what the configuration file says. Flags over environment over file over defaults.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The name of the configuration file.
const FILE: &str = "cellkeep.toml";

/// What `cellkeep.toml` may say. What it leaves out is decided elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// For `cellkeep serve`.
    pub serve: ServeConfig,
    /// The model that people can talk to.
    #[serde(skip_serializing_if = "ModelConfig::is_empty")]
    pub model: ModelConfig,
}

/// The settings of `cellkeep serve`, as its flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServeConfig {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// Which sandbox sessions get: `auto`, `docker` or `process`.
    pub sandbox: Option<String>,
    /// How many sessions may live at once.
    pub max_sessions: Option<usize>,
    /// Seconds without use after which a session ends.
    pub idle_timeout: Option<u64>,
    /// Seconds for which an ended session can still be read.
    pub keep_ended: Option<u64>,
    /// Seconds after its end for which a cell's events stay as they came.
    pub compact_after: Option<u64>,
    /// Megabytes that journal and artifacts may take.
    pub max_data_mb: Option<u64>,
    /// Kernels, and how many sessions of each are made ahead.
    pub pool: Option<BTreeMap<String, usize>>,
    /// Requests a second that are taken of each principal; 0: as many as come.
    pub rate_limit: Option<u32>,
    /// Names of this server beside those of loopback.
    pub allow_hosts: Option<Vec<String>>,
    /// Origins of pages that may use it.
    pub allow_origins: Option<Vec<String>>,
}

/// A model behind an endpoint that speaks OpenAI's chat completions. Its key does not stand here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ModelConfig {
    /// The address below which `/chat/completions` is.
    pub url: Option<String>,
    /// The model's name.
    pub name: Option<String>,
    /// A file that holds the key.
    pub key_file: Option<PathBuf>,
}

impl ModelConfig {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says what is not understood.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What, and where.
        message: String,
    },
}

impl ConfigFile {
    /// Reads the file that was named, which must be there; else `cellkeep.toml` here or in the data folder, if there is one.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(named: Option<&Path>, paths: &Paths) -> Result<Self, ConfigError> {
        let candidates = match named {
            Some(path) => vec![path.to_owned()],
            None => vec![PathBuf::from(FILE), paths.data().join(FILE)],
        };
        for path in candidates {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Self::parse(&text).map_err(|message| ConfigError::Syntax { path, message }),
                Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {}
                Err(source) => return Err(ConfigError::Read { path, source }),
            }
        }
        Ok(Self::default())
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The same as text.
    pub fn print(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_and_printed_and_mistakes_are_named() {
        let text = "[serve]\nlisten = \"127.0.0.1:1234\"\nmax-sessions = 5\n\n[serve.pool]\npython = 2\n";
        let file = ConfigFile::parse(text).unwrap();
        assert_eq!((file.serve.max_sessions, file.serve.idle_timeout), (Some(5), None));
        assert_eq!(ConfigFile::parse(&file.print()).unwrap(), file);
        assert_eq!(ConfigFile::parse("").unwrap(), ConfigFile::default());
        for (text, named) in
            [("[serve]\nlissten = 1", "lissten"), ("[serve]\nlisten = \"x\"", "listen"), ("[serve", "line 1")]
        {
            let message = ConfigFile::parse(text).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
        let missing = ConfigFile::read(Some(Path::new("/nowhere/x.toml")), &Paths::new(Path::new("/nowhere")));
        assert!(missing.unwrap_err().to_string().contains("/nowhere/x.toml"));
    }
}

//! The data folder and the configuration file. Precedence: flags, environment, file, defaults.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::policy::{NetworkLevel, SecretValue};

const FILE: &str = "cellkeep.toml";

/// The content of `cellkeep.toml`. Every setting is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    pub serve: ServeConfig,
    /// The chat model.
    #[serde(skip_serializing_if = "ModelConfig::is_empty")]
    pub model: ModelConfig,
    /// Kernels besides our own. `cellkeep kernels add` writes such sections into a file of the data folder.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, KernelConfig>,
    /// Name → folder that sandboxes may see.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, MountConfig>,
    /// Name → secret that sessions may ask for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretConfig>,
}

/// A secret that code uses and cannot read. Its value is never printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SecretConfig {
    pub hosts: Vec<String>,
    pub header: Option<String>,
    /// The value of the header, with `{}` for the secret.
    pub format: Option<String>,
    /// A variable with a placeholder, instead of a header.
    pub env: Option<String>,
    /// Whether only GET and HEAD requests get the value.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(skip_serializing)]
    pub value: Option<SecretValue>,
    /// A file with the value.
    pub value_file: Option<PathBuf>,
}

/// A kernel that an operator adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// A folder with a `kernel.json`.
    pub kernelspec: PathBuf,
    /// Folders that its program needs: process sandboxes see them at the same paths, read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<PathBuf>,
    /// The image of docker sandboxes, which has the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// The file that `cellkeep kernels add` writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddedKernels {
    pub kernels: BTreeMap<String, KernelConfig>,
}

impl AddedKernels {
    /// Reads the file of the data folder. Empty if there is none.
    pub fn read(paths: &Paths) -> Result<Self, ConfigError> {
        let path = paths.added_kernels();
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| ConfigError::Syntax { path, message: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// Replaces the file, atomically.
    pub fn write(&self, paths: &Paths) -> io::Result<()> {
        let (path, new) = (paths.added_kernels(), paths.data().join(".kernels.toml"));
        std::fs::create_dir_all(paths.data())?;
        std::fs::write(&new, toml::to_string(self).map_err(io::Error::other)?)?;
        std::fs::rename(new, path)
    }
}

/// A folder of this machine that sandboxes may see, read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    pub path: PathBuf,
    /// For people and models that choose among mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The settings of `cellkeep serve`; see its flags.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServeConfig {
    pub listen: Option<SocketAddr>,
    /// For the protocols of other sandboxes.
    pub protocol_listen: Option<Vec<SocketAddr>>,
    /// `auto`, `docker` or `process`.
    pub sandbox: Option<String>,
    /// Threads that handle requests and sessions.
    pub workers: Option<usize>,
    pub max_sessions: Option<usize>,
    /// Seconds.
    pub idle_timeout: Option<u64>,
    /// Seconds.
    pub keep_ended: Option<u64>,
    /// Seconds after a cell's end.
    pub compact_after: Option<u64>,
    /// For journal and artifacts.
    pub max_data_mb: Option<u64>,
    /// `normal` or `full`.
    pub durability: Option<String>,
    /// Kernel name → number of sessions that are started ahead.
    pub pool: Option<BTreeMap<String, usize>>,
    /// Requests a second of each principal; 0 is unlimited.
    pub rate_limit: Option<u32>,
    /// Whether `/metrics` needs no token.
    pub open_metrics: Option<bool>,
    /// Host names in addition to those of loopback.
    pub allow_hosts: Option<Vec<String>>,
    /// Origins whose pages may use the server.
    pub allow_origins: Option<Vec<String>>,
    /// The most that clients may ask for.
    pub ceilings: CeilingsConfig,
    /// The network of sandboxes.
    pub egress: EgressConfig,
    /// The packages that clients may install.
    pub packages: PackagesConfig,
}

/// The ceilings of `cellkeep serve`. Each key has a flag of the name `--max-KEY`, except for `network` (`--allow-network`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CeilingsConfig {
    pub memory_mb: Option<u64>,
    pub cpus: Option<f64>,
    pub pids: Option<u64>,
    pub disk_mb: Option<u64>,
    pub output_mb: Option<u64>,
    /// Seconds.
    pub timeout: Option<u64>,
    /// Seconds.
    pub idle_timeout: Option<u64>,
    /// Seconds; 0 is unlimited, here and below.
    pub lifetime: Option<u64>,
    /// `none`, `packages`, `allow` or `open`.
    pub network: Option<NetworkLevel>,
    pub sessions_per_principal: Option<u64>,
    pub processes_per_principal: Option<u64>,
    pub data_mb_per_principal: Option<u64>,
    pub executions_per_hour: Option<u32>,
    pub session_seconds_per_day: Option<u64>,
}

/// What sandboxes reach through the proxy of the server. Each key has a flag of the name `--egress-KEY`, except for the indexes, which have
/// their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EgressConfig {
    /// The URLs of package indexes, one or a list; absent: the public ones.
    #[serde(deserialize_with = "one_or_many")]
    pub python_index: Option<Vec<String>>,
    pub npm_registry: Option<String>,
    #[serde(deserialize_with = "one_or_many")]
    pub cran_mirror: Option<Vec<String>>,
    pub julia_server: Option<String>,
    /// The names of secrets that are put into requests to indexes.
    pub index_secrets: Option<Vec<String>>,
    /// Hosts that the policy `packages` reaches besides the indexes.
    pub package_hosts: Option<Vec<String>>,
    /// Private addresses that may be reached.
    pub private: Option<Vec<String>>,
    /// Certificates that programs in sandboxes trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// Of all sandboxes together.
    pub max_connections: Option<usize>,
    /// Of one sandbox; 0 is unlimited, here and below.
    pub max_mb: Option<u64>,
    pub max_mb_per_second: Option<u64>,
}

/// The packages that clients may install. Each key has a flag of the name `--packages-KEY`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PackagesConfig {
    /// Names, also with `*` at the end. Absent or empty: all.
    pub allow: Option<Vec<String>>,
    pub deny: Option<Vec<String>>,
    /// Of one set.
    pub max_mb: Option<u64>,
    /// Of all sets together.
    pub max_total_mb: Option<u64>,
    /// Seconds.
    pub build_timeout: Option<u64>,
}

/// Reads a text, or a list of texts.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a URL or a list of URLs")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Option::<OneOrMany>::deserialize(deserializer).map(|found| {
        found.map(|found| match found {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        })
    })
}

/// A model behind an endpoint of the OpenAI chat completions API. Its key is never part of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ModelConfig {
    /// The base URL of `/chat/completions`.
    pub url: Option<String>,
    pub name: Option<String>,
    /// A file with the API key.
    pub key_file: Option<PathBuf>,
}

impl ModelConfig {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        /// What is invalid, and where.
        message: String,
    },
}

impl ConfigFile {
    /// Reads `named`, which must exist; without it, `cellkeep.toml` in the working directory or the data folder, if it
    /// exists.
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

    /// The configuration as TOML.
    pub fn print(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

/// The folders and files beneath the data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    data: PathBuf,
}

impl Paths {
    /// The data folder of `CELLKEEP_DATA`; else `/var/lib/cellkeep` for root (the uids of sandboxes must reach the kernel
    /// environments in it, which root's home forbids); else the user's data folder.
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

    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Kernel environments, one folder each.
    pub fn kernels(&self) -> PathBuf {
        self.data.join("kernels")
    }

    /// The kernels that `cellkeep kernels add` has added.
    pub fn added_kernels(&self) -> PathBuf {
        self.data.join("kernels.toml")
    }

    /// Kernelspecs that were read from images, one folder each.
    pub fn kernelspecs(&self) -> PathBuf {
        self.data.join("kernelspecs")
    }

    /// One folder per sandbox, with its record and socket.
    pub fn sandboxes(&self) -> PathBuf {
        self.data.join("s")
    }

    /// The journal of `serve` (SQLite).
    pub fn journal(&self) -> PathBuf {
        self.data.join("journal.db")
    }

    /// Artifacts, named by their hash.
    pub fn blobs(&self) -> PathBuf {
        self.data.join("blobs")
    }

    /// Agent binaries, which sandboxes mount.
    pub fn agent(&self) -> PathBuf {
        self.data.join("agent")
    }

    /// Package sets, one folder each.
    pub fn package_sets(&self) -> PathBuf {
        self.data.join("packages")
    }

    /// Tools that Cellkeep installs for itself (`uv`).
    pub fn tools(&self) -> PathBuf {
        self.data.join("tools")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_round_trips_and_mistakes_are_named() {
        let text = "[serve]\nlisten = \"127.0.0.1:1234\"\nmax-sessions = 5\n\n[serve.pool]\npython = 2\n\n[mounts.a]\npath = \"/srv\"\n";
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

//! The options of `cellkeep serve` about what sandboxes reach through the server's proxy.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;

use crate::config::EgressConfig;
use crate::egress::{EgressSettings, PackageIndexes, PrivateAddresses};
use crate::policy::{HostRule, Secret};

const MIB: u64 = 1 << 20;

/// The network of sandboxes whose policy is `packages` or a list of hosts.
#[derive(Args)]
#[command(next_help_heading = "Network of sandboxes")]
pub(super) struct EgressArgs {
    /// The Python package index of sandboxes, or several with commas between them, the one with priority first [default: the public one]
    #[arg(long, value_name = "URL", env = "CELLKEEP_PYTHON_INDEX", value_delimiter = ',')]
    python_index: Option<Vec<String>>,
    /// The npm registry of sandboxes [default: the public one]
    #[arg(long, value_name = "URL", env = "CELLKEEP_NPM_REGISTRY")]
    npm_registry: Option<String>,
    /// The CRAN mirror that sandboxes reach, or several repositories of R [default: the public mirrors]
    #[arg(long, value_name = "URL", env = "CELLKEEP_CRAN_MIRROR", value_delimiter = ',')]
    cran_mirror: Option<Vec<String>>,
    /// The Julia package server of sandboxes [default: the public one]
    #[arg(long, value_name = "URL", env = "CELLKEEP_JULIA_SERVER")]
    julia_server: Option<String>,
    /// A secret of the configuration file that indexes need, which no sandbox sees
    #[arg(long, value_name = "NAME", env = "CELLKEEP_INDEX_SECRETS", value_delimiter = ',')]
    index_secrets: Option<Vec<String>>,
    /// A host that the network `packages` reaches besides the indexes, for example files.example.com or *.example.com:8443
    #[arg(long, value_name = "HOST[:PORT]", env = "CELLKEEP_EGRESS_PACKAGE_HOSTS", value_delimiter = ',')]
    egress_package_hosts: Option<Vec<String>>,
    /// A private address that sandboxes may reach if their network includes the host: 10.1.0.0/16, 10.1.2.3:8080 or mirror.internal:443
    #[arg(long, value_name = "ADDR", env = "CELLKEEP_EGRESS_PRIVATE", value_delimiter = ',')]
    egress_private: Option<Vec<String>>,
    /// The certificates that programs in sandboxes trust, PEM [default: those of this machine]
    #[arg(long, value_name = "FILE", env = "CELLKEEP_EGRESS_CA_FILE")]
    egress_ca_file: Option<PathBuf>,
    /// The most connections of all sandboxes together [default: 2048]
    #[arg(long, value_name = "COUNT", env = "CELLKEEP_EGRESS_MAX_CONNECTIONS")]
    egress_max_connections: Option<usize>,
    /// The most data that one sandbox may transfer, MB; 0 is unlimited [default: 0]
    #[arg(long, value_name = "MB", env = "CELLKEEP_EGRESS_MAX_MB")]
    egress_max_mb: Option<u64>,
    /// The most data a second of one sandbox, MB; 0 is unlimited [default: 0]
    #[arg(long, value_name = "MB", env = "CELLKEEP_EGRESS_MAX_MB_PER_SECOND")]
    egress_max_mb_per_second: Option<u64>,
}

impl EgressArgs {
    /// Merges with the configuration file and the defaults.
    pub fn merged_over(&self, file: EgressConfig) -> EgressConfig {
        EgressConfig {
            python_index: self.python_index.clone().or(file.python_index),
            npm_registry: self.npm_registry.clone().or(file.npm_registry),
            cran_mirror: self.cran_mirror.clone().or(file.cran_mirror),
            julia_server: self.julia_server.clone().or(file.julia_server),
            index_secrets: self.index_secrets.clone().or(file.index_secrets).or(Some(Vec::new())),
            package_hosts: self.egress_package_hosts.clone().or(file.package_hosts).or(Some(Vec::new())),
            private: self.egress_private.clone().or(file.private).or(Some(Vec::new())),
            ca_file: self.egress_ca_file.clone().or(file.ca_file),
            max_connections: self
                .egress_max_connections
                .or(file.max_connections)
                .or(Some(EgressSettings::default().max_connections)),
            max_mb: self.egress_max_mb.or(file.max_mb).or(Some(0)),
            max_mb_per_second: self.egress_max_mb_per_second.or(file.max_mb_per_second).or(Some(0)),
        }
    }
}

/// The settings of a configuration. `secrets` are all that the operator has declared.
///
/// # Errors
/// Names the first value that means nothing.
pub(super) fn settings(config: EgressConfig, secrets: &[Secret]) -> anyhow::Result<EgressSettings> {
    let urls = |urls: &Option<Vec<String>>| urls.clone().unwrap_or_default();
    let indexes = PackageIndexes::new(
        &urls(&config.python_index),
        config.npm_registry.as_deref(),
        &urls(&config.cran_mirror),
        config.julia_server.as_deref(),
    )?;
    let names = config.index_secrets.unwrap_or_default();
    let index_secrets = names.iter().map(|name| index_secret(name, secrets)).collect::<Result<_, _>>()?;
    let package_hosts = config.package_hosts.unwrap_or_default();
    let package_hosts = package_hosts.iter().map(|host| host.parse::<HostRule>()).collect::<Result<_, _>>()?;
    let private = PrivateAddresses::parse(&config.private.unwrap_or_default()).map_err(|error| anyhow!(error))?;
    let bytes = |mb: Option<u64>| mb.filter(|mb| *mb > 0).map(|mb| mb.saturating_mul(MIB));
    Ok(EgressSettings {
        indexes,
        index_secrets,
        package_hosts,
        private,
        ca_file: config.ca_file,
        max_connections: config.max_connections.unwrap_or(EgressSettings::default().max_connections).clamp(1, 1 << 20),
        max_bytes: bytes(config.max_mb),
        bytes_per_second: bytes(config.max_mb_per_second),
    })
}

/// A declared secret, for requests that read: code in sandboxes chooses the requests to an index.
fn index_secret(name: &str, secrets: &[Secret]) -> anyhow::Result<Secret> {
    let found = secrets.iter().find(|secret| secret.description.name == name);
    let secret = found.ok_or_else(|| anyhow!("index-secrets: there is no section [secrets.{name}]"))?;
    if secret.field().is_none() {
        bail!("index-secrets: [secrets.{name}] needs a `header`, for example Authorization with the format \"Basic {{}}\"");
    }
    Ok(secret.clone().read_only())
}

//! The network of sandboxes that have none. The manager serves the connections to the proxy port of a sandbox: it reads the requests,
//! decides by host name and port, resolves the name, refuses private addresses, connects, and copies bytes.
//!
//! ```text
//!  code ─▶ 127.0.0.1:3128 ─┬─────────── listener ──────────▶ sandbox ─▶ proxy ─▶ policy ─▶ dial ─▶ the world
//!                          └▶ agent ══ streams (gVisor) ══▶    │                  └─▶ decisions ─▶ audit log
//! ```
//!
//! The agent hands over the socket that listens on the port, so bytes pass through this process only. Where it cannot, it accepts the
//! connections and passes their bytes on as streams.
//!
//! TLS passes through unread, except for the hosts of secrets (`secrets`), so what a server behind an allowed name does is beyond this: a
//! policy names hosts that are trusted to receive what code sends.

mod addresses;
mod client;
mod decisions;
mod dial;
mod environment;
mod listener;
mod proxy;
mod request_head;
mod sandbox;
mod secrets;
mod shares;
mod tls_hello;
mod traffic;
mod tunnel;
mod upstream_tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls::ClientConfig;

use crate::audit::AuditLog;
use crate::policy::{HostName, HostRule, NetworkPolicy, Secret};

pub use addresses::PrivateAddresses;
pub use decisions::{Decision, DecisionList};
pub use dial::{Resolver, SystemResolver};
pub use environment::{IndexError, PackageIndexes};
pub(crate) use sandbox::SandboxEgress;
pub use secrets::SandboxSecrets;
use shares::Shares;

/// What the operator decides about the network of sandboxes.
#[derive(Clone, Debug)]
pub struct EgressSettings {
    pub indexes: PackageIndexes,
    /// Hosts that the policy `packages` reaches besides the indexes.
    pub package_hosts: Vec<HostRule>,
    /// Credentials of indexes, which are put into requests of sandboxes with the policy `packages`.
    pub index_secrets: Vec<Secret>,
    /// Private addresses that may be reached.
    pub private: PrivateAddresses,
    /// Certificates that programs in sandboxes trust, PEM. `None`: those of this machine.
    pub ca_file: Option<PathBuf>,
    /// Connections at a time, of all sandboxes together. One owner may have half of them.
    pub max_connections: usize,
    /// Bytes that one sandbox may send and receive. `None` is unlimited.
    pub max_bytes: Option<u64>,
    /// Bytes a second of one sandbox, in both directions together. `None` is unlimited.
    pub bytes_per_second: Option<u64>,
}

impl Default for EgressSettings {
    fn default() -> Self {
        Self {
            indexes: PackageIndexes::default(),
            package_hosts: Vec::new(),
            index_secrets: Vec::new(),
            private: PrivateAddresses::default(),
            ca_file: None,
            max_connections: 2048,
            max_bytes: None,
            bytes_per_second: None,
        }
    }
}

/// The way out of all sandboxes of this process. Clones share it.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    settings: EgressSettings,
    /// The rules of the policy `packages`.
    packages: Vec<HostRule>,
    resolver: Arc<dyn Resolver>,
    audit: Option<AuditLog>,
    shares: Shares,
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Inner {
    /// How hosts of secrets are verified.
    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        self.tls.get_or_init(|| upstream_tls::client(self.settings.ca_file.as_deref())).clone()
    }
}

impl Gateway {
    /// `audit` records the decisions.
    pub fn new(settings: EgressSettings, audit: Option<AuditLog>) -> Self {
        Self::with_resolver(settings, audit, Arc::new(SystemResolver))
    }

    /// As [`Self::new`], with another source of addresses.
    pub fn with_resolver(settings: EgressSettings, audit: Option<AuditLog>, resolver: Arc<dyn Resolver>) -> Self {
        let packages = settings.indexes.hosts().into_iter().chain(settings.package_hosts.iter().cloned()).collect();
        let shares = Shares::new(settings.max_connections);
        Self(Arc::new(Inner { settings, packages, resolver, audit, shares, tls: OnceLock::new() }))
    }

    pub fn settings(&self) -> &EgressSettings {
        &self.0.settings
    }

    /// The credentials of indexes for sandboxes with this policy.
    pub fn index_secrets(&self, policy: &NetworkPolicy) -> &[Secret] {
        if *policy == NetworkPolicy::Packages { &self.0.settings.index_secrets } else { &[] }
    }

    /// Whether the operator lets sandboxes reach this address, which is private.
    pub fn permits_address(&self, host: &HostName, port: u16) -> bool {
        let address = host.as_str().parse().ok().map(|address: IpAddr| SocketAddr::new(address, port));
        address.is_some_and(|address| self.0.settings.private.include(host, address))
    }

    /// The environment of programs in a sandbox. The proxy is in it whatever the policy is: the policy can change, and a refusal of the proxy
    /// says what to ask for.
    pub fn environment(&self, policy: &NetworkPolicy, certificates: Option<&str>) -> Vec<(String, String)> {
        let Inner { settings, .. } = &*self.0;
        let mut variables = settings.indexes.variables();
        if *policy != NetworkPolicy::Open {
            variables.extend(environment::proxy_variables());
        }
        variables.extend(certificates.into_iter().flat_map(environment::certificate_variables));
        variables
    }
}

#[cfg(test)]
mod tests;

//! The secrets of one sandbox. Requests to their hosts are read by the proxy, also over TLS, and the values are put into them there:
//! neither the sandbox nor its records ever have them.
//!
//! ```text
//!  code ═ TLS, signed by the sandbox's own authority ═▶ proxy: header fields ═ TLS, verified as ever ═▶ the host
//!       ◀═════════════════ values masked ══════════════       ◀═══════════════════════════════════════
//! ```

mod authority;
mod masked_body;
mod masking;
mod requests;
mod rewriting;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::authority::Authority;
use crate::ids;
use crate::policy::{HostName, Secret};

pub(super) use requests::{Inspected, serve_plain, serve_tls};

/// What placeholders begin with.
const PLACEHOLDER: &str = "cellkeep-secret-";

/// A secret in a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ActiveSecret {
    #[serde(flatten)]
    secret: Secret,
    /// What code finds in the variable, if the secret has one.
    placeholder: Option<String>,
}

/// The secrets of one sandbox, with the authority that signs for their hosts.
#[derive(Debug)]
pub struct SandboxSecrets {
    secrets: Vec<ActiveSecret>,
    authority: Authority,
}

/// How they are stored, for the server alone.
#[derive(Serialize, Deserialize)]
struct Stored {
    secrets: Vec<ActiveSecret>,
    /// The key of the authority, PKCS #8.
    key: Vec<u8>,
}

impl SandboxSecrets {
    /// The secrets of a new sandbox, with new placeholders and a new authority; `None` if there are none.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(secrets: Vec<Secret>) -> io::Result<Option<Arc<Self>>> {
        if secrets.is_empty() {
            return Ok(None);
        }
        let active = |secret: Secret| {
            let has_variable = secret.description.variable().is_some();
            let placeholder = has_variable.then(|| format!("{PLACEHOLDER}{}", ids::random_uuid().replace('-', "")));
            ActiveSecret { secret, placeholder }
        };
        let secrets = secrets.into_iter().map(active).collect();
        Ok(Some(Arc::new(Self { secrets, authority: Authority::new()? })))
    }

    /// As a former server stored them.
    ///
    /// # Errors
    /// If the bytes are not what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Arc<Self>> {
        let Stored { secrets, key } = serde_json::from_slice(bytes)?;
        Ok(Arc::new(Self { secrets, authority: Authority::from_key(&key)? }))
    }

    /// All of them with their values, for a file that only the server can read.
    pub fn to_bytes(&self) -> Vec<u8> {
        let stored = Stored { secrets: self.secrets.clone(), key: self.authority.key() };
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// The certificate that programs of the sandbox trust, PEM.
    pub fn certificate(&self) -> String {
        self.authority.certificate()
    }

    /// The variables with the placeholders.
    pub fn variables(&self) -> Vec<(String, String)> {
        let variable =
            |active: &ActiveSecret| Some((active.secret.description.variable()?.to_owned(), active.placeholder.clone()?));
        self.secrets.iter().filter_map(variable).collect()
    }

    /// Whether requests to a host are read, for some secret.
    pub(super) fn are_for(&self, host: &HostName, port: u16, is_tls: bool) -> bool {
        self.secrets.iter().any(|active| active.secret.description.is_for(host, port, is_tls))
    }

    fn of_host(&self, host: &HostName, port: u16, is_tls: bool) -> Vec<&ActiveSecret> {
        self.secrets.iter().filter(|active| active.secret.description.is_for(host, port, is_tls)).collect()
    }
}

#[cfg(test)]
mod tests;

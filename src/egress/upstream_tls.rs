//! How the proxy verifies the hosts that it sends secrets to: by the certificates that programs in sandboxes trust.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::sandbox;

/// Trusts the certificates of this file, or of this machine.
///
/// # Errors
/// If there are none, in the words of an answer to code.
pub(super) fn client(file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let source =
        sandbox::certificates_source(file).ok_or("the server has no certificates by which it could verify hosts")?;
    let content = std::fs::read(source).map_err(|error| format!("the server cannot read its certificates: {error}"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&content).filter_map(Result::ok));
    let versions =
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let mut config = versions.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

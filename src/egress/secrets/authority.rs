//! The authority of one sandbox, which signs certificates for the hosts of its secrets. Its key stays with the server, and nobody but
//! the programs of the sandbox trusts it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::policy::HostName;

/// The most hosts whose certificates are kept. Rules with a star match many.
const MAX_HOSTS: usize = 64;

/// See the [module](self) text.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    servers: Mutex<HashMap<HostName, Arc<ServerConfig>>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// # Errors
    /// If no key can be made.
    pub fn new() -> io::Result<Self> {
        Self::of(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?)
    }

    /// The authority with a key that [`Self::key`] gave.
    ///
    /// # Errors
    /// If it is no such key.
    pub fn from_key(key: &[u8]) -> io::Result<Self> {
        let key = PrivatePkcs8KeyDer::from(key.to_vec());
        Self::of(KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?)
    }

    fn of(key: KeyPair) -> io::Result<Self> {
        let params = authority_params();
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, servers: Mutex::default() })
    }

    /// The private key, PKCS #8.
    pub fn key(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// The certificate, PEM.
    pub fn certificate(&self) -> String {
        let text = STANDARD.encode(&self.certificate);
        let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// How the proxy answers TLS as a host.
    ///
    /// # Errors
    /// If no certificate can be made for the host.
    pub fn server(&self, host: &HostName) -> io::Result<Arc<ServerConfig>> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(host) {
            return Ok(server.clone());
        }
        if servers.len() >= MAX_HOSTS {
            servers.clear();
        }
        let server = Arc::new(self.new_server(host)?);
        servers.insert(host.clone(), server.clone());
        Ok(server)
    }

    fn new_server(&self, host: &HostName) -> io::Result<ServerConfig> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        let certificate = host_params(host)?.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let mut config = versions
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .map_err(io::Error::other)?;
        // Requests are read as HTTP/1.1 only.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The same for each server that goes on with the key, so that certificates stay valid.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Cellkeep sandbox secrets");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(1u64.into());
    with_validity(params)
}

fn host_params(host: &HostName) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![host.as_str().to_owned()]).map_err(io::Error::other)?;
    params.distinguished_name = named("Cellkeep");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(with_validity(params))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Longer than any sandbox lives, and whatever its clock says.
fn with_validity(mut params: CertificateParams) -> CertificateParams {
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 12, 31));
    params
}

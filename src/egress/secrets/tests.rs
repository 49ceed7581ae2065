//! Requests to hosts of secrets, from a client of TLS through the proxy to servers on loopback.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::Authority;
use super::*;
use crate::agent_protocol::{FrameReader, StreamFrame};
use crate::egress::sandbox::SandboxState;
use crate::egress::sandbox::testing::{serve_connection, state_with};
use crate::egress::{EgressSettings, Gateway, PrivateAddresses, Resolver};
use crate::policy::{NetworkPolicy, SecretValue};
use crate::streams::{Streams, copy_both_ways};

const VALUE: &str = "hunter2-is-my-secret";

/// All names are on the loopback.
struct Loopback;

impl Resolver for Loopback {
    fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    }
}

/// A server of TLS for `api.example`, and of what comes over each connection: whole requests.
struct Host {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    /// The certificate that it is verified by, PEM.
    certificate: String,
}

/// What a host answers to a request with this head and body. `None` closes the connection.
type Answer = fn(&str, &str) -> Option<String>;

impl Host {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let authority = Authority::new().unwrap();
        let server = TlsAcceptor::from(authority.server(&HostName::parse("api.example").unwrap()).unwrap());
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let seen = requests.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (server, seen) = (server.clone(), seen.clone());
                tokio::spawn(async move {
                    if let Ok(socket) = server.accept(socket).await {
                        serve(socket, answer, &seen).await;
                    }
                });
            }
        });
        Self { port, requests, certificate: authority.certificate() }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin>(socket: T, answer: Answer, seen: &Mutex<Vec<String>>) {
    let mut socket = BufReader::new(socket);
    while let Some((head, body)) = read_message(&mut socket).await {
        seen.lock().unwrap().push(format!("{head}{body}"));
        let Some(answer) = answer(&head, &body) else { return };
        if socket.write_all(answer.as_bytes()).await.is_err() || socket.flush().await.is_err() {
            return;
        }
    }
}

/// A head and the body that its length says, or its chunks as they are.
async fn read_message<T: AsyncRead + Unpin>(socket: &mut T) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some((_, length)) = lower.split_once("content-length: ") {
        body.resize(length.lines().next().unwrap().parse().unwrap(), 0);
        socket.read_exact(&mut body).await.ok()?;
    } else if lower.contains("transfer-encoding: chunked") {
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(socket.read_u8().await.ok()?);
        }
    }
    Some((head, String::from_utf8(body).unwrap()))
}

/// Sends everything back.
fn echo(head: &str, body: &str) -> Option<String> {
    let text = format!("{head}{body}");
    let key = head.lines().find_map(|line| line.strip_prefix("x-key: ")).unwrap_or("none");
    Some(format!("HTTP/1.1 200 OK\r\nX-Echo: {key}\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
}

/// A sandbox with one secret in a header and one in a variable, and the port of its proxy.
struct Sandbox {
    secrets: Arc<SandboxSecrets>,
    state: Arc<SandboxState>,
    proxy: u16,
    certificates: PathBuf,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.certificates);
    }
}

impl Sandbox {
    /// Both secrets are for `api.example` with the port of the host. The proxy verifies hosts by `trusted`.
    async fn start(ports: &[u16], host: &str, trusted: &str) -> Self {
        let certificates = std::env::temp_dir().join(format!("cellkeep-trusted-{}.pem", ids::random_uuid()));
        std::fs::write(&certificates, trusted).unwrap();
        let private: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let settings = EgressSettings {
            private: PrivateAddresses::parse(&private).unwrap(),
            ca_file: Some(certificates.clone()),
            ..EgressSettings::default()
        };
        let gateway = Gateway::with_resolver(settings, None, Arc::new(Loopback));
        let hosts: Vec<String> =
            ports.iter().flat_map(|port| [format!("api.example:{port}"), format!("other.example:{port}")]).collect();
        let value = || SecretValue::new(VALUE.to_owned());
        let secrets = vec![
            Secret::new("KEY", &[host.to_owned()], Some("X-Key"), Some("key {}"), None, value()).unwrap(),
            Secret::new("TOKEN", &[host.to_owned()], None, None, Some("TOKEN"), value()).unwrap(),
        ];
        let secrets = SandboxSecrets::new(secrets).unwrap().unwrap();
        let state = state_with(&gateway, NetworkPolicy::allowing(&hosts).unwrap(), Some(secrets.clone()));
        let (here, there) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(here);
        let agent = Streams::opener(FrameReader::new(reader, StreamFrame::cap), writer);
        tokio::spawn(serve_connection(there, state.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let stream = agent.open().await.unwrap();
                tokio::spawn(async move { drop(copy_both_ways(&stream, &mut socket, &()).await) });
            }
        });
        Self { secrets, state, proxy, certificates }
    }

    fn placeholder(&self) -> String {
        self.secrets.variables()[0].1.clone()
    }

    async fn tunnel(&self, host: &str, port: u16) -> TcpStream {
        let mut socket = TcpStream::connect(("127.0.0.1", self.proxy)).await.unwrap();
        socket.write_all(format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        let (head, _) = read_message(&mut socket).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        socket
    }

    /// TLS to a host, verified by this certificate.
    async fn connect(
        &self,
        host: &'static str,
        port: u16,
        trusted: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
        let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let versions = versions.with_safe_default_protocol_versions().unwrap();
        let mut config = versions.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let socket = self.tunnel(host, port).await;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(host).unwrap(), socket).await
    }

    /// TLS to the host as the sandbox sees it.
    async fn connect_as_code(&self, port: u16) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.connect("api.example", port, &self.secrets.certificate()).await.unwrap()
    }
}

async fn ask<T: AsyncRead + AsyncWrite + Unpin>(socket: &mut T, request: &str) -> (String, String) {
    socket.write_all(request.as_bytes()).await.unwrap();
    read_message(socket).await.expect("a response")
}

#[tokio::test]
async fn each_request_of_a_connection_gets_the_secrets() {
    let host = Host::start(echo).await;
    let sandbox = Sandbox::start(&[host.port], &format!("api.example:{}", host.port), &host.certificate).await;
    let mut socket = sandbox.connect_as_code(host.port).await;
    assert_eq!(socket.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (port, placeholder) = (host.port, sandbox.placeholder());
    for body in ["first", "second"] {
        let length = body.len();
        let request = format!(
            "POST /{body} HTTP/1.1\r\nHost: api.example:{port}\r\nX-Key: mine\r\nAuthorization: Bearer {placeholder}\r\n\
             Accept-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let (head, echoed) = ask(&mut socket, &request).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && echoed.ends_with(body), "{head}{echoed}");
        // What comes back has stars, as many as the value has characters.
        let stars = "*".repeat(VALUE.len());
        assert!(head.contains(&format!("x-echo: key {stars}\r\n")), "{head}");
        assert!(echoed.contains(&format!("authorization: Bearer {stars}")) && !echoed.contains(VALUE), "{echoed}");
    }
    let chunked = format!(
        "PUT /third HTTP/1.1\r\nHost: api.example:{port}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    );
    assert!(ask(&mut socket, &chunked).await.0.starts_with("HTTP/1.1 200 OK"));
    let requests = host.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert!(request.contains(&format!("x-key: key {VALUE}\r\n")) && !request.contains("mine"), "{request}");
        assert_eq!(request.matches("\r\nhost: ").count(), 1, "{request}");
        assert!(request.contains("accept-encoding: identity\r\n") && !request.contains(&placeholder), "{request}");
    }
    assert!(requests[0].contains(&format!("authorization: Bearer {VALUE}\r\n")) && requests[2].contains("abc"));
}

#[tokio::test]
async fn requests_for_other_hosts_of_a_connection_are_refused() {
    let host = Host::start(echo).await;
    let port = host.port;
    let sandbox = Sandbox::start(&[port], &format!("api.example:{port}"), &host.certificate).await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n".to_owned(), 421),
        (format!("GET / HTTP/1.1\r\nHost: api.example:{}\r\n\r\n", port ^ 1), 421),
        (format!("GET https://other.example/ HTTP/1.1\r\nHost: api.example:{port}\r\n\r\n"), 421),
        (format!("GET / HTTP/1.1\r\nHost: api.example:{port}\r\nHost: other.example\r\n\r\n"), 421),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), 421),
        (format!("TRACE / HTTP/1.1\r\nHost: api.example:{port}\r\n\r\n"), 405),
        (format!("POST / HTTP/1.1\r\nHost: api.example:{port}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400),
    ] {
        let mut socket = sandbox.connect_as_code(port).await;
        let (head, body) = ask(&mut socket, &request).await;
        let line = head.lines().next().unwrap();
        assert!(line.split(' ').nth(1) == Some(&status.to_string()), "{request}: {head}{body}");
    }
    // The second request on a connection is checked as the first.
    let mut socket = sandbox.connect_as_code(port).await;
    let good = format!("GET / HTTP/1.1\r\nHost: api.example:{port}\r\n\r\n");
    assert!(ask(&mut socket, &good).await.0.starts_with("HTTP/1.1 200 "));
    let other = "GET /smuggled HTTP/1.1\r\nHost: other.example\r\n\r\n";
    assert!(ask(&mut socket, other).await.0.starts_with("HTTP/1.1 421 "));
    // A body that hides a request stays a body.
    let hidden = format!(
        "POST / HTTP/1.1\r\nHost: api.example:{port}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{other}\r\n0\r\n\r\n",
        other.len()
    );
    let mut socket = sandbox.connect_as_code(port).await;
    let (head, _) = ask(&mut socket, &hidden).await;
    assert!(head.starts_with("HTTP/1.1 200 ") || head.starts_with("HTTP/1.1 400 "), "{head}");
    let smuggled = |request: &String| request.starts_with("GET /smuggled") || request.contains("content-length: 5");
    assert!(!host.requests().iter().any(smuggled), "{:?}", host.requests());
}

#[tokio::test]
async fn other_hosts_pass_untouched() {
    let host = Host::start(echo).await;
    let port = host.port;
    // The secrets are for a host of another name.
    let sandbox = Sandbox::start(&[port], &format!("other.example:{port}"), &host.certificate).await;
    assert!(sandbox.connect("api.example", port, &sandbox.secrets.certificate()).await.is_err(), "it is not read");
    let mut socket = sandbox.connect("api.example", port, &host.certificate).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: api.example:{port}\r\nX-Key: {}\r\n\r\n", sandbox.placeholder());
    let (_, echoed) = ask(&mut socket, &request).await;
    assert_eq!((host.requests(), echoed), (vec![request.clone()], request));
}

#[tokio::test]
async fn host_that_cannot_be_verified_gets_nothing() {
    let host = Host::start(echo).await;
    let stranger = Authority::new().unwrap().certificate();
    let sandbox = Sandbox::start(&[host.port], &format!("api.example:{}", host.port), &stranger).await;
    let mut socket = sandbox.connect_as_code(host.port).await;
    let request = format!("GET / HTTP/1.1\r\nHost: api.example:{}\r\n\r\n", host.port);
    let (head, body) = ask(&mut socket, &request).await;
    assert!(head.starts_with("HTTP/1.1 502 ") && body.contains("no TLS with api.example"), "{head}{body}");
    assert!(host.requests().is_empty());
}

#[tokio::test]
async fn closed_connection_to_the_host_is_made_again() {
    fn once(_: &str, _: &str) -> Option<String> {
        Some("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".to_owned())
    }
    let host = Host::start(once).await;
    let sandbox = Sandbox::start(&[host.port], &format!("api.example:{}", host.port), &host.certificate).await;
    let mut socket = sandbox.connect_as_code(host.port).await;
    for _ in 0..3 {
        let request = format!("GET / HTTP/1.1\r\nHost: api.example:{}\r\n\r\n", host.port);
        assert_eq!(ask(&mut socket, &request).await.1, "ok");
    }
    sandbox.state.change_policy(NetworkPolicy::None);
    // Nothing is sent any more, not even on the connection that is open.
    let _ = socket.write_all(b"GET / HTTP/1.1\r\n").await;
    assert_eq!(socket.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(host.requests().len(), 3);
}

#[tokio::test]
async fn websockets_pass_and_what_they_send_is_masked() {
    fn upgrade(head: &str, _: &str) -> Option<String> {
        let is_upgrade = head.contains("connection: Upgrade\r\n") && head.contains(VALUE);
        let frame = format!("frame {VALUE} end");
        is_upgrade.then(|| {
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-A: {VALUE}\r\n\r\n{frame}")
        })
    }
    let host = Host::start(upgrade).await;
    let sandbox = Sandbox::start(&[host.port], &format!("api.example:{}", host.port), &host.certificate).await;
    let mut socket = sandbox.connect_as_code(host.port).await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: api.example:{}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        host.port
    );
    let (head, _) = ask(&mut socket, &request).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains(VALUE), "{head}");
    let stars = "*".repeat(VALUE.len());
    let mut frame = vec![0; format!("frame {VALUE} end").len()];
    socket.read_exact(&mut frame).await.unwrap();
    assert_eq!(String::from_utf8(frame).unwrap(), format!("frame {stars} end"));
}

#[tokio::test]
async fn plain_requests_get_secrets_where_the_port_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let seen = requests.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            serve(socket, echo, &seen).await;
        }
    });
    let certificate = Authority::new().unwrap().certificate();
    let named = Sandbox::start(&[port], &format!("api.example:{port}"), &certificate).await;
    let elsewhere = Sandbox::start(&[port], "api.example", &certificate).await;
    for (sandbox, gets_secret) in [(&named, true), (&elsewhere, false)] {
        let mut socket = TcpStream::connect(("127.0.0.1", sandbox.proxy)).await.unwrap();
        let request = format!(
            "POST http://api.example:{port}/ HTTP/1.1\r\nAuthorization: {}\r\nContent-Length: 4\r\n\r\nbodyGET /more HTTP/1.1\r\n\r\n",
            sandbox.placeholder()
        );
        let (head, body) = ask(&mut socket, &request).await;
        assert!(head.starts_with("HTTP/1.1 200 OK") && body.ends_with("body") && !body.contains(VALUE), "{head}{body}");
        let seen = requests.lock().unwrap().pop().unwrap();
        assert_eq!(seen.matches(VALUE).count(), if gets_secret { 2 } else { 0 }, "{seen}");
        assert!(requests.lock().unwrap().is_empty(), "what follows the body is no request");
    }
}

#[test]
fn secrets_of_a_host_are_found_by_name_and_port() {
    let value = SecretValue::new(VALUE.to_owned());
    let secret = Secret::new("A", &["*.example.com".to_owned()], Some("X"), None, None, value).unwrap();
    let secrets = SandboxSecrets::new(vec![secret]).unwrap().unwrap();
    let expected =
        HashMap::from([(("a.example.com", 443), true), (("example.com", 443), false), (("a.example.com", 8443), false)]);
    for ((host, port), is_for) in expected {
        assert_eq!(secrets.are_for(&HostName::parse(host).unwrap(), port, true), is_for, "{host}:{port}");
    }
}

#[test]
fn stored_secrets_keep_placeholders_and_authority() {
    let value = || SecretValue::new("hunter2hunter2".to_owned());
    let hosts = ["a.example".to_owned()];
    let secrets = vec![
        Secret::new("A", &hosts, None, None, Some("A"), value()).unwrap(),
        Secret::new("B", &hosts, Some("X-Key"), None, None, value()).unwrap(),
    ];
    let made = SandboxSecrets::new(secrets).unwrap().unwrap();
    let again = SandboxSecrets::from_bytes(&made.to_bytes()).unwrap();
    // The certificate is signed anew: its key and its name are what programs trust.
    assert_eq!((again.variables(), again.authority.key()), (made.variables(), made.authority.key()));
    let variables = made.variables();
    assert!(variables.len() == 1 && variables[0].1.starts_with(PLACEHOLDER) && variables[0].1.len() == 48);
    assert!(!format!("{made:?} {variables:?}").contains("hunter2"));
    assert!(SandboxSecrets::new(Vec::new()).unwrap().is_none() && SandboxSecrets::from_bytes(b"{}").is_err());
}

//! Secrets that code uses in requests and cannot read: against servers of TLS and plain HTTP on loopback, which send back what they get.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::server::Server;
use crate::support::TestSandbox;

in_every_sandbox!(requests_get_secrets_that_code_cannot_read, processes_of_a_sandbox_use_its_secrets);

/// A server that sends requests back as JSON, and keeps the fields that secrets are in.
struct Echo {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Echo {
    async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let all = seen.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, seen) = (tls.clone(), all.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, seen).await,
                        Some(tls) => {
                            if let Ok(socket) = TlsAcceptor::from(tls).accept(socket).await {
                                serve(socket, seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, seen }
    }

    fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(socket: T, seen: Arc<Mutex<Vec<String>>>) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        seen.lock().unwrap().push(format!("{} | {}", field("authorization"), field("x-key")));
        let fields: Vec<String> = head.headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        let answer = json!({"path": head.uri.path(), "fields": fields, "body": String::from_utf8_lossy(&body)});
        let answer = Response::builder().header("x-echo", field("authorization")).body(Full::from(answer.to_string()));
        Ok::<Response<Full<Bytes>>, Infallible>(answer.unwrap())
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

/// An authority of the test, as a file, and a server that it has signed for `localhost`.
fn authority(name: &str) -> (PathBuf, Arc<ServerConfig>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority of the test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let own = params.self_signed(&key).unwrap();
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(own.der());
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let path = std::env::temp_dir().join(format!("ck-authority-{name}-{}.pem", std::process::id()));
    fs::write(&path, format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))).unwrap();
    let issuer = Issuer::new(params, key);
    let (key, params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec!["localhost".to_owned()]).unwrap());
    let signed = params.signed_by(&key, &issuer).unwrap();
    let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = versions.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    (path, Arc::new(config.with_single_cert(vec![signed.der().clone()], key).unwrap()))
}

/// The files below a folder that contain a text, also in encodings of it.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(files_with(&path, text));
        } else if kind.is_file() && fs::read(&path).is_ok_and(|content| String::from_utf8_lossy(&content).contains(text)) {
            found.push(path);
        }
    }
    found
}

/// Requests of several clients, each with the answer and with what they know of the connection.
const CLIENTS: &str = r"
import json, os, ssl, subprocess, urllib.request, socket
os.environ['no_proxy'] = os.environ['NO_PROXY'] = ''
key = os.environ['API_KEY']
fields = {'Authorization': f'Bearer {key}', 'X-Key': 'mine'}
def show(name, echo, text):
    print(name, 'echo:', echo, 'text:', text)
def by_urllib(url):
    answer = urllib.request.urlopen(urllib.request.Request(url, data=b'body', headers=fields), timeout=60)
    show('urllib', answer.headers['x-echo'], answer.read().decode())
def by_requests(url):
    import requests
    with requests.Session() as session:
        for _ in range(2):
            answer = session.post(url, data=iter([b'chunk', b'ed']) if url.startswith('https') else b'whole', headers=fields, timeout=60)
            show('requests', answer.headers['x-echo'], answer.text)
def by_httpx(url):
    import httpx
    with httpx.Client() as client:
        answer = client.get(url, headers=fields, timeout=60)
        show('httpx', answer.headers['x-echo'], answer.text)
def by_curl(url):
    command = ['curl', '-sS', '-u', 'me:' + key, '-H', 'X-Key: mine', '-D', '-', url]
    show('curl', '', subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
def issuer(host, port):
    plain = socket.create_connection(('127.0.0.1', 3128))
    plain.sendall(f'CONNECT {host}:{port} HTTP/1.1\r\n\r\n'.encode())
    head = plain.recv(4096)
    assert head.startswith(b'HTTP/1.1 200'), head
    with ssl.create_default_context().wrap_socket(plain, server_hostname=host) as tls:
        return dict(part[0] for part in tls.getpeercert()['issuer'])['commonName']
";

async fn requests_get_secrets_that_code_cannot_read(place: TestSandbox) {
    let name = format!("secrets-{}", place.kind);
    let (authority, tls) = authority(&name);
    let (api, other, plain) = (Echo::start(Some(tls.clone())).await, Echo::start(Some(tls)).await, Echo::start(None).await);
    let value = format!("value-{}", cellkeep::ids::random_uuid());
    let private = format!("--egress-private=127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}", api.port, other.port, plain.port);
    let trusted = format!("--egress-ca-file={}", authority.display());
    let mut server = Server::start("secrets", place, &["--allow-network=allow", &private, &trusted]).await;
    let client = server.client();
    let hosts = json!([api.host(), plain.host()]);
    let held = client
        .create(json!({
            "kernel": "python", "network": {"allow": [api.host(), other.host(), plain.host()]},
            "secrets": {
                "TOKEN": {"hosts": hosts, "env": "API_KEY", "value": value},
                "KEY": {"hosts": hosts, "header": "X-Key", "format": "key {}", "value": value},
            }
        }))
        .await;
    let shown = held.view().await;
    assert_eq!(
        shown["secrets"][1],
        json!({"name": "TOKEN", "hosts": hosts, "header": null, "env": "API_KEY", "read_only": false})
    );
    held.ok(CLIENTS).await;
    let stars = "*".repeat(value.len());
    for (url, echo) in [(format!("https://{}/a", api.host()), &api), (format!("http://{}/b", plain.host()), &plain)] {
        let code = format!("for send in by_urllib, by_requests, by_httpx, by_curl: send('{url}')");
        let text = held.ok(&code).await;
        assert!(!text.contains(&value) && text.contains(&format!("echo: Bearer {stars}")), "{text}");
        assert!(text.contains("\"body\":\"body\""), "{text}");
        let seen = echo.take_seen();
        let bearer = format!("Bearer {value} | key {value}");
        let expected = [vec![bearer; 4], vec![format!("Basic {} | key {value}", base64(&format!("me:{value}")))]].concat();
        assert_eq!(seen, expected, "{url}");
    }
    // Another host gets the placeholder, over TLS that nobody reads.
    let code = format!(
        "by_urllib('https://{}/c')\nprint(issuer('localhost', {}), issuer('localhost', {}))",
        other.host(),
        api.port,
        other.port
    );
    let text = held.ok(&code).await;
    assert!(text.ends_with("Cellkeep sandbox secrets authority of the test\n"), "{text}");
    let seen = other.take_seen();
    assert!(seen[0].starts_with("Bearer cellkeep-secret-") && seen[0].ends_with(" | mine"), "{seen:?}");
    // Neither the sandbox nor anything that is shown or kept has the value, but for one file of the server's.
    let search = "import glob\nfound = []\nfor path in glob.glob('/proc/[0-9]*/environ') + ['/proc/self/maps']:\n    try: found.append(open(path, 'rb').read())\n    \
                  except OSError: pass\nprint(os.environ['API_KEY'].startswith('cellkeep-secret-'), len(found) > 0, b'value-' in b''.join(found))";
    assert_eq!(held.ok(search).await, "True True False\n");
    let kept = files_with(server.data(), &value);
    assert_eq!(kept, [server.paths().sandboxes().join(held.id.as_str()).join("private.json")]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&kept[0]), mode(kept[0].parent().unwrap())), (0o600, 0o700));
    assert!(!server.stderr().contains(&value));
    for path in [held.path(""), held.path("/cells"), held.path("/network"), "/v1/sessions".to_owned()] {
        assert!(!client.get(&path).await.text().contains(&value), "{path}");
    }
    // The next server has them, too.
    server.kill().await;
    server.start_again().await;
    held.ok(&format!("by_requests('https://{}/d')", api.host())).await;
    assert_eq!(api.take_seen().last().unwrap(), &format!("Bearer {value} | key {value}"));
    refuses_bad_secrets(&server, &held.id, &value).await;
    held.delete().await;
    assert_eq!(files_with(server.data(), &value), Vec::<PathBuf>::new());
    server.end().await;
    fs::remove_file(authority).unwrap();
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

async fn refuses_bad_secrets(server: &Server, session: &str, value: &str) {
    let client = server.client();
    let with = |secret: Value| json!({"kernel": "python", "secrets": {"A": secret}});
    for body in [
        with(json!({"hosts": ["a.example"], "env": "A"})),
        with(json!({"hosts": [], "env": "A", "value": value})),
        with(json!({"hosts": ["*"], "env": "A", "value": value})),
        with(json!({"hosts": ["a.example"], "env": "A", "header": "B", "value": value})),
        with(json!({"hosts": ["a.example"], "header": "Host", "value": value})),
        with(json!({"hosts": ["a.example"], "header": "B", "format": "no place", "value": value})),
        with(json!({"hosts": ["a.example"], "header": "B", "value": format!("{value}\r\nX: y")})),
        with(json!({})),
        json!({"kernel": "python", "env": {"A": "b"}, "secrets": {"A": {"hosts": ["a.example"], "env": "A", "value": value}}}),
    ] {
        let problem = client.post("/v1/sessions", body.clone()).await.problem(422, "bad_secret");
        assert!(problem["field"] == "secrets" && !problem.to_string().contains(value), "{body}: {problem}");
    }
    let guest = json!({"sandbox": session, "secrets": {"A": {"hosts": ["a.example"], "env": "A", "value": value}}});
    client.post("/v1/sessions", guest).await.problem(422, "bad_sandbox");
}

async fn processes_of_a_sandbox_use_its_secrets(place: TestSandbox) {
    let (authority, tls) = authority(&format!("declared-{}", place.kind));
    let api = Echo::start(Some(tls)).await;
    let value = format!("value-{}", cellkeep::ids::random_uuid());
    // The operator declares the secret, and clients only name it.
    let config = authority.with_extension("toml");
    let declared = format!("[secrets.API_TOKEN]\nhosts = [\"{}\"]\nenv = \"API_TOKEN\"\nvalue = \"{value}\"\n", api.host());
    fs::write(&config, declared).unwrap();
    let private = format!("--egress-private=127.0.0.1:{}", api.port);
    let (trusted, file) = (format!("--egress-ca-file={}", authority.display()), format!("--config={}", config.display()));
    let server = Server::start("declared", place, &["--allow-network=allow", &private, &trusted, &file]).await;
    let client = server.client();
    let network = json!({"allow": [api.host()]});
    let unknown = client.post("/v1/sandboxes", json!({"secrets": {"NO_TOKEN": {}}})).await.problem(422, "bad_secret");
    assert!(unknown["detail"].as_str().unwrap().contains("API_TOKEN"), "{unknown}");
    let sandbox =
        client.post("/v1/sandboxes", json!({"kernel": "python", "network": network, "secrets": {"API_TOKEN": {}}})).await;
    let sandbox = sandbox.is(201);
    assert_eq!(sandbox["secrets"][0]["env"], "API_TOKEN");
    let path = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let shell = format!("curl -sS --noproxy '' -H \"Authorization: Bearer $API_TOKEN\" https://{}/p", api.host());
    let process = client.post(&format!("{path}/processes?wait=60"), json!({"shell": shell})).await.is(201);
    assert_eq!(
        (&process["exit"]["exit_code"], api.take_seen()),
        (&json!(0), vec![format!("Bearer {value} | -")]),
        "{process}"
    );
    // A kernel that starts later has the same placeholder.
    let held = client.create(json!({"sandbox": sandbox["id"]})).await;
    held.ok(CLIENTS.replace("API_KEY", "API_TOKEN").as_str()).await;
    assert!(!held.ok(&format!("by_httpx('https://{}/q')", api.host())).await.contains(&value));
    assert_eq!(api.take_seen(), [format!("Bearer {value} | mine")]);
    let printed = server.command().args(["--print-config"]).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    client.delete(&path).await.is(204);
    assert!(printed.contains("[secrets.API_TOKEN]") && !printed.contains(&value), "{printed}");
    server.end().await;
    for path in [authority, config] {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn command_hides_secret_from_its_code() {
    let value = format!("value-{}", cellkeep::ids::random_uuid());
    let exec = |network: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        command.args(["exec", "--sandbox=process", "--secret=API_KEY@api.example", network, "-c"]);
        let output = command.arg("import os; print(os.environ['API_KEY'])").env("API_KEY", &value).output().unwrap();
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let [text, error] = exec("--network=api.example");
    assert!(text.starts_with("cellkeep-secret-") && !text.contains(&value), "{text}{error}");
    let [text, error] = exec("--network=open");
    assert!(text.is_empty() && error.contains("name the hosts with --network"), "{text}{error}");
}

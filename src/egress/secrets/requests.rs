//! Reads the requests of one connection to a host of secrets, each for itself, and sends them on with the values in them.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::masked_body::MaskedBody;
use super::masking::{Masker, Values};
use super::rewriting;
use super::{ActiveSecret, SandboxSecrets};
use crate::egress::client::Client;
use crate::egress::dial::{DialError, dial};
use crate::egress::sandbox::{Asked, SandboxState};
use crate::egress::shares::Share;
use crate::egress::traffic::Connection;
use crate::policy::parse_authority;
use crate::streams::{Meter, Pieces, copy_to_socket};

const BUFFER: usize = 64 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to close a connection that has ended.
const LINGER: Duration = Duration::from_secs(5);
type AnyBody = BoxBody<Bytes, hyper::Error>;

/// A connection whose requests are read.
pub(in crate::egress) struct Inspected<'a> {
    pub asked: &'a Asked<'a>,
    pub sandbox: &'a SandboxState,
    pub secrets: &'a SandboxSecrets,
    pub share: &'a Share,
}

/// Serves TLS of the client as the host. `opening` are the bytes that have been read, and `socket` leads to the host.
pub(in crate::egress) async fn serve_tls(
    client: &Client,
    opening: Bytes,
    socket: TcpStream,
    inspected: &Inspected<'_>,
    meter: &Connection<'_>,
) -> io::Result<()> {
    let server = inspected.secrets.authority.server(inspected.asked.host)?;
    let served = async |near: DuplexStream| {
        let accepting = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(server).accept(near));
        inspected.serve(accepting.await??, socket, true).await
    };
    with_client(client, opening, meter, served).await
}

/// Serves one plain request, whose head and what came with it are in `opening`.
pub(in crate::egress) async fn serve_plain(
    client: &Client,
    opening: Bytes,
    socket: TcpStream,
    inspected: &Inspected<'_>,
    meter: &Connection<'_>,
) -> io::Result<()> {
    with_client(client, opening, meter, async |near| inspected.serve(near, socket, false).await).await
}

/// Copies between the client and what serves it, until that has ended.
async fn with_client(
    client: &Client,
    opening: Bytes,
    meter: &Connection<'_>,
    serve: impl AsyncFnOnce(DuplexStream) -> io::Result<()>,
) -> io::Result<()> {
    let (near, far) = tokio::io::duplex(BUFFER);
    let (mut reader, mut writer) = tokio::io::split(far);
    let outward = async {
        copy_to_socket(client, opening, &mut writer, meter).await?;
        std::future::pending::<io::Result<()>>().await
    };
    let inward = async {
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(BUFFER / 4);
            if reader.read_buf(&mut buffer).await? == 0 {
                return client.end().await;
            }
            meter.inward(buffer.len()).await?;
            client.send(buffer.split().freeze()).await?;
        }
    };
    let served = async {
        let (served, copied) = tokio::join!(serve(near), inward);
        served.and(copied)
    };
    let ended = tokio::select! {
        ended = served => ended,
        failed = outward => failed,
    };
    // Also after an error, which the client may have been answered.
    let rest = async { while let Ok(Some(_)) = client.receive().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
    ended
}

/// The connection to the host. It is made again when the host has closed it between two requests.
struct Upstream<'a> {
    inspected: &'a Inspected<'a>,
    is_tls: bool,
    state: tokio::sync::Mutex<UpstreamState>,
    /// What drives connections, and what copies after an upgrade.
    tasks: std::sync::Mutex<JoinSet<()>>,
}

struct UpstreamState {
    /// The connection that the policy was checked for.
    first: Option<TcpStream>,
    sender: Option<SendRequest<Incoming>>,
}

impl Inspected<'_> {
    async fn serve<T>(&self, client: T, socket: TcpStream, is_tls: bool) -> io::Result<()>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Asked { host, port, .. } = *self.asked;
        let secrets = self.secrets.of_host(host, port, is_tls);
        let values = Values::new(secrets.iter().map(|active| active.secret.value.reveal()));
        let state = tokio::sync::Mutex::new(UpstreamState { first: Some(socket), sender: None });
        let upstream = Upstream { inspected: self, is_tls, state, tasks: std::sync::Mutex::default() };
        let service = service_fn(|request| upstream.answer(request, &secrets, &values));
        let mut http = hyper::server::conn::http1::Builder::new();
        let served = http.max_buf_size(BUFFER).half_close(true).serve_connection(TokioIo::new(client), service);
        let served = served.with_upgrades().await.map_err(io::Error::other);
        upstream.state.lock().await.sender = None;
        // After an upgrade, bytes go on.
        let mut tasks = upstream.tasks.into_inner().unwrap_or_else(PoisonError::into_inner);
        while tasks.join_next().await.is_some() {}
        served
    }

    /// Whether a request is for the host of the connection, and no other that the same server may have.
    fn is_meant(&self, request: &Request<Incoming>) -> bool {
        let Asked { host, port, .. } = *self.asked;
        let is_same = |text: &str| parse_authority(text, Some(port)).is_ok_and(|named| named == (host.clone(), port));
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (named, more) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next());
        more.is_none() && named.is_some_and(is_same) && request.uri().authority().is_none_or(|named| is_same(named.as_str()))
    }
}

impl Upstream<'_> {
    async fn answer(
        &self,
        request: Request<Incoming>,
        secrets: &[&ActiveSecret],
        values: &Values,
    ) -> Result<Response<AnyBody>, Infallible> {
        if !self.inspected.is_meant(&request) {
            let why =
                format!("this connection is for {} alone, and the request for another host", self.inspected.asked.host);
            return Ok(refusal(StatusCode::MISDIRECTED_REQUEST, &why));
        }
        // It would send the fields back.
        if matches!(*request.method(), Method::TRACE | Method::CONNECT) {
            return Ok(refusal(StatusCode::METHOD_NOT_ALLOWED, "this method is not sent to hosts of secrets"));
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let put_in: Vec<&ActiveSecret> =
            secrets.iter().copied().filter(|active| reads || !active.secret.description.read_only).collect();
        let (request, upgrade) = self.prepared(request, &put_in);
        match self.send(request).await {
            Ok(response) => Ok(self.returned(response, upgrade, values)),
            Err(why) => Ok(refusal(StatusCode::BAD_GATEWAY, &why)),
        }
    }

    /// The request as the host gets it, and what becomes of the client's connection if the host switches protocols.
    fn prepared(
        &self,
        mut request: Request<Incoming>,
        secrets: &[&ActiveSecret],
    ) -> (Request<Incoming>, Option<hyper::upgrade::OnUpgrade>) {
        let is_websocket = rewriting::is_websocket(request.headers());
        let upgrade = is_websocket.then(|| hyper::upgrade::on(&mut request));
        let Asked { host, port, .. } = *self.inspected.asked;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().unwrap_or(Uri::from_static("/"));
        *request.version_mut() = Version::HTTP_11;
        let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
        let fields = request.headers_mut();
        rewriting::drop_hop_by_hop(fields);
        if is_chunked {
            fields.remove(header::CONTENT_LENGTH);
        }
        if is_websocket {
            fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        let default_port = if self.is_tls { 443 } else { 80 };
        let named = if port == default_port { host.to_string() } else { format!("{host}:{port}") };
        if let Ok(named) = HeaderValue::try_from(named) {
            fields.insert(header::HOST, named);
        }
        // Values are found in what is not compressed.
        fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        rewriting::put_in(fields, secrets);
        (request, upgrade)
    }

    async fn send(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>, String> {
        let mut state = self.state.lock().await;
        loop {
            let (mut sender, is_new) = match state.sender.take() {
                Some(sender) => (sender, false),
                None => (self.connect(state.first.take()).await?, true),
            };
            if sender.ready().await.is_err() && !is_new {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => {
                    state.sender = Some(sender);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    // The host closed the connection before the request was sent.
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(format!("{} gave no response: {}", self.inspected.asked.host, error.into_error())),
                },
            }
        }
    }

    async fn connect(&self, first: Option<TcpStream>) -> Result<SendRequest<Incoming>, String> {
        let Inspected { asked: Asked { host, port, .. }, sandbox, share, .. } = *self.inspected;
        let gateway = &sandbox.gateway.0;
        let socket =
            match first {
                Some(socket) => socket,
                None => dial(&gateway.resolver, &share.lookups, &gateway.settings.private, host, *port).await.map_err(
                    |error| match error {
                        DialError::Refused(what) => format!("{host} leads to an address that is {what}"),
                        DialError::Failed(_, why) => why,
                    },
                )?,
            };
        let _ = socket.set_nodelay(true);
        if !self.is_tls {
            return self.begin(socket).await;
        }
        let name = match host.as_str().parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) => ServerName::try_from(host.as_str().to_owned()).map_err(|error| error.to_string())?,
        };
        let connecting = TlsConnector::from(gateway.tls()?).connect(name, socket);
        let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await.map_err(|_| "TLS timed out".to_owned())?;
        self.begin(connected.map_err(|error| format!("no TLS with {host}: {error}"))?).await
    }

    async fn begin<T>(&self, socket: T) -> Result<SendRequest<Incoming>, String>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await;
        let (sender, connection) = begun.map_err(|error| error.to_string())?;
        self.spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// The response as the client gets it.
    fn returned(
        &self,
        mut response: Response<Incoming>,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        values: &Values,
    ) -> Response<AnyBody> {
        let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let switched = is_switched.then(|| hyper::upgrade::on(&mut response));
        let fields = response.headers_mut();
        rewriting::drop_hop_by_hop(fields);
        rewriting::mask(fields, values);
        match (switched, upgrade) {
            (None, _) => {
                let masker = rewriting::is_readable(response.headers()).then(|| Masker::new(values.clone()));
                response.map(|body| MaskedBody::new(body, masker).boxed())
            }
            (Some(server), Some(client)) => {
                fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                let masker = Masker::new(values.clone());
                self.spawn(async move {
                    if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                        let _ = copy_upgraded(client, server, masker).await;
                    }
                });
                response.map(|_| text(""))
            }
            (Some(_), None) => refusal(StatusCode::BAD_GATEWAY, "the host switched to a protocol that nobody asked for"),
        }
    }
}

fn text(text: &str) -> AnyBody {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed()
}

/// A response of the proxy itself.
fn refusal(status: StatusCode, why: &str) -> Response<AnyBody> {
    let mut response = Response::new(text(&format!("cellkeep: {why}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("proxy-agent", HeaderValue::from_static("cellkeep"));
    response
}

/// Copies both ways until one side has ended. What the host sends is masked.
async fn copy_upgraded(client: Upgraded, server: Upgraded, mut masker: Masker) -> io::Result<()> {
    let (mut client_reader, mut client_writer) = tokio::io::split(TokioIo::new(client));
    let (mut server_reader, mut server_writer) = tokio::io::split(TokioIo::new(server));
    let outward = async {
        tokio::io::copy(&mut client_reader, &mut server_writer).await?;
        server_writer.shutdown().await
    };
    let inward = async {
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(BUFFER / 4);
            if server_reader.read_buf(&mut buffer).await? == 0 {
                client_writer.write_all(&masker.finish()).await?;
                return client_writer.shutdown().await;
            }
            client_writer.write_all(&masker.pass(&buffer.split().freeze())).await?;
            client_writer.flush().await?;
        }
    };
    tokio::try_join!(outward, inward).map(drop)
}

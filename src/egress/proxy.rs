//! One connection of a sandbox: reads the request, decides, connects, copies.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::decisions::DecisionIndex;
use super::dial::{DialError, dial};
use super::request_head::{self, HeadEnd, ProxyRequest, RequestKind, own_response};
use super::sandbox::{Asked, CurrentPolicy, SandboxState};
use super::secrets::{self, Inspected};
use super::shares::Place;
use super::tls_hello::Opening;
use super::traffic::Connection;
use super::tunnel::{self, TunnelRules};
use crate::policy::{HostName, NetworkPolicy};
use crate::streams::{ByteStream, Meter};

/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections without a byte for so long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// As [`IDLE_TIMEOUT`], when the client has closed its side.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection waits for others to end, when there are too many.
const PLACE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to close a connection that has been answered.
const LINGER: Duration = Duration::from_secs(5);
const READ_BUFFER: usize = 64 * 1024;
/// The most heads of one response, with those that only announce it (`100 Continue`).
const MAX_RESPONSE_HEADS: u32 = 16;

/// Why a request is not served, as the response says it.
struct Refusal {
    status: u16,
    /// For the status line.
    reason: String,
    body: String,
    /// For the list of decisions, if something was decided.
    decision: Option<String>,
}

impl Refusal {
    fn new(status: u16, reason: String) -> Self {
        Self { status, body: format!("cellkeep: {reason}"), reason, decision: None }
    }
}

/// Serves a connection to its end, or until the client drops it.
pub(super) async fn serve(stream: ByteStream, sandbox: &SandboxState) {
    let served = async {
        match tokio::time::timeout(HEAD_TIMEOUT, read_request(&stream)).await {
            Err(_) | Ok(Ok(None)) => {}
            Ok(Err(refusal)) => answer(&stream, &refusal).await,
            Ok(Ok(Some((request, rest)))) => serve_request(&stream, request, rest, sandbox).await,
        }
    };
    tokio::select! {
        () = served => {}
        // Whatever is being waited for, nobody is there any more.
        () = stream.broken() => {}
    }
}

/// Reads the head of a request, and what came with it; `None` if the client went away.
async fn read_request(stream: &ByteStream) -> Result<Option<(ProxyRequest, Bytes)>, Refusal> {
    let (mut head, mut end) = (BytesMut::new(), HeadEnd::default());
    loop {
        let Ok(Some(bytes)) = stream.receive().await else { return Ok(None) };
        head.extend_from_slice(&bytes);
        if !end.is_reached(&head) {
            continue;
        }
        return match request_head::parse(&head) {
            Ok(None) => Err(Refusal::new(400, "this is no HTTP request to a proxy".to_owned())),
            Ok(Some(request)) => {
                let rest = head.split_off(request.length).freeze();
                Ok(Some((request, rest)))
            }
            Err(bad) => Err(Refusal::new(bad.status, bad.reason)),
        };
    }
}

async fn serve_request(stream: &ByteStream, request: ProxyRequest, rest: Bytes, sandbox: &SandboxState) {
    let current = sandbox.current();
    let asked = Asked { host: &request.host, port: request.port, is_tunnel: request.kind == RequestKind::Tunnel };
    let connected = connect(&asked, &current, sandbox).await;
    let refused = connected.as_ref().err().and_then(|refusal| refusal.decision.as_deref());
    let index = sandbox.decide(&asked, &current.policy, refused);
    let (mut socket, _place) = match connected {
        Ok(connected) => connected,
        Err(refusal) => return answer(stream, &refusal).await,
    };
    let connection = Connection::new(&sandbox.traffic);
    let counted = Counted { sandbox, connection: &connection, index };
    let inspected = sandbox.secrets.as_deref();
    let inspected = inspected.map(|secrets| Inspected { asked: &asked, sandbox, secrets, share: &current.share });
    let needs_secrets = |is_tls| inspected.as_ref().filter(|its| its.secrets.are_for(asked.host, asked.port, is_tls));
    let rules = TunnelRules { host: asked.host, takes_any_bytes: sandbox.allows_any_bytes(&asked, &current.policy) };
    let copied = async {
        match request.kind {
            RequestKind::Tunnel => match needs_secrets(true) {
                None => tunnel::serve(stream, &mut socket, rest, &rules, &connection).await,
                Some(inspected) => match tunnel::open(stream, rest, &rules).await? {
                    (opening, Opening::Tls { .. }) => {
                        secrets::serve_tls(stream, opening, socket, inspected, &connection).await
                    }
                    (opening, Opening::Other) => tunnel::copy(stream, &mut socket, opening, &connection).await,
                },
            },
            RequestKind::Forward { head, .. } if let Some(inspected) = needs_secrets(false) => {
                let opening = [&head, &rest[..]].concat().into();
                secrets::serve_plain(stream, opening, socket, inspected, &connection).await
            }
            RequestKind::Forward { head, body, is_head } => {
                let request = Forwarded { head, rest, body, is_head };
                forward(stream, &mut socket, request, &connection).await
            }
        }
    };
    tokio::select! {
        result = copied => match result {
            Ok(()) => {}
            Err(error) => {
                if let Some(reason) = tunnel::refusal(&error) {
                    sandbox.decide(&asked, &current.policy, Some(reason));
                }
                tracing::debug!(sandbox = %sandbox.id(), host = %asked.host, port = asked.port, %error, "a connection of a sandbox ended early");
            }
        },
        () = connection.idle_for(IDLE_TIMEOUT) => {}
        () = sandbox.until_refused(&asked) => {}
    }
    drop(counted);
}

/// Adds the bytes of a connection to its decision at the end, also if the task is ended.
struct Counted<'a> {
    sandbox: &'a SandboxState,
    connection: &'a Connection<'a>,
    index: DecisionIndex,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.sandbox.add_bytes(self.index, self.connection.bytes());
    }
}

/// Decides, and connects. The place counts the connection.
async fn connect(asked: &Asked<'_>, current: &CurrentPolicy, sandbox: &SandboxState) -> Result<(TcpStream, Place), Refusal> {
    let Asked { host, port, .. } = *asked;
    let gateway = &sandbox.gateway;
    if !current.policy.allows(host, port, &gateway.0.packages) {
        return Err(not_in_policy(&current.policy, host, port));
    }
    if !asked.is_allowed(&current.policy, &gateway.0.packages) {
        return Err(only_plain_requests(host));
    }
    if sandbox.traffic.is_used_up() {
        let most = sandbox.traffic.max_bytes().unwrap_or(0) >> 20;
        let mut refusal =
            Refusal::new(403, format!("Forbidden: this sandbox has used up the {most} MB that it may transfer"));
        refusal.decision = Some("its volume is used up".to_owned());
        return Err(refusal);
    }
    let Some(place) = current.share.connections.acquire(PLACE_TIMEOUT).await else {
        return Err(Refusal::new(503, "too many connections of sandboxes at once; retry".to_owned()));
    };
    let dialled = dial(&gateway.0.resolver, &current.share.lookups, &gateway.0.settings.private, host, port);
    match dialled.await {
        Ok(socket) => Ok((socket, place)),
        Err(DialError::Failed(status, reason)) => Err(Refusal::new(status, reason)),
        Err(DialError::Refused(what)) => {
            let reason = format!("Forbidden: {host} leads to an address that is {what}, which sandboxes do not reach");
            let body = format!(
                "cellkeep: {host} leads to an address that is {what}. Sandboxes reach no private addresses, whatever their policy. The \
                 operator of this server can except one with --egress-private."
            );
            Err(Refusal { status: 403, reason, body, decision: Some(format!("its address is {what}")) })
        }
    }
}

/// Port 80 is for requests that the proxy reads, unless the policy names the port.
fn only_plain_requests(host: &HostName) -> Refusal {
    let reason = format!(
        "Forbidden: {host} takes requests for http:// URLs on port 80 and no tunnels; ask for the network {{\"allow\": [\"{host}:80\"]}}"
    );
    Refusal { decision: Some("a tunnel to port 80".to_owned()), ..Refusal::new(403, reason) }
}

/// The refusal names the policy, and the one to ask for. Many programs show only the status line.
fn not_in_policy(policy: &NetworkPolicy, host: &HostName, port: u16) -> Refusal {
    let level = policy.level();
    let rule = if [80, 443].contains(&port) { host.to_string() } else { format!("{host}:{port}") };
    let reason = format!(
        "Forbidden: the network policy {level} does not include {host} on port {port}; ask for the network {{\"allow\": [\"{rule}\"]}}"
    );
    let what = match policy {
        NetworkPolicy::Packages => "it reaches package indexes only".to_owned(),
        NetworkPolicy::Allow(rules) => {
            let rules: Vec<String> = rules.iter().take(20).map(ToString::to_string).collect();
            format!("it reaches only {}", rules.join(", "))
        }
        NetworkPolicy::None | NetworkPolicy::Open => "its code reaches nothing".to_owned(),
    };
    let body = format!(
        "cellkeep: the network policy of this sandbox is `{level}`: {what}, not {host} on port {port}.\nTo reach it, ask for the network \
         {{\"allow\": [\"{rule}\"]}} when the session is created, or change it with PATCH /v1/sessions/ID. The server's operator decides \
         which policies may be asked for (--allow-network)."
    );
    Refusal { status: 403, reason, body, decision: Some("not in the policy".to_owned()) }
}

/// Sends a response of our own.
async fn answer(stream: &ByteStream, refusal: &Refusal) {
    send_last(stream, own_response(refusal.status, &refusal.reason, &refusal.body).into()).await;
}

/// Sends the last bytes of a connection, and waits until the client has had time to read them.
pub(super) async fn send_last(stream: &ByteStream, bytes: Bytes) {
    let sending = async {
        stream.send(bytes).await?;
        stream.end().await?;
        while stream.receive().await?.is_some() {}
        Ok::<(), crate::streams::StreamBroken>(())
    };
    let _ = tokio::time::timeout(LINGER, sending).await;
}

/// A plain request: its head, what came with it, and the length of its body.
struct Forwarded {
    head: Vec<u8>,
    rest: Bytes,
    body: u64,
    is_head: bool,
}

/// Sends one request on, and its response back.
async fn forward(stream: &ByteStream, socket: &mut TcpStream, request: Forwarded, meter: &Connection<'_>) -> io::Result<()> {
    let Forwarded { head, rest, body, is_head } = request;
    let _ = socket.set_nodelay(true);
    let (mut reader, mut writer) = socket.split();
    let mut request = Box::pin(async {
        meter.outward(head.len()).await?;
        writer.write_all(&head).await?;
        send_body(stream, &mut writer, rest, body, meter).await
    });
    let mut response = Box::pin(send_response(&mut reader, stream, is_head, meter));
    let answered = tokio::select! {
        sent = &mut request => match sent {
            Err(error) => return Err(error),
            // A client that has said all may still read, but not for ever from a server that neither sends nor closes.
            Ok(()) => tokio::select! {
                answered = &mut response => answered,
                ended = until_abandoned(stream, meter) => return ended,
            },
        },
        answered = &mut response => answered,
    };
    drop((request, response));
    answered?;
    stream.end().await.map_err(io::Error::other)?;
    let rest = async { while let Ok(Some(_)) = stream.receive().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
    Ok(())
}

/// Waits until the client has closed its side, and nothing is sent to it any more. What it sends after its request goes nowhere, and is
/// counted like what goes somewhere.
async fn until_abandoned(stream: &ByteStream, meter: &Connection<'_>) -> io::Result<()> {
    while let Ok(Some(bytes)) = stream.receive().await {
        meter.outward(bytes.len()).await?;
    }
    meter.idle_for(HALF_CLOSED_TIMEOUT).await;
    Ok(())
}

/// Sends exactly the body. What follows it would be another request, which is not read.
async fn send_body(
    stream: &ByteStream,
    socket: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut rest: Bytes,
    mut left: u64,
    meter: &Connection<'_>,
) -> io::Result<()> {
    while left > 0 {
        if rest.is_empty() {
            let early = || io::Error::other("the request ended before its body");
            rest = stream.receive().await.map_err(io::Error::other)?.ok_or_else(early)?;
        }
        let now = rest.split_to(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        rest.truncate(if left == now.len() as u64 { 0 } else { rest.len() });
        left -= now.len() as u64;
        meter.outward(now.len()).await?;
        socket.write_all(&now).await?;
    }
    socket.flush().await
}

async fn send_response(
    socket: &mut (impl tokio::io::AsyncRead + Unpin),
    stream: &ByteStream,
    is_head: bool,
    meter: &Connection<'_>,
) -> io::Result<()> {
    let (mut buffer, mut end, mut heads) = (BytesMut::new(), HeadEnd::default(), 0);
    let mut left = loop {
        let parsed = if end.is_reached(&buffer) { request_head::parse_response(&buffer, is_head) } else { Ok(None) };
        match parsed {
            Ok(Some(_)) if heads == MAX_RESPONSE_HEADS => {
                return bad_gateway(stream, "it announces its response for ever").await;
            }
            Ok(Some(response)) => {
                let _ = buffer.split_to(response.length);
                (end, heads) = (HeadEnd::default(), heads + 1);
                stream.send(response.head.into()).await.map_err(io::Error::other)?;
                if response.is_final {
                    break response.body.unwrap_or(u64::MAX);
                }
            }
            Ok(None) => {
                buffer.reserve(READ_BUFFER);
                let read = socket.read_buf(&mut buffer).await?;
                if read == 0 {
                    return bad_gateway(stream, "the server closed the connection without a response").await;
                }
                meter.inward(read).await?;
            }
            Err(why) => return bad_gateway(stream, why).await,
        }
    };
    loop {
        buffer.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= buffer.len() as u64;
        if !buffer.is_empty() {
            stream.send(buffer.split().freeze()).await.map_err(io::Error::other)?;
        }
        // A server may keep the connection open although the response is complete.
        if left == 0 {
            return Ok(());
        }
        buffer.reserve(READ_BUFFER);
        let read = socket.read_buf(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        meter.inward(read).await?;
    }
}

async fn bad_gateway(stream: &ByteStream, why: &str) -> io::Result<()> {
    stream.send(own_response(502, why, why).into()).await.map_err(io::Error::other)
}

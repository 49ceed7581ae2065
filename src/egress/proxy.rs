//! One connection of a sandbox: reads the request, decides, connects, copies.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Gateway;
use super::decisions::DecisionIndex;
use super::dial::{DialError, dial};
use super::request_head::{self, MAX_HEAD, ProxyRequest, RequestKind, own_response};
use super::sandbox::SandboxState;
use super::traffic::Connection;
use crate::policy::{HostName, NetworkPolicy};
use crate::streams::{ByteStream, Meter, copy_both_ways};

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

/// Serves a connection to its end.
pub(super) async fn serve(stream: ByteStream, sandbox: &SandboxState) {
    match tokio::time::timeout(HEAD_TIMEOUT, read_request(&stream)).await {
        Err(_) | Ok(Ok(None)) => {}
        Ok(Err(refusal)) => answer(&stream, &refusal).await,
        Ok(Ok(Some((request, rest)))) => serve_request(&stream, request, rest, sandbox).await,
    }
}

/// Reads the head of a request, and what came with it; `None` if the client went away.
async fn read_request(stream: &ByteStream) -> Result<Option<(ProxyRequest, Bytes)>, Refusal> {
    let mut head = BytesMut::new();
    loop {
        let Ok(Some(bytes)) = stream.receive().await else { return Ok(None) };
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(&bytes);
        // Parsing again for each byte would take long.
        let may_be_complete = has_empty_line(&head[searched..]) || head.len() >= MAX_HEAD || !head[0].is_ascii_uppercase();
        if !may_be_complete {
            continue;
        }
        match request_head::parse(&head) {
            Ok(None) => {}
            Ok(Some(request)) => {
                let rest = head.split_off(request.length).freeze();
                return Ok(Some((request, rest)));
            }
            Err(bad) => return Err(Refusal::new(bad.status, bad.reason)),
        }
    }
}

fn has_empty_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

async fn serve_request(stream: &ByteStream, request: ProxyRequest, rest: Bytes, sandbox: &SandboxState) {
    let policy = sandbox.policy();
    let (host, port) = (&request.host, request.port);
    let connected = connect(&sandbox.gateway, &policy, host, port, sandbox).await;
    let refused = connected.as_ref().err().and_then(|refusal| refusal.decision.as_deref());
    let index = sandbox.decide(host, port, &policy, refused);
    let (mut socket, _place) = match connected {
        Ok(connected) => connected,
        Err(refusal) => return answer(stream, &refusal).await,
    };
    let connection = Connection::new(&sandbox.traffic);
    let counted = Counted { sandbox, connection: &connection, index };
    let copied = async {
        match request.kind {
            RequestKind::Tunnel => tunnel(stream, &mut socket, rest, &connection).await,
            RequestKind::Forward { head, body, is_head } => {
                let request = Forwarded { head, rest, body, is_head };
                forward(stream, &mut socket, request, &connection).await
            }
        }
    };
    tokio::select! {
        result = copied => if let Err(error) = result {
            tracing::debug!(sandbox = %sandbox.id(), %host, port, %error, "a connection of a sandbox ended early");
        },
        () = connection.idle_for(IDLE_TIMEOUT) => {}
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

/// Decides, and connects. The permit counts the connection.
async fn connect(
    gateway: &Gateway,
    policy: &NetworkPolicy,
    host: &HostName,
    port: u16,
    sandbox: &SandboxState,
) -> Result<(TcpStream, tokio::sync::OwnedSemaphorePermit), Refusal> {
    if !policy.allows(host, port, &gateway.0.packages) {
        return Err(not_in_policy(policy, host, port));
    }
    if sandbox.traffic.is_used_up() {
        let most = sandbox.traffic.max_bytes().unwrap_or(0) >> 20;
        let mut refusal =
            Refusal::new(403, format!("Forbidden: this sandbox has used up the {most} MB that it may transfer"));
        refusal.decision = Some("its volume is used up".to_owned());
        return Err(refusal);
    }
    let place = tokio::time::timeout(PLACE_TIMEOUT, gateway.0.connections.clone().acquire_owned()).await;
    let Ok(Ok(place)) = place else {
        return Err(Refusal::new(503, "too many connections of sandboxes at once; retry".to_owned()));
    };
    match dial(&*gateway.0.resolver, &gateway.0.settings.private, host, port).await {
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

/// Sends a response of our own, and waits until the client has had time to read it.
async fn answer(stream: &ByteStream, refusal: &Refusal) {
    let response = own_response(refusal.status, &refusal.reason, &refusal.body);
    let sending = async {
        stream.send(response.into()).await?;
        stream.end().await?;
        while stream.receive().await?.is_some() {}
        Ok::<(), crate::streams::StreamBroken>(())
    };
    let _ = tokio::time::timeout(LINGER, sending).await;
}

async fn tunnel(stream: &ByteStream, socket: &mut TcpStream, rest: Bytes, meter: &Connection<'_>) -> io::Result<()> {
    stream.send(Bytes::from_static(b"HTTP/1.1 200 Connection established\r\n\r\n")).await.map_err(io::Error::other)?;
    if !rest.is_empty() {
        meter.outward(rest.len()).await?;
        socket.write_all(&rest).await?;
    }
    copy_both_ways(stream, socket, meter).await
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
                () = until_abandoned(stream, meter) => return Ok(()),
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

/// Waits until the client has closed its side, and nothing is sent to it any more.
async fn until_abandoned(stream: &ByteStream, meter: &Connection<'_>) {
    while let Ok(Some(_)) = stream.receive().await {}
    meter.idle_for(HALF_CLOSED_TIMEOUT).await;
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
    let mut buffer = BytesMut::new();
    let mut left = loop {
        match request_head::parse_response(&buffer, is_head) {
            Ok(Some(response)) => {
                let _ = buffer.split_to(response.length);
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

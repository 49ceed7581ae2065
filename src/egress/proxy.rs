//! One connection of a sandbox: reads the request, decides, connects, copies.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::Client;
use super::decisions::DecisionIndex;
use super::dial::{DialError, dial};
use super::request_head::{self, HeadEnd, ProxyRequest, RequestKind, own_response};
use super::sandbox::{Asked, CurrentPolicy, SandboxState};
use super::secrets::{self, Inspected};
use super::tls_hello::Opening;
use super::traffic::Connection;
use super::tunnel::{self, TunnelRules};
use crate::policy::{HostName, NetworkPolicy};
use crate::streams::{Meter, Pieces, Room, read_some};

/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections without a byte for so long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// As [`IDLE_TIMEOUT`], when the client has closed its side.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(30);
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
pub(super) async fn serve(client: Client, sandbox: &SandboxState) {
    let served = async {
        match tokio::time::timeout(HEAD_TIMEOUT, read_request(&client)).await {
            Err(_) | Ok(Ok(None)) => {}
            Ok(Err(refusal)) => answer(&client, &refusal).await,
            Ok(Ok(Some((request, rest)))) => serve_request(&client, request, rest, sandbox).await,
        }
    };
    tokio::select! {
        () = served => {}
        // Whatever is being waited for, nobody is there any more.
        () = client.broken() => {}
    }
}

/// Answers a connection for which there is no place.
pub(super) async fn refuse_for_load(client: &Client) {
    answer(client, &Refusal::new(503, "too many connections of sandboxes at once; retry".to_owned())).await;
}

/// Reads the head of a request, and what came with it; `None` if the client went away.
async fn read_request(client: &Client) -> Result<Option<(ProxyRequest, Bytes)>, Refusal> {
    let (mut head, mut end) = (BytesMut::new(), HeadEnd::default());
    loop {
        let Ok(Some(bytes)) = client.receive().await else { return Ok(None) };
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

async fn serve_request(client: &Client, request: ProxyRequest, rest: Bytes, sandbox: &SandboxState) {
    let current = sandbox.current();
    let asked = Asked { host: &request.host, port: request.port, is_tunnel: request.kind == RequestKind::Tunnel };
    let connected = connect(&asked, &current, sandbox).await;
    let refused = connected.as_ref().err().and_then(|refusal| refusal.decision.as_deref());
    let index = sandbox.decide(&asked, &current.policy, refused);
    let mut socket = match connected {
        Ok(connected) => connected,
        Err(refusal) => return answer(client, &refusal).await,
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
                None => tunnel::serve(client, &mut socket, rest, &rules, &connection).await,
                Some(inspected) => match tunnel::open(client, rest, &rules).await? {
                    (opening, Opening::Tls { .. }) => {
                        secrets::serve_tls(client, opening, socket, inspected, &connection).await
                    }
                    (opening, Opening::Other) => tunnel::copy(client, &mut socket, opening, &connection).await,
                },
            },
            RequestKind::Forward { head, .. } if let Some(inspected) = needs_secrets(false) => {
                let opening = [&head, &rest[..]].concat().into();
                secrets::serve_plain(client, opening, socket, inspected, &connection).await
            }
            RequestKind::Forward { head, body, is_head } => {
                let request = Forwarded { head, rest, body, is_head };
                forward(client, &mut socket, request, &connection).await
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

/// Decides, and connects.
async fn connect(asked: &Asked<'_>, current: &CurrentPolicy, sandbox: &SandboxState) -> Result<TcpStream, Refusal> {
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
    let dialled = dial(&gateway.0.resolver, &current.share.lookups, &gateway.0.settings.private, host, port);
    match dialled.await {
        Ok(socket) => Ok(socket),
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
async fn answer(client: &Client, refusal: &Refusal) {
    send_last(client, own_response(refusal.status, &refusal.reason, &refusal.body).into()).await;
}

/// Sends the last bytes of a connection, and waits until the client has had time to read them.
pub(super) async fn send_last(client: &Client, bytes: Bytes) {
    let sending = async {
        client.send(bytes).await?;
        client.end().await?;
        while client.receive().await?.is_some() {}
        io::Result::Ok(())
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
async fn forward(client: &Client, socket: &mut TcpStream, request: Forwarded, meter: &Connection<'_>) -> io::Result<()> {
    let Forwarded { head, rest, body, is_head } = request;
    let _ = socket.set_nodelay(true);
    let (reader, mut writer) = socket.split();
    let mut request = Box::pin(async {
        meter.outward(head.len()).await?;
        writer.write_all(&head).await?;
        send_body(client, &mut writer, rest, body, meter).await
    });
    let mut response = Box::pin(send_response(reader.as_ref(), client, is_head, meter));
    let answered = tokio::select! {
        sent = &mut request => match sent {
            Err(error) => return Err(error),
            // A client that has said all may still read, but not for ever from a server that neither sends nor closes.
            Ok(()) => tokio::select! {
                answered = &mut response => answered,
                ended = until_abandoned(client, meter) => return ended,
            },
        },
        answered = &mut response => answered,
    };
    drop((request, response));
    answered?;
    client.end().await?;
    let rest = async { while let Ok(Some(_)) = client.receive().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
    Ok(())
}

/// Waits until the client has closed its side, and nothing is sent to it any more. What it sends after its request goes nowhere, and is
/// counted like what goes somewhere.
async fn until_abandoned(client: &Client, meter: &Connection<'_>) -> io::Result<()> {
    while let Ok(Some(bytes)) = client.receive().await {
        meter.outward(bytes.len()).await?;
    }
    meter.idle_for(HALF_CLOSED_TIMEOUT).await;
    Ok(())
}

/// Sends exactly the body. What follows it would be another request, which is not read.
async fn send_body(
    client: &Client,
    socket: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut rest: Bytes,
    mut left: u64,
    meter: &Connection<'_>,
) -> io::Result<()> {
    while left > 0 {
        if rest.is_empty() {
            let early = || io::Error::other("the request ended before its body");
            rest = client.receive().await?.ok_or_else(early)?;
        }
        let now = rest.split_to(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        rest.truncate(if left == now.len() as u64 { 0 } else { rest.len() });
        left -= now.len() as u64;
        meter.outward(now.len()).await?;
        socket.write_all(&now).await?;
    }
    socket.flush().await
}

async fn send_response(socket: &TcpStream, client: &Client, is_head: bool, meter: &Connection<'_>) -> io::Result<()> {
    let (mut buffer, mut end, mut heads) = (BytesMut::new(), HeadEnd::default(), 0);
    let mut left = loop {
        let parsed = if end.is_reached(&buffer) { request_head::parse_response(&buffer, is_head) } else { Ok(None) };
        match parsed {
            Ok(Some(_)) if heads == MAX_RESPONSE_HEADS => {
                return bad_gateway(client, "it announces its response for ever").await;
            }
            Ok(Some(response)) => {
                let _ = buffer.split_to(response.length);
                (end, heads) = (HeadEnd::default(), heads + 1);
                client.send(response.head.into()).await?;
                if response.is_final {
                    break response.body.unwrap_or(u64::MAX);
                }
            }
            Ok(None) => {
                let Some(bytes) = read_some(socket, || Room { bytes: READ_BUFFER, permit: None }).await? else {
                    return bad_gateway(client, "the server closed the connection without a response").await;
                };
                buffer.extend_from_slice(&bytes);
                meter.inward(bytes.len()).await?;
            }
            Err(why) => return bad_gateway(client, why).await,
        }
    };
    let mut body = buffer.freeze();
    loop {
        body.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= body.len() as u64;
        client.send(body).await?;
        // A server may keep the connection open although the response is complete.
        if left == 0 {
            return Ok(());
        }
        client.until_sendable().await?;
        body = match read_some(socket, || client.room()).await? {
            Some(bytes) => bytes,
            None => return Ok(()),
        };
        meter.inward(body.len()).await?;
    }
}

async fn bad_gateway(client: &Client, why: &str) -> io::Result<()> {
    client.send(own_response(502, why, why).into()).await
}

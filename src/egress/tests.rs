//! The proxy against servers on loopback that stand in for the world. The agent's side is a connection of streams in memory.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::sandbox::SandboxState;
use super::sandbox::testing::{serve_connection, serve_listener, state};
use super::*;
use crate::agent_protocol::{FrameReader, StreamFrame};
use crate::streams::{ByteStream, Streams, send_descriptor};

/// A name server of a few names.
struct Names(HashMap<&'static str, Vec<SocketAddr>>);

impl Resolver for Names {
    fn resolve(&self, host: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        self.0.get(host).cloned().ok_or_else(|| io::Error::other("no such name"))
    }
}

/// A sandbox with a policy, and its end of the connection.
struct World {
    state: Arc<SandboxState>,
    agent: Streams,
    _served: JoinHandle<()>,
}

impl World {
    /// `good.example` and `other.example` lead to the loopback, where the ports may be reached; `bad.example` to a private address.
    fn new(policy: NetworkPolicy, ports: &[u16], settings: EgressSettings) -> Self {
        let loopback = || vec![SocketAddr::from(([127, 0, 0, 1], 1))];
        let names = Names(HashMap::from([
            ("good.example", loopback()),
            ("other.example", loopback()),
            ("bad.example", vec![SocketAddr::from(([10, 0, 0, 1], 1))]),
        ]));
        let private: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let settings = EgressSettings { private: PrivateAddresses::parse(&private).unwrap(), ..settings };
        let state = state(&Gateway::with_resolver(settings, None, Arc::new(names)), policy);
        Self::of_state(state)
    }

    fn of_state(state: Arc<SandboxState>) -> Self {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(here);
        let agent = Streams::opener(FrameReader::new(reader, StreamFrame::cap), writer);
        let served = tokio::spawn(serve_connection(there, state.clone()));
        Self { state, agent, _served: served }
    }

    /// Opens a connection and sends this much.
    async fn send(&self, text: &str) -> ByteStream {
        let stream = self.agent.open().await.unwrap();
        stream.send(text.to_owned().into()).await.unwrap();
        stream
    }

    /// The whole answer to this request.
    async fn ask(&self, text: &str) -> String {
        read_all(&self.send(text).await).await
    }
}

async fn read_all(stream: &ByteStream) -> String {
    let mut all = Vec::new();
    while let Ok(Some(bytes)) = stream.receive().await {
        all.extend_from_slice(&bytes);
    }
    String::from_utf8(all).unwrap()
}

fn allow(rule: String) -> NetworkPolicy {
    NetworkPolicy::allowing(&[rule]).unwrap()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Reads until the end of a head.
async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn tunnel_copies_both_ways_and_is_counted() {
    let (server, port) = listener().await;
    let world = World::new(allow(format!("good.example:{port}")), &[port], EgressSettings::default());
    let echo = tokio::spawn(async move {
        let (mut socket, _) = server.accept().await.unwrap();
        let mut text = [0; 5];
        socket.read_exact(&mut text).await.unwrap();
        socket.write_all(&text).await.unwrap();
    });
    let stream = world.send(&format!("CONNECT Good.Example.:{port} HTTP/1.1\r\n\r\nhello")).await;
    let mut answer = Vec::new();
    while let Ok(Some(bytes)) = stream.receive().await {
        answer.extend_from_slice(&bytes);
    }
    assert_eq!(String::from_utf8(answer).unwrap(), "HTTP/1.1 200 Connection established\r\n\r\nhello");
    stream.end().await.unwrap();
    echo.await.unwrap();
    let decision = loop {
        let decision = world.state.list_decisions().decisions.remove(0);
        if decision.received_bytes > 0 {
            break decision;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((decision.host.as_str(), decision.port, decision.refused), ("good.example", port, None));
    assert_eq!((decision.connections, decision.sent_bytes, decision.received_bytes), (1, 5, 5));
}

#[tokio::test]
async fn refusals_name_policy_and_remedy() {
    let world = World::new(NetworkPolicy::Packages, &[], EgressSettings::default());
    for request in ["CONNECT good.example:22 HTTP/1.1\r\n\r\n", "GET http://good.example:22/ HTTP/1.1\r\n\r\n"] {
        let answer = world.ask(request).await;
        let line = answer.lines().next().unwrap();
        assert!(line.starts_with("HTTP/1.1 403 Forbidden: the network policy packages"), "{answer}");
        assert!(line.contains(r#"{"allow": ["good.example:22"]}"#) && answer.contains("--allow-network"), "{answer}");
    }
    let decisions = world.state.list_decisions().decisions;
    assert_eq!(
        (decisions.len(), decisions[0].connections, decisions[0].refused.as_deref()),
        (1, 2, Some("not in the policy"))
    );
}

#[tokio::test]
async fn names_of_private_addresses_are_refused() {
    let world =
        World::new(NetworkPolicy::allowing(&["bad.example", "good.example"]).unwrap(), &[], EgressSettings::default());
    for (host, what) in [("bad.example", "private"), ("good.example", "loopback")] {
        let answer = world.ask(&format!("CONNECT {host}:443 HTTP/1.1\r\n\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains(what) && answer.contains("--egress-private"),
            "{answer}"
        );
    }
    let answer = world.ask("CONNECT 0x7f.1:443 HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden: the network policy allow does not include 127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn one_plain_request_is_served_for_each_connection() {
    let (server, port) = listener().await;
    let world = World::new(allow(format!("good.example:{port}")), &[port], EgressSettings::default());
    let first =
        format!("POST http://good.example:{port}/a HTTP/1.1\r\nHost: good.example:{port}\r\nContent-Length: 4\r\n\r\nbody");
    let second = "GET /admin HTTP/1.1\r\nHost: other.example\r\n\r\n";
    let seen = tokio::spawn(async move {
        let (mut socket, _) = server.accept().await.unwrap();
        let head = read_head(&mut socket).await;
        let mut body = [0; 4];
        socket.read_exact(&mut body).await.unwrap();
        socket
            .write_all(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=9\r\n\r\nok",
            )
            .await
            .unwrap();
        // Nothing more may come; then the server closes.
        let more = tokio::time::timeout(Duration::from_millis(200), socket.read_u8()).await;
        assert!(more.is_err() || more.unwrap().is_err());
        (head, body)
    });
    let answer = world.ask(&format!("{first}{second}")).await;
    let (head, body) = seen.await.unwrap();
    let expected =
        format!("POST /a HTTP/1.1\r\nHost: good.example:{port}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n");
    assert_eq!((head, &body), (expected, b"body"));
    let expected = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn redirects_are_passed_on_and_not_followed() {
    let (server, port) = listener().await;
    let (_other, other_port) = listener().await;
    let world = World::new(allow(format!("good.example:{port}")), &[port, other_port], EgressSettings::default());
    tokio::spawn(async move {
        let (mut socket, _) = server.accept().await.unwrap();
        read_head(&mut socket).await;
        let location =
            format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other_port}/\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(location.as_bytes()).await.unwrap();
    });
    let answer = world.ask(&format!("GET http://good.example:{port}/ HTTP/1.1\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 302 Found\r\n"), "{answer}");
    let answer = world.ask(&format!("GET http://127.0.0.1:{other_port}/ HTTP/1.1\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn changed_policy_holds_for_new_connections() {
    let (server, port) = listener().await;
    let world = World::new(allow(format!("good.example:{port}")), &[port], EgressSettings::default());
    let request = format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n");
    let open = world.send(&request).await;
    let (mut socket, _) = server.accept().await.unwrap();
    let wider = NetworkPolicy::allowing(&[format!("good.example:{port}"), "other.example".into()]).unwrap();
    world.state.change_policy(wider);
    socket.write_all(b"still here").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("still here") {
        answer.push_str(std::str::from_utf8(&open.receive().await.unwrap().unwrap()).unwrap());
    }
    world.state.change_policy(NetworkPolicy::None);
    assert!(world.ask(&request).await.starts_with("HTTP/1.1 403 Forbidden: the network policy none"));
    // The connection that is open is not allowed any more, and ends.
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(read_all(&open).await, "");
}

#[tokio::test]
async fn dropped_streams_return_their_place() {
    let (server, port) = listener().await;
    let settings = EgressSettings { max_connections: 1, ..EgressSettings::default() };
    let world = World::new(allow(format!("good.example:{port}")), &[port], settings);
    let request = format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n");
    for _ in 0..3 {
        let stream = world.send(&request).await;
        let (mut socket, _) = server.accept().await.unwrap();
        assert!(stream.receive().await.unwrap().is_some());
        drop(stream);
        // The server has said nothing and goes on; only the client has gone.
        let closed = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut [0; 1])).await;
        assert_eq!(closed.expect("the connection ends with its stream").unwrap_or(0), 0);
    }
}

/// A name server that does not answer for `slow.example` until the test ends.
struct SlowNames {
    waiting: AtomicUsize,
    most_waiting: AtomicUsize,
    is_over: AtomicBool,
}

impl Resolver for SlowNames {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host == "slow.example" {
            self.most_waiting.fetch_max(self.waiting.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while !self.is_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    }
}

#[tokio::test]
async fn slow_name_servers_hold_up_only_their_owner() {
    let names = Arc::new(SlowNames {
        waiting: AtomicUsize::new(0),
        most_waiting: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let gateway = Gateway::with_resolver(EgressSettings::default(), None, names.clone());
    let hosts = NetworkPolicy::allowing(&["slow.example", "good.example"]).unwrap();
    let (ann, bob) = (World::of_state(state(&gateway, hosts.clone())), World::of_state(state(&gateway, hosts.clone())));
    bob.state.change_owner("bob");
    let mut waiting = Vec::new();
    for _ in 0..40 {
        waiting.push(ann.send("CONNECT slow.example:443 HTTP/1.1\r\n\r\n").await);
    }
    while names.most_waiting.load(Ordering::SeqCst) < 16 {
        tokio::task::yield_now().await;
    }
    let answer = bob.ask("CONNECT good.example:443 HTTP/1.1\r\n\r\n").await;
    assert!(answer.contains("leads to an address that is loopback"), "{answer}");
    // Clients that go away leave their look-ups behind, which still count.
    drop(waiting);
    let again = ann.send("CONNECT slow.example:443 HTTP/1.1\r\n\r\n").await;
    let answered = tokio::time::timeout(Duration::from_millis(200), again.receive()).await;
    assert!(answered.is_err() && names.most_waiting.load(Ordering::SeqCst) == 16);
    names.is_over.store(true, Ordering::SeqCst);
}

#[tokio::test]
async fn tunnels_to_port_80_need_a_rule_for_it() {
    let request = "CONNECT good.example:80 HTTP/1.1\r\n\r\n";
    let world = World::new(allow("good.example".into()), &[], EgressSettings::default());
    let answer = world.ask(request).await;
    assert!(
        answer.starts_with("HTTP/1.1 403 Forbidden: good.example takes requests for http:// URLs on port 80"),
        "{answer}"
    );
    assert!(answer.contains(r#"{"allow": ["good.example:80"]}"#), "{answer}");
    assert_eq!(world.state.list_decisions().decisions[0].refused.as_deref(), Some("a tunnel to port 80"));
    world.state.change_policy(allow("good.example:80".into()));
    assert!(world.ask(request).await.contains("leads to an address that is loopback"));
}

/// Serves a tunnel to a server of the test. Returns what the server has received and the client's whole answer.
async fn through_tunnel(host: &str, takes_any_bytes: bool, sent: &[u8]) -> (Vec<u8>, Vec<u8>, Option<&'static str>) {
    let (server, port) = listener().await;
    let received = tokio::spawn(async move {
        let mut all = Vec::new();
        server.accept().await.unwrap().0.read_to_end(&mut all).await.unwrap();
        all
    });
    let (here, there) = tokio::io::duplex(1 << 16);
    let ((reader, writer), (back_reader, back_writer)) = (tokio::io::split(here), tokio::io::split(there));
    let client = Streams::opener(FrameReader::new(reader, StreamFrame::cap), writer);
    let (_acceptor, mut accepted) = Streams::acceptor(FrameReader::new(back_reader, StreamFrame::cap), back_writer);
    let stream = client.open().await.unwrap();
    stream.send(sent.to_vec().into()).await.unwrap();
    stream.end().await.unwrap();
    let (other_end, host) = (client::Client::Stream(accepted.recv().await.unwrap()), HostName::parse(host).unwrap());
    let served = async move {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let traffic = traffic::Traffic::new(None, None, Default::default());
        let rules = tunnel::TunnelRules { host: &host, takes_any_bytes };
        let connection = traffic::Connection::new(&traffic);
        let served = tunnel::serve(&other_end, &mut socket, Default::default(), &rules, &connection).await;
        served.err().and_then(|error| tunnel::refusal(&error))
    };
    let (refusal, answer) = tokio::join!(served, async {
        let mut all = Vec::new();
        while let Ok(Some(bytes)) = stream.receive().await {
            all.extend_from_slice(&bytes);
        }
        all
    });
    (received.await.unwrap(), answer, refusal)
}

#[tokio::test]
async fn tls_in_tunnels_names_the_host_of_the_request() {
    const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let hello = tls_hello::testing::client_hello;
    let refused = |text| Some(text);
    for (host, takes_any_bytes, sent, expected) in [
        ("good.example", false, hello("GOOD.example"), None),
        ("good.example", true, hello("good.example"), None),
        ("good.example", false, hello("evil.example"), refused("its TLS names another host")),
        ("good.example", true, hello("evil.example"), refused("its TLS names another host")),
        ("good.example", false, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(), refused("it is not TLS")),
        ("good.example", true, b"SSH-2.0-x\r\n".to_vec(), None),
        ("good.example", false, b"\x16\x03\x01\x00\x05\x02\0\0\x01\0".to_vec(), refused("its TLS cannot be read")),
        ("127.0.0.1", false, hello("good.example"), None),
        ("good.example", true, Vec::new(), None),
    ] {
        let (received, answer, refusal) = through_tunnel(host, takes_any_bytes, &sent).await;
        assert_eq!(refusal, expected, "{host} {takes_any_bytes} {sent:?}");
        assert_eq!(received, if expected.is_none() { sent } else { Vec::new() });
        assert!(answer.starts_with(ESTABLISHED) && (answer.len() > ESTABLISHED.len()) == expected.is_some());
    }
}

#[tokio::test]
async fn hostile_response_heads_are_bounded() {
    let (server, port) = listener().await;
    let world = World::new(allow(format!("good.example:{port}")), &[port], EgressSettings::default());
    tokio::spawn(async move {
        for endless in ["\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "http/1.1 200 OK\r\n"] {
            let (mut socket, _) = server.accept().await.unwrap();
            while socket.write_all(endless.as_bytes()).await.is_ok() {}
        }
    });
    for expected in ["not HTTP", "announces its response for ever", "not HTTP"] {
        let answer = world.ask(&format!("GET http://good.example:{port}/ HTTP/1.1\r\n\r\n")).await;
        assert!(answer.contains("HTTP/1.1 502 ") && answer.contains(expected), "{answer}");
    }
}

#[tokio::test]
async fn unreachable_servers_and_bad_requests_are_answered() {
    let (server, port) = listener().await;
    drop(server);
    let world = World::new(
        NetworkPolicy::allowing(&[format!("good.example:{port}"), "none.example".into()]).unwrap(),
        &[port],
        EgressSettings::default(),
    );
    for (request, expected) in [
        (format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n"), "HTTP/1.1 502 cannot connect to good.example"),
        ("CONNECT none.example:443 HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 502 none.example cannot be resolved"),
        ("\x16\x03\x01 this is TLS".to_owned(), "HTTP/1.1 400 this is no HTTP request"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "HTTP/1.1 400 a proxy takes"),
        ("GET http://a/ HTTP/1.1\r\nX: y\n\n".to_owned(), "HTTP/1.1 400 "),
        (format!("GET http://a/{} HTTP/1.1\r\n\r\n", "x".repeat(40_000)), "HTTP/1.1 431 "),
    ] {
        let answer = world.ask(&request).await;
        assert!(answer.starts_with(expected), "{request:.60}: {answer}");
    }
    assert_eq!(world.state.list_decisions().decisions.len(), 2, "what is no request is no decision");
}

#[tokio::test]
async fn bytes_after_a_request_are_counted() {
    let (server, port) = listener().await;
    let settings = EgressSettings { max_bytes: Some(1_000_000), ..EgressSettings::default() };
    let world = World::new(allow(format!("good.example:{port}")), &[port], settings);
    let stream = world.send(&format!("GET http://good.example:{port}/ HTTP/1.1\r\n\r\n")).await;
    // The server takes its time, and the client pumps.
    let (mut socket, _) = server.accept().await.unwrap();
    let pumping = async { while stream.send(vec![b'x'; 50_000].into()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), pumping).await.expect("the volume is used up");
    assert!(read_head(&mut socket).await.starts_with("GET / "));
    assert!(world.state.traffic.is_used_up());
}

#[tokio::test]
async fn volume_of_a_sandbox_is_limited() {
    let (server, port) = listener().await;
    let settings = EgressSettings { max_bytes: Some(100_000), ..EgressSettings::default() };
    let world = World::new(allow(format!("good.example:{port}")), &[port], settings);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = server.accept().await.unwrap();
            tokio::spawn(async move { while socket.write_all(&[b'x'; 4096]).await.is_ok() {} });
        }
    });
    let request = format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n");
    let length = world.ask(&request).await.len();
    assert!(length <= 100_100, "{length}");
    let answer = world.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden: this sandbox has used up"), "{answer}");
}

/// A sandbox whose agent has handed over the proxy port.
struct HandedOver {
    state: Arc<SandboxState>,
    proxy: SocketAddr,
    /// The agent's socket and its end of the connection.
    agent: (std::net::TcpListener, UnixStream),
    served: JoinHandle<()>,
}

impl HandedOver {
    fn new(policy: NetworkPolicy, ports: &[u16], settings: EgressSettings) -> Self {
        let World { state, .. } = World::new(policy, ports, settings);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (proxy, (agent, connection)) = (listener.local_addr().unwrap(), UnixStream::pair().unwrap());
        send_descriptor(&agent, &listener).unwrap();
        let served = tokio::spawn(serve_listener(connection, proxy, state.clone()));
        Self { state, proxy, agent: (listener, agent), served }
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.proxy).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        client
    }

    /// A tunnel that is established.
    async fn tunnel(&self, port: u16) -> TcpStream {
        let mut client = self.send(&format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n")).await;
        assert_eq!(read_head(&mut client).await, "HTTP/1.1 200 Connection established\r\n\r\n");
        client
    }
}

/// Whether the other side has ended a connection.
async fn has_ended(socket: &mut TcpStream) -> bool {
    socket.read(&mut [0; 1]).await.unwrap_or(0) == 0
}

#[tokio::test]
async fn handed_over_connections_follow_the_policy() {
    let (server, port) = listener().await;
    let world = HandedOver::new(allow(format!("good.example:{port}")), &[port], EgressSettings::default());
    let mut client = world.tunnel(port).await;
    let (mut socket, _) = server.accept().await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let mut text = [0; 4];
    socket.read_exact(&mut text).await.unwrap();
    socket.write_all(&text).await.unwrap();
    client.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"ping");
    world.state.change_policy(NetworkPolicy::None);
    assert!(has_ended(&mut socket).await && has_ended(&mut client).await);
    let mut refused = String::new();
    let mut client = world.send(&format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n")).await;
    client.read_to_string(&mut refused).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden: the network policy none"), "{refused}");
    let decision = world.state.list_decisions().decisions.into_iter().find(|decision| decision.refused.is_none()).unwrap();
    assert_eq!((decision.sent_bytes, decision.received_bytes), (4, 4));
}

#[tokio::test]
async fn handed_over_connections_need_places() {
    let (server, port) = listener().await;
    // One owner has half of them.
    let settings = EgressSettings { max_connections: 4, ..EgressSettings::default() };
    let world = HandedOver::new(allow(format!("good.example:{port}")), &[port], settings);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push((world.tunnel(port).await, server.accept().await.unwrap().0));
    }
    // A third one waits in the queue of the system, until one of them has ended.
    let mut waiting = world.send(&format!("CONNECT good.example:{port} HTTP/1.1\r\n\r\n")).await;
    let early = tokio::time::timeout(Duration::from_millis(100), server.accept()).await;
    assert!(early.is_err());
    // The proxy learns that a client has gone, although the server says nothing.
    let (client, mut socket) = open.remove(0);
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(has_ended(&mut socket).await);
    assert!(read_head(&mut waiting).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn handed_over_connections_are_limited_in_volume() {
    let (server, port) = listener().await;
    let settings = EgressSettings { max_bytes: Some(1_000_000), ..EgressSettings::default() };
    let world = HandedOver::new(allow(format!("good.example:{port}")), &[port], settings);
    let mut client = world.tunnel(port).await;
    let (mut socket, _) = server.accept().await.unwrap();
    tokio::spawn(async move { while socket.write_all(&[b'x'; 100_000]).await.is_ok() {} });
    let mut received = Vec::new();
    let _ = client.read_to_end(&mut received).await;
    assert!(received.len() <= 1_000_000 && world.state.traffic.is_used_up());
}

#[tokio::test]
async fn handed_over_connections_end_with_the_agents_own() {
    let (server, port) = listener().await;
    let world = HandedOver::new(allow(format!("good.example:{port}")), &[port], EgressSettings::default());
    let mut client = world.tunnel(port).await;
    let (mut socket, _) = server.accept().await.unwrap();
    let HandedOver { agent: (listener, agent), proxy, served, .. } = world;
    drop(agent);
    served.await.unwrap();
    assert!(has_ended(&mut socket).await && has_ended(&mut client).await);
    // The agent accepts again.
    let _client = TcpStream::connect(proxy).await.unwrap();
    tokio::task::spawn_blocking(move || listener.accept().unwrap()).await.unwrap();
}

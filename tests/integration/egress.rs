//! What code in sandboxes without a network reaches: the hosts of its policy through the proxy of the manager, and nothing else. Servers on
//! loopback stand in for the world.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cellkeep::config::Paths;
use cellkeep::egress::{EgressSettings, Gateway, PrivateAddresses, Resolver};
use cellkeep::kernels;
use cellkeep::manager::{Manager, SandboxChoice, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::server::{Server, printed};
use crate::support::{PATIENCE, TestSandbox, TestSession};

in_every_sandbox!(
    code_reaches_hosts_of_its_policy_only,
    session_without_network_says_what_to_ask_for,
    thousand_connections_are_served,
    slow_readers_hold_up_nobody,
    network_changes_while_the_session_runs,
    killed_server_breaks_connections_and_serves_new_ones,
    network_of_a_sandbox_holds_for_its_sessions,
    failed_change_of_network_is_not_in_force,
    connections_are_held_by_the_server_alone,
);

/// A web server. `/endless` sends until the client goes; every other path is answered with its name.
struct World {
    port: u16,
    open: Arc<AtomicUsize>,
    most_open: Arc<AtomicUsize>,
}

impl World {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let world = Self { port, open: Arc::default(), most_open: Arc::default() };
        let (open, most_open) = (world.open.clone(), world.most_open.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let open = open.clone();
                most_open.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = answer(socket).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        world
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until so many connections are open.
    async fn until_open(&self, is_enough: impl Fn(usize) -> bool) {
        let waiting = async {
            while !is_enough(self.open.load(Ordering::SeqCst)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("connections open and close");
    }
}

async fn answer(socket: TcpStream) -> io::Result<()> {
    let (reader, mut writer) = socket.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(request) = lines.next_line().await? {
        while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
        let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
        if path == "/endless" {
            writer.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                writer.write_all(&[b'x'; 8192]).await?;
            }
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
        writer.write_all(head.as_bytes()).await?;
        if request.contains("http") {
            break;
        }
    }
    Ok(())
}

/// Names that lead to the loopback.
struct Names(HashMap<&'static str, [u8; 4]>);

impl Resolver for Names {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let address = self.0.get(host).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(vec![SocketAddr::from((*address, port))])
    }
}

/// A session that may reach `world.example` with the port of this world, where nothing else of the loopback is reached.
async fn session(place: TestSandbox, world: &World, policy: NetworkPolicy) -> TestSession {
    let loopback = [127, 0, 0, 1];
    let names =
        Names(HashMap::from([("world.example", loopback), ("own.example", loopback), ("evil.example", [10, 0, 0, 1])]));
    let private = PrivateAddresses::parse(&[world.address()]).unwrap();
    let settings = EgressSettings { private, ..EgressSettings::default() };
    let gateway = Gateway::with_resolver(settings, None, Arc::new(names));
    let spec = SessionSpec {
        kernel: kernels::find("python").unwrap().clone(),
        sandbox: SandboxChoice::Only(place.kind),
        limits: Limits::default(),
        network: policy,
        env: Vec::new(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: None,
    };
    let created = Manager::with_gateway(Paths::from_environment(), gateway).create(spec).await;
    TestSession::new(created.unwrap_or_else(|error| panic!("no session: {error}")))
}

fn allow_world(world: &World) -> NetworkPolicy {
    let port = world.port;
    let rules = [format!("world.example:{port}"), "own.example".into(), "evil.example".into()];
    NetworkPolicy::allowing(&rules).unwrap()
}

/// Functions that cells use. Errors become text.
const HELPERS: &str = r"
import asyncio, os, socket, ssl, urllib.error, urllib.request
def get(url):
    try:
        return urllib.request.urlopen(url, timeout=60).read().decode()
    except urllib.error.HTTPError as error:
        return f'{error.code} {error.reason} | {error.read().decode()}'
    except Exception as error:
        return f'{type(error).__name__} {error}'

async def tunnel(host, port):
    reader, writer = await asyncio.open_connection('127.0.0.1', 3128)
    writer.write(f'CONNECT {host}:{port} HTTP/1.1\r\n\r\n'.encode())
    head = await reader.readuntil(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 200 '), head
    return reader, writer
";

pub async fn code_reaches_hosts_of_its_policy_only(place: TestSandbox) {
    let world = World::start().await;
    let living = session(place, &world, allow_world(&world)).await;
    living.ok(HELPERS).await;
    let port = world.port;
    assert_eq!(living.ok(&format!("print(get('http://world.example:{port}/hello'))")).await.trim(), "/hello");
    let through = format!(
        "reader, writer = await tunnel('world.example', {port})\nwriter.write(b'GET /inner HTTP/1.1\\r\\n\\r\\n')\n\
         print((await reader.readuntil(b'/inner')).decode())"
    );
    assert!(living.ok(&through).await.ends_with("/inner\n"));
    for (url, expected) in [
        ("http://other.example/", "403 Forbidden: the network policy allow does not include other.example"),
        ("https://other.example/", "Tunnel connection failed: 403 Forbidden: the network policy allow does not include"),
        (&format!("http://world.example:{}/", port ^ 1), "does not include world.example on port"),
        ("http://own.example/", "leads to an address that is loopback"),
        ("https://evil.example/", "leads to an address that is private"),
        ("http://10.0.0.1/", "does not include 10.0.0.1"),
        ("http://[::ffff:169.254.169.254]/latest/meta-data/", "403 "),
    ] {
        let text = living.ok(&format!("print(get('{url}'))")).await;
        assert!(text.contains(expected), "{url}: {text}");
    }
    // There is no other way out.
    let code = format!(
        "def dial(host, port):\n    try: socket.create_connection((host, port), 5); return 'connected'\n    except OSError as error: return 'no'\n\
         print(dial('127.0.0.1', {port}), dial('192.0.2.1', 80), dial('world.example', {port}), os.listdir('/sys/class/net') if \
         os.path.exists('/sys/class/net') else ['lo'])"
    );
    assert_eq!(living.ok(&code).await.trim(), "no no no ['lo']");
    let certificates = "print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 0, os.environ['https_proxy'])";
    assert_eq!(living.ok(certificates).await.trim(), "True http://127.0.0.1:3128");
    living.end().await;
}

/// Their bytes pass through no other process: the server has accepted them on the agent's socket.
async fn connections_are_held_by_the_server_alone(place: TestSandbox) {
    let world = World::start().await;
    let living = session(place, &world, allow_world(&world)).await;
    living.ok(HELPERS).await;
    // The proxy's end of the connection: its local port is 3128, its state is 1, and the tenth field is its number.
    let code = format!(
        "reader, writer = await tunnel('world.example', {})\nrows = [row.split() for row in open('/proc/net/tcp')][1:]\n\
         print(*[row[9] for row in rows if row[1].endswith(':0C38') and row[3] == '01'])",
        world.port
    );
    let number = living.ok(&code).await;
    let name = format!("socket:[{}]", number.trim());
    let mut held =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    assert!(held.any(|link| link.to_string_lossy() == name), "{name}");
    living.end().await;
}

async fn session_without_network_says_what_to_ask_for(place: TestSandbox) {
    let living = place.session("python").await;
    living.ok(HELPERS).await;
    let text = living.ok("print(get('http://pypi.org/'), get('https://pypi.org/'), sep='\\n---\\n')").await;
    let (plain, tls) = text.split_once("---").unwrap();
    assert!(plain.contains("403") && plain.contains("policy of this sandbox is `none`"), "{text}");
    assert!(tls.contains("403 Forbidden: this sandbox has no network. Ask for the network \"packages\""), "{text}");
    living.end().await;
}

async fn thousand_connections_are_served(place: TestSandbox) {
    let world = World::start().await;
    let living = session(place, &world, allow_world(&world)).await;
    living.ok(HELPERS).await;
    let code = format!(
        "async def one(number):\n    reader, writer = await tunnel('world.example', {})\n    writer.write(f'GET /n{{number}} \
         HTTP/1.1\\r\\n\\r\\n'.encode())\n    text = await reader.readuntil(f'/n{{number}}'.encode())\n    writer.close()\n    return \
         text.endswith(f'/n{{number}}'.encode())\nresults = await asyncio.gather(*[one(number) for number in range(1000)])\n\
         print(sum(results), len(results))",
        world.port
    );
    assert_eq!(living.ok(&code).await.trim(), "1000 1000");
    assert!(world.most_open.load(Ordering::SeqCst) <= 256, "connections are bounded");
    world.until_open(|open| open == 0).await;
    living.end().await;
}

async fn slow_readers_hold_up_nobody(place: TestSandbox) {
    let world = World::start().await;
    let living = session(place, &world, allow_world(&world)).await;
    living.ok(HELPERS).await;
    let port = world.port;
    let stuck = format!(
        "stuck = [await tunnel('world.example', {port}) for _ in range(50)]\nfor reader, writer in stuck:\n    \
         writer.transport.pause_reading()\n    writer.write(b'GET /endless HTTP/1.1\\r\\n\\r\\n')\nprint(len(stuck))"
    );
    assert_eq!(living.ok(&stuck).await.trim(), "50");
    world.until_open(|open| open == 50).await;
    let quick = format!("print([get('http://world.example:{port}/quick') for _ in range(20)].count('/quick'))");
    assert_eq!(living.ok(&quick).await.trim(), "20");
    living.ok("for _, writer in stuck: writer.transport.abort()").await;
    world.until_open(|open| open == 0).await;
    living.end().await;
}

/// Code that asks for URLs of the loopback, which are excepted from the proxy otherwise.
const BY_PROXY: &str = "os.environ['no_proxy'] = os.environ['NO_PROXY'] = ''\n";

async fn network_changes_while_the_session_runs(place: TestSandbox) {
    let world = World::start().await;
    let private = format!("--egress-private={}", world.address());
    let server = Server::start("egress", place, &["--allow-network=allow", &private]).await;
    let client = server.client();
    let held = client.create(json!({"kernel": "python"})).await;
    held.ok(&format!("{HELPERS}{BY_PROXY}")).await;
    let get = format!("print(get('http://{}/x'))", world.address());
    assert!(held.ok(&get).await.contains("policy of this sandbox is `none`"));
    let policy = json!({"allow": [world.address(), "*.Example.com."]});
    let view = client.patch(&held.path(""), json!({"network": policy})).await.is(200);
    assert_eq!(view["network"], json!({"allow": [world.address(), "*.example.com"]}));
    assert_eq!(held.ok(&get).await, "/x\n");
    // The server's own port is no more reachable than the rest of the machine.
    let own = client.address();
    client.patch(&held.path(""), json!({"network": {"allow": [format!("localhost:{}", own.port())]}})).await.is(200);
    let text = held.ok(&format!("print(get('http://localhost:{}/v1/sessions'))", own.port())).await;
    assert!(text.contains("403") && text.contains("loopback"), "{text}");
    client.patch(&held.path(""), json!({"network": "none"})).await.is(200);
    assert!(held.ok(&get).await.contains("policy of this sandbox is `none`"));
    refuses_bad_policies(&server, &held.path("")).await;
    let network = client.get(&held.path("/network")).await.is(200);
    let decisions = network["decisions"].as_array().unwrap();
    let allowed = decisions.iter().find(|decision| decision["allowed"] == true).unwrap();
    assert_eq!((&allowed["host"], &allowed["port"]), (&json!("127.0.0.1"), &json!(world.port)), "{network}");
    assert!(allowed["received_bytes"].as_u64().unwrap() > 0 && network["policy"] == "none", "{network}");
    assert!(decisions.iter().any(|decision| decision["reason"] == "its address is loopback"), "{network}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    let audit = command.arg("audit").arg("--data").arg(server.data()).output().unwrap();
    let audit = String::from_utf8(audit.stdout).unwrap();
    for action in ["egress.allowed", "egress.refused"] {
        let line = audit.lines().find(|line| line.contains(action)).unwrap_or_else(|| panic!("no {action} in {audit}"));
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["session"].is_string() && line["target"].is_string(), "{line}");
    }
    server.end().await;
}

async fn refuses_bad_policies(server: &Server, path: &str) {
    let client = server.client();
    for (network, field) in [
        (json!("some"), "is not a network"),
        (json!({"allow": []}), "names no host"),
        (json!({"allow": ["*"]}), "star"),
        (json!({"allow": ["a..b"]}), "empty part"),
        (json!({"allow": ["x".repeat(300)]}), "253"),
        (json!({"allow": vec!["a.com"; 101]}), "101"),
        (json!({"allow": ["10.0.0.1"]}), "--egress-private"),
        (json!({"allow": ["0x7f.1:1"]}), "--egress-private"),
        (json!({"allow": ["https://a.com/"]}), "number"),
    ] {
        for reply in [
            client.patch(path, json!({"network": network})).await,
            client.post("/v1/sessions", json!({"network": network})).await,
        ] {
            let problem = reply.problem(422, "bad_network");
            assert!(
                problem["field"] == "network" && problem["detail"].as_str().unwrap().contains(field),
                "{network}: {problem}"
            );
        }
    }
    let open = client.patch(path, json!({"network": "open"})).await.problem(403, "network_not_allowed");
    assert!(open["detail"].as_str().unwrap().contains("--allow-network=open"), "{open}");
}

async fn killed_server_breaks_connections_and_serves_new_ones(place: TestSandbox) {
    let world = World::start().await;
    let private = format!("--egress-private={}", world.address());
    let mut server = Server::start("egress-killed", place, &["--allow-network=allow", &private]).await;
    let client = server.client();
    let held = client.create(json!({"kernel": "python", "network": {"allow": [world.address()]}})).await;
    held.ok(&format!("{HELPERS}{BY_PROXY}")).await;
    let code = format!(
        "reader, writer = await tunnel('127.0.0.1', {0})\nwriter.write(b'GET /endless HTTP/1.1\\r\\n\\r\\n')\nawait reader.read(1)\nprint('begun', flush=True)\ntry:\n    while await \
         reader.read(1 << 16): pass\nexcept OSError: pass\nprint('broken', flush=True)\nprint(get('http://127.0.0.1:{0}/again'))",
        world.port
    );
    held.begin("c", &code).await;
    held.cell_until("c", |cell| printed(cell).contains("begun")).await;
    server.kill().await;
    world.until_open(|open| open == 0).await;
    server.start_again().await;
    assert_eq!(printed(&held.finished("c").await), "begun\nbroken\n/again\n");
    server.end().await;
}

async fn failed_change_of_network_is_not_in_force(place: TestSandbox) {
    let world = World::start().await;
    let private = format!("--egress-private={}", world.address());
    let server = Server::start("egress-failed", place, &["--allow-network=allow", &private]).await;
    let client = server.client();
    let policy = json!({"allow": [world.address()]});
    let sandbox = client.post("/v1/sandboxes", json!({"kernel": "python", "network": policy})).await.is(201);
    let sandbox_path = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let (held, guest) =
        tokio::join!(client.create(json!({"kernel": "python"})), client.create(json!({"sandbox": sandbox["id"]})),);
    let get = format!("print(get('http://{}/x'))", world.address());
    for (session, text) in [(&held, "policy of this sandbox is `none`"), (&guest, "/x\n")] {
        session.ok(&format!("{HELPERS}{BY_PROXY}")).await;
        assert!(session.ok(&get).await.contains(text));
    }
    let journal = rusqlite::Connection::open(server.paths().journal()).unwrap();
    for table in ["sessions", "sandboxes"] {
        let trigger =
            format!("CREATE TRIGGER no_{table} BEFORE UPDATE OF spec ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END");
        journal.execute_batch(&trigger).unwrap();
    }
    assert!(client.patch(&held.path(""), json!({"network": policy})).await.status >= 500);
    assert!(client.patch(&sandbox_path, json!({"network": "none"})).await.status >= 500);
    assert!(held.ok(&get).await.contains("policy of this sandbox is `none`"));
    assert_eq!(guest.ok(&get).await, "/x\n");
    journal.execute_batch("DROP TRIGGER no_sessions; DROP TRIGGER no_sandboxes").unwrap();
    // What is shown is what holds.
    let enforced = |view: &Value| view["isolation"]["enforced"].to_string();
    assert!(enforced(&held.view().await).contains("\"no network\""));
    let of_hosts = "network: 1 named hosts, through the server's proxy alone";
    assert!(enforced(&guest.view().await).contains(of_hosts) && !enforced(&guest.view().await).contains("\"no network\""));
    let view = client.patch(&held.path(""), json!({"network": policy})).await.is(200);
    assert!(enforced(&view).contains(of_hosts), "{view}");
    // A session that has ended has no network to change.
    client.delete(&sandbox_path).await.is(204);
    client.patch(&guest.path(""), json!({"network": "none"})).await.problem(409, "session_gone");
    assert_eq!(guest.view().await["network"], policy);
    server.end().await;
}

async fn network_of_a_sandbox_holds_for_its_sessions(place: TestSandbox) {
    let world = World::start().await;
    let private = format!("--egress-private={}", world.address());
    let mut server = Server::start("egress-shared", place, &["--allow-network=allow", &private]).await;
    let client = server.client();
    let sandbox = client.post("/v1/sandboxes", json!({"kernel": "python"})).await.is(201);
    let path = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let held = client.create(json!({"sandbox": sandbox["id"]})).await;
    held.ok(&format!("{HELPERS}{BY_PROXY}")).await;
    let policy = json!({"allow": [world.address()]});
    let refused = client.patch(&held.path(""), json!({"network": policy})).await.problem(409, "network_fixed");
    assert!(refused["detail"].as_str().unwrap().contains(&path), "{refused}");
    client.patch(&path, json!({"network": "open"})).await.problem(403, "network_not_allowed");
    assert_eq!(client.patch(&path, json!({"network": policy})).await.is(200)["network"], policy);
    let get = format!("print(get('http://{}/x'))", world.address());
    assert_eq!((held.ok(&get).await.as_str(), &held.view().await["network"]), ("/x\n", &policy));
    server.kill().await;
    server.start_again().await;
    assert_eq!(held.ok(&get).await, "/x\n");
    held.delete().await;
    client.delete(&path).await.is(204);
    server.end().await;
}

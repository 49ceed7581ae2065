//! What the way out of a sandbox costs: downloads and requests through the server's proxy, and the same without sandbox and proxy.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, ensure};
use cellkeep::egress::{EgressSettings, Gateway, PrivateAddresses};
use cellkeep::manager::{Manager, SandboxChoice, Session, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::sandbox::SandboxKind;

use crate::peer::docker_is_missing;
use crate::table::{Figure, Goal, Rows, percentile};
use crate::{Lab, run};

const ROUNDS: usize = 10;
const LENGTH: usize = 2 << 30;
const REQUESTS: usize = 100;
/// 60 % of the throughput without the proxy.
const DOWNLOAD: Goal = Goal::AtMostTimes(1.0 / 0.6);
const REQUEST: Goal = Goal::Within(0.001);
const PROGRAM: &str = include_str!("../peers/proxy.py");

/// Seconds of downloads and of requests.
#[derive(Default)]
struct Times {
    downloads: Vec<f64>,
    requests: Vec<f64>,
}

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let server = serve()?;
    let mut kinds = vec![SandboxKind::Process];
    match docker_is_missing(lab) {
        None => kinds.push(SandboxKind::Docker),
        Some(reason) => rows.skip("docker sandbox", reason),
    }
    let mut sandboxes = Vec::new();
    for kind in kinds {
        let mut session = session(lab, kind, server).await?;
        run(&mut session, PROGRAM).await?;
        sandboxes.push((kind, session, Times::default()));
    }
    let mut direct = Times::default();
    for round in 1..=ROUNDS {
        eprintln!("proxy: round {round} of {ROUNDS}");
        let on_host = |call: String| async move { run_on_host(lab, &call) };
        direct.measure(server, "None", on_host).await?;
        for (_, session, times) in &mut sandboxes {
            times.measure(server, "('127.0.0.1', 3128)", async |call| run(session, &call).await).await?;
        }
    }
    for (kind, session, times) in sandboxes {
        session.destroy().await?;
        let [download, loopback] = [&times, &direct].map(|times| percentile(&times.downloads, 50));
        let what = format!("2 GB through a tunnel, {kind} sandbox");
        rows.compare(&what, Figure::Seconds(download), "loopback", Figure::Seconds(loopback), Some(DOWNLOAD));
        let [request, loopback] = [&times, &direct].map(|times| percentile(&times.requests, 50));
        rows.value(&format!("added to a request, {kind} sandbox"), Figure::Seconds(request - loopback), Some(REQUEST));
    }
    rows.note(format!(
        "medians of {ROUNDS} downloads and {} requests each, alternating; one CPU for a sandbox",
        ROUNDS * REQUESTS
    ));
    rows.note("loopback: the same client and server without sandbox and proxy, each with a CPU of its own".to_owned());
    Ok(rows)
}

impl Times {
    /// Adds one round of a client that runs calls of the program.
    async fn measure(
        &mut self,
        server: SocketAddr,
        proxy: &str,
        mut run: impl AsyncFnMut(String) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let server = format!("('{}', {})", server.ip(), server.port());
        let seconds = run(format!("print(download({server}, {proxy}, {LENGTH}))")).await?;
        self.downloads.push(seconds.trim().parse().context("the client's answer")?);
        let seconds = run(format!("print(*requests({server}, {proxy}, {REQUESTS}))")).await?;
        for each in seconds.split_whitespace() {
            self.requests.push(each.parse().context("the client's answer")?);
        }
        Ok(())
    }
}

fn run_on_host(lab: &Lab, call: &str) -> anyhow::Result<String> {
    let output = Command::new(&lab.python).arg("-c").arg(format!("{PROGRAM}\n{call}")).output().context("python")?;
    ensure!(output.status.success(), "python: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A session whose code reaches the server alone.
async fn session(lab: &Lab, kind: SandboxKind, server: SocketAddr) -> anyhow::Result<Session> {
    let private = PrivateAddresses::parse(&[server.to_string()]).map_err(anyhow::Error::msg)?;
    let gateway = Gateway::new(EgressSettings { private, ..EgressSettings::default() }, None);
    let spec = SessionSpec {
        kernel: lab.kernel.clone(),
        sandbox: SandboxChoice::Only(kind),
        limits: Limits::default(),
        network: NetworkPolicy::allowing(&[server.to_string()]).map_err(anyhow::Error::msg)?,
        env: Vec::new(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: None,
    };
    Ok(Manager::with_gateway(lab.paths.clone(), gateway).create(spec).await?)
}

/// A server on loopback that answers `/LENGTH` with so many bytes.
fn serve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            std::thread::spawn(move || answer(&socket));
        }
    });
    Ok(address)
}

fn answer(mut socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut lines = BufReader::new(socket).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let length = request.split(['/', ' ']).filter_map(|word| word.parse::<usize>().ok()).next().unwrap_or_default();
    let (head, block) = (format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"), vec![b'x'; 1 << 18]);
    socket.write_all(head.as_bytes())?;
    let mut left = length;
    while left > 0 {
        let now = left.min(block.len());
        socket.write_all(&block[..now])?;
        left -= now;
    }
    Ok(())
}

//! A warm kernel behind a server: what one execution costs a client.

use std::time::Instant;

use super::client::{Jupyter, Kernel, OverPost, OverSocket};
use super::servers::{Server, jupyter_is_missing};
use crate::Lab;
use crate::peer::{Launch, Peer};
use crate::table::{Figure, Goal, Rows, percentile};

/// Kernels of the same make differ by some percent for all their lives, so there are several sets of them.
const SETS: usize = 3;
const BLOCKS: usize = 10;
const ROUNDS: usize = 10;
const WARM_UP: usize = 20;
/// How much slower than jupyter_client on a kernel without a server, and by how many seconds.
const GOALS: (Goal, Goal) = (Goal::AtMostTimes(1.15), Goal::Within(0.001));
const CLIENT: &str = "jupyter_client";
const SERVER: &str = "jupyter_server";

/// Seconds of each execution.
#[derive(Default)]
struct Times {
    socket: Vec<f64>,
    /// As `socket`, on a server with `--durability full`.
    flushed: Vec<f64>,
    post: Vec<f64>,
    client: Vec<f64>,
    server: Vec<f64>,
}

pub(crate) fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let missing = jupyter_is_missing(lab);
    let ours = Server::cellkeep(lab, &[])?;
    let flushed = Server::cellkeep(lab, &["--durability", "full"])?;
    let theirs = missing.is_none().then(|| Server::jupyter(lab)).transpose()?;
    let mut times = Times::default();
    for set in 1..=SETS {
        eprintln!("cells: kernels {set} of {SETS}");
        measure_set(lab, &Servers { ours: &ours, flushed: &flushed, theirs: theirs.as_ref() }, &mut times)?;
    }
    let mut rows = Rows::default();
    for (name, seconds) in [("WebSocket", &times.socket), ("POST", &times.post)] {
        compare(&mut rows, name, seconds, CLIENT, &times.client);
        if theirs.is_some() {
            compare(&mut rows, name, seconds, SERVER, &times.server);
        }
    }
    for percent in [50, 95] {
        let (flushed, normal) = (percentile(&times.flushed, percent), percentile(&times.socket, percent));
        let what = format!("WebSocket, --durability full, p{percent}");
        rows.compare(&what, Figure::Seconds(flushed), "--durability normal", Figure::Seconds(normal), None);
    }
    if let Some(reason) = missing {
        rows.skip(SERVER, reason);
    }
    rows.note(format!(
        "{} executions each, in blocks of {ROUNDS} that alternate, on {SETS} sets of kernels; nothing else on the server",
        times.socket.len()
    ));
    rows.note(format!("{CLIENT}: on a kernel of its own, straight over ZeroMQ; {SERVER}: by the same WebSocket client"));
    Ok(rows)
}

fn compare(rows: &mut Rows, name: &str, ours: &[f64], peer: &str, theirs: &[f64]) {
    let is_goal = peer == CLIENT;
    for (percent, goal) in [(50, Some(GOALS.0)), (95, None), (99, None)] {
        let (ours, theirs) = (percentile(ours, percent), percentile(theirs, percent));
        let what = format!("{name}, p{percent}");
        rows.compare(&what, Figure::Seconds(ours), peer, Figure::Seconds(theirs), goal.filter(|_| is_goal));
    }
    if is_goal {
        let more = percentile(ours, 50) - percentile(theirs, 50);
        rows.value(&format!("{name}, p50: more than {peer}"), Figure::Seconds(more), Some(GOALS.1));
    }
}

struct Servers<'a> {
    ours: &'a Server,
    flushed: &'a Server,
    theirs: Option<&'a Server>,
}

fn measure_set(lab: &Lab, servers: &Servers<'_>, times: &mut Times) -> anyhow::Result<()> {
    let Servers { ours, flushed, theirs } = *servers;
    let flushed_session = flushed.session()?;
    let mut flushed_socket = OverSocket::open(flushed.address, &flushed_session)?;
    let sessions = [ours.session()?, ours.session()?];
    let mut socket = OverSocket::open(ours.address, &sessions[0])?;
    let mut post = OverPost::open(ours.address, &sessions[1])?;
    let mut jupyter = theirs.map(|server| Jupyter::open(server.address, &server.kernel()?)).transpose()?;
    let mut client = Peer::start(lab)?;
    client.open(CLIENT, &Launch::bare(lab))?;
    client.rounds(WARM_UP)?;
    rounds(&mut socket, WARM_UP)?;
    rounds(&mut post, WARM_UP)?;
    rounds(&mut flushed_socket, WARM_UP)?;
    if let Some(jupyter) = &mut jupyter {
        rounds(jupyter, WARM_UP)?;
    }
    for _ in 0..BLOCKS {
        times.socket.extend(rounds(&mut socket, ROUNDS)?);
        times.client.extend(client.rounds(ROUNDS)?);
        times.post.extend(rounds(&mut post, ROUNDS)?);
        times.flushed.extend(rounds(&mut flushed_socket, ROUNDS)?);
        if let Some(jupyter) = &mut jupyter {
            times.server.extend(rounds(jupyter, ROUNDS)?);
        }
    }
    flushed.http()?.ask("DELETE", &format!("/v1/sessions/{flushed_session}"), None)?;
    let mut http = ours.http()?;
    for session in sessions {
        http.ask("DELETE", &format!("/v1/sessions/{session}"), None)?;
    }
    Ok(())
}

fn rounds(kernel: &mut dyn Kernel, count: usize) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        kernel.run("1")?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

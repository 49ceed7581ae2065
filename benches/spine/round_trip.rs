//! A warm kernel: what one execution costs through agent and link, and straight over ZeroMQ.

use std::time::Instant;

use cellkeep::manager::Session;
use cellkeep::sandbox::SandboxKind;

use crate::peer::{Launch, Peer};
use crate::table::{Figure, Goal, Rows, percentile};
use crate::{Lab, run};

/// Two kernels of the same make differ by some percent for all their lives, so there are several.
const PAIRS: usize = 5;
const BLOCKS: usize = 10;
const ROUNDS: usize = 10;
const WARM_UP: usize = 20;
const CLIENTS: [&str; 2] = ["jupyter_client", "pyzmq"];

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let mut peer = Peer::start(lab)?;
    let mut ours = Vec::new();
    let mut theirs = CLIENTS.map(|_| Vec::new());
    for pair in 1..=PAIRS {
        eprintln!("round trip: kernels {pair} of {PAIRS}");
        let session = lab.session(SandboxKind::Process).await?;
        let measured = measure_pair(lab, &session, &mut peer, &mut ours, &mut theirs).await;
        session.destroy().await?;
        measured?;
    }
    let mut rows = Rows::default();
    for (client, theirs) in CLIENTS.into_iter().zip(&theirs) {
        for (percent, goal) in [(50, Some(Goal::AtMostTimes(1.10))), (95, None), (99, None)] {
            let figure = |seconds: &[f64]| Figure::Seconds(percentile(seconds, percent));
            // The goal is set against the usual client; the other shows what there is left to gain.
            let goal = goal.filter(|_| client == CLIENTS[0]);
            rows.compare(&format!("p{percent}"), figure(&ours), client, figure(theirs), goal);
        }
    }
    rows.note(format!("{} executions each, in blocks of {ROUNDS} that alternate, on {PAIRS} pairs of kernels", ours.len()));
    rows.note("pyzmq: the least a client can do, two sockets and nothing of the answers but their end".to_owned());
    Ok(rows)
}

async fn measure_pair(
    lab: &Lab,
    session: &Session,
    peer: &mut Peer,
    ours: &mut Vec<f64>,
    theirs: &mut [Vec<f64>; CLIENTS.len()],
) -> anyhow::Result<()> {
    peer.open(&Launch::bare(lab))?;
    rounds(session, WARM_UP).await?;
    for client in CLIENTS {
        peer.rounds(client, WARM_UP)?;
    }
    for _ in 0..BLOCKS {
        ours.extend(rounds(session, ROUNDS).await?);
        for (client, seconds) in CLIENTS.into_iter().zip(theirs.iter_mut()) {
            seconds.extend(peer.rounds(client, ROUNDS)?);
        }
    }
    peer.close()
}

async fn rounds(session: &Session, count: usize) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        run(session, "1").await?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

//! A warm kernel: what one execution costs through agent and link, and straight over ZeroMQ.

use std::time::Instant;

use cellkeep::manager::Session;
use cellkeep::sandbox::SandboxKind;

use crate::peer::{Launch, Peer};
use crate::table::{Figure, Goal, Rows, percentile};
use crate::{Lab, run};

/// Kernels of the same make differ by some percent for all their lives, so there are several sets of them.
const SETS: usize = 5;
const BLOCKS: usize = 10;
const ROUNDS: usize = 10;
const WARM_UP: usize = 20;
const CLIENTS: [&str; 2] = ["jupyter_client", "pyzmq"];

/// Seconds of executions on one or more sets of kernels: one kernel for us, one for each other client.
#[derive(Default)]
struct Times {
    ours: Vec<f64>,
    theirs: [Vec<f64>; CLIENTS.len()],
}

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let mut all = Times::default();
    let mut ratios = Vec::new();
    for set in 1..=SETS {
        eprintln!("round trip: kernels {set} of {SETS}");
        let mut session = lab.session(SandboxKind::Process).await?;
        let measured = measure_set(lab, &mut session).await;
        session.destroy().await?;
        let times = measured?;
        ratios.push(percentile(&times.ours, 50) / percentile(&times.theirs[0], 50));
        all.ours.extend(times.ours);
        all.theirs.iter_mut().zip(times.theirs).for_each(|(all, one)| all.extend(one));
    }
    let mut rows = Rows::default();
    for (client, theirs) in CLIENTS.into_iter().zip(&all.theirs) {
        for (percent, goal) in [(50, Some(Goal::AtMostTimes(1.10))), (95, None), (99, None)] {
            let figure = |seconds: &[f64]| Figure::Seconds(percentile(seconds, percent));
            // The goal is set against the usual client; the other shows what there is left to gain.
            let goal = goal.filter(|_| client == CLIENTS[0]);
            rows.compare(&format!("p{percent}"), figure(&all.ours), client, figure(theirs), goal);
        }
    }
    rows.note(format!(
        "{} executions each, in blocks of {ROUNDS} that alternate, on {SETS} sets of kernels",
        all.ours.len()
    ));
    let (lowest, highest) = (percentile(&ratios, 0), percentile(&ratios, 100));
    rows.note(format!("ratio of p50 to {}'s, set by set: {lowest:.2}x to {highest:.2}x", CLIENTS[0]));
    rows.note("pyzmq: the least a client can do, two sockets and nothing of the answers but their end".to_owned());
    Ok(rows)
}

async fn measure_set(lab: &Lab, session: &mut Session) -> anyhow::Result<Times> {
    let mut peers = Vec::new();
    for client in CLIENTS {
        let mut peer = Peer::start(lab)?;
        peer.open(client, &Launch::bare(lab))?;
        peer.rounds(WARM_UP)?;
        peers.push(peer);
    }
    rounds(session, WARM_UP).await?;
    let mut times = Times::default();
    for _ in 0..BLOCKS {
        times.ours.extend(rounds(session, ROUNDS).await?);
        for (peer, seconds) in peers.iter_mut().zip(&mut times.theirs) {
            seconds.extend(peer.rounds(ROUNDS)?);
        }
    }
    Ok(times)
}

async fn rounds(session: &mut Session, count: usize) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        run(session, "1").await?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

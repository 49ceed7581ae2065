//! A cold kernel: from the wish for one to its first result.

use std::time::Instant;

use cellkeep::sandbox::SandboxKind;

use crate::peer::{Launch, Peer, docker_is_missing};
use crate::table::{Figure, Goal, Rows, percentile};
use crate::{Lab, run};

const ROUNDS: usize = 10;
const GOAL: Goal = Goal::AtMostTimes(1.15);

/// One kind of sandbox and what it is measured against.
struct Pair {
    kind: SandboxKind,
    peer_name: &'static str,
    launch: Launch,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let mut pairs = vec![Pair::new(SandboxKind::Process, "bare process", Launch::bare(lab))];
    let missing = match docker_is_missing(lab) {
        Some(reason) => Some(reason),
        None => lab.manager.sandbox(SandboxKind::Docker).await.err().map(|error| error.to_string()),
    };
    match missing {
        None => pairs.push(Pair::new(SandboxKind::Docker, "docker run", Launch::docker(lab))),
        Some(reason) => rows.skip("docker sandbox", reason),
    }
    let mut peer = Peer::start(lab)?;
    // The first time everything is read from disk.
    for round in 0..=ROUNDS {
        eprintln!("start: round {round} of {ROUNDS}");
        for pair in &mut pairs {
            let (ours, theirs) = (first_result(lab, pair.kind).await?, peer.first_result(&pair.launch)?);
            if round > 0 {
                pair.ours.push(ours);
                pair.theirs.push(theirs);
            }
        }
    }
    for Pair { kind, peer_name, ours, theirs, .. } in &pairs {
        for (name, percent, goal) in [("median", 50, Some(GOAL)), ("fastest", 0, None)] {
            let figure = |seconds: &[f64]| Figure::Seconds(percentile(seconds, percent));
            rows.compare(&format!("{kind} sandbox, {name}"), figure(ours), peer_name, figure(theirs), goal);
        }
    }
    rows.note(format!("{ROUNDS} starts each, alternating, after one that warms the disk cache"));
    Ok(rows)
}

impl Pair {
    fn new(kind: SandboxKind, peer_name: &'static str, launch: Launch) -> Self {
        Self { kind, peer_name, launch, ours: Vec::new(), theirs: Vec::new() }
    }
}

async fn first_result(lab: &Lab, kind: SandboxKind) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut session = lab.session(kind).await?;
    let ran = run(&mut session, "1").await;
    let seconds = began.elapsed().as_secs_f64();
    session.destroy().await?;
    ran.map(|_| seconds)
}

//! From the start of a server to its first answer, and what it then takes of memory.

use std::time::Duration;

use super::servers::{Server, jupyter_is_missing};
use crate::Lab;
use crate::table::{Figure, Goal, Rows, percentile};

const ROUNDS: usize = 10;
const GOAL: Goal = Goal::Within(0.050);
const MEMORY_GOAL: Goal = Goal::Below(30 << 20);
/// What a server does right after its start is done by then.
const SETTLE: Duration = Duration::from_millis(300);

/// Seconds and bytes of each start.
#[derive(Default)]
struct Starts {
    seconds: Vec<f64>,
    bytes: Vec<u64>,
}

impl Starts {
    fn take(&mut self, server: &Server) -> anyhow::Result<()> {
        std::thread::sleep(SETTLE);
        self.seconds.push(server.started_in);
        self.bytes.push(server.resident()?);
        Ok(())
    }

    fn time(&self, percent: usize) -> Figure {
        Figure::Seconds(percentile(&self.seconds, percent))
    }

    fn memory(&self) -> Figure {
        Figure::Bytes(self.bytes.iter().copied().max().unwrap_or(0))
    }
}

pub(crate) fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let missing = jupyter_is_missing(lab);
    let (mut ours, mut theirs) = (Starts::default(), Starts::default());
    // The first time everything is read from disk.
    drop(Server::cellkeep(lab, &[])?);
    for round in 1..=ROUNDS {
        eprintln!("server start: round {round} of {ROUNDS}");
        ours.take(&Server::cellkeep(lab, &[])?)?;
        if missing.is_none() {
            theirs.take(&Server::jupyter(lab)?)?;
        }
    }
    let figures = [
        ("to the first answer, median", ours.time(50), theirs.time(50), Some(GOAL)),
        ("to the first answer, slowest", ours.time(100), theirs.time(100), None),
        ("resident memory, largest", ours.memory(), theirs.memory(), Some(MEMORY_GOAL)),
    ];
    for (what, ours, theirs, goal) in figures {
        match missing {
            None => rows.compare(what, ours, "jupyter_server", theirs, goal),
            Some(_) => rows.value(what, ours, goal),
        }
    }
    if let Some(reason) = missing {
        rows.skip("jupyter_server", reason);
    }
    rows.note(format!("{ROUNDS} starts each, alternating, on empty data folders; asked GET /healthz, and GET /api there"));
    Ok(rows)
}

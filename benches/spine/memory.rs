//! What an agent takes of this machine's memory for itself alone.

use std::time::Duration;

use anyhow::Context;
use cellkeep::manager::Session;
use cellkeep::sandbox::SandboxKind;

use crate::flood::{BIG, FLOOD};
use crate::table::{Figure, Goal, Rows};
use crate::{Lab, run};

/// From `/proc/PID/smaps_rollup`, bytes.
struct Memory {
    /// Heap, stack and data that was written to: what one more agent costs for certain.
    anonymous: u64,
    /// The same and the pages of its program that no other agent has mapped at the moment.
    private: u64,
}

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    // A second agent, as on any machine with more than one session: their program is then shared, as it is in life.
    let other = lab.session(SandboxKind::Process).await?;
    let mut session = lab.session(SandboxKind::Process).await?;
    let measured = measure_session(&mut session).await;
    session.destroy().await?;
    other.destroy().await?;
    let mut rows = Rows::default();
    for (when, memory, goal) in measured? {
        rows.value(&format!("anonymous, {when}"), Figure::Bytes(memory.anonymous), goal);
        rows.value(&format!("private in all, {when}"), Figure::Bytes(memory.private), None);
    }
    rows.note("all: with the pages of the program that the other living agent has not touched".to_owned());
    Ok(rows)
}

async fn measure_session(session: &mut Session) -> anyhow::Result<[(&'static str, Memory, Option<Goal>); 3]> {
    let goal = Some(Goal::Below(1 << 20));
    run(session, "1").await?;
    let fresh = settled(session).await?;
    eprintln!("memory: flood");
    run(session, FLOOD).await?;
    let flooded = settled(session).await?;
    run(session, BIG).await?;
    let big = settled(session).await?;
    // The goal is for many small outputs; one that is huge shows whether anything holds on to it.
    Ok([("after the start", fresh, goal), ("after the flood", flooded, goal), ("after 50 MB in one piece", big, None)])
}

/// The memory once everything is acknowledged: an answer to a question says that what was sent before it has been read.
async fn settled(session: &Session) -> anyhow::Result<Memory> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    session.handle.usage().await?;
    let pid = session.record.agent.context("the sandbox has no agent process")?.pid;
    let path = format!("/proc/{pid}/smaps_rollup");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}; agents are root's to look at"))?;
    let bytes = |name: &str| -> anyhow::Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in {path}"))?;
        Ok(line.trim_matches([':', ' ', 'k', 'B']).parse::<u64>()? * 1024)
    };
    Ok(Memory { anonymous: bytes("Anonymous")?, private: bytes("Private_Clean")? + bytes("Private_Dirty")? })
}

//! Removes what dead managers left behind.

use std::time::Duration;

use super::{Liveness, SandboxError, SandboxRecord, agent_binary, process, records};
use crate::config::Paths;
use crate::ids::SandboxId;
use crate::sandbox::Sandbox;

/// Leftovers without a known owner are removed after this time without a change: younger ones may belong to a sandbox that
/// is being created.
const MIN_AGE: Duration = Duration::from_secs(600);

/// Destroys sandboxes whose owner has died (a one-shot command that was killed), except those that outlive their owner.
/// Removes folders and cgroups without a sandbox, and unused agents of other versions. Returns how many sandboxes were
/// destroyed.
pub async fn sweep(sandbox: &dyn Sandbox, paths: &Paths) -> Result<usize, SandboxError> {
    let mut swept = 0;
    for record in sandbox.list().await? {
        if !record.keep && is_orphaned(paths, &record) && sandbox.destroy(&record).await.is_ok() {
            swept += 1;
        }
    }
    records::remove_unreadable(paths, MIN_AGE)?;
    process::remove_empty_cgroups(MIN_AGE);
    let in_use: Vec<_> = records::all(paths)?.into_iter().map(|record| record.agent_binary).collect();
    agent_binary::remove_unused(&paths.agent(), &in_use, MIN_AGE);
    Ok(swept)
}

/// Removes the folder of a sandbox whose creator died before it wrote the record. Only for callers that know the creator is
/// dead; others leave it to [`sweep`].
pub fn remove_unfinished(paths: &Paths, sandbox: &SandboxId) -> Result<(), SandboxError> {
    match records::read(&records::folder(paths, sandbox)) {
        Some(_) => Ok(()),
        None => records::remove_folder(paths, sandbox),
    }
}

/// Whether a sandbox's owner is dead. If that cannot be observed, the sandbox must be old and have ended by itself.
fn is_orphaned(paths: &Paths, record: &SandboxRecord) -> bool {
    match record.owner.liveness() {
        Liveness::Running => false,
        Liveness::Dead => true,
        Liveness::Unknown => {
            let folder = records::folder(paths, &record.id);
            records::is_older(&folder, MIN_AGE) && !records::has_listener(&record.socket)
        }
    }
}

//! Clearing away what dead managers left behind.

use std::time::Duration;

use super::{SandboxError, SandboxRecord, Sight, agent_binary, process, records};
use crate::config::Paths;
use crate::ids::SessionId;
use crate::sandbox::Sandbox;

/// What nobody is known to own is left alone until nothing has changed in it for so long: it may be in the making.
const IN_THE_MAKING: Duration = Duration::from_secs(600);

/// Ends the sandboxes whose owner has died without ending them (killed in a one-shot run), but those meant to be kept.
/// Removes folders and cgroups of sandboxes that are no more, and agents of other versions that no sandbox uses. Returns how many
/// sandboxes were ended.
///
/// # Errors
/// [`SandboxError`] when they cannot be listed.
pub async fn sweep(sandbox: &dyn Sandbox, paths: &Paths) -> Result<usize, SandboxError> {
    let mut swept = 0;
    for record in sandbox.list().await? {
        if !record.keep && is_left_behind(paths, &record) && sandbox.destroy(&record).await.is_ok() {
            swept += 1;
        }
    }
    records::remove_unreadable(paths, IN_THE_MAKING)?;
    process::remove_empty_cgroups(IN_THE_MAKING);
    let in_use: Vec<_> = records::all(paths)?.into_iter().map(|record| record.agent_binary).collect();
    agent_binary::remove_unused(&paths.agent(), &in_use, IN_THE_MAKING);
    Ok(swept)
}

/// Removes what a maker has left that died before it could write a record: a folder, made before all else. For whoever knows that
/// it is dead, and need not wait to see.
///
/// # Errors
/// [`SandboxError::Io`].
pub fn remove_unfinished(paths: &Paths, session: &SessionId) -> Result<(), SandboxError> {
    match records::read(&records::folder(paths, session)) {
        Some(_) => Ok(()),
        None => records::remove_folder(paths, session),
    }
}

/// Whether a sandbox's owner is gone. Where that cannot be seen, the sandbox must be of our folder and have ended by itself.
fn is_left_behind(paths: &Paths, record: &SandboxRecord) -> bool {
    match record.owner.sight() {
        Sight::Running => false,
        Sight::Gone => true,
        Sight::OutOfSight => {
            let folder = records::folder(paths, &record.session);
            records::is_older(&folder, IN_THE_MAKING) && !records::somebody_listens(&record.socket)
        }
    }
}

//! The agent that this binary carries, written out so that sandboxes can mount it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The static agent, built by build.rs.
static AGENT: &[u8] = include_bytes!(env!("CELLKEEP_AGENT_BINARY"));

/// The path of the agent in `folder`, written there if need be. The name holds a hash of the content, so that sandboxes of
/// an earlier version keep the file they were started from.
///
/// # Errors
/// When it cannot be written.
pub(super) fn written_out(folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join(concat!("cellkeep-agent-", env!("CELLKEEP_AGENT_FINGERPRINT")));
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == AGENT.len() as u64) {
        return Ok(path);
    }
    fs::create_dir_all(folder)?;
    // The sandbox's uid must reach it, whatever the umask: the folder itself and the data folder that holds it.
    for reachable in [Some(folder), folder.parent()].into_iter().flatten() {
        let _ = fs::set_permissions(reachable, fs::Permissions::from_mode(0o755));
    }
    // Whole or not at all: another process may be doing the same.
    let temporary = folder.join(format!(".agent-{}", crate::ids::random_uuid()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&temporary)?;
    file.write_all(AGENT)?;
    // The mode at creation is cut by the umask; the sandbox's uid must be able to run it.
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    drop(file);
    fs::rename(&temporary, &path)?;
    Ok(path)
}

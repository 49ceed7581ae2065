//! The agent that this binary carries, written out so that sandboxes can mount it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::records::is_older;

/// The static agent, built by build.rs.
static AGENT: &[u8] = include_bytes!(env!("CELLKEEP_AGENT_BINARY"));

fn current(folder: &Path) -> PathBuf {
    folder.join(concat!("cellkeep-agent-", env!("CELLKEEP_AGENT_FINGERPRINT")))
}

/// The path of the agent in `folder`, written there if need be. The name holds a hash of the content, so that sandboxes of
/// an earlier version keep the file they were started from.
///
/// # Errors
/// When it cannot be written.
pub(super) fn written_out(folder: &Path) -> io::Result<PathBuf> {
    let path = current(folder);
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == AGENT.len() as u64) {
        // Its age is the time since its last use, by which another version tells whether it may be removed.
        let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
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

/// Removes the agents of other versions that are not `in_use` and were not for `min_age`, and what interrupted writes left.
pub(super) fn remove_unused(folder: &Path, in_use: &[PathBuf], min_age: Duration) {
    let current = current(folder);
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path != current && !in_use.contains(&path) && is_older(&path, min_age) {
            // It stays for the next sweep where it cannot be removed.
            let _ = fs::remove_file(path);
        }
    }
}

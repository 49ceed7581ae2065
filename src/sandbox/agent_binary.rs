//! The embedded agent binary, which is written to disk so that sandboxes can mount it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::records::is_older;
use crate::private_files;

/// The static agent, built by build.rs.
static AGENT: &[u8] = include_bytes!(env!("CELLKEEP_AGENT_BINARY"));

fn current(folder: &Path) -> PathBuf {
    folder.join(concat!("cellkeep-agent-", env!("CELLKEEP_AGENT_FINGERPRINT")))
}

/// Returns the path of the agent in `folder`, and writes it if it is missing. The name contains a hash of the content, so
/// that sandboxes of other versions keep the file they were started from.
pub(super) fn ensure_written(folder: &Path) -> io::Result<PathBuf> {
    let path = current(folder);
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == AGENT.len() as u64) {
        // The modification time is the time of the last use; another version removes binaries that are unused for long.
        let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        return Ok(path);
    }
    fs::create_dir_all(folder)?;
    // The sandbox's uid must be able to enter the folder and the data folder above it, whatever the umask.
    for reachable in [Some(folder), folder.parent()].into_iter().flatten() {
        let _ = fs::set_permissions(reachable, fs::Permissions::from_mode(private_files::enterable_mode()));
    }
    // Atomically: another process may be writing the same file.
    let temporary = folder.join(format!(".agent-{}", crate::ids::random_uuid()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&temporary)?;
    file.write_all(AGENT)?;
    // The umask reduced the mode at creation; the sandbox's uid must be able to execute the file.
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    drop(file);
    fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Removes agents of other versions that are not `in_use` and unused for `min_age`, and leftovers of interrupted writes.
pub(super) fn remove_unused(folder: &Path, in_use: &[PathBuf], min_age: Duration) {
    let current = current(folder);
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path != current && !in_use.contains(&path) && is_older(&path, min_age) {
            // On failure the next sweep tries again.
            let _ = fs::remove_file(path);
        }
    }
}

//! One folder per sandbox with its record, by which the sandbox is found after the death of the process that created it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{SandboxError, SandboxKind, SandboxRecord};
use crate::config::Paths;
use crate::ids::SandboxId;
use crate::private_files;

/// Paths of the agent's socket in a sandbox's folder: for the process sandbox and for containers.
pub(super) const SOCKETS: [&str; 2] = ["agent.sock", "sock/agent.sock"];

/// The folder of a sandbox.
pub(super) fn folder(paths: &Paths, sandbox: &SandboxId) -> PathBuf {
    paths.sandboxes().join(sandbox.as_str())
}

/// Creates the folder of a new sandbox, accessible only to our own user.
///
/// # Errors
/// [`SandboxError::Io`], also if it exists already.
pub(super) fn create_folder(paths: &Paths, sandbox: &SandboxId) -> Result<PathBuf, SandboxError> {
    let parent = paths.sandboxes();
    private_files::create_folder(&parent).map_err(SandboxError::io(format!("cannot create {}", parent.display())))?;
    let folder = folder(paths, sandbox);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .map_err(SandboxError::io(format!("cannot create {}", folder.display())))?;
    Ok(folder)
}

/// Writes the record into the sandbox's folder, atomically.
pub(super) fn write(folder: &Path, record: &SandboxRecord) -> Result<(), SandboxError> {
    let write = || -> io::Result<()> {
        let temporary = folder.join("record.tmp");
        fs::write(&temporary, serde_json::to_vec(record)?)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        fs::rename(temporary, folder.join("record.json"))
    };
    write().map_err(SandboxError::io(format!("cannot write the record in {}", folder.display())))
}

/// All records of one kind. Unreadable ones are skipped: another process may be creating or removing them.
///
/// # Errors
/// [`SandboxError::Io`] if the folder of all sandboxes cannot be read.
pub(super) fn list(paths: &Paths, kind: SandboxKind) -> Result<Vec<SandboxRecord>, SandboxError> {
    Ok(all(paths)?.into_iter().filter(|record| record.kind == kind).collect())
}

/// As [`list`], for all kinds.
pub(super) fn all(paths: &Paths) -> Result<Vec<SandboxRecord>, SandboxError> {
    Ok(folders(paths)?.iter().filter_map(|folder| read(folder)).collect())
}

/// The record in a sandbox's folder; `None` if there is none or it is unreadable.
pub(super) fn read(folder: &Path) -> Option<SandboxRecord> {
    serde_json::from_slice(&fs::read(folder.join("record.json")).ok()?).ok()
}

fn folders(paths: &Paths) -> Result<Vec<PathBuf>, SandboxError> {
    let parent = paths.sandboxes();
    match fs::read_dir(&parent) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(SandboxError::io(format!("cannot list {}", parent.display()))(error)),
    }
}

/// The name of the file with what only the server may know of a sandbox.
const PRIVATE: &str = "private.json";

/// Stores what only the server may know of a sandbox: in the sandbox's folder, which it does not see and only our own user can enter.
///
/// # Errors
/// [`SandboxError::Io`]
pub fn write_private(paths: &Paths, sandbox: &SandboxId, content: &[u8]) -> Result<(), SandboxError> {
    let path = folder(paths, sandbox).join(PRIVATE);
    let written = private_files::options().write(true).create(true).truncate(true).open(&path);
    let written = written.and_then(|mut file| file.write_all(content));
    written.map_err(SandboxError::io(format!("cannot write {}", path.display())))
}

/// What [`write_private`] has stored; `None` if nothing.
///
/// # Errors
/// [`SandboxError::Io`]
pub fn read_private(paths: &Paths, sandbox: &SandboxId) -> Result<Option<Vec<u8>>, SandboxError> {
    match fs::read(folder(paths, sandbox).join(PRIVATE)) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SandboxError::io("cannot read what is private of a sandbox")(error)),
    }
}

/// Removes folders without a readable record that have not changed for `min_age`. A folder whose socket has a listener
/// belongs to a live sandbox of another version, and is kept.
pub(super) fn remove_unreadable(paths: &Paths, min_age: Duration) -> Result<(), SandboxError> {
    let listens = |folder: &Path| SOCKETS.iter().any(|socket| has_listener(&folder.join(socket)));
    for folder in folders(paths)? {
        if read(&folder).is_none() && is_older(&folder, min_age) && !listens(&folder) {
            // On failure the next sweep tries again.
            let _ = fs::remove_dir_all(folder);
        }
    }
    Ok(())
}

/// Whether a file or folder exists and has not changed for `age`.
pub(super) fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age))
}

/// Whether a socket has a listener, in any PID namespace, without connecting to it: connecting a datagram socket to a stream
/// socket fails with EPROTOTYPE if there is a listener, else with ECONNREFUSED.
pub(super) fn has_listener(socket: &Path) -> bool {
    let result = UnixDatagram::unbound().and_then(|datagrams| datagrams.connect(socket));
    !result.is_err_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

/// Removes the folder of a sandbox. Idempotent.
pub(super) fn remove_folder(paths: &Paths, sandbox: &SandboxId) -> Result<(), SandboxError> {
    match fs::remove_dir_all(folder(paths, sandbox)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SandboxError::io("cannot remove the sandbox's folder")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn listener_is_detected_without_connecting() {
        let folder = std::env::temp_dir().join(format!("cellkeep-{}", crate::ids::random_uuid()));
        fs::create_dir(&folder).unwrap();
        let socket = folder.join("agent.sock");
        assert!(!has_listener(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(has_listener(&socket));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "no connection was made");
        drop(listener);
        assert!(!has_listener(&socket));
        fs::remove_dir_all(folder).unwrap();
    }
}

//! One folder per sandbox, with its record: what must be known to find the sandbox again after its maker's death.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{SandboxError, SandboxKind, SandboxRecord};
use crate::config::Paths;
use crate::ids::SessionId;

/// Where in a sandbox's folder agents listen: in the process sandbox, and in a container's own folder.
pub(super) const SOCKETS: [&str; 2] = ["agent.sock", "sock/agent.sock"];

/// The folder of a session's sandbox.
pub(super) fn folder(paths: &Paths, session: &SessionId) -> PathBuf {
    paths.sandboxes().join(session.as_str())
}

/// Makes it, for a new session and for our own user alone: what is in a sandbox has no business in here.
///
/// # Errors
/// [`SandboxError::Io`], also when it is there already.
pub(super) fn make_folder(paths: &Paths, session: &SessionId) -> Result<PathBuf, SandboxError> {
    let parent = paths.sandboxes();
    fs::create_dir_all(&parent).map_err(SandboxError::io(format!("cannot make {}", parent.display())))?;
    let folder = folder(paths, session);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .map_err(SandboxError::io(format!("cannot make {}", folder.display())))?;
    Ok(folder)
}

/// Writes the record into the sandbox's folder, whole or not at all.
///
/// # Errors
/// [`SandboxError::Io`].
pub(super) fn write(folder: &Path, record: &SandboxRecord) -> Result<(), SandboxError> {
    let write = || -> io::Result<()> {
        let temporary = folder.join("record.tmp");
        fs::write(&temporary, serde_json::to_vec(record)?)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        fs::rename(temporary, folder.join("record.json"))
    };
    write().map_err(SandboxError::io(format!("cannot write the record in {}", folder.display())))
}

/// All records of one kind. What cannot be read is left out: it may be half made or half removed by another process.
///
/// # Errors
/// [`SandboxError::Io`] when the folder of all sandboxes cannot be read.
pub(super) fn list(paths: &Paths, kind: SandboxKind) -> Result<Vec<SandboxRecord>, SandboxError> {
    Ok(all(paths)?.into_iter().filter(|record| record.kind == kind).collect())
}

/// The records of every kind, likewise.
///
/// # Errors
/// As [`list`].
pub(super) fn all(paths: &Paths) -> Result<Vec<SandboxRecord>, SandboxError> {
    Ok(folders(paths)?.iter().filter_map(|folder| read(folder)).collect())
}

/// The record in a sandbox's folder. `None` where there is none that can be read.
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

/// Removes folders without a record that can be read, once nothing has changed in them for `min_age`. One on whose socket
/// somebody listens is another version's, and living.
///
/// # Errors
/// As [`list`].
pub(super) fn remove_unreadable(paths: &Paths, min_age: Duration) -> Result<(), SandboxError> {
    let listens = |folder: &Path| SOCKETS.iter().any(|socket| somebody_listens(&folder.join(socket)));
    for folder in folders(paths)? {
        if read(&folder).is_none() && is_older(&folder, min_age) && !listens(&folder) {
            // It stays for the next sweep where it cannot be removed.
            let _ = fs::remove_dir_all(folder);
        }
    }
    Ok(())
}

/// Whether a file or a folder is there, and has not changed for `age`.
pub(super) fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age))
}

/// Whether a socket has an owner, in whatever PID namespace, who does not notice the question: a stream that is asked for
/// datagrams refuses for its kind, but only if there is one.
pub(super) fn somebody_listens(socket: &Path) -> bool {
    let asked = UnixDatagram::unbound().and_then(|datagrams| datagrams.connect(socket));
    !asked.is_err_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
}

/// Removes the folder with all that is in it; fine if it is gone already.
///
/// # Errors
/// [`SandboxError::Io`].
pub(super) fn remove_folder(paths: &Paths, session: &SessionId) -> Result<(), SandboxError> {
    match fs::remove_dir_all(folder(paths, session)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SandboxError::io("cannot remove the session's folder")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_is_asked_for_its_owner_without_being_dialled() {
        let folder = std::env::temp_dir().join(format!("cellkeep-{}", crate::ids::random_uuid()));
        fs::create_dir(&folder).unwrap();
        let socket = folder.join("agent.sock");
        assert!(!somebody_listens(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(somebody_listens(&socket));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "no connection has come");
        drop(listener);
        assert!(!somebody_listens(&socket));
        fs::remove_dir_all(folder).unwrap();
    }
}

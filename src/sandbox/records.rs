//! One folder per sandbox, with its record: what must be known to find the sandbox again after its maker's death.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{SandboxError, SandboxKind, SandboxRecord};
use crate::config::Paths;
use crate::ids::SessionId;

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
    let parent = paths.sandboxes();
    let entries = match fs::read_dir(&parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SandboxError::io(format!("cannot list {}", parent.display()))(error)),
    };
    let records = entries.flatten().filter_map(|entry| {
        let record: SandboxRecord = serde_json::from_slice(&fs::read(entry.path().join("record.json")).ok()?).ok()?;
        (record.kind == kind).then_some(record)
    });
    Ok(records.collect())
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

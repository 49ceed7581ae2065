//! Files of a session that its container mounts: copies of its own, since code could lock files that containers share, and
//! see whether they are locked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::sandbox::SandboxError;
use crate::sandbox::certificates;
use crate::sandbox::environment::WORKSPACE;

/// See the [module](self) text.
pub(super) struct SessionFiles {
    pub agent: PathBuf,
    /// `/etc/passwd` and `/etc/group`, with the session's uid alone.
    pub accounts: [PathBuf; 2],
    /// A folder with the certificates that programs trust.
    pub certificates: Option<PathBuf>,
    pub uid: u32,
}

impl SessionFiles {
    /// Writes them into the session's folder, which only our user can enter.
    pub fn write(folder: &Path, agent: &Path, certificates: Option<&[u8]>, uid: u32) -> Result<Self, SandboxError> {
        let own = Self {
            agent: folder.join("agent"),
            accounts: ["passwd", "group"].map(|name| folder.join(name)),
            certificates: certificates.map(|_| folder.join("certificates")),
            uid,
        };
        let write = || {
            fs::copy(agent, &own.agent)?;
            fs::set_permissions(&own.agent, fs::Permissions::from_mode(0o755))?;
            for (from, to) in certificates.iter().zip(&own.certificates) {
                certificates::write_folder(from, to)?;
            }
            let [passwd, group] = &own.accounts;
            for (path, content) in [
                (passwd, format!("cellkeep:x:{uid}:{uid}::{WORKSPACE}:/bin/bash\n")),
                (group, format!("cellkeep:x:{uid}:\n")),
            ] {
                fs::write(path, content)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
            }
            Ok(())
        };
        write().map_err(SandboxError::io(format!("cannot write the session's files in {}", folder.display())))?;
        Ok(own)
    }
}

//! The workspace of a session. Files are transferred by the agent, which alone resolves paths inside the sandbox: this
//! process never opens a file that a sandbox can write.
//!
//! ```text
//! Workspace   what the agent can do with one entry
//!   ├ Walk      a folder entry by entry, also with everything below it
//!   ├ OpenFile  a file as a stream
//!   ├ pack      a folder as an archive
//!   └ Staging   several files that appear together: a form, or an archive that is unpacked
//! ```

mod open_file;
mod owner;
mod pack;
mod staging;
mod tar_reader;
mod unpack;
mod walk;
mod workspace;
mod zip_reader;

use std::sync::Arc;

use thiserror::Error;

use super::{ServiceError, SessionService};
use crate::agent_protocol::{RefusalCause, Refused};
use crate::counters::{UseCounter, UseGuard};
use crate::ids::{Access, PrincipalId, SandboxId, SessionId};
use crate::link::LinkError;
use crate::session::SessionError;

pub use crate::agent_protocol::{EntryKind, FileEntry, FileStat, PutOptions, decode_name};
pub use open_file::OpenFile;
use owner::WorkspaceOwner;
pub use pack::ArchiveFormat;
pub(super) use staging::check_path;
pub use staging::{Staging, Summary};
pub(super) use tar_reader::read as read_tar;
pub(super) use unpack::ArchiveSink;
pub use walk::{FilePage, Position, WorkspaceEntry};
pub use workspace::Workspace;

/// The largest file that is transferred, and the largest archive that is unpacked, in bytes.
pub const MAX_FILE: usize = 1 << 30;
/// The largest number of entries of an archive, and the largest size of what is in it, in bytes.
const MAX_ARCHIVE_ENTRIES: usize = 100_000;
pub const MAX_ARCHIVE_BYTES: u64 = 4 << 30;

/// Why a file cannot be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("{0}")]
    Missing(String),
    /// The path is not allowed, or the file is of a kind that does not support the operation.
    #[error("{0}")]
    Refused(String),
    /// Something else exists at the path.
    #[error("{0}")]
    Exists(String),
    /// The workspace has no room for the file.
    #[error("{0}; remove files, or make sessions with more limits.disk_mb")]
    Full(String),
    /// Too many transfers are in progress.
    #[error("{0}")]
    Busy(String),
    #[error("the file is larger than {} MB", MAX_FILE >> 20)]
    TooLarge,
    /// An archive, or a folder that is to be packed, has too many entries or bytes.
    #[error("{0}")]
    ArchiveTooLarge(String),
    /// The bytes are no archive, or the archive has something that is not unpacked.
    #[error("{0}")]
    BadArchive(String),
    /// The sender disconnected, or the file was replaced or truncated while it was read.
    #[error("the transfer of the file was interrupted")]
    Cut,
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl FileError {
    /// The same error with the path that it is about.
    fn at(self, path: &str) -> Self {
        let about = |reason: String| format!("{}: {reason}", printable(path));
        match self {
            Self::Missing(reason) => Self::Missing(about(reason)),
            Self::Refused(reason) => Self::Refused(about(reason)),
            Self::Exists(reason) => Self::Exists(about(reason)),
            other => other,
        }
    }
}

impl From<SessionError> for FileError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Link(LinkError::Refused(Refused { reason, cause })) => match cause {
                RefusalCause::NotFound => Self::Missing(reason),
                RefusalCause::NoSpace => Self::Full(reason),
                RefusalCause::Exists => Self::Exists(reason),
                RefusalCause::Busy => Self::Busy(reason),
                RefusalCause::Interrupted => Self::Cut,
                RefusalCause::Invalid => Self::Refused(reason),
            },
            error => Self::Service(error.into()),
        }
    }
}

/// A name or path of the agent for people. Bytes that are not UTF-8 are replaced.
pub fn printable(name: &str) -> String {
    decode_name(name).map_or_else(|| name.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A path below a folder. An empty folder is the workspace itself.
fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Bounds what archives occupy at once, in total and by principal.
#[derive(Debug, Default)]
pub(super) struct ArchiveLoad {
    /// Archives that are being unpacked. Each has a thread.
    unpacking: Arc<UseCounter>,
    /// Bytes of memory of archives that are being written: a zip file has an index at its end.
    packing: Arc<UseCounter>,
}

/// Archives that are unpacked at once, in total and for one principal.
const MAX_UNPACKING: (u64, u64) = (16, 2);
/// Memory of archives that are written at once, in total and for one principal, in bytes.
const MAX_PACKING: (u64, u64) = (256 << 20, 96 << 20);

impl ArchiveLoad {
    fn count(
        counter: &Arc<UseCounter>,
        principal: &PrincipalId,
        amount: u64,
        (most, own): (u64, u64),
    ) -> Result<UseGuard, FileError> {
        let admitted = counter.try_count(principal, amount, |used| used.total + amount <= most && used.own + amount <= own);
        admitted.ok_or_else(|| FileError::Busy("too many archives are being packed or unpacked; retry".to_owned()))
    }

    fn unpack(&self, principal: &PrincipalId) -> Result<UseGuard, FileError> {
        Self::count(&self.unpacking, principal, 1, MAX_UNPACKING)
    }

    fn pack(&self, principal: &PrincipalId, bytes: u64) -> Result<UseGuard, FileError> {
        Self::count(&self.packing, principal, bytes, MAX_PACKING)
    }
}

impl SessionService {
    /// The workspace of a session.
    pub fn workspace(&self, id: &SessionId, access: &Access) -> Result<Workspace, ServiceError> {
        let session = self.0.registry.find_and_touch(id, access)?;
        Ok(Workspace::new(WorkspaceOwner::Session(session), self.0.archive_load.clone()))
    }

    /// The workspace of a sandbox, of a session or by itself.
    pub fn workspace_of_sandbox(&self, id: &SandboxId, access: &Access) -> Result<Workspace, ServiceError> {
        // Checks that it exists and is no guest's.
        self.find_sandbox(id, access)?;
        match self.0.sandboxes.find_visible(id, access) {
            Some(sandbox) => Ok(Workspace::new(WorkspaceOwner::Sandbox(sandbox), self.0.archive_load.clone())),
            None => self.workspace(id.as_session(), access),
        }
    }
}

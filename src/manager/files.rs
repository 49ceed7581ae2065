//! A kept session's workspace. Files move through the agent, which alone resolves names inside the sandbox: nothing here
//! ever opens a file that a sandbox can write.

use bytes::Bytes;
use thiserror::Error;

use super::{Keeper, KeeperError};
use crate::agent_protocol::{AnswerBody, FILE_CHUNK, Request};
use crate::ids::SessionId;
use crate::link::LinkError;
use crate::session::SessionError;

pub use crate::agent_protocol::FileEntry;

/// The largest file that is moved, bytes.
pub const MAX_FILE: usize = 1 << 30;

/// Why a file cannot be had or put.
#[derive(Debug, Error)]
pub enum FileError {
    /// There is none of that name.
    #[error("{0}")]
    Missing(String),
    /// The name or the file is not one that can be used so.
    #[error("{0}")]
    Refused(String),
    /// It is larger than is moved.
    #[error("the file is larger than {} MB", MAX_FILE >> 20)]
    TooLarge,
    /// The session cannot be asked.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl From<SessionError> for FileError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Link(LinkError::Refused(reason)) => {
                let is_missing = ["no such file", "No such file", "os error 2"].iter().any(|words| reason.contains(words));
                if is_missing { Self::Missing(reason) } else { Self::Refused(reason) }
            }
            error => Self::Keeper(error.into()),
        }
    }
}

impl Keeper {
    async fn ask_about_files(
        &self,
        (id, principal): (&SessionId, Option<&str>),
        request: Request,
        data: Bytes,
    ) -> Result<(AnswerBody, Bytes), FileError> {
        Ok(self.handle(id, principal)?.ask_agent(request, data).await?)
    }

    /// The entries of a folder (empty: the workspace itself), and whether there are more than one answer holds.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn list_files(
        &self,
        session: (&SessionId, Option<&str>),
        path: &str,
    ) -> Result<(Vec<FileEntry>, bool), FileError> {
        match self.ask_about_files(session, Request::FileList { path: path.to_owned() }, Bytes::new()).await? {
            (AnswerBody::Listing { entries, truncated }, _) => Ok((entries, truncated)),
            _ => Err(SessionError::Link(LinkError::Unexpected).into()),
        }
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn read_file(&self, session: (&SessionId, Option<&str>), path: &str) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        loop {
            let request = Request::FileGet { path: path.to_owned(), offset: bytes.len() as u64 };
            let (_, piece) = self.ask_about_files(session, request, Bytes::new()).await?;
            bytes.extend_from_slice(&piece);
            if piece.len() < FILE_CHUNK {
                return Ok(bytes);
            }
            if bytes.len() > MAX_FILE {
                return Err(FileError::TooLarge);
            }
        }
    }

    /// Writes a file, with the folders that it needs.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn write_file(&self, session: (&SessionId, Option<&str>), path: &str, bytes: Bytes) -> Result<(), FileError> {
        let mut offset = 0;
        loop {
            let piece = bytes.slice(offset..bytes.len().min(offset + FILE_CHUNK));
            let length = piece.len();
            let request = Request::FilePut { path: path.to_owned(), offset: offset as u64 };
            self.ask_about_files(session, request, piece).await?;
            offset += length;
            if offset >= bytes.len() {
                return Ok(());
            }
        }
    }

    /// Removes a file or an empty folder.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn remove_file(&self, session: (&SessionId, Option<&str>), path: &str) -> Result<(), FileError> {
        self.ask_about_files(session, Request::FileRemove { path: path.to_owned() }, Bytes::new()).await.map(drop)
    }
}

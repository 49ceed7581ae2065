//! A kept session's workspace. Files move through the agent, which alone resolves names inside the sandbox: nothing here
//! ever opens a file that a sandbox can write.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use thiserror::Error;

use super::{Keeper, KeeperError};
use crate::agent_protocol::{AnswerBody, FILE_CHUNK, RefusalCause, Refused, Request};
use crate::ids::SessionId;
use crate::link::LinkError;
use crate::session::{SessionError, SessionHandle, Upload};

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
    /// The workspace has no room for it.
    #[error("{0}; remove files, or make sessions with more limits.disk_mb")]
    Full(String),
    /// Too many are on their way.
    #[error("{0}")]
    Busy(String),
    /// It is larger than is moved.
    #[error("the file is larger than {} MB", MAX_FILE >> 20)]
    TooLarge,
    /// The sender went away in the middle, or the file was replaced or got shorter while it was read.
    #[error("the file was cut off")]
    Cut,
    /// The session cannot be asked.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl From<SessionError> for FileError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Link(LinkError::Refused(Refused { reason, cause })) => match cause {
                RefusalCause::NotFound => Self::Missing(reason),
                RefusalCause::NoSpace => Self::Full(reason),
                RefusalCause::Busy => Self::Busy(reason),
                RefusalCause::Interrupted => Self::Cut,
                RefusalCause::Invalid => Self::Refused(reason),
            },
            error => Self::Keeper(error.into()),
        }
    }
}

/// A file that is being read.
struct Reading {
    handle: SessionHandle,
    path: String,
    size: u64,
    inode: u64,
    offset: u64,
    /// A piece that is there already.
    next: Option<Bytes>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, FileError> {
        let left = self.size - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let mut bytes = match self.next.take() {
            Some(bytes) => bytes,
            None => {
                let piece = piece(&self.handle, &self.path, self.offset).await?;
                if piece.inode != self.inode {
                    return Err(FileError::Cut);
                }
                piece.bytes
            }
        };
        if bytes.is_empty() {
            return Err(FileError::Cut);
        }
        // It may have grown meanwhile: what was promised is told.
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        self.offset += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }
}

/// Bytes of a file, and which file of which size it was then.
struct FilePiece {
    size: u64,
    inode: u64,
    bytes: Bytes,
}

/// A file's bytes from an offset on.
async fn piece(handle: &SessionHandle, path: &str, offset: u64) -> Result<FilePiece, FileError> {
    match handle.ask_agent(Request::FileGet { path: path.to_owned(), offset }, Bytes::new()).await? {
        (AnswerBody::File { size, inode }, bytes) => Ok(FilePiece { size, inode, bytes }),
        _ => Err(SessionError::Link(LinkError::Unexpected).into()),
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

    /// A file's size, and its bytes piece by piece: no more than a piece of it is ever in memory.
    ///
    /// # Errors
    /// [`FileError`], and of the stream where the file is replaced or gets shorter while it is read.
    pub async fn read_file(
        &self,
        session: (&SessionId, Option<&str>),
        path: &str,
    ) -> Result<(u64, impl Stream<Item = Result<Bytes, FileError>> + use<>), FileError> {
        let handle = self.handle(session.0, session.1)?;
        let FilePiece { size, inode, bytes } = piece(&handle, path, 0).await?;
        if size > MAX_FILE as u64 {
            return Err(FileError::TooLarge);
        }
        let reading = Reading { handle, path: path.to_owned(), size, inode, offset: 0, next: Some(bytes) };
        Ok((size, stream::try_unfold(reading, Reading::next)))
    }

    /// Writes a file, with the folders that it needs, from pieces of any size. With the last of them it is there as a whole; until then
    /// what was there stays, so that the workspace needs room for both.
    ///
    /// # Errors
    /// [`FileError`]; then what was there stays.
    pub async fn write_file<E>(
        &self,
        session: (&SessionId, Option<&str>),
        path: &str,
        pieces: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), FileError> {
        let mut pieces = std::pin::pin!(pieces);
        // Each piece is a use of the session: a slow file does not come to one that nobody uses.
        let used = || self.handle(session.0, session.1);
        let mut upload = Upload::new(used()?, path);
        let mut waiting = BytesMut::new();
        while let Some(piece) = pieces.next().await.transpose().map_err(|_| FileError::Cut)? {
            waiting.extend_from_slice(&piece);
            if upload.length() + waiting.len() as u64 > MAX_FILE as u64 {
                return Err(FileError::TooLarge);
            }
            // What is left may be the last piece.
            while waiting.len() > FILE_CHUNK {
                upload.push(waiting.split_to(FILE_CHUNK).freeze()).await?;
            }
            used()?;
        }
        Ok(upload.finish(waiting.freeze()).await?)
    }

    /// Removes a file or an empty folder.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn remove_file(&self, session: (&SessionId, Option<&str>), path: &str) -> Result<(), FileError> {
        self.ask_about_files(session, Request::FileRemove { path: path.to_owned() }, Bytes::new()).await.map(drop)
    }
}

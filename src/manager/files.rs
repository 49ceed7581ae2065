//! The workspace of a session. Files are transferred by the agent, which alone resolves paths inside the sandbox: this
//! process never opens a file that a sandbox can write.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use thiserror::Error;

use super::{ServiceError, SessionService};
use crate::agent_protocol::{AnswerBody, FILE_CHUNK, RefusalCause, Refused, Request};
use crate::ids::{Access, SessionId};
use crate::link::LinkError;
use crate::session::{SessionError, SessionHandle, Upload};

pub use crate::agent_protocol::FileEntry;

/// The largest file that is transferred, in bytes.
pub const MAX_FILE: usize = 1 << 30;

/// Why a file cannot be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("{0}")]
    Missing(String),
    /// The path is not allowed, or the file is of a kind that does not support the operation.
    #[error("{0}")]
    Refused(String),
    /// The workspace has no room for the file.
    #[error("{0}; remove files, or make sessions with more limits.disk_mb")]
    Full(String),
    /// Too many transfers are in progress.
    #[error("{0}")]
    Busy(String),
    #[error("the file is larger than {} MB", MAX_FILE >> 20)]
    TooLarge,
    /// The sender disconnected, or the file was replaced or truncated while it was read.
    #[error("the transfer of the file was interrupted")]
    Cut,
    #[error(transparent)]
    Service(#[from] ServiceError),
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
            error => Self::Service(error.into()),
        }
    }
}

/// The state of a file stream.
struct FileRead {
    handle: SessionHandle,
    path: String,
    size: u64,
    inode: u64,
    offset: u64,
    /// A chunk that was read already.
    next: Option<Bytes>,
}

impl FileRead {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, FileError> {
        let left = self.size - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let mut bytes = match self.next.take() {
            Some(bytes) => bytes,
            None => {
                let chunk = read_chunk(&self.handle, &self.path, self.offset).await?;
                if chunk.inode != self.inode {
                    return Err(FileError::Cut);
                }
                chunk.bytes
            }
        };
        if bytes.is_empty() {
            return Err(FileError::Cut);
        }
        // The file may have grown. The stream ends at the size that was announced.
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        self.offset += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }
}

/// Bytes of a file, with the identity and size of the file at that time.
struct FileChunk {
    size: u64,
    inode: u64,
    bytes: Bytes,
}

async fn read_chunk(handle: &SessionHandle, path: &str, offset: u64) -> Result<FileChunk, FileError> {
    match handle.ask_agent(Request::FileGet { path: path.to_owned(), offset }, Bytes::new()).await? {
        (AnswerBody::File { size, inode }, bytes) => Ok(FileChunk { size, inode, bytes }),
        _ => Err(SessionError::Link(LinkError::Unexpected).into()),
    }
}

impl SessionService {
    async fn file_request(
        &self,
        id: &SessionId,
        access: &Access,
        request: Request,
    ) -> Result<(AnswerBody, Bytes), FileError> {
        Ok(self.handle(id, access)?.ask_agent(request, Bytes::new()).await?)
    }

    /// The entries of a folder, and whether the list was truncated. An empty path is the workspace itself.
    pub async fn list_files(
        &self,
        id: &SessionId,
        access: &Access,
        path: &str,
    ) -> Result<(Vec<FileEntry>, bool), FileError> {
        match self.file_request(id, access, Request::FileList { path: path.to_owned() }).await? {
            (AnswerBody::Listing { entries, truncated }, _) => Ok((entries, truncated)),
            _ => Err(SessionError::Link(LinkError::Unexpected).into()),
        }
    }

    /// The size of a file, and a stream of its bytes that holds one chunk in memory at a time. The stream fails if the file
    /// is replaced or truncated while it is read.
    pub async fn read_file(
        &self,
        id: &SessionId,
        access: &Access,
        path: &str,
    ) -> Result<(u64, impl Stream<Item = Result<Bytes, FileError>> + use<>), FileError> {
        let handle = self.handle(id, access)?;
        let FileChunk { size, inode, bytes } = read_chunk(&handle, path, 0).await?;
        if size > MAX_FILE as u64 {
            return Err(FileError::TooLarge);
        }
        let read = FileRead { handle, path: path.to_owned(), size, inode, offset: 0, next: Some(bytes) };
        Ok((size, stream::try_unfold(read, FileRead::next)))
    }

    /// Writes a file and creates its folders. The file appears as a whole with its last chunk. Until then, and after an
    /// error, an existing file stays unchanged; the workspace needs room for both.
    pub async fn write_file<E>(
        &self,
        id: &SessionId,
        access: &Access,
        path: &str,
        chunks: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), FileError> {
        let mut chunks = std::pin::pin!(chunks);
        // Each chunk counts as a use, so that the session does not become idle during a slow upload.
        let touch = || self.handle(id, access);
        let mut upload = Upload::new(touch()?, path);
        let mut buffer = BytesMut::new();
        while let Some(chunk) = chunks.next().await.transpose().map_err(|_| FileError::Cut)? {
            buffer.extend_from_slice(&chunk);
            if upload.length() + buffer.len() as u64 > MAX_FILE as u64 {
                return Err(FileError::TooLarge);
            }
            // A full chunk stays in the buffer, because it may be the last one.
            while buffer.len() > FILE_CHUNK {
                upload.push(buffer.split_to(FILE_CHUNK).freeze()).await?;
            }
            touch()?;
        }
        Ok(upload.finish(buffer.freeze()).await?)
    }

    /// Removes a file or an empty folder.
    pub async fn remove_file(&self, id: &SessionId, access: &Access, path: &str) -> Result<(), FileError> {
        self.file_request(id, access, Request::FileRemove { path: path.to_owned() }).await.map(drop)
    }
}

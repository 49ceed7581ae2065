//! A file on its way into a session's workspace, piece by piece.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{SessionError, SessionHandle};
use crate::agent_protocol::Request;

/// Numbers of uploads, of which agents tell them apart.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A file that is being written: it is there as a whole with its last piece. Dropped before, it never was, and what stood in its
/// place stays as it was.
pub struct Upload {
    handle: SessionHandle,
    number: u64,
    path: String,
    offset: u64,
    /// Whether the agent may hold a part of it.
    is_open: bool,
}

impl Upload {
    /// One to this path, relative to the workspace; folders that it needs are made.
    pub fn new(handle: SessionHandle, path: &str) -> Self {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { handle, number, path: path.to_owned(), offset: 0, is_open: false }
    }

    /// How many bytes it has so far.
    pub fn length(&self) -> u64 {
        self.offset
    }

    /// Sends a piece that is not the last one, of [`FILE_CHUNK`](crate::agent_protocol::FILE_CHUNK) bytes at most, and of one at least.
    ///
    /// # Errors
    /// [`SessionError`]; the upload is of no more use.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), SessionError> {
        self.send(piece, false).await
    }

    /// Sends the last piece; it may be empty.
    ///
    /// # Errors
    /// [`SessionError`]; what stood there stays, unless the connection broke before the answer.
    pub async fn finish(mut self, piece: Bytes) -> Result<(), SessionError> {
        self.send(piece, true).await?;
        self.is_open = false;
        Ok(())
    }

    async fn send(&mut self, piece: Bytes, last: bool) -> Result<(), SessionError> {
        self.is_open = true;
        let length = piece.len() as u64;
        let request = Request::FilePut { upload: self.number, path: self.path.clone(), offset: self.offset, last };
        self.handle.ask_agent(request, piece).await?;
        self.offset += length;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_open {
            self.handle.tell_agent(Request::FileDrop { upload: self.number });
        }
    }
}

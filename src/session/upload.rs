//! A file that is uploaded into a workspace chunk by chunk.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{SessionError, SessionHandle};
use crate::agent_protocol::{AnswerBody, FileStat, PutOptions, Request};
use crate::link::LinkError;

/// Number of the next upload; agents tell uploads apart by it.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What carries requests to an agent.
pub trait AgentRequests {
    /// Sends a request and waits for the answer.
    fn ask(&self, request: Request, data: Bytes) -> impl Future<Output = Result<(AnswerBody, Bytes), SessionError>> + Send;

    /// Sends a request without waiting for its answer.
    fn tell(&self, request: Request);
}

impl AgentRequests for SessionHandle {
    async fn ask(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        self.ask_agent(request, data).await
    }

    fn tell(&self, request: Request) {
        self.tell_agent(request);
    }
}

/// An upload in progress. The file appears as a whole with its last chunk. If the upload is dropped before, the file that was there
/// stays as it was.
pub struct Upload<A: AgentRequests> {
    agent: A,
    number: u64,
    path: String,
    options: PutOptions,
    offset: u64,
    /// Whether the agent may hold a part of it.
    is_open: bool,
}

impl<A: AgentRequests> Upload<A> {
    /// `path` is relative to the workspace. Missing folders are made.
    pub fn new(agent: A, path: &str, options: PutOptions) -> Self {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { agent, number, path: path.to_owned(), options, offset: 0, is_open: false }
    }

    /// Bytes sent so far.
    pub fn length(&self) -> u64 {
        self.offset
    }

    /// Sends a chunk that is not the last one, of 1 to [`FILE_CHUNK`](crate::agent_protocol::FILE_CHUNK) bytes. After an error the
    /// upload cannot go on.
    pub async fn push(&mut self, chunk: Bytes) -> Result<(), SessionError> {
        self.send(chunk, false).await.map(drop)
    }

    /// Sends the last chunk, which may be empty. After an error the former file stays, unless the connection broke before the answer.
    pub async fn finish(mut self, chunk: Bytes) -> Result<FileStat, SessionError> {
        let answer = self.send(chunk, true).await?;
        self.is_open = false;
        match answer {
            AnswerBody::File(stat) => Ok(stat),
            _ => Err(LinkError::Unexpected.into()),
        }
    }

    async fn send(&mut self, chunk: Bytes, last: bool) -> Result<AnswerBody, SessionError> {
        self.is_open = true;
        let length = chunk.len() as u64;
        let Self { number: upload, offset, options, .. } = *self;
        let request = Request::FilePut { upload, path: self.path.clone(), offset, last, options };
        let (answer, _) = self.agent.ask(request, chunk).await?;
        self.offset += length;
        Ok(answer)
    }
}

impl<A: AgentRequests> Drop for Upload<A> {
    fn drop(&mut self) {
        if self.is_open {
            self.agent.tell(Request::FileDrop { upload: self.number });
        }
    }
}

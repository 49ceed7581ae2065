//! The link to a sandbox itself, for requests that belong to none of its kernels. It is opened with the first request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::agent_protocol::{AnswerBody, Request, Target};
use crate::link::{Link, LinkError, LinkEvents, Position};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::session::SessionError;

/// How long the agent may take to answer. While the link is cut, requests wait for the next connection.
const AGENT_DEADLINE: Duration = Duration::from_secs(20);

/// See the [module](self) text. Clones share the link.
#[derive(Clone, Default)]
pub(in crate::manager) struct ControlLink(Arc<Mutex<Option<Link>>>);

impl ControlLink {
    /// Sends a request to the sandbox of this record and waits for the answer.
    ///
    /// # Errors
    /// [`SessionError::Silent`] without an answer in time, [`SessionError::Link`] if the agent refuses.
    pub async fn ask(
        &self,
        engine: &Arc<dyn Sandbox>,
        record: &SandboxRecord,
        request: Request,
        data: Bytes,
    ) -> Result<(AnswerBody, Bytes), SessionError> {
        let link = self.link(engine, record);
        let deadline = Instant::now() + AGENT_DEADLINE;
        loop {
            let answer = link.request(request.clone(), data.clone());
            match tokio::time::timeout_at(deadline, answer).await {
                Err(_) => return Err(SessionError::Silent),
                // It waits for the next connection then.
                Ok(Err(LinkError::Disconnected)) if is_idempotent(&request) => {}
                Ok(answer) => return Ok(answer?),
            }
        }
    }

    fn link(&self, engine: &Arc<dyn Sandbox>, record: &SandboxRecord) -> Link {
        let mut link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        link.get_or_insert_with(|| {
            let (link, events) = Link::open(engine.clone(), record.clone(), Target::Sandbox, Position::default());
            tokio::spawn(drop_events(events));
            link
        })
        .clone()
    }
}

/// Whether a request whose answer was lost can be sent again.
fn is_idempotent(request: &Request) -> bool {
    !matches!(
        request,
        Request::ProcessInput { offset: None, .. }
            | Request::ProcessSignal { .. }
            // A part of an upload is discarded with its connection, and a move or removal may have been done.
            | Request::FilePut { .. }
            | Request::FileMove { .. }
            | Request::FileLink { .. }
            | Request::FileRemove { .. }
    )
}

/// Ends with the link. There are only events of the connection, which redials by itself.
async fn drop_events(mut events: LinkEvents) {
    while events.recv().await.is_some() {}
}

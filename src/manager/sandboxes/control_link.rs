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
        // One that has ended, because the agent has sent nonsense, ends this request and not all later ones.
        if let Some(open) = link.as_ref().filter(|link| !link.has_ended()) {
            return open.clone();
        }
        let (opened, events) = Link::open(engine.clone(), record.clone(), Target::Sandbox, Position::default());
        tokio::spawn(drop_events(events));
        link.insert(opened).clone()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use crate::sandbox::{SandboxError, SandboxKind, SandboxSpec, SandboxState, SandboxStats};

    /// An engine whose agents send garbage. Counts the connections.
    #[derive(Default)]
    struct Engine(AtomicUsize);

    #[async_trait]
    impl Sandbox for Engine {
        fn kind(&self) -> SandboxKind {
            SandboxKind::Process
        }
        async fn create(&self, _: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
            unreachable!()
        }
        async fn connect(&self, _: &SandboxRecord) -> Result<UnixStream, SandboxError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let (own, mut other) = UnixStream::pair().unwrap();
            tokio::spawn(async move { other.write_all(&[0xff; 64]).await });
            Ok(own)
        }
        async fn inspect(&self, _: &SandboxRecord) -> Result<SandboxState, SandboxError> {
            Ok(SandboxState::Running)
        }
        async fn stats(&self, _: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
            unreachable!()
        }
        async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
            unreachable!()
        }
        async fn destroy(&self, _: &SandboxRecord) -> Result<(), SandboxError> {
            unreachable!()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn link_that_has_ended_is_opened_again() {
        let counting = Arc::<Engine>::default();
        let engine: Arc<dyn Sandbox> = counting.clone();
        let (control, record) = (ControlLink::default(), SandboxRecord::in_name_only());
        let ask = || control.ask(&engine, &record, Request::Usage, Bytes::new());
        let refused = ask().await.unwrap_err();
        assert!(matches!(refused, SessionError::Link(LinkError::Closed)), "{refused}");
        let dialed = counting.0.load(Ordering::Relaxed);
        ask().await.unwrap_err();
        assert!(counting.0.load(Ordering::Relaxed) > dialed, "a later request dials again");
    }
}

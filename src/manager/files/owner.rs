//! Whose files a workspace has: those of a session's sandbox, or of a sandbox that was created by itself. Each is asked over its
//! own link.

use std::sync::Arc;

use bytes::Bytes;

use crate::agent_protocol::{AnswerBody, Request};
use crate::ids::PrincipalId;
use crate::manager::registry::SessionEntry;
use crate::manager::sandboxes::SandboxEntry;
use crate::session::{AgentRequests, SessionError};

#[derive(Clone)]
pub(super) enum WorkspaceOwner {
    Session(Arc<SessionEntry>),
    Sandbox(Arc<SandboxEntry>),
}

impl WorkspaceOwner {
    pub fn principal(&self) -> &PrincipalId {
        match self {
            Self::Session(session) => &session.principal,
            Self::Sandbox(sandbox) => &sandbox.principal,
        }
    }

    /// Notes a use, so that it does not count as idle during a slow transfer.
    pub fn touch(&self) {
        match self {
            Self::Session(session) => session.touch(),
            Self::Sandbox(sandbox) => sandbox.touch(),
        }
    }
}

impl AgentRequests for WorkspaceOwner {
    async fn ask(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        match self {
            Self::Session(session) => session.handle.ask_agent(request, data).await,
            Self::Sandbox(sandbox) => sandbox.instance.ask(request, data).await,
        }
    }

    fn tell(&self, request: Request) {
        match self {
            Self::Session(session) => session.handle.tell(request),
            Self::Sandbox(sandbox) => {
                let sandbox = sandbox.clone();
                // Without a runtime the server ends, and its connections with it.
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move { sandbox.instance.ask(request, Bytes::new()).await });
                }
            }
        }
    }
}

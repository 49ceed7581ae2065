//! A sandbox of one command of the command line, without a kernel. It ends with the command.

use std::sync::Arc;

use bytes::Bytes;

use super::processes::Processes;
use crate::agent_protocol::{AnswerBody, Request};
use crate::manager::registry::SandboxInstance;
use crate::sandbox::{SandboxError, SandboxKind};
use crate::session::{AgentRequests, SessionError};

/// See the [module](self) text. Clones share the sandbox.
#[derive(Clone)]
pub struct OneShotSandbox(Arc<SandboxInstance>);

impl OneShotSandbox {
    pub(in crate::manager) fn new(instance: SandboxInstance) -> Self {
        Self(Arc::new(instance))
    }

    pub fn kind(&self) -> SandboxKind {
        self.0.record.kind
    }

    pub fn processes(&self) -> Processes {
        Processes::new(self.0.clone())
    }

    /// Ends the sandbox, with its processes and files.
    pub async fn destroy(self) -> Result<(), SandboxError> {
        self.0.destroy().await
    }
}

impl AgentRequests for OneShotSandbox {
    async fn ask(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        self.0.ask(request, data).await
    }

    fn tell(&self, request: Request) {
        let sandbox = self.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { sandbox.ask(request, Bytes::new()).await });
        }
    }
}

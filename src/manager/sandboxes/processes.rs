//! The processes of a sandbox. The agent keeps them with their output, so they survive this server and end with the sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use super::SessionService;
use crate::agent_protocol::{
    AnswerBody, Event, ProcessEvent, ProcessExit, ProcessInfo, ProcessSpec, ProcessStream, RefusalCause, Request, Target,
    TerminalSize,
};
use crate::ids::{Access, Epoch, ProcessId, SandboxId, Seq};
use crate::link::{Link, LinkError, LinkEvent, LinkEvents, Position};
use crate::manager::digest_id;
use crate::manager::registry::SandboxInstance;
use crate::manager::session_config::ServiceError;
use crate::sandbox::SandboxState;
use crate::session::SessionError;

/// How often a sandbox is inspected while a reader has no connection to it.
const INSPECT_INTERVAL: Duration = Duration::from_millis(500);

/// A request for a process.
#[derive(Clone, Debug, Default)]
pub struct NewProcess {
    /// The program and its arguments.
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// The working folder, relative to the workspace; empty for the workspace itself.
    pub cwd: String,
    pub terminal: Option<TerminalSize>,
    /// Whether the standard input stays open.
    pub stdin: bool,
    pub timeout_ms: Option<u64>,
    /// Chosen by the client: the process is started once for each key.
    pub key: Option<String>,
}

/// Why a request about a process failed.
#[derive(Debug, Error)]
pub enum ProcessError {
    #[error("{0}")]
    NotFound(String),
    /// The command cannot be started.
    #[error("{0}")]
    NotStarted(String),
    /// The process is not in a state for the request.
    #[error("{0}")]
    Conflict(String),
    /// Too many processes, or too much input that is not read; a retry can succeed.
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl From<SessionError> for ProcessError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Link(LinkError::Refused(refused)) => match refused.cause {
                RefusalCause::NotFound => Self::NotFound(refused.reason),
                RefusalCause::Busy => Self::Busy(refused.reason),
                _ => Self::Conflict(refused.reason),
            },
            error => Self::Service(error.into()),
        }
    }
}

/// The processes of one sandbox. Clones share it.
#[derive(Clone)]
pub struct Processes(Arc<SandboxInstance>);

impl SessionService {
    /// The processes of a sandbox that the caller may use. Counts as a use.
    pub fn processes(&self, id: &SandboxId, access: &Access) -> Result<Processes, ServiceError> {
        Ok(Processes::new(self.find_sandbox(id, access)?))
    }

    /// Starts a process, or returns the one that was started with the same key. What is started counts as an execution of the
    /// owner of the sandbox.
    pub async fn start_process(
        &self,
        id: &SandboxId,
        access: &Access,
        new: NewProcess,
    ) -> Result<(ProcessInfo, Processes), ProcessError> {
        let processes = self.processes(id, access)?;
        if !processes.knows_key(&new).await {
            self.admit_process(id, access)?;
        }
        Ok((processes.start(new).await?, processes))
    }

    fn admit_process(&self, id: &SandboxId, access: &Access) -> Result<(), ServiceError> {
        let owner = match self.0.sandboxes.find_visible(id, access) {
            Some(entry) => entry.principal.clone(),
            None => self.0.registry.find_visible(id.as_session(), access)?.principal.clone(),
        };
        self.0.consumption.admit_executions(&owner, 1)
    }
}

impl Processes {
    pub(in crate::manager) fn new(instance: Arc<SandboxInstance>) -> Self {
        Self(instance)
    }

    /// Starts a process, or returns the one that was started with the same key.
    pub async fn start(&self, new: NewProcess) -> Result<ProcessInfo, ProcessError> {
        let id = self.id_of(&new).unwrap_or_else(ProcessId::random);
        let NewProcess { command, env, cwd, terminal, stdin, timeout_ms, key: _ } = new;
        let spec = ProcessSpec { id, command, env, cwd, terminal, stdin, timeout_ms };
        match self.ask_one(Request::StartProcess(Box::new(spec)), Bytes::new()).await {
            Err(ProcessError::NotFound(reason)) => Err(ProcessError::NotStarted(reason)),
            answer => answer,
        }
    }

    /// The id that the key of a process stands for.
    fn id_of(&self, new: &NewProcess) -> Option<ProcessId> {
        new.key.as_deref().map(|key| id_of_key(&self.0.record.id, key))
    }

    async fn knows_key(&self, new: &NewProcess) -> bool {
        match self.id_of(new) {
            Some(id) => self.get(&id).await.is_ok(),
            None => false,
        }
    }

    pub async fn get(&self, id: &ProcessId) -> Result<ProcessInfo, ProcessError> {
        self.ask_one(Request::Process { id: id.clone() }, Bytes::new()).await
    }

    /// All processes, oldest first. Long commands are cut.
    pub async fn list(&self) -> Result<Vec<ProcessInfo>, ProcessError> {
        match self.0.ask(Request::ListProcesses, Bytes::new()).await? {
            (AnswerBody::Processes(all), _) => Ok(all),
            _ => Err(unexpected()),
        }
    }

    /// Writes to the standard input. With `offset`, the bytes that the process has already are skipped.
    pub async fn write(
        &self,
        id: &ProcessId,
        offset: Option<u64>,
        data: Bytes,
        close: bool,
    ) -> Result<ProcessInfo, ProcessError> {
        self.ask_one(Request::ProcessInput { id: id.clone(), offset, close }, data).await
    }

    /// Sends a signal to the process group. SIGKILL reaches everything that the process has started.
    pub async fn signal(&self, id: &ProcessId, signal: i32) -> Result<(), ProcessError> {
        self.tell(Request::ProcessSignal { id: id.clone(), signal }).await
    }

    pub async fn resize(&self, id: &ProcessId, size: TerminalSize) -> Result<(), ProcessError> {
        self.tell(Request::ProcessResize { id: id.clone(), size }).await
    }

    /// Kills a process, unless it has ended, and forgets it with its output.
    pub async fn remove(&self, id: &ProcessId) -> Result<(), ProcessError> {
        self.get(id).await?;
        self.tell(Request::RemoveProcess { id: id.clone() }).await
    }

    /// Reads the output after the event `after`: the kept events, then new ones as they are written.
    pub async fn read(&self, id: &ProcessId, after: Seq) -> Result<ProcessReader, ProcessError> {
        let info = self.get(id).await?;
        let after = Seq(after.0.min(info.next_seq.0.saturating_sub(1)));
        let position = Position { epoch: Epoch::default(), seq: after };
        let target = Target::Process(id.clone());
        let (link, events) = Link::open(self.0.engine.clone(), self.0.record.clone(), target, position);
        Ok(ProcessReader { events, instance: self.0.clone(), is_attached: false, _link: link })
    }

    async fn ask_one(&self, request: Request, data: Bytes) -> Result<ProcessInfo, ProcessError> {
        match self.0.ask(request, data).await? {
            (AnswerBody::Process(info), _) => Ok(*info),
            _ => Err(unexpected()),
        }
    }

    async fn tell(&self, request: Request) -> Result<(), ProcessError> {
        self.0.ask(request, Bytes::new()).await?;
        Ok(())
    }
}

fn unexpected() -> ProcessError {
    ServiceError::from(SessionError::Link(LinkError::Unexpected)).into()
}

/// The id of the process that a client starts with `key`: the same for each retry.
fn id_of_key(sandbox: &SandboxId, key: &str) -> ProcessId {
    // 32 hexadecimal digits are an id.
    ProcessId::parse(&digest_id(format!("{sandbox}\n{key}").as_bytes())).unwrap_or_else(ProcessId::random)
}

/// What a reader of a process gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessOutput {
    Data {
        seq: Seq,
        stream: ProcessStream,
        data: Bytes,
    },
    /// The events `from..=to` are not kept any more.
    Lost {
        from: Seq,
        to: Seq,
    },
    /// The last event.
    Exited {
        seq: Seq,
        exit: ProcessExit,
    },
}

/// Reads the output of one process. Connections that are lost are opened again while the sandbox lives.
pub struct ProcessReader {
    events: LinkEvents,
    instance: Arc<SandboxInstance>,
    is_attached: bool,
    /// The events end when it is dropped.
    _link: Link,
}

impl ProcessReader {
    /// The next output. `None` when the process was removed, or its sandbox has ended or violates the protocol. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self) -> Option<ProcessOutput> {
        loop {
            match self.next_event().await? {
                LinkEvent::Event { seq, event: Event::Process(ProcessEvent::Output { stream, data }) } => {
                    return Some(ProcessOutput::Data { seq, stream, data });
                }
                LinkEvent::Event { seq, event: Event::Process(ProcessEvent::Exited(exit)) } => {
                    return Some(ProcessOutput::Exited { seq, exit });
                }
                LinkEvent::Lost { from, to } => return Some(ProcessOutput::Lost { from, to }),
                LinkEvent::Absent | LinkEvent::Broken { .. } => return None,
                LinkEvent::Attached(_) => self.is_attached = true,
                LinkEvent::Detached { .. } => self.is_attached = false,
                LinkEvent::Event { .. } => {}
            }
        }
    }

    /// The next event of the link. While that is not attached, the sandbox may have ended: then there is none.
    async fn next_event(&mut self) -> Option<LinkEvent> {
        while !self.is_attached {
            if let Ok(event) = tokio::time::timeout(INSPECT_INTERVAL, self.events.recv()).await {
                return event;
            }
            let SandboxInstance { engine, record, .. } = &*self.instance;
            if let Ok(SandboxState::Ended { .. }) = engine.inspect(record).await {
                return None;
            }
        }
        self.events.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_processes_of_one_sandbox() {
        let (one, other) = (SandboxId::random(), SandboxId::random());
        assert_eq!(id_of_key(&one, "build"), id_of_key(&one, "build"));
        assert_ne!(id_of_key(&one, "build"), id_of_key(&one, "test"));
        assert_ne!(id_of_key(&one, "build"), id_of_key(&other, "build"));
    }
}

//! What others hold of a session: a way to give it commands, and what it says of its runs.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::run::RunResult;
use crate::agent_protocol::{AnswerBody, Request, UsageReading};
use crate::link::LinkError;
use crate::link::weighed::{self, WeighedReceiver, WeighedSender};
use crate::wire::Message;

/// Bytes of a run's events that wait for whoever follows it.
const QUEUED: usize = 8 << 20;

/// Where a session stands.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionState {
    /// The kernel has not answered yet.
    Starting,
    /// Ready for a run.
    Idle,
    /// Running one.
    Busy,
    /// Running one that is being stopped.
    Interrupting,
    /// The kernel is being started anew in its sandbox.
    Restarting,
    /// Over, and why.
    Gone {
        /// A sentence for people.
        why: String,
    },
}

/// A run to be queued.
#[derive(Clone, Debug, Default)]
pub struct RunRequest {
    /// The code.
    pub code: String,
    /// When to stop it. `None`: never.
    pub timeout: Option<Duration>,
    /// Whether the code may ask for input. Without, `input()` raises an error at once.
    pub allow_stdin: bool,
    /// The `metadata` of the request, as the kernel sees it.
    pub metadata: Option<Value>,
}

/// What happens in a run, in order. [`RunEvent::Finished`] is the last, and comes exactly once.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// The kernel has been given the code.
    Started,
    /// A message from iopub that is (or may be) an output.
    Output {
        /// Its type.
        msg_type: String,
        /// The message.
        message: Message,
    },
    /// The code asks for input.
    Input {
        /// The message.
        message: Message,
    },
    /// Something that people should know: an escalation, a lost stretch, a child killed for memory.
    Notice(String),
    /// The end.
    Finished(RunResult),
}

/// Output that belongs to no run: what the kernel process or a child of it writes between two cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrayOutput {
    /// Whether it was written to stderr.
    pub stderr: bool,
    /// The text.
    pub text: String,
}

impl RunEvent {
    /// What it weighs in the queue, bytes.
    pub(super) fn weight(&self) -> usize {
        const SMALL: usize = 256;
        match self {
            Self::Output { message, .. } | Self::Input { message } => SMALL + message.size(),
            Self::Started | Self::Notice(_) | Self::Finished(_) => SMALL,
        }
    }
}

/// The events of one run. Whoever does not take them holds up the session: it reads no further, and its agent keeps what
/// follows.
pub type RunEvents = WeighedReceiver<RunEvent>;

/// Why a session does not do what it is told.
#[derive(Debug, Error, PartialEq)]
pub enum SessionError {
    /// It is over.
    #[error("the session is over: {why}")]
    Gone {
        /// Why.
        why: String,
    },
    /// The agent said no, or the connection was cut.
    #[error(transparent)]
    Link(#[from] LinkError),
}

pub(super) enum Command {
    Run { request: RunRequest, events: WeighedSender<RunEvent> },
    Interrupt,
    Kill,
    Input(String),
    Restart,
    Ask { request: Request, data: Bytes, reply: oneshot::Sender<Result<(AnswerBody, Bytes), LinkError>> },
}

/// A session's handle. Clones share the session; it ends when the last is dropped or the sandbox is.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) state: watch::Receiver<SessionState>,
    pub(super) info: watch::Receiver<Value>,
    pub(super) stray: broadcast::Sender<StrayOutput>,
}

impl SessionHandle {
    /// Where it stands now.
    pub fn state(&self) -> SessionState {
        self.state.borrow().clone()
    }

    /// Output that belongs to no run, from now on. A receiver that falls far behind is told how much it missed.
    pub fn stray_output(&self) -> broadcast::Receiver<StrayOutput> {
        self.stray.subscribe()
    }

    /// The content of the kernel's `kernel_info_reply`; `null` before it is ready.
    pub fn kernel_info(&self) -> Value {
        self.info.borrow().clone()
    }

    /// Waits until it is ready for a run.
    ///
    /// # Errors
    /// [`SessionError::Gone`] when it ends before.
    pub async fn ready(&self) -> Result<(), SessionError> {
        let mut state = self.state.clone();
        let settled = |state: &SessionState| !matches!(state, SessionState::Starting | SessionState::Restarting);
        match state.wait_for(settled).await.as_deref() {
            Ok(SessionState::Gone { why }) => Err(SessionError::Gone { why: why.clone() }),
            Ok(_) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    /// Queues a run. Its events end with [`RunEvent::Finished`].
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn run(&self, request: RunRequest) -> Result<RunEvents, SessionError> {
        let (events, receiver) = weighed::channel(QUEUED);
        self.send(Command::Run { request, events })?;
        Ok(receiver)
    }

    /// Interrupts the running cell, with escalation if it does not heed. Does nothing when none runs.
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn interrupt(&self) -> Result<(), SessionError> {
        self.send(Command::Interrupt)
    }

    /// Kills the kernel under the running cell, now.
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn kill(&self) -> Result<(), SessionError> {
        self.send(Command::Kill)
    }

    /// Answers the code's question.
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn input(&self, value: &str) -> Result<(), SessionError> {
        self.send(Command::Input(value.to_owned()))
    }

    /// Starts the kernel anew in its sandbox. The workspace stays.
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn restart(&self) -> Result<(), SessionError> {
        self.send(Command::Restart)
    }

    /// Asks the agent: usage, files.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn ask(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ask { request, data, reply })?;
        Ok(answer.await.map_err(|_| self.gone())??)
    }

    /// The sandbox's usage now.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn usage(&self) -> Result<UsageReading, SessionError> {
        match self.ask(Request::Usage, Bytes::new()).await? {
            (AnswerBody::Usage(usage), _) => Ok(usage),
            _ => Err(LinkError::Unexpected.into()),
        }
    }

    fn send(&self, command: Command) -> Result<(), SessionError> {
        self.commands.send(command).map_err(|_| self.gone())
    }

    fn gone(&self) -> SessionError {
        match self.state() {
            SessionState::Gone { why } => SessionError::Gone { why },
            _ => SessionError::Gone { why: "it was closed".to_owned() },
        }
    }
}

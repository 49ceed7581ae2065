//! What others hold of a session: a way to give it commands, and to see where it stands.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use super::cells::{Cell, RunOfCell, RunOptions};
use super::commands::{CellEdit, Denied, NewCell};
use crate::agent_protocol::{AnswerBody, Request, UsageReading};
use crate::link::LinkError;

/// How long the agent may take to answer. While it is cut off, what it is asked waits for it.
const AGENT_DEADLINE: Duration = Duration::from_secs(20);

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

impl SessionState {
    /// Its name in the contract.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Interrupting => "interrupting",
            Self::Restarting => "restarting",
            Self::Gone { .. } => "gone",
        }
    }
}

/// Why a session does not do what it is told.
#[derive(Debug, Error, PartialEq)]
pub enum SessionError {
    /// It is over.
    #[error("the session is over: {why}")]
    Gone {
        /// Why.
        why: String,
    },
    /// It says no.
    #[error(transparent)]
    Denied(Denied),
    /// The agent has not answered in time. What was asked is still on its way.
    #[error("the sandbox has not answered within {} s; it may be cut off or overloaded", AGENT_DEADLINE.as_secs())]
    Silent,
    /// The agent said no, or the connection was cut.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl From<Denied> for SessionError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Gone { why } => Self::Gone { why },
            denied => Self::Denied(denied),
        }
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Denied>>;

pub(super) enum Command {
    Follow { run: RunOfCell, reply: Reply<Cell> },
    Add { cell: Box<NewCell>, trace: Option<String>, reply: Reply<Cell> },
    Run { id: String, options: Option<RunOptions>, trace: Option<String>, reply: Reply<Cell> },
    RunAll { runs: Vec<(String, RunOptions)>, trace: Option<String>, reply: Reply<()> },
    Replace { cells: Vec<NewCell>, notebook: String, reply: Reply<()> },
    Edit { id: String, edit: Box<CellEdit>, reply: Reply<Cell> },
    Delete { id: String, reply: Reply<()> },
    Cancel { id: String, reply: Reply<Cell> },
    Interrupt { reply: Reply<()> },
    Kill { reply: Reply<()> },
    Input { value: String, reply: Reply<()> },
    Restart { reply: Reply<()> },
    AskKernel { msg_type: &'static str, content: Value, reply: Reply<Value> },
    TellKernel { msg_type: &'static str, content: Value, parent: Bytes, reply: Reply<()> },
    AskAgent { request: Request, data: Bytes, reply: oneshot::Sender<Result<(AnswerBody, Bytes), LinkError>> },
    End { why: String, reply: Reply<()> },
}

/// A session's handle. Clones share the session; its driver ends when the last is dropped.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) state: watch::Receiver<SessionState>,
    pub(super) info: watch::Receiver<Arc<Value>>,
    /// What uses it, as a `traceparent`.
    pub(super) trace: Option<String>,
}

impl SessionHandle {
    /// The same session, for something that is traced: the runs that it asks for are its children.
    #[must_use]
    pub fn traced(self, trace: Option<String>) -> Self {
        Self { trace, ..self }
    }

    /// Where it stands now.
    pub fn state(&self) -> SessionState {
        self.state.borrow().clone()
    }

    /// The content of the kernel's `kernel_info_reply`; `null` before it is ready.
    pub fn kernel_info(&self) -> Arc<Value> {
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

    /// Waits until this run of a cell has ended and all of it is written down. Gives the cell as it stands then; it may have been
    /// queued again.
    ///
    /// # Errors
    /// [`SessionError`]; also when the cell was removed.
    pub async fn ended(&self, cell: &Cell) -> Result<Cell, SessionError> {
        let run = RunOfCell { number: cell.number, first_seq: cell.run.first_seq };
        self.ask(|reply| Command::Follow { run, reply }).await
    }

    /// Adds a cell, and queues it if asked to. Returns once that is written down.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn add_cell(&self, cell: NewCell) -> Result<Cell, SessionError> {
        let trace = self.trace.clone();
        self.ask(|reply| Command::Add { cell: Box::new(cell), trace, reply }).await
    }

    /// Runs a cell again. Returns once that is written down.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn run_cell(&self, id: &str, options: Option<RunOptions>) -> Result<Cell, SessionError> {
        let trace = self.trace.clone();
        self.ask(|reply| Command::Run { id: id.to_owned(), options, trace, reply }).await
    }

    /// Runs several cells one after the other: all of them are queued, or none. Returns once that is written down.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn run_cells(&self, runs: Vec<(String, RunOptions)>) -> Result<(), SessionError> {
        let trace = self.trace.clone();
        self.ask(|reply| Command::RunAll { runs, trace, reply }).await
    }

    /// Makes the notebook that of a file: of these cells, and with what it says beside them, as JSON.
    ///
    /// # Errors
    /// [`SessionError`]; also while a cell is queued or running.
    pub async fn replace_cells(&self, cells: Vec<NewCell>, notebook: String) -> Result<(), SessionError> {
        self.ask(|reply| Command::Replace { cells, notebook, reply }).await
    }

    /// Changes a cell.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn edit_cell(&self, id: &str, edit: CellEdit) -> Result<Cell, SessionError> {
        self.ask(|reply| Command::Edit { id: id.to_owned(), edit: Box::new(edit), reply }).await
    }

    /// Removes a cell.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn delete_cell(&self, id: &str) -> Result<(), SessionError> {
        self.ask(|reply| Command::Delete { id: id.to_owned(), reply }).await
    }

    /// Takes a cell out of the queue, or interrupts it.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn cancel_cell(&self, id: &str) -> Result<Cell, SessionError> {
        self.ask(|reply| Command::Cancel { id: id.to_owned(), reply }).await
    }

    /// Interrupts the running cell, with escalation if it does not heed. Does nothing when none runs.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn interrupt(&self) -> Result<(), SessionError> {
        self.ask(|reply| Command::Interrupt { reply }).await
    }

    /// Kills the kernel under the running cell, now.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn kill(&self) -> Result<(), SessionError> {
        self.ask(|reply| Command::Kill { reply }).await
    }

    /// Answers the code's question. Returns once the agent has the answer.
    ///
    /// # Errors
    /// [`SessionError`]; after [`SessionError::Silent`] the answer is handed over as soon as the agent is there again.
    pub async fn input(&self, value: &str) -> Result<(), SessionError> {
        in_time(self.ask(|reply| Command::Input { value: value.to_owned(), reply })).await
    }

    /// Starts the kernel anew in its sandbox. The workspace and the cells stay.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn restart(&self) -> Result<(), SessionError> {
        self.ask(|reply| Command::Restart { reply }).await
    }

    /// The kernel's completions at a place in some code, counted in Unicode characters. Gives the content of its reply.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn complete(&self, code: &str, cursor: usize) -> Result<Value, SessionError> {
        let content = json!({"code": code, "cursor_pos": cursor});
        self.ask(|reply| Command::AskKernel { msg_type: "complete_request", content, reply }).await
    }

    /// What the kernel knows of the name at a place in some code. Gives the content of its reply.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn inspect(&self, code: &str, cursor: usize) -> Result<Value, SessionError> {
        let content = json!({"code": code, "cursor_pos": cursor, "detail_level": 0});
        self.ask(|reply| Command::AskKernel { msg_type: "inspect_request", content, reply }).await
    }

    /// Runs code between two cells, of which nobody is told: nothing is counted, and nothing of what it prints is shown. Gives the
    /// content of the kernel's reply.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn run_silently(&self, code: &str) -> Result<Value, SessionError> {
        let content = json!({
            "code": code, "silent": true, "store_history": false, "user_expressions": {}, "allow_stdin": false,
            "stop_on_error": false,
        });
        self.ask(|reply| Command::AskKernel { msg_type: "execute_request", content, reply }).await
    }

    /// Sends the kernel a `comm_msg`, which it takes in before the next run. `parent`: raw JSON of the header that it answers.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn comm_msg(&self, content: Value, parent: Bytes) -> Result<(), SessionError> {
        self.ask(|reply| Command::TellKernel { msg_type: "comm_msg", content, parent, reply }).await
    }

    /// Ends the session's driver; what runs ends as gone. The sandbox is left to the caller.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn end(&self, why: &str) -> Result<(), SessionError> {
        self.ask(|reply| Command::End { why: why.to_owned(), reply }).await
    }

    /// Asks the agent: usage, files.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn ask_agent(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::AskAgent { request, data, reply }).map_err(|_| self.gone())?;
        in_time(async { Ok(answer.await.map_err(|_| self.gone())??) }).await
    }

    /// Tells the agent something to which no answer is waited for.
    pub(super) fn tell_agent(&self, request: Request) {
        // Of a session that is over there is nobody to tell.
        let _ = self.commands.send(Command::AskAgent { request, data: Bytes::new(), reply: oneshot::channel().0 });
    }

    /// The sandbox's usage now.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn usage(&self) -> Result<UsageReading, SessionError> {
        match self.ask_agent(Request::Usage, Bytes::new()).await? {
            (AnswerBody::Usage(usage), _) => Ok(usage),
            _ => Err(LinkError::Unexpected.into()),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, SessionError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| self.gone())?;
        Ok(answer.await.map_err(|_| self.gone())??)
    }

    fn gone(&self) -> SessionError {
        match self.state() {
            SessionState::Gone { why } => SessionError::Gone { why },
            _ => SessionError::Gone { why: "it was closed".to_owned() },
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, SessionError>>) -> Result<T, SessionError> {
    tokio::time::timeout(AGENT_DEADLINE, answer).await.unwrap_or(Err(SessionError::Silent))
}

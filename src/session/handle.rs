//! A session's handle: commands go in, its state and its kernel's info can be watched.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use super::cell::{Cell, CellEdit, ExecutionOptions, NewCell, QueuedExecution};
use super::machine::{Denied, Query};
use super::state::SessionState;
use crate::agent_protocol::{AnswerBody, Request, UsageReading};
use crate::link::LinkError;
use crate::wire::requests::KernelRequest;

/// How long the agent may take to answer. While the link is cut, requests wait for the next connection.
const AGENT_DEADLINE: Duration = Duration::from_secs(20);

/// Why a command to a session failed.
#[derive(Debug, Error, PartialEq)]
pub enum SessionError {
    #[error("the session is over: {why}")]
    Gone { why: String },
    #[error(transparent)]
    Denied(Denied),
    /// The agent has not answered in time. The request may still reach it.
    #[error("the sandbox has not answered within {} s; it may be cut off or overloaded", AGENT_DEADLINE.as_secs())]
    Silent,
    /// The agent refused the request, or the connection was cut.
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
    AwaitEnd { execution: QueuedExecution, reply: Reply<Cell> },
    Add { cell: Box<NewCell>, trace: Option<String>, reply: Reply<Cell> },
    Run { id: String, options: Option<ExecutionOptions>, trace: Option<String>, reply: Reply<Cell> },
    RunAll { runs: Vec<(String, ExecutionOptions)>, trace: Option<String>, reply: Reply<()> },
    Replace { cells: Vec<NewCell>, notebook: String, reply: Reply<()> },
    Edit { id: String, edit: Box<CellEdit>, reply: Reply<Cell> },
    Delete { id: String, reply: Reply<()> },
    Cancel { id: String, reply: Reply<Cell> },
    Interrupt { reply: Reply<()> },
    Kill { reply: Reply<()> },
    Input { value: String, reply: Reply<()> },
    Restart { reply: Reply<()> },
    Query { query: Query, reply: Reply<Value> },
    Send { request: KernelRequest, parent: Bytes, reply: Reply<()> },
    AskAgent { request: Request, data: Bytes, reply: oneshot::Sender<Result<(AnswerBody, Bytes), LinkError>> },
    Notify { text: String, reply: Reply<()> },
    End { why: String, reply: Reply<()> },
}

/// Clones share the session. Its driver ends when the last handle is dropped.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) state: watch::Receiver<SessionState>,
    pub(super) info: watch::Receiver<Arc<Value>>,
    /// W3C `traceparent` of the request that uses the handle.
    pub(super) trace: Option<String>,
}

impl SessionHandle {
    /// The same session for a traced request: executions that it starts become children of its span.
    #[must_use]
    pub fn traced(self, trace: Option<String>) -> Self {
        Self { trace, ..self }
    }

    pub fn state(&self) -> SessionState {
        self.state.borrow().clone()
    }

    /// The content of the kernel's `kernel_info_reply`; `null` before it is ready.
    pub fn kernel_info(&self) -> Arc<Value> {
        self.info.borrow().clone()
    }

    /// Waits until the kernel is ready. [`SessionError::Gone`] when the session ends before.
    pub async fn ready(&self) -> Result<(), SessionError> {
        let mut state = self.state.clone();
        let settled = |state: &SessionState| !matches!(state, SessionState::Starting | SessionState::Restarting);
        match state.wait_for(settled).await.as_deref() {
            Ok(SessionState::Gone { why }) => Err(SessionError::Gone { why: why.clone() }),
            Ok(_) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    /// Waits until this execution of a cell has ended and is committed. Returns the cell as it is then; it may have been queued again.
    /// Fails when the cell was deleted.
    pub async fn ended(&self, cell: &Cell) -> Result<Cell, SessionError> {
        let execution = QueuedExecution { number: cell.number, first_seq: cell.execution.first_seq };
        self.ask(|reply| Command::AwaitEnd { execution, reply }).await
    }

    /// Adds a cell, and queues it if it is to be run. Returns once that is committed.
    pub async fn add_cell(&self, cell: NewCell) -> Result<Cell, SessionError> {
        let trace = self.trace.clone();
        self.ask(|reply| Command::Add { cell: Box::new(cell), trace, reply }).await
    }

    /// Executes a cell again. Returns once that is committed.
    pub async fn run_cell(&self, id: &str, options: Option<ExecutionOptions>) -> Result<Cell, SessionError> {
        let trace = self.trace.clone();
        self.ask(|reply| Command::Run { id: id.to_owned(), options, trace, reply }).await
    }

    /// Executes several cells in order. Either all of them are queued or none. Returns once that is committed.
    pub async fn run_cells(&self, runs: Vec<(String, ExecutionOptions)>) -> Result<(), SessionError> {
        let trace = self.trace.clone();
        self.ask(|reply| Command::RunAll { runs, trace, reply }).await
    }

    /// Replaces all cells by those of a file; `notebook` is what the file holds besides, as JSON. Denied while a cell is queued or
    /// running.
    pub async fn replace_cells(&self, cells: Vec<NewCell>, notebook: String) -> Result<(), SessionError> {
        self.ask(|reply| Command::Replace { cells, notebook, reply }).await
    }

    pub async fn edit_cell(&self, id: &str, edit: CellEdit) -> Result<Cell, SessionError> {
        self.ask(|reply| Command::Edit { id: id.to_owned(), edit: Box::new(edit), reply }).await
    }

    pub async fn delete_cell(&self, id: &str) -> Result<(), SessionError> {
        self.ask(|reply| Command::Delete { id: id.to_owned(), reply }).await
    }

    /// Takes a cell out of the queue, or interrupts it.
    pub async fn cancel_cell(&self, id: &str) -> Result<Cell, SessionError> {
        self.ask(|reply| Command::Cancel { id: id.to_owned(), reply }).await
    }

    /// Tells the clients of the session something that concerns its owner, as a notice.
    pub async fn notify(&self, text: String) -> Result<(), SessionError> {
        self.ask(|reply| Command::Notify { text, reply }).await
    }

    /// Interrupts the running cell; the interrupt escalates if it has no effect. Does nothing when no cell runs.
    pub async fn interrupt(&self) -> Result<(), SessionError> {
        self.ask(|reply| Command::Interrupt { reply }).await
    }

    /// Kills the kernel that executes the running cell, at once.
    pub async fn kill(&self) -> Result<(), SessionError> {
        self.ask(|reply| Command::Kill { reply }).await
    }

    /// Answers the code's question. Returns once the agent has the answer. After [`SessionError::Silent`] the answer is still handed
    /// over when the agent is back.
    pub async fn input(&self, value: &str) -> Result<(), SessionError> {
        in_time(self.ask(|reply| Command::Input { value: value.to_owned(), reply })).await
    }

    /// Restarts the kernel in its sandbox. Workspace and cells stay.
    pub async fn restart(&self) -> Result<(), SessionError> {
        self.ask(|reply| Command::Restart { reply }).await
    }

    /// Asks the kernel for completions. `cursor` counts Unicode characters. Returns the content of the reply.
    pub async fn complete(&self, code: &str, cursor: usize) -> Result<Value, SessionError> {
        let query = Query::Complete { code: code.to_owned(), cursor };
        self.ask(|reply| Command::Query { query, reply }).await
    }

    /// Asks the kernel about the name at `cursor`, counted in Unicode characters. Returns the content of the reply.
    pub async fn inspect(&self, code: &str, cursor: usize) -> Result<Value, SessionError> {
        let query = Query::Inspect { code: code.to_owned(), cursor };
        self.ask(|reply| Command::Query { query, reply }).await
    }

    /// Executes code between two cells without any event: it is not counted, and its output is dropped. Returns the content of the
    /// kernel's reply.
    pub async fn run_silently(&self, code: &str) -> Result<Value, SessionError> {
        let query = Query::Execute { code: code.to_owned() };
        self.ask(|reply| Command::Query { query, reply }).await
    }

    /// Sends the kernel a `comm_msg`, which it takes in before the next cell. `parent` is the raw JSON header that it answers.
    pub async fn comm_msg(&self, content: &Value, parent: Bytes) -> Result<(), SessionError> {
        let request = KernelRequest::comm_msg(content);
        self.ask(|reply| Command::Send { request, parent, reply }).await
    }

    /// Ends the session and its driver. Destroying the sandbox is left to the caller.
    pub async fn end(&self, why: &str) -> Result<(), SessionError> {
        self.ask(|reply| Command::End { why: why.to_owned(), reply }).await
    }

    /// Sends the agent a request for usage or files.
    pub async fn ask_agent(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), SessionError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::AskAgent { request, data, reply }).map_err(|_| self.gone())?;
        in_time(async { Ok(answer.await.map_err(|_| self.gone())??) }).await
    }

    /// Sends the agent a request without waiting for its answer.
    pub(super) fn tell_agent(&self, request: Request) {
        // A session that is over has no agent to send to.
        let _ = self.commands.send(Command::AskAgent { request, data: Bytes::new(), reply: oneshot::channel().0 });
    }

    /// Current usage of the sandbox.
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

//! A conversation with a model in the cells of a session. Messages of the person and of the model are markdown cells, and
//! code that the model runs is in code cells, so the whole conversation is one notebook.
//!
//! ```text
//! person's cell ──▶ thread (pure): cells → messages ──▶ endpoint ──▶ stream (pure): events → text and tool calls
//!                     ▲                                                    │ text: a growing markdown cell
//!                     └── render::summary: outputs → text and images ◀────┘ tool calls: code cells that run
//! ```
//!
//! The conversation happens in the server and outlives the client's connection. A killed server does not repeat a request:
//! the next server marks the unfinished answer as interrupted. Everything that an endpoint sends is untrusted input with
//! size limits.

mod agent_loop;
mod endpoint;
mod error;
mod registry;
mod stream;
mod thread;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use thiserror::Error;

pub use endpoint::{ApiKey, ModelSettings};

use crate::ids::{self, Access, SessionId};
use crate::manager::{ServiceError, SessionReader, SessionService, StoreError};
use crate::session::{Cell, CellType, NewCell};
use crate::telemetry::traces;
use agent_loop::AgentLoop;
use endpoint::Endpoint;
use error::ChatError;
use registry::{MAX_TURNS, MAX_TURNS_PER_PRINCIPAL, TurnGuard, TurnRegistry};
use thread::{ChatMetadata, KEY, MessageState, Role};

/// The largest message of a person in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Why a message is not accepted.
#[derive(Debug, Error)]
pub enum AskError {
    #[error(
        "this server has no model; start it with --model-url http://HOST/v1 --model NAME, or set [model] in cellkeep.toml"
    )]
    NoModel,
    #[error("the model is answering in this session already; wait, or stop it")]
    TurnInProgress,
    #[error(
        "{MAX_TURNS} answers, or {MAX_TURNS_PER_PRINCIPAL} for this session's owner, are in progress, which is the limit; \
         retry in a moment"
    )]
    TooManyTurns,
    #[error(transparent)]
    Service(#[from] ServiceError),
}

struct Inner {
    sessions: SessionService,
    reader: SessionReader,
    endpoint: Option<Arc<Endpoint>>,
    turns: TurnRegistry,
}

/// The conversations of all sessions. Clones share them.
#[derive(Clone)]
pub struct Chats(Arc<Inner>);

impl Chats {
    /// Without a model, all messages are refused. An error says why the address of the model is invalid.
    pub fn new(sessions: SessionService, model: Option<ModelSettings>) -> Result<Self, String> {
        let endpoint = model.map(Endpoint::new).transpose()?.map(Arc::new);
        let reader = sessions.reader().clone();
        Ok(Self(Arc::new(Inner { sessions, reader, endpoint, turns: TurnRegistry::default() })))
    }

    /// The name of the model, if one is configured.
    pub fn model(&self) -> Option<&str> {
        self.0.endpoint.as_deref().map(Endpoint::name)
    }

    /// The cell with the message that is being answered in a session.
    pub fn answered_cell(&self, id: &SessionId) -> Option<String> {
        self.0.turns.cell(id)
    }

    /// Adds the message of a person to the session, and starts to answer it. Returns the cell of the message.
    pub async fn ask(&self, id: &SessionId, access: &Access, text: String) -> Result<Cell, AskError> {
        let endpoint = self.0.endpoint.clone().ok_or(AskError::NoModel)?;
        self.0.sessions.handle_for_write(id, access)?;
        // In a task of its own: the client may disconnect meanwhile.
        let (chats, id) = (self.clone(), id.clone());
        let asking = tokio::spawn(traces::in_current_context(async move { chats.begin(id, endpoint, text).await }));
        asking.await.map_err(|error| ServiceError::from(StoreError::Failed(error.to_string())))?
    }

    async fn begin(&self, id: SessionId, endpoint: Arc<Endpoint>, text: String) -> Result<Cell, AskError> {
        let cell: String = ids::random_uuid().chars().take(8).collect();
        let principal = self.0.reader.row(&id, &Access::All).await?.principal;
        let guard = self.0.turns.start(&id, &principal, &cell)?;
        let message = match self.put_message(&id, &cell, text).await {
            Ok(message) => message,
            Err(error) => {
                self.delete_turn(&id, &cell).await;
                return Err(error.into());
            }
        };
        tokio::spawn(traces::in_current_context(self.clone().answer(id, cell, endpoint, guard)));
        Ok(message)
    }

    async fn answer(self, id: SessionId, cell: String, endpoint: Arc<Endpoint>, guard: TurnGuard) {
        let mut agent_loop = AgentLoop {
            sessions: self.0.sessions.clone(),
            reader: self.0.reader.clone(),
            endpoint,
            id: id.clone(),
            cell: cell.clone(),
            stop: guard.stop.clone(),
            omit_images: false,
            summaries: HashMap::new(),
        };
        // In a task of its own: a panic ends the turn with an error, and the message does not stay unanswered for ever.
        let outcome = match tokio::spawn(traces::in_current_context(async move { agent_loop.run().await })).await {
            Ok(outcome) => outcome,
            // The server is stopping. The next one finds the turn in the store.
            Err(error) if error.is_cancelled() => return,
            Err(_) => Err(ChatError::InternalError),
        };
        if self.record_outcome(&id, &cell, outcome).await {
            self.delete_turn(&id, &cell).await;
        }
        drop(guard);
    }

    /// Records the turn and adds the message. The turn is committed first: a server that finds it after a crash marks it as
    /// interrupted.
    async fn put_message(&self, id: &SessionId, cell: &str, text: String) -> Result<Cell, ServiceError> {
        self.0.reader.store().put_turn(id, cell).await?;
        let metadata = json!({"role": "user", "state": MessageState::Answering.as_str()});
        let new = NewCell {
            id: Some(cell.to_owned()),
            cell_type: Some(CellType::Markdown),
            source: text,
            metadata: Map::from_iter([(KEY.to_owned(), metadata)]),
            ..NewCell::default()
        };
        Ok(self.0.sessions.handle_for_write(id, &Access::All)?.add_cell(new).await?)
    }

    /// Records how a turn ended. Returns `false` if that failed; the next server marks the turn then.
    async fn record_outcome(&self, id: &SessionId, cell: &str, outcome: Result<(), ChatError>) -> bool {
        let recorded = match &outcome {
            Ok(()) => self.set_state(id, cell, MessageState::Done, Value::Null).await,
            Err(ChatError::Stopped) => self.abort(id, cell, MessageState::Stopped, Value::Null).await,
            Err(error) => {
                tracing::info!(session = %id, code = error.code(), "a turn failed");
                let error = json!({"code": error.code(), "detail": error.to_string()});
                self.abort(id, cell, MessageState::Failed, error).await
            }
        };
        // This is normal if the session was deleted.
        if let Err(error) = &recorded {
            tracing::debug!(session = %id, %error, "cannot record the end of a turn");
        }
        recorded.is_ok()
    }

    /// Sets the state of a message whose turn did not complete, and of the unfinished answer.
    async fn abort(&self, id: &SessionId, cell: &str, state: MessageState, error: Value) -> Result<(), ChatError> {
        for part in self.0.reader.cells(id, &Access::All).await? {
            let metadata = ChatMetadata::parse(&part.metadata);
            let is_streaming = metadata.state == Some(MessageState::Streaming);
            if metadata.role == Role::Assistant && metadata.turn == cell && is_streaming {
                self.set_state(id, &part.id, state, Value::Null).await?;
            }
        }
        self.set_state(id, cell, state, error).await
    }

    async fn set_state(&self, id: &SessionId, cell: &str, state: MessageState, error: Value) -> Result<(), ChatError> {
        let mut fields = Map::from_iter([("state".to_owned(), state.as_str().into())]);
        if !error.is_null() {
            fields.insert("error".to_owned(), error);
        }
        agent_loop::update_metadata(&self.0.sessions, id, cell, fields).await
    }

    async fn delete_turn(&self, id: &SessionId, cell: &str) {
        if let Err(error) = self.0.reader.store().delete_turn(id, cell).await {
            tracing::warn!(session = %id, %error, "cannot record the end of a turn");
        }
    }

    /// Stops the turn of a session, and the cell that it runs. Returns `false` if there is no turn.
    pub fn stop(&self, id: &SessionId) -> bool {
        self.0.turns.stop(id)
    }

    /// Waits until no turn is in progress in this session.
    pub async fn until_answered(&self, id: &SessionId) {
        self.0.turns.until_finished(id).await;
    }

    /// Marks the turns that a killed server left behind as interrupted. Nothing is requested or executed again.
    pub async fn recover(&self) -> Result<(), StoreError> {
        for (id, cell) in self.0.reader.store().turns().await? {
            let detail = "the server was stopped while the model was answering; the part that had arrived is kept";
            let error = json!({"code": "interrupted", "detail": detail});
            match self.abort(&id, &cell, MessageState::Interrupted, error).await {
                Ok(()) => self.0.reader.store().delete_turn(&id, &cell).await?,
                Err(error) => tracing::warn!(session = %id, %error, "cannot record the end of a turn"),
            }
        }
        Ok(())
    }
}

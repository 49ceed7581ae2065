//! A conversation with a model, in a session's own cells: what a person says and what the model answers are markdown cells, what the
//! model runs are code cells, so that the whole thread is one notebook.
//!
//! ```text
//! person's cell ──▶ thread (pure): cells → messages ──▶ endpoint ──▶ stream (pure): events → text and calls
//!                     ▲                                                    │ text: a cell that grows
//!                     └── content (pure): outputs → text and pictures ◀────┘ calls: cells that run
//! ```
//!
//! It happens in the server, and outlives whoever asked. A server that is killed over it does not ask again: the next one marks what
//! is there as interrupted. All that an endpoint sends is foreign input, with caps.

mod content;
mod endpoint;
mod error;
mod flood;
mod stream;
mod table;
mod thread;
mod turn;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use thiserror::Error;

pub use endpoint::{Key, ModelSettings};

use crate::ids::{self, SessionId};
use crate::manager::{Keeper, KeeperError, StoreError};
use crate::session::{Cell, CellType, NewCell};
use crate::telemetry::traces;
use endpoint::Endpoint;
use error::ChatError;
use table::{MOST_OF_ONE, MOST_TURNS, Place, Table};
use thread::{KEY, Mark, Role};
use turn::Turn;

/// Bytes of one message of a person.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Why the model is not asked.
#[derive(Debug, Error)]
pub enum AskError {
    /// No model was configured.
    #[error(
        "this server has no model: start it with --model-url http://HOST/v1 --model NAME, or set [model] in cellkeep.toml"
    )]
    NoModel,
    /// It answers already.
    #[error("the model answers in this session already; wait, or stop it")]
    Answering,
    /// Others are being answered.
    #[error(
        "{MOST_TURNS} answers, or {MOST_OF_ONE} of this session's owner, are on their way already; ask again in a moment"
    )]
    Busy,
    /// The session cannot be used.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

struct Inner {
    keeper: Keeper,
    endpoint: Option<Arc<Endpoint>>,
    answering: Table,
}

/// The conversations of all sessions. Clones share them.
#[derive(Clone)]
pub struct Chats(Arc<Inner>);

impl Chats {
    /// Conversations with this model; with none, nobody can be asked.
    ///
    /// # Errors
    /// In words, when the model's address makes no sense.
    pub fn new(keeper: Keeper, model: Option<ModelSettings>) -> Result<Self, String> {
        let endpoint = model.map(Endpoint::new).transpose()?.map(Arc::new);
        Ok(Self(Arc::new(Inner { keeper, endpoint, answering: Table::default() })))
    }

    /// The model's name, where there is one.
    pub fn model(&self) -> Option<&str> {
        self.0.endpoint.as_deref().map(Endpoint::name)
    }

    /// The cell that is being answered in a session.
    pub fn answered_cell(&self, id: &SessionId) -> Option<String> {
        self.0.answering.cell(id)
    }

    /// Puts a person's message into the session and begins to answer it. Gives the message's cell.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, id: &SessionId, principal: Option<&str>, text: String) -> Result<Cell, AskError> {
        let endpoint = self.0.endpoint.clone().ok_or(AskError::NoModel)?;
        self.0.keeper.handle_for_work(id, principal)?;
        // Whoever asks may go away meanwhile.
        let (chats, id) = (self.clone(), id.clone());
        let asking = tokio::spawn(traces::carry(async move { chats.begin(id, endpoint, text).await }));
        asking.await.map_err(|error| KeeperError::from(StoreError::Failed(error.to_string())))?
    }

    async fn begin(&self, id: SessionId, endpoint: Arc<Endpoint>, text: String) -> Result<Cell, AskError> {
        let cell: String = ids::random_uuid().chars().take(8).collect();
        let principal = self.0.keeper.row(&id, None).await?.principal;
        let place = self.0.answering.admit(&id, &principal, &cell)?;
        let made = match self.put_message(&id, &cell, text).await {
            Ok(made) => made,
            Err(error) => {
                self.forget(&id, &cell).await;
                return Err(error.into());
            }
        };
        tokio::spawn(traces::carry(self.clone().answer(id, cell, endpoint, place)));
        Ok(made)
    }

    async fn answer(self, id: SessionId, cell: String, endpoint: Arc<Endpoint>, place: Place) {
        let mut turn = Turn {
            keeper: self.0.keeper.clone(),
            endpoint,
            id: id.clone(),
            cell: cell.clone(),
            stop: place.stop.clone(),
            without_pictures: false,
            seen: HashMap::new(),
        };
        // In a task of its own: a fault of ours is told as such, and the message is not answered for ever.
        let outcome = match tokio::spawn(traces::carry(async move { turn.run().await })).await {
            Ok(outcome) => outcome,
            // The server ends: the next one finds it.
            Err(error) if error.is_cancelled() => return,
            Err(_) => Err(ChatError::Fault),
        };
        if self.conclude(&id, &cell, outcome).await {
            self.forget(&id, &cell).await;
        }
        drop(place);
    }

    /// That an answer is on its way is written down before it is begun: a server that finds it so has an interrupted one.
    async fn put_message(&self, id: &SessionId, cell: &str, text: String) -> Result<Cell, KeeperError> {
        self.0.keeper.store().put_turn(id, cell).await?;
        let mark = json!({"role": "user", "state": "answering"});
        let new = NewCell {
            id: Some(cell.to_owned()),
            cell_type: Some(CellType::Markdown),
            source: text,
            metadata: Map::from_iter([(KEY.to_owned(), mark)]),
            ..NewCell::default()
        };
        Ok(self.0.keeper.handle_for_work(id, None)?.add_cell(new).await?)
    }

    /// Writes down how it ended; `false` when that cannot be written, and is left to the next server.
    async fn conclude(&self, id: &SessionId, cell: &str, outcome: Result<(), ChatError>) -> bool {
        let concluded = match &outcome {
            Ok(()) => self.mark(id, cell, "done", Value::Null).await,
            Err(ChatError::Stopped) => self.break_off(id, cell, "stopped", Value::Null).await,
            Err(error) => {
                tracing::info!(session = %id, code = error.code(), "an answer failed");
                self.break_off(id, cell, "failed", json!({"code": error.code(), "detail": error.to_string()})).await
            }
        };
        // A session that was deleted has nobody to tell.
        if let Err(error) = &concluded {
            tracing::debug!(session = %id, %error, "an answer's end cannot be written down");
        }
        concluded.is_ok()
    }

    /// Marks an answer that did not come to its end: what has come of it, and the message that it was to.
    async fn break_off(&self, id: &SessionId, cell: &str, state: &str, error: Value) -> Result<(), ChatError> {
        for part in self.0.keeper.cells(id, None).await? {
            let mark = Mark::of(&part.metadata);
            let grew = part.metadata.get(KEY).and_then(|mark| mark.get("state")).is_some_and(|state| state == "streaming");
            if mark.role == Role::Assistant && mark.turn == cell && grew {
                self.mark(id, &part.id, state, Value::Null).await?;
            }
        }
        self.mark(id, cell, state, error).await
    }

    async fn mark(&self, id: &SessionId, cell: &str, state: &str, error: Value) -> Result<(), ChatError> {
        let mut fields = Map::from_iter([("state".to_owned(), state.into())]);
        if !error.is_null() {
            fields.insert("error".to_owned(), error);
        }
        turn::mark(&self.0.keeper, id, cell, fields).await
    }

    async fn forget(&self, id: &SessionId, cell: &str) {
        if let Err(error) = self.0.keeper.store().delete_turn(id, cell).await {
            tracing::warn!(session = %id, %error, "an answer's end cannot be written down");
        }
    }

    /// Stops the answer of a session, and the cell that it runs; `false` when there is none.
    pub fn stop(&self, id: &SessionId) -> bool {
        self.0.answering.stop(id)
    }

    /// Waits until the model does not answer in this session.
    pub async fn until_answered(&self, id: &SessionId) {
        self.0.answering.until_free(id).await;
    }

    /// Marks what an earlier server was killed over. Nothing is asked or run again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recover(&self) -> Result<(), StoreError> {
        for (id, cell) in self.0.keeper.store().turns().await? {
            let detail = "the server was stopped while the model answered; what had come is kept";
            let error = json!({"code": "interrupted", "detail": detail});
            match self.break_off(&id, &cell, "interrupted", error).await {
                Ok(()) => self.0.keeper.store().delete_turn(&id, &cell).await?,
                Err(error) => tracing::warn!(session = %id, %error, "an answer's end cannot be written down"),
            }
        }
        Ok(())
    }
}

//! The agent loop of one turn: request a reply, write it into a cell as it arrives, execute its tool calls, and repeat until
//! a reply has no tool calls.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::endpoint::{Endpoint, ReplyStream};
use super::error::ChatError;
use super::stream::{self, ModelReply, ToolCall};
use super::thread::{self, CellCollector, ChatMetadata, KEY, Message, MessageState, ThreadCell};
use crate::ids::{self, Access, Seq, SessionId};
use crate::manager::{EventKind, SessionReader, SessionService};
use crate::render::summary::{ArtifactInfo, Image, Summary, SummaryLimits, summarize};
use crate::session::{Cell, CellEdit, CellPhase, CellType, Denied, ExecutionOptions, NewCell, SessionError, SessionState};

/// The largest number of replies in one turn. Each of them may have tool calls.
pub(super) const MAX_STEPS: usize = 20;
/// The interval of writing a growing reply into its cell. A killed server loses the text since the last write.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);
/// The number of latest cells that are considered for the thread.
const MAX_CELLS: usize = 400;
/// The interval of checking that the session still lives. It is shorter than the smallest idle timeout.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait for a cancelled cell.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(15);

/// The cell of a reply.
enum ReplyCell {
    /// No text has arrived yet.
    NotCreated,
    Created(String),
    /// A person has deleted the cell.
    Deleted,
}

/// The state of one turn.
pub(super) struct AgentLoop {
    pub sessions: SessionService,
    pub reader: SessionReader,
    pub endpoint: Arc<Endpoint>,
    pub id: SessionId,
    /// The cell of the message that is being answered.
    pub cell: String,
    pub stop: watch::Receiver<bool>,
    /// The endpoint refused a request with images and accepted it without.
    pub omit_images: bool,
    /// A cache of output summaries by cell, valid as long as the last event of the cell is the same.
    pub summaries: HashMap<String, (Seq, Summary)>,
}

impl AgentLoop {
    /// Runs until the turn or the session ends. The session is not idle meanwhile, however long the model is silent.
    pub async fn run(&mut self) -> Result<(), ChatError> {
        let (sessions, id) = (self.sessions.clone(), self.id.clone());
        tokio::select! {
            outcome = self.run_steps() => outcome,
            gone = until_gone(&sessions, &id) => Err(gone),
        }
    }

    async fn run_steps(&mut self) -> Result<(), ChatError> {
        let mut call_errors = Vec::new();
        for step in 1..=MAX_STEPS {
            let stream = self.request(std::mem::take(&mut call_errors)).await?;
            let reply = self.receive(step, stream).await?;
            if reply.calls.is_empty() {
                return if reply.text.trim().is_empty() { Err(ChatError::Empty) } else { Ok(()) };
            }
            for call in &reply.calls {
                match stream::parse_code(call) {
                    Ok(code) => self.run_code(step, call, code).await?,
                    Err(error) => call_errors.push(error),
                }
            }
        }
        Err(ChatError::TooManySteps { max: MAX_STEPS })
    }

    /// Requests a reply to the current thread.
    async fn request(&mut self, call_errors: Vec<String>) -> Result<ReplyStream, ChatError> {
        let language = self.reader.row(&self.id, &Access::All).await?.language;
        let (mut messages, left_out) = self.build_thread(&language).await?;
        let errors = call_errors.into_iter();
        messages.extend(errors.map(|text| Message::user(format!("Your last call could not be run: {text}"))));
        let with_images = self.endpoint.accepts_images() && !self.omit_images;
        let (body, has_images) = self.request_body(&messages, &language, left_out, with_images).await?;
        let mut stop = self.stop.clone();
        let requesting = async {
            match self.endpoint.request(&body).await {
                Err(refusal) if has_images && refusal.may_concern_images() => {
                    let (body, _) = self.request_body(&messages, &language, left_out, false).await?;
                    let stream = self.endpoint.request(&body).await?;
                    Ok((stream, Some(refusal)))
                }
                stream => stream.map(|stream| (stream, None)),
            }
        };
        let (stream, refusal) = tokio::select! {
            response = requesting => response?,
            () = stopped(&mut stop) => return Err(ChatError::Stopped),
        };
        if let Some(refusal) = refusal {
            // Images are omitted for this turn. Other turns send them, unless the endpoint says that it accepts none: a
            // single bad image is no reason to omit all images for ever.
            self.omit_images = true;
            if refusal.says_no_images() {
                self.endpoint.disable_images();
            }
        }
        Ok(stream)
    }

    /// Builds the messages of the thread. Returns the number of cells that are left out as well.
    async fn build_thread(&mut self, language: &str) -> Result<(Vec<Message>, usize), ChatError> {
        let cells = self.reader.cells(&self.id, &Access::All).await?;
        let artifacts = self.reader.artifact_infos(&self.id).await?;
        let count = cells.len();
        let mut collector = CellCollector::default();
        let mut cached = std::mem::take(&mut self.summaries);
        let mut read = 0;
        for cell in cells.into_iter().rev().take(MAX_CELLS) {
            if collector.is_full() {
                break;
            }
            let known = cached.remove(&cell.id).filter(|(seq, _)| *seq == cell.execution.last_seq);
            let summary = match known {
                Some((_, summary)) => summary,
                None => self.summarize(&cell, &artifacts).await?,
            };
            // Inline images can have megabytes, so they are not cached.
            if !summary.images.iter().any(|image| image.base64.is_some()) {
                self.summaries.insert(cell.id.clone(), (cell.execution.last_seq, summary.clone()));
            }
            collector.add(as_thread_cell(cell, summary));
            read += 1;
        }
        let (messages, left_out) = thread::messages(&collector.into_cells(), language);
        Ok((messages, count - read + left_out))
    }

    /// Summarizes the outputs of a cell. `artifacts` are those of the session.
    async fn summarize(&self, cell: &Cell, artifacts: &HashMap<String, ArtifactInfo>) -> Result<Summary, ChatError> {
        if cell.cell_type != CellType::Code {
            return Ok(Summary::default());
        }
        Ok(summarize(&self.reader.output_ends(&self.id, cell).await?, artifacts, SummaryLimits::default()))
    }

    /// The body of a request, and whether it has images.
    async fn request_body(
        &self,
        messages: &[Message],
        language: &str,
        left_out: usize,
        with_images: bool,
    ) -> Result<(Value, bool), ChatError> {
        let mut all = vec![json!({"role": "system", "content": thread::system(language, left_out)})];
        let mut has_images = false;
        for message in messages {
            let mut urls = Vec::new();
            for image in message.images.iter().filter(|_| with_images) {
                urls.extend(self.data_url(image).await);
            }
            if urls.is_empty() && message.has_only_images {
                continue;
            }
            has_images |= !urls.is_empty();
            all.push(message.to_json(&urls));
        }
        let body = json!({
            "model": self.endpoint.name(), "messages": all, "tools": thread::tools(language), "stream": true,
        });
        Ok((body, has_images))
    }

    /// An image as a data URL. `None` if its artifact is gone; the text still mentions the image.
    async fn data_url(&self, image: &Image) -> Option<String> {
        let base64 = match &image.base64 {
            Some(base64) => base64.clone(),
            None => {
                let bytes = self.reader.blobs().get(&image.sha256).await.ok()??;
                base64::engine::general_purpose::STANDARD.encode(bytes)
            }
        };
        Some(format!("data:{};base64,{base64}", image.mime))
    }

    // ---- text of replies ---------------------------------------------------------------------------------------------

    /// Receives a reply, and writes its text into a cell as it arrives.
    async fn receive(&mut self, step: usize, mut stream: ReplyStream) -> Result<ModelReply, ChatError> {
        let mut reply_cell = ReplyCell::NotCreated;
        let (mut written, mut last) = (0, Instant::now().checked_sub(WRITE_INTERVAL).unwrap_or_else(Instant::now));
        let received = loop {
            let is_due = stream.reply.text.len() > written && !stream.reply.text.trim().is_empty();
            tokio::select! {
                more = stream.next() => match more {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                },
                () = tokio::time::sleep_until(last + WRITE_INTERVAL), if is_due => {
                    self.write(&mut reply_cell, step, &stream.reply.text).await?;
                    (written, last) = (stream.reply.text.len(), Instant::now());
                }
                () = stopped(&mut self.stop) => break Err(ChatError::Stopped),
            }
        };
        if stream.reply.text.len() > written && !stream.reply.text.trim().is_empty() {
            self.write(&mut reply_cell, step, &stream.reply.text).await?;
        }
        let outcome = received.and_then(|()| stream.reply.finish(step));
        if let ReplyCell::Created(cell) = reply_cell {
            let state = match &outcome {
                Ok(_) => MessageState::Done,
                Err(ChatError::Stopped) => MessageState::Stopped,
                Err(_) => MessageState::Failed,
            };
            let mut fields = Map::from_iter([("state".to_owned(), state.as_str().into())]);
            if let Ok(ModelReply { finish: Some(reason), .. }) = &outcome
                && reason == "length"
            {
                fields.insert("cut".to_owned(), true.into());
            }
            update_metadata(&self.sessions, &self.id, &cell, fields).await?;
        }
        outcome
    }

    async fn write(&self, cell: &mut ReplyCell, step: usize, text: &str) -> Result<(), ChatError> {
        let handle = self.sessions.handle_for_write(&self.id, &Access::All)?;
        match cell {
            ReplyCell::NotCreated => {
                let mut metadata = self.metadata(step);
                metadata["state"] = MessageState::Streaming.as_str().into();
                metadata["model"] = self.endpoint.name().into();
                let new = NewCell {
                    cell_type: Some(CellType::Markdown),
                    source: text.to_owned(),
                    metadata: Map::from_iter([(KEY.to_owned(), metadata)]),
                    ..NewCell::default()
                };
                *cell = ReplyCell::Created(handle.add_cell(new).await?.id);
            }
            ReplyCell::Created(id) => {
                let edit = CellEdit { source: Some(text.to_owned()), ..CellEdit::default() };
                match handle.edit_cell(id, edit).await {
                    Err(SessionError::Denied(Denied::NoCell { .. })) => *cell = ReplyCell::Deleted,
                    other => drop(other?),
                }
            }
            ReplyCell::Deleted => {}
        }
        Ok(())
    }

    fn metadata(&self, step: usize) -> Value {
        json!({"role": "assistant", "turn": self.cell, "step": step})
    }

    // ---- tool calls --------------------------------------------------------------------------------------------------

    /// Executes code as a new cell, and waits until it ends.
    async fn run_code(&mut self, step: usize, call: &ToolCall, code: String) -> Result<(), ChatError> {
        let mut metadata = self.metadata(step);
        metadata["call"] = call.id.as_str().into();
        let timeout_seconds = self.sessions.cell_timeout(&self.id, &Access::All)?;
        let handle = self.sessions.handle_for_write(&self.id, &Access::All)?;
        let new = NewCell {
            id: Some(ids::random_uuid().chars().take(8).collect()),
            source: code,
            metadata: Map::from_iter([(KEY.to_owned(), metadata)]),
            // No stdin: possibly nobody is there to answer.
            options: ExecutionOptions { timeout_seconds, ..ExecutionOptions::default() },
            run: true,
            ..NewCell::default()
        };
        self.sessions.admit_executions(&self.id, &Access::All, 1)?;
        let cell = handle.add_cell(new).await?;
        let (reader, id) = (self.reader.clone(), self.id.clone());
        let ended = until_ended(&reader, &id, &cell);
        tokio::pin!(ended);
        tokio::select! {
            ended = &mut ended => return ended,
            () = stopped(&mut self.stop) => {}
        }
        // Fails if the cell has ended meanwhile.
        let _ = handle.cancel_cell(&cell.id).await;
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, ended).await;
        Err(ChatError::Stopped)
    }
}

async fn until_ended(reader: &SessionReader, id: &SessionId, cell: &Cell) -> Result<(), ChatError> {
    let mut subscription = reader.subscribe(id, &Access::All, Seq(cell.execution.first_seq.0.saturating_sub(1)))?;
    while let Some(events) = subscription.next().await? {
        let ends = events.iter().filter(|event| event.kind == EventKind::CellFinished);
        if ends.into_iter().any(|event| event.cell.as_deref() == Some(&cell.id)) {
            break;
        }
    }
    Ok(())
}

/// Touches the session regularly, so that it is not idle. Returns when the session has ended, with the reason.
async fn until_gone(sessions: &SessionService, id: &SessionId) -> ChatError {
    loop {
        match sessions.handle(id, &Access::All).map(|handle| handle.state()) {
            Ok(SessionState::Gone { why }) => return SessionError::Gone { why }.into(),
            Ok(_) => tokio::time::sleep(LIVENESS_INTERVAL).await,
            Err(error) => return error.into(),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn as_thread_cell(cell: Cell, outputs: Summary) -> ThreadCell {
    let status = match (cell.execution.phase, cell.execution.status()) {
        (CellPhase::Finished, status) => status.map(|status| format!("status: {}", status.name())),
        (phase, _) => Some(format!("status: {}", phase.as_str())),
    };
    let is_code = cell.cell_type == CellType::Code;
    ThreadCell { is_code, metadata: ChatMetadata::parse(&cell.metadata), source: cell.source, status, outputs }
}

/// Updates fields of a cell's chat metadata. Other metadata stays unchanged.
pub(super) async fn update_metadata(
    sessions: &SessionService,
    id: &SessionId,
    cell: &str,
    fields: Map<String, Value>,
) -> Result<(), ChatError> {
    let reader = sessions.reader();
    let Some(Cell { mut metadata, .. }) = reader.cell(id, &Access::All, cell).await? else { return Ok(()) };
    match metadata.get_mut(KEY) {
        Some(Value::Object(own)) => own.extend(fields),
        _ => drop(metadata.insert(KEY.to_owned(), fields.into())),
    }
    let json = Value::Object(metadata.clone()).to_string();
    let edit = CellEdit { metadata: Some(metadata), ..CellEdit::default() };
    match sessions.peek(id, &Access::All)?.edit_cell(cell, edit).await {
        Ok(_) | Err(SessionError::Denied(Denied::NoCell { .. })) => Ok(()),
        // An ended session accepts no edits, so its row is changed: the message must not look unanswered for ever.
        Err(SessionError::Gone { .. }) => Ok(reader.store().put_metadata(id, cell, json).await?),
        Err(error) => Err(error.into()),
    }
}

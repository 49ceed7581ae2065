//! One answer of the model: asked, written down as it comes, its runs run, and asked again until it calls for none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::content::{self, Picture, Shown};
use super::endpoint::{Asked, Endpoint};
use super::error::ChatError;
use super::flood;
use super::stream::{self, Answer, Call};
use super::thread::{self, Gathered, KEY, Mark, Message, Told};
use crate::ids::{self, Seq, SessionId};
use crate::manager::{Keeper, outputs_of};
use crate::session::{Cell, CellEdit, CellPhase, CellType, Denied, NewCell, RunOptions, SessionError, SessionState};

/// Messages of the model in one answer: each may call for runs.
pub(super) const MAX_STEPS: usize = 20;
/// Between two writings of a text that grows. What came since the last is lost with a killed server.
const WRITE_EVERY: Duration = Duration::from_millis(250);
/// The latest cells that are looked at.
const MAX_CELLS: usize = 400;
/// Bytes of a cell's events that are read from each end.
const MAX_EVENTS: usize = 512 << 10;
/// Between two looks at whether the session is still there: less than the shortest idle time that one can have.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a cell that was told to stop is waited for.
const STOPPING: Duration = Duration::from_secs(15);

/// Why a cell of the model's own is not written to any more.
enum Write {
    /// Nothing was said yet.
    Nothing,
    Cell(String),
    /// A person has deleted it.
    Deleted,
}

/// One answer.
pub(super) struct Turn {
    pub keeper: Keeper,
    pub endpoint: Arc<Endpoint>,
    pub id: SessionId,
    /// The person's cell that is answered.
    pub cell: String,
    pub stop: watch::Receiver<bool>,
    /// A request with pictures was refused, and taken without.
    pub without_pictures: bool,
    /// What the cells of the last request showed, by the number of their last event.
    pub seen: HashMap<String, (Seq, Shown)>,
}

impl Turn {
    /// Answers to the end: its own, or the session's. A session that is answered is not idle, however long the model is silent.
    pub async fn run(&mut self) -> Result<(), ChatError> {
        let (keeper, id) = (self.keeper.clone(), self.id.clone());
        tokio::select! {
            outcome = self.answer() => outcome,
            gone = until_gone(&keeper, &id) => Err(gone),
        }
    }

    async fn answer(&mut self) -> Result<(), ChatError> {
        let mut complaints = Vec::new();
        for step in 1..=MAX_STEPS {
            let asked = self.ask(std::mem::take(&mut complaints)).await?;
            let answer = self.listen(step, asked).await?;
            if answer.calls.is_empty() {
                return if answer.text.trim().is_empty() { Err(ChatError::Empty) } else { Ok(()) };
            }
            for call in &answer.calls {
                match stream::code_of(call) {
                    Ok(code) => self.run_code(step, call, code).await?,
                    Err(complaint) => complaints.push(complaint),
                }
            }
        }
        Err(ChatError::TooManySteps { most: MAX_STEPS })
    }

    async fn ask(&mut self, complaints: Vec<String>) -> Result<Asked, ChatError> {
        let language = self.keeper.row(&self.id, None).await?.language;
        let (mut messages, left_out) = self.thread(&language).await?;
        messages
            .extend(complaints.into_iter().map(|text| Message::user(format!("Your last call could not be run: {text}"))));
        let pictures = self.endpoint.takes_pictures() && !self.without_pictures;
        let (body, shows) = self.body(&messages, &language, left_out, pictures).await?;
        let mut stop = self.stop.clone();
        let asking = async {
            match self.endpoint.ask(&body).await {
                Err(refused) if shows && refused.may_be_pictures() => {
                    let (body, _) = self.body(&messages, &language, left_out, false).await?;
                    let asked = self.endpoint.ask(&body).await?;
                    Ok((asked, Some(refused)))
                }
                asked => asked.map(|asked| (asked, None)),
            }
        };
        let (asked, refused) = tokio::select! {
            asked = asking => asked?,
            () = stopped(&mut stop) => return Err(ChatError::Stopped),
        };
        if let Some(refused) = refused {
            // One picture that it cannot read is no reason to show it, or others, none ever after.
            self.without_pictures = true;
            if refused.says_blind() {
                self.endpoint.forget_pictures();
            }
        }
        Ok(asked)
    }

    async fn thread(&mut self, language: &str) -> Result<(Vec<Message>, usize), ChatError> {
        let cells = self.keeper.cells(&self.id, None).await?;
        let rows = self.keeper.store().artifacts(&self.id).await?;
        let sizes = rows.into_iter().map(|row| (row.sha256, row.bytes.max(0).cast_unsigned())).collect();
        let count = cells.len();
        let mut gathered = Gathered::default();
        let mut former = std::mem::take(&mut self.seen);
        let mut read = 0;
        for cell in cells.into_iter().rev().take(MAX_CELLS) {
            if gathered.is_full() {
                break;
            }
            let known = former.remove(&cell.id).filter(|(seq, _)| *seq == cell.run.last_seq).map(|(_, shown)| shown);
            let shown = match known {
                Some(shown) => shown,
                None => self.shown(&cell, &sizes).await?,
            };
            // Pictures in place can be megabytes: they are read anew.
            if !shown.pictures.iter().any(|picture| matches!(picture, Picture::Inline { .. })) {
                self.seen.insert(cell.id.clone(), (cell.run.last_seq, shown.clone()));
            }
            gathered.add(as_told(cell, shown));
            read += 1;
        }
        let (messages, left_out) = thread::messages(&gathered.into_cells(), language);
        Ok((messages, count - read + left_out))
    }

    async fn shown(&self, cell: &Cell, sizes: &HashMap<String, u64>) -> Result<Shown, ChatError> {
        if cell.cell_type != CellType::Code {
            return Ok(Shown::default());
        }
        let (first, last) = self.keeper.store().ends_of_cell(&self.id, &cell.id, cell.run.first_seq, MAX_EVENTS).await?;
        let mut outputs = outputs_of(&first);
        if !last.is_empty() {
            // A flood: the model is told its two ends, and nobody reads what is between them.
            outputs.push(json!({"output_type": "stream", "name": "stdout", "text": "[… much is left out here …]\n"}));
            outputs.extend(flood::outputs_of_end(&last));
        }
        outputs.extend(cell.run.result.as_ref().and_then(|result| result.untold_error()));
        Ok(content::shown(&outputs, sizes))
    }

    /// The request, and whether it shows pictures.
    async fn body(
        &self,
        messages: &[Message],
        language: &str,
        left_out: usize,
        pictures: bool,
    ) -> Result<(Value, bool), ChatError> {
        let mut all = vec![json!({"role": "system", "content": thread::system(language, left_out)})];
        let mut shows = false;
        for message in messages {
            let mut urls = Vec::new();
            for picture in message.pictures.iter().filter(|_| pictures) {
                urls.extend(self.url(picture).await);
            }
            if urls.is_empty() && message.only_pictures {
                continue;
            }
            shows |= !urls.is_empty();
            all.push(message.json(&urls));
        }
        let body = json!({
            "model": self.endpoint.name(), "messages": all, "tools": thread::tools(language), "stream": true,
        });
        Ok((body, shows))
    }

    /// A picture as a data address. One that is gone is left out: its place is told in the text.
    async fn url(&self, picture: &Picture) -> Option<String> {
        match picture {
            Picture::Inline { mime, base64 } => Some(format!("data:{mime};base64,{base64}")),
            Picture::Artifact { mime, sha256 } => {
                let bytes = self.keeper.blobs().get(sha256).await.ok()??;
                Some(format!("data:{mime};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
            }
        }
    }

    // ---- its text ----------------------------------------------------------------------------------------------------

    /// Writes an answer down as it comes.
    async fn listen(&mut self, step: usize, mut asked: Asked) -> Result<Answer, ChatError> {
        let mut write = Write::Nothing;
        let (mut written, mut last) = (0, Instant::now().checked_sub(WRITE_EVERY).unwrap_or_else(Instant::now));
        let heard = loop {
            let is_due = asked.answer.text.len() > written && !asked.answer.text.trim().is_empty();
            tokio::select! {
                more = asked.more() => match more {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                },
                () = tokio::time::sleep_until(last + WRITE_EVERY), if is_due => {
                    self.write(&mut write, step, &asked.answer.text).await?;
                    (written, last) = (asked.answer.text.len(), Instant::now());
                }
                () = stopped(&mut self.stop) => break Err(ChatError::Stopped),
            }
        };
        if asked.answer.text.len() > written && !asked.answer.text.trim().is_empty() {
            self.write(&mut write, step, &asked.answer.text).await?;
        }
        let outcome = heard.and_then(|()| asked.answer.finish(step));
        if let Write::Cell(cell) = write {
            let state = match &outcome {
                Ok(_) => "done",
                Err(ChatError::Stopped) => "stopped",
                Err(_) => "failed",
            };
            let mut fields = Map::from_iter([("state".to_owned(), state.into())]);
            if let Ok(Answer { finish: Some(reason), .. }) = &outcome
                && reason == "length"
            {
                fields.insert("cut".to_owned(), true.into());
            }
            mark(&self.keeper, &self.id, &cell, fields).await?;
        }
        outcome
    }

    async fn write(&self, write: &mut Write, step: usize, text: &str) -> Result<(), ChatError> {
        let handle = self.keeper.handle_for_work(&self.id, None)?;
        match write {
            Write::Nothing => {
                let mut metadata = self.metadata(step);
                metadata["state"] = "streaming".into();
                metadata["model"] = self.endpoint.name().into();
                let new = NewCell {
                    cell_type: Some(CellType::Markdown),
                    source: text.to_owned(),
                    metadata: Map::from_iter([(KEY.to_owned(), metadata)]),
                    ..NewCell::default()
                };
                *write = Write::Cell(handle.add_cell(new).await?.id);
            }
            Write::Cell(cell) => {
                let edit = CellEdit { source: Some(text.to_owned()), ..CellEdit::default() };
                match handle.edit_cell(cell, edit).await {
                    Err(SessionError::Denied(Denied::NoCell { .. })) => *write = Write::Deleted,
                    other => drop(other?),
                }
            }
            Write::Deleted => {}
        }
        Ok(())
    }

    fn metadata(&self, step: usize) -> Value {
        json!({"role": "assistant", "turn": self.cell, "step": step})
    }

    // ---- its runs ----------------------------------------------------------------------------------------------------

    /// Runs code as a cell, to its end.
    async fn run_code(&mut self, step: usize, call: &Call, code: String) -> Result<(), ChatError> {
        let mut metadata = self.metadata(step);
        metadata["call"] = call.id.as_str().into();
        let timeout_seconds = self.keeper.cell_timeout(&self.id, None)?;
        let handle = self.keeper.handle_for_work(&self.id, None)?;
        let new = NewCell {
            id: Some(ids::random_uuid().chars().take(8).collect()),
            source: code,
            metadata: Map::from_iter([(KEY.to_owned(), metadata)]),
            // Nobody may be there to answer a question.
            options: RunOptions { timeout_seconds, ..RunOptions::default() },
            run: true,
            ..NewCell::default()
        };
        let cell = handle.add_cell(new).await?;
        let (keeper, id) = (self.keeper.clone(), self.id.clone());
        let ended = until_ended(&keeper, &id, &cell);
        tokio::pin!(ended);
        tokio::select! {
            ended = &mut ended => return ended,
            () = stopped(&mut self.stop) => {}
        }
        // It may have ended at this moment.
        let _ = handle.cancel_cell(&cell.id).await;
        let _ = tokio::time::timeout(STOPPING, ended).await;
        Err(ChatError::Stopped)
    }
}

async fn until_ended(keeper: &Keeper, id: &SessionId, cell: &Cell) -> Result<(), ChatError> {
    let mut follower = keeper.follow(id, None, Seq(cell.run.first_seq.0.saturating_sub(1)))?;
    while let Some(events) = follower.next().await? {
        let ends = |kind: &str| kind == "cell.finished";
        if events.iter().any(|event| event.cell.as_deref() == Some(&cell.id) && ends(&event.kind)) {
            break;
        }
    }
    Ok(())
}

/// Uses the session every now and then; gives why that cannot be done any more.
async fn until_gone(keeper: &Keeper, id: &SessionId) -> ChatError {
    loop {
        match keeper.handle(id, None).map(|handle| handle.state()) {
            Ok(SessionState::Gone { why }) => return SessionError::Gone { why }.into(),
            Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
            Err(error) => return error.into(),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn as_told(cell: Cell, shown: Shown) -> Told {
    let status = match (cell.run.phase, cell.run.status()) {
        (CellPhase::Finished, status) => status.map(|status| format!("status: {}", status.name())),
        (phase, _) => Some(format!("status: {}", phase.name())),
    };
    let is_code = cell.cell_type == CellType::Code;
    Told { is_code, mark: Mark::of(&cell.metadata), source: cell.source, status, shown }
}

/// Writes down where a cell's part in the conversation stands. What else its metadata say stays.
pub(super) async fn mark(keeper: &Keeper, id: &SessionId, cell: &str, fields: Map<String, Value>) -> Result<(), ChatError> {
    let Some(Cell { mut metadata, .. }) = keeper.cell(id, None, cell).await? else { return Ok(()) };
    match metadata.get_mut(KEY) {
        Some(Value::Object(mark)) => mark.extend(fields),
        _ => drop(metadata.insert(KEY.to_owned(), fields.into())),
    }
    let json = Value::Object(metadata.clone()).to_string();
    let edit = CellEdit { metadata: Some(metadata), ..CellEdit::default() };
    match keeper.look(id, None)?.edit_cell(cell, edit).await {
        Ok(_) | Err(SessionError::Denied(Denied::NoCell { .. })) => Ok(()),
        // One that has ended takes no edits, but must not look as if it were answered for ever.
        Err(SessionError::Gone { .. }) => Ok(keeper.store().put_metadata(id, cell, json).await?),
        Err(error) => Err(error.into()),
    }
}

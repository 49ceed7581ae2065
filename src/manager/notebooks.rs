//! A kept session's notebook as a file: taken in, run, given out.
//!
//! The cells and their outputs are the session's. What else a file says (metadata of the notebook, attachments, fields that we do
//! not know) is kept beside them as it came, and is in the file that is given out.

use std::collections::HashMap;
use std::sync::PoisonError;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::Keeper;
use super::keeper::spec_of;
use super::kept::{KeeperError, KeptRun, NewSession};
use super::outputs::{inline_artifacts, outputs_of, read_body};
use super::record::{self, Surroundings};
use crate::ids::{self, Seq, SessionId};
use crate::kernels::{self, Kernel};
use crate::notebook::parameters::{self, Literal, Parameters};
use crate::notebook::{self, Notebook};
use crate::output::{StreamStyle, Widgets};
use crate::sandbox::SandboxKind;
use crate::session::{CLEARED, Cell, CellEdit, CellPhase, CellType, NewCell, RunOptions, RunStatus, SessionHandle};
use crate::store::{EventRow, SessionRow, StoreError, from_ms};
use crate::telemetry::traces;
use crate::wire::Message;
use crate::wire::content::iso8601;

/// Events, and bytes of them, that are read at once.
const PAGE: (usize, usize) = (500, 4 << 20);

/// How a notebook is to be run on its session.
#[derive(Clone, Debug, Default)]
pub struct NotebookRun {
    /// Values for its parameters: a cell with them is put in, as papermill does it.
    pub parameters: Map<String, Value>,
    /// The first cell to be run; `None` for the first of all.
    pub from: Option<String>,
    /// Whether errors leave the cells behind them alone.
    pub allow_errors: bool,
    /// Seconds that each cell may take.
    pub timeout_seconds: Option<f64>,
    /// Seeds random numbers before the first cell. Of jobs only, as the next.
    pub seed: Option<u32>,
    /// Whether it is run only with what its record says it was run with before.
    pub frozen: bool,
}

type Of<'a> = (&'a SessionId, Option<&'a str>);

impl Keeper {
    /// Makes the session's notebook the one of a file, outputs and all. Nothing is run.
    ///
    /// # Errors
    /// [`KeeperError`]; also while a cell is queued or running.
    pub async fn import_notebook(&self, (id, principal): Of<'_>, notebook: &Notebook) -> Result<(), KeeperError> {
        let handle = self.handle_for_work(id, principal)?;
        let cells = notebook.cells().map(|cell| as_new_cell(&cell)).collect();
        let notebook = notebook.clone();
        let beside = apart(move || without_outputs(notebook).print()).await?;
        Ok(handle.replace_cells(cells, beside).await?)
    }

    /// The session's notebook as a file has it.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn notebook(&self, (id, principal): Of<'_>) -> Result<Notebook, KeeperError> {
        let row = self.row(id, principal).await?;
        let kernel = kernels::find(&row.kernel)?;
        let fresh = || Notebook::new(kernel.kernelspec_name(), &kernel.display_name, &kernel.language);
        // What was stored was printed by us.
        let kept = match self.0.store.notebook(id).await? {
            Some(text) => apart(move || Notebook::parse(text.as_bytes()).ok()).await?,
            None => None,
        };
        let was_imported = kept.is_some();
        let mut notebook = kept.unwrap_or_else(fresh);
        let info = row.kernel_info.as_deref().and_then(|info| crate::wire::json::parse_lenient(info.as_bytes()).ok());
        let language_info = info.as_ref().and_then(|info| info.get("language_info")).filter(|info| info.is_object());
        let (cells, mut told): (Vec<Cell>, Vec<Vec<EventRow>>) =
            self.cells_and_events(id, principal).await?.into_iter().unzip();
        let was_run = cells.iter().any(|cell| cell.run.result.is_some());
        // A file of which nothing was run is given out as it came.
        let is_ours = was_run || !was_imported;
        if let Some(language_info) = language_info.filter(|_| is_ours) {
            notebook.set_language_info(language_info.clone());
        }
        if is_ours && notebook.kernelspec_name().is_none() {
            notebook.set_kernelspec(kernel.kernelspec_name(), &kernel.display_name, &kernel.language);
        }
        notebook.rearrange(cells.iter().map(as_file_cell).collect());
        for (index, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.cell_type == CellType::Code) {
            self.put_outputs(&mut notebook, index, cell, std::mem::take(&mut told[index])).await?;
        }
        if let Some(widgets) = self.widgets(id).await? {
            notebook.metadata_mut().insert("widgets".to_owned(), widgets);
        }
        if let Some(run) = spec_of(&row).run {
            write_record(&mut notebook, &row, &run, &cells);
        }
        Ok(notebook)
    }

    /// The state of the widgets that the session's cells have made. What their front ends changed since only those know.
    async fn widgets(&self, id: &SessionId) -> Result<Option<Value>, KeeperError> {
        let mut widgets = Widgets::new(StreamStyle::Terminal);
        let mut after = Seq::default();
        loop {
            let page = self.0.store.events_of_type_after(id, "comm", after, PAGE.0, PAGE.1).await?;
            let Some(last) = page.last() else { return Ok(widgets.metadata()) };
            after = last.seq;
            for event in &page {
                if let Some((msg_type, message)) = comm_message(event) {
                    widgets.take(&msg_type, &message);
                }
            }
        }
    }

    async fn put_outputs(
        &self,
        notebook: &mut Notebook,
        index: usize,
        cell: &Cell,
        events: Vec<EventRow>,
    ) -> Result<(), KeeperError> {
        let mut outputs = outputs_of(&events);
        // Places that Output widgets have cleared. An empty text of another origin is an output as any.
        outputs.retain(|output| output.get(CLEARED).is_none());
        for output in &mut outputs {
            inline_artifacts(output, &self.0.blobs).await.map_err(KeeperError::Artifacts)?;
        }
        // The cells were just put there, those of code as such: none of the calls can fail.
        let Some(result) = &cell.run.result else {
            let _ = notebook.put_back_outputs(index, outputs);
            return Ok(());
        };
        // A cell that was not run has nothing to show.
        outputs.extend(result.untold_error().filter(|_| result.status != RunStatus::Cancelled));
        let _ = notebook.set_outputs(index, outputs, result.execution_count);
        let times: Vec<(&str, &str)> = result.timing.iter().map(|(key, time)| (key.as_str(), time.as_str())).collect();
        let _ = notebook.set_execution_timing(index, &times);
        Ok(())
    }

    /// Queues the notebook's code cells, one behind the other; one that fails cancels those behind it. Gives their ids.
    ///
    /// # Errors
    /// [`KeeperError`]; then nothing is queued.
    pub async fn run_notebook(&self, of: Of<'_>, run: NotebookRun) -> Result<Vec<String>, KeeperError> {
        let handle = self.handle_for_work(of.0, of.1)?;
        if !run.parameters.is_empty() {
            self.inject(of, run.parameters).await?;
        }
        let mut cells = self.cells(of.0, of.1).await?;
        if let Some(from) = run.from {
            let index = cells.iter().position(|cell| cell.id == from);
            let index = index.ok_or(crate::session::SessionError::Denied(crate::session::Denied::NoCell { id: from }))?;
            cells.drain(..index);
        }
        let group = Some(ids::random_uuid());
        let runs: Vec<(String, RunOptions)> = cells
            .into_iter()
            .filter(is_to_be_run)
            .map(|cell| {
                let allow_error = run.allow_errors || has_tag(&cell, "raises-exception");
                let options = RunOptions {
                    timeout_seconds: run.timeout_seconds,
                    allow_stdin: false,
                    group: group.clone(),
                    allow_error,
                };
                (cell.id, options)
            })
            .collect();
        let ids = runs.iter().map(|(id, _)| id.clone()).collect();
        handle.run_cells(runs).await?;
        Ok(ids)
    }

    /// Runs a notebook as a job, on a session of its own that ends with it. Returns once all of it is written down and queued.
    ///
    /// # Errors
    /// [`KeeperError`]; nothing is left behind then.
    pub async fn start_run(
        &self,
        principal: &str,
        new: NewSession,
        notebook: &Notebook,
        run: NotebookRun,
    ) -> Result<SessionId, KeeperError> {
        let mut new = new;
        if let Some(seed) = run.seed {
            new.env.extend(record::seed_env(kernels::find(&new.kernel)?, seed));
        }
        // Whoever asked may go away meanwhile; what was begun is finished, or undone.
        let (keeper, principal, notebook) = (self.clone(), principal.to_owned(), notebook.clone());
        let starting = tokio::spawn(traces::carry(async move {
            let id = keeper.create(&principal, new).await?;
            match keeper.queue_run((&id, Some(&principal)), &notebook, run).await {
                Ok(()) => Ok(id),
                Err(error) => {
                    keeper.delete(&id, Some(&principal)).await?;
                    Err(error)
                }
            }
        }));
        starting.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn queue_run(&self, of: Of<'_>, notebook: &Notebook, run: NotebookRun) -> Result<(), KeeperError> {
        let record = self.prepare_run(of, notebook, &run).await?.to_string();
        self.import_notebook(of, notebook).await?;
        let cells = self.run_notebook(of, run).await?;
        // Only now: a session with a run ends as soon as nothing waits in it.
        self.change(of.0, of.1, |facts| facts.spec.run = Some(KeptRun { cells, record })).await
    }

    /// Does what comes before the first cell, and notes what the notebook is run with.
    async fn prepare_run(&self, of: Of<'_>, notebook: &Notebook, run: &NotebookRun) -> Result<Value, KeeperError> {
        let row = self.row(of.0, of.1).await?;
        let kernel = kernels::find(&row.kernel)?;
        let handle = self.handle_for_work(of.0, of.1)?;
        let kind = self.kept(of.0, of.1)?.sandbox.map(|(_, record)| record.kind);
        let kind = kind.ok_or_else(|| KeeperError::NoSession { id: of.0.to_string() })?;
        let asked = self.surroundings(kernel, &handle, kind, run.frozen).await;
        let mut facts = Map::new();
        facts.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        match (&asked, record::of(notebook), run.frozen) {
            (Ok(now), Some(then), true) => {
                let differences = now.differences(then);
                if !differences.is_empty() {
                    return Err(KeeperError::Changed { differences });
                }
            }
            (_, None, true) => {
                let differences = vec!["it has no record of an earlier run".to_owned()];
                return Err(KeeperError::Changed { differences });
            }
            (Err(why), _, true) => return Err(KeeperError::Unprepared(why.clone())),
            (Err(why), _, false) => tracing::warn!(session = %of.0, why, "the packages of a run are not recorded"),
            (Ok(_), _, false) => {}
        }
        if let Ok(surroundings) = &asked {
            surroundings.write(&mut facts);
        }
        facts.insert("limits".to_owned(), json!(spec_of(&row).limits));
        facts.insert("parameters".to_owned(), Value::Object(run.parameters.clone()));
        if let Some(seed) = run.seed {
            match record::seed(&handle, kernel, seed).await {
                Ok(true) => drop(facts.insert("seed".to_owned(), seed.into())),
                Ok(false) => return Err(KeeperError::Unprepared("it has no random numbers that can be seeded".to_owned())),
                Err(why) => return Err(KeeperError::Unprepared(why)),
            }
        }
        Ok(Value::Object(facts))
    }

    /// What the kernel runs in. Asking it costs as much as a small cell, so that is done once for each environment, unless it
    /// must be `certain`: somebody may have changed one by hand.
    async fn surroundings(
        &self,
        kernel: &Kernel,
        handle: &SessionHandle,
        kind: SandboxKind,
        certain: bool,
    ) -> Result<Surroundings, String> {
        let key = format!("{} {}", kernel.name, record::environment(&self.0.paths, kernel, kind).await);
        let all = || self.0.surroundings.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all().get(&key).cloned();
        if let Some(known) = known.filter(|_| !certain) {
            return Ok(known);
        }
        let asked = Surroundings::ask(&self.0.paths, kernel, handle, kind).await?;
        all().insert(key, asked.clone());
        Ok(asked)
    }

    /// Puts a cell with the parameters' values into the session's notebook, or changes the one that is there.
    async fn inject(&self, of: Of<'_>, values: Map<String, Value>) -> Result<(), KeeperError> {
        let row = self.row(of.0, of.1).await?;
        let handle = self.handle_for_work(of.0, of.1)?;
        let mut parameters = Parameters::default();
        parameters.extend(values.into_iter().map(|(name, value)| (name, Literal::from(value))));
        let mut notebook = Notebook::new("", "", &row.language);
        notebook.rearrange(self.cells(of.0, of.1).await?.iter().map(as_file_cell).collect());
        let before: HashMap<String, String> =
            notebook.cells().map(|cell| (cell.id().to_owned(), cell.source().into_owned())).collect();
        parameters::inject(&mut notebook, &row.language, &parameters)?;
        let mut behind = None;
        for cell in notebook.cells() {
            match before.get(cell.id()) {
                None => {
                    let new = NewCell { after: behind.clone(), ..as_new_cell(&cell) };
                    handle.add_cell(new).await?;
                    if behind.is_none() {
                        let edit = CellEdit { after: Some(None), ..CellEdit::default() };
                        handle.edit_cell(cell.id(), edit).await?;
                    }
                }
                Some(source) if *source != cell.source() => {
                    let edit = CellEdit { source: Some(cell.source().into_owned()), ..CellEdit::default() };
                    handle.edit_cell(cell.id(), edit).await?;
                }
                Some(_) => {}
            }
            behind = Some(cell.id().to_owned());
        }
        Ok(())
    }
}

/// A comm message as the kernel sent it, from its event.
fn comm_message(event: &EventRow) -> Option<(String, Message)> {
    let body = read_body(event);
    let msg_type = body.get("msg_type")?.as_str()?.to_owned();
    let mut message = Message::new_request("", &msg_type, body.get("content")?);
    let buffers = body.get("buffers").and_then(Value::as_array).into_iter().flatten();
    let decode = |text: &Value| base64::engine::general_purpose::STANDARD.decode(text.as_str()?).ok();
    message.buffers = buffers.filter_map(decode).map(Into::into).collect();
    Some((msg_type, message))
}

/// A large notebook takes a while to read and to print: not on the threads that answer everybody.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Failed(error.to_string()))
}

/// The cell that ended a run, if one did: the first that failed, unless its error was allowed.
pub fn failure_of(cells: &[Cell]) -> Option<&Cell> {
    cells.iter().find(|cell| match cell.run.status() {
        None | Some(RunStatus::Ok) => false,
        Some(RunStatus::Error) => !cell.options.allow_error,
        Some(_) => true,
    })
}

/// What a job's notebook says of its run, as the command line has it.
fn write_record(notebook: &mut Notebook, row: &SessionRow, run: &KeptRun, cells: &[Cell]) {
    let mut record = match crate::wire::json::parse_lenient(run.record.as_bytes()) {
        Ok(Value::Object(record)) => record,
        _ => Map::new(),
    };
    let ends = cells.iter().filter_map(|cell| cell.run.result.as_ref()).map(|result| result.started_at + result.wall);
    let is_over = cells.iter().all(|cell| cell.run.phase == CellPhase::Finished);
    let status = match failure_of(cells).and_then(|cell| cell.run.status()) {
        Some(status) => status.name(),
        None if is_over => RunStatus::Ok.name(),
        None => "running",
    };
    let told = json!({
        "id": row.id, "start_time": iso8601(from_ms(row.created_at)),
        "end_time": ends.max().filter(|_| is_over).map(iso8601), "status": status,
    });
    record.insert("run".to_owned(), told);
    notebook.metadata_mut().insert(record::KEY.to_owned(), Value::Object(record));
}

fn has_tag(cell: &Cell, tag: &str) -> bool {
    let tags = cell.metadata.get("tags").and_then(Value::as_array);
    tags.is_some_and(|tags| tags.iter().any(|own| own == tag))
}

/// As nbclient has it: blank cells and those that are tagged so are left as they are.
fn is_to_be_run(cell: &Cell) -> bool {
    cell.cell_type == CellType::Code && !cell.source.trim().is_empty() && !has_tag(cell, "skip-execution")
}

fn as_new_cell(cell: &notebook::Cell<'_>) -> NewCell {
    NewCell {
        id: Some(cell.id().to_owned()),
        // A cell of a later format's own is text to us.
        cell_type: Some(CellType::parse(cell.cell_type()).unwrap_or(CellType::Raw)),
        source: cell.source().into_owned(),
        metadata: cell.metadata().cloned().unwrap_or_default(),
        outputs: cell.outputs().iter().cloned().map(joined).collect(),
        ..NewCell::default()
    }
}

/// An output as the session's events have them: a stream's text as one string.
fn joined(mut output: Value) -> Value {
    if let Some(Value::Array(lines)) = output.get("text") {
        let text: String = lines.iter().filter_map(Value::as_str).collect();
        output["text"] = text.into();
    }
    output
}

fn as_file_cell(cell: &Cell) -> notebook::NewCell {
    notebook::NewCell {
        cell_type: cell.cell_type.name(),
        source: cell.source.clone(),
        metadata: cell.metadata.clone(),
        id: Some(cell.id.clone()),
    }
}

fn without_outputs(mut bare: Notebook) -> Notebook {
    for index in 0..bare.len() {
        // A cell that is no code has none.
        let _ = bare.put_back_outputs(index, Vec::new());
    }
    bare
}

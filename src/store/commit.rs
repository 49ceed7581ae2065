//! The transactions of sessions: events, and the state that results from them.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::cells::{self, CellRow, CellState};
use super::events::{self, EventRow};
use super::sessions::{self, signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Access, Epoch, Seq, SessionId, SessionPhase};

/// The cost of writing a row without its texts, in bytes that take as long to write.
const ROW_COST: usize = 1 << 10;

/// One transaction of a session. It is stored as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Commit {
    /// New events, in order.
    pub events: Vec<EventRow>,
    pub cells: Vec<CellChange>,
    /// New artifacts. Their bytes are in the artifact folder already.
    pub artifacts: Vec<ArtifactRow>,
    pub session: SessionChange,
    /// Changed fold states of cells by their numbers, as JSON. `None` removes a state.
    pub folds: Vec<(u32, Option<String>)>,
    /// An imported notebook file without its cells.
    pub notebook: Option<String>,
}

/// Changes of a session's row. Fields that are `None` stay unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionChange {
    /// The phase, and why the session ended.
    pub phase: Option<(SessionPhase, Option<String>)>,
    /// The epoch of the agent and its last event that the store has after this transaction.
    pub position: Option<(Epoch, Seq)>,
    /// The last event of the session.
    pub last_seq: Option<Seq>,
    /// The state that the driver needs to resume, as JSON.
    pub resume: Option<String>,
    /// The content of the kernel's `kernel_info_reply`, as JSON.
    pub kernel_info: Option<String>,
    /// In milliseconds since 1970.
    pub last_active_at: Option<i64>,
}

/// A change of one cell. Cells are named by their numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum CellChange {
    /// Inserts or replaces the cell.
    Put(Box<CellRow>),
    /// Sets the execution options, a JSON object.
    Options {
        number: u32,
        options: String,
    },
    /// Sets the state of the execution.
    State {
        number: u32,
        execution: CellState,
    },
    Delete {
        number: u32,
    },
}

/// An artifact: an image or file that a cell produced. Its bytes are in the artifact folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactRow {
    pub sha256: String,
    /// The id of the cell that produced it.
    pub cell: String,
    /// A file name.
    pub name: String,
    pub mime: String,
    /// The size in bytes.
    pub bytes: i64,
    /// Width in pixels, if the kernel sent it.
    pub width: Option<i64>,
    /// Height in pixels, if the kernel sent it.
    pub height: Option<i64>,
    /// The event of the output that contains it.
    pub seq: Seq,
}

/// The approximate number of bytes that a transaction writes.
fn write_cost(commit: &Commit) -> usize {
    let events = commit.events.iter().map(|event| ROW_COST + event.body.len());
    let cells = commit.cells.iter().map(|change| match change {
        CellChange::Put(cell) => ROW_COST + cell.source.len() + cell.metadata.len() + cost_of_state(&cell.execution),
        CellChange::State { execution, .. } => ROW_COST + cost_of_state(execution),
        CellChange::Options { .. } | CellChange::Delete { .. } => ROW_COST,
    });
    let long = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let folds = commit.folds.iter().map(|(_, json)| ROW_COST + long(json));
    let texts = long(&commit.notebook) + long(&commit.session.resume) + long(&commit.session.kernel_info);
    events.chain(cells).chain(folds).sum::<usize>() + ROW_COST * commit.artifacts.len() + texts
}

fn cost_of_state(execution: &CellState) -> usize {
    execution.result.as_ref().map_or(0, String::len)
}

fn write(connection: &Connection, session: &SessionId, commit: &Commit) -> rusqlite::Result<()> {
    for event in &commit.events {
        events::append(connection, session, event)?;
    }
    for change in &commit.cells {
        match change {
            CellChange::Put(cell) => cells::put(connection, session, cell)?,
            CellChange::Options { number, options } => cells::set_options(connection, session, *number, options)?,
            CellChange::State { number, execution } => cells::set_state(connection, session, *number, execution)?,
            CellChange::Delete { number } => cells::delete(connection, session, *number)?,
        }
    }
    for artifact in &commit.artifacts {
        put_artifact(connection, session, artifact)?;
    }
    for (number, json) in &commit.folds {
        cells::put_fold(connection, session, *number, json.as_deref())?;
    }
    if let Some(json) = &commit.notebook {
        let put = "INSERT OR REPLACE INTO notebooks (session, json) VALUES (?1, ?2)";
        connection.prepare_cached(put)?.execute(params![session.as_str(), json])?;
    }
    let change = &commit.session;
    let (phase, why) = change.phase.clone().unzip();
    // The phase `deleting` is final: later transactions of the driver do not change it.
    let update = "UPDATE sessions SET state = iif(state = :deleting, state, ifnull(:state, state)), why = ifnull(:why, why), epoch = ifnull(:epoch, epoch), \
                  seq = ifnull(:seq, seq), last_seq = ifnull(:last_seq, last_seq), \
                  last_active_at = max(last_active_at, ifnull(:active, 0)) WHERE id = :id";
    connection.prepare_cached(update)?.execute(named_params! {
        ":deleting": SessionPhase::Deleting, ":state": phase, ":why": why.flatten(),
        ":epoch": change.position.map(|(epoch, _)| signed(epoch.0)), ":seq": change.position.map(|(_, seq)| signed(seq.0)),
        ":last_seq": change.last_seq.map(|seq| signed(seq.0)),
        ":active": change.last_active_at, ":id": session.as_str(),
    })?;
    for (kind, text) in [(sessions::RESUME, &change.resume), (sessions::KERNEL_INFO, &change.kernel_info)] {
        if let Some(json) = text {
            sessions::put_document(connection, session, kind, json)?;
        }
    }
    Ok(())
}

fn put_artifact(connection: &Connection, session: &SessionId, artifact: &ArtifactRow) -> rusqlite::Result<()> {
    let put = "INSERT OR REPLACE INTO artifacts (session, sha256, cell, name, mime, bytes, width, height, seq) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    connection.prepare_cached(put)?.execute(params![
        session.as_str(),
        artifact.sha256,
        artifact.cell,
        artifact.name,
        artifact.mime,
        artifact.bytes,
        artifact.width,
        artifact.height,
        signed(artifact.seq.0)
    ])?;
    Ok(())
}

fn read_artifact(row: &Row<'_>) -> rusqlite::Result<ArtifactRow> {
    Ok(ArtifactRow {
        sha256: row.get(0)?,
        cell: row.get(1)?,
        name: row.get(2)?,
        mime: row.get(3)?,
        bytes: row.get(4)?,
        width: row.get(5)?,
        height: row.get(6)?,
        seq: Seq(unsigned(row.get(7)?)),
    })
}

impl Store {
    /// Commits a transaction of a session. After an error nothing was written, and the same transaction can be retried.
    pub async fn commit(&self, session: &SessionId, commit: Commit) -> Result<(), StoreError> {
        let id = session.clone();
        self.writer.write_sized(write_cost(&commit), move |connection| write(connection, &id, &commit)).await
    }

    /// The artifacts of a session in the order of their events.
    pub async fn artifacts(&self, session: &SessionId) -> Result<Vec<ArtifactRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT sha256, cell, name, mime, bytes, width, height, seq FROM artifacts WHERE session = ?1 \
                          ORDER BY seq, name";
            connection.prepare_cached(select)?.query_map([id.as_str()], read_artifact)?.collect()
        })
        .await
    }

    /// The MIME type of an artifact, if a visible session has it.
    pub async fn artifact_mime(&self, sha256: &str, access: &Access) -> Result<Option<String>, StoreError> {
        let (sha256, principal) = (sha256.to_owned(), access.principal().cloned());
        self.read(move |connection| {
            let select = "SELECT mime FROM artifacts JOIN sessions ON sessions.id = artifacts.session \
                          WHERE sha256 = ?1 AND (?2 IS NULL OR principal = ?2) LIMIT 1";
            connection.prepare_cached(select)?.query_row(params![sha256, principal], |row| row.get(0)).optional()
        })
        .await
    }

    /// The hashes of all artifacts that a session uses.
    pub async fn artifact_hashes(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            connection.prepare_cached("SELECT DISTINCT sha256 FROM artifacts")?.query_map([], |row| row.get(0))?.collect()
        })
        .await
    }
}

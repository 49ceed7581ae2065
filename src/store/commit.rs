//! What a session's driver writes down in one piece: events, and the state that follows from them.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::cells::{self, CellRow, CellState};
use super::events::{self, EventRow};
use super::sessions::{self, signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Epoch, Seq, SessionId};

/// What a row weighs beside its texts: bytes that take as long to write.
const ROW: usize = 1 << 10;

/// One piece of a session's journal. All of it is stored, or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Commit {
    /// New events, in order.
    pub events: Vec<EventRow>,
    /// Changed cells.
    pub cells: Vec<CellChange>,
    /// New artifacts. Their bytes are in the artifact folder already.
    pub artifacts: Vec<ArtifactRow>,
    /// The session's own state.
    pub session: SessionChange,
    /// What later output of cells goes on from, by their numbers, as JSON; nothing any more for none.
    pub folds: Vec<(u32, Option<String>)>,
    /// What a notebook file says beside its cells and outputs, if one has been taken in.
    pub notebook: Option<String>,
}

/// How a session's row changes. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionChange {
    /// Its state, and why it ended, if it has.
    pub state: Option<(String, Option<String>)>,
    /// The last event of the agent that is in this piece or before.
    pub position: Option<(Epoch, Seq)>,
    /// The last of its own events.
    pub last_seq: Option<Seq>,
    /// What its driver needs to go on.
    pub resume: Option<String>,
    /// What its kernel says of itself.
    pub kernel_info: Option<String>,
    /// When it was last used.
    pub last_active_at: Option<i64>,
}

/// How one cell changes.
#[derive(Clone, Debug, PartialEq)]
pub enum CellChange {
    /// It is new, or edited.
    Put(Box<CellRow>),
    /// It is run otherwise from now on.
    Options {
        /// Which cell.
        number: u32,
        /// How, as a JSON object.
        options: String,
    },
    /// Its run stands otherwise.
    State {
        /// Which cell.
        number: u32,
        /// How.
        run: CellState,
    },
    /// It is gone.
    Delete {
        /// Which cell.
        number: u32,
    },
}

/// A plot or file that a cell produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactRow {
    /// The hash of its bytes, by which it is found.
    pub sha256: String,
    /// The cell that made it.
    pub cell: String,
    /// A file name.
    pub name: String,
    /// Its MIME type.
    pub mime: String,
    /// Its size in bytes.
    pub bytes: i64,
    /// Pixels, where the kernel told.
    pub width: Option<i64>,
    /// Pixels, where the kernel told.
    pub height: Option<i64>,
    /// The event that holds it.
    pub seq: Seq,
}

/// Bytes that a piece writes, roughly.
fn weight(commit: &Commit) -> usize {
    let events = commit.events.iter().map(|event| ROW + event.body.len());
    let cells = commit.cells.iter().map(|change| match change {
        CellChange::Put(cell) => ROW + cell.source.len() + cell.metadata.len() + weight_of_run(&cell.run),
        CellChange::State { run, .. } => ROW + weight_of_run(run),
        CellChange::Options { .. } | CellChange::Delete { .. } => ROW,
    });
    let long = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let folds = commit.folds.iter().map(|(_, json)| ROW + long(json));
    let texts = long(&commit.notebook) + long(&commit.session.resume) + long(&commit.session.kernel_info);
    events.chain(cells).chain(folds).sum::<usize>() + ROW * commit.artifacts.len() + texts
}

fn weight_of_run(run: &CellState) -> usize {
    run.result.as_ref().map_or(0, String::len)
}

fn write(connection: &Connection, session: &SessionId, commit: &Commit) -> rusqlite::Result<()> {
    for event in &commit.events {
        events::append(connection, session, event)?;
    }
    for change in &commit.cells {
        match change {
            CellChange::Put(cell) => cells::put(connection, session, cell)?,
            CellChange::Options { number, options } => cells::set_options(connection, session, *number, options)?,
            CellChange::State { number, run } => cells::set_state(connection, session, *number, run)?,
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
    let (state, why) = change.state.clone().unzip();
    // A session that is being deleted stays so, whatever its driver has still to say.
    let update = "UPDATE sessions SET state = iif(state = 'deleting', state, ifnull(:state, state)), why = ifnull(:why, why), epoch = ifnull(:epoch, epoch), \
                  seq = ifnull(:seq, seq), last_seq = ifnull(:last_seq, last_seq), \
                  last_active_at = max(last_active_at, ifnull(:active, 0)) WHERE id = :id";
    connection.prepare_cached(update)?.execute(named_params! {
        ":state": state, ":why": why.flatten(),
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
    /// Writes a piece of a session's journal down, whole or not at all.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written then, and the same piece can be tried again.
    pub async fn commit(&self, session: &SessionId, commit: Commit) -> Result<(), StoreError> {
        let id = session.clone();
        self.writer.write_sized(weight(&commit), move |connection| write(connection, &id, &commit)).await
    }

    /// A session's artifacts, in the order of their making.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn artifacts(&self, session: &SessionId) -> Result<Vec<ArtifactRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT sha256, cell, name, mime, bytes, width, height, seq FROM artifacts WHERE session = ?1 \
                          ORDER BY seq, name";
            connection.prepare_cached(select)?.query_map([id.as_str()], read_artifact)?.collect()
        })
        .await
    }

    /// The MIME type of an artifact, if a session of this principal (or of anybody, for none) has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn artifact_mime(&self, sha256: &str, principal: Option<String>) -> Result<Option<String>, StoreError> {
        let sha256 = sha256.to_owned();
        self.read(move |connection| {
            let select = "SELECT mime FROM artifacts JOIN sessions ON sessions.id = artifacts.session \
                          WHERE sha256 = ?1 AND (?2 IS NULL OR principal = ?2) LIMIT 1";
            connection.prepare_cached(select)?.query_row(params![sha256, principal], |row| row.get(0)).optional()
        })
        .await
    }

    /// The hashes of all artifacts that some session has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn artifact_hashes(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            connection.prepare_cached("SELECT DISTINCT sha256 FROM artifacts")?.query_map([], |row| row.get(0))?.collect()
        })
        .await
    }
}

//! Cells: what they are (set once or edited) and how their last run stands.

use std::collections::HashMap;

use rusqlite::{Connection, Row, named_params, params};

use super::events::{self, BY_CELL, EventRow};
use super::sessions::{signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Seq, SessionId};

/// A cell as stored. JSON columns are opaque to the store.
#[derive(Clone, Debug, PartialEq)]
pub struct CellRow {
    /// Its number in the session, in the order of making.
    pub number: u32,
    /// Its nbformat id.
    pub id: String,
    /// Its place in the notebook: cells are ordered by it.
    pub place: f64,
    /// `code`, `markdown` or `raw`.
    pub cell_type: String,
    /// The source.
    pub source: String,
    /// Its metadata, as a JSON object.
    pub metadata: String,
    /// How it is to be run (timeout and the like), as a JSON object.
    pub options: String,
    /// How its last run stands.
    pub run: CellState,
}

/// How a cell's last run stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellState {
    /// `queued`, `running` or `finished`.
    pub state: String,
    /// When it was queued.
    pub queued_at: Option<i64>,
    /// What asked for it, as a `traceparent`, where traces are kept.
    pub trace: Option<String>,
    /// The id of the run: the `msg_id` of its request.
    pub run: Option<String>,
    /// When the kernel was given it.
    pub started_at: Option<i64>,
    /// How it ended, as JSON.
    pub result: Option<String>,
    /// Its outputs are told by its events from here on.
    pub first_seq: Seq,
    /// Its last event.
    pub last_seq: Seq,
}

const COLUMNS: &str = "number, id, place, cell_type, source, metadata, options, state, run, started_at, result, first_seq, last_seq, queued_at, trace";

fn read(row: &Row<'_>) -> rusqlite::Result<CellRow> {
    Ok(CellRow {
        number: row.get(0)?,
        id: row.get(1)?,
        place: row.get(2)?,
        cell_type: row.get(3)?,
        source: row.get(4)?,
        metadata: row.get(5)?,
        options: row.get(6)?,
        run: CellState {
            state: row.get(7)?,
            run: row.get(8)?,
            started_at: row.get(9)?,
            result: row.get(10)?,
            first_seq: Seq(unsigned(row.get(11)?)),
            last_seq: Seq(unsigned(row.get(12)?)),
            queued_at: row.get(13)?,
            trace: row.get(14)?,
        },
    })
}

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<usize> {
    Ok(usize::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// Writes a whole cell, new or edited.
pub(super) fn put(connection: &Connection, session: &SessionId, cell: &CellRow) -> rusqlite::Result<()> {
    let put = "INSERT INTO cells (session, number, id, place, cell_type, source, metadata, options, state, first_seq, last_seq) \
               VALUES (:session, :number, :id, :place, :cell_type, :source, :metadata, :options, '', 0, 0) \
               ON CONFLICT (session, number) DO UPDATE SET id = :id, place = :place, cell_type = :cell_type, \
               source = :source, metadata = :metadata, options = :options";
    connection.prepare_cached(put)?.execute(named_params! {
        ":session": session.as_str(), ":number": cell.number, ":id": cell.id, ":place": cell.place,
        ":cell_type": cell.cell_type, ":source": cell.source, ":metadata": cell.metadata, ":options": cell.options,
    })?;
    set_state(connection, session, cell.number, &cell.run)
}

/// Writes how a cell is to be run.
pub(super) fn set_options(connection: &Connection, session: &SessionId, number: u32, options: &str) -> rusqlite::Result<()> {
    let update = "UPDATE cells SET options = ?3 WHERE session = ?1 AND number = ?2";
    connection.prepare_cached(update)?.execute(params![session.as_str(), number, options])?;
    Ok(())
}

/// Writes what later output of a cell goes on from.
pub(super) fn put_fold(
    connection: &Connection,
    session: &SessionId,
    number: u32,
    json: Option<&str>,
) -> rusqlite::Result<()> {
    let Some(json) = json else {
        let delete = "DELETE FROM folds WHERE session = ?1 AND number = ?2";
        return connection.prepare_cached(delete)?.execute(params![session.as_str(), number]).map(drop);
    };
    let put = "INSERT INTO folds (session, number, json) VALUES (?1, ?2, ?3) \
               ON CONFLICT (session, number) DO UPDATE SET json = excluded.json";
    connection.prepare_cached(put)?.execute(params![session.as_str(), number, json]).map(drop)
}

/// Writes how a cell's run stands, and leaves the source alone, which may be long.
pub(super) fn set_state(connection: &Connection, session: &SessionId, number: u32, run: &CellState) -> rusqlite::Result<()> {
    let update = "UPDATE cells SET state = :state, run = :run, started_at = :started_at, result = :result, \
                  first_seq = :first_seq, last_seq = :last_seq, queued_at = :queued_at, trace = :trace WHERE session = :session AND number = :number";
    connection.prepare_cached(update)?.execute(named_params! {
        ":session": session.as_str(), ":number": number, ":state": run.state, ":run": run.run,
        ":started_at": run.started_at, ":result": run.result, ":first_seq": signed(run.first_seq.0),
        ":last_seq": signed(run.last_seq.0), ":queued_at": run.queued_at, ":trace": run.trace,
    })?;
    Ok(())
}

/// Removes a cell. Its events stay: they have been told.
pub(super) fn delete(connection: &Connection, session: &SessionId, number: u32) -> rusqlite::Result<()> {
    let delete = "DELETE FROM cells WHERE session = ?1 AND number = ?2";
    connection.prepare_cached(delete)?.execute(params![session.as_str(), number])?;
    Ok(())
}

fn find(connection: &Connection, session: &SessionId, cell: &str) -> rusqlite::Result<Option<CellRow>> {
    let select = format!("SELECT {COLUMNS} FROM cells WHERE session = ?1 AND id = ?2");
    connection.prepare_cached(&select)?.query_map(params![session.as_str(), cell], read)?.next().transpose()
}

fn all_of(connection: &Connection, session: &SessionId) -> rusqlite::Result<Vec<CellRow>> {
    let select = format!("SELECT {COLUMNS} FROM cells WHERE session = ?1 ORDER BY place, number");
    connection.prepare_cached(&select)?.query_map([session.as_str()], read)?.collect()
}

/// The bytes of the events that tell of all cells' outputs, and of the artifacts in them as base64. SQLite knows the lengths
/// without reading the texts.
fn weigh(connection: &Connection, session: &SessionId) -> rusqlite::Result<u64> {
    let select = "SELECT (SELECT ifnull(sum(octet_length(e.body)), 0) FROM cells c CROSS JOIN events e INDEXED BY events_by_cell \
                          ON e.session = c.session AND e.cell = c.id AND e.seq >= c.first_seq WHERE c.session = ?1) \
                       + (SELECT ifnull(sum(bytes), 0) * 4 / 3 FROM artifacts WHERE session = ?1)";
    let bytes: i64 = connection.prepare_cached(select)?.query_row([session.as_str()], |row| row.get(0))?;
    Ok(bytes.max(0).cast_unsigned())
}

/// The same of one cell. It is asked for each cell that is run: found by the index, however many there are.
fn weigh_cell(connection: &Connection, session: &SessionId, cell: &CellRow) -> rusqlite::Result<u64> {
    let select = format!(
        "SELECT (SELECT ifnull(sum(octet_length(body)), 0) FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq >= ?3) \
              + (SELECT ifnull(sum(bytes), 0) * 4 / 3 FROM artifacts WHERE session = ?1 AND cell = ?2)"
    );
    let values = params![session.as_str(), cell.id, signed(cell.run.first_seq.0)];
    let bytes: i64 = connection.prepare_cached(&select)?.query_row(values, |row| row.get(0))?;
    Ok(bytes.max(0).cast_unsigned())
}

/// A cell's events are more than somebody wants to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooHeavy {
    /// Their bytes, with the artifacts in them as base64.
    pub bytes: u64,
}

impl Store {
    /// A session's cells in the order of the notebook.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cells(&self, session: &SessionId) -> Result<Vec<CellRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| all_of(connection, &id)).await
    }

    /// What later output of a session's cells goes on from, by their numbers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn folds(&self, session: &SessionId) -> Result<Vec<(u32, String)>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT number, json FROM folds WHERE session = ?1 ORDER BY number";
            connection.prepare_cached(select)?.query_map([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
        .await
    }

    /// How many cells a session has, and how many of them are queued.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count_cells(&self, session: &SessionId) -> Result<(usize, usize), StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT count(*), count(*) FILTER (WHERE state = 'queued') FROM cells WHERE session = ?1";
            let counts = |row: &Row<'_>| Ok((count(row, 0)?, count(row, 1)?));
            connection.prepare_cached(select)?.query_row([id.as_str()], counts)
        })
        .await
    }

    /// The same for all sessions that have cells, by their ids.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count_all_cells(&self) -> Result<HashMap<String, (usize, usize)>, StoreError> {
        self.read(|connection| {
            let select = "SELECT session, count(*), count(*) FILTER (WHERE state = 'queued') FROM cells GROUP BY session";
            let counts = |row: &Row<'_>| Ok((row.get(0)?, (count(row, 1)?, count(row, 2)?)));
            connection.prepare_cached(select)?.query_map([], counts)?.collect()
        })
        .await
    }

    /// How many cells of all sessions are queued.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count_queued(&self) -> Result<usize, StoreError> {
        self.read(|connection| {
            let select = "SELECT count(*) FROM cells WHERE state = 'queued'";
            connection.prepare_cached(select)?.query_row([], |row| count(row, 0))
        })
        .await
    }

    /// One cell by its id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cell(&self, session: &SessionId, cell: &str) -> Result<Option<CellRow>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| find(connection, &id, &cell)).await
    }

    /// One cell by its id, with the events of its latest run if they and its artifacts are of no more bytes than `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cell_and_events(
        &self,
        session: &SessionId,
        cell: &str,
        most: u64,
    ) -> Result<Option<(CellRow, Result<Vec<EventRow>, TooHeavy>)>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| {
            let Some(row) = find(connection, &id, &cell)? else { return Ok(None) };
            let bytes = if most == u64::MAX { 0 } else { weigh_cell(connection, &id, &row)? };
            let events = match bytes <= most {
                true => Ok(events::of_cell(connection, &id, &cell, row.run.first_seq)?),
                false => Err(TooHeavy { bytes }),
            };
            Ok(Some((row, events)))
        })
        .await
    }

    /// A session's cells in the order of the notebook, each with the events of its latest run.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cells_and_events(&self, session: &SessionId) -> Result<Vec<(CellRow, Vec<EventRow>)>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let mut all = Vec::new();
            for cell in all_of(connection, &id)? {
                let events = events::of_cell(connection, &id, &cell.id, cell.run.first_seq)?;
                all.push((cell, events));
            }
            Ok(all)
        })
        .await
    }

    /// Where the events of each code cell's latest run begin, by the cells' ids.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn latest_runs(&self, session: &SessionId) -> Result<HashMap<String, Seq>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT id, first_seq FROM cells WHERE session = ?1 AND cell_type = 'code'";
            let read = |row: &Row<'_>| Ok((row.get(0)?, Seq(unsigned(row.get(1)?))));
            connection.prepare_cached(select)?.query_map([id.as_str()], read)?.collect()
        })
        .await
    }

    /// The bytes of a session's events and artifacts that its cells show, about.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn weight(&self, session: &SessionId) -> Result<u64, StoreError> {
        let id = session.clone();
        self.read(move |connection| weigh(connection, &id)).await
    }
}

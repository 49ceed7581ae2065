//! Cells: their content, and the state of their latest execution.

use std::collections::HashMap;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, named_params, params};

use super::events::{self, BY_CELL, EventRow};
use super::sessions::{signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{CellPhase, Seq, SessionId};

/// A stored cell. The store does not read JSON columns.
#[derive(Clone, Debug, PartialEq)]
pub struct CellRow {
    /// The number in the session, in the order of creation.
    pub number: u32,
    /// The nbformat id.
    pub id: String,
    /// The position in the notebook. Cells are ordered by it.
    pub place: f64,
    /// `code`, `markdown` or `raw`.
    pub cell_type: String,
    pub source: String,
    /// A JSON object.
    pub metadata: String,
    /// Execution options (timeout and others), as a JSON object.
    pub options: String,
    pub execution: CellState,
}

/// The state of a cell's latest execution. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellState {
    pub phase: CellPhase,
    pub queued_at: Option<i64>,
    /// The `traceparent` of the request that queued the execution, if traces are enabled.
    pub trace: Option<String>,
    /// The id of the execution: the `msg_id` of its `execute_request`.
    pub id: Option<String>,
    /// When the request was sent to the kernel.
    pub started_at: Option<i64>,
    /// The result as JSON. `None` until the execution has ended.
    pub result: Option<String>,
    /// The first event of the execution. The outputs are the result of the cell's events from here on.
    pub first_seq: Seq,
    /// The last event of the cell.
    pub last_seq: Seq,
}

impl ToSql for CellPhase {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for CellPhase {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
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
        execution: CellState {
            phase: row.get(7)?,
            id: row.get(8)?,
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

/// Inserts or replaces a cell.
pub(super) fn put(connection: &Connection, session: &SessionId, cell: &CellRow) -> rusqlite::Result<()> {
    let put = "INSERT INTO cells (session, number, id, place, cell_type, source, metadata, options, state, first_seq, last_seq) \
               VALUES (:session, :number, :id, :place, :cell_type, :source, :metadata, :options, '', 0, 0) \
               ON CONFLICT (session, number) DO UPDATE SET id = :id, place = :place, cell_type = :cell_type, \
               source = :source, metadata = :metadata, options = :options";
    connection.prepare_cached(put)?.execute(named_params! {
        ":session": session.as_str(), ":number": cell.number, ":id": cell.id, ":place": cell.place,
        ":cell_type": cell.cell_type, ":source": cell.source, ":metadata": cell.metadata, ":options": cell.options,
    })?;
    set_state(connection, session, cell.number, &cell.execution)
}

pub(super) fn set_options(connection: &Connection, session: &SessionId, number: u32, options: &str) -> rusqlite::Result<()> {
    let update = "UPDATE cells SET options = ?3 WHERE session = ?1 AND number = ?2";
    connection.prepare_cached(update)?.execute(params![session.as_str(), number, options])?;
    Ok(())
}

/// Writes the fold state of a cell: what later output continues from. `None` removes it.
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

/// Writes the state of a cell's execution without its source, which may be long.
pub(super) fn set_state(
    connection: &Connection,
    session: &SessionId,
    number: u32,
    execution: &CellState,
) -> rusqlite::Result<()> {
    let update = "UPDATE cells SET state = :state, run = :run, started_at = :started_at, result = :result, \
                  first_seq = :first_seq, last_seq = :last_seq, queued_at = :queued_at, trace = :trace WHERE session = :session AND number = :number";
    connection.prepare_cached(update)?.execute(named_params! {
        ":session": session.as_str(), ":number": number, ":state": execution.phase, ":run": execution.id,
        ":started_at": execution.started_at, ":result": execution.result, ":first_seq": signed(execution.first_seq.0),
        ":last_seq": signed(execution.last_seq.0), ":queued_at": execution.queued_at, ":trace": execution.trace,
    })?;
    Ok(())
}

/// Removes a cell. Its events stay, because subscribers have seen them.
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

/// The bytes of the events of all outputs, and of their artifacts as base64. SQLite knows the lengths without reading the
/// texts.
fn output_bytes(connection: &Connection, session: &SessionId) -> rusqlite::Result<u64> {
    let select = "SELECT (SELECT ifnull(sum(octet_length(e.body)), 0) FROM cells c CROSS JOIN events e INDEXED BY events_by_cell \
                          ON e.session = c.session AND e.cell = c.id AND e.seq >= c.first_seq WHERE c.session = ?1) \
                       + (SELECT ifnull(sum(bytes), 0) * 4 / 3 FROM artifacts WHERE session = ?1)";
    let bytes: i64 = connection.prepare_cached(select)?.query_row([session.as_str()], |row| row.get(0))?;
    Ok(bytes.max(0).cast_unsigned())
}

/// The same for one cell. This runs once per execution, so the index is used, which makes the cost independent of the other
/// cells.
fn output_bytes_of_cell(connection: &Connection, session: &SessionId, cell: &CellRow) -> rusqlite::Result<u64> {
    let select = format!(
        "SELECT (SELECT ifnull(sum(octet_length(body)), 0) FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq >= ?3) \
              + (SELECT ifnull(sum(bytes), 0) * 4 / 3 FROM artifacts WHERE session = ?1 AND cell = ?2)"
    );
    let values = params![session.as_str(), cell.id, signed(cell.execution.first_seq.0)];
    let bytes: i64 = connection.prepare_cached(&select)?.query_row(values, |row| row.get(0))?;
    Ok(bytes.max(0).cast_unsigned())
}

/// The place of a cell in the notebook, and its number.
pub type CellPosition = (f64, u32);

/// A page of cells.
#[derive(Debug, Default)]
pub struct CellPage {
    pub rows: Vec<CellRow>,
    /// Their bytes, as far as they were counted.
    pub bytes: u64,
    /// Whether the session has further cells.
    pub has_more: bool,
}

/// The statement that reads a page.
pub(super) fn page_statement() -> String {
    format!("SELECT {COLUMNS} FROM cells WHERE session = ?1 AND (place, number) > (?2, ?3) ORDER BY place, number LIMIT ?4")
}

/// The events of a cell exceed the limit of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverByteLimit {
    /// The size of the events, with their artifacts as base64.
    pub bytes: u64,
}

impl Store {
    /// The cells in the order of the notebook.
    pub async fn cells(&self, session: &SessionId) -> Result<Vec<CellRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| all_of(connection, &id)).await
    }

    /// The last cell in the order of the notebook.
    pub async fn last_cell(&self, session: &SessionId) -> Result<Option<CellRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = format!("SELECT {COLUMNS} FROM cells WHERE session = ?1 ORDER BY place DESC, number DESC LIMIT 1");
            connection.prepare_cached(&select)?.query_map([id.as_str()], read)?.next().transpose()
        })
        .await
    }

    /// The fold states of cells by their numbers.
    pub async fn folds(&self, session: &SessionId) -> Result<Vec<(u32, String)>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT number, json FROM folds WHERE session = ?1 ORDER BY number";
            connection.prepare_cached(select)?.query_map([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
        .await
    }

    /// A page of the cells after a position, in the order of the notebook: at most `limit` cells, and only as many as have
    /// `max_bytes` together, but at least one. With `with_outputs`, the bytes of outputs count.
    pub async fn cells_page(
        &self,
        session: &SessionId,
        after: Option<CellPosition>,
        limit: usize,
        max_bytes: u64,
        with_outputs: bool,
    ) -> Result<CellPage, StoreError> {
        let id = session.clone();
        let (place, number) = after.unwrap_or((f64::NEG_INFINITY, 0));
        self.read(move |connection| {
            let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
            let mut select = connection.prepare_cached(&page_statement())?;
            let mut page = CellPage::default();
            for row in select.query_map(params![id.as_str(), place, number, most], read)? {
                let row = row?;
                let outputs = if with_outputs { output_bytes_of_cell(connection, &id, &row)? } else { 0 };
                let bytes = page.bytes + outputs + (row.source.len() + row.metadata.len()) as u64;
                if page.rows.len() == limit || (bytes > max_bytes && !page.rows.is_empty()) {
                    page.has_more = true;
                    break;
                }
                page.bytes = bytes;
                page.rows.push(row);
            }
            Ok(page)
        })
        .await
    }

    /// The number of cells in a session, and how many of them are queued.
    pub async fn count_cells(&self, session: &SessionId) -> Result<(usize, usize), StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT count(*), count(*) FILTER (WHERE state = 'queued') FROM cells WHERE session = ?1";
            let counts = |row: &Row<'_>| Ok((count(row, 0)?, count(row, 1)?));
            connection.prepare_cached(select)?.query_row([id.as_str()], counts)
        })
        .await
    }

    /// The same for these sessions, as far as they have cells, by their ids.
    pub async fn count_cells_of(
        &self,
        sessions: impl IntoIterator<Item = &SessionId>,
    ) -> Result<HashMap<String, (usize, usize)>, StoreError> {
        let ids: Vec<&str> = sessions.into_iter().map(SessionId::as_str).collect();
        let ids = serde_json::to_string(&ids).unwrap_or_default();
        self.read(move |connection| {
            let select = "SELECT session, count(*), count(*) FILTER (WHERE state = 'queued') FROM cells \
                          WHERE session IN (SELECT value FROM json_each(?1)) GROUP BY session";
            let counts = |row: &Row<'_>| Ok((row.get(0)?, (count(row, 1)?, count(row, 2)?)));
            connection.prepare_cached(select)?.query_map([ids], counts)?.collect()
        })
        .await
    }

    /// The number of queued cells in all sessions.
    pub async fn count_queued(&self) -> Result<usize, StoreError> {
        self.read(|connection| {
            let select = "SELECT count(*) FROM cells WHERE state = 'queued'";
            connection.prepare_cached(select)?.query_row([], |row| count(row, 0))
        })
        .await
    }

    pub async fn cell(&self, session: &SessionId, cell: &str) -> Result<Option<CellRow>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| find(connection, &id, &cell)).await
    }

    /// One cell with the events of its latest execution. The events are not read if they and their artifacts exceed
    /// `max_bytes`.
    pub async fn cell_and_events(
        &self,
        session: &SessionId,
        cell: &str,
        max_bytes: u64,
    ) -> Result<Option<(CellRow, Result<Vec<EventRow>, OverByteLimit>)>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| {
            let Some(row) = find(connection, &id, &cell)? else { return Ok(None) };
            let bytes = if max_bytes == u64::MAX { 0 } else { output_bytes_of_cell(connection, &id, &row)? };
            let events = match bytes <= max_bytes {
                true => Ok(events::of_cell(connection, &id, &cell, row.execution.first_seq)?),
                false => Err(OverByteLimit { bytes }),
            };
            Ok(Some((row, events)))
        })
        .await
    }

    /// The cells in the order of the notebook, each with the events of its latest execution.
    pub async fn cells_and_events(&self, session: &SessionId) -> Result<Vec<(CellRow, Vec<EventRow>)>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let mut all = Vec::new();
            for cell in all_of(connection, &id)? {
                let events = events::of_cell(connection, &id, &cell.id, cell.execution.first_seq)?;
                all.push((cell, events));
            }
            Ok(all)
        })
        .await
    }

    /// The first event of each code cell's latest execution, by cell id.
    pub async fn latest_executions(&self, session: &SessionId) -> Result<HashMap<String, Seq>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = "SELECT id, first_seq FROM cells WHERE session = ?1 AND cell_type = 'code'";
            let read = |row: &Row<'_>| Ok((row.get(0)?, Seq(unsigned(row.get(1)?))));
            connection.prepare_cached(select)?.query_map([id.as_str()], read)?.collect()
        })
        .await
    }

    /// The approximate size of all outputs of a session in bytes, with artifacts as base64.
    pub async fn output_bytes(&self, session: &SessionId) -> Result<u64, StoreError> {
        let id = session.clone();
        self.read(move |connection| output_bytes(connection, &id)).await
    }
}

//! The numbered events of sessions. A client reads the events after a number, and then subscribes to new ones.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, params};

use super::sessions::{signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Seq, SessionId};

/// The kinds of events. The names are part of the HTTP API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    SessionState,
    CellQueued,
    CellStarted,
    CellFinished,
    OutputAppend,
    OutputUpdate,
    OutputClear,
    InputRequested,
    Comm,
    /// Events of the agent were lost, because its buffer was full.
    Lost,
    NotebookChanged,
    FilesChanged,
    /// A message of the kernel, for one-shot sessions.
    Message,
}

impl EventKind {
    const ALL: [Self; 13] = [
        Self::SessionState,
        Self::CellQueued,
        Self::CellStarted,
        Self::CellFinished,
        Self::OutputAppend,
        Self::OutputUpdate,
        Self::OutputClear,
        Self::InputRequested,
        Self::Comm,
        Self::Lost,
        Self::NotebookChanged,
        Self::FilesChanged,
        Self::Message,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::SessionState => "session.state",
            Self::CellQueued => "cell.queued",
            Self::CellStarted => "cell.started",
            Self::CellFinished => "cell.finished",
            Self::OutputAppend => "output.append",
            Self::OutputUpdate => "output.update",
            Self::OutputClear => "output.clear",
            Self::InputRequested => "input.requested",
            Self::Comm => "comm",
            Self::Lost => "lost",
            Self::NotebookChanged => "notebook.changed",
            Self::FilesChanged => "files.changed",
            Self::Message => "message",
        }
    }
}

impl ToSql for EventKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for EventKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(FromSqlError::InvalidType)
    }
}

/// A stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// The number in the session, from 1, without gaps.
    pub seq: Seq,
    /// The first number that the event stands for. It differs from `seq` if events of finished text were merged.
    pub first: Seq,
    /// The time at which the event was received, in milliseconds since 1970.
    pub time: i64,
    /// The cell that the event belongs to.
    pub cell: Option<String>,
    pub kind: EventKind,
    /// The fields of this kind of event, as a JSON object.
    pub body: String,
}

/// The condition of events that change the outputs of a cell.
const IS_OUTPUT: &str = "type IN ('output.append', 'output.update', 'output.clear', 'cell.queued')";
const COLUMNS: &str = "seq, ifnull(first, seq), time, cell, type, body";

fn read(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        seq: Seq(unsigned(row.get(0)?)),
        first: Seq(unsigned(row.get(1)?)),
        time: row.get(2)?,
        cell: row.get(3)?,
        kind: row.get(4)?,
        body: row.get(5)?,
    })
}

pub(super) fn append(connection: &Connection, session: &SessionId, event: &EventRow) -> rusqlite::Result<()> {
    let insert = "INSERT INTO events (session, seq, time, cell, type, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(insert)?.execute(params![
        session.as_str(),
        signed(event.seq.0),
        event.time,
        event.cell,
        event.kind,
        event.body
    ])?;
    Ok(())
}

/// Collects rows until their bodies exceed `max_bytes`. The row that exceeds it is included.
fn take_page(rows: impl Iterator<Item = rusqlite::Result<EventRow>>, max_bytes: usize) -> rusqlite::Result<Vec<EventRow>> {
    let (mut events, mut bytes) = (Vec::new(), 0);
    for event in rows {
        let event = event?;
        bytes += event.body.len();
        events.push(event);
        if bytes > max_bytes {
            break;
        }
    }
    Ok(events)
}

/// The events table with the index by cell. Without the hint, SQLite uses the primary key and reads all later events of the
/// session.
pub(super) const BY_CELL: &str = "events INDEXED BY events_by_cell";

pub(super) fn of_cell(
    connection: &Connection,
    session: &SessionId,
    cell: &str,
    from: Seq,
) -> rusqlite::Result<Vec<EventRow>> {
    let select = format!("SELECT {COLUMNS} FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq >= ?3 ORDER BY seq");
    let mut select = connection.prepare_cached(&select)?;
    select.query_map(params![session.as_str(), cell, signed(from.0)], read)?.collect()
}

/// The first events of a cell in a range of numbers, both ends included.
pub(super) fn page_of_cell(
    connection: &Connection,
    session: &SessionId,
    cell: &str,
    (from, to): (Seq, Seq),
    max_events: usize,
    max_bytes: usize,
) -> rusqlite::Result<Vec<EventRow>> {
    let select = format!(
        "SELECT {COLUMNS} FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq BETWEEN ?3 AND ?4 ORDER BY seq LIMIT ?5"
    );
    let mut select = connection.prepare_cached(&select)?;
    let values = params![session.as_str(), cell, signed(from.0), signed(to.0), max_events as i64];
    take_page(select.query_map(values, read)?, max_bytes)
}

impl Store {
    /// The events after a number, in order. A page ends at `max_events`, or with the event whose body exceeds `max_bytes` in
    /// total, so it has at least one event if there are any.
    pub async fn events_after(
        &self,
        session: &SessionId,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select = format!("SELECT {COLUMNS} FROM events WHERE session = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3");
            let mut select = connection.prepare_cached(&select)?;
            let rows = select.query_map(params![id.as_str(), signed(after.0), max_events as i64], read)?;
            take_page(rows, max_bytes)
        })
        .await
    }

    /// Like [`Self::events_after`], for events of one kind.
    pub async fn events_of_kind_after(
        &self,
        session: &SessionId,
        kind: EventKind,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let select =
                format!("SELECT {COLUMNS} FROM events WHERE session = ?1 AND seq > ?2 AND type = ?3 ORDER BY seq LIMIT ?4");
            let mut select = connection.prepare_cached(&select)?;
            let rows = select.query_map(params![id.as_str(), signed(after.0), kind, max_events as i64], read)?;
            take_page(rows, max_bytes)
        })
        .await
    }

    /// The output events of a cell from a number on: the first and the last ones, each list ending as a page of `max_bytes` does,
    /// and the bytes of the bodies between them. If the two lists meet, the first one has all events, and the second one is empty.
    pub async fn ends_of_cell(
        &self,
        session: &SessionId,
        cell: &str,
        from: Seq,
        max_bytes: usize,
    ) -> Result<(Vec<EventRow>, Vec<EventRow>, u64), StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| {
            let of_cell = format!("FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq > ?3 AND {IS_OUTPUT}");
            let page = |after: Seq, order: &str| {
                let mut select = connection.prepare_cached(&format!("SELECT {COLUMNS} {of_cell} ORDER BY seq {order}"))?;
                take_page(select.query_map(params![id.as_str(), cell, signed(after.0)], read)?, max_bytes)
            };
            let mut all = page(Seq(from.0.saturating_sub(1)), "ASC")?;
            let Some(end_of_first) = all.last().map(|event| event.seq) else { return Ok((all, Vec::new(), 0)) };
            let mut last = page(end_of_first, "DESC")?;
            last.reverse();
            let until = last.first().map_or(end_of_first, |event| event.seq);
            let gap = format!("SELECT count(*), ifnull(sum(octet_length(body)), 0) {of_cell} AND seq < ?4");
            let values = params![id.as_str(), cell, signed(end_of_first.0), signed(until.0)];
            let (events, bytes): (i64, i64) =
                connection.prepare_cached(&gap)?.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            if events == 0 {
                all.append(&mut last);
            }
            Ok((all, last, unsigned(bytes)))
        })
        .await
    }

    /// The events of one kind of a cell from a number on, in order.
    pub async fn cell_events_of_kind(
        &self,
        session: &SessionId,
        cell: &str,
        from: Seq,
        kind: EventKind,
    ) -> Result<Vec<EventRow>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| {
            let select = format!(
                "SELECT {COLUMNS} FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq >= ?3 AND type = ?4 ORDER BY seq"
            );
            let values = params![id.as_str(), cell, signed(from.0), kind];
            connection.prepare_cached(&select)?.query_map(values, read)?.collect()
        })
        .await
    }

    /// The events of a cell from a number on, in order.
    pub async fn cell_events(&self, session: &SessionId, cell: &str, from: Seq) -> Result<Vec<EventRow>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| of_cell(connection, &id, &cell, from)).await
    }
}

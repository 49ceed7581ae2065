//! The numbered events: what a client sees is "the log after N, then follow".

use rusqlite::{Connection, Row, params};

use super::sessions::{signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Seq, SessionId};

/// An event as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Its number in the session, from 1, without gaps as it is written.
    pub seq: Seq,
    /// The first of the numbers that it stands for: its own, but where finished text was merged.
    pub first: Seq,
    /// When it was taken in, milliseconds since 1970.
    pub time: i64,
    /// The cell that it is about.
    pub cell: Option<String>,
    /// Its type, by the contract.
    pub kind: String,
    /// Its own fields, a JSON object.
    pub body: String,
}

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

/// Takes rows until there are none, or until more than so many bytes were taken.
fn take(rows: impl Iterator<Item = rusqlite::Result<EventRow>>, max_bytes: usize) -> rusqlite::Result<Vec<EventRow>> {
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

/// Events, to be found by their cell. SQLite would take the key for it, and read all that came after in the session.
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

/// The first events of a cell in a stretch, its ends included.
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
    take(select.query_map(values, read)?, max_bytes)
}

impl Store {
    /// The events after a number, in order: at most `max_events`, and no more after `max_bytes` of bodies. At least one, if
    /// there is one.
    ///
    /// # Errors
    /// [`StoreError`].
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
            take(rows, max_bytes)
        })
        .await
    }

    /// The same for events of one type alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn events_of_type_after(
        &self,
        session: &SessionId,
        kind: &'static str,
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
            take(rows, max_bytes)
        })
        .await
    }

    /// One cell's events from a number on, in order: all of them, or the first and the last ones, each no more after `max_bytes` of
    /// bodies. The last are none if nothing is left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ends_of_cell(
        &self,
        session: &SessionId,
        cell: &str,
        from: Seq,
        max_bytes: usize,
    ) -> Result<(Vec<EventRow>, Vec<EventRow>), StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| {
            let most = i64::MAX.unsigned_abs();
            let first = page_of_cell(connection, &id, &cell, (from, Seq(most)), usize::MAX >> 1, max_bytes)?;
            let Some(seen) = first.last().map(|event| event.seq) else { return Ok((first, Vec::new())) };
            let select =
                format!("SELECT {COLUMNS} FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq > ?3 ORDER BY seq DESC");
            let mut select = connection.prepare_cached(&select)?;
            let mut last = take(select.query_map(params![id.as_str(), cell, signed(seen.0)], read)?, max_bytes)?;
            last.reverse();
            let mut all = first;
            let between = format!(
                "SELECT EXISTS (SELECT 1 FROM {BY_CELL} WHERE session = ?1 AND cell = ?2 AND seq > ?3 AND seq < ?4)"
            );
            let from = last.first().map_or(seen, |event| event.seq);
            let values = params![id.as_str(), cell, signed(seen.0), signed(from.0)];
            if !connection.prepare_cached(&between)?.query_row(values, |row| row.get::<_, bool>(0))? {
                all.append(&mut last);
            }
            Ok((all, last))
        })
        .await
    }

    /// One cell's events from a number on, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cell_events(&self, session: &SessionId, cell: &str, from: Seq) -> Result<Vec<EventRow>, StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.read(move |connection| of_cell(connection, &id, &cell, from)).await
    }
}

//! Merging the events of text that is finished, and measuring what all of it takes.

use std::collections::HashMap;

use rusqlite::{Connection, Row, params};

use super::events::{self, EventRow};
use super::sessions::{session_id, signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Seq, SessionId};

/// Pages that the file keeps although nothing stands in them, for what comes next; and how many are given back in one commit.
const SPARE: (i64, i64) = (1024, 512);

/// A cell that has ended, some of whose events may be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compactable {
    /// Its session.
    pub session: SessionId,
    /// Its number there.
    pub number: u32,
    /// Its id.
    pub id: String,
    /// The first event that has not been looked at.
    pub from: Seq,
    /// Its last event.
    pub to: Seq,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Compactable> {
    Ok(Compactable {
        session: session_id(row, 0)?,
        number: row.get(1)?,
        id: row.get(2)?,
        from: Seq(unsigned(row.get(3)?)),
        to: Seq(unsigned(row.get(4)?)),
    })
}

fn merge(connection: &Connection, cell: &Compactable, merged: &[EventRow], done: Seq) -> rusqlite::Result<()> {
    let session = cell.session.as_str();
    for event in merged {
        connection.prepare_cached("DELETE FROM events WHERE session = ?1 AND seq >= ?2 AND seq < ?3")?.execute(params![
            session,
            signed(event.first.0),
            signed(event.seq.0)
        ])?;
        connection
            .prepare_cached("UPDATE events SET first = ?3, type = ?4, body = ?5 WHERE session = ?1 AND seq = ?2")?
            .execute(params![session, signed(event.seq.0), signed(event.first.0), event.kind, event.body])?;
    }
    connection.prepare_cached("UPDATE cells SET compacted = ?3 WHERE session = ?1 AND number = ?2")?.execute(params![
        session,
        cell.number,
        signed(done.0)
    ])?;
    Ok(())
}

impl Store {
    /// Cells that have many events, the last of them from before `before` (milliseconds since 1970), and that have not been
    /// merged: at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn compactable(&self, before: i64, most: usize) -> Result<Vec<Compactable>, StoreError> {
        self.read(move |connection| {
            let select = "SELECT c.session, c.number, c.id, max(c.first_seq, c.compacted + 1), c.last_seq FROM cells AS c \
                          JOIN events AS e ON e.session = c.session AND e.seq = c.last_seq \
                          WHERE c.state = 'finished' AND c.last_seq - c.first_seq > 16 AND c.last_seq > c.compacted \
                          AND e.time <= ?1 LIMIT ?2";
            connection.prepare_cached(select)?.query_map(params![before, most as i64], read)?.collect()
        })
        .await
    }

    /// The cell's events that are still to be looked at: at most `max_events`, and no more after `max_bytes` of bodies.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn events_to_compact(
        &self,
        cell: &Compactable,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        let cell = cell.clone();
        self.read(move |connection| {
            events::page_of_cell(connection, &cell.session, &cell.id, (cell.from, cell.to), max_events, max_bytes)
        })
        .await
    }

    /// Puts each merged event in the place of those that it stands for, and notes that the cell's events have been looked at
    /// up to `done`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn merge_events(&self, cell: &Compactable, merged: Vec<EventRow>, done: Seq) -> Result<(), StoreError> {
        let cell = cell.clone();
        self.writer.write_long(move |connection| merge(connection, &cell, &merged, done)).await
    }

    /// Bytes of events and artifacts by the principals whose sessions have them. It looks at all of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bytes_by_principal(&self) -> Result<HashMap<String, u64>, StoreError> {
        self.read(|connection| {
            let select = "SELECT principal, sum(bytes) FROM (\
                            SELECT s.principal, octet_length(e.body) AS bytes FROM sessions s JOIN events e ON e.session = s.id \
                            UNION ALL \
                            SELECT s.principal, a.bytes FROM sessions s JOIN artifacts a ON a.session = s.id) GROUP BY principal";
            let share = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.max(0).cast_unsigned()));
            connection.prepare_cached(select)?.query_map([], share)?.collect()
        })
        .await
    }

    /// Gives a stretch of the file that nothing stands in any more back to the disk, in a commit of its own: others write between two
    /// of them. Whether there is more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn give_back(&self) -> Result<bool, StoreError> {
        let to_spare = |connection: &Connection| {
            let free = connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0))?;
            Ok::<_, rusqlite::Error>(free - SPARE.0)
        };
        if self.read(to_spare).await? <= 0 {
            return Ok(false);
        }
        self.writer
            .write_long(move |connection| {
                let spare = to_spare(connection)?;
                if spare <= 0 {
                    // Asked for none, SQLite would give back all.
                    return Ok(false);
                }
                // Each step gives back one page.
                let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({})", spare.min(SPARE.1)))?;
                let mut steps = vacuum.query(())?;
                while steps.next()?.is_some() {}
                // In a file that somebody else has made, it may be that nothing can be given back.
                let left = to_spare(connection)?;
                Ok(left > 0 && left < spare)
            })
            .await
    }

    /// Bytes that all of it takes: the journal's used pages, and the artifacts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bytes(&self) -> Result<u64, StoreError> {
        self.read(|connection| {
            let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            let used = (pragma("page_count")? - pragma("freelist_count")?).saturating_mul(pragma("page_size")?);
            let artifacts = "SELECT ifnull(sum(bytes), 0) FROM (SELECT DISTINCT sha256, bytes FROM artifacts)";
            let artifacts: i64 = connection.prepare_cached(artifacts)?.query_row([], |row| row.get(0))?;
            Ok(u64::try_from(used.saturating_add(artifacts)).unwrap_or(0))
        })
        .await
    }
}

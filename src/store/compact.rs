//! Compaction: replaces events by merged ones, returns free pages to the disk, and measures the size of the data.

use rusqlite::{Connection, Row, params};

use super::events::{self, EventRow};
use super::sessions::{session_id, signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{PrincipalId, Seq, SessionId, SessionPhase};

/// The number of free pages that the file keeps for later writes.
const SPARE_PAGES: i64 = 1024;
/// The number of free pages that one commit returns to the disk.
const RELEASED_PER_COMMIT: i64 = 512;

/// A finished cell whose events may be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compactable {
    pub session: SessionId,
    pub number: u32,
    pub id: String,
    /// The first event that was not examined yet.
    pub from: Seq,
    /// The last event of the cell.
    pub to: Seq,
}

/// The size of a session's events and artifacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionBytes {
    pub session: SessionId,
    pub principal: PrincipalId,
    pub phase: SessionPhase,
    /// In milliseconds since 1970.
    pub last_active_at: i64,
    pub bytes: u64,
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
    /// Finished cells with many events that were not merged yet. Their last event is older than `before` (milliseconds since
    /// 1970). Returns at most `max_cells`.
    pub async fn compactable(&self, before: i64, max_cells: usize) -> Result<Vec<Compactable>, StoreError> {
        self.read(move |connection| {
            let select = "SELECT c.session, c.number, c.id, max(c.first_seq, c.compacted + 1), c.last_seq FROM cells AS c \
                          JOIN events AS e ON e.session = c.session AND e.seq = c.last_seq \
                          WHERE c.state = 'finished' AND c.last_seq - c.first_seq > 16 AND c.last_seq > c.compacted \
                          AND e.time <= ?1 LIMIT ?2";
            connection.prepare_cached(select)?.query_map(params![before, max_cells as i64], read)?.collect()
        })
        .await
    }

    /// A page of the cell's events that were not examined yet. It ends like a page of [`Self::events_after`].
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

    /// Replaces events by merged ones, and records that the cell's events up to `done` were examined.
    pub async fn merge_events(&self, cell: &Compactable, merged: Vec<EventRow>, done: Seq) -> Result<(), StoreError> {
        let cell = cell.clone();
        self.writer.write_long(move |connection| merge(connection, &cell, &merged, done)).await
    }

    /// The size of events and artifacts of each session that has an owner, in bytes. This reads the lengths of all events.
    pub async fn session_bytes(&self) -> Result<Vec<SessionBytes>, StoreError> {
        self.read(|connection| {
            let select = "SELECT s.id, s.principal, s.state, s.last_active_at, \
                            ifnull((SELECT sum(octet_length(e.body)) FROM events e WHERE e.session = s.id), 0) \
                            + ifnull((SELECT sum(a.bytes) FROM artifacts a WHERE a.session = s.id), 0) \
                          FROM sessions s WHERE s.principal <> ''";
            let read = |row: &Row<'_>| {
                Ok(SessionBytes {
                    session: session_id(row, 0)?,
                    principal: row.get(1)?,
                    phase: row.get(2)?,
                    last_active_at: row.get(3)?,
                    bytes: row.get::<_, i64>(4)?.max(0).cast_unsigned(),
                })
            };
            connection.prepare_cached(select)?.query_map([], read)?.collect()
        })
        .await
    }

    /// Returns some free pages of the file to the disk, in a small commit, so that other writers get their turn. Returns
    /// whether more pages can be released.
    pub async fn release_free_pages(&self) -> Result<bool, StoreError> {
        let excess = |connection: &Connection| {
            let free = connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0))?;
            Ok::<_, rusqlite::Error>(free - SPARE_PAGES)
        };
        if self.read(excess).await? <= 0 {
            return Ok(false);
        }
        self.writer
            .write_long(move |connection| {
                let pages = excess(connection)?;
                if pages <= 0 {
                    // `incremental_vacuum(0)` would release all free pages.
                    return Ok(false);
                }
                // Each step releases one page.
                let mut vacuum =
                    connection.prepare(&format!("PRAGMA incremental_vacuum({})", pages.min(RELEASED_PER_COMMIT)))?;
                let mut steps = vacuum.query(())?;
                while steps.next()?.is_some() {}
                // A file that was not created by this program may be unable to release pages.
                let left = excess(connection)?;
                Ok(left > 0 && left < pages)
            })
            .await
    }

    /// The size of the data in bytes: the used pages of the journal, and the artifacts.
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

//! The rows of sessions.

use std::collections::HashMap;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::creation_keys::{self, CreationKey};
use super::{Store, StoreError};
use crate::ids::{Access, Epoch, PrincipalId, Seq, SessionId, SessionPhase};

/// A stored session. The store does not read JSON columns. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    pub id: SessionId,
    pub principal: PrincipalId,
    /// The display name, chosen by the owner.
    pub name: Option<String>,
    pub kernel: String,
    pub language: String,
    /// The configuration (limits, network, labels, lifetimes) as JSON.
    pub spec: String,
    pub phase: SessionPhase,
    /// Why the session ended.
    pub why: Option<String>,
    /// The record of the sandbox as JSON. `None` until the sandbox exists.
    pub sandbox: Option<String>,
    /// The epoch of the agent, and its last event that is in the store.
    pub position: (Epoch, Seq),
    /// The last event of the session.
    pub last_seq: Seq,
    /// The state that the driver needs to resume, as JSON.
    pub resume: Option<String>,
    /// The content of the kernel's `kernel_info_reply`, as JSON.
    pub kernel_info: Option<String>,
    pub created_at: i64,
    pub last_active_at: i64,
    /// The end of the session's lifetime.
    pub expires_at: Option<i64>,
}

const COLUMNS: &str = "id, principal, name, kernel, language, spec, state, why, epoch, seq, last_seq, created_at, \
                       last_active_at, expires_at";

/// Which sessions a list has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionFilter {
    /// Labels that a session must have, with their values.
    pub labels: HashMap<String, String>,
    pub phase: Option<SessionPhase>,
    /// Whether only sessions of notebook jobs are listed.
    pub only_jobs: bool,
}

/// The place of a session in lists: the time of its creation and its id.
pub type SessionPosition = (i64, String);

/// The visible sessions after a position, oldest first.
const PAGE: &str = "(created_at, id) > (:created_at, :id) AND state NOT IN ('creating', 'deleting') \
                    AND (:state IS NULL OR state = :state) \
                    AND (NOT :only_jobs OR json_extract(spec, '$.run') IS NOT NULL) \
                    AND NOT EXISTS (SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS \
                    (SELECT 1 FROM json_each(spec, '$.labels') AS own WHERE own.key = wanted.key AND own.value = wanted.value)) \
                    ORDER BY created_at, id LIMIT :limit";

/// The statement that reads a page. There are two, so that each has an index.
pub(super) fn page_statement(of_one_principal: bool) -> String {
    let whose = if of_one_principal { "principal = :principal" } else { ":principal IS NULL" };
    format!("SELECT {} FROM sessions WHERE {whose} AND {PAGE}", columns_with(&[SANDBOX]))
}

/// Documents of a session: long texts in a table of their own.
const SANDBOX: &str = "sandbox";
pub(super) const RESUME: &str = "resume";
pub(super) const KERNEL_INFO: &str = "kernel_info";

/// The columns that [`read`] expects, with documents of these kinds. Other documents are read as null.
fn columns_with(kinds: &[&str]) -> String {
    let text = |kind| match kinds.contains(&kind) {
        true => format!("(SELECT json FROM documents WHERE session = sessions.id AND kind = '{kind}')"),
        false => "NULL".to_owned(),
    };
    [COLUMNS.to_owned(), text(SANDBOX), text(RESUME), text(KERNEL_INFO)].join(", ")
}

pub(super) fn put_document(connection: &Connection, session: &SessionId, kind: &str, json: &str) -> rusqlite::Result<()> {
    let put = "INSERT INTO documents (session, kind, json) VALUES (?1, ?2, ?3) \
               ON CONFLICT (session, kind) DO UPDATE SET json = excluded.json";
    connection.prepare_cached(put)?.execute(params![session.as_str(), kind, json]).map(drop)
}

/// SQLite's integers are signed, so the bits of an unsigned number are stored as a signed one.
pub(super) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

pub(super) fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

pub(super) fn session_id(row: &Row<'_>, column: usize) -> rusqlite::Result<SessionId> {
    let text: String = row.get(column)?;
    SessionId::parse(&text).ok_or_else(|| {
        let problem = format!("{text:?} is not a session id").into();
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, problem)
    })
}

impl ToSql for SessionPhase {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for SessionPhase {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for PrincipalId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for PrincipalId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(value.as_str()?.into())
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        id: session_id(row, 0)?,
        principal: row.get(1)?,
        name: row.get(2)?,
        kernel: row.get(3)?,
        language: row.get(4)?,
        spec: row.get(5)?,
        phase: row.get(6)?,
        why: row.get(7)?,
        position: (Epoch(unsigned(row.get(8)?)), Seq(unsigned(row.get(9)?))),
        last_seq: Seq(unsigned(row.get(10)?)),
        created_at: row.get(11)?,
        last_active_at: row.get(12)?,
        expires_at: row.get(13)?,
        sandbox: row.get(14)?,
        resume: row.get(15)?,
        kernel_info: row.get(16)?,
    })
}

fn insert(connection: &Connection, session: &SessionRow) -> rusqlite::Result<()> {
    connection.execute(
        &format!(
            "INSERT INTO sessions ({COLUMNS}) VALUES (:id, :principal, :name, :kernel, :language, :spec, :state, :why, \
             :epoch, :seq, :last_seq, :created_at, :last_active_at, :expires_at)"
        ),
        named_params! {
            ":id": session.id.as_str(), ":principal": session.principal, ":name": session.name,
            ":kernel": session.kernel, ":language": session.language, ":spec": session.spec,
            ":state": session.phase, ":why": session.why,
            ":epoch": signed(session.position.0.0), ":seq": signed(session.position.1.0),
            ":last_seq": signed(session.last_seq.0),
            ":created_at": session.created_at, ":last_active_at": session.last_active_at,
            ":expires_at": session.expires_at,
        },
    )?;
    for (kind, text) in [(SANDBOX, &session.sandbox), (RESUME, &session.resume), (KERNEL_INFO, &session.kernel_info)] {
        if let Some(json) = text {
            put_document(connection, &session.id, kind, json)?;
        }
    }
    Ok(())
}

impl Store {
    /// Inserts a session. This happens before its sandbox is created, so that a later server finds what a killed one left
    /// behind.
    pub async fn insert_session(&self, session: SessionRow) -> Result<(), StoreError> {
        self.writer.write(move |connection| insert(connection, &session)).await
    }

    /// Gives a pooled session to its owner, and the key of the request to the session.
    pub async fn claim_session(&self, row: SessionRow, key: Option<CreationKey>) -> Result<(), StoreError> {
        self.writer.write(move |connection| {
            let update = "UPDATE sessions SET principal = ?2, name = ?3, spec = ?4, created_at = ?5, last_active_at = ?6, \
                          expires_at = ?7 WHERE id = ?1";
            let SessionRow { id, principal, name, spec, created_at, last_active_at, expires_at, .. } = row;
            let values = params![id.as_str(), principal, name, spec, created_at, last_active_at, expires_at];
            connection.prepare_cached(update)?.execute(values)?;
            key.map_or(Ok(()), |key| creation_keys::put(connection, &principal, &key, id.as_str()))
        })
        .await
    }

    /// Stores the record of a session's sandbox.
    pub async fn set_sandbox(&self, session: &SessionId, record: String) -> Result<(), StoreError> {
        let id = session.clone();
        self.writer.write(move |connection| put_document(connection, &id, SANDBOX, &record)).await
    }

    /// Changes the name, the configuration and the lifetime of a session in one transaction. Returns `false` if there is no
    /// such session.
    pub async fn change_session(
        &self,
        session: &SessionId,
        change: impl FnOnce(&mut SessionRow) + Send + 'static,
    ) -> Result<Option<SessionRow>, StoreError> {
        let id = session.clone();
        self.writer
            .write(move |connection| {
                let select = format!("SELECT {} FROM sessions WHERE id = ?1", columns_with(&[]));
                let Some(mut row) = connection.prepare_cached(&select)?.query_row([id.as_str()], read).optional()? else {
                    return Ok(None);
                };
                change(&mut row);
                let update = "UPDATE sessions SET name = ?2, spec = ?3, expires_at = ?4 WHERE id = ?1";
                connection.prepare_cached(update)?.execute(params![id.as_str(), row.name, row.spec, row.expires_at])?;
                Ok(Some(row))
            })
            .await
    }

    /// The imported notebook file of a session without its cells, as JSON.
    pub async fn notebook(&self, session: &SessionId) -> Result<Option<String>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let mut select = connection.prepare_cached("SELECT json FROM notebooks WHERE session = ?1")?;
            select.query_map([id.as_str()], |row| row.get(0))?.next().transpose()
        })
        .await
    }

    /// Removes a session with everything that refers to it. Returns the hashes of artifacts that no other session uses.
    pub async fn delete_session(&self, session: &SessionId) -> Result<Vec<String>, StoreError> {
        let id = session.clone();
        self.writer
            .write_long(move |connection| {
                let orphans = "SELECT DISTINCT sha256 FROM artifacts AS mine WHERE session = ?1 AND NOT EXISTS \
                           (SELECT 1 FROM artifacts WHERE sha256 = mine.sha256 AND session <> ?1)";
                let orphans = connection
                    .prepare_cached(orphans)?
                    .query_map([id.as_str()], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                connection.execute("DELETE FROM sessions WHERE id = ?1", [id.as_str()])?;
                Ok(orphans)
            })
            .await
    }

    /// One session with its documents.
    pub async fn session(&self, session: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        let id = session.clone();
        self.read(move |connection| {
            let columns = columns_with(&[SANDBOX, RESUME, KERNEL_INFO]);
            let mut select = connection.prepare_cached(&format!("SELECT {columns} FROM sessions WHERE id = ?1"))?;
            select.query_map([id.as_str()], read)?.next().transpose()
        })
        .await
    }

    /// A page of the visible sessions after a position, oldest first. Long documents are left out as in [`Self::sessions`].
    pub async fn sessions_page(
        &self,
        access: &Access,
        filter: SessionFilter,
        after: Option<SessionPosition>,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let principal = access.principal().cloned();
        let (created_at, id) = after.unwrap_or((i64::MIN, String::new()));
        let labels = serde_json::to_string(&filter.labels).unwrap_or_default();
        self.read(move |connection| {
            let select = page_statement(principal.is_some());
            let values = named_params! {
                ":principal": principal, ":created_at": created_at, ":id": id, ":state": filter.phase,
                ":only_jobs": filter.only_jobs, ":labels": labels, ":limit": i64::try_from(limit).unwrap_or(i64::MAX),
            };
            connection.prepare_cached(&select)?.query_map(values, read)?.collect()
        })
        .await
    }

    /// The visible sessions, oldest first. `resume` and `kernel_info` are left out, because they may be long.
    pub async fn sessions(&self, access: &Access) -> Result<Vec<SessionRow>, StoreError> {
        let principal = access.principal().cloned();
        self.read(move |connection| {
            let columns = columns_with(&[SANDBOX]);
            let select =
                format!("SELECT {columns} FROM sessions WHERE ?1 IS NULL OR principal = ?1 ORDER BY created_at, id");
            connection.prepare_cached(&select)?.query_map([principal], read)?.collect()
        })
        .await
    }
}

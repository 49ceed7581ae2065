//! The rows of environments: the package sets that principals have asked for.

use std::str::FromStr;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, params};

use super::sessions::{signed, unsigned};
use super::{Store, StoreError};
use crate::ids::{Access, PrincipalId, Seq};

/// The state of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvironmentState {
    Building,
    Ready,
    Failed,
}

impl EnvironmentState {
    pub const ALL: [Self; 3] = [Self::Building, Self::Ready, Self::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for EnvironmentState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

impl ToSql for EnvironmentState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for EnvironmentState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|()| FromSqlError::InvalidType)
    }
}

/// A stored environment. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentRow {
    pub id: String,
    pub principal: PrincipalId,
    pub kernel: String,
    /// The request as JSON, without a lock.
    pub request: String,
    pub state: EnvironmentState,
    /// The id of its package set, once it is ready.
    pub package_set: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The last lines of the installation, and the number of the first of them.
    pub log: String,
    pub log_first: Seq,
    pub created_at: i64,
    /// The end of the installation.
    pub ended_at: Option<i64>,
}

/// The text of a page after which it ends, bytes.
const MAX_PAGE_BYTES: usize = 2 << 20;

const COLUMNS: &str = "id, principal, kernel, request, state, package_set, error, log, log_first, created_at, ended_at";

fn read(row: &Row<'_>) -> rusqlite::Result<EnvironmentRow> {
    Ok(EnvironmentRow {
        id: row.get(0)?,
        principal: row.get(1)?,
        kernel: row.get(2)?,
        request: row.get(3)?,
        state: row.get(4)?,
        package_set: row.get(5)?,
        error: row.get(6)?,
        log: row.get(7)?,
        log_first: Seq(unsigned(row.get(8)?)),
        created_at: row.get(9)?,
        ended_at: row.get(10)?,
    })
}

impl Store {
    /// Writes an environment, in the place of one with the same id. Without a lock, that of the other stays.
    pub async fn put_environment(&self, row: EnvironmentRow, lock: Option<String>) -> Result<(), StoreError> {
        self.writer
            .write(move |connection| {
                let EnvironmentRow { id, principal, kernel, request, state, package_set, error, log, .. } = row;
                let insert = format!(
                    "INSERT OR REPLACE INTO environments ({COLUMNS}, lock) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11,
                         coalesce(?12, (SELECT lock FROM environments WHERE id = ?1)))"
                );
                let values = params![
                    id, principal, kernel, request, state, package_set, error, log, signed(row.log_first.0), row.created_at,
                    row.ended_at, lock
                ];
                connection.execute(&insert, values).map(drop)
            })
            .await
    }

    /// The versions that were asked for, or that the first installation of an environment has decided.
    pub async fn environment_lock(&self, id: &str) -> Result<Option<String>, StoreError> {
        let id = id.to_owned();
        self.read(move |connection| {
            let select = "SELECT lock FROM environments WHERE id = ?1";
            Ok(connection.prepare_cached(select)?.query_row([id], |row| row.get(0)).optional()?.flatten())
        })
        .await
    }

    pub async fn environment(&self, id: &str) -> Result<Option<EnvironmentRow>, StoreError> {
        let id = id.to_owned();
        self.read(move |connection| {
            let select = format!("SELECT {COLUMNS} FROM environments WHERE id = ?1");
            connection.prepare_cached(&select)?.query_row([id], read).optional()
        })
        .await
    }

    /// The ids and states of a principal's environments, oldest first.
    pub async fn environments_of(&self, principal: &PrincipalId) -> Result<Vec<(String, EnvironmentState)>, StoreError> {
        let principal = principal.clone();
        self.read(move |connection| {
            let select = "SELECT id, state FROM environments WHERE principal = ?1 ORDER BY created_at, id";
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            connection.prepare_cached(select)?.query_map([principal], read)?.collect()
        })
        .await
    }

    /// A page of the environments that are visible, oldest first, after the one with this time and id; and whether there are more. A page
    /// with long requests or logs has fewer than `limit`.
    pub async fn environments_page(
        &self,
        access: &Access,
        after: Option<(i64, String)>,
        limit: usize,
    ) -> Result<(Vec<EnvironmentRow>, bool), StoreError> {
        let principal = access.principal().cloned();
        let (time, id) = after.unwrap_or((i64::MIN, String::new()));
        self.read(move |connection| {
            let select = format!(
                "SELECT {COLUMNS} FROM environments
                 WHERE (?1 IS NULL OR principal = ?1) AND (created_at, id) > (?2, ?3) ORDER BY created_at, id"
            );
            let mut statement = connection.prepare_cached(&select)?;
            let (mut page, mut bytes) = (Vec::new(), 0);
            for row in statement.query_map(params![principal, time, id], read)? {
                if page.len() == limit || bytes > MAX_PAGE_BYTES {
                    return Ok((page, true));
                }
                let row = row?;
                bytes += row.request.len() + row.log.len();
                page.push(row);
            }
            Ok((page, false))
        })
        .await
    }

    /// The environments whose installation has begun and not ended.
    pub async fn building_environments(&self) -> Result<Vec<EnvironmentRow>, StoreError> {
        self.read(move |connection| {
            let select = format!("SELECT {COLUMNS} FROM environments WHERE state = ?1");
            connection.prepare_cached(&select)?.query_map([EnvironmentState::Building], read)?.collect()
        })
        .await
    }

    pub async fn delete_environment(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.writer
            .write(move |connection| connection.execute("DELETE FROM environments WHERE id = ?1", [id]).map(drop))
            .await
    }
}

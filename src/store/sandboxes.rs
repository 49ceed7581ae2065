//! The rows of sandboxes that were created by themselves. A row exists as long as its sandbox; it is written before the sandbox is
//! created and removed after it is destroyed, so that a later server finds what a killed one left behind.

use rusqlite::{OptionalExtension, Row, params};

use super::{Store, StoreError};
use crate::ids::{PrincipalId, SandboxId};

/// A stored sandbox. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRow {
    pub id: SandboxId,
    pub principal: PrincipalId,
    /// The display name, chosen by the owner.
    pub name: Option<String>,
    /// The kernel whose environment the sandbox has.
    pub kernel: String,
    /// The configuration as JSON.
    pub spec: String,
    /// The record of the sandbox as JSON. `None` until it exists.
    pub record: Option<String>,
    pub created_at: i64,
    /// The end of its lifetime.
    pub expires_at: Option<i64>,
}

const COLUMNS: &str = "id, principal, name, kernel, spec, record, created_at, expires_at";

fn read(row: &Row<'_>) -> rusqlite::Result<SandboxRow> {
    let id: String = row.get(0)?;
    let id = SandboxId::parse(&id).ok_or_else(|| {
        let problem = format!("{id:?} is not a sandbox id").into();
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, problem)
    })?;
    Ok(SandboxRow {
        id,
        principal: row.get(1)?,
        name: row.get(2)?,
        kernel: row.get(3)?,
        spec: row.get(4)?,
        record: row.get(5)?,
        created_at: row.get(6)?,
        expires_at: row.get(7)?,
    })
}

impl Store {
    pub async fn insert_sandbox(&self, row: SandboxRow) -> Result<(), StoreError> {
        self.writer
            .write(move |connection| {
                let SandboxRow { id, principal, name, kernel, spec, record, created_at, expires_at } = row;
                let insert = format!("INSERT INTO sandboxes ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
                let values = params![id.as_str(), principal, name, kernel, spec, record, created_at, expires_at];
                connection.execute(&insert, values).map(drop)
            })
            .await
    }

    /// Stores the record of a sandbox that exists now.
    pub async fn set_sandbox_record(&self, id: &SandboxId, record: String) -> Result<(), StoreError> {
        let id = id.clone();
        self.writer
            .write(move |connection| {
                let update = "UPDATE sandboxes SET record = ?2 WHERE id = ?1";
                connection.execute(update, params![id.as_str(), record]).map(drop)
            })
            .await
    }

    /// Changes the name, the configuration and the lifetime of a sandbox in one transaction, and returns the changed row.
    /// `None` if there is no such sandbox.
    pub async fn change_sandbox(
        &self,
        id: &SandboxId,
        change: impl FnOnce(&mut SandboxRow) + Send + 'static,
    ) -> Result<Option<SandboxRow>, StoreError> {
        let id = id.clone();
        self.writer
            .write(move |connection| {
                let select = format!("SELECT {COLUMNS} FROM sandboxes WHERE id = ?1");
                let Some(mut row) = connection.query_row(&select, [id.as_str()], read).optional()? else { return Ok(None) };
                change(&mut row);
                let update = "UPDATE sandboxes SET name = ?2, spec = ?3, expires_at = ?4 WHERE id = ?1";
                connection.execute(update, params![id.as_str(), row.name, row.spec, row.expires_at])?;
                Ok(Some(row))
            })
            .await
    }

    pub async fn delete_sandbox(&self, id: &SandboxId) -> Result<(), StoreError> {
        let id = id.clone();
        self.writer
            .write(move |connection| connection.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()]).map(drop))
            .await
    }

    /// All sandboxes, oldest first.
    pub async fn sandboxes(&self) -> Result<Vec<SandboxRow>, StoreError> {
        self.read(|connection| {
            let select = format!("SELECT {COLUMNS} FROM sandboxes ORDER BY created_at, id");
            connection.prepare_cached(&select)?.query_map([], read)?.collect()
        })
        .await
    }
}

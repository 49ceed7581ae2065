//! The keys by which clients create sessions and sandboxes once. A key is free again when what it created is deleted.

use rusqlite::types::{ToSql, ToSqlOutput};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Store, StoreError};
use crate::ids::PrincipalId;

/// What a key creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    Session,
    /// The session of a notebook job.
    Run,
    Sandbox,
    /// The session of one execution.
    Execution,
}

impl ToSql for KeyKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Session => "session".into(),
            Self::Run => "run".into(),
            Self::Sandbox => "sandbox".into(),
            Self::Execution => "execution".into(),
        })
    }
}

/// A key that a client has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreationKey {
    pub kind: KeyKind,
    pub name: String,
    /// Identifies what is asked for: the same key with another request is a mistake of the client.
    pub digest: String,
}

/// Gives a key to what is created with it, also if something had it that is being deleted.
pub(super) fn put(connection: &Connection, principal: &PrincipalId, key: &CreationKey, id: &str) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO creation_keys (principal, kind, name, id, digest) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(insert)?.execute(params![principal, key.kind, key.name, id, key.digest]).map(drop)
}

impl Store {
    /// Gives a key to what is being created with it.
    pub async fn put_creation_key(&self, principal: &PrincipalId, key: CreationKey, id: String) -> Result<(), StoreError> {
        let principal = principal.clone();
        self.writer.write(move |connection| put(connection, &principal, &key, &id)).await
    }

    /// What a key has created: its id, and the digest of the request. It may be about to be deleted.
    pub async fn created_by_key(
        &self,
        principal: &PrincipalId,
        key: &CreationKey,
    ) -> Result<Option<(String, String)>, StoreError> {
        let (principal, CreationKey { kind, name, .. }) = (principal.clone(), key.clone());
        self.read(move |connection| {
            let select = "SELECT id, digest FROM creation_keys WHERE principal = ?1 AND kind = ?2 AND name = ?3";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            connection.prepare_cached(select)?.query_row(params![principal, kind, name], read).optional()
        })
        .await
    }
}

//! Shares: tokens that grant read access to one session. Only the hash of a token is stored.

use rusqlite::{Row, params};

use super::{Store, StoreError};
use crate::ids::{PrincipalId, SessionId};

/// A stored share. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRow {
    /// The public id, for listing and revoking.
    pub id: String,
    pub session: SessionId,
    /// The display name.
    pub name: Option<String>,
    /// SHA-256 of the token.
    pub hash: Vec<u8>,
    pub created_at: i64,
    pub expires_at: i64,
}

/// A share, and the owner of its session.
fn read(row: &Row<'_>) -> rusqlite::Result<Option<(ShareRow, PrincipalId)>> {
    let session: String = row.get(1)?;
    let Some(session) = SessionId::parse(&session) else { return Ok(None) };
    let share = ShareRow {
        id: row.get(0)?,
        session,
        name: row.get(2)?,
        hash: row.get(3)?,
        created_at: row.get(4)?,
        expires_at: row.get(5)?,
    };
    Ok(Some((share, row.get(6)?)))
}

impl Store {
    /// Stores a share, and removes expired ones.
    pub async fn put_share(&self, share: ShareRow) -> Result<(), StoreError> {
        self.writer
            .write(move |connection| {
                connection.execute("DELETE FROM shares WHERE expires_at < ?1", [share.created_at])?;
                let put =
                    "INSERT INTO shares (id, session, name, hash, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                let fields =
                    params![share.id, share.session.as_str(), share.name, share.hash, share.created_at, share.expires_at];
                connection.execute(put, fields).map(drop)
            })
            .await
    }

    /// The shares of one session or of all sessions, oldest first, each with the owner of its session.
    pub async fn shares(&self, session: Option<&SessionId>) -> Result<Vec<(ShareRow, PrincipalId)>, StoreError> {
        let id = session.map(|id| id.as_str().to_owned());
        let rows: Vec<Option<(ShareRow, PrincipalId)>> = self
            .read(move |connection| {
                let select = "SELECT shares.id, session, shares.name, hash, shares.created_at, shares.expires_at, principal \
                              FROM shares JOIN sessions ON sessions.id = session \
                              WHERE ?1 IS NULL OR session = ?1 ORDER BY shares.created_at, shares.id";
                connection.prepare_cached(select)?.query_map([id], read)?.collect()
            })
            .await?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// Removes a share of a session. Returns `false` if there is none with this id.
    pub async fn delete_share(&self, session: &SessionId, id: &str) -> Result<bool, StoreError> {
        let (session, id) = (session.clone(), id.to_owned());
        self.writer
            .write(move |connection| {
                let delete = "DELETE FROM shares WHERE session = ?1 AND id = ?2";
                Ok(connection.execute(delete, [session.as_str(), &id])? > 0)
            })
            .await
    }
}

//! API tokens. Only the hash of a token is stored.

use rusqlite::{Row, params};

use super::{Store, StoreError, now_ms};
use crate::ids::PrincipalId;

/// A stored token. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The public id, for listing and revoking.
    pub id: String,
    /// The display name.
    pub name: String,
    pub principal: PrincipalId,
    pub scope: String,
    /// SHA-256 of the token.
    pub hash: Vec<u8>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        id: row.get(0)?,
        name: row.get(1)?,
        principal: row.get(2)?,
        scope: row.get(3)?,
        hash: row.get(4)?,
        created_at: row.get(5)?,
        expires_at: row.get(6)?,
    })
}

impl Store {
    /// Stores a token. A token with the same hash is replaced.
    pub async fn put_token(&self, token: TokenRow) -> Result<(), StoreError> {
        self.writer
            .write(move |connection| {
                let put = "INSERT OR REPLACE INTO tokens (id, name, principal, scope, hash, created_at, expires_at) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                connection
                    .execute(
                        put,
                        params![
                            token.id,
                            token.name,
                            token.principal,
                            token.scope,
                            token.hash,
                            token.created_at,
                            token.expires_at
                        ],
                    )
                    .map(|_| ())
            })
            .await
    }

    /// Whether there is a token with this hash.
    pub async fn has_token(&self, hash: Vec<u8>) -> Result<bool, StoreError> {
        self.read(move |connection| connection.prepare_cached("SELECT 1 FROM tokens WHERE hash = ?1")?.exists([hash])).await
    }

    /// All tokens, oldest first.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.read(|connection| {
            let select =
                "SELECT id, name, principal, scope, hash, created_at, expires_at FROM tokens ORDER BY created_at, id";
            connection.prepare_cached(select)?.query_map([], read)?.collect()
        })
        .await
    }

    /// Whether another principal than this one has a valid token that may use sessions.
    pub async fn has_user_beside(&self, principal: &PrincipalId) -> Result<bool, StoreError> {
        let principal = principal.clone();
        self.read(move |connection| {
            let select = "SELECT EXISTS (SELECT 1 FROM tokens WHERE principal <> ?1 AND scope IN ('use', 'admin') \
                          AND (expires_at IS NULL OR expires_at > ?2))";
            connection.prepare_cached(select)?.query_row(params![principal, now_ms()], |row| row.get(0))
        })
        .await
    }

    /// Removes a token. Returns `false` if there is none with this id.
    pub async fn delete_token(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.writer.write(move |connection| Ok(connection.execute("DELETE FROM tokens WHERE id = ?1", [id])? > 0)).await
    }
}

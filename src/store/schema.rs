//! The tables, and how an older file becomes a newer one.

use std::path::Path;

use rusqlite::Connection;

use super::StoreError;

/// Each entry brings a file from the format of its index to the next. Entries are never changed once released.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
];

/// Sets the connection up and brings the file up to date.
pub(super) fn prepare(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    // Before the first table: freed pages can be given back without rewriting the file.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit is in the log before anybody is told; the log reaches the disk at checkpoints. So a killed server loses
    // nothing, and a machine that loses its power, whose sandboxes are gone with it, at most the last moments.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    for (version, migration) in (1..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or(0)) {
        connection.execute_batch(&format!("BEGIN;\n{migration}\nPRAGMA user_version = {version};\nCOMMIT;"))?;
    }
    Ok(())
}

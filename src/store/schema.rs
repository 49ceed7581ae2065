//! The tables, and the migrations from older formats.

use std::path::Path;

use rusqlite::Connection;

use super::{Durability, StoreError};

/// The migration at index N brings a file from format N to format N + 1. The statements of a released migration never
/// change.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
    include_str!("schema_7.sql"),
    include_str!("schema_8.sql"),
    include_str!("schema_9.sql"),
    include_str!("schema_10.sql"),
    include_str!("schema_11.sql"),
    include_str!("schema_12.sql"),
    include_str!("schema_13.sql"),
];

/// Configures the connection and migrates the file.
pub(super) fn prepare(connection: &Connection, path: &Path, durability: Durability) -> Result<(), StoreError> {
    // This must precede the first table. It lets free pages be returned to the disk without rewriting the file.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", durability.synchronous())?;
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

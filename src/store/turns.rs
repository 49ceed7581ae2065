//! Unfinished answers of the chat model (turns). A server that starts finds the turns that a killed server left behind.

use super::{Store, StoreError};
use crate::ids::SessionId;

impl Store {
    /// Records that the message in this cell is being answered.
    pub async fn put_turn(&self, session: &SessionId, cell: &str) -> Result<(), StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.writer
            .write(move |connection| {
                connection.execute("INSERT INTO turns (session, cell) VALUES (?1, ?2)", [id.as_str(), &cell]).map(drop)
            })
            .await
    }

    /// Records that the answer has ended.
    pub async fn delete_turn(&self, session: &SessionId, cell: &str) -> Result<(), StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.writer
            .write(move |connection| {
                connection.execute("DELETE FROM turns WHERE session = ?1 AND cell = ?2", [id.as_str(), &cell]).map(drop)
            })
            .await
    }

    /// Replaces the metadata of a cell in an ended session, whose driver accepts no edits. There is no event for the change,
    /// and nobody subscribes to an ended session.
    pub async fn put_metadata(&self, session: &SessionId, cell: &str, metadata: String) -> Result<(), StoreError> {
        let (id, cell) = (session.clone(), cell.to_owned());
        self.writer
            .write(move |connection| {
                let update = "UPDATE cells SET metadata = ?3 WHERE session = ?1 AND id = ?2";
                connection.execute(update, [id.as_str(), &cell, &metadata]).map(drop)
            })
            .await
    }

    /// All unfinished turns: session and cell of the message.
    pub async fn turns(&self) -> Result<Vec<(SessionId, String)>, StoreError> {
        let rows: Vec<(String, String)> = self
            .read(|connection| {
                let mut select = connection.prepare_cached("SELECT session, cell FROM turns")?;
                select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })
            .await?;
        Ok(rows.into_iter().filter_map(|(id, cell)| Some((SessionId::parse(&id)?, cell))).collect())
    }
}

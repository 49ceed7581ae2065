//! Where a session commits its transactions.

use async_trait::async_trait;
use thiserror::Error;

use super::transaction::Transaction;

/// Why a transaction could not be committed. It can be retried.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct JournalError(pub String);

/// An append-only log of one session.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Backpressure: waits until the reader has taken enough that more may come. Cancel safe.
    async fn room(&self);

    /// Commits a transaction. Once this returns, the transaction survives this process, and subscribers may see it. After an error
    /// nothing was committed, and the caller tries again with the same transaction.
    async fn append(&mut self, transaction: &Transaction) -> Result<(), JournalError>;
}

//! What an earlier server has left: sessions whose sandboxes live go on, others end in the journal, and what belongs to no
//! session is removed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::journal::restore_cell;
use super::keeper::{CREATING, Found, Keeper, Kept, spec_of};
use super::kept::KeeperError;
use super::removal::DELETING;
use super::{ManagerError, pool};
use crate::ids::SessionId;
use crate::link::Position;
use crate::output::OutputTarget;
use crate::sandbox::{self, SandboxKind, SandboxRecord, SandboxState};
use crate::session::{self, Stored};
use crate::store::{SessionRow, StoreError};

/// How long an engine may take until it can be asked, and the time between two tries.
const ENGINE_DEADLINE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Keeper {
    /// Takes up what an earlier server has left: sessions whose sandboxes live go on, others are ended in the journal, and
    /// sandboxes that no session has are removed. Returns when each session is in a true state, or on its way to one.
    ///
    /// # Errors
    /// [`KeeperError::Store`].
    pub async fn recover(&self) -> Result<(), KeeperError> {
        let rows = self.0.store.sessions(None).await?;
        let mut sandboxes = self.all_sandboxes(&rows).await;
        for row in rows {
            let found = sandboxes.remove(&row.id);
            if let Err(error) = self.recover_one(&row, found).await {
                tracing::error!(session = %row.id, %error, "cannot take up a session");
            }
        }
        for (id, (sandbox, record)) in sandboxes {
            // One-shot runs are their owners' business.
            if record.keep {
                tracing::info!(session = %id, "removing a sandbox that no session has");
                if let Err(error) = sandbox.destroy(&record).await {
                    tracing::warn!(session = %id, %error, "cannot remove it");
                }
            }
        }
        // The sessions that were taken up are writing already.
        let _removing = self.0.blobs.removing().await;
        let hashes: HashSet<String> = self.0.store.artifact_hashes().await?.into_iter().collect();
        if let Err(error) = self.0.blobs.keep_only(&hashes).await {
            tracing::warn!(%error, "cannot clear out artifacts that nobody has");
        }
        Ok(())
    }

    async fn all_sandboxes(&self, rows: &[SessionRow]) -> HashMap<SessionId, Found> {
        let mut all = HashMap::new();
        for kind in [SandboxKind::Process, SandboxKind::Docker] {
            let kind_of = |row: &SessionRow| record_of(row).map(|record| record.kind);
            // Asking a daemon takes longer than all the rest of a start. A row without a record was not made to its end.
            if self.0.settings.sandbox.allows(kind) || rows.iter().any(|row| kind_of(row).is_none_or(|its| its == kind)) {
                let needed = rows.iter().any(|row| row.state != "gone" && kind_of(row) == Some(kind));
                all.extend(self.sandboxes(kind, needed).await);
            }
        }
        all
    }

    /// The sandboxes of one kind. What cannot be asked is asked again for a while if sessions are known to be in it: after a
    /// boot the engine may come up later than we do, and who is not found is ended.
    async fn sandboxes(&self, kind: SandboxKind, needed: bool) -> Vec<(SessionId, Found)> {
        let deadline = Instant::now() + if needed { ENGINE_DEADLINE } else { Duration::ZERO };
        loop {
            match self.list_sandboxes(kind).await {
                Ok(found) => return found,
                // A kind that does not work here has none.
                Err(_) if !needed => return Vec::new(),
                Err(error) if Instant::now() > deadline => {
                    tracing::error!(%kind, %error, "cannot list sandboxes; the sessions in them are ended");
                    return Vec::new();
                }
                Err(error) => {
                    tracing::warn!(%kind, %error, "cannot list sandboxes; trying again");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn list_sandboxes(&self, kind: SandboxKind) -> Result<Vec<(SessionId, Found)>, ManagerError> {
        let sandbox = self.0.manager.sandbox(kind).await?;
        if let Err(error) = sandbox::sweep(&*sandbox, &self.0.paths).await {
            tracing::warn!(%kind, %error, "cannot look for sandboxes that were left behind");
        }
        let records = sandbox.list().await?;
        Ok(records.into_iter().map(|record| (record.session.clone(), (sandbox.clone(), record))).collect())
    }

    async fn recover_one(&self, row: &SessionRow, found: Option<Found>) -> Result<(), KeeperError> {
        if matches!(row.state.as_str(), CREATING | DELETING) || row.principal == pool::NOBODY {
            // Whoever asked for it has had no answer; and the pool is filled anew.
            self.remove_all_of(&row.id, found).await;
            return Ok(());
        }
        let spec = spec_of(row);
        let stored = self.stored(row).await?;
        let living = match &found {
            Some((sandbox, record)) if row.state != "gone" => {
                // Of one that cannot be asked now, its driver finds out.
                !matches!(sandbox.inspect(record).await, Ok(SandboxState::Ended { .. }))
            }
            _ => false,
        };
        let kept = match found {
            Some(found) if living => self.start(&row.principal, &spec, found, Some(stored)),
            // What is left of a sandbox goes as that of any session that has ended.
            found => self.end_in_journal(row, stored, found).await,
        };
        self.sessions(|sessions| sessions.insert(row.id.clone(), kept));
        Ok(())
    }

    async fn stored(&self, row: &SessionRow) -> Result<Stored, StoreError> {
        let cells = self.0.store.cells(&row.id).await?;
        let whole = self.0.store.session(&row.id).await?;
        let (resume, kernel_info) = whole.map_or((None, None), |row| (row.resume, row.kernel_info));
        let (epoch, seq) = row.position;
        let folds = self.0.store.folds(&row.id).await?;
        Ok(Stored {
            cells: cells.into_iter().filter_map(restore_cell).collect(),
            last_seq: row.last_seq,
            position: Position { epoch, seq },
            resume,
            outputs: folds.into_iter().map(|(code, json)| (OutputTarget::from_code(code), json)).collect(),
            kernel_info,
        })
    }

    /// A session whose sandbox is gone: what ran in it ends in the journal, and it can be read.
    async fn end_in_journal(&self, row: &SessionRow, stored: Stored, sandbox: Option<Found>) -> Kept {
        let (live, journal) = self.journal(&row.id, &row.kernel, Some(&stored));
        let why = row.why.clone().unwrap_or_else(|| "its sandbox ended while the server was away".to_owned());
        let handle = session::end_stored(stored, row.state == "gone", &why, journal).await;
        Kept {
            principal: row.principal.clone(),
            handle,
            live,
            last_used: Arc::default(),
            cell_timeout: Arc::default(),
            removing: Arc::default(),
            sandbox,
        }
    }
}

/// The record of a session's sandbox, if it was written.
fn record_of(row: &SessionRow) -> Option<SandboxRecord> {
    row.sandbox.as_deref().and_then(|record| serde_json::from_str(record).ok())
}

//! Bounds the audit records that somebody without rights can cause: more would rotate out the records of those who have some.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::audit::{AuditLog, AuditRecord};

/// The records of one kind in a window, and the length of a window.
const MAX_RECORDS: u64 = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// The action of a record that stands for others.
const SUMMARY: &str = "not recorded";

/// What is counted together: the principal (`None` is everybody without a valid token) and the result, so that a flood of one
/// kind does not hide the other kinds.
type Kind = (Option<String>, String);

/// The limit of records of each kind. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AuditLimit(Arc<Mutex<HashMap<Kind, u64>>>);

impl AuditLimit {
    /// Writes a record, or only counts it. The first record of a kind begins a window; at its end, one line says how many were
    /// only counted.
    pub(super) fn record(&self, log: &AuditLog, record: &AuditRecord) {
        let kind = (record.principal.clone(), record.result.clone());
        let count = self.count(kind.clone());
        if count <= MAX_RECORDS {
            log.record(record);
        }
        // A server that ends may drop requests outside of its runtime.
        if count == 1
            && let Ok(runtime) = Handle::try_current()
        {
            let (limit, log) = (self.clone(), log.clone());
            runtime.spawn(async move {
                tokio::time::sleep(WINDOW).await;
                limit.end_window(&log, kind);
            });
        }
    }

    fn count(&self, kind: Kind) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(kind).or_default();
        *count += 1;
        *count
    }

    fn end_window(&self, log: &AuditLog, kind: Kind) {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&kind).unwrap_or(0);
        if count > MAX_RECORDS {
            let (principal, result) = kind;
            let result = format!("{} more: {result}", count - MAX_RECORDS);
            log.record(&AuditRecord { action: SUMMARY.to_owned(), principal, result, ..AuditRecord::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit;
    use crate::config::Paths;

    #[tokio::test(start_paused = true)]
    async fn flood_of_one_principal_becomes_one_line() {
        let folder = std::env::temp_dir().join(format!("cellkeep-audit-limit-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let paths = Paths::new(&folder);
        let (log, limit) = (AuditLog::new(&paths), AuditLimit::default());
        let by = |name: &str| AuditRecord {
            principal: Some(name.to_owned()),
            result: "refused".to_owned(),
            ..AuditRecord::default()
        };
        for _ in 0..1000 {
            limit.record(&log, &by("share"));
        }
        limit.record(&log, &by("ann"));
        tokio::time::sleep(2 * WINDOW).await;
        limit.record(&log, &by("share"));
        let mut lines = Vec::new();
        audit::read(&paths, |line| lines.push(line.value.clone())).unwrap();
        assert_eq!(lines.len(), 30 + 1 + 1 + 1, "{lines:?}");
        assert_eq!((&lines[31]["principal"], &lines[31]["result"]), (&"share".into(), &"970 more: refused".into()));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

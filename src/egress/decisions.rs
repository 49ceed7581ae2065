//! What the code of a sandbox asked for: each host and port once, with the decision and the bytes. Bounded, and recorded in the audit log:
//! each decision the first time, and later what has been added, as far as its owner's share of the log allows. Lines have totals, so
//! that a line that is left out is made up for by the next one of its decision.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::shares::Share;
use crate::audit::{AuditLog, AuditRecord};
use crate::ids::SandboxId;

/// The most different decisions that are kept for one sandbox.
const MAX_DECISIONS: usize = 200;

/// A decision about connections to one host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub host: String,
    pub port: u16,
    /// The policy at the time.
    pub policy: String,
    /// Why connections are refused; `None` if they are allowed.
    pub refused: Option<String>,
    /// So many connections were decided so.
    pub connections: u64,
    /// Bytes that the sandbox has sent, and that it has received.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// The times of the first and the last connection, in milliseconds since 1970.
    pub first_at: i64,
    pub last_at: i64,
}

/// The decisions of a sandbox, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionList {
    pub decisions: Vec<Decision>,
    /// Connections to further hosts, which are not listed.
    pub unlisted: u64,
}

/// Decisions as they come. What was recorded of each is beside it.
#[derive(Debug, Default)]
pub(super) struct DecisionLog {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    list: DecisionList,
    /// The number of connections of each decision when it was last recorded, and its bytes.
    recorded: Vec<(u64, u64, u64)>,
    recorded_unlisted: u64,
}

/// For whom decisions are recorded.
pub(super) struct Recorder<'a> {
    pub audit: Option<&'a AuditLog>,
    pub sandbox: &'a SandboxId,
    pub principal: Option<String>,
    /// What the owner may add to the audit log about decisions that it has recorded already.
    pub share: &'a Share,
}

/// Which decision a connection belongs to; `None` if it is not listed.
pub(super) type DecisionIndex = Option<usize>;

impl DecisionLog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn list(&self) -> DecisionList {
        self.state().list.clone()
    }

    /// Counts a connection. A decision that is new is recorded at once.
    pub fn add(&self, host: &str, port: u16, policy: &str, refused: Option<&str>, recorder: &Recorder<'_>) -> DecisionIndex {
        let now = now_ms();
        let (index, added) = {
            let mut state = self.state();
            let same = |known: &Decision| {
                (known.host.as_str(), known.port, known.policy.as_str(), known.refused.as_deref())
                    == (host, port, policy, refused)
            };
            if let Some(index) = state.list.decisions.iter().position(same) {
                let known = &mut state.list.decisions[index];
                (known.connections, known.last_at) = (known.connections + 1, now);
                return Some(index);
            }
            if state.list.decisions.len() >= MAX_DECISIONS {
                state.list.unlisted += 1;
                return None;
            }
            let added = Decision {
                host: host.to_owned(),
                port,
                policy: policy.to_owned(),
                refused: refused.map(str::to_owned),
                connections: 1,
                sent_bytes: 0,
                received_bytes: 0,
                first_at: now,
                last_at: now,
            };
            state.list.decisions.push(added.clone());
            state.recorded.push((1, 0, 0));
            (state.list.decisions.len() - 1, added)
        };
        recorder.record(&added);
        Some(index)
    }

    /// Adds the bytes of a connection that has ended.
    pub fn add_bytes(&self, index: DecisionIndex, (sent, received): (u64, u64)) {
        let mut state = self.state();
        if let Some(decision) = index.and_then(|index| state.list.decisions.get_mut(index)) {
            decision.sent_bytes += sent;
            decision.received_bytes += received;
        }
    }

    /// Records what has been added since the last time, as far as the owner's share allows. Returns how many decisions were left out.
    pub fn flush(&self, recorder: &Recorder<'_>) -> usize {
        let (mut changed, mut left_out, mut unlisted) = (Vec::new(), 0, None);
        {
            let mut state = self.state();
            let State { list, recorded, recorded_unlisted } = &mut *state;
            for (decision, recorded) in list.decisions.iter().zip(recorded) {
                let now = (decision.connections, decision.sent_bytes, decision.received_bytes);
                if *recorded == now {
                    continue;
                }
                if recorder.share.take_line() {
                    *recorded = now;
                    changed.push(decision.clone());
                } else {
                    left_out += 1;
                }
            }
            if *recorded_unlisted != list.unlisted && recorder.share.take_line() {
                *recorded_unlisted = list.unlisted;
                unlisted = Some(list.unlisted);
            }
        }
        changed.iter().for_each(|decision| recorder.record(decision));
        if let Some(count) = unlisted {
            recorder.write("egress.unlisted", None, "many hosts", json!({"connections": count}));
        }
        left_out
    }

    /// As [`Self::flush`], for the last time: says how much was left out.
    pub fn flush_at_end(&self, recorder: &Recorder<'_>) {
        let left_out = self.flush(recorder);
        if left_out > 0 {
            recorder.write("egress.unrecorded", None, "too many lines", json!({"decisions": left_out}));
        }
    }
}

impl Recorder<'_> {
    fn record(&self, decision: &Decision) {
        let action = if decision.refused.is_none() { "egress.allowed" } else { "egress.refused" };
        let details = json!({
            "policy": decision.policy, "connections": decision.connections, "sent_bytes": decision.sent_bytes,
            "received_bytes": decision.received_bytes,
        });
        let result = decision.refused.as_deref().unwrap_or("ok");
        self.write(action, Some(format!("{}:{}", decision.host, decision.port)), result, details);
    }

    fn write(&self, action: &str, target: Option<String>, result: &str, details: serde_json::Value) {
        let Some(audit) = self.audit else { return };
        audit.record(&AuditRecord {
            action: action.to_owned(),
            principal: self.principal.clone(),
            session: Some(self.sandbox.to_string()),
            target,
            result: result.to_owned(),
            details: Some(details),
            ..AuditRecord::default()
        });
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit;
    use crate::config::Paths;
    use crate::egress::shares::Shares;

    #[test]
    fn decisions_are_recorded_when_new_and_when_they_grow() {
        let folder = std::env::temp_dir().join(format!("cellkeep-decisions-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let (paths, sandbox) = (Paths::new(&folder), SandboxId::random());
        let audit = AuditLog::new(&paths);
        let share = Shares::new(1).of("ann");
        let recorder = Recorder { audit: Some(&audit), sandbox: &sandbox, principal: Some("ann".into()), share: &share };
        let log = DecisionLog::default();
        let first = log.add("a.com", 443, "packages", None, &recorder);
        assert_eq!(log.add("a.com", 443, "packages", None, &recorder), first);
        log.add("b.com", 22, "packages", Some("not in the policy"), &recorder);
        log.add_bytes(first, (3, 4));
        log.flush(&recorder);
        log.flush(&recorder);
        let mut lines = Vec::new();
        audit::read(&paths, |line| {
            let value = &line.value;
            lines.push(format!(
                "{} {} {} {}",
                value["action"], value["target"], value["result"], value["details"]["received_bytes"]
            ));
        })
        .unwrap();
        let expected = [
            r#""egress.allowed" "a.com:443" "ok" 0"#,
            r#""egress.refused" "b.com:22" "not in the policy" 0"#,
            r#""egress.allowed" "a.com:443" "ok" 4"#,
        ];
        assert_eq!(lines, expected);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn growing_decisions_cannot_flood_the_audit_log() {
        let folder = std::env::temp_dir().join(format!("cellkeep-decisions-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let (paths, sandbox, share) = (Paths::new(&folder), SandboxId::random(), Shares::new(1).of("ann"));
        let audit = AuditLog::new(&paths);
        let recorder = Recorder { audit: Some(&audit), sandbox: &sandbox, principal: None, share: &share };
        let log = DecisionLog::default();
        for _ in 0..10 {
            for port in 1..=100 {
                log.add("a.com", port, "open", None, &recorder);
            }
            log.flush(&recorder);
        }
        log.add("b.com", 1, "open", Some("no"), &recorder);
        log.flush_at_end(&recorder);
        let mut lines = Vec::new();
        audit::read(&paths, |line| lines.push(line.value.clone())).unwrap();
        assert!(lines.len() < 100 + 100 + 200, "{} lines", lines.len());
        assert!(lines.iter().any(|line| line["target"] == "b.com:1"), "a new decision is always recorded");
        let last = lines.last().unwrap();
        assert_eq!((&last["action"], &last["details"]["decisions"]), (&json!("egress.unrecorded"), &json!(100)));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn decisions_are_bounded() {
        let (log, sandbox) = (DecisionLog::default(), SandboxId::random());
        let share = Shares::new(1).of("ann");
        let recorder = Recorder { audit: None, sandbox: &sandbox, principal: None, share: &share };
        for port in 1..=MAX_DECISIONS as u16 + 5 {
            log.add("a.com", port, "none", Some("no"), &recorder);
        }
        let list = log.list();
        assert_eq!((list.decisions.len(), list.unlisted), (MAX_DECISIONS, 5));
    }
}

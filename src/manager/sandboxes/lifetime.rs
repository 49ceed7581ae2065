//! The end of sandboxes that were created by themselves, by request or by their lifetime, and their recovery after a restart.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::SandboxEntry;
use super::processes::Processes;
use crate::audit::AuditRecord;
use crate::ids::{Access, PrincipalId, SandboxId};
use crate::manager::reaper::{CONCURRENCY, Rounds, with_permit};
use crate::manager::registry::SandboxInstance;
use crate::manager::service::SessionService;
use crate::manager::session_config::{ServiceError, SessionConfig};
use crate::sandbox::{self, SandboxKind, SandboxState};
use crate::session::SessionState;
use crate::store::{SandboxRow, now_ms, seconds_in_ms};

/// The time between two rounds of the reaper.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);
/// In how many rounds a container engine is asked once whether its sandboxes still exist.
const ENGINE_ROUNDS: u64 = 10;

impl SessionService {
    /// Ends a sandbox that was created by itself, its sessions and its processes. The journals of the sessions stay.
    pub async fn delete_sandbox(&self, id: &SandboxId, access: &Access) -> Result<(), ServiceError> {
        let not_found = || ServiceError::SandboxNotFound { id: id.to_string() };
        let Some(entry) = self.0.sandboxes.find_visible(id, access) else {
            // That of a session ends with the session.
            return match self.find_sandbox(id, access) {
                Ok(_) => Err(ServiceError::SandboxOfSession { id: id.to_string() }),
                Err(_) => Err(not_found()),
            };
        };
        entry.set_ending();
        let (service, id) = (self.clone(), id.clone());
        // In a task of its own: the client may disconnect meanwhile.
        let ending = tokio::spawn(async move { service.end_sandbox(&id, &entry, "its sandbox was deleted").await });
        let _ = ending.await;
        Ok(())
    }

    /// Ends all sandboxes that were created by themselves.
    pub async fn delete_all_sandboxes(&self) {
        for id in self.0.sandboxes.ids() {
            if let Err(error) = self.delete_sandbox(&id, &Access::All).await {
                tracing::warn!(sandbox = %id, %error, "cannot remove a sandbox; it lives on");
            }
        }
    }

    /// Ends the sessions of a sandbox, then the sandbox. What fails is retried by the reaper.
    async fn end_sandbox(&self, id: &SandboxId, entry: &SandboxEntry, why: &str) {
        entry.set_ending();
        let _removal = entry.removal.lock().await;
        if self.0.sandboxes.find(id).is_none() {
            return;
        }
        for (_, session) in self.sessions_in(id) {
            self.end_guest(&session, why).await;
        }
        if let Err(error) = entry.instance.destroy().await {
            tracing::warn!(sandbox = %id, %error, "cannot remove a sandbox; retrying");
            return;
        }
        if let Err(error) = self.0.store.delete_sandbox(id).await {
            tracing::warn!(sandbox = %id, %error, "cannot remove the row of a sandbox; retrying");
            return;
        }
        self.record_sandbox("sandbox.removed", id, Some(&entry.principal), why);
        self.0.sandboxes.remove(id);
    }

    pub(super) fn record_sandbox(&self, action: &str, id: &SandboxId, principal: Option<&PrincipalId>, result: &str) {
        self.0.audit.record(&AuditRecord {
            action: action.to_owned(),
            principal: principal.map(ToString::to_string),
            sandbox: Some(id.to_string()),
            result: result.to_owned(),
            ..AuditRecord::default()
        });
    }

    // ---- lifetime -----------------------------------------------------------------------------------------------------

    /// Enforces the lifetimes of sandboxes. Runs for ever.
    pub(in crate::manager) async fn reap_sandboxes(&self) {
        let permits = Semaphore::new(CONCURRENCY);
        let mut rounds = Rounds::default();
        for round in 0.. {
            rounds.run_for(ROUND_INTERVAL).await;
            if self.0.sandboxes.ids().is_empty() {
                continue;
            }
            match self.0.store.sandboxes().await {
                Ok(rows) => rows.into_iter().for_each(|row| {
                    let id = row.id.as_session().clone();
                    rounds.start(id, with_permit(&permits, async move { self.reap_sandbox(&row, round).await }));
                }),
                Err(error) => tracing::error!(%error, "cannot list the sandboxes to enforce their lifetimes"),
            }
        }
    }

    async fn reap_sandbox(&self, row: &SandboxRow, round: u64) {
        let id = &row.id;
        let Some(entry) = self.0.sandboxes.find(id) else { return };
        if entry.is_ending() {
            return self.end_sandbox(id, &entry, "its sandbox was deleted").await;
        }
        self.0.consumption.charge(&entry.principal, entry.take_uncharged_time());
        if let Some(why) = self.sandbox_end_reason(row, &entry, round).await {
            tracing::info!(sandbox = %id, why, "ending a sandbox");
            self.end_sandbox(id, &entry, &why).await;
        }
    }

    /// Why a sandbox must end now. `None` if it may continue.
    async fn sandbox_end_reason(&self, row: &SandboxRow, entry: &SandboxEntry, round: u64) -> Option<String> {
        let instance = &entry.instance;
        let is_asked = instance.record.kind == SandboxKind::Process || round.is_multiple_of(ENGINE_ROUNDS);
        if is_asked && let Ok(SandboxState::Ended { why }) = instance.engine.inspect(&instance.record).await {
            return Some(format!("its sandbox has ended: {why}"));
        }
        let now = now_ms();
        if row.expires_at.is_some_and(|at| at <= now) {
            return Some("the lifetime of its sandbox is over (ttl_seconds)".to_owned());
        }
        if let Err(spent) = self.0.consumption.check_seconds(&entry.principal) {
            return Some(spent.to_string());
        }
        let config: SessionConfig = serde_json::from_str(&row.spec).unwrap_or_default();
        let most = self.ceilings().idle_timeout_seconds;
        let idle_timeout = config.idle_timeout_seconds.unwrap_or(self.idle_timeout()).min(most);
        let is_unused = now.saturating_sub(entry.last_used_ms()) > seconds_in_ms(idle_timeout);
        if is_unused && !self.is_in_use(&row.id, instance, now, idle_timeout).await {
            return Some(format!("its sandbox was idle for {idle_timeout} s (idle_timeout_seconds)"));
        }
        None
    }

    /// Whether a session or a process of a sandbox works, or was used lately.
    async fn is_in_use(&self, id: &SandboxId, instance: &SandboxInstance, now: i64, idle_timeout: u64) -> bool {
        for (session, entry) in self.sessions_in(id) {
            let last_active = self.0.store.session(&session).await.ok().flatten().map_or(0, |row| row.last_active_at);
            let last_used = last_active.max(entry.last_used_ms());
            let works = !matches!(entry.handle.state(), SessionState::Idle | SessionState::Gone { .. });
            if works || now.saturating_sub(last_used) <= seconds_in_ms(idle_timeout) {
                return true;
            }
        }
        // A sandbox that does not answer is asked again in the next round.
        Processes::new(Arc::new(instance.clone())).list().await.map_or(true, |all| all.iter().any(|one| one.ended.is_none()))
    }

    // ---- recovery -----------------------------------------------------------------------------------------------------

    /// Continues the sandboxes of an earlier server, and removes what is left of those that have ended. Takes none of
    /// `found` out, since sessions use them as well.
    pub(in crate::manager) async fn recover_sandboxes(
        &self,
        rows: Vec<SandboxRow>,
        found: &HashMap<SandboxId, SandboxInstance>,
    ) {
        for row in rows {
            let config: SessionConfig = serde_json::from_str(&row.spec).unwrap_or_default();
            let allotment = self.0.admission.count(&row.principal, config.limits.pids);
            let Some(instance) = found.get(&row.id) else {
                // It was never finished, or is gone.
                let removed = sandbox::remove_unfinished(&self.0.paths, &row.id);
                let deleted = self.0.store.delete_sandbox(&row.id).await;
                if let (Err(error), _) = (&removed, &deleted) {
                    tracing::warn!(sandbox = %row.id, %error, "cannot remove what is left of a sandbox");
                }
                if let Err(error) = deleted {
                    tracing::warn!(sandbox = %row.id, %error, "cannot remove the row of a sandbox");
                }
                continue;
            };
            let entry = SandboxEntry::new(row.principal, instance.clone(), allotment);
            // The client that asked for one without a record got no answer.
            if row.record.is_none() || self.refusal(&config).is_some() || self.check_network(&config.network).is_err() {
                entry.set_ending();
            } else {
                entry.instance.egress.set_policy(config.network, Some(&entry.principal));
            }
            self.0.sandboxes.insert(row.id, Arc::new(entry));
        }
    }
}

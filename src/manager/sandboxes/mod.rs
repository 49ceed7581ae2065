//! Sandboxes as their owners use them: with several sessions, and with processes.
//!
//! A sandbox that was created for a session has the session's id and ends with it. One that was created by itself ends by its own
//! lifetime, and its sessions with it.

mod control_link;
mod guests;
mod lifetime;
mod one_shot;
mod processes;
mod registry;

use std::sync::Arc;

use super::SessionSpec;
use super::registry::{SandboxInstance, SessionEntry};
use super::service::SessionService;
use super::session_config::{NewSession, ServiceError, SessionConfig};
use crate::ids::{Access, PrincipalId, SandboxId, SessionId};
use crate::kernels::{self, KernelSpec};
use crate::policy::NetworkPolicy;
use crate::sandbox::SandboxRecord;
use crate::session::{SessionError, SessionState};
use crate::store::{SandboxRow, StoreError, now_ms, seconds_in_ms};

pub(super) use control_link::ControlLink;
pub use one_shot::OneShotSandbox;
pub use processes::{NewProcess, ProcessError, ProcessOutput, ProcessReader, Processes};
pub(super) use registry::{SandboxEntry, SandboxRegistry};

/// A sandbox for its owner.
#[derive(Clone, Debug)]
pub struct SandboxDescription {
    pub id: SandboxId,
    pub name: Option<String>,
    /// The kernel whose environment it has.
    pub kernel: String,
    pub config: SessionConfig,
    pub record: SandboxRecord,
    /// Milliseconds since 1970.
    pub created_at: i64,
    pub last_used_at: i64,
    pub expires_at: Option<i64>,
    /// Whether it ends with the session of the same id.
    pub is_of_session: bool,
    /// The living sessions in it.
    pub sessions: Vec<SessionId>,
}

/// The fields of a sandbox that its owner may change.
#[derive(Clone, Debug, Default)]
pub struct SandboxChange {
    pub name: Option<String>,
    pub labels: Option<std::collections::HashMap<String, String>>,
    /// The lifetime in seconds from now.
    pub ttl_seconds: Option<u64>,
    pub idle_timeout_seconds: Option<u64>,
    /// Not to or from `open`.
    pub network: Option<NetworkPolicy>,
}

impl SessionService {
    /// Creates a sandbox without a session. After an error, nothing is left behind. With a key that was used before, returns the sandbox
    /// of that time.
    pub async fn create_sandbox(&self, principal: &PrincipalId, new: NewSession) -> Result<SandboxId, ServiceError> {
        let (owner, key) = (principal.clone(), new.key.clone());
        let make = |service: Self| async move { service.create_new_sandbox(&owner, new).await };
        self.create_once(principal, key, SandboxId::parse, make).await
    }

    async fn create_new_sandbox(&self, principal: &PrincipalId, new: NewSession) -> Result<SandboxId, ServiceError> {
        let kernel = kernels::find(&new.kernel)?.clone();
        let mut new = new;
        self.check_sandbox(&mut new)?;
        self.prepare_environment(principal, &kernel, &mut new).await?;
        let allotment = self.admit(principal, new.config.limits.pids).await?;
        let (service, principal) = (self.clone(), principal.clone());
        // In a task of its own: the client may disconnect, and what has begun must be finished or undone.
        let creating = tokio::spawn(async move {
            let id = SandboxId::random();
            service.0.store.insert_sandbox(new_row(&id, &principal, &kernel, &new)).await?;
            service.put_key(&principal, &new, id.as_str()).await?;
            match service.start_sandbox(&id, &kernel, &new).await {
                Ok(instance) => {
                    service.record_sandbox("sandbox.created", &id, Some(&principal), "ok");
                    instance.egress.set_policy(new.config.network.clone(), Some(&principal));
                    instance.egress.settle().await;
                    let entry = SandboxEntry::new(principal, instance, allotment);
                    service.0.sandboxes.insert(id.clone(), Arc::new(entry));
                    Ok(id)
                }
                Err((error, instance)) => {
                    service.record_sandbox("sandbox.created", &id, Some(&principal), "failed");
                    match instance {
                        // The reaper removes it.
                        Some(instance) => {
                            let entry = SandboxEntry::new(principal, instance, allotment);
                            entry.set_ending();
                            service.0.sandboxes.insert(id, Arc::new(entry));
                        }
                        None => service.0.store.delete_sandbox(&id).await?,
                    }
                    Err(error)
                }
            }
        });
        creating.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn start_sandbox(
        &self,
        id: &SandboxId,
        kernel: &KernelSpec,
        new: &NewSession,
    ) -> Result<SandboxInstance, (ServiceError, Option<SandboxInstance>)> {
        let mounts = self.mounts().find(&new.config.mounts).map_err(|error| (error.into(), None))?;
        let package_set = self.mounted_packages(new).await.map_err(|error| (error, None))?;
        let spec = SessionSpec {
            mounts,
            package_set,
            kernel: kernel.clone(),
            sandbox: self.0.settings.sandbox,
            limits: new.config.limits.clone(),
            network: new.config.network.clone(),
            env: new.env.clone(),
            secrets: new.secrets.clone(),
        };
        let created = self.0.manager.create_sandbox(&spec, id.clone(), None, None).await;
        let instance = created.map_err(|error| (error.into(), None))?;
        let text = serde_json::to_string(&instance.record).unwrap_or_default();
        match self.0.store.set_sandbox_record(id, text).await {
            Ok(()) => Ok(instance),
            Err(error) => Err((error.into(), Some(instance))),
        }
    }

    /// A sandbox that the caller may use, of a session or by itself. Counts as a use.
    pub(super) fn find_sandbox(&self, id: &SandboxId, access: &Access) -> Result<Arc<SandboxInstance>, ServiceError> {
        if let Some(entry) = self.0.sandboxes.find_visible(id, access) {
            entry.touch();
            return Ok(Arc::new(entry.instance.clone()));
        }
        let not_found = || ServiceError::SandboxNotFound { id: id.to_string() };
        let session = self.0.registry.find_visible(id.as_session(), access).map_err(|_| not_found())?;
        session.touch();
        match session.sandbox() {
            // A guest has no sandbox of its own.
            Some(sandbox) if sandbox.record.id != *id => Err(not_found()),
            // That of an ended session is about to be removed.
            Some(sandbox) if !matches!(session.handle.state(), SessionState::Gone { .. }) => Ok(sandbox),
            _ => Err(SessionError::Gone { why: "its sandbox has ended".to_owned() }.into()),
        }
    }

    /// The sandboxes that were created by themselves and that the caller may see, oldest first.
    pub async fn list_sandboxes(&self, access: &Access) -> Result<Vec<SandboxDescription>, ServiceError> {
        let rows = self.0.store.sandboxes().await?;
        Ok(rows.iter().filter_map(|row| self.describe_sandbox(row, access)).collect())
    }

    /// One sandbox, of a session or by itself.
    pub async fn sandbox(&self, id: &SandboxId, access: &Access) -> Result<SandboxDescription, ServiceError> {
        if self.0.sandboxes.find_visible(id, access).is_some() {
            let rows = self.0.store.sandboxes().await?;
            let described = rows.iter().find(|row| row.id == *id).and_then(|row| self.describe_sandbox(row, access));
            return described.ok_or_else(|| ServiceError::SandboxNotFound { id: id.to_string() });
        }
        let instance = self.find_sandbox(id, access)?;
        let row = self.reader().row(id.as_session(), access).await?;
        Ok(SandboxDescription {
            id: id.clone(),
            name: row.name.clone(),
            kernel: row.kernel.clone(),
            config: SessionConfig::of_row(&row),
            record: instance.record.clone(),
            created_at: row.created_at,
            last_used_at: row.last_active_at,
            expires_at: row.expires_at,
            is_of_session: true,
            sessions: self.sessions_in(id).into_iter().map(|(id, _)| id).collect(),
        })
    }

    fn describe_sandbox(&self, row: &SandboxRow, access: &Access) -> Option<SandboxDescription> {
        let entry = self.0.sandboxes.find_visible(&row.id, access)?;
        let sessions = self.sessions_in(&row.id);
        let uses = sessions.iter().map(|(_, session)| session.last_used_ms()).chain([entry.last_used_ms()]);
        Some(SandboxDescription {
            id: row.id.clone(),
            name: row.name.clone(),
            kernel: row.kernel.clone(),
            config: serde_json::from_str(&row.spec).unwrap_or_default(),
            record: entry.instance.record.clone(),
            created_at: row.created_at,
            last_used_at: uses.max().unwrap_or_default(),
            expires_at: row.expires_at,
            is_of_session: false,
            sessions: sessions.into_iter().map(|(id, _)| id).collect(),
        })
    }

    /// The living sessions in a sandbox.
    pub(super) fn sessions_in(&self, sandbox: &SandboxId) -> Vec<(SessionId, Arc<SessionEntry>)> {
        let is_in = |entry: &SessionEntry| entry.sandbox().is_some_and(|its| its.record.id == *sandbox);
        self.0.registry.all().into_iter().filter(|(_, entry)| is_in(entry)).collect()
    }

    /// Changes a sandbox that was created by itself. A lifetime that would exceed the ceiling ends there. After an error, nothing has
    /// changed.
    pub async fn change_sandbox(&self, id: &SandboxId, access: &Access, change: SandboxChange) -> Result<(), ServiceError> {
        let not_found = || ServiceError::SandboxNotFound { id: id.to_string() };
        let entry = self.0.sandboxes.find_visible(id, access).ok_or_else(not_found)?;
        entry.touch();
        if let Some(network) = &change.network {
            let config = self.sandbox(id, access).await?.config;
            self.check_new_network(&config.network, network)?;
        }
        let (service, id) = (self.clone(), id.clone());
        // In a task of its own: the client may disconnect, and what is committed must be in force.
        let changing = tokio::spawn(async move { service.commit_sandbox_change(&id, &entry, change).await });
        changing.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn commit_sandbox_change(
        &self,
        id: &SandboxId,
        entry: &SandboxEntry,
        change: SandboxChange,
    ) -> Result<(), ServiceError> {
        let network = change.network.clone();
        // What is in force follows the order of the commits.
        let _changing = entry.changing.lock().await;
        let longest = self.ceilings().lifetime_seconds.map(seconds_in_ms);
        let changed = self.0.store.change_sandbox(id, move |row| {
            let mut config: SessionConfig = serde_json::from_str(&row.spec).unwrap_or_default();
            config.network = change.network.unwrap_or(config.network);
            config.labels = change.labels.unwrap_or(config.labels);
            config.idle_timeout_seconds = change.idle_timeout_seconds.or(config.idle_timeout_seconds);
            if let Some(seconds) = change.ttl_seconds {
                config.ttl_seconds = Some(seconds);
                row.expires_at = Some(now_ms().saturating_add(seconds_in_ms(seconds)));
            }
            let latest = longest.map(|longest| row.created_at.saturating_add(longest));
            row.expires_at = row.expires_at.into_iter().chain(latest).min();
            row.name = change.name.or(row.name.take());
            row.spec = config.to_json();
        });
        changed.await?.ok_or_else(|| ServiceError::SandboxNotFound { id: id.to_string() })?;
        if let Some(network) = network {
            entry.instance.egress.set_policy(network.clone(), Some(&entry.principal));
            entry.instance.egress.settle().await;
            self.show_network_of_sandbox(id, &network).await?;
        }
        Ok(())
    }
}

fn new_row(id: &SandboxId, principal: &PrincipalId, kernel: &KernelSpec, new: &NewSession) -> SandboxRow {
    let now = now_ms();
    SandboxRow {
        id: id.clone(),
        principal: principal.clone(),
        name: new.name.clone(),
        kernel: kernel.name.clone(),
        spec: new.config.to_json(),
        record: None,
        created_at: now,
        expires_at: new.config.ttl_seconds.map(|seconds| now.saturating_add(seconds_in_ms(seconds))),
    }
}

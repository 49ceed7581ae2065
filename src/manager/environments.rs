//! Environments: package sets as principals ask for them over the API, by themselves or with a session. What is wanted is stored before
//! the installation begins, so a later server continues it.

use std::sync::Arc;

use super::environment_builds::{BegunBuild, LogLines};
use super::package_sets::{BuildLog, PackageError, PackageSet, WantedPackages};
use super::service::SessionService;
use super::session_config::{NewSession, ServiceError};
use crate::audit::AuditRecord;
use crate::ids::{Access, PrincipalId, Seq};
use crate::kernels::{self, KernelSpec};
use crate::policy::{NetworkPolicy, PackageRequest};
use crate::sandbox::MountedPackages;
use crate::store::{EnvironmentRow, EnvironmentState, StoreError, now_ms};

const PACKAGES_REMOVED: &str = "its packages were removed meanwhile; ask again";
/// The environments that a principal may have. Beyond, the oldest that failed goes, or a new one is refused.
const MAX_ENVIRONMENTS: usize = 200;
/// The largest lock that is kept when the packages are removed, bytes.
const MAX_STORED_LOCK: usize = 1 << 20;

/// An environment for its owner.
#[derive(Clone, Debug)]
pub struct EnvironmentDescription {
    pub row: EnvironmentRow,
    /// Its packages, once it is ready.
    pub set: Option<PackageSet>,
    pub log: LogLines,
}

/// What a reader of an installation's log gets next.
#[derive(Clone, Debug, PartialEq)]
pub enum BuildEvent {
    Line {
        seq: Seq,
        text: String,
    },
    /// Lines that are not kept: the first and the last of them.
    Lost {
        from: Seq,
        seq: Seq,
    },
    /// The end of the installation.
    Ended {
        seq: Seq,
        state: EnvironmentState,
        error: Option<String>,
    },
}

impl SessionService {
    /// Asks for packages. Returns the id of the environment, which is ready at once if it was asked for before.
    pub async fn create_environment(
        &self,
        principal: &PrincipalId,
        kernel: &str,
        request: PackageRequest,
    ) -> Result<String, ServiceError> {
        let wanted = self.wanted(principal, kernels::find(kernel)?, request);
        wanted.check()?;
        let id = self.0.manager.package_key(&wanted);
        let set = self.0.manager.find_package_set(&id);
        if set.is_none() {
            self.check_network(&NetworkPolicy::Packages)?;
            self.0.quota.check(principal)?;
            self.0.consumption.admit_executions(principal, 1)?;
        }
        let known = self.0.store.environment(&id).await?;
        // Its packages were removed to make room; the new ones are the same.
        let wanted = WantedPackages { known_lock: self.0.store.environment_lock(&id).await?, ..wanted };
        if set.is_some() && known.as_ref().is_some_and(|row| row.state == EnvironmentState::Ready) {
            return Ok(id);
        }
        if known.is_none() {
            self.make_room_for_environment(principal).await?;
        }
        let build = match &set {
            Some(_) => None,
            None => match self.0.builds.begin(&id, principal)? {
                Some(build) => Some(build),
                None => return Ok(id),
            },
        };
        let now = now_ms();
        let row = EnvironmentRow {
            id: id.clone(),
            principal: principal.clone(),
            kernel: wanted.kernel.name.clone(),
            // A lock has a column of its own, which lists do not read.
            request: serde_json::to_string(&PackageRequest { lock: None, ..wanted.request.clone() }).unwrap_or_default(),
            state: if build.is_some() { EnvironmentState::Building } else { EnvironmentState::Ready },
            package_set: set.map(|set| set.id),
            error: None,
            log: String::new(),
            log_first: Seq(1),
            created_at: known.map_or(now, |row| row.created_at),
            ended_at: build.is_none().then_some(now),
        };
        // In a task of its own: the client may disconnect.
        let service = self.clone();
        let storing = tokio::spawn(async move {
            service.0.store.put_environment(row.clone(), wanted.request.lock.clone()).await?;
            if let Some(build) = build {
                tokio::spawn(service.build(row, wanted, build));
            }
            Ok(id)
        });
        storing.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    /// Forgets the oldest environment of a principal that failed, if there are too many.
    async fn make_room_for_environment(&self, principal: &PrincipalId) -> Result<(), ServiceError> {
        let known = self.0.store.environments_of(principal).await?;
        if known.len() < MAX_ENVIRONMENTS {
            return Ok(());
        }
        match known.into_iter().find(|(_, state)| *state == EnvironmentState::Failed) {
            Some((id, _)) => Ok(self.0.store.delete_environment(&id).await?),
            None => Err(ServiceError::TooManyEnvironments { limit: MAX_ENVIRONMENTS }),
        }
    }

    /// What an environment was asked for.
    async fn stored_request(&self, row: &EnvironmentRow) -> Result<PackageRequest, StoreError> {
        let request: PackageRequest =
            serde_json::from_str(&row.request).map_err(|error| StoreError::Failed(error.to_string()))?;
        match request.requirements.is_empty() {
            true => Ok(PackageRequest { lock: self.0.store.environment_lock(&row.id).await?, ..request }),
            false => Ok(request),
        }
    }

    fn wanted(&self, principal: &PrincipalId, kernel: &KernelSpec, request: PackageRequest) -> WantedPackages {
        let (kernel, scope) = (kernel.clone(), Some(principal.clone()));
        WantedPackages { kernel, sandbox: self.0.settings.sandbox, scope, request, known_lock: None }
    }

    async fn build(self, row: EnvironmentRow, wanted: WantedPackages, begun: BegunBuild) {
        let (id, writer) = (row.id.clone(), begun.build.clone());
        let log: BuildLog = Arc::new(move |line: &str| writer.write(line));
        let built = {
            let _turn = begun.turn().await;
            self.0.manager.install_packages(&wanted, log).await
        };
        self.0.audit.record(&AuditRecord {
            action: "environment.built".to_owned(),
            principal: Some(row.principal.to_string()),
            target: Some(id.clone()),
            result: if built.is_ok() { "ok" } else { "failed" }.to_owned(),
            ..AuditRecord::default()
        });
        let log = begun.build.log();
        let row = EnvironmentRow { log: log.text(), log_first: Seq(log.first), ended_at: Some(now_ms()), ..row };
        let (row, lock) = match built {
            Ok(set) => (EnvironmentRow { state: EnvironmentState::Ready, package_set: Some(set.id), ..row }, Some(set.lock)),
            Err(error) => {
                tracing::info!(environment = %id, %error, "packages were not installed");
                let error = Some(public_reason(&error, &wanted));
                (EnvironmentRow { state: EnvironmentState::Failed, error, ..row }, None)
            }
        };
        let lock = lock.filter(|lock| lock.len() <= MAX_STORED_LOCK);
        if let Err(error) = self.0.store.put_environment(row, lock).await {
            tracing::error!(environment = %id, %error, "cannot store the end of an installation");
        }
    }

    /// Waits until the installation of an environment has ended, if it runs.
    pub async fn environment_ended(&self, id: &str) {
        if let Some(build) = self.0.builds.get(id) {
            build.ended().await;
        }
    }

    /// What an installation has printed after a line, and then its end. Waits if there is nothing yet.
    pub async fn environment_events(&self, id: &str, access: &Access, after: Seq) -> Result<Vec<BuildEvent>, ServiceError> {
        if let Some(build) = self.0.builds.get(id).filter(|build| access.includes(&build.principal))
            && !build.wrote_after(after).await
        {
            return Ok(lines_after(&build.log(), after));
        }
        let EnvironmentDescription { row, log, .. } = self.environment(id, access).await?;
        let mut events = lines_after(&log, after);
        // Meanwhile it may be installed again.
        if row.state != EnvironmentState::Building {
            events.push(BuildEvent::Ended { seq: Seq(log.last() + 1), state: row.state, error: row.error });
        }
        Ok(events)
    }

    /// One environment.
    pub async fn environment(&self, id: &str, access: &Access) -> Result<EnvironmentDescription, ServiceError> {
        let row = self.0.store.environment(id).await?.filter(|row| access.includes(&row.principal));
        row.map(|row| self.describe_environment(row)).ok_or_else(|| ServiceError::EnvironmentNotFound { id: id.to_owned() })
    }

    /// A page of the environments that the caller may see, oldest first, after the one with this time and id; and whether there are more.
    pub async fn list_environments(
        &self,
        access: &Access,
        after: Option<(i64, String)>,
        limit: usize,
    ) -> Result<(Vec<EnvironmentDescription>, bool), ServiceError> {
        let (rows, has_more) = self.0.store.environments_page(access, after, limit).await?;
        // Each reads a file.
        let described = tokio::task::block_in_place(|| rows.into_iter().map(|row| self.describe_environment(row)).collect());
        Ok((described, has_more))
    }

    fn describe_environment(&self, row: EnvironmentRow) -> EnvironmentDescription {
        let build = self.0.builds.get(&row.id);
        let log = build.map_or_else(|| LogLines::parse(row.log_first.0, &row.log), |build| build.log());
        let set = row.package_set.as_deref().and_then(|id| self.0.manager.package_set(id));
        EnvironmentDescription { row, set, log }
    }

    /// The versions of an environment, also of one whose packages were removed to make room. `None` before the end of the first
    /// installation.
    pub async fn environment_lock(&self, id: &str, access: &Access) -> Result<Option<String>, ServiceError> {
        match self.environment(id, access).await?.set {
            Some(set) => Ok(Some(set.lock)),
            None => Ok(self.0.store.environment_lock(id).await?),
        }
    }

    /// Forgets an environment, and removes its packages unless a sandbox uses them.
    pub async fn delete_environment(&self, id: &str, access: &Access) -> Result<(), ServiceError> {
        let environment = self.environment(id, access).await?;
        if self.0.builds.get(id).is_some() {
            return Err(ServiceError::EnvironmentBusy { id: id.to_owned() });
        }
        if let Some(set) = environment.set
            && !self.0.manager.remove_package_set(&set.id)?
        {
            return Err(ServiceError::EnvironmentInUse { id: id.to_owned() });
        }
        Ok(self.0.store.delete_environment(id).await?)
    }

    /// Installs what a new session asks for, or finds the environment that it names. Its configuration names the environment then.
    pub(super) async fn prepare_environment(
        &self,
        principal: &PrincipalId,
        kernel: &KernelSpec,
        new: &mut NewSession,
    ) -> Result<(), ServiceError> {
        let access = Access::Principal(principal.clone());
        let request = match (new.packages.take(), &new.config.environment) {
            (Some(request), _) => request,
            (None, Some(id)) => {
                let row = self.environment(id, &access).await?.row;
                if row.kernel != kernel.name {
                    return Err(ServiceError::EnvironmentOfOtherKernel { id: row.id, kernel: row.kernel });
                }
                self.stored_request(&row).await?
            }
            (None, None) => return Ok(()),
        };
        // Of an environment that is named, the packages may have been removed to make room.
        let id = self.create_environment(principal, &kernel.name, request).await?;
        self.environment_ended(&id).await;
        let EnvironmentDescription { row, set, .. } = self.environment(&id, &access).await?;
        match (row.error, set) {
            (Some(reason), _) => Err(ServiceError::PackagesFailed { reason }),
            (None, None) => Err(ServiceError::PackagesFailed { reason: PACKAGES_REMOVED.to_owned() }),
            (None, Some(_)) => {
                new.config.environment = Some(id);
                Ok(())
            }
        }
    }

    /// How the sandbox of a new session sees its packages.
    pub(super) async fn mounted_packages(&self, new: &NewSession) -> Result<Option<MountedPackages>, ServiceError> {
        let Some(id) = &new.config.environment else { return Ok(None) };
        let row = self.0.store.environment(id).await?;
        let set = row.and_then(|row| self.0.manager.package_set(&row.package_set?));
        let removed = || ServiceError::PackagesFailed { reason: PACKAGES_REMOVED.to_owned() };
        set.map(|set| Some(self.0.manager.mounted_packages(&set))).ok_or_else(removed)
    }

    /// Continues the installations that an earlier server has left.
    pub(super) async fn recover_environments(&self) -> Result<(), StoreError> {
        self.0.manager.remove_package_leftovers();
        for row in self.0.store.building_environments().await? {
            let is_permitted = self.check_network(&NetworkPolicy::Packages).is_ok();
            let begun = match (kernels::find(&row.kernel), self.stored_request(&row).await) {
                (Ok(kernel), Ok(request)) if is_permitted => {
                    let known_lock = self.0.store.environment_lock(&row.id).await?;
                    let wanted = WantedPackages { known_lock, ..self.wanted(&row.principal, kernel, request) };
                    self.0.builds.begin(&row.id, &row.principal).ok().flatten().map(|build| (wanted, build))
                }
                _ => None,
            };
            match begun {
                Some((wanted, build)) => drop(tokio::spawn(self.clone().build(row, wanted, build))),
                None => {
                    let error = Some("the server was stopped during the installation; ask again".to_owned());
                    let failed = EnvironmentRow { state: EnvironmentState::Failed, error, ended_at: Some(now_ms()), ..row };
                    self.0.store.put_environment(failed, None).await?;
                }
            }
        }
        Ok(())
    }
}

fn lines_after(log: &LogLines, after: Seq) -> Vec<BuildEvent> {
    let lost = (log.first > after.0 + 1).then(|| BuildEvent::Lost { from: Seq(after.0 + 1), seq: Seq(log.first - 1) });
    let lines = log.after(after).map(|(seq, text)| BuildEvent::Line { seq, text: text.to_owned() });
    lost.into_iter().chain(lines).collect()
}

/// A failure for clients, without the paths of the server.
fn public_reason(error: &PackageError, wanted: &WantedPackages) -> String {
    match error {
        PackageError::Io(_) => "the server cannot store packages".to_owned(),
        PackageError::Manager(_) => "no sandbox could be created for the installation".to_owned(),
        PackageError::Failed(_) if wanted.request.lock.is_none() && wanted.known_lock.is_some() => {
            format!(
                "{error}\nThe versions were decided by its first installation. Delete the environment to decide them anew"
            )
        }
        other => other.to_string(),
    }
}

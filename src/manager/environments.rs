//! Environments: package sets as principals ask for them over the API, by themselves or with a session. What is wanted is stored before
//! the installation begins, so a later server continues it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::package_sets::{BuildLog, PackageError, PackageSet, WantedPackages};
use super::service::SessionService;
use super::session_config::{NewSession, ServiceError};
use crate::audit::AuditRecord;
use crate::ids::{Access, PrincipalId};
use crate::kernels::{self, KernelSpec};
use crate::policy::{NetworkPolicy, PackageRequest};
use crate::sandbox::MountedPackages;
use crate::store::{EnvironmentRow, EnvironmentState, StoreError, now_ms};

/// The installations that run at once, and those of one principal that wait or run.
const MAX_BUILDS: usize = 2;
const MAX_BUILDS_OF_PRINCIPAL: usize = 4;
const PACKAGES_REMOVED: &str = "its packages were removed meanwhile; ask again";
/// The environments that a principal may have. Beyond, the oldest that failed goes, or a new one is refused.
const MAX_ENVIRONMENTS: usize = 200;
/// The end of a log that is kept, bytes.
const MAX_LOG: usize = 64 << 10;

/// An environment for its owner.
#[derive(Clone, Debug)]
pub struct EnvironmentDescription {
    pub row: EnvironmentRow,
    /// Its packages, once it is ready.
    pub set: Option<PackageSet>,
}

/// The installations of this server. Clones share them.
#[derive(Clone)]
pub(super) struct Builds(Arc<BuildsInner>);

struct BuildsInner {
    running: Mutex<HashMap<String, Arc<Build>>>,
    places: Semaphore,
}

impl Default for Builds {
    fn default() -> Self {
        Self(Arc::new(BuildsInner { running: Mutex::default(), places: Semaphore::new(MAX_BUILDS) }))
    }
}

/// One installation.
struct Build {
    principal: PrincipalId,
    /// Held while it runs. All installations of a principal share it, so that one runs at a time and leaves a place to others.
    turn: Arc<tokio::sync::Mutex<()>>,
    log: Mutex<String>,
    ended: watch::Sender<bool>,
}

/// Ends an installation for those who wait when it is dropped, however that comes.
struct BegunBuild {
    builds: Builds,
    id: String,
    build: Arc<Build>,
}

impl Drop for BegunBuild {
    fn drop(&mut self) {
        self.builds.running().remove(&self.id);
        self.build.ended.send_replace(true);
    }
}

impl Build {
    fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, line: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(line);
        log.push('\n');
        if log.len() > MAX_LOG {
            let start = log.ceil_char_boundary(log.len() - MAX_LOG / 2);
            log.drain(..start);
        }
    }
}

impl Builds {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Build>>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &str) -> Option<Arc<Build>> {
        self.running().get(id).cloned()
    }

    /// Begins an installation, unless it runs already.
    ///
    /// # Errors
    /// If the principal has too many.
    fn begin(&self, id: &str, principal: &PrincipalId) -> Result<Option<BegunBuild>, ServiceError> {
        let mut running = self.running();
        if running.contains_key(id) {
            return Ok(None);
        }
        let of_principal: Vec<_> = running.values().filter(|build| build.principal == *principal).collect();
        if of_principal.len() >= MAX_BUILDS_OF_PRINCIPAL {
            return Err(ServiceError::TooManyBuilds { limit: MAX_BUILDS_OF_PRINCIPAL });
        }
        let build = Arc::new(Build {
            principal: principal.clone(),
            turn: of_principal.first().map(|build| build.turn.clone()).unwrap_or_default(),
            log: Mutex::default(),
            ended: watch::Sender::new(false),
        });
        running.insert(id.to_owned(), build.clone());
        Ok(Some(BegunBuild { builds: self.clone(), id: id.to_owned(), build }))
    }
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
            request: serde_json::to_string(&wanted.request).unwrap_or_default(),
            state: if build.is_some() { EnvironmentState::Building } else { EnvironmentState::Ready },
            package_set: set.map(|set| set.id),
            error: None,
            log: String::new(),
            created_at: now,
            ended_at: build.is_none().then_some(now),
        };
        // In a task of its own: the client may disconnect.
        let service = self.clone();
        let storing = tokio::spawn(async move {
            service.0.store.put_environment(row.clone()).await?;
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

    fn wanted(&self, principal: &PrincipalId, kernel: &KernelSpec, request: PackageRequest) -> WantedPackages {
        let (kernel, scope) = (kernel.clone(), Some(principal.clone()));
        WantedPackages { kernel, sandbox: self.0.settings.sandbox, scope, request }
    }

    async fn build(self, row: EnvironmentRow, wanted: WantedPackages, begun: BegunBuild) {
        let (id, writer) = (row.id.clone(), begun.build.clone());
        let log: BuildLog = Arc::new(move |line: &str| writer.write(line));
        let _turn = begun.build.turn.lock().await;
        let built = match begun.builds.0.places.acquire().await {
            Ok(_place) => self.0.manager.install_packages(&wanted, log).await,
            Err(_) => return,
        };
        self.0.audit.record(&AuditRecord {
            action: "environment.built".to_owned(),
            principal: Some(row.principal.to_string()),
            target: Some(id.clone()),
            result: if built.is_ok() { "ok" } else { "failed" }.to_owned(),
            ..AuditRecord::default()
        });
        let row = EnvironmentRow { log: begun.build.log(), ended_at: Some(now_ms()), ..row };
        let row = match built {
            Ok(set) => EnvironmentRow { state: EnvironmentState::Ready, package_set: Some(set.id), ..row },
            Err(error) => {
                tracing::info!(environment = %id, %error, "packages were not installed");
                EnvironmentRow { state: EnvironmentState::Failed, error: Some(public_reason(&error)), ..row }
            }
        };
        if let Err(error) = self.0.store.put_environment(row).await {
            tracing::error!(environment = %id, %error, "cannot store the end of an installation");
        }
    }

    /// Waits until the installation of an environment has ended, if it runs.
    pub async fn environment_ended(&self, id: &str) {
        if let Some(build) = self.0.builds.get(id) {
            let _ = build.ended.subscribe().wait_for(|ended| *ended).await;
        }
    }

    /// One environment.
    pub async fn environment(&self, id: &str, access: &Access) -> Result<EnvironmentDescription, ServiceError> {
        let row = self.0.store.environment(id).await?.filter(|row| access.includes(&row.principal));
        row.map(|row| self.describe_environment(row)).ok_or_else(|| ServiceError::EnvironmentNotFound { id: id.to_owned() })
    }

    /// The environments that the caller may see, oldest first.
    pub async fn list_environments(&self, access: &Access) -> Result<Vec<EnvironmentDescription>, ServiceError> {
        let rows = self.0.store.environments(access).await?;
        // Each reads a file.
        Ok(tokio::task::block_in_place(|| rows.into_iter().map(|row| self.describe_environment(row)).collect()))
    }

    fn describe_environment(&self, row: EnvironmentRow) -> EnvironmentDescription {
        let log = self.0.builds.get(&row.id).map_or(row.log, |build| build.log());
        let set = row.package_set.as_deref().and_then(|id| self.0.manager.package_set(id));
        EnvironmentDescription { row: EnvironmentRow { log, ..row }, set }
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
                serde_json::from_str(&row.request).map_err(|error| StoreError::Failed(error.to_string()))?
            }
            (None, None) => return Ok(()),
        };
        // Of an environment that is named, the packages may have been removed to make room.
        let id = self.create_environment(principal, &kernel.name, request).await?;
        self.environment_ended(&id).await;
        let EnvironmentDescription { row, set } = self.environment(&id, &access).await?;
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
        for row in self.0.store.environments(&Access::All).await? {
            if row.state != EnvironmentState::Building {
                continue;
            }
            let is_permitted = self.check_network(&NetworkPolicy::Packages).is_ok();
            let begun = match (kernels::find(&row.kernel), serde_json::from_str(&row.request)) {
                (Ok(kernel), Ok(request)) if is_permitted => {
                    let wanted = self.wanted(&row.principal, kernel, request);
                    self.0.builds.begin(&row.id, &row.principal).ok().flatten().map(|build| (wanted, build))
                }
                _ => None,
            };
            match begun {
                Some((wanted, build)) => drop(tokio::spawn(self.clone().build(row, wanted, build))),
                None => {
                    let error = Some("the server was stopped during the installation; ask again".to_owned());
                    let failed = EnvironmentRow { state: EnvironmentState::Failed, error, ended_at: Some(now_ms()), ..row };
                    self.0.store.put_environment(failed).await?;
                }
            }
        }
        Ok(())
    }
}

/// A failure for clients, without the paths of the server.
fn public_reason(error: &PackageError) -> String {
    match error {
        PackageError::Io(_) => "the server cannot store packages".to_owned(),
        PackageError::Manager(_) => "no sandbox could be created for the installation".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_keeps_its_end() {
        let builds = Builds::default();
        let begun = builds.begin("a", &"me".into()).unwrap().unwrap();
        let build = begun.build.clone();
        for number in 0..20_000 {
            build.write(&format!("línea {number}"));
        }
        assert!(build.log().len() <= MAX_LOG && build.log().ends_with("línea 19999\n"));
    }

    #[test]
    fn builds_of_one_principal_are_bounded() {
        let builds = Builds::default();
        let begin = |number: usize| builds.begin(&number.to_string(), &"me".into()).unwrap().unwrap();
        let mut begun: Vec<_> = (0..MAX_BUILDS_OF_PRINCIPAL).map(begin).collect();
        assert!(Arc::ptr_eq(&begun[0].build.turn, &begun[1].build.turn), "one runs at a time");
        assert!(builds.begin("0", &"me".into()).unwrap().is_none(), "it runs");
        assert!(builds.begin("x", &"me".into()).is_err() && builds.begin("x", &"you".into()).is_ok());
        begun.pop();
        assert!(builds.begin("y", &"me".into()).unwrap().is_some());
    }
}

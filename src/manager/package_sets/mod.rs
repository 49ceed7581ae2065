//! Package sets: packages for sandboxes besides those of their kernel, resolved and installed once, and mounted read-only.
//!
//! ```text
//! request ─▶ key ─▶ known? ─yes──────────────────────────────────────▶ set
//!                     └─no─▶ installer sandbox ─▶ lock ─▶ rules ─▶ files ┘
//! ```
//!
//! The installer sandbox has the network `packages` and no data of a user, because what it runs is as hostile as any code. It runs the
//! program that the kernel names (`metadata.cellkeep.install_packages`); see `kernel-images/python/install_packages.py` for what such a
//! program does. A set belongs to a scope, a principal, so that no tenant uses files that another one had made, or sees by the time
//! that an installation takes what others have.

mod build;
mod disk;
mod unpack;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use super::{Manager, ManagerError, ProcessError, SandboxChoice, SandboxKind, digest_id};
use crate::config::Paths;
use crate::ids::PrincipalId;
use crate::kernels::KernelSpec;
use crate::machine;
use crate::policy::{Ceilings, LimitOutOfRange, Limits, PackageRequest, PackageRequestError};
use crate::sandbox::{MountedPackages, SandboxError, package_sets_in_use};
use crate::session::SessionError;

/// What a key depends on besides the request; another number makes all sets anew.
const FORMAT: u32 = 2;
/// A set that was used within this time is not removed: the sandbox that wants it may not have its record yet.
const GRACE: Duration = Duration::from_secs(600);
/// How often a command looks whether the same installation of another has ended.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// A package of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Whether it is in the set. If not, the kernel's environment has this version.
    pub installed: bool,
    /// The version of the environment, which the set hides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// A set that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageSet {
    pub id: String,
    /// The name of the kernel.
    pub kernel: String,
    /// The kind of sandbox that it was installed in.
    pub sandbox: SandboxKind,
    /// Its owner. `None`: the operator.
    pub scope: Option<PrincipalId>,
    /// All packages and their versions, as the package manager of the language reads them.
    pub lock: String,
    pub packages: Vec<Package>,
    /// The size of its files.
    pub bytes: u64,
    /// Milliseconds since 1970.
    pub created_at: i64,
}

/// What packages are wanted, and for whom.
#[derive(Clone, Debug)]
pub struct WantedPackages {
    pub kernel: KernelSpec,
    /// The kind of sandbox that will use them: the machine's interpreter can differ from that of an image.
    pub sandbox: SandboxChoice,
    pub scope: Option<PrincipalId>,
    pub request: PackageRequest,
    /// The lock of an earlier installation of this request, which decides the versions again.
    pub known_lock: Option<String>,
}

/// Why packages were not installed.
#[derive(Debug, Error)]
pub enum PackageError {
    #[error(transparent)]
    Request(#[from] PackageRequestError),
    #[error(
        "packages cannot be installed for the {kernel} kernel, which names no installer; those that can: {known}. For others, build an \
         image (cellkeep images build --from)"
    )]
    NoInstaller { kernel: String, known: String },
    /// The package manager failed.
    #[error("the packages cannot be installed:\n{0}")]
    Failed(String),
    #[error("this server does not permit the package {0:?}")]
    Denied(String),
    #[error("the packages are larger than {0} MB, the limit of a set (--packages-max-mb)")]
    TooLarge(u64),
    #[error("the installation took longer than {0} s (--packages-build-timeout)")]
    TooSlow(u64),
    #[error("the packages that are in use or were used a moment ago leave no room within {0} MB (--packages-max-total-mb)")]
    Full(u64),
    #[error("the packages were made by a program that does not keep to the rules: {0}")]
    BadInstaller(String),
    #[error("cannot store packages: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Manager(Box<ManagerError>),
}

impl From<ManagerError> for PackageError {
    fn from(error: ManagerError) -> Self {
        Self::Manager(Box::new(error))
    }
}

impl From<LimitOutOfRange> for PackageError {
    fn from(error: LimitOutOfRange) -> Self {
        ManagerError::Limits(error).into()
    }
}

impl From<SandboxError> for PackageError {
    fn from(error: SandboxError) -> Self {
        ManagerError::from(error).into()
    }
}

impl From<SessionError> for PackageError {
    fn from(error: SessionError) -> Self {
        Self::BadInstaller(error.to_string())
    }
}

impl From<ProcessError> for PackageError {
    fn from(error: ProcessError) -> Self {
        Self::BadInstaller(error.to_string())
    }
}

/// Receives each line that an installer prints.
pub type BuildLog = Arc<dyn Fn(&str) + Send + Sync>;

impl WantedPackages {
    /// Checks that the kernel can have packages.
    ///
    /// # Errors
    /// [`PackageError::NoInstaller`].
    pub fn check(&self) -> Result<(), PackageError> {
        if !self.kernel.install_packages.is_empty() {
            return Ok(());
        }
        let can = |kernel: &&KernelSpec| !kernel.install_packages.is_empty();
        let known: Vec<&str> = crate::kernels::all().iter().filter(can).map(|kernel| kernel.name.as_str()).collect();
        Err(PackageError::NoInstaller { kernel: self.kernel.name.clone(), known: known.join(", ") })
    }

    /// Identifies the request: the same packages for the same kernel, sandbox, scope and indexes have the same key.
    pub fn key(&self, indexes: &[(String, String)]) -> String {
        let scope = self.scope.as_ref().map(PrincipalId::as_str);
        let parts =
            (FORMAT, &self.kernel.name, self.kernel.fingerprint(), self.sandbox.name(), scope, &self.request, indexes);
        digest_id(serde_json::to_string(&parts).unwrap_or_default().as_bytes())
    }
}

/// A set by its id.
pub(super) fn read(paths: &Paths, id: &str) -> Option<PackageSet> {
    disk::read(&paths.package_sets(), id)
}

impl PackageSet {
    #[cfg(test)]
    fn test() -> Self {
        Self {
            id: "a".repeat(32),
            kernel: "python".to_owned(),
            sandbox: SandboxKind::Process,
            scope: None,
            lock: "a==1".to_owned(),
            packages: Vec::new(),
            bytes: 7,
            created_at: 0,
        }
    }

    /// Identifies its packages: the same in all scopes and on all machines.
    pub fn lock_hash(&self) -> String {
        digest_id(self.lock.as_bytes())
    }
}

/// The sets of a machine, with the time of their last use.
struct StoredSets(Vec<(PackageSet, SystemTime)>);

impl StoredSets {
    fn bytes(&self) -> u64 {
        self.0.iter().map(|(set, _)| set.bytes).sum()
    }

    fn take(&mut self, id: &str) -> Option<PackageSet> {
        let at = self.0.iter().position(|(set, _)| set.id == id)?;
        Some(self.0.swap_remove(at).0)
    }

    /// The set to remove next: of the owner that has most, among those with a set that can go, the one that was not used for longest. So
    /// who installs much loses their own sets first.
    fn next_removal(&self, in_use: &HashSet<String>, now: SystemTime) -> Option<String> {
        let can_go = |(set, used): &&(PackageSet, SystemTime)| {
            !in_use.contains(&set.id) && now.duration_since(*used).is_ok_and(|age| age >= GRACE)
        };
        let mut bytes: HashMap<&Option<PrincipalId>, u64> = HashMap::new();
        for (set, _) in &self.0 {
            *bytes.entry(&set.scope).or_default() += set.bytes;
        }
        let next = self.0.iter().filter(can_go).min_by_key(|(set, used)| (Reverse(bytes[&set.scope]), *used));
        next.map(|(set, _)| set.id.clone())
    }
}

impl Manager {
    /// The key of a request; see [`WantedPackages::key`].
    pub fn package_key(&self, wanted: &WantedPackages) -> String {
        wanted.key(&self.gateway().settings().indexes.variables())
    }

    /// The set of a request, if it is installed. Counts as a use.
    pub fn find_package_set(&self, key: &str) -> Option<PackageSet> {
        disk::find(&self.paths.package_sets(), key)
    }

    /// A set by its id.
    pub fn package_set(&self, id: &str) -> Option<PackageSet> {
        read(&self.paths, id)
    }

    /// All sets of this machine, with the time of their last use.
    pub fn package_sets(&self) -> Vec<(PackageSet, SystemTime)> {
        disk::list(&self.paths.package_sets())
    }

    /// How a sandbox sees a set.
    pub fn mounted_packages(&self, set: &PackageSet) -> MountedPackages {
        MountedPackages { id: set.id.clone(), folder: self.set_files(&set.id), kind: set.sandbox }
    }

    fn set_files(&self, id: &str) -> PathBuf {
        disk::files(&self.paths.package_sets(), id)
    }

    /// The set of a request, which is installed now if it is not there.
    ///
    /// # Errors
    /// [`PackageError`]; nothing is left behind.
    pub async fn install_packages(&self, wanted: &WantedPackages, log: BuildLog) -> Result<PackageSet, PackageError> {
        wanted.check()?;
        let key = self.package_key(wanted);
        if let Some(set) = self.find_package_set(&key) {
            return Ok(set);
        }
        let Some(_lock) = self.lock_request(&key, &log).await? else {
            return self.find_package_set(&key).ok_or(PackageError::TooSlow(self.package_rules().build_seconds));
        };
        if let Some(set) = self.find_package_set(&key) {
            return Ok(set);
        }
        tokio::task::block_in_place(|| self.make_room_for_packages())?;
        build::build(self, wanted, &key, &log).await
    }

    /// Holds a request, so that nobody else installs the same packages: several commands may run at once. `None` if another holds it for
    /// longer than an installation may take.
    async fn lock_request(&self, key: &str, log: &BuildLog) -> Result<Option<fs::File>, PackageError> {
        let file = disk::request_lock(&self.paths.package_sets(), key)?;
        let end = Instant::now() + Duration::from_secs(self.package_rules().build_seconds);
        let mut is_first = true;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(fs::TryLockError::Error(error)) => return Err(error.into()),
                Err(fs::TryLockError::WouldBlock) if Instant::now() > end => return Ok(None),
                Err(fs::TryLockError::WouldBlock) => {}
            }
            if std::mem::take(&mut is_first) {
                log("waiting for the same installation of another command");
            }
            // A thread that blocks in flock could not be cancelled.
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
    }

    /// Makes room for the largest set.
    fn make_room_for_packages(&self) -> Result<(), PackageError> {
        self.remove_package_leftovers();
        let rules = self.package_rules();
        let keep_mb = rules.max_total_mb.saturating_sub(rules.max_mb);
        let (_, left) = self.shrink_package_sets(keep_mb)?;
        match left > keep_mb << 20 {
            true => Err(PackageError::Full(rules.max_total_mb)),
            false => Ok(()),
        }
    }

    /// Removes the sets that no sandbox sees and that were not used a moment ago.
    pub fn remove_unused_package_sets(&self) -> Result<Vec<PackageSet>, PackageError> {
        Ok(self.shrink_package_sets(0)?.0)
    }

    /// Removes sets that no sandbox sees until the rest has at most this size. Returns the removed ones, and the bytes of the rest.
    fn shrink_package_sets(&self, keep_mb: u64) -> Result<(Vec<PackageSet>, u64), PackageError> {
        let (mut kept, mut removed) = (StoredSets(self.package_sets()), Vec::new());
        if kept.bytes() <= keep_mb << 20 {
            return Ok((removed, kept.bytes()));
        }
        let mut in_use: HashSet<String> = package_sets_in_use(&self.paths)?.into_iter().collect();
        while kept.bytes() > keep_mb << 20
            && let Some(id) = kept.next_removal(&in_use, SystemTime::now())
        {
            match self.remove_package_set(&id)? {
                true => removed.extend(kept.take(&id)),
                false => drop(in_use.insert(id)),
            }
        }
        Ok((removed, kept.bytes()))
    }

    /// Removes one set. `false` if a sandbox sees it.
    pub fn remove_package_set(&self, id: &str) -> Result<bool, PackageError> {
        let root = self.paths.package_sets();
        let Some(hidden) = disk::hide(&root, id)? else { return Ok(true) };
        // A sandbox that was being created has its record now, or will not find the set.
        if package_sets_in_use(&self.paths)?.iter().any(|used| used == id) {
            hidden.show_again()?;
            return Ok(false);
        }
        hidden.remove()?;
        Ok(true)
    }

    /// Removes what installations left behind that were killed.
    pub(super) fn remove_package_leftovers(&self) {
        disk::remove_leftovers(&self.paths.package_sets(), GRACE + Duration::from_secs(self.package_rules().build_seconds));
    }

    /// The limits of an installer sandbox: its workspace holds the packages twice while they are unpacked, and counts as memory.
    fn installer_limits(&self) -> Limits {
        let max_mb = self.package_rules().max_mb;
        Limits { memory_mb: 2 * max_mb + 1024, disk_mb: 2 * max_mb, cpus: 2.0, pids: 512, output_mb: 100 }
            .at_most(&Ceilings::of_machine(machine::detect()).limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    #[test]
    fn key_depends_on_everything_that_decides_packages() {
        let wanted = |name: &str, scope: Option<&str>, package: &str| WantedPackages {
            kernel: kernels::find(name).unwrap().clone(),
            sandbox: SandboxChoice::Auto,
            scope: scope.map(PrincipalId::from),
            request: PackageRequest::new(&[package.to_owned()], None).unwrap(),
            known_lock: None,
        };
        let key = |wanted: &WantedPackages| wanted.key(&[]);
        let one = wanted("python", Some("a"), "polars");
        assert_eq!(key(&one), key(&wanted("python", Some("a"), " polars")));
        assert_eq!(key(&one).len(), 32);
        for other in [
            wanted("python-minimal", Some("a"), "polars"),
            wanted("python", Some("b"), "polars"),
            wanted("python", None, "polars"),
            wanted("python", Some("a"), "polars==1"),
        ] {
            assert_ne!(key(&one), key(&other));
        }
        assert_ne!(key(&one), one.key(&[("PIP_INDEX_URL".to_owned(), "https://a/simple".to_owned())]));
    }

    #[test]
    fn kernel_without_installer_is_refused() {
        let wanted = WantedPackages {
            kernel: kernels::find("bash").unwrap().clone(),
            sandbox: SandboxChoice::Auto,
            scope: None,
            request: PackageRequest::default(),
            known_lock: None,
        };
        assert!(wanted.check().unwrap_err().to_string().contains("python"));
    }

    #[test]
    fn owner_with_most_packages_loses_its_oldest_set() {
        let now = SystemTime::now();
        let set = |id: &str, owner: &str, bytes, minutes: u64| {
            let set = PackageSet { id: id.to_owned(), scope: Some(owner.into()), bytes, ..PackageSet::test() };
            (set, now - Duration::from_secs(60 * minutes))
        };
        let mut sets = StoredSets(vec![
            set("small", "small", 10, 1000),
            set("new", "large", 30, 1),
            set("used", "large", 30, 90),
            set("older", "large", 30, 60),
            set("newer", "large", 30, 30),
        ]);
        let in_use = HashSet::from(["used".to_owned()]);
        let mut removed = Vec::new();
        while let Some(id) = sets.next_removal(&in_use, now) {
            sets.take(&id).unwrap();
            removed.push(id);
        }
        assert_eq!((removed, sets.bytes()), (vec!["older".into(), "newer".into(), "small".to_owned()], 60));
    }
}

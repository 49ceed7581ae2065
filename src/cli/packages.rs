//! Packages on the command line: the options of `run` and `exec`, those of `serve` about what clients may install, and `cellkeep
//! packages`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Exit, Failure, egress, secrets};
use crate::config::{ConfigFile, PackagesConfig, Paths};
use crate::egress::Gateway;
use crate::kernels::KernelSpec;
use crate::manager::{BuildLog, Manager, PackageError, PackageSet, SandboxChoice, WantedPackages};
use crate::policy::{MAX_LOCK, PackageRequest, PackageRules};

/// The packages of a session.
#[derive(Args)]
#[command(next_help_heading = "Packages")]
pub(super) struct PackageArgs {
    /// Install a package first, as the package manager of the language names it: 'polars>=1', npm:chalk@5. Give it several times for
    /// several. The next start with the same packages needs no installation
    #[arg(long = "packages", value_name = "PACKAGE", visible_alias = "package")]
    packages: Vec<String>,
    /// Install the packages of this requirements.txt first
    #[arg(long, value_name = "FILE")]
    requirements: Option<PathBuf>,
    /// Install exactly the packages of a lock, as `cellkeep packages lock` prints it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["packages", "requirements"])]
    lock: Option<PathBuf>,
}

impl PackageArgs {
    /// The packages, and the texts of the requirements and the lock, for a server that installs them.
    pub fn texts(&self) -> anyhow::Result<(&[String], Option<String>, Option<String>)> {
        let text = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let requirements = text(&self.requirements).context("--requirements")?;
        Ok((&self.packages, requirements, text(&self.lock).context("--lock")?))
    }

    /// The request of these options and of what a notebook says that it needs. `None` if both are empty.
    pub fn request(&self, of_notebook: &[String]) -> anyhow::Result<Option<PackageRequest>> {
        if let Some(path) = &self.lock {
            let request = read(path).and_then(|lock| Ok(PackageRequest::of_lock(&lock)?));
            return request.map(Some).with_context(|| format!("--lock {}", path.display()));
        }
        let requirements = self.requirements.as_deref().map(read).transpose()?;
        let named: Vec<String> = self.packages.iter().chain(of_notebook).cloned().collect();
        if named.is_empty() && requirements.is_none() {
            return Ok(None);
        }
        Ok(Some(PackageRequest::new(&named, requirements.as_deref()).context("packages")?))
    }
}

/// Reads a list of packages.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::new();
    let read = file.take(MAX_LOCK as u64 + 1).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// A manager with the settings of the configuration file: package indexes, addresses and rules of packages.
pub(super) fn manager(paths: &Paths) -> anyhow::Result<Manager> {
    let ConfigFile { serve, secrets, .. } = ConfigFile::read(None, paths)?;
    // Only those of indexes are read: the files of the others may be for the server alone.
    let is_of_index = |name: &String| serve.egress.index_secrets.as_ref().is_some_and(|names| names.contains(name));
    let secrets = secrets::open(secrets.into_iter().filter(|(name, _)| is_of_index(name)).collect())?;
    let gateway = Gateway::new(egress::settings(serve.egress, &secrets)?, None);
    Ok(Manager::with_gateway(paths.clone(), gateway).with_package_rules(rules(serve.packages)))
}

/// Installs packages for a session of this machine's user.
pub(super) async fn install(
    manager: &Manager,
    kernel: &KernelSpec,
    sandbox: SandboxChoice,
    request: PackageRequest,
) -> Result<PackageSet, Failure> {
    let wanted = WantedPackages { kernel: kernel.clone(), sandbox, scope: None, request, known_lock: None };
    wanted.check().map_err(Failure::usage)?;
    let log: BuildLog = Arc::new(|line: &str| eprint_line!("  {line}"));
    if manager.find_package_set(&manager.package_key(&wanted)).is_none() {
        eprint_line!("installing packages for {}", kernel.display_name);
    }
    manager.install_packages(&wanted, log).await.map_err(|error| match error {
        PackageError::Manager(error) => Failure::no_sandbox(*error),
        // What the installer said is printed already.
        PackageError::Failed(_) => Failure::usage(anyhow!("the packages cannot be installed; see above")),
        error => Failure::usage(error),
    })
}

/// What clients of a server may install.
#[derive(Args)]
#[command(next_help_heading = "Packages")]
pub(super) struct PackageRuleArgs {
    /// A package that may be installed, also with * at the end; without this option, all may be
    #[arg(long = "packages-allow", value_name = "NAME", env = "CELLKEEP_PACKAGES_ALLOW", value_delimiter = ',')]
    allow: Option<Vec<String>>,
    /// A package that may not be installed, also with * at the end
    #[arg(long = "packages-deny", value_name = "NAME", env = "CELLKEEP_PACKAGES_DENY", value_delimiter = ',')]
    deny: Option<Vec<String>>,
    /// The largest set of packages, MB [default: 2048]
    #[arg(long = "packages-max-mb", value_name = "MB", env = "CELLKEEP_PACKAGES_MAX_MB")]
    max_mb: Option<u64>,
    /// The most of all sets, MB; beyond, unused ones are removed [default: 20480]
    #[arg(long = "packages-max-total-mb", value_name = "MB", env = "CELLKEEP_PACKAGES_MAX_TOTAL_MB")]
    max_total_mb: Option<u64>,
    /// How long the installation of a set may take, seconds [default: 600]
    #[arg(long = "packages-build-timeout", value_name = "SECS", env = "CELLKEEP_PACKAGES_BUILD_TIMEOUT")]
    build_timeout: Option<u64>,
}

impl PackageRuleArgs {
    /// Merges with the configuration file and the defaults.
    pub fn merged_over(&self, file: PackagesConfig) -> PackagesConfig {
        let rules = rules(file.clone());
        PackagesConfig {
            allow: self.allow.clone().or(file.allow).or(Some(Vec::new())),
            deny: self.deny.clone().or(file.deny).or(Some(Vec::new())),
            max_mb: self.max_mb.or(Some(rules.max_mb)),
            max_total_mb: self.max_total_mb.or(Some(rules.max_total_mb)),
            build_timeout: self.build_timeout.or(Some(rules.build_seconds)),
        }
    }
}

pub(super) fn rules(config: PackagesConfig) -> PackageRules {
    let defaults = PackageRules::default();
    PackageRules {
        allowed: config.allow.unwrap_or_default(),
        denied: config.deny.unwrap_or_default(),
        max_mb: config.max_mb.unwrap_or(defaults.max_mb).max(1),
        max_total_mb: config.max_total_mb.unwrap_or(defaults.max_total_mb),
        build_seconds: config.build_timeout.unwrap_or(defaults.build_seconds).max(1),
    }
}

/// List, export and remove the package sets of this machine.
#[derive(Subcommand)]
pub(super) enum PackagesCommand {
    /// List the sets that were installed
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the lock of a set, which `--lock` and the API install again
    Lock {
        /// The id of the set, or its beginning
        id: String,
    },
    /// Remove sets that no sandbox uses
    Remove {
        /// The ids of the sets, or their beginnings
        #[arg(required_unless_present = "unused")]
        ids: Vec<String>,
        /// Remove all sets that were not used in the last ten minutes
        #[arg(long, conflicts_with = "ids")]
        unused: bool,
    },
}

pub(super) fn run(paths: &Paths, command: PackagesCommand) -> Result<Exit, Failure> {
    let manager = manager(paths).map_err(Failure::usage)?;
    match command {
        PackagesCommand::List { json } => list(&manager, json),
        PackagesCommand::Lock { id } => print_line!("{}", find(&manager, &id)?.lock.trim_end()),
        PackagesCommand::Remove { unused: true, .. } => {
            let removed = manager.remove_unused_package_sets().map_err(Failure::usage)?;
            removed.iter().for_each(|set| print_line!("removed {}", describe(set)));
        }
        PackagesCommand::Remove { ids, .. } => {
            for id in ids {
                let set = find(&manager, &id)?;
                if !manager.remove_package_set(&set.id).map_err(Failure::usage)? {
                    return Err(Failure::usage(anyhow!("a sandbox uses {}; end it first", set.id)));
                }
                print_line!("removed {}", describe(&set));
            }
        }
    }
    Ok(Exit::Ok)
}

fn find(manager: &Manager, id: &str) -> Result<PackageSet, Failure> {
    let mut found: Vec<_> =
        manager.package_sets().into_iter().map(|(set, _)| set).filter(|set| set.id.starts_with(id)).collect();
    match (found.pop(), found.is_empty()) {
        (Some(set), true) => Ok(set),
        (Some(_), false) => Err(Failure::usage(anyhow!("several sets begin with {id:?}"))),
        (None, _) => Err(Failure::usage(anyhow!("there is no set {id:?} (see `cellkeep packages list`)"))),
    }
}

fn list(manager: &Manager, as_json: bool) {
    let mut sets = manager.package_sets();
    sets.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    if as_json {
        let all: Vec<_> = sets
            .iter()
            .map(|(set, _)| {
                json!({"id": set.id, "kernel": set.kernel, "principal": set.scope, "bytes": set.bytes, "packages": set.packages})
            })
            .collect();
        return print_line!("{}", json!({"packages": all}));
    }
    if sets.is_empty() {
        print_line!("no packages were installed; `cellkeep run --packages NAME` installs some");
    }
    sets.iter().for_each(|(set, _)| print_line!("{}", describe(set)));
}

fn describe(set: &PackageSet) -> String {
    let installed = set.packages.iter().filter(|package| package.installed);
    let mut names: Vec<String> = installed.map(|package| format!("{} {}", package.name, package.version)).collect();
    let more = names.len().saturating_sub(8);
    names.truncate(8);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    let owner = set.scope.as_ref().map(|scope| format!(" of {scope}")).unwrap_or_default();
    format!("{}  {}{owner}  {} MB  {}", &set.id[..12], set.kernel, set.bytes >> 20, names.join(", "))
}

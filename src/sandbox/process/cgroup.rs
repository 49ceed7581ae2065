//! The session's cgroup, which limits memory, CPU and processes, if this user can create one.
//!
//! Uses version 2 if it has the controllers, else version 1; hybrid machines have the controllers in version 1.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::ids::SandboxId;
use crate::policy::Limits;
use crate::sandbox::SandboxStats;
use crate::sandbox::records::is_older;

const ROOT: &str = "/sys/fs/cgroup";
/// The parent of all our groups, so that one listing shows them all.
const PARENT: &str = "cellkeep";
/// The period of CPU quotas, microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The limits that cgroups can enforce here, for this user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controllers {
    /// 2, 1, or 0 for none.
    pub version: u8,
    pub memory: bool,
    pub cpu: bool,
    pub pids: bool,
    /// CPU accounting, a controller of its own in version 1.
    pub cpuacct: bool,
    /// Why a controller is missing.
    pub why_not: Option<String>,
}

/// Detects the usable controllers by creating our parent group.
pub fn controllers() -> Controllers {
    if Path::new(ROOT).join("cgroup.controllers").exists() { version2() } else { version1() }
}

/// Creates a group whose figures the agent can read, which has another uid. The umask of the server forbids that.
fn create_group(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn version2() -> Controllers {
    let parent = Path::new(ROOT).join(PARENT);
    if let Err(error) = create_group(&parent) {
        return Controllers {
            version: 2,
            why_not: Some(format!("cannot create {}: {error}", parent.display())),
            ..Controllers::default()
        };
    }
    for folder in [Path::new(ROOT), &parent] {
        for controller in ["memory", "cpu", "pids"] {
            let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    let delegated = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |name: &str| delegated.split_whitespace().any(|controller| controller == name);
    let (memory, cpu, pids) = (has("memory"), has("cpu"), has("pids"));
    let why_not = (!(memory && cpu && pids)).then(|| "the controller is not delegated to this user".to_owned());
    Controllers { version: 2, memory, cpu, pids, cpuacct: cpu, why_not }
}

fn version1() -> Controllers {
    let mut why_not = None;
    let mut usable = |name: &str| {
        let hierarchy = Path::new(ROOT).join(name);
        if !hierarchy.is_dir() {
            why_not = Some("no cgroup hierarchies are mounted".to_owned());
            return false;
        }
        let created = create_group(&hierarchy.join(PARENT));
        // The parent may exist and belong to root. The name is random, since other processes may probe at the same time.
        let trial = hierarchy.join(PARENT).join(format!(".probe-{}", crate::ids::random_uuid()));
        let writable = created.and_then(|()| fs::create_dir(&trial));
        let _ = fs::remove_dir(&trial);
        writable.map_err(|error| why_not = Some(format!("cannot create cgroups: {error}"))).is_ok()
    };
    let (memory, cpu, pids, cpuacct) = (usable("memory"), usable("cpu"), usable("pids"), usable("cpuacct"));
    let version = u8::from(memory || cpu || pids);
    Controllers { version, memory, cpu, pids, cpuacct, why_not }
}

/// Removes empty groups that are at least `min_age` old: the records of their sandboxes are lost. The system refuses to
/// remove a group with processes.
pub fn remove_empty(min_age: Duration) {
    for hierarchy in ["", "memory", "cpu", "pids", "cpuacct"] {
        let groups = fs::read_dir(Path::new(ROOT).join(hierarchy).join(PARENT)).into_iter().flatten().flatten();
        for group in groups.map(|entry| entry.path()).filter(|path| path.is_dir() && is_older(path, min_age)) {
            let _ = fs::remove_dir(group);
        }
    }
}

/// The groups of a session: one in version 2, one per hierarchy in version 1.
pub(super) struct Cgroup {
    controllers: Controllers,
    folders: Vec<(&'static str, PathBuf)>,
}

fn folders(controllers: &Controllers, sandbox: &SandboxId) -> Vec<(&'static str, PathBuf)> {
    let group = |hierarchy: &str| Path::new(ROOT).join(hierarchy).join(PARENT).join(sandbox.as_str());
    match controllers.version {
        2 if controllers.memory || controllers.cpu || controllers.pids => vec![("", group(""))],
        1 => [
            ("memory", controllers.memory),
            ("cpu", controllers.cpu),
            ("pids", controllers.pids),
            ("cpuacct", controllers.cpuacct),
        ]
        .into_iter()
        .filter(|(_, usable)| *usable)
        .map(|(hierarchy, _)| (hierarchy, group(hierarchy)))
        .collect(),
        _ => Vec::new(),
    }
}

impl Cgroup {
    /// Creates the groups and sets their limits.
    pub fn create(controllers: &Controllers, sandbox: &SandboxId, limits: &Limits) -> io::Result<Self> {
        let cgroup = Self { controllers: controllers.clone(), folders: folders(controllers, sandbox) };
        for (_, folder) in &cgroup.folders {
            folder.parent().map_or(Ok(()), create_group)?;
            create_group(folder)?;
        }
        let quota = (limits.cpus * CPU_PERIOD as f64) as u64;
        let memory = limits.memory_bytes().to_string();
        if controllers.version == 2 && !cgroup.folders.is_empty() {
            if controllers.memory {
                cgroup.set("", "memory.max", &memory)?;
                // Missing without swap accounting. Then swap cannot be limited, or there is none.
                let _ = cgroup.set("", "memory.swap.max", "0");
            }
            if controllers.cpu {
                cgroup.set("", "cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
            }
            if controllers.pids {
                cgroup.set("", "pids.max", &limits.pids.to_string())?;
            }
        }
        if controllers.version == 1 {
            if controllers.memory {
                cgroup.set("memory", "memory.limit_in_bytes", &memory)?;
                let _ = cgroup.set("memory", "memory.memsw.limit_in_bytes", &memory);
                // Memory of TCP and UDP sockets, which version 1 counts apart, and only with this limit. Missing where the
                // system has no such accounting.
                let _ = cgroup.set("memory", "memory.kmem.tcp.limit_in_bytes", &limits.socket_bytes().to_string());
            }
            if controllers.cpu {
                cgroup.set("cpu", "cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
                cgroup.set("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
            }
            if controllers.pids {
                cgroup.set("pids", "pids.max", &limits.pids.to_string())?;
            }
        }
        Ok(cgroup)
    }

    fn set(&self, hierarchy: &str, file: &str, value: &str) -> io::Result<()> {
        let folder = self.folders.iter().find(|(name, _)| *name == hierarchy).map(|(_, folder)| folder);
        folder.map_or(Ok(()), |folder| fs::write(folder.join(file), value))
    }

    pub fn limits_memory(&self) -> bool {
        self.controllers.memory
    }

    /// Whether the memory of TCP and UDP sockets is limited. Version 2 counts it as other memory, version 1 not everywhere.
    pub fn limits_sockets(controllers: &Controllers) -> bool {
        controllers.memory
            && (controllers.version == 2 || Path::new(ROOT).join("memory/memory.kmem.tcp.limit_in_bytes").exists())
    }

    pub fn limits_processes(&self) -> bool {
        self.controllers.pids
    }

    /// Descriptors with which a child can join the groups after it has dropped its privileges.
    pub fn open_for_joining(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |(_, folder): &(&str, PathBuf)| {
            fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs")).map(OwnedFd::from)
        };
        self.folders.iter().map(open).collect()
    }

    /// Bind mounts (source, target) that show the session's group in the place of the whole tree, so that the agent can read
    /// its usage.
    pub fn views(&self) -> Vec<(PathBuf, String)> {
        self.folders
            .iter()
            .map(|(hierarchy, folder)| (folder.clone(), format!("{ROOT}/{hierarchy}").trim_end_matches('/').to_owned()))
            .collect()
    }

    /// The usage, measured from outside.
    pub fn stats(controllers: &Controllers, sandbox: &SandboxId) -> io::Result<SandboxStats> {
        let mut stats = SandboxStats::default();
        for (hierarchy, folder) in folders(controllers, sandbox) {
            let number = |file: &str| -> io::Result<u64> {
                fs::read_to_string(folder.join(file))?.trim().parse().map_err(io::Error::other)
            };
            match hierarchy {
                "" => {
                    stats.memory_bytes = number("memory.current")?;
                    let cpu = fs::read_to_string(folder.join("cpu.stat"))?;
                    let used = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
                    stats.cpu_seconds = used.unwrap_or_default() / 1e6;
                }
                "memory" => stats.memory_bytes = number("memory.usage_in_bytes")?,
                "cpuacct" => stats.cpu_seconds = number("cpuacct.usage")? as f64 / 1e9,
                _ => {}
            }
        }
        Ok(stats)
    }

    /// Lifts the limit of CPU time, with which many killed processes would take long to exit.
    pub fn unthrottle(controllers: &Controllers, sandbox: &SandboxId) {
        for (hierarchy, folder) in folders(controllers, sandbox) {
            // Fails if the group is gone or has no such limit.
            let _ = match hierarchy {
                "" => fs::write(folder.join("cpu.max"), "max"),
                "cpu" => fs::write(folder.join("cpu.cfs_quota_us"), "-1"),
                _ => Ok(()),
            };
        }
    }

    /// Kills all processes in the groups, also those whose PID a killed manager could not record.
    pub fn kill(controllers: &Controllers, sandbox: &SandboxId) {
        for (_, folder) in folders(controllers, sandbox) {
            let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                // Fails if it has ended meanwhile.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Removes the groups. Fails while they contain processes.
    pub fn remove(controllers: &Controllers, sandbox: &SandboxId) -> io::Result<()> {
        for (_, folder) in folders(controllers, sandbox) {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Lets this process join groups by the descriptors of [`Cgroup::open_for_joining`], which carry the permission. Safe between fork and
/// exec: it makes system calls and does not allocate.
///
/// # Errors
/// If a group cannot be joined.
pub(super) fn join(groups: &[OwnedFd]) -> io::Result<()> {
    // "0" is the writing process.
    groups.iter().try_for_each(|group| rustix::io::write(group, b"0").map(drop))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_probes_agree() {
        // Many attempts, since two probes collide only within microseconds.
        let alone = controllers();
        let trials: Vec<_> = (0..8).map(|_| std::thread::spawn(|| [(); 500].map(|()| controllers()))).collect();
        for trial in trials {
            assert!(trial.join().unwrap().iter().all(|found| *found == alone));
        }
    }
}

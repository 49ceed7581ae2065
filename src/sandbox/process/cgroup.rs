//! The session's cgroup: limits on memory, CPU and processes, where this machine lets us make one.
//!
//! Version 2 where its controllers are, else version 1. On hybrid machines the controllers are in version 1.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use crate::policy::Limits;
use crate::sandbox::SandboxStats;
use crate::sandbox::records::is_older;

const ROOT: &str = "/sys/fs/cgroup";
/// All our groups are beneath one, so that a look at it shows them all.
const OURS: &str = "cellkeep";
/// The period of CPU quotas, microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Which limits cgroups can hold here, for this user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controllers {
    /// 2, 1, or 0 for none.
    pub version: u8,
    /// Memory and swap.
    pub memory: bool,
    /// CPU quota.
    pub cpu: bool,
    /// Number of processes.
    pub pids: bool,
    /// CPU accounting (version 1 has it apart).
    pub cpuacct: bool,
    /// Why something is missing.
    pub why_not: Option<String>,
}

/// Finds out by trying: makes our parent group and looks at what it has.
pub fn controllers() -> Controllers {
    if Path::new(ROOT).join("cgroup.controllers").exists() { version2() } else { version1() }
}

fn version2() -> Controllers {
    let ours = Path::new(ROOT).join(OURS);
    if let Err(error) = fs::create_dir_all(&ours) {
        return Controllers {
            version: 2,
            why_not: Some(format!("cannot make {}: {error}", ours.display())),
            ..Controllers::default()
        };
    }
    for folder in [Path::new(ROOT), &ours] {
        for controller in ["memory", "cpu", "pids"] {
            let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    let handed_down = fs::read_to_string(ours.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |name: &str| handed_down.split_whitespace().any(|controller| controller == name);
    let (memory, cpu, pids) = (has("memory"), has("cpu"), has("pids"));
    let why_not = (!(memory && cpu && pids)).then(|| "the controller is not handed down to us".to_owned());
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
        let made = fs::create_dir_all(hierarchy.join(OURS));
        // An existing group of root's is of no use to another user. Others may be trying at the same time.
        let trial = hierarchy.join(OURS).join(format!(".probe-{}", crate::ids::random_uuid()));
        let writable = made.and_then(|()| fs::create_dir(&trial));
        let _ = fs::remove_dir(&trial);
        writable.map_err(|error| why_not = Some(format!("cannot make cgroups: {error}"))).is_ok()
    };
    let (memory, cpu, pids, cpuacct) = (usable("memory"), usable("cpu"), usable("pids"), usable("cpuacct"));
    let version = u8::from(memory || cpu || pids);
    Controllers { version, memory, cpu, pids, cpuacct, why_not }
}

/// Removes groups that are empty and were made at least `min_age` ago: their sandboxes' records are lost. The system itself
/// keeps one in which a process lives.
pub fn remove_empty(min_age: Duration) {
    for hierarchy in ["", "memory", "cpu", "pids", "cpuacct"] {
        let groups = fs::read_dir(Path::new(ROOT).join(hierarchy).join(OURS)).into_iter().flatten().flatten();
        for group in groups.map(|entry| entry.path()).filter(|path| path.is_dir() && is_older(path, min_age)) {
            let _ = fs::remove_dir(group);
        }
    }
}

/// The groups of one session: one in version 2, one per hierarchy in version 1.
pub(super) struct Cgroup {
    controllers: Controllers,
    folders: Vec<(&'static str, PathBuf)>,
}

fn folders(controllers: &Controllers, session: &SessionId) -> Vec<(&'static str, PathBuf)> {
    let group = |hierarchy: &str| Path::new(ROOT).join(hierarchy).join(OURS).join(session.as_str());
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
    /// Makes the groups and sets the limits, before anything runs in them.
    pub fn create(controllers: &Controllers, session: &SessionId, limits: &Limits) -> io::Result<Self> {
        let cgroup = Self { controllers: controllers.clone(), folders: folders(controllers, session) };
        for (_, folder) in &cgroup.folders {
            fs::create_dir_all(folder)?;
        }
        let quota = (limits.cpus * CPU_PERIOD as f64) as u64;
        let memory = limits.memory_bytes().to_string();
        if controllers.version == 2 && !cgroup.folders.is_empty() {
            if controllers.memory {
                cgroup.set("", "memory.max", &memory)?;
                // Absent where the system has no swap accounting; then there is no swap to fear either, or nothing to be done.
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

    /// Whether memory is held.
    pub fn limits_memory(&self) -> bool {
        self.controllers.memory
    }

    /// Whether the number of processes is held.
    pub fn limits_processes(&self) -> bool {
        self.controllers.pids
    }

    /// Descriptors by which a child can put itself into the groups after it has given up our rights.
    pub fn open_for_joining(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |(_, folder): &(&str, PathBuf)| {
            fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs")).map(OwnedFd::from)
        };
        self.folders.iter().map(open).collect()
    }

    /// What to mount where, so that the agent can read its own usage: the session's group at the place of the whole tree.
    pub fn views(&self) -> Vec<(PathBuf, String)> {
        self.folders
            .iter()
            .map(|(hierarchy, folder)| (folder.clone(), format!("{ROOT}/{hierarchy}").trim_end_matches('/').to_owned()))
            .collect()
    }

    /// Usage from outside.
    pub fn stats(controllers: &Controllers, session: &SessionId) -> io::Result<SandboxStats> {
        let mut stats = SandboxStats::default();
        for (hierarchy, folder) in folders(controllers, session) {
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

    /// Ends whatever is in the groups: also a process of which a maker that was killed could not write down who it is.
    pub fn kill(controllers: &Controllers, session: &SessionId) {
        for (_, folder) in folders(controllers, session) {
            let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in inside.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Removes the groups; an error while processes are still in them.
    pub fn remove(controllers: &Controllers, session: &SessionId) -> io::Result<()> {
        for (_, folder) in folders(controllers, session) {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_find_out_at_once() {
        // So many that two of them meet, which takes luck within microseconds.
        let alone = controllers();
        let trials: Vec<_> = (0..8).map(|_| std::thread::spawn(|| [(); 500].map(|()| controllers()))).collect();
        for trial in trials {
            assert!(trial.join().unwrap().iter().all(|found| *found == alone));
        }
    }
}

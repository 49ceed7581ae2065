//! What this machine has: the smallest of what the system says and what the cgroups of this process allow.

use std::fs;
use std::path::{Path, PathBuf};

use crate::policy::Machine;

/// What is assumed where the system does not say it.
const UNKNOWN: Machine = Machine { memory_bytes: 1 << 30, cpus: 1.0, processes: 32_768 };

/// Reads what this machine has. It takes some file reads.
pub fn detect() -> Machine {
    // Considers the affinity and the CPU quota of the cgroup.
    let cpus = std::thread::available_parallelism().map_or(UNKNOWN.cpus, |count| count.get() as f64);
    Machine { cpus, ..read_below(Path::new("/")) }
}

/// Reads memory and processes from the files of a system below `root`.
fn read_below(root: &Path) -> Machine {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limit = |controller: &str, files: [&str; 2]| group_limit(root, &groups, controller, files);
    let memory = total_memory(&fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default());
    let memory = [memory, limit("memory", ["memory.limit_in_bytes", "memory.max"])];
    let kernel = |name: &str| read_number(&root.join("proc/sys/kernel").join(name));
    let processes = [kernel("pid_max"), kernel("threads-max"), limit("pids", ["pids.max", "pids.max"])];
    Machine {
        memory_bytes: memory.into_iter().flatten().min().unwrap_or(UNKNOWN.memory_bytes),
        processes: processes.into_iter().flatten().min().unwrap_or(UNKNOWN.processes),
        ..UNKNOWN
    }
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of the group of this process and the groups above it. `files` are its names in version 1 and 2.
fn group_limit(root: &Path, groups: &str, controller: &str, files: [&str; 2]) -> Option<u64> {
    let mount = root.join("sys/fs/cgroup");
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (hierarchy, file) = match controllers {
            "" => (mount.clone(), files[1]),
            names if names.split(',').any(|name| name == controller) => (mount.join(controller), files[0]),
            _ => return None,
        };
        let ancestors = Path::new(path.trim_start_matches('/')).ancestors().map(Path::to_owned);
        ancestors.filter_map(|group: PathBuf| read_number(&hierarchy.join(group).join(file))).min()
    });
    limits.min()
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> Machine {
        let root = std::env::temp_dir().join(format!("cellkeep-machine-{}", crate::ids::random_uuid()));
        fs::create_dir(&root).unwrap();
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = read_below(&root);
        fs::remove_dir_all(root).unwrap();
        machine
    }

    const MEMORY: (&str, &str) = ("proc/meminfo", "MemTotal:       8000000 kB\nMemFree: 1 kB\n");
    const PIDS: (&str, &str) = ("proc/sys/kernel/pid_max", "32768\n");

    #[test]
    fn smallest_limit_of_all_groups_holds() {
        let plain = system(&[MEMORY, PIDS, ("proc/sys/kernel/threads-max", "192730\n")]);
        assert_eq!((plain.memory_bytes, plain.processes), (8_000_000 * 1024, 32_768));
        let second = system(&[
            MEMORY,
            PIDS,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/pids.max", "500\n"),
        ]);
        assert_eq!((second.memory_bytes, second.processes), (1_000_000, 500));
        let first = system(&[
            MEMORY,
            PIDS,
            ("proc/self/cgroup", "8:pids:/\n4:cpu,memory:/a\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000000\n"),
            ("sys/fs/cgroup/pids/pids.max", "700\n"),
        ]);
        assert_eq!((first.memory_bytes, first.processes), (2_000_000, 700));
        assert_eq!(system(&[]), UNKNOWN);
    }

    #[test]
    fn this_machine_has_something_of_everything() {
        let machine = detect();
        assert!(machine.memory_bytes > 64 << 20 && machine.cpus >= 1.0 && machine.processes > 16, "{machine:?}");
    }
}

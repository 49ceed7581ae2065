//! A process of this machine, known again later and by other processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for another: for a later one with the same number, nor for one of another boot or of
/// another PID namespace (a container that shares our data folder), where the same number is somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStamp {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks after boot.
    pub started: u64,
    /// The boot, by the first half of its random id.
    pub boot: u64,
    /// The PID namespace that the number is of, by its inode.
    pub namespace: u64,
}

/// What can be seen of a stamped process from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It runs.
    Running,
    /// It has ended.
    Gone,
    /// It is of another PID namespace: whether it runs cannot be told, and its number is nothing to us.
    OutOfSight,
}

/// The boot and the PID namespace of this process, which never change.
fn here() -> (u64, u64) {
    static HERE: OnceLock<(u64, u64)> = OnceLock::new();
    *HERE.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
        (u64::from_str_radix(&digits, 16).unwrap_or(0), namespace)
    })
}

impl ProcessStamp {
    /// The stamp of a running process. `None` when there is none of that number.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the start time is the 20th field behind it.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let (boot, namespace) = here();
        Some(Self { pid, started, boot, namespace })
    }

    /// The stamp of this process.
    pub fn own() -> Self {
        let pid = std::process::id().cast_signed();
        Self::of(pid).unwrap_or(Self { pid, ..Self::unknown() })
    }

    /// The stamp of a process of which nothing is known: always out of sight.
    pub(super) fn unknown() -> Self {
        Self { pid: 0, started: 0, boot: here().0, namespace: 0 }
    }

    /// What can be seen of that very process.
    pub fn sight(self) -> Sight {
        let (boot, namespace) = here();
        if self.boot != boot {
            // No process outlives a boot.
            Sight::Gone
        } else if self.namespace != namespace {
            Sight::OutOfSight
        } else if Self::of(self.pid) == Some(self) {
            Sight::Running
        } else {
            Sight::Gone
        }
    }

    /// Whether that very process is seen to run.
    pub fn is_alive(self) -> bool {
        self.sight() == Sight::Running
    }

    /// Ends that very process, where it is seen to run.
    pub(super) fn kill(self) {
        if let (true, Some(pid)) = (self.is_alive(), rustix::process::Pid::from_raw(self.pid)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_very_process_is_alive() {
        let own = ProcessStamp::own();
        assert_eq!(own.sight(), Sight::Running);
        assert_eq!(ProcessStamp { started: own.started + 1, ..own }.sight(), Sight::Gone);
        assert_eq!(ProcessStamp { boot: own.boot ^ 1, ..own }.sight(), Sight::Gone);
        assert_eq!(ProcessStamp { namespace: own.namespace + 1, ..own }.sight(), Sight::OutOfSight);
        assert_eq!(ProcessStamp::unknown().sight(), Sight::OutOfSight);
        assert!(own.boot != 0 && own.namespace != 0, "this machine tells both");
    }
}

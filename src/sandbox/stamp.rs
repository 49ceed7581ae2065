//! Identifies a process of this machine across time, boots and PID namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Identifies a process uniquely: not confused with a later process of the same PID, nor with one of another boot or another
/// PID namespace (for example a container that shares the data folder).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStamp {
    pub pid: i32,
    /// Start time, in clock ticks after boot.
    pub started: u64,
    /// The first half of the random boot id.
    pub boot: u64,
    /// Inode of the PID namespace to which the PID belongs.
    pub namespace: u64,
}

/// The state of a process as far as this process can observe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    Running,
    Dead,
    /// It belongs to another PID namespace, where it cannot be observed.
    Unknown,
}

/// Boot and PID namespace of this process.
fn current_boot_and_namespace() -> (u64, u64) {
    static CURRENT: OnceLock<(u64, u64)> = OnceLock::new();
    *CURRENT.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
        (u64::from_str_radix(&digits, 16).unwrap_or(0), namespace)
    })
}

impl ProcessStamp {
    /// The stamp of a running process; `None` if there is none with this PID.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may contain anything; the start time is the 20th field after it.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let (boot, namespace) = current_boot_and_namespace();
        Some(Self { pid, started, boot, namespace })
    }

    /// The stamp of this process.
    pub fn own() -> Self {
        let pid = std::process::id().cast_signed();
        Self::of(pid).unwrap_or(Self { pid, ..Self::unknown() })
    }

    /// A stamp whose liveness is always unknown.
    pub(super) fn unknown() -> Self {
        Self { pid: 0, started: 0, boot: current_boot_and_namespace().0, namespace: 0 }
    }

    pub fn liveness(self) -> Liveness {
        let (boot, namespace) = current_boot_and_namespace();
        if self.boot != boot {
            // No process survives a reboot.
            Liveness::Dead
        } else if self.namespace != namespace {
            Liveness::Unknown
        } else if Self::of(self.pid) == Some(self) {
            Liveness::Running
        } else {
            Liveness::Dead
        }
    }

    /// Whether the process is known to be running.
    pub fn is_alive(self) -> bool {
        self.liveness() == Liveness::Running
    }

    /// Kills the process if it is known to be running.
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
    fn only_the_same_process_is_alive() {
        let own = ProcessStamp::own();
        assert_eq!(own.liveness(), Liveness::Running);
        assert_eq!(ProcessStamp { started: own.started + 1, ..own }.liveness(), Liveness::Dead);
        assert_eq!(ProcessStamp { boot: own.boot ^ 1, ..own }.liveness(), Liveness::Dead);
        assert_eq!(ProcessStamp { namespace: own.namespace + 1, ..own }.liveness(), Liveness::Unknown);
        assert_eq!(ProcessStamp::unknown().liveness(), Liveness::Unknown);
        assert!(own.boot != 0 && own.namespace != 0, "both are known on this machine");
    }
}

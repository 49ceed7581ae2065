//! The system calls that kernels may not make.
//!
//! One table serves the agent, which confines the kernel process in either sandbox, and the profile of containers. A denied
//! call returns an error and never kills: a library that probes for a feature must be able to continue without it.
//!
//! It is a deny list, since interpreters and numeric libraries use most other calls. Calls newer than the table are denied
//! as a block, by number ([`FIRST_UNKNOWN`]).

/// System calls that return EPERM, grouped by the attack surface that they close.
pub const DENIED: &[&str] = &[
    // Kernel interfaces with many past privilege escalations.
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "userfaultfd",
    "perf_event_open",
    "add_key",
    "request_key",
    "keyctl",
    "memfd_secret",
    // Reading or controlling other processes, such as the agent.
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "kcmp",
    "process_madvise",
    "pidfd_getfd",
    // New namespaces and mounts: attack surface that no notebook needs.
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    // Opening files by handle bypasses path rules (the "shocker" escape).
    "open_by_handle_at",
    "name_to_handle_at",
    // State of the whole machine.
    "reboot",
    "kexec_load",
    "init_module",
    "finit_module",
    "delete_module",
    "swapon",
    "swapoff",
    "syslog",
    "acct",
    "quotactl",
    "quotactl_fd",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "fanotify_init",
    "lookup_dcookie",
    "nfsservctl",
    "vhangup",
    "_sysctl",
    "uselib",
    "ustat",
    "sysfs",
    // Memory placement of other processes, and page-stealing splices.
    "move_pages",
    "migrate_pages",
    "vmsplice",
];

/// Denied system calls of the x86 hardware, which other architectures do not have. A few calls in [`DENIED`] are also x86 only.
pub const DENIED_X86: &[&str] = &["iopl", "ioperm", "modify_ldt"];

/// System calls that return ENOSYS, on which programs fall back to an older call. `clone3` takes its flags from memory,
/// which a filter cannot read.
pub const UNKNOWN: &[&str] = &["clone3"];

/// The first number that did not exist when the table was written. It and all higher ones return
/// ENOSYS.
pub const FIRST_UNKNOWN: u32 = 467;

/// Flags of `clone` that create a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
pub const CLONE_NEW: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x80;

/// Allowed address families of `socket`: AF_UNIX, AF_INET, AF_INET6 and, for one protocol, AF_NETLINK. Without a network
/// they reach only the sandbox's loopback. All others (AF_PACKET, AF_ALG, AF_VSOCK, ...) are attack surface of the kernel.
pub const SOCKET_FAMILIES: &[u64] = &[1, 2, 10, NETLINK];

/// AF_NETLINK, the interface of many kernel subsystems.
pub const NETLINK: u64 = 16;

/// The only allowed netlink protocol: NETLINK_ROUTE, with which `getifaddrs` lists interfaces. libzmq calls it before it
/// binds TCP, and aborts the process if it is refused.
pub const NETLINK_ROUTE: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_no_duplicates() {
        let mut all: Vec<_> = DENIED.iter().chain(DENIED_X86).chain(UNKNOWN).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}

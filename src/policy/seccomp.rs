//! Which system calls a kernel may not make.
//!
//! One table serves the agent (which locks the kernel process in either sandbox) and the container's own profile. Denied
//! calls get an error, never a kill: a library that probes for a feature must be able to go on without it.
//!
//! The table denies rather than allows, since interpreters and numeric libraries use most of the rest; calls that are
//! newer than the table are denied as a block, by number ([`FIRST_UNKNOWN`]).

/// System calls that answer EPERM. Each group with the attack surface it closes.
pub const DENIED: &[&str] = &[
    // Kernel interfaces with a long record of privilege escalations.
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
    // Reading or steering other processes, the agent among them.
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "kcmp",
    "process_madvise",
    "pidfd_getfd",
    // New namespaces and mounts: reachable attack surface only, nothing that a notebook needs.
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
    // Opening files by handle steps over path rules (the "shocker" escape).
    "open_by_handle_at",
    "name_to_handle_at",
    // The machine as a whole.
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
    // Memory placement of others, and page-stealing splices.
    "move_pages",
    "migrate_pages",
    "vmsplice",
];

/// System calls that only exist on x86.
pub const DENIED_X86: &[&str] = &["iopl", "ioperm", "modify_ldt"];

/// System calls that answer ENOSYS, because programs fall back to an older call on that and only on that: `clone3` takes
/// its flags from memory, where a filter cannot look.
pub const UNKNOWN: &[&str] = &["clone3"];

/// The first number that did not exist when the table was written (Linux 6.12 ends at 466). It and all after it answer ENOSYS.
pub const FIRST_UNKNOWN: u32 = 467;

/// Flags of `clone` that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
pub const CLONE_NEW: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x80;

/// Address families that `socket` may be asked for: AF_UNIX, AF_INET, AF_INET6 and, for one protocol, AF_NETLINK. With no
/// network these reach nothing but the sandbox's own loopback; all others (AF_PACKET, AF_ALG, AF_VSOCK, ...) are kernel surface.
pub const SOCKET_FAMILIES: &[u64] = &[1, 2, 10, NETLINK];

/// AF_NETLINK, the way to many kernel subsystems.
pub const NETLINK: u64 = 16;

/// The one netlink protocol that is allowed: NETLINK_ROUTE, by which `getifaddrs` lists interfaces. libzmq does so before it
/// binds TCP, and aborts the process when it is refused.
pub const NETLINK_ROUTE: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice() {
        let mut all: Vec<_> = DENIED.iter().chain(DENIED_X86).chain(UNKNOWN).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}

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
    "kexec_file_load",
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
    "fanotify_mark",
    "lookup_dcookie",
    "nfsservctl",
    "vhangup",
    // Memory placement of other processes, and page-stealing splices.
    "move_pages",
    "migrate_pages",
    "vmsplice",
];

/// As [`DENIED`], for calls that only x86 has.
pub const DENIED_X86: &[&str] = &["iopl", "ioperm", "modify_ldt", "_sysctl", "uselib", "ustat", "sysfs"];

/// System calls that return ENOSYS, on which programs fall back to an older call. `clone3` takes its flags from memory,
/// which a filter cannot read. Contexts of asynchronous I/O are counted for the whole machine (`fs.aio-max-nr`).
pub const UNKNOWN: &[&str] =
    &["clone3", "io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents"];

/// As [`UNKNOWN`], for kernels and not for the agent, which watches the workspace. A watch on a shared file tells what other
/// sessions and the machine do with it, and instances are counted by user.
pub const UNKNOWN_TO_KERNELS: &[&str] = &["inotify_init1", "inotify_add_watch", "inotify_rm_watch"];

/// As [`UNKNOWN_TO_KERNELS`], for calls that only x86 has.
pub const UNKNOWN_TO_KERNELS_X86: &[&str] = &["inotify_init"];

/// As [`UNKNOWN_TO_KERNELS`], where the agent watches the memory because no cgroup limits it: memory of the system that no
/// process maps, and that can be in transit between processes where nobody finds it.
pub const UNKNOWN_WITHOUT_CGROUP: &[&str] = &["memfd_create", "msgget", "semget"];

/// As [`UNKNOWN_TO_KERNELS`], by number, equal on all architectures: `cachestat` tells which parts of shared files others
/// use, `statmount` and `listmount` describe the machine's mounts.
pub const UNKNOWN_NUMBERS: &[u32] = &[451, 457, 458];

/// The first number that did not exist when the table was written. It and all higher ones return
/// ENOSYS.
pub const FIRST_UNKNOWN: u32 = 467;

/// A call that is denied if all conditions hold. The engines' format compares each argument once in a rule.
#[derive(Clone, Copy, Debug)]
pub struct ArgumentRule {
    pub call: &'static str,
    pub conditions: &'static [Condition],
    pub errno: i32,
}

/// A condition on the argument at an index.
#[derive(Clone, Copy, Debug)]
pub struct Condition(pub u32, pub Comparison);

#[derive(Clone, Copy, Debug)]
pub enum Comparison {
    Is(u64),
    IsNot(u64),
    /// All bits are set.
    Has(u64),
    /// The argument is a pointer, and not null. All others have 32 bits.
    IsPointer,
}

/// The agent is the first process of its sandbox and has one thread.
const AGENT: u64 = 1;

/// Calls that are denied for some arguments.
pub const DENIED_ARGUMENTS: &[ArgumentRule] = &{
    use Comparison::{Has, Is, IsNot, IsPointer};
    const EPERM: i32 = 1;
    const EOPNOTSUPP: i32 = 95;
    const fn deny(call: &'static str, conditions: &'static [Condition]) -> ArgumentRule {
        ArgumentRule { call, conditions, errno: EPERM }
    }
    [
        // Limits and scheduling of the agent, which has the same uid: a low limit of descriptors blinds it, a low priority
        // keeps it from ending a cell.
        deny("prlimit64", &[Condition(0, IsNot(0)), Condition(2, IsPointer)]),
        deny("sched_setaffinity", &[Condition(0, Is(AGENT))]),
        deny("sched_setattr", &[Condition(0, Is(AGENT))]),
        deny("sched_setparam", &[Condition(0, Is(AGENT))]),
        deny("sched_setscheduler", &[Condition(0, Is(AGENT))]),
        // One process, a foreign group, all processes of the user.
        deny("setpriority", &[Condition(0, Is(0)), Condition(1, Is(AGENT))]),
        deny("setpriority", &[Condition(0, Is(1)), Condition(1, IsNot(0))]),
        deny("setpriority", &[Condition(0, Is(2))]),
        deny("ioprio_set", &[Condition(0, Is(1)), Condition(1, Is(AGENT))]),
        deny("ioprio_set", &[Condition(0, Is(2)), Condition(1, IsNot(0))]),
        deny("ioprio_set", &[Condition(0, Is(3))]),
        // F_SETLEASE blocks others who open a file, F_NOTIFY tells what others do in a folder.
        deny("fcntl", &[Condition(1, Is(1024))]),
        deny("fcntl", &[Condition(1, Is(1026))]),
        // TIOCSTI inserts characters into a terminal's input (CVE-2017-5226), TIOCLINUX pastes on a console.
        deny("ioctl", &[Condition(1, Is(0x5412))]),
        deny("ioctl", &[Condition(1, Is(0x541c))]),
        // Protocols on top of TCP and UDP (TCP_ULP, UDP_ENCAP), and programs of the kernel at sockets (SO_ATTACH_BPF,
        // SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF).
        deny("setsockopt", &[Condition(1, Is(6)), Condition(2, Is(31))]),
        deny("setsockopt", &[Condition(1, Is(17)), Condition(2, Is(100))]),
        deny("setsockopt", &[Condition(1, Is(1)), Condition(2, Is(50))]),
        deny("setsockopt", &[Condition(1, Is(1)), Condition(2, Is(51))]),
        deny("setsockopt", &[Condition(1, Is(1)), Condition(2, Is(52))]),
        // RWF_NOWAIT tells whether a part of a shared file is in memory. File systems may refuse it, so programs do without.
        ArgumentRule { call: "preadv2", conditions: &[Condition(5, Has(8))], errno: EOPNOTSUPP },
    ]
};

/// The allowed arguments of `personality`: the query, Linux, and those that only change what `uname` reports. Others weaken
/// the address space.
pub const PERSONALITIES: &[u64] = &[0xffff_ffff, 0, 0x8, 0x2_0000, 0x2_0008];

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

/// AF_INET and AF_INET6.
pub const INTERNET: &[u64] = &[2, 10];

/// The allowed protocols of the [`INTERNET`] families: the default, TCP and UDP.
pub const INTERNET_PROTOCOLS: &[u64] = &[0, 6, 17];

/// Protocols of the [`INTERNET`] families that no program needs here, for filters that can only name what they deny: DCCP,
/// L2TP, SCTP, UDP-Lite, MPTCP.
pub const UNUSED_PROTOCOLS: &[u64] = &[33, 115, 132, 136, 262];

/// Socket types that stand for other protocols in the [`INTERNET`] families: raw sockets, RDM, SCTP, DCCP, packets.
pub const UNUSED_TYPES: &[u64] = &[3, 4, 5, 6, 10];

/// The bits of a socket's type that are no flags.
pub const TYPE_MASK: u64 = 0xf;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_no_duplicates() {
        let lists = [DENIED, DENIED_X86, UNKNOWN, UNKNOWN_TO_KERNELS, UNKNOWN_TO_KERNELS_X86, UNKNOWN_WITHOUT_CGROUP];
        let mut all: Vec<_> = lists.into_iter().flatten().collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn rules_compare_each_argument_once() {
        for rule in DENIED_ARGUMENTS {
            let mut indices: Vec<_> = rule.conditions.iter().map(|Condition(index, _)| *index).collect();
            indices.dedup();
            assert_eq!(indices.len(), rule.conditions.len(), "{rule:?}");
        }
    }
}

//! What a kernel may not see of the machine it runs on.

/// Paths of `/proc` and `/sys` that are hidden: what Docker's newest version hides (older ones hide less), and what tells
/// about the machine's kernel and how it was booted.
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sys/kernel/core_pattern",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/kernel/security",
];

/// Paths of `/proc` that can be read only. Programs read some of `/proc/sys`.
pub const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Folders beneath `/usr` that hold this machine's own settings and sources, and nothing that a kernel needs. Hidden where
/// the sandbox shares the machine's `/usr`.
pub const HOST_FOLDERS: &[&str] = &["/usr/etc", "/usr/local/etc", "/usr/local/src", "/usr/local/var", "/usr/src"];

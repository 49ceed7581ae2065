//! Paths of the host that kernels must not see.

/// Hidden paths of `/proc` and `/sys`: those that Docker's newest version hides (older ones hide fewer), and those that
/// describe the host's kernel and its boot.
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

/// Read-only paths of `/proc`. Programs read parts of `/proc/sys`.
pub const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Folders beneath `/usr` with settings, programs, packages and translations that the host has beyond our lists. Hidden where the
/// sandbox shares the host's `/usr`.
pub const HOST_FOLDERS: &[&str] =
    &["/usr/etc", "/usr/lib/python3/dist-packages", "/usr/local", "/usr/share/locale", "/usr/src"];

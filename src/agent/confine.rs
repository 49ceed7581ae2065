//! Confines the kernel process between fork and exec, before any user code runs.
//!
//! The manager creates the sandbox itself (namespaces, mounts, cgroups) outside. This is the second layer, equal in every
//! sandbox: a session and process group of its own, rlimits, Landlock, no_new_privs, seccomp.

use std::io;
use std::path::Path;

use landlock::{ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, sock_filter};

use crate::agent_protocol::AgentConfig;
use crate::descriptors;
use crate::policy::seccomp;

/// Prevents the kernel, which has the same uid, from reading or tracing the agent: the `/proc` entries of a process that is
/// not dumpable belong to root, and ptrace is refused.
pub(super) fn protect_agent() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    // The agent inherits the kernel's orphans even where it is not PID 1.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Everything that can fail or allocate, prepared before the fork; [`Confinement::apply`] only makes system calls.
pub(super) struct Confinement {
    rlimits: Vec<(Resource, u64)>,
    landlock: Option<landlock::RulesetCreated>,
    filters: Vec<BpfProgram>,
}

impl Confinement {
    /// Prepares the confinement of one kernel start.
    ///
    /// # Errors
    /// If a part cannot be prepared; the kernel is not started then. Only Landlock is best effort, since Linux before 5.13
    /// lacks it.
    pub fn prepare(config: &AgentConfig) -> io::Result<Self> {
        let filters = vec![by_number_filter(), table_filter(seccomp::UNKNOWN, libc::ENOSYS)?, denied_filter()?];
        Ok(Self { rlimits: rlimits(config), landlock: landlock_rules(&config.writable), filters })
    }

    /// Applies the confinement to the child process. seccomp comes last, since it denies calls that the other parts need.
    ///
    /// # Errors
    /// If a part fails; the child then exits instead of running the kernel.
    pub fn apply(&mut self) -> io::Result<()> {
        descriptors::close_all_at_exec()?;
        rustix::process::setsid()?;
        for (resource, limit) in &self.rlimits {
            lower_rlimit(*resource, *limit)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        if let Some(rules) = self.landlock.take() {
            rules.restrict_self().map_err(io::Error::other)?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter(filter).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn rlimits(config: &AgentConfig) -> Vec<(Resource, u64)> {
    let limits = &config.limits;
    let mut all = vec![
        (Resource::Core, 0),
        (Resource::Nofile, 4096),
        (Resource::Memlock, 64 * 1024),
        (Resource::Msgqueue, 0),
        (Resource::Fsize, limits.disk_bytes().max(limits.tmp_bytes())),
    ];
    if config.nproc_rlimit {
        all.push((Resource::Nproc, limits.pids));
    }
    all
}

/// Lowers a soft and hard limit; a lower current limit stays.
fn lower_rlimit(resource: Resource, limit: u64) -> io::Result<()> {
    let current = rustix::process::getrlimit(resource);
    let limit = current.maximum.map_or(limit, |maximum| maximum.min(limit));
    Ok(setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?)
}

/// Allows the kernel to create, write and remove files only beneath `writable`. The mounts enforce the same; this also
/// protects the agent's socket where it belongs to the kernel's uid.
fn landlock_rules(writable: &[String]) -> Option<landlock::RulesetCreated> {
    let access = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(access)
        .and_then(|ruleset| ruleset.create())
        .ok()?;
    for folder in writable.iter().filter(|folder| Path::new(folder).exists()) {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(folder).ok()?, access)).ok()?;
    }
    Some(rules)
}

/// Returns ENOSYS for every call newer than the table, and for those of the x32 ABI, which have bit 30 set.
fn by_number_filter() -> BpfProgram {
    // Classic BPF: load the number of the call; from the first unknown number on return ENOSYS, else allow.
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        op(LOAD_NUMBER, 0, 0, 0),
        op(JUMP_IF_AT_LEAST, 0, 1, seccomp::FIRST_UNKNOWN),
        op(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
        op(RETURN, 0, 0, ALLOW),
    ]
}

fn denied_filter() -> io::Result<BpfProgram> {
    let mut rules: Vec<serde_json::Value> = names(seccomp::DENIED).chain(x86_names()).collect();
    let argument = |op: serde_json::Value, val: u64| serde_json::json!({"index": 0, "type": "dword", "op": op, "val": val});
    let other_family: Vec<_> = seccomp::SOCKET_FAMILIES.iter().map(|family| argument("ne".into(), *family)).collect();
    for call in ["socket", "socketpair"] {
        rules.push(serde_json::json!({"syscall": call, "args": other_family}));
    }
    let netlink = serde_json::json!([
        argument("eq".into(), seccomp::NETLINK),
        {"index": 2, "type": "dword", "op": "ne", "val": seccomp::NETLINK_ROUTE},
    ]);
    rules.push(serde_json::json!({"syscall": "socket", "args": netlink}));
    for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| seccomp::CLONE_NEW & bit != 0 && *bit != 0x80) {
        rules.push(serde_json::json!({"syscall": "clone", "args": [argument(serde_json::json!({"masked_eq": bit}), bit)]}));
    }
    // TIOCSTI inserts characters into a terminal's input (CVE-2017-5226), TIOCLINUX pastes on a console.
    for request in [0x5412, 0x541c] {
        rules.push(serde_json::json!({
            "syscall": "ioctl", "args": [{"index": 1, "type": "dword", "op": "eq", "val": request}],
        }));
    }
    compile(&rules, libc::EPERM)
}

fn table_filter(calls: &'static [&'static str], errno: i32) -> io::Result<BpfProgram> {
    compile(&names(calls).collect::<Vec<_>>(), errno)
}

fn names(calls: &'static [&'static str]) -> impl Iterator<Item = serde_json::Value> {
    calls.iter().filter(|name| exists_here(name)).map(|name| serde_json::json!({"syscall": name}))
}

fn x86_names() -> Box<dyn Iterator<Item = serde_json::Value>> {
    if cfg!(target_arch = "x86_64") { Box::new(names(seccomp::DENIED_X86)) } else { Box::new(std::iter::empty()) }
}

/// Whether this architecture has the call; compiling a filter fails for an unknown name.
fn exists_here(name: &str) -> bool {
    const X86_ONLY: &[&str] = &["_sysctl", "uselib", "ustat", "sysfs"];
    cfg!(target_arch = "x86_64") || !X86_ONLY.contains(&name)
}

fn compile(rules: &[serde_json::Value], errno: i32) -> io::Result<BpfProgram> {
    let json = serde_json::json!({
        "kernel": {"mismatch_action": "allow", "match_action": {"errno": errno}, "filter": rules},
    });
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let mut programs = seccompiler::compile_from_json(json.to_string().as_bytes(), arch)
        .map_err(|error| io::Error::other(error.to_string()))?;
    programs.remove("kernel").ok_or_else(|| io::Error::other("seccomp compiled to nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seccomp_table_compiles() {
        assert!(denied_filter().unwrap().len() > seccomp::DENIED.len());
        assert!(table_filter(seccomp::UNKNOWN, libc::ENOSYS).is_ok());
    }
}

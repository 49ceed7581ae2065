//! Confines the kernel process between fork and exec, before any user code runs.
//!
//! The manager creates the sandbox itself (namespaces, mounts, cgroups) outside. This is the second layer, equal in every
//! sandbox: a session and process group of its own, rlimits, Landlock, no_new_privs, seccomp.

use std::io;
use std::path::Path;

use landlock::{ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, sock_filter};
use serde_json::{Value, json};

use crate::agent_protocol::AgentConfig;
use crate::descriptors;
use crate::policy::seccomp::{self, Comparison, Condition};

/// The priority of the kernel: many busy processes leave the agent, at 0, more than a tenth of the session's CPU time. It
/// does not matter outside, where cgroups or sessions of processes share the CPUs.
const NICE: i32 = 10;
/// The share of the machine's open files that one session may have.
const FILES_SHARE: u64 = 4;
/// The fewest and the most descriptors of one process.
const DESCRIPTORS: std::ops::RangeInclusive<u64> = 512..=4096;
/// Timers and queued signals of a session.
const MAX_SIGNALS: u64 = 4096;

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
        let filters = vec![by_number_filter(), unknown_filter(config.memory_enforced)?, denied_filter()?, hint_filter()?];
        Ok(Self { rlimits: rlimits(config), landlock: landlock_rules(&config.writable), filters })
    }

    /// Applies the confinement to the child process. seccomp comes last, since it denies calls that the other parts need.
    ///
    /// # Errors
    /// If a part fails; the child then exits instead of running the kernel.
    pub fn apply(&mut self) -> io::Result<()> {
        descriptors::close_all_at_exec()?;
        rustix::process::setsid()?;
        // The server may have a lower priority already, which code must not raise.
        let nice = rustix::process::getpriority_process(None)?.max(NICE);
        rustix::process::setpriority_process(None, nice)?;
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
        (Resource::Nofile, max_descriptors(limits.pids)),
        (Resource::Sigpending, MAX_SIGNALS),
        (Resource::Memlock, 64 * 1024),
        (Resource::Msgqueue, 0),
        (Resource::Fsize, limits.disk_bytes().max(limits.tmp_bytes())),
    ];
    if config.nproc_rlimit {
        all.push((Resource::Nproc, limits.pids));
    }
    all
}

/// The limit of descriptors with which all processes of a session together cannot use up the open files of the machine.
fn max_descriptors(processes: u64) -> u64 {
    let machine = std::fs::read_to_string("/proc/sys/fs/file-max").ok().and_then(|text| text.trim().parse::<u64>().ok());
    let fair = machine.unwrap_or(u64::MAX) / FILES_SHARE / processes.max(1);
    fair.clamp(*DESCRIPTORS.start(), *DESCRIPTORS.end())
}

/// Lowers a soft and hard limit; a lower current limit stays. gVisor refuses limits of what it does not have.
fn lower_rlimit(resource: Resource, limit: u64) -> io::Result<()> {
    let current = rustix::process::getrlimit(resource);
    let limit = current.maximum.map_or(limit, |maximum| maximum.min(limit));
    match setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) }) {
        Err(Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
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

/// Returns ENOSYS for every call newer than the table, for those of the x32 ABI, which have bit 30 set, and for
/// [`seccomp::UNKNOWN_NUMBERS`].
fn by_number_filter() -> BpfProgram {
    // Classic BPF: load the number of the call, compare it, and return ENOSYS or allow the call.
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let numbers = seccomp::UNKNOWN_NUMBERS;
    let mut program = vec![op(LOAD_NUMBER, 0, 0, 0)];
    // Each jump leads over the comparisons that are left and over the last one.
    program.extend((1..).zip(numbers).map(|(done, number)| op(JUMP_IF_EQUAL, (numbers.len() + 1 - done) as u8, 0, *number)));
    program.extend([
        op(JUMP_IF_AT_LEAST, 0, 1, seccomp::FIRST_UNKNOWN),
        op(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
        op(RETURN, 0, 0, ALLOW),
    ]);
    program
}

fn unknown_filter(memory_enforced: bool) -> io::Result<BpfProgram> {
    let mut calls = [seccomp::UNKNOWN, seccomp::UNKNOWN_TO_KERNELS].concat();
    if cfg!(target_arch = "x86_64") {
        calls.extend(seccomp::UNKNOWN_TO_KERNELS_X86);
    }
    if !memory_enforced {
        calls.extend(seccomp::UNKNOWN_WITHOUT_CGROUP);
    }
    compile(&names(&calls), libc::ENOSYS)
}

fn denied_filter() -> io::Result<BpfProgram> {
    let mut rules = names(seccomp::DENIED);
    if cfg!(target_arch = "x86_64") {
        rules.extend(names(seccomp::DENIED_X86));
    }
    rules.extend(argument_rules(libc::EPERM));
    for call in ["socket", "socketpair"] {
        rules.push(rule(call, none_of(0, seccomp::SOCKET_FAMILIES)));
    }
    let is = |index, value| condition(index, "eq".into(), value);
    let is_not = |index, value| condition(index, "ne".into(), value);
    rules.push(rule("socket", vec![is(0, seccomp::NETLINK), is_not(2, seccomp::NETLINK_ROUTE)]));
    for family in seccomp::INTERNET {
        rules.push(rule("socket", [vec![is(0, *family)], none_of(2, seccomp::INTERNET_PROTOCOLS)].concat()));
        for kind in seccomp::UNUSED_TYPES {
            let kind = condition(1, json!({"masked_eq": seccomp::TYPE_MASK}), *kind);
            rules.push(rule("socket", vec![is(0, *family), kind]));
        }
    }
    rules.push(rule("personality", none_of(0, seccomp::PERSONALITIES)));
    for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| seccomp::CLONE_NEW & bit != 0 && *bit != 0x80) {
        rules.push(rule("clone", vec![condition(0, json!({"masked_eq": bit}), bit)]));
    }
    compile(&rules, libc::EPERM)
}

/// What is refused as not supported.
fn hint_filter() -> io::Result<BpfProgram> {
    compile(&argument_rules(libc::EOPNOTSUPP), libc::EOPNOTSUPP)
}

/// The rules of the table with this error.
fn argument_rules(errno: i32) -> Vec<Value> {
    let rules = seccomp::DENIED_ARGUMENTS.iter().filter(|rule| rule.errno == errno);
    let conditions = |all: &[Condition]| {
        let translate = |Condition(index, comparison): &Condition| match comparison {
            Comparison::Is(value) => condition(*index, "eq".into(), *value),
            Comparison::IsNot(value) => condition(*index, "ne".into(), *value),
            Comparison::Has(bits) => condition(*index, json!({"masked_eq": bits}), *bits),
            Comparison::IsPointer => json!({"index": index, "type": "qword", "op": "ne", "val": 0}),
        };
        all.iter().map(translate).collect()
    };
    rules.map(|one| rule(one.call, conditions(one.conditions))).collect()
}

fn none_of(index: u32, allowed: &[u64]) -> Vec<Value> {
    allowed.iter().map(|value| condition(index, "ne".into(), *value)).collect()
}

/// A condition on the 32 bits that the system reads of a number.
fn condition(index: u32, op: Value, value: u64) -> Value {
    json!({"index": index, "type": "dword", "op": op, "val": value})
}

fn rule(call: &str, conditions: Vec<Value>) -> Value {
    json!({"syscall": call, "args": conditions})
}

fn names(calls: &[&str]) -> Vec<Value> {
    calls.iter().map(|name| json!({"syscall": name})).collect()
}

fn compile(rules: &[Value], errno: i32) -> io::Result<BpfProgram> {
    let json = json!({
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
        assert!(unknown_filter(false).unwrap().len() > unknown_filter(true).unwrap().len());
        assert!(hint_filter().is_ok());
    }

    #[test]
    fn descriptors_are_shared_fairly() {
        assert!(DESCRIPTORS.contains(&max_descriptors(256)));
        assert_eq!(max_descriptors(u64::MAX), *DESCRIPTORS.start());
    }
}

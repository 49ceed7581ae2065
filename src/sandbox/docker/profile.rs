//! What a session's container is: every lock and limit, as values. Nothing here touches the engine.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use serde_json::{Value, json};

use super::engine::Facts;
use crate::policy::{Isolation, IsolationLevel, LimitState, Limits, Network, hidden_paths, seccomp};
use crate::sandbox::environment::{AGENT_PATH, RUNTIME_DIR, RUNTIME_DIR_BYTES, SHM_BYTES, WORKSPACE};
use crate::sandbox::{SANDBOX_UID, SandboxSpec};

/// Where the folder with the agent's socket is mounted.
pub(super) const SOCKET_DIR: &str = "/run/cellkeep/sock";
/// The agent's socket in it.
pub(super) const SOCKET_NAME: &str = "agent.sock";
/// The engine's preference for killing the agent when the machine runs out of memory: after kernels, before managers.
const OOM_SCORE_ADJ: i64 = 100;
/// How many bytes of a tmpfs there are per inode: a file of one page each.
const BYTES_PER_INODE: u64 = 4096;

/// What differs from one session's container to another's.
pub(super) struct Profile<'a> {
    pub spec: &'a SandboxSpec,
    pub facts: &'a Facts,
    /// The OCI runtime, where another than the engine's default is wanted.
    pub runtime: Option<&'a str>,
    /// The agent's binary on this machine.
    pub agent: &'a Path,
    /// The folder on this machine that the agent makes its socket in.
    pub socket_dir: &'a Path,
    /// Where the agent listens, as JSON. The engine shows it to all its users, so it is all that is said here.
    pub listen: String,
    /// The filter of system calls, as the engine wants to be told it: [`seccomp_profile`] itself or a file with it.
    pub seccomp: String,
    pub labels: HashMap<String, String>,
}

impl Profile<'_> {
    /// The container to be made.
    pub fn container(self) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(image(&self.spec.kernel.name)),
            hostname: Some("cellkeep".into()),
            user: Some(format!("{SANDBOX_UID}:{SANDBOX_UID}")),
            working_dir: Some(WORKSPACE.into()),
            host_config: Some(self.host_config()),
            entrypoint: Some(vec![AGENT_PATH.into()]),
            cmd: Some(vec![self.listen]),
            // The agent is told the kernel's environment; the engine's own would be added to it.
            env: Some(Vec::new()),
            labels: Some(self.labels),
            tty: Some(false),
            open_stdin: Some(false),
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
            stop_timeout: Some(2),
            ..ContainerCreateBody::default()
        }
    }

    fn host_config(&self) -> HostConfig {
        let locks = HostConfig {
            network_mode: Some(network_mode(self.spec.network).into()),
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(self.security_options()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            ipc_mode: Some("private".into()),
            masked_paths: Some(strings(hidden_paths::MASKED)),
            readonly_paths: Some(strings(hidden_paths::READONLY)),
            mounts: Some(vec![bind(self.agent, AGENT_PATH, true), bind(self.socket_dir, SOCKET_DIR, false)]),
            tmpfs: Some(tmpfs(&self.spec.limits, self.facts.podman)),
            runtime: self.runtime.map(str::to_owned),
            // The agent is the first process and reaps.
            init: Some(false),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            // How it ended must be readable after its end.
            auto_remove: Some(false),
            // What a kernel prints goes through the agent; an engine's log would fill the disk.
            log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
            ..HostConfig::default()
        };
        self.with_limits(locks)
    }

    /// Adds the limits that the engine can hold; it refuses a container with others.
    fn with_limits(&self, config: HostConfig) -> HostConfig {
        let (limits, facts) = (&self.spec.limits, self.facts);
        let memory = signed(limits.memory_bytes());
        // More CPUs than there are would be refused, and are never used.
        let cpus = facts.cpu_count.map_or(limits.cpus, |count| limits.cpus.min(count));
        HostConfig {
            memory: facts.memory.then_some(memory),
            // Memory and swap together, so: no swap.
            memory_swap: (facts.memory && facts.swap).then_some(memory),
            // Version 2 knows no such thing, and engines refuse it there.
            memory_swappiness: (facts.memory && facts.cgroup_version == 1).then_some(0),
            nano_cpus: facts.cpu.then_some((cpus * 1e9) as i64),
            pids_limit: facts.pids.then_some(signed(limits.pids)),
            shm_size: Some(signed(SHM_BYTES)),
            oom_score_adj: Some(OOM_SCORE_ADJ),
            // Never nproc: that is counted per uid over all containers.
            ulimits: Some(vec![
                ulimit("nofile", 4096),
                ulimit("core", 0),
                ulimit("memlock", 64 << 10),
                ulimit("msgqueue", 0),
            ]),
            ..config
        }
    }

    fn security_options(&self) -> Vec<String> {
        // Without a word about AppArmor, an engine that has it applies its own profile, whose name differs.
        let mut options = vec!["no-new-privileges:true".to_owned()];
        if self.facts.seccomp {
            options.push(format!("seccomp={}", self.seccomp));
        }
        options
    }
}

/// The image of a kernel.
pub(super) fn image(kernel: &str) -> String {
    format!("cellkeep/{kernel}:latest")
}

fn network_mode(network: Network) -> &'static str {
    match network {
        Network::None => "none",
        Network::Open => "bridge",
    }
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn ulimit(name: &str, limit: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.into()), soft: Some(limit), hard: Some(limit) }
}

/// A mount and not a "bind" in the engine's short form: that splits at colons, and makes a folder of what is missing.
fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.into()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

/// The folders that can be written, all of them in memory, with an end to bytes and to inodes.
fn tmpfs(limits: &Limits, podman: bool) -> HashMap<String, String> {
    // Podman knows neither owners nor inodes, and would take the mode from the image: there the folders are open to all uids
    // of the container, which has but one, and inodes end with the session's memory.
    let all = if podman { "mode=1777,notmpcopyup" } else { "mode=1777" }.to_owned();
    let own = if podman { all.clone() } else { format!("uid={SANDBOX_UID},gid={SANDBOX_UID},mode=0700") };
    let inodes =
        |bytes: u64| if podman { String::new() } else { format!(",nr_inodes={}", (bytes / BYTES_PER_INODE).max(1024)) };
    let sized = |bytes: u64| format!("rw,nosuid,nodev,size={bytes}{}", inodes(bytes));
    // Programs may be run where people build and unpack them; "noexec" would be added if nothing were said.
    HashMap::from([
        ("/tmp".to_owned(), format!("{},exec,{all}", sized(limits.tmp_bytes()))),
        (WORKSPACE.to_owned(), format!("{},exec,{own}", sized(limits.disk_bytes()))),
        (RUNTIME_DIR.to_owned(), format!("{},noexec,{own}", sized(RUNTIME_DIR_BYTES))),
    ])
}

/// The policy's table of system calls in the form that engines read.
///
/// It is the outer of two filters: the agent closes the same table around the kernel, and there also what this form
/// cannot say (calls by number).
pub(super) fn seccomp_profile(architecture: &str) -> Value {
    let mut rules = vec![
        json!({"names": seccomp::DENIED, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}),
        json!({"names": seccomp::UNKNOWN, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}),
    ];
    if architecture == "x86_64" {
        rules.push(json!({"names": seccomp::DENIED_X86, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}));
    }
    let rule =
        |names: &[&str], args: Value| json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": args});
    let argument = |index: u32, op: &str, value: u64| json!({"index": index, "op": op, "value": value, "valueTwo": 0});
    for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| seccomp::CLONE_NEW & bit != 0 && *bit != CLONE_NEWTIME) {
        rules.push(rule(&["clone"], json!([{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": bit, "valueTwo": bit}])));
    }
    // Rules can only deny, and one argument can be compared but once in each: the gaps, then all above the last.
    let above = seccomp::SOCKET_FAMILIES.iter().max().map_or(0, |last| last + 1);
    let sockets = ["socket", "socketpair"];
    for family in (0..above).filter(|family| !seccomp::SOCKET_FAMILIES.contains(family)) {
        rules.push(rule(&sockets, json!([argument(0, "SCMP_CMP_EQ", family)])));
    }
    rules.push(rule(&sockets, json!([argument(0, "SCMP_CMP_GE", above)])));
    let netlink = [argument(0, "SCMP_CMP_EQ", seccomp::NETLINK), argument(2, "SCMP_CMP_NE", seccomp::NETLINK_ROUTE)];
    rules.push(rule(&sockets, json!(netlink)));
    // An architecture that is not named is answered with a kill. x32 is named so that the agent's filter can refuse it.
    let architectures = match architecture {
        "aarch64" => json!(["SCMP_ARCH_AARCH64"]),
        _ => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]),
    };
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rules})
}

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
/// Among the bits of `clone` that hold the signal at exit; only `clone3` and `unshare` take it for a flag.
const CLONE_NEWTIME: u64 = 0x80;

/// The isolation that a container with this profile has.
pub(super) fn isolation(facts: &Facts, runtime: Option<&str>, network: Network) -> Isolation {
    let limit = |name, enforced, instead| LimitState { name, enforced, instead, why_not: "the engine cannot limit it here" };
    // Of swap there is nothing to say where not even memory is held.
    let swap = (facts.memory && !facts.swap).then(|| limit("swap", false, "not held"));
    let optional = [(facts.user_namespace, "user namespace"), (facts.apparmor, "apparmor")];
    let optional: Vec<&str> = optional.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect();
    Isolation::new(level(runtime))
        .with(&["pid, ipc, uts, mount, network and cgroup namespaces", "read-only system", "no capabilities"])
        .with(&["seccomp", "no_new_privs"])
        .with(&optional)
        .with(&["disk", "output", "machine's files in /proc hidden"])
        .with_network(network, "the engine's bridge, and what the machine reaches from there")
        .with_limits([
            limit("memory", facts.memory, "watched by the agent every 0.1 s, not held"),
            limit("cpus", facts.cpu, "not held"),
            limit("pids", facts.pids, "not held"),
        ])
        .with_limits(swap)
}

fn level(runtime: Option<&str>) -> IsolationLevel {
    match runtime {
        Some(name) if name.contains("runsc") => IsolationLevel::Gvisor,
        Some(name) if name.contains("kata") => IsolationLevel::Vm,
        _ => IsolationLevel::Container,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;
    use crate::kernels;

    fn able() -> Facts {
        Facts {
            cgroup_version: 1,
            memory: true,
            swap: true,
            cpu: true,
            pids: true,
            seccomp: true,
            cpu_count: Some(2.0),
            ..Facts::default()
        }
    }

    fn spec(limits: Limits) -> SandboxSpec {
        SandboxSpec {
            session: SessionId::parse("s").unwrap(),
            kernel: kernels::find("python").unwrap().clone(),
            limits,
            network: Network::None,
            env: Vec::new(),
            orphan_seconds: None,
        }
    }

    fn container(facts: &Facts, limits: Limits) -> ContainerCreateBody {
        let profile = Profile {
            spec: &spec(limits),
            facts,
            runtime: None,
            agent: Path::new("/data/agent"),
            socket_dir: Path::new("/data/a:b/sock"),
            listen: "{}".into(),
            seccomp: "{}".into(),
            labels: HashMap::new(),
        };
        profile.container()
    }

    #[test]
    fn every_lock_is_closed() {
        let body = container(&able(), Limits::default());
        assert_eq!(body.user.as_deref(), Some("65532:65532"));
        assert_eq!(body.entrypoint, Some(vec![AGENT_PATH.to_owned()]));
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.cap_add, None);
        let security = host.security_opt.unwrap();
        assert!(security.contains(&"no-new-privileges:true".to_owned()));
        assert!(security.iter().any(|option| option.starts_with("seccomp=")));
        assert!(host.binds.is_none());
        let mounts: Vec<_> =
            host.mounts.unwrap().into_iter().map(|mount| (mount.target.unwrap(), mount.read_only.unwrap())).collect();
        assert_eq!(mounts, [(AGENT_PATH.to_owned(), true), (SOCKET_DIR.to_owned(), false)]);
    }

    #[test]
    fn limits_are_those_of_the_session() {
        let limits = Limits { cpus: 0.5, ..Limits::default() };
        let host = container(&able(), limits).host_config.unwrap();
        assert_eq!((host.memory, host.memory_swap), (Some(512 << 20), Some(512 << 20)));
        assert_eq!((host.nano_cpus, host.pids_limit), (Some(500_000_000), Some(256)));
        let tmpfs = host.tmpfs.unwrap();
        assert!(tmpfs["/work"].contains("size=268435456,nr_inodes=65536") && tmpfs["/work"].contains(",exec,"));
        assert!(tmpfs["/tmp"].contains("size=67108864") && tmpfs["/tmp"].contains("mode=1777"));
    }

    #[test]
    fn an_engine_is_not_asked_for_what_it_refuses() {
        let host = container(&able(), Limits { cpus: 64.0, ..Limits::default() }).host_config.unwrap();
        assert_eq!(host.nano_cpus, Some(2_000_000_000));
        let weak = Facts { cgroup_version: 2, memory: true, ..Facts::default() };
        let host = container(&weak, Limits::default()).host_config.unwrap();
        assert_eq!((host.memory_swap, host.memory_swappiness, host.nano_cpus, host.pids_limit), (None, None, None, None));
        assert_eq!(host.security_opt.unwrap().len(), 1);
    }

    #[test]
    fn the_seccomp_profile_holds_the_whole_table() {
        let profile = seccomp_profile("x86_64");
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ALLOW");
        assert_eq!(profile["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]));
        let rules = profile["syscalls"].as_array().unwrap();
        let named =
            |name: &str| rules.iter().filter(|rule| rule["names"].as_array().unwrap().contains(&json!(name))).count();
        for call in seccomp::DENIED.iter().chain(seccomp::DENIED_X86).chain(seccomp::UNKNOWN) {
            assert_eq!(named(call), 1, "{call}");
        }
        assert_eq!(named("clone"), 7);
        let clone3 = rules.iter().find(|rule| rule["names"] == json!(["clone3"])).unwrap();
        assert_eq!(clone3["errnoRet"], 38);
        assert!(rules.iter().all(|rule| rule["action"] == "SCMP_ACT_ERRNO"), "never a kill");
        assert!(!seccomp_profile("aarch64").to_string().contains("iopl"));
    }

    #[test]
    fn socket_families_are_denied_but_for_a_few() {
        let profile = seccomp_profile("x86_64");
        let matches = |argument: &Value, arguments: [u64; 3]| {
            let given = arguments[argument["index"].as_u64().unwrap() as usize];
            let value = argument["value"].as_u64().unwrap();
            match argument["op"].as_str().unwrap() {
                "SCMP_CMP_EQ" => given == value,
                "SCMP_CMP_NE" => given != value,
                "SCMP_CMP_GE" => given >= value,
                other => panic!("{other}"),
            }
        };
        let denied = |family: u64, protocol: u64| {
            let rules = profile["syscalls"].as_array().unwrap().iter().filter(|rule| rule["names"][0] == "socket");
            rules.clone().any(|rule| rule["args"].as_array().unwrap().iter().all(|one| matches(one, [family, 2, protocol])))
        };
        for family in (0..64).chain([u64::MAX, 1 << 32]) {
            assert_eq!(denied(family, 0), !seccomp::SOCKET_FAMILIES.contains(&family), "{family}");
        }
        assert!(denied(seccomp::NETLINK, 9) && !denied(2, 6));
    }

    #[test]
    fn isolation_says_what_does_not_hold() {
        let isolation = super::isolation(&Facts { memory: true, ..Facts::default() }, Some("runsc"), Network::Open);
        assert_eq!(isolation.level, IsolationLevel::Gvisor);
        let not = isolation.not_enforced.join("\n");
        for name in ["network", "cpus", "pids", "swap"] {
            assert!(not.contains(name), "{name}");
        }
        assert!(super::isolation(&able(), None, Network::None).not_enforced.is_empty());
        assert_eq!(level(Some("kata-qemu")), IsolationLevel::Vm);
        assert_eq!(level(Some("crun")), IsolationLevel::Container);
    }
}

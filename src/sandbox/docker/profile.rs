//! The definition of a session's container with all restrictions and limits. Pure: nothing here calls the engine.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use serde_json::{Value, json};

use super::engine::EngineInfo;
use super::open_network;
use super::session_files::SessionFiles;
use crate::ids::SandboxId;
use crate::policy::seccomp::{self, Comparison, Condition};
use crate::policy::{DataMount, Isolation, IsolationLevel, LimitState, Limits, Network, hidden_paths};
use crate::sandbox::certificates::FOLDER as CERTIFICATES_FOLDER;
use crate::sandbox::environment::{
    AGENT_PATH, BYTES_PER_INODE, CONNECTION_DIR, CONNECTION_DIR_BYTES, PACKAGES, RUNTIME_DIR, RUNTIME_DIR_BYTES, SHM_BYTES,
    WORKSPACE,
};
use crate::sandbox::process::{NOT_STOPPED_WITHOUT_CGROUP, SOCKETS_UNCOUNTED};
use crate::sandbox::{SANDBOX_UID, SandboxSpec, sandbox_uid};

/// The mount point of the folder with the agent's socket.
pub(super) const SOCKET_DIR: &str = "/run/cellkeep/sock";
/// The file name of the agent's socket.
pub(super) const SOCKET_NAME: &str = "agent.sock";
/// Makes the OOM killer prefer kernels to agents, and agents to managers.
const OOM_SCORE_ADJ: i64 = 500;
/// Pseudo-terminals of one container; the machine has a few thousand.
const MAX_TERMINALS: u32 = 64;

/// The parameters of a session's container.
pub(super) struct Profile<'a> {
    pub spec: &'a SandboxSpec,
    pub info: &'a EngineInfo,
    /// The OCI runtime; `None` is the engine's default.
    pub runtime: Option<&'a str>,
    /// The session's own files on the host.
    pub own: &'a SessionFiles,
    /// The folder on the host in which the agent creates its socket.
    pub socket_dir: &'a Path,
    /// The agent's argument, JSON. All users of the engine can read it, so it contains nothing else.
    pub listen: String,
    /// [`seccomp_profile`] or the path of a file with it, as the engine requires.
    pub seccomp: String,
    pub labels: HashMap<String, String>,
}

impl Profile<'_> {
    /// The engine's request.
    pub fn container(self) -> ContainerCreateBody {
        ContainerCreateBody {
            image: self.spec.kernel.image(),
            hostname: Some("cellkeep".into()),
            user: Some(format!("{uid}:{uid}", uid = self.own.uid)),
            working_dir: Some(WORKSPACE.into()),
            host_config: Some(self.host_config()),
            entrypoint: Some(vec![AGENT_PATH.into()]),
            cmd: Some(vec![self.listen]),
            // The agent receives the kernel's environment in its configuration.
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
        let restricted = HostConfig {
            network_mode: Some(network_mode(self.spec.network, self.info.podman).into()),
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(self.security_options()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            ipc_mode: Some("private".into()),
            masked_paths: Some(strings(hidden_paths::MASKED)),
            readonly_paths: Some(strings(hidden_paths::READONLY)),
            mounts: Some(self.mounts()),
            tmpfs: Some(tmpfs(&self.spec.limits, self.own.uid, self.info.podman)),
            runtime: self.runtime.map(str::to_owned),
            // The agent is PID 1 and reaps.
            init: Some(false),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            // The exit status must be readable afterwards.
            auto_remove: Some(false),
            // Output goes through the agent; a log of the engine would fill the disk.
            log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
            ..HostConfig::default()
        };
        self.with_limits(restricted)
    }

    fn mounts(&self) -> Vec<Mount> {
        let [passwd, group] = &self.own.accounts;
        let mut mounts = vec![
            bind(&self.own.agent, AGENT_PATH, true),
            bind(passwd, "/etc/passwd", true),
            bind(group, "/etc/group", true),
            bind(self.socket_dir, SOCKET_DIR, false),
        ];
        if let Some(certificates) = &self.own.certificates {
            mounts.push(bind(certificates, CERTIFICATES_FOLDER, true));
        }
        mounts.extend(self.spec.mounts.iter().map(data));
        mounts.extend(self.spec.package_set.iter().map(|set| bind(&set.folder, PACKAGES, true)));
        if limits_terminals(self.info, self.runtime) {
            mounts.push(terminals());
        }
        mounts
    }

    /// Adds the limits that the engine supports; it refuses a container with others.
    fn with_limits(&self, config: HostConfig) -> HostConfig {
        let (limits, info) = (&self.spec.limits, self.info);
        let memory = signed(limits.memory_bytes());
        // Engines refuse more CPUs than the host has.
        let cpus = info.cpu_count.map_or(limits.cpus, |count| limits.cpus.min(count));
        HostConfig {
            memory: info.memory.then_some(memory),
            // The sum of memory and swap; equal to memory means no swap.
            memory_swap: (info.memory && info.swap).then_some(memory),
            // Does not exist in cgroups version 2, where engines refuse it.
            memory_swappiness: (info.memory && info.cgroup_version == 1).then_some(0),
            nano_cpus: info.cpu.then_some((cpus * 1e9) as i64),
            pids_limit: info.pids.then_some(signed(limits.pids + threads_of_runtime(self.runtime))),
            shm_size: Some(signed(SHM_BYTES)),
            oom_score_adj: Some(OOM_SCORE_ADJ),
            // Not nproc, which is counted per uid across all containers.
            ulimits: Some(vec![
                ulimit("nofile", 4096),
                ulimit("core", 0),
                ulimit("memlock", 64 << 10),
                ulimit("msgqueue", 0),
                ulimit("sigpending", 4096),
            ]),
            ..config
        }
    }

    fn security_options(&self) -> Vec<String> {
        // AppArmor is not mentioned: engines with AppArmor then apply their default profile, whose name differs.
        let mut options = vec!["no-new-privileges:true".to_owned()];
        if self.info.seccomp {
            options.push(format!("seccomp={}", self.seccomp));
        }
        options
    }
}

fn network_mode(network: Network, podman: bool) -> &'static str {
    match network {
        Network::None => "none",
        Network::Open if podman => "bridge",
        Network::Open => open_network::NAME,
    }
}

/// Whether we can change a container's routes and cgroups: as root, with an engine that does not remap uids.
pub(super) fn is_within_reach(info: &EngineInfo) -> bool {
    rustix::process::geteuid().is_root() && !info.user_namespace && !info.podman
}

/// What an open network reaches.
fn reach(info: &EngineInfo) -> &'static str {
    match is_within_reach(info) {
        true => {
            "the internet and the machine's networks, but not the machine itself, link-local addresses and other sessions"
        }
        false => "everything that the machine reaches, the machine's own services and link-local addresses included",
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

/// A mount object rather than a "bind" string, which splits at colons and creates missing folders.
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

/// A data mount, without what is mounted beneath it: older engines would leave that writable.
fn data(mount: &DataMount) -> Mount {
    let mut bound = bind(&mount.folder, &mount.path(), true);
    if let Some(options) = &mut bound.bind_options {
        options.non_recursive = Some(true);
    }
    bound
}

/// Threads of a runtime's own that count as the container's.
fn threads_of_runtime(runtime: Option<&str>) -> u64 {
    if level(runtime) == IsolationLevel::Gvisor { 128 } else { 0 }
}

/// The uid of a session's container. With a user namespace it is the same for all, since the namespace maps few.
pub(super) fn uid(info: &EngineInfo, sandbox: &SandboxId) -> u32 {
    if info.user_namespace { SANDBOX_UID } else { sandbox_uid(sandbox) }
}

/// Whether the memory of sockets needs a limit of its own, and we can set it. Cgroups version 2 count it as the container's
/// memory, and gVisor's sockets are in its own.
pub(super) fn limits_socket_memory(info: &EngineInfo, runtime: Option<&str>) -> bool {
    info.memory && info.cgroup_version == 1 && is_within_reach(info) && level(runtime) == IsolationLevel::Container
}

/// Whether the container's terminals can be limited. Other runtimes have terminals of their own.
fn limits_terminals(info: &EngineInfo, runtime: Option<&str>) -> bool {
    !info.podman && !info.user_namespace && level(runtime) == IsolationLevel::Container
}

/// Terminals of the container's own, limited: an anonymous volume, which is removed with the container.
fn terminals() -> Mount {
    let option = |name: &str, value: String| (name.to_owned(), value);
    let options = format!("newinstance,mode=620,ptmxmode=666,max={MAX_TERMINALS}");
    let options = [option("type", "devpts".into()), option("device", "devpts".into()), option("o", options)];
    let driver = MountVolumeOptionsDriverConfig { name: Some("local".into()), options: Some(options.into()) };
    Mount {
        typ: Some(MountType::VOLUME),
        target: Some("/dev/pts".into()),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            driver_config: Some(driver),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

/// The writable folders: tmpfs with limits of bytes and inodes.
fn tmpfs(limits: &Limits, uid: u32, podman: bool) -> HashMap<String, String> {
    // Podman supports neither owner nor inode options, and copies the mode from the image. There, the folders are writable
    // for all uids of the container, which has only one, and the session's memory limits the inodes.
    let all = if podman { "mode=1777,notmpcopyup" } else { "mode=1777" }.to_owned();
    let own = if podman { all.clone() } else { format!("uid={uid},gid={uid},mode=0700") };
    let inodes =
        |bytes: u64| if podman { String::new() } else { format!(",nr_inodes={}", (bytes / BYTES_PER_INODE).max(1024)) };
    let sized = |bytes: u64| format!("rw,nosuid,nodev,size={bytes}{}", inodes(bytes));
    // "exec" where people build and unpack programs; the default is "noexec".
    HashMap::from([
        ("/tmp".to_owned(), format!("{},exec,{all}", sized(limits.tmp_bytes()))),
        (WORKSPACE.to_owned(), format!("{},exec,{own}", sized(limits.disk_bytes()))),
        (RUNTIME_DIR.to_owned(), format!("{},noexec,{own}", sized(RUNTIME_DIR_BYTES))),
        (CONNECTION_DIR.to_owned(), format!("{},noexec,{own}", sized(CONNECTION_DIR_BYTES))),
    ])
}

/// The seccomp table in the engines' format.
///
/// It is the outer of two filters: the agent applies the same table to the kernel process, and rules that this format cannot
/// express (calls by number, and which protocols and personalities are allowed).
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
    for denied in seccomp::DENIED_ARGUMENTS {
        let conditions = denied.conditions.iter().map(|Condition(index, comparison)| match comparison {
            Comparison::Is(value) => argument(*index, "SCMP_CMP_EQ", *value),
            Comparison::IsNot(value) => argument(*index, "SCMP_CMP_NE", *value),
            Comparison::Has(bits) => json!({"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": bits, "valueTwo": bits}),
            Comparison::IsPointer => argument(*index, "SCMP_CMP_NE", 0),
        });
        let conditions: Vec<Value> = conditions.collect();
        rules.push(json!({
            "names": [denied.call], "action": "SCMP_ACT_ERRNO", "errnoRet": denied.errno, "args": conditions,
        }));
    }
    for protocol in seccomp::UNUSED_PROTOCOLS {
        rules.push(rule(&["socket"], json!([argument(2, "SCMP_CMP_EQ", *protocol)])));
    }
    // A rule can only deny and compare an argument once, hence one rule per gap, then one for everything above.
    let above = seccomp::SOCKET_FAMILIES.iter().max().map_or(0, |last| last + 1);
    let sockets = ["socket", "socketpair"];
    for family in (0..above).filter(|family| !seccomp::SOCKET_FAMILIES.contains(family)) {
        rules.push(rule(&sockets, json!([argument(0, "SCMP_CMP_EQ", family)])));
    }
    rules.push(rule(&sockets, json!([argument(0, "SCMP_CMP_GE", above)])));
    let netlink = [argument(0, "SCMP_CMP_EQ", seccomp::NETLINK), argument(2, "SCMP_CMP_NE", seccomp::NETLINK_ROUTE)];
    rules.push(rule(&sockets, json!(netlink)));
    // Calls of an architecture that is not listed kill the process. x32 is listed so that the agent's filter can refuse it
    // with an error.
    let architectures = match architecture {
        "aarch64" => json!(["SCMP_ARCH_AARCH64"]),
        _ => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]),
    };
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rules})
}

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
/// For `clone` this bit belongs to the exit signal; only `clone3` and `unshare` interpret it as a flag.
const CLONE_NEWTIME: u64 = 0x80;

/// The isolation report of a container with this profile.
pub(super) fn isolation(info: &EngineInfo, runtime: Option<&str>, network: Network) -> Isolation {
    let limit =
        |name, enforced, instead| LimitState { name, enforced, instead, why_not: "the engine does not support this limit" };
    // Swap is reported only if memory is limited.
    let swap = (info.memory && !info.swap).then(|| limit("swap", false, "not limited"));
    let optional = [(info.user_namespace, "user namespace"), (info.apparmor, "apparmor")];
    let optional: Vec<&str> = optional.into_iter().filter(|(active, _)| *active).map(|(_, name)| name).collect();
    let is_container = level(runtime) == IsolationLevel::Container;
    let sockets_uncounted = is_container && info.cgroup_version == 1 && !limits_socket_memory(info, runtime);
    let isolation = Isolation::new(level(runtime))
        .not_stopping(if sockets_uncounted { SOCKETS_UNCOUNTED } else { &[] })
        .not_stopping(if info.memory { &[] } else { NOT_STOPPED_WITHOUT_CGROUP });
    isolation
        .with(&["pid, ipc, uts, mount, network and cgroup namespaces", "read-only system", "no capabilities"])
        .with(&["seccomp", "no_new_privs"])
        .with(&optional)
        .with(&["disk", "output", "machine's files in /proc hidden", "no shared files"])
        .with_network(network, reach(info))
        .with_limits([
            limit("memory", info.memory, "checked by the agent every 0.1 s, not enforced"),
            limit("cpus", info.cpu, "not limited"),
            limit("pids", info.pids, "not limited"),
            limit(
                "terminals",
                limits_terminals(info, runtime) || level(runtime) > IsolationLevel::Container,
                "the machine's",
            ),
            limit(
                "a uid of its own",
                !info.user_namespace,
                "all containers have one uid, by which the system counts some resources",
            ),
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
    use crate::kernels;

    fn full_info() -> EngineInfo {
        EngineInfo {
            cgroup_version: 1,
            memory: true,
            swap: true,
            cpu: true,
            pids: true,
            seccomp: true,
            cpu_count: Some(2.0),
            ..EngineInfo::default()
        }
    }

    fn spec(limits: Limits) -> SandboxSpec {
        SandboxSpec {
            id: SandboxId::parse("s").unwrap(),
            session: None,
            kernel: kernels::find("python").unwrap().clone(),
            limits,
            network: Network::None,
            certificates: None,
            own_certificate: None,
            network_env: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            package_set: None,
            orphan_seconds: None,
        }
    }

    fn container(info: &EngineInfo, limits: Limits) -> ContainerCreateBody {
        let own = SessionFiles {
            certificates: None,
            agent: "/data/s/agent".into(),
            accounts: ["/data/s/passwd".into(), "/data/s/group".into()],
            uid: uid(info, &SandboxId::parse("abc").unwrap()),
        };
        let profile = Profile {
            spec: &spec(limits),
            info,
            runtime: None,
            own: &own,
            socket_dir: Path::new("/data/a:b/sock"),
            listen: "{}".into(),
            seccomp: "{}".into(),
            labels: HashMap::new(),
        };
        profile.container()
    }

    #[test]
    fn container_has_all_restrictions() {
        let body = container(&full_info(), Limits::default());
        assert_eq!(body.user.as_deref(), Some("1000002748:1000002748"));
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
            host.mounts.unwrap().into_iter().map(|mount| (mount.target.unwrap(), mount.read_only)).collect();
        let expected = [
            (AGENT_PATH, Some(true)),
            ("/etc/passwd", Some(true)),
            ("/etc/group", Some(true)),
            (SOCKET_DIR, Some(false)),
            ("/dev/pts", None),
        ];
        assert_eq!(mounts, expected.map(|(target, read_only)| (target.to_owned(), read_only)));
    }

    #[test]
    fn remapped_uid_is_the_same_for_all() {
        let info = EngineInfo { user_namespace: true, ..full_info() };
        assert_eq!(uid(&info, &SandboxId::parse("abc").unwrap()), SANDBOX_UID);
        assert!(!limits_terminals(&info, None));
    }

    #[test]
    fn session_limits_are_applied() {
        let limits = Limits { cpus: 0.5, ..Limits::default() };
        let host = container(&full_info(), limits).host_config.unwrap();
        assert_eq!((host.memory, host.memory_swap), (Some(512 << 20), Some(512 << 20)));
        assert_eq!((host.nano_cpus, host.pids_limit), (Some(500_000_000), Some(256)));
        let tmpfs = host.tmpfs.unwrap();
        assert!(tmpfs["/work"].contains("size=268435456,nr_inodes=65536") && tmpfs["/work"].contains(",exec,"));
        assert!(tmpfs["/tmp"].contains("size=67108864") && tmpfs["/tmp"].contains("mode=1777"));
    }

    #[test]
    fn unsupported_limits_are_left_out() {
        let host = container(&full_info(), Limits { cpus: 64.0, ..Limits::default() }).host_config.unwrap();
        assert_eq!(host.nano_cpus, Some(2_000_000_000));
        let weak = EngineInfo { cgroup_version: 2, memory: true, ..EngineInfo::default() };
        let host = container(&weak, Limits::default()).host_config.unwrap();
        assert_eq!((host.memory_swap, host.memory_swappiness, host.nano_cpus, host.pids_limit), (None, None, None, None));
        assert_eq!(host.security_opt.unwrap().len(), 1);
    }

    #[test]
    fn seccomp_profile_contains_whole_table() {
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
        let clone3 = rules.iter().find(|rule| rule["names"].as_array().unwrap().contains(&json!("clone3"))).unwrap();
        assert_eq!(clone3["errnoRet"], 38);
        assert!(rules.iter().all(|rule| rule["action"] == "SCMP_ACT_ERRNO"), "no rule kills");
        assert!(!seccomp_profile("aarch64").to_string().contains("iopl"));
    }

    #[test]
    fn only_allowed_socket_families_pass() {
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
    fn isolation_reports_what_is_not_enforced() {
        let isolation =
            super::isolation(&EngineInfo { memory: true, ..EngineInfo::default() }, Some("runsc"), Network::Open);
        assert_eq!(isolation.level, IsolationLevel::Gvisor);
        let not = isolation.not_enforced.join("\n");
        for name in ["network", "cpus", "pids", "swap"] {
            assert!(not.contains(name), "{name}");
        }
        assert!(super::isolation(&full_info(), None, Network::None).not_enforced.is_empty());
        assert_eq!(level(Some("kata-qemu")), IsolationLevel::Vm);
        assert_eq!(level(Some("crun")), IsolationLevel::Container);
    }
}

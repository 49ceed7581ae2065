//! The process sandbox: bubblewrap around processes of the host, without a daemon.
//!
//! ```text
//! create: record on disk ─▶ cgroup with limits ─▶ listening socket ─▶ fork: into the cgroup, own uid ─▶ bwrap ─▶ agent ─▶ configuration
//! ```
//!
//! The agent inherits the listening socket, so of the host only the agent's binary, the kernel's environment and system
//! folders are visible inside. The agent outlives its manager. One SIGKILL to the first process of the PID namespace ends
//! the sandbox.

mod bwrap;
mod cgroup;
mod open_network;
mod private_mounts;
mod start;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use rustix::pipe::PipeFlags;
use tokio::net::UnixStream;

use self::bwrap::Launch;
use self::cgroup::Cgroup;
use self::private_mounts::PrivateMounts;
use self::start::StartedSandbox;
use super::{
    Liveness, ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats,
    agent_binary, environment, records, sandbox_uid,
};
use crate::agent_protocol::{AgentConfig, Listen};
use crate::config::Paths;
use crate::ids::SandboxId;
use crate::kernels::{self, KernelSpec};
use crate::policy::{Isolation, IsolationLevel, LimitState, Limits, Network};

pub use bwrap::{Probe, probe};
pub use cgroup::{Controllers, controllers};
pub use open_network::{HOW_TO_INSTALL, OPEN_NETWORK, program as slirp4netns};

pub(super) use cgroup::remove_empty as remove_empty_cgroups;

const KIND: SandboxKind = SandboxKind::Process;
/// Timeout for the end of a killed PID namespace.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// Creates process sandboxes, with their records in a data folder.
pub struct ProcessSandbox {
    paths: Paths,
}

impl ProcessSandbox {
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    /// Starts with all protection, or with what this machine permits.
    async fn start(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        check_folders(spec)?;
        let mut how = Protection { masked: true, own_mounts: OWN_MOUNTS_REFUSED.get().is_none() };
        loop {
            let (reason, fewer) = match self.start_with(spec, how).await {
                Err(SandboxError::Start { reason, .. })
                    if how.own_mounts && reason.starts_with(start::NO_PRIVATE_MOUNTS) =>
                {
                    // Not the machine's refusal, if a folder has gone meanwhile.
                    check_folders(spec)?;
                    let _ = OWN_MOUNTS_REFUSED.set(reason.clone());
                    (reason, Protection { own_mounts: false, ..how })
                }
                Err(SandboxError::Start { reason, .. }) if how.masked && bwrap::cannot_mask(&reason) => {
                    (reason, Protection { masked: false, ..how })
                }
                result => return result,
            };
            tracing::debug!(%reason, "this machine does not permit all protection, starting with less");
            match self.remove_failed(&spec.id).await {
                Ok(()) => how = fewer,
                remains => return Err(SandboxError::Start { kind: KIND, reason }.with_remains(remains)),
            }
        }
    }

    async fn start_with(&self, spec: &SandboxSpec, how: Protection) -> Result<SandboxRecord, SandboxError> {
        // System calls take microseconds; waiting for bubblewrap takes a few milliseconds.
        let (record, started, config) = tokio::task::block_in_place(|| self.spawn(spec, how))?;
        started.send_config(&record.socket, &config).await?;
        Ok(record)
    }

    fn spawn(
        &self,
        spec: &SandboxSpec,
        how: Protection,
    ) -> Result<(SandboxRecord, StartedSandbox, AgentConfig), SandboxError> {
        let folder = records::create_folder(&self.paths, &spec.id)?;
        let agent_binary = agent_binary::ensure_written(&self.paths.agent())
            .map_err(SandboxError::io("cannot write the agent's binary"))?;
        let controllers = cgroup::controllers();
        let mut record = SandboxRecord {
            id: spec.id.clone(),
            kind: KIND,
            kernel: spec.kernel.name.clone(),
            socket: folder.join(records::SOCKETS[0]),
            isolation: isolation(&controllers, spec.network, how),
            owner: ProcessStamp::own(),
            keep: spec.orphan_seconds.is_none(),
            agent_binary,
            agent: None,
            controllers: Some(controllers.clone()),
            container: None,
            package_set: spec.package_set.as_ref().map(|set| set.id.clone()),
        };
        records::write(&folder, &record)?;
        let cgroup = Cgroup::create(&controllers, &spec.id, &spec.limits)
            .map_err(SandboxError::io("cannot create the sandbox's cgroup"))?;
        let (started, config) = self.launch(spec, &record, &cgroup, how)?;
        record.agent = Some(started.agent);
        match records::write(&folder, &record) {
            Ok(()) => Ok((record, started, config)),
            // Without its record, the sandbox could not be found again.
            Err(error) => {
                started.kill();
                Err(error)
            }
        }
    }

    fn launch(
        &self,
        spec: &SandboxSpec,
        record: &SandboxRecord,
        cgroup: &Cgroup,
        how: Protection,
    ) -> Result<(StartedSandbox, AgentConfig), SandboxError> {
        let environment = kernels::environment(&self.paths, &spec.kernel).map_err(|error| SandboxError::NoKernel {
            kernel: spec.kernel.name.clone(),
            kind: KIND,
            reason: error.to_string(),
            remedy: how_to_install(&spec.kernel),
        })?;
        let SandboxRecord { socket, agent_binary, .. } = record;
        let listener = UnixListener::bind(socket)
            .map_err(SandboxError::io(format!("cannot listen on {} (a shorter data folder may help)", socket.display())))?;
        let listener = OwnedFd::from(listener);
        let listen = Listen::Fd(listener.as_raw_fd());
        let uid = rustix::process::geteuid().is_root().then(|| sandbox_uid(&spec.id));
        let mounts = match how.own_mounts {
            true => Some(self.mounts(spec, &environment, uid)?),
            false => None,
        };
        let Protection { masked, .. } = how;
        // The sandbox holds one end as long as it exists.
        let (exit, alive) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| SandboxError::io("cannot create a pipe")(error.into()))?;
        let launch = Launch {
            spec,
            environment: &environment,
            agent: agent_binary,
            cgroup,
            listen: &listen,
            alive,
            masked,
            mounts,
            uid,
        };
        let started = StartedSandbox::spawn(launch, listener)?;
        if spec.network == Network::Open
            && let Err(error) = open_network::connect(started.agent.pid, exit, cgroup)
        {
            started.kill();
            let reason = format!("no network: {error}");
            return Err(SandboxError::Unavailable { kind: KIND, reason, remedy: HOW_TO_INSTALL.into() });
        }
        Ok((started, environment::agent_config(spec, listen, cgroup.limits_memory(), !cgroup.limits_processes())))
    }
}

/// What protects a sandbox beyond bubblewrap's namespaces, where the machine permits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protection {
    /// The files in `/proc` that describe the machine are hidden.
    masked: bool,
    /// Folders, devices and terminals are mounts of its own.
    own_mounts: bool,
}

/// Why this machine refuses file systems of a sandbox's own, once it has.
static OWN_MOUNTS_REFUSED: OnceLock<String> = OnceLock::new();

/// Why this machine refuses file systems of a sandbox's own, if it does: tries them, in 2 ms.
pub fn own_mounts_refused(paths: &Paths) -> Option<String> {
    let uid = rustix::process::geteuid().is_root().then_some(super::FIRST_UID);
    let folder = paths.agent().join("mounts");
    let trees = bwrap::system_trees(Network::None);
    let mounts = PrivateMounts::prepare(&folder, trees, &Limits::MIN, uid);
    mounts.and_then(PrivateMounts::try_out).err().map(|error| error.to_string())
}

/// Checks that the folders exist that a sandbox shows.
fn check_folders(spec: &SandboxSpec) -> Result<(), SandboxError> {
    super::check_mounts(KIND, spec)?;
    match spec.kernel.folders().iter().find(|folder| !folder.is_dir()) {
        Some(missing) => Err(SandboxError::NoKernel {
            kernel: spec.kernel.name.clone(),
            kind: KIND,
            reason: format!("its folder {} is not there", missing.display()),
            remedy: format!("add the kernel again, or run: cellkeep kernels remove {}", spec.kernel.name),
        }),
        None => Ok(()),
    }
}

/// The command that installs a kernel for this sandbox, or for docker if the kernel exists only as an image.
pub fn how_to_install(kernel: &KernelSpec) -> String {
    if !kernel.has_environment() && kernel.is_own() {
        return "it has only an image: use --sandbox docker".to_owned();
    }
    if !kernel.has_environment() {
        return format!("run: cellkeep images build {}, and use --sandbox docker", kernel.name);
    }
    format!("run: cellkeep kernels install {}", kernel.name)
}

fn unavailable(error: &io::Error) -> SandboxError {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let reason = if missing { "bubblewrap (bwrap) is not installed".to_owned() } else { error.to_string() };
    SandboxError::Unavailable {
        kind: KIND,
        reason,
        remedy: "install it: apt-get install bubblewrap; then run: cellkeep doctor".into(),
    }
}

/// What gets past the agent's check of the memory, where no cgroup limits it.
pub const NOT_STOPPED_WITHOUT_CGROUP: &[&str] =
    &["memory used up within 0.1 s, and small structures of the system (watches of epoll, locks)"];

/// Where a memory cgroup does not count sockets.
pub(super) const SOCKETS_UNCOUNTED: &[&str] = &["memory of sockets, which is not counted here"];

/// What an ordinary user cannot prevent: its sandboxes share its uid and the machine's device files.
pub const NOT_STOPPED_AS_USER: &[&str] = &[
    "resources that the system counts by user (pipes, signals, watches), which all sessions share",
    "locks on device files and files of /proc, which other sessions see",
];
/// Where the score for the OOM killer can be lowered again.
const LOW_SCORE: &[&str] = &["a score for the OOM killer as low as that of other programs"];

/// What sandboxes without file systems of their own share.
pub const SHARED: &str = "locks on files of the system and the kernel reach other sessions and the machine's programs, and \
                          pseudo-terminals are the machine's, since own mounts are refused here";

fn isolation(controllers: &Controllers, network: Network, how: Protection) -> Isolation {
    let why_not = controllers.why_not.as_deref().unwrap_or("no such cgroup controller");
    let limit = |name, enforced, instead| LimitState { name, enforced, instead, why_not };
    let isolation = Isolation::new(IsolationLevel::Process)
        .with(&["user, pid, ipc, uts, mount and cgroup namespaces", "read-only system", "seccomp", "no_new_privs"])
        .with(&["disk", "output"])
        .with_network(network, OPEN_NETWORK)
        .with_limits([
            limit("memory", controllers.memory, "checked by the agent every 0.1 s, not enforced"),
            limit("cpus", controllers.cpu, "not limited"),
            limit("pids", controllers.pids, "limited per user namespace by RLIMIT_NPROC"),
        ]);
    let isolation = match how.masked {
        true => isolation.with(&["machine's files in /proc hidden"]),
        false => isolation.without("/proc", "describes the machine, since hiding parts of it is forbidden here"),
    };
    let isolation = match how.own_mounts {
        true => isolation.with(&["no shared files", "terminals"]),
        false => isolation.without("shared files and terminals", SHARED),
    };
    let isolation = isolation.not_stopping(if controllers.memory { &[] } else { NOT_STOPPED_WITHOUT_CGROUP });
    let sockets_uncounted = controllers.memory && !Cgroup::limits_sockets(controllers);
    let isolation = isolation.not_stopping(if sockets_uncounted { SOCKETS_UNCOUNTED } else { &[] });
    let isolation = isolation.not_stopping(if rustix::process::geteuid().is_root() { &[] } else { NOT_STOPPED_AS_USER });
    isolation.not_stopping(if start::bounds_score() { &[] } else { LOW_SCORE })
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn kind(&self) -> SandboxKind {
        KIND
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        match self.start(spec).await {
            Err(error) => Err(error.with_remains(self.remove_failed(&spec.id).await)),
            created => created,
        }
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        super::connect_to_agent(&record.socket).await.map_err(SandboxError::io("cannot reach the agent"))
    }

    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError> {
        Ok(match record.agent.map(ProcessStamp::liveness) {
            Some(Liveness::Running) => SandboxState::Running,
            Some(Liveness::Unknown) if records::has_listener(&record.socket) => SandboxState::Running,
            Some(_) => SandboxState::Ended { why: "the agent's process has ended".into() },
            None => SandboxState::Ended { why: "the agent was never started".into() },
        })
    }

    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
        Cgroup::stats(&record.controllers.clone().unwrap_or_default(), &record.id)
            .map_err(SandboxError::io("cannot read the sandbox's cgroup"))
    }

    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        let end = tokio::time::Instant::now() + END_TIMEOUT;
        let controllers = record.controllers.clone().unwrap_or_default();
        Cgroup::unthrottle(&controllers, &record.id);
        if let Some(agent) = record.agent {
            // Killing the first process of a PID namespace kills all others.
            agent.kill();
            while agent.is_alive() && tokio::time::Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // A cgroup can be removed only once its last process is reaped, shortly after its end.
        Cgroup::kill(&controllers, &record.id);
        while let Err(error) = Cgroup::remove(&controllers, &record.id) {
            if tokio::time::Instant::now() > end {
                return Err(SandboxError::io("cannot remove the sandbox's cgroup")(error));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            // Processes may have forked meanwhile.
            Cgroup::kill(&controllers, &record.id);
        }
        records::remove_folder(&self.paths, &record.id)
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        records::list(&self.paths, KIND)
    }
}

impl ProcessSandbox {
    fn mounts(&self, spec: &SandboxSpec, environment: &Path, uid: Option<u32>) -> Result<PrivateMounts, SandboxError> {
        let (folder, trees) = (self.paths.agent().join("mounts"), bwrap::trees(environment, spec));
        PrivateMounts::prepare(&folder, trees, &spec.limits, uid)
            .and_then(|mounts| mounts.with_shared(spec.shared_folders().iter().map(|(folder, _)| *folder)))
            .map_err(|error| SandboxError::Start { kind: KIND, reason: format!("{}: {error}", start::NO_PRIVATE_MOUNTS) })
    }

    /// Removes the remains of a sandbox that did not start, by its record.
    async fn remove_failed(&self, sandbox: &SandboxId) -> Result<(), SandboxError> {
        match records::read(&records::folder(&self.paths, sandbox)) {
            Some(record) => self.destroy(&record).await,
            None => records::remove_folder(&self.paths, sandbox),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_reports_what_is_not_enforced() {
        const NOTHING: Protection = Protection { masked: false, own_mounts: false };
        let nothing_enforced = Controllers { why_not: Some("no cgroups".to_owned()), ..Controllers::default() };
        let weak = isolation(&nothing_enforced, Network::Open, NOTHING).not_enforced.join("\n");
        for expected in
            ["network: open", "/proc:", "memory: checked", "cpus: not limited (no cgroups)", "pids:", "shared files"]
        {
            assert!(weak.contains(expected), "{expected}: {weak}");
        }
        let all = Controllers { version: 2, memory: true, cpu: true, pids: true, cpuacct: true, why_not: None };
        let everything = Protection { masked: true, own_mounts: true };
        let strong = isolation(&all, Network::None, everything);
        assert!(strong.not_enforced.is_empty() && strong.not_stopped.join("\n").contains("the machine's kernel"));
        let weak = isolation(&nothing_enforced, Network::None, NOTHING).not_stopped.join("\n");
        assert!(weak.contains("epoll"), "{weak}");
    }
}

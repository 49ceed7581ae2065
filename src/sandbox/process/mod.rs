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
mod start;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;

use self::bwrap::Launch;
use self::cgroup::Cgroup;
use self::start::StartedSandbox;
use super::{
    Liveness, ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats,
    agent_binary, environment, records,
};
use crate::agent_protocol::{AgentConfig, Listen};
use crate::config::Paths;
use crate::ids::SessionId;
use crate::kernels::{self, KernelSpec};
use crate::policy::{Isolation, IsolationLevel, LimitState, Network};

pub use bwrap::{Probe, probe};
pub use cgroup::{Controllers, controllers};

pub(super) use cgroup::remove_empty as remove_empty_cgroups;

const KIND: SandboxKind = SandboxKind::Process;
/// Timeout for the end of a killed PID namespace.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// As root, every sandbox runs under a uid of its own, from this one on: an escaped process has no rights, and cannot access
/// other sandboxes.
const FIRST_UID: u32 = 1_000_000_000;

/// Creates process sandboxes, with their records in a data folder.
pub struct ProcessSandbox {
    paths: Paths,
}

impl ProcessSandbox {
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        match self.start_as(spec, true).await {
            Err(SandboxError::Start { kind, reason }) if bwrap::cannot_mask(&reason) => {
                tracing::debug!(%reason, "cannot hide parts of /proc, starting without");
                match self.remove_failed(&spec.session).await {
                    Ok(()) => self.start_as(spec, false).await,
                    remains => Err(SandboxError::Start { kind, reason }.with_remains(remains)),
                }
            }
            result => result,
        }
    }

    async fn start_as(&self, spec: &SandboxSpec, masked: bool) -> Result<SandboxRecord, SandboxError> {
        // System calls take microseconds; waiting for bubblewrap takes a few milliseconds.
        let (record, started, config) = tokio::task::block_in_place(|| self.spawn(spec, masked))?;
        started.send_config(&record.socket, &config).await?;
        Ok(record)
    }

    fn spawn(&self, spec: &SandboxSpec, masked: bool) -> Result<(SandboxRecord, StartedSandbox, AgentConfig), SandboxError> {
        let folder = records::create_folder(&self.paths, &spec.session)?;
        let agent_binary = agent_binary::ensure_written(&self.paths.agent())
            .map_err(SandboxError::io("cannot write the agent's binary"))?;
        let controllers = cgroup::controllers();
        let mut record = SandboxRecord {
            session: spec.session.clone(),
            kind: KIND,
            kernel: spec.kernel.name.clone(),
            socket: folder.join(records::SOCKETS[0]),
            isolation: isolation(&controllers, spec.network, masked),
            owner: ProcessStamp::own(),
            keep: spec.orphan_seconds.is_none(),
            agent_binary,
            agent: None,
            controllers: Some(controllers.clone()),
            container: None,
        };
        records::write(&folder, &record)?;
        let cgroup = Cgroup::create(&controllers, &spec.session, &spec.limits)
            .map_err(SandboxError::io("cannot create the session's cgroup"))?;
        let (started, config) = self.launch(spec, &record, &cgroup, masked)?;
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
        masked: bool,
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
        let launch = Launch { spec, environment: &environment, agent: agent_binary, cgroup, listen: &listen, masked };
        let uid = rustix::process::geteuid().is_root().then(|| session_uid(&spec.session));
        let started = StartedSandbox::spawn(&launch, listener, uid)?;
        Ok((started, environment::agent_config(spec, listen, cgroup.limits_memory(), !cgroup.limits_processes())))
    }
}

/// The command that installs a kernel for this sandbox, or for docker if the kernel exists only as an image.
pub fn how_to_install(kernel: &KernelSpec) -> String {
    if !kernel.has_environment() {
        return format!("run: cellkeep images build {}, and use --sandbox docker", kernel.name);
    }
    format!("run: cellkeep kernels install {}", kernel.name)
}

/// A uid derived from the session's random id. There are 2^28, so that two live sessions practically never share one.
fn session_uid(session: &SessionId) -> u32 {
    let hex: String = session.as_str().chars().filter(char::is_ascii_hexdigit).take(7).collect();
    FIRST_UID + u32::from_str_radix(&hex, 16).unwrap_or(0)
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

/// What a session with an open network reaches: it has no network namespace.
pub const OPEN_NETWORK: &str =
    "the machine's own network, including its localhost and abstract sockets; docker has a bridge instead";

fn isolation(controllers: &Controllers, network: Network, masked: bool) -> Isolation {
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
    match masked {
        true => isolation.with(&["machine's files in /proc hidden"]),
        false => isolation.without("/proc", "describes the machine, since hiding parts of it is forbidden here"),
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn kind(&self) -> SandboxKind {
        KIND
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        match self.start(spec).await {
            Err(error) => Err(error.with_remains(self.remove_failed(&spec.session).await)),
            created => created,
        }
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        UnixStream::connect(&record.socket).await.map_err(SandboxError::io("cannot reach the agent"))
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
        Cgroup::stats(&record.controllers.clone().unwrap_or_default(), &record.session)
            .map_err(SandboxError::io("cannot read the session's cgroup"))
    }

    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        let end = tokio::time::Instant::now() + END_TIMEOUT;
        if let Some(agent) = record.agent {
            // Killing the first process of a PID namespace kills all others.
            agent.kill();
            while agent.is_alive() && tokio::time::Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // A cgroup can be removed only once its last process is reaped, shortly after its end.
        let controllers = record.controllers.clone().unwrap_or_default();
        Cgroup::kill(&controllers, &record.session);
        while let Err(error) = Cgroup::remove(&controllers, &record.session) {
            if tokio::time::Instant::now() > end {
                return Err(SandboxError::io("cannot remove the session's cgroup")(error));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            // Processes may have forked meanwhile.
            Cgroup::kill(&controllers, &record.session);
        }
        records::remove_folder(&self.paths, &record.session)
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        records::list(&self.paths, KIND)
    }
}

impl ProcessSandbox {
    /// Removes the remains of a sandbox that did not start, by its record.
    async fn remove_failed(&self, session: &SessionId) -> Result<(), SandboxError> {
        match records::read(&records::folder(&self.paths, session)) {
            Some(record) => self.destroy(&record).await,
            None => records::remove_folder(&self.paths, session),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_reports_what_is_not_enforced() {
        let nothing_enforced = Controllers { why_not: Some("no cgroups".to_owned()), ..Controllers::default() };
        let weak = isolation(&nothing_enforced, Network::Open, false).not_enforced.join("\n");
        for expected in ["the machine's own network", "/proc:", "memory: checked", "cpus: not limited (no cgroups)", "pids:"]
        {
            assert!(weak.contains(expected), "{expected}: {weak}");
        }
        let all = Controllers { version: 2, memory: true, cpu: true, pids: true, cpuacct: true, why_not: None };
        assert!(isolation(&all, Network::None, true).not_enforced.is_empty());
    }
}

//! The sandbox that needs no daemon: bubblewrap around a process of this machine.
//!
//! ```text
//! create: record on disk ─▶ cgroup with limits ─▶ listening socket ─▶ fork: into the cgroup, own uid ─▶ bwrap ─▶ agent ─▶ configuration
//! ```
//!
//! The agent inherits the listening socket, so no path of the host but the agent's binary and the kernel's environment is
//! visible inside. It outlives its manager. Ending it is one SIGKILL to the PID namespace's first process.

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
use self::start::Started;
use super::{
    ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats, Sight,
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
/// How long a killed namespace may take to be gone.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// As root, every sandbox runs under a uid of its own from here on, so that an escape is nobody, and a different nobody.
const FIRST_UID: u32 = 1_000_000_000;

/// Makes process sandboxes with their records beneath a data folder.
pub struct ProcessSandbox {
    paths: Paths,
}

impl ProcessSandbox {
    /// Sandboxes of this data folder.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        match self.start_as(spec, true).await {
            Err(SandboxError::Start { kind, reason }) if bwrap::refused_masks(&reason) => {
                tracing::debug!(%reason, "starting again without hiding parts of /proc");
                match self.remove_failed(&spec.session).await {
                    Ok(()) => self.start_as(spec, false).await,
                    remains => Err(SandboxError::Start { kind, reason }.with_remains(remains)),
                }
            }
            result => result,
        }
    }

    async fn start_as(&self, spec: &SandboxSpec, masked: bool) -> Result<SandboxRecord, SandboxError> {
        // Mostly system calls of microseconds; the wait for bubblewrap is a few milliseconds.
        let (record, started, config) = tokio::task::block_in_place(|| self.spawn(spec, masked))?;
        started.hand_over(&record.socket, &config).await?;
        Ok(record)
    }

    fn spawn(&self, spec: &SandboxSpec, masked: bool) -> Result<(SandboxRecord, Started, AgentConfig), SandboxError> {
        let folder = records::make_folder(&self.paths, &spec.session)?;
        let agent_binary =
            agent_binary::written_out(&self.paths.agent()).map_err(SandboxError::io("cannot write out the agent"))?;
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
            .map_err(SandboxError::io("cannot make the session's cgroup"))?;
        let (started, config) = self.launch(spec, &record, &cgroup, masked)?;
        record.agent = Some(started.agent);
        match records::write(&folder, &record) {
            Ok(()) => Ok((record, started, config)),
            // Nobody could find it again.
            Err(error) => {
                started.abandon();
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
    ) -> Result<(Started, AgentConfig), SandboxError> {
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
        let started = Started::spawn(&launch, listener, uid)?;
        Ok((started, environment::agent_config(spec, listen, cgroup.limits_memory(), !cgroup.limits_processes())))
    }
}

/// The command that gets a kernel for this sandbox, or for another where there is none for this.
pub fn how_to_install(kernel: &KernelSpec) -> String {
    if !kernel.has_environment() {
        return format!("run: cellkeep images build {}, and use --sandbox docker", kernel.name);
    }
    format!("run: cellkeep kernels install {}", kernel.name)
}

/// A uid derived from the session's random id: 2^28 of them, so that two living sessions practically never share one.
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

/// What a session with an open network reaches: there is no namespace around it then.
pub const OPEN_NETWORK: &str = "the machine's own network, with all that listens on its localhost and on its abstract sockets; docker has a bridge instead";

fn isolation(controllers: &Controllers, network: Network, masked: bool) -> Isolation {
    let why_not = controllers.why_not.as_deref().unwrap_or("no such cgroup controller");
    let limit = |name, enforced, instead| LimitState { name, enforced, instead, why_not };
    let isolation = Isolation::new(IsolationLevel::Process)
        .with(&["user, pid, ipc, uts, mount and cgroup namespaces", "read-only system", "seccomp", "no_new_privs"])
        .with(&["disk", "output"])
        .with_network(network, OPEN_NETWORK)
        .with_limits([
            limit("memory", controllers.memory, "watched by the agent every 0.1 s, not held"),
            limit("cpus", controllers.cpu, "not held"),
            limit("pids", controllers.pids, "held per user namespace by RLIMIT_NPROC"),
        ]);
    match masked {
        true => isolation.with(&["machine's files in /proc hidden"]),
        false => isolation.without("/proc", "tells about the machine, as hiding parts of it is forbidden here"),
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
            made => made,
        }
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        UnixStream::connect(&record.socket).await.map_err(SandboxError::io("cannot reach the agent"))
    }

    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError> {
        Ok(match record.agent.map(ProcessStamp::sight) {
            Some(Sight::Running) => SandboxState::Running,
            Some(Sight::OutOfSight) if records::somebody_listens(&record.socket) => SandboxState::Running,
            Some(_) => SandboxState::Ended { why: "the agent's process is gone".into() },
            None => SandboxState::Ended { why: "it was never started".into() },
        })
    }

    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
        Cgroup::stats(&record.controllers.clone().unwrap_or_default(), &record.session)
            .map_err(SandboxError::io("cannot read the session's cgroup"))
    }

    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        let end = tokio::time::Instant::now() + END_DEADLINE;
        if let Some(agent) = record.agent {
            // The first process of a PID namespace takes all others with it.
            agent.kill();
            while agent.is_alive() && tokio::time::Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // A cgroup can be removed only when its last process has been reaped, which happens a moment after its end.
        let controllers = record.controllers.clone().unwrap_or_default();
        Cgroup::kill(&controllers, &record.session);
        while let Err(error) = Cgroup::remove(&controllers, &record.session) {
            if tokio::time::Instant::now() > end {
                return Err(SandboxError::io("cannot remove the session's cgroup")(error));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            // It may have been forking.
            Cgroup::kill(&controllers, &record.session);
        }
        records::remove_folder(&self.paths, &record.session)
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        records::list(&self.paths, KIND)
    }
}

impl ProcessSandbox {
    /// Removes what there is of a sandbox that did not start: its record, written before all else, tells.
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
    fn isolation_says_what_an_open_network_is_and_what_is_not_held() {
        let nothing_held = Controllers { why_not: Some("no cgroups".to_owned()), ..Controllers::default() };
        let weak = isolation(&nothing_held, Network::Open, false).not_enforced.join("\n");
        for told in ["the machine's own network", "/proc:", "memory: watched", "cpus: not held (no cgroups)", "pids:"] {
            assert!(weak.contains(told), "{told}: {weak}");
        }
        let all = Controllers { version: 2, memory: true, cpu: true, pids: true, cpuacct: true, why_not: None };
        assert!(isolation(&all, Network::None, true).not_enforced.is_empty());
    }
}

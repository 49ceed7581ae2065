//! The sandbox that needs no daemon: bubblewrap around a process of this machine.
//!
//! ```text
//! create: record on disk ─▶ cgroup with limits ─▶ listening socket ─▶ fork: into the cgroup, own uid ─▶ bwrap ─▶ agent
//! ```
//!
//! The agent inherits the listening socket, so no path of the host but the agent's binary and the kernel's environment is
//! visible inside. It outlives its manager. Ending it is one SIGKILL to the PID namespace's first process.

mod bwrap;
mod cgroup;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;

use self::bwrap::Launch;
use self::cgroup::Cgroup;
use super::{
    ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats, agent_binary,
    environment, records,
};
use crate::agent_protocol::Listen;
use crate::config::Paths;
use crate::ids::SessionId;
use crate::kernels;
use crate::policy::{Isolation, IsolationLevel, Network};

pub use bwrap::{Probe, probe};
pub use cgroup::{Controllers, controllers};

const KIND: SandboxKind = SandboxKind::Process;
/// How long bubblewrap may take to report the agent's process; it takes 4 ms on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(30);
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

    fn start(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        let folder = records::make_folder(&self.paths, &spec.session)?;
        let controllers = cgroup::controllers();
        let mut record = SandboxRecord {
            session: spec.session.clone(),
            kind: KIND,
            kernel: spec.kernel.name.clone(),
            socket: folder.join("agent.sock"),
            isolation: isolation(&controllers, spec.network),
            owner: ProcessStamp::own(),
            keep: spec.orphan_seconds.is_none(),
            agent: None,
            container: None,
        };
        records::write(&folder, &record)?;
        let cgroup = Cgroup::create(&controllers, &spec.session, &spec.limits)
            .map_err(SandboxError::io("cannot make the session's cgroup"))?;
        record.agent = Some(self.launch(spec, &record.socket, &cgroup)?);
        records::write(&folder, &record)?;
        Ok(record)
    }

    fn launch(&self, spec: &SandboxSpec, socket: &Path, cgroup: &Cgroup) -> Result<ProcessStamp, SandboxError> {
        let environment = kernels::environment(&self.paths, &spec.kernel).map_err(|error| SandboxError::NoKernel {
            kernel: spec.kernel.name.clone(),
            kind: KIND,
            reason: error.to_string(),
            remedy: format!("run: cellkeep kernels install {}", spec.kernel.name),
        })?;
        let agent =
            agent_binary::written_out(&self.paths.agent()).map_err(SandboxError::io("cannot write out the agent"))?;
        let listener = UnixListener::bind(socket)
            .map_err(SandboxError::io(format!("cannot listen on {} (a shorter data folder may help)", socket.display())))?;
        let listener = OwnedFd::from(listener);
        let config = environment::agent_config(
            spec,
            Listen::Fd(listener.as_raw_fd()),
            cgroup.limits_memory(),
            !cgroup.limits_processes(),
        );
        let config =
            serde_json::to_string(&config).map_err(|error| SandboxError::io("agent configuration")(error.into()))?;
        let launch =
            Launch { spec, environment: &environment, agent: &agent, cgroup, config: &config, data: self.paths.data() };
        let (mut command, status) = launch.command(listener).map_err(|error| unavailable(&error))?;
        if rustix::process::geteuid().is_root() {
            let uid = session_uid(&spec.session);
            command.uid(uid).gid(uid);
        }
        command.stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| unavailable(&error))?;
        // The child's ends of all pipes are in the command; the status pipe ends only when they are closed here.
        drop(command);
        let stderr = child.stderr.take();
        match read_agent_pid(status) {
            Some(agent) => {
                // Nobody else would take bubblewrap's exit status; where we die first, init does.
                std::thread::spawn(move || child.wait());
                Ok(agent)
            }
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let mut said = String::new();
                let _ = stderr.map(|pipe| pipe.take(4096).read_to_string(&mut said));
                Err(SandboxError::Start { kind: KIND, reason: bwrap::explain(said.trim()) })
            }
        }
    }
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

/// Reads bubblewrap's status lines until the one with the agent's process.
fn read_agent_pid(status: OwnedFd) -> Option<ProcessStamp> {
    let mut pipe = fs::File::from(status);
    let mut said = Vec::new();
    let end = std::time::Instant::now() + START_DEADLINE;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut poll = [rustix::event::PollFd::new(&pipe, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut poll, Some(&timeout)).unwrap_or(0) == 0 {
            return None;
        }
        let mut chunk = [0; 512];
        let read = pipe.read(&mut chunk).unwrap_or(0);
        if read == 0 || said.len() > 4096 {
            return None;
        }
        said.extend_from_slice(&chunk[..read]);
        let lines = said.split(|byte| *byte == b'\n');
        let pid = lines
            .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
            .find_map(|line| line["child-pid"].as_i64());
        if let Some(pid) = pid {
            return ProcessStamp::of(i32::try_from(pid).ok()?);
        }
    }
}

fn isolation(controllers: &Controllers, network: Network) -> Isolation {
    let mut enforced: Vec<String> = [
        "user, pid, ipc, uts, mount and cgroup namespaces",
        "read-only system",
        "seccomp",
        "no_new_privs",
        "disk",
        "output",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut not_enforced = Vec::new();
    match network {
        Network::None => enforced.push("no network".into()),
        Network::Open => not_enforced.push("network: open, as asked".into()),
    }
    let why = || controllers.why_not.clone().unwrap_or_else(|| "no such cgroup controller".into());
    for (name, held, instead) in [
        ("memory", controllers.memory, "watched by the agent every 0.1 s, not held"),
        ("cpus", controllers.cpu, "not held"),
        ("pids", controllers.pids, "held per user namespace by RLIMIT_NPROC"),
    ] {
        if held {
            enforced.push(name.into());
        } else {
            not_enforced.push(format!("{name}: {instead} ({})", why()));
        }
    }
    Isolation { level: IsolationLevel::Process, enforced, not_enforced }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn kind(&self) -> SandboxKind {
        KIND
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        // Mostly system calls of microseconds; the wait for bubblewrap is a few milliseconds.
        let result = tokio::task::block_in_place(|| self.start(spec));
        if result.is_err() {
            self.remove(&spec.session, None).await?;
        }
        result
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        UnixStream::connect(&record.socket).await.map_err(SandboxError::io("cannot reach the agent"))
    }

    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError> {
        Ok(match record.agent {
            Some(agent) if agent.is_alive() => SandboxState::Running,
            Some(_) => SandboxState::Ended { why: "the agent's process is gone".into() },
            None => SandboxState::Ended { why: "it was never started".into() },
        })
    }

    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
        Cgroup::stats(&cgroup::controllers(), &record.session).map_err(SandboxError::io("cannot read the session's cgroup"))
    }

    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        self.remove(&record.session, record.agent).await
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        records::list(&self.paths, KIND)
    }
}

impl ProcessSandbox {
    async fn remove(&self, session: &SessionId, agent: Option<ProcessStamp>) -> Result<(), SandboxError> {
        let end = tokio::time::Instant::now() + END_DEADLINE;
        if let Some(agent) = agent {
            if let (true, Some(pid)) = (agent.is_alive(), rustix::process::Pid::from_raw(agent.pid)) {
                // The first process of a PID namespace takes all others with it.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            while agent.is_alive() && tokio::time::Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // A cgroup can be removed only when its last process has been reaped, which happens a moment after its end.
        while let Err(error) = Cgroup::remove(&cgroup::controllers(), session) {
            if tokio::time::Instant::now() > end {
                return Err(SandboxError::io("cannot remove the session's cgroup")(error));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        records::remove_folder(&self.paths, session)
    }
}

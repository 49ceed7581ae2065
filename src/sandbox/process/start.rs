//! Starts bubblewrap and the agent in it: spawns, reads the agent's PID, sends the configuration.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use super::bwrap::{self, Launch};
use super::{KIND, unavailable};
use crate::agent_protocol::{AgentConfig, send_config};
use crate::sandbox::{ProcessStamp, SandboxError};

/// Timeout of each step of bubblewrap and the agent; a step takes a few milliseconds on an idle machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// The most of their standard error that is kept, bytes.
const MAX_STDERR: u64 = 4096;

/// Begins the reason why a sandbox did not start with file systems of its own.
pub(super) const NO_PRIVATE_MOUNTS: &str = "cannot mount file systems of its own";

/// A bubblewrap that has created the agent's process. Its standard error is kept until the agent has its configuration:
/// bubblewrap does most of its work, and fails mostly, after it has reported the PID.
pub(super) struct StartedSandbox {
    pub agent: ProcessStamp,
    child: Child,
    stderr: Option<ChildStderr>,
}

impl StartedSandbox {
    /// Starts bubblewrap. The agent inherits `listener`.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] without bubblewrap, [`SandboxError::Start`] with its message, or with
    /// [`NO_PRIVATE_MOUNTS`] if the system refuses them.
    pub fn spawn(launch: Launch<'_>, listener: OwnedFd) -> Result<Self, SandboxError> {
        let with_mounts = launch.mounts.is_some();
        let (mut command, status) = launch.command(listener).map_err(|error| unavailable(&error))?;
        command.stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match with_mounts {
            true => SandboxError::Start { kind: KIND, reason: format!("{NO_PRIVATE_MOUNTS}: {error}") },
            false => unavailable(&error),
        })?;
        // The command owns the child's ends of all pipes; the status pipe ends only after they are closed here.
        drop(command);
        let stderr = child.stderr.take();
        match read_agent_pid(status) {
            Some(agent) => {
                prefer_for_oom_killer(agent);
                Ok(Self { agent, child, stderr })
            }
            None => Err(failure(child, stderr, "bubblewrap exited without a message")),
        }
    }

    pub fn kill(self) {
        let Self { agent, mut child, .. } = self;
        agent.kill();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Sends the agent its configuration. From then on the sandbox is independent of this process.
    ///
    /// # Errors
    /// [`SandboxError::Start`] with the messages of bubblewrap or the agent.
    pub async fn send_config(self, socket: &Path, config: &AgentConfig) -> Result<(), SandboxError> {
        let Self { agent, mut child, stderr } = self;
        let sent = async { send_config(UnixStream::connect(socket).await?, config).await };
        match tokio::time::timeout(STEP_TIMEOUT, sent).await {
            Ok(Ok(())) => {
                // Reaps bubblewrap; if this process dies first, init does.
                std::thread::spawn(move || child.wait());
                Ok(())
            }
            Ok(Err(error)) => Err(kill_failed(agent, child, stderr, &format!("the agent did not start: {error}"))),
            Err(_) => {
                Err(kill_failed(agent, child, stderr, &format!("the agent did not answer for {} s", STEP_TIMEOUT.as_secs())))
            }
        }
    }
}

/// Whether the score for the OOM killer that we set is the lowest that the sandbox can have.
pub(super) fn bounds_score() -> bool {
    let own = rustix::thread::capabilities(None);
    own.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
}

/// Makes the OOM killer prefer the sandbox to the machine's programs. Its processes can lower the score to this, if root
/// sets it.
fn prefer_for_oom_killer(agent: ProcessStamp) {
    const SCORE: &str = "500";
    // It may have ended already, which the configuration reports.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", agent.pid), SCORE);
}

fn kill_failed(agent: ProcessStamp, child: Child, stderr: Option<ChildStderr>, fallback: &str) -> SandboxError {
    agent.kill();
    failure(child, stderr, fallback)
}

/// Kills bubblewrap and returns the error with its message, or with `fallback` if it had none.
fn failure(mut child: Child, stderr: Option<ChildStderr>, fallback: &str) -> SandboxError {
    let _ = child.kill();
    let _ = child.wait();
    let message = stderr.and_then(|pipe| read_available(pipe).ok()).unwrap_or_default();
    let reason = if message.trim().is_empty() { fallback.to_owned() } else { bwrap::explain(message.trim()) };
    SandboxError::Start { kind: KIND, reason }
}

/// Reads what is in the pipe. Does not wait for its writers, which may live on for a moment.
fn read_available(pipe: ChildStderr) -> io::Result<String> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut bytes = Vec::new();
    match pipe.take(MAX_STDERR).read_to_end(&mut bytes) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Reads bubblewrap's status lines until the one with the agent's PID.
fn read_agent_pid(status: OwnedFd) -> Option<ProcessStamp> {
    let mut pipe = fs::File::from(status);
    let mut text = Vec::new();
    let end = Instant::now() + STEP_TIMEOUT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut poll = [rustix::event::PollFd::new(&pipe, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut poll, Some(&timeout)).unwrap_or(0) == 0 {
            return None;
        }
        let mut chunk = [0; 512];
        let read = pipe.read(&mut chunk).unwrap_or(0);
        if read == 0 || text.len() > 4096 {
            return None;
        }
        text.extend_from_slice(&chunk[..read]);
        let lines = text.split(|byte| *byte == b'\n');
        let pid = lines
            .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
            .find_map(|line| line["child-pid"].as_i64());
        if let Some(pid) = pid {
            return ProcessStamp::of(i32::try_from(pid).ok()?);
        }
    }
}

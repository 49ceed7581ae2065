//! Starting bubblewrap, and the agent in it: fork, the agent's process id, its configuration; or why there is none.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use super::bwrap::{self, Launch};
use super::{KIND, unavailable};
use crate::agent_protocol::{AgentConfig, send_config};
use crate::sandbox::{ProcessStamp, SandboxError};

/// How long bubblewrap and the agent may take for each of their steps; they take a few milliseconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// How much of what they say before they fail is kept, bytes.
const MAX_LAST_WORDS: u64 = 4096;

/// A bubblewrap that has made the agent's process. Until the agent has its configuration, what both say is kept, since
/// most of bubblewrap's work, and so most of its refusals, come after it has told the process id.
pub(super) struct Started {
    pub agent: ProcessStamp,
    child: Child,
    stderr: Option<ChildStderr>,
}

impl Started {
    /// Starts bubblewrap as `uid`, or as ourselves. `listener` becomes the agent's.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] without bubblewrap, [`SandboxError::Start`] with what it said.
    pub fn spawn(launch: &Launch<'_>, listener: OwnedFd, uid: Option<u32>) -> Result<Self, SandboxError> {
        let (mut command, status) = launch.command(listener).map_err(|error| unavailable(&error))?;
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        command.stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| unavailable(&error))?;
        // The child's ends of all pipes are in the command; the status pipe ends only when they are closed here.
        drop(command);
        let stderr = child.stderr.take();
        match read_agent_pid(status) {
            Some(agent) => Ok(Self { agent, child, stderr }),
            None => Err(failure(child, stderr, "bubblewrap ended without a word")),
        }
    }

    /// Ends it.
    pub fn abandon(self) {
        let Self { agent, mut child, .. } = self;
        agent.kill();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Gives the agent its configuration, and with it the sandbox its own life.
    ///
    /// # Errors
    /// [`SandboxError::Start`] with what bubblewrap or the agent said before its end.
    pub async fn hand_over(self, socket: &Path, config: &AgentConfig) -> Result<(), SandboxError> {
        let Self { agent, mut child, stderr } = self;
        let handed_over = async { send_config(UnixStream::connect(socket).await?, config).await };
        match tokio::time::timeout(DEADLINE, handed_over).await {
            Ok(Ok(())) => {
                // Nobody else would take bubblewrap's exit status; where we die first, init does.
                std::thread::spawn(move || child.wait());
                Ok(())
            }
            Ok(Err(error)) => Err(failed(agent, child, stderr, &format!("the agent did not start: {error}"))),
            Err(_) => Err(failed(agent, child, stderr, &format!("the agent was silent for {} s", DEADLINE.as_secs()))),
        }
    }
}

fn failed(agent: ProcessStamp, child: Child, stderr: Option<ChildStderr>, silent: &str) -> SandboxError {
    agent.kill();
    failure(child, stderr, silent)
}

/// Ends bubblewrap; the error with its last words, or with `silent` where it had none.
fn failure(mut child: Child, stderr: Option<ChildStderr>, silent: &str) -> SandboxError {
    let _ = child.kill();
    let _ = child.wait();
    let said = stderr.and_then(|pipe| last_words(pipe).ok()).unwrap_or_default();
    let reason = if said.trim().is_empty() { silent.to_owned() } else { bwrap::explain(said.trim()) };
    SandboxError::Start { kind: KIND, reason }
}

/// What is in the pipe by now. Its writers may live on for a moment, and are not waited for.
fn last_words(pipe: ChildStderr) -> io::Result<String> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut said = Vec::new();
    match pipe.take(MAX_LAST_WORDS).read_to_end(&mut said) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(String::from_utf8_lossy(&said).into_owned()),
    }
}

/// Reads bubblewrap's status lines until the one with the agent's process.
fn read_agent_pid(status: OwnedFd) -> Option<ProcessStamp> {
    let mut pipe = fs::File::from(status);
    let mut said = Vec::new();
    let end = Instant::now() + DEADLINE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
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

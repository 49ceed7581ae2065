//! Sandboxes: where kernels run, walled off.
//!
//! A sandbox holds one agent (PID 1) and its kernel. The trait has six verbs and no more: signals, files, usage and
//! restarts are the agent's business, written once and not once per kind of sandbox.

mod agent_binary;
pub mod docker;
mod environment;
pub mod process;
mod records;
mod stamp;
mod sweep;

use std::io::ErrorKind;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::UnixStream;

use crate::ids::SessionId;
use crate::kernels::KernelSpec;
use crate::policy::{Isolation, Limits, Network};

pub use stamp::{ProcessStamp, Sight};
pub use sweep::{remove_unfinished, sweep};

/// The uid and gid of the kernel, as it sees itself.
pub const SANDBOX_UID: u32 = 65532;

/// Which kind of sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxKind {
    /// bubblewrap around a process of this machine.
    Process,
    /// A container of Docker or Podman.
    Docker,
}

impl std::fmt::Display for SandboxKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Docker => "docker",
        })
    }
}

/// What a sandbox is to hold.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// The session it is for.
    pub session: SessionId,
    /// Its kernel.
    pub kernel: KernelSpec,
    /// Its limits.
    pub limits: Limits,
    /// Its network.
    pub network: Network,
    /// Variables for the kernel, over those of the kernelspec.
    pub env: Vec<(String, String)>,
    /// When the sandbox ends itself if no manager is attached, seconds. `None`: never.
    pub orphan_seconds: Option<u64>,
}

/// What must be known to find a sandbox again. Written down before the sandbox is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The session it is for.
    pub session: SessionId,
    /// Its kind.
    pub kind: SandboxKind,
    /// Its kernel's name.
    pub kernel: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The isolation it has.
    pub isolation: Isolation,
    /// The process that made it, by which another tells whether it may be swept away.
    pub owner: ProcessStamp,
    /// Whether it outlives its owner.
    pub keep: bool,
    /// The agent's binary, mounted from here.
    pub agent_binary: PathBuf,
    /// The agent's process on this machine (process sandbox).
    pub agent: Option<ProcessStamp>,
    /// The cgroup controllers that hold its limits (process sandbox).
    pub controllers: Option<process::Controllers>,
    /// Container id (docker).
    pub container: Option<String>,
}

/// What has become of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// Its agent runs.
    Running,
    /// It has ended.
    Ended {
        /// What is known of why.
        why: String,
    },
}

/// Memory and CPU of a sandbox as the outside sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SandboxStats {
    /// Memory now, bytes.
    pub memory_bytes: u64,
    /// CPU time used, seconds.
    pub cpu_seconds: f64,
}

/// Why a sandbox cannot be had or reached. Each says what to do about it.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// This kind of sandbox does not work here.
    #[error("the {kind} sandbox cannot be used: {reason}\n  {remedy}")]
    Unavailable {
        /// Which.
        kind: SandboxKind,
        /// Why not.
        reason: String,
        /// What mends it.
        remedy: String,
    },
    /// The kernel is not installed for this kind of sandbox.
    #[error("the {kernel} kernel is not ready for the {kind} sandbox: {reason}\n  {remedy}")]
    NoKernel {
        /// Which kernel.
        kernel: String,
        /// For which sandbox.
        kind: SandboxKind,
        /// What is missing.
        reason: String,
        /// The command that mends it.
        remedy: String,
    },
    /// It could not be started.
    #[error("the {kind} sandbox did not start: {reason}")]
    Start {
        /// Which.
        kind: SandboxKind,
        /// What went wrong.
        reason: String,
    },
    /// Something on this machine's side failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It could not be made, and what there was of it could not be removed.
    #[error("{error}\n  what had been begun is left behind: {remains}")]
    Remains {
        /// Why it could not be made.
        error: Box<SandboxError>,
        /// Why it could not be removed.
        remains: Box<SandboxError>,
    },
    /// The container engine refused or failed.
    #[error("{doing}: {reason}")]
    Engine {
        /// What was being done.
        doing: String,
        /// What the engine said.
        reason: String,
    },
}

impl SandboxError {
    /// This error, with what kept its remains from being removed, if anything did.
    fn with_remains(self, removed: Result<(), Self>) -> Self {
        match removed {
            Ok(()) => self,
            Err(remains) => Self::Remains { error: Box::new(self), remains: Box::new(remains) },
        }
    }

    /// Whether there is no room on the disk for what it needs.
    pub fn is_of_a_full_disk(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            Self::Remains { error, .. } => error.is_of_a_full_disk(),
            _ => false,
        }
    }

    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Makes, finds and ends sandboxes of one kind.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Which kind.
    fn kind(&self) -> SandboxKind;

    /// Starts a sandbox with its agent; returns when the agent can be dialled, not when the kernel is ready.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left behind then, but where it says so ([`SandboxError::Remains`]).
    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError>;

    /// Opens a stream to the agent.
    ///
    /// # Errors
    /// [`SandboxError::Io`] when the agent does not listen (any more).
    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError>;

    /// What has become of it.
    ///
    /// # Errors
    /// [`SandboxError::Engine`] when the engine cannot be asked.
    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError>;

    /// Its usage, seen from outside.
    ///
    /// # Errors
    /// [`SandboxError`] when it cannot be read.
    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError>;

    /// Ends it, with everything in it, and leaves nothing behind. Also right for one that is gone already.
    ///
    /// # Errors
    /// [`SandboxError`] when something could not be ended or removed.
    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError>;

    /// All sandboxes of this kind and data folder, running or not.
    ///
    /// # Errors
    /// [`SandboxError`] when they cannot be listed.
    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_clean_up_does_not_hide_why_there_was_one() {
        let start = || SandboxError::Start { kind: SandboxKind::Process, reason: "no memory".into() };
        assert!(matches!(start().with_remains(Ok(())), SandboxError::Start { .. }));
        let busy = SandboxError::io("cannot remove the cgroup")(std::io::Error::other("busy"));
        let told = start().with_remains(Err(busy)).to_string();
        assert!(told.starts_with("the process sandbox did not start: no memory"), "{told}");
        assert!(told.ends_with("cannot remove the cgroup: busy"), "{told}");
    }
}

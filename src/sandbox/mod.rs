//! Sandboxes, which isolate kernels.
//!
//! A sandbox contains one agent (PID 1) with its kernels and processes. The trait has only six operations: the agent implements signals,
//! files, usage and restarts once for all kinds of sandboxes.

mod agent_binary;
mod certificates;
pub mod docker;
mod environment;
pub mod process;
mod records;
mod refused_addresses;
mod stamp;
mod sweep;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::{UnixSocket, UnixStream};

use crate::config::Paths;
use crate::descriptors;
use crate::ids::{SandboxId, SessionId};
use crate::kernels::KernelSpec;
use crate::policy::{DataMount, Isolation, Limits, Network};

pub use certificates::{CERTIFICATES, certificates_folder, certificates_source};
pub use records::{read_private, write_private};
pub use stamp::{Liveness, ProcessStamp};
pub use sweep::{remove_unfinished, sweep};

/// The uid and gid of the kernel inside the sandbox, where a user namespace maps it to another.
pub const SANDBOX_UID: u32 = 65532;

/// Every sandbox has a uid of its own on the host, from this one on: an escaped process has no rights, cannot access other
/// sandboxes, and what the system counts by user is counted by sandbox.
const FIRST_UID: u32 = 1_000_000_000;

/// A uid derived from the sandbox's random id. There are 2^28, so that two live ones practically never share one.
fn sandbox_uid(sandbox: &SandboxId) -> u32 {
    let hex: String = sandbox.as_str().chars().filter(char::is_ascii_hexdigit).take(7).collect();
    FIRST_UID + u32::from_str_radix(&hex, 16).unwrap_or(0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxKind {
    /// A process of the host in bubblewrap.
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

/// The specification of a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    pub id: SandboxId,
    /// The session whose kernel starts with the sandbox. `None`: no kernel starts.
    pub session: Option<SessionId>,
    pub kernel: KernelSpec,
    pub limits: Limits,
    pub network: Network,
    /// A folder with the certificates that programs trust, as `/etc/ssl/certs`. `None`: those of the system, if there are any.
    pub certificates: Option<PathBuf>,
    /// A certificate that programs of this sandbox alone trust besides, PEM.
    pub own_certificate: Option<String>,
    /// Environment variables about the network; the kernelspec and `env` override them.
    pub network_env: Vec<(String, String)>,
    /// Environment variables of kernels and processes; they override those of the kernelspec.
    pub env: Vec<(String, String)>,
    /// Folders of the machine that it sees.
    pub mounts: Vec<DataMount>,
    /// The packages that it has besides those of the kernel's environment.
    pub package_set: Option<MountedPackages>,
    /// The sandbox ends itself after this many seconds without a manager. `None`: never.
    pub orphan_seconds: Option<u64>,
}

/// A package set, which a sandbox sees read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedPackages {
    /// The id of the set.
    pub id: String,
    /// Its files.
    pub folder: PathBuf,
    /// The kind of sandbox that it was installed in.
    pub kind: SandboxKind,
}

impl SandboxSpec {
    /// The folders of the machine that a process sandbox sees read-only, each with its path there: data mounts, and what the program
    /// of an operator's kernel needs.
    fn shared_folders(&self) -> Vec<(&Path, String)> {
        let of_kernel = self.kernel.folders().iter().map(|folder| (folder.as_path(), folder.display().to_string()));
        let data = self.mounts.iter().map(|mount| (mount.folder.as_path(), mount.path()));
        of_kernel.chain(data).collect()
    }
}

/// Everything needed to find a sandbox again. It is on disk before the sandbox is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: SandboxId,
    pub kind: SandboxKind,
    /// The name of the kernel.
    pub kernel: String,
    /// The agent's socket.
    pub socket: PathBuf,
    pub isolation: Isolation,
    /// The process that created it. If it is dead, the sandbox may be swept away.
    pub owner: ProcessStamp,
    /// Whether the sandbox outlives its owner.
    pub keep: bool,
    /// The agent's binary, which is mounted into the sandbox.
    pub agent_binary: PathBuf,
    /// The agent's process on the host (process sandbox).
    pub agent: Option<ProcessStamp>,
    /// The cgroup controllers that enforce its limits (process sandbox).
    pub controllers: Option<process::Controllers>,
    /// The container id (docker).
    pub container: Option<String>,
    /// The id of the package set that it sees.
    pub package_set: Option<String>,
}

impl SandboxRecord {
    /// The sandbox's folder, which it does not see. It is removed with the sandbox.
    pub fn folder(&self) -> &Path {
        self.socket.parent().unwrap_or(&self.socket)
    }
}

#[cfg(test)]
impl SandboxRecord {
    /// The record of a sandbox that does not exist.
    pub fn in_name_only() -> Self {
        Self {
            id: SandboxId::random(),
            kind: SandboxKind::Process,
            kernel: "python".to_owned(),
            socket: "/nowhere/agent.sock".into(),
            isolation: Isolation::new(crate::policy::IsolationLevel::Process),
            owner: ProcessStamp::own(),
            keep: true,
            agent_binary: "/nowhere".into(),
            agent: None,
            controllers: None,
            container: None,
            package_set: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// The agent is running.
    Running,
    Ended {
        /// The cause, as far as it is known, for people.
        why: String,
    },
}

/// Memory and CPU of a sandbox, measured from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SandboxStats {
    pub memory_bytes: u64,
    pub cpu_seconds: f64,
}

/// Failures of sandboxes; messages say what to do.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// This kind of sandbox does not work on this machine.
    #[error("the {kind} sandbox cannot be used: {reason}\n  {remedy}")]
    Unavailable { kind: SandboxKind, reason: String, remedy: String },
    /// The kernel is not installed for this kind of sandbox.
    #[error("the {kernel} kernel is not ready for the {kind} sandbox: {reason}\n  {remedy}")]
    NoKernel { kernel: String, kind: SandboxKind, reason: String, remedy: String },
    #[error("the {kind} sandbox did not start: {reason}")]
    Start { kind: SandboxKind, reason: String },
    /// A system call on the host failed.
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    /// The creation failed, and so did the removal of the remains.
    #[error("{error}\n  its remains could not be removed: {remains}")]
    Remains {
        error: Box<SandboxError>,
        /// Why the remains could not be removed.
        remains: Box<SandboxError>,
    },
    /// The container engine refused or failed.
    #[error("{doing}: {reason}")]
    Engine {
        doing: String,
        /// The engine's message.
        reason: String,
    },
}

impl SandboxError {
    /// Adds the failure of removing the remains, if there was one.
    fn with_remains(self, removed: Result<(), Self>) -> Self {
        match removed {
            Ok(()) => self,
            Err(remains) => Self::Remains { error: Box::new(self), remains: Box::new(remains) },
        }
    }

    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            Self::Remains { error, .. } => error.is_disk_full(),
            _ => false,
        }
    }

    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Connects to an agent, which can send no descriptors on the connection where the system knows how to refuse them.
async fn connect_to_agent(socket: &Path) -> std::io::Result<UnixStream> {
    let connecting = UnixSocket::new_stream()?;
    let _ = descriptors::permit_descriptors(&connecting, false);
    connecting.connect(socket).await
}

/// Checks that the folders of packages and data mounts exist, and that data mounts are those that the operator named: nobody has put a link in
/// the place of one or above it. An engine's own message would tell clients where they are.
fn check_mounts(kind: SandboxKind, spec: &SandboxSpec) -> Result<(), SandboxError> {
    if spec.package_set.as_ref().is_some_and(|set| !set.folder.is_dir()) {
        return Err(SandboxError::Start { kind, reason: "its packages were removed meanwhile; ask again".to_owned() });
    }
    let is_there = |folder: &Path| folder.is_dir() && folder.canonicalize().is_ok_and(|real| real == folder);
    let Some(missing) = spec.mounts.iter().find(|mount| !is_there(&mount.folder)) else { return Ok(()) };
    let reason = format!("the folder of the mount {:?} is not there; tell the operator", missing.name);
    Err(SandboxError::Start { kind, reason })
}

/// The ids of the package sets that sandboxes see, running or not.
///
/// # Errors
/// [`SandboxError::Io`] if the folder of all sandboxes cannot be read.
pub fn package_sets_in_use(paths: &Paths) -> Result<Vec<String>, SandboxError> {
    Ok(records::all(paths)?.into_iter().filter_map(|record| record.package_set).collect())
}

/// Creates, finds and destroys sandboxes of one kind.
#[async_trait]
pub trait Sandbox: Send + Sync {
    fn kind(&self) -> SandboxKind;

    /// Starts a sandbox with its agent. Returns once the agent accepts connections, before the kernel is ready.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left behind, except for [`SandboxError::Remains`].
    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError>;

    /// Connects to the agent.
    ///
    /// # Errors
    /// [`SandboxError::Io`] if the agent does not listen.
    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError>;

    /// The current state.
    ///
    /// # Errors
    /// [`SandboxError::Engine`] if the container engine does not answer.
    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError>;

    /// The usage, measured from outside.
    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError>;

    /// Ends the sandbox and removes everything of it. Idempotent.
    ///
    /// # Errors
    /// [`SandboxError`] if something could not be ended or removed.
    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError>;

    /// All sandboxes of this kind in the data folder, running or not.
    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_cleanup_keeps_original_error() {
        let start = || SandboxError::Start { kind: SandboxKind::Process, reason: "no memory".into() };
        assert!(matches!(start().with_remains(Ok(())), SandboxError::Start { .. }));
        let busy = SandboxError::io("cannot remove the cgroup")(std::io::Error::other("busy"));
        let message = start().with_remains(Err(busy)).to_string();
        assert!(message.starts_with("the process sandbox did not start: no memory"), "{message}");
        assert!(message.ends_with("cannot remove the cgroup: busy"), "{message}");
    }
}

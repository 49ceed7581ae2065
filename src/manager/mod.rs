//! The façade that the command line and all protocols see: it chooses a sandbox, makes sessions, and ends them. [`Keeper`] has
//! those that outlive this process.

mod care;
mod compaction;
mod executions;
mod files;
mod journal;
mod keeper;
mod kept;
mod notebooks;
mod outputs;
mod pool;
pub mod record;
mod recovery;
mod removal;
mod room;
mod variables;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::config::Paths;
use crate::ids::SessionId;
use crate::kernels::Kernel;
use crate::policy::{BadLimit, Limits, Network};
use crate::sandbox::docker::DockerSandbox;
use crate::sandbox::process::{self, ProcessSandbox};
use crate::sandbox::{self, Sandbox, SandboxError, SandboxKind, SandboxSpec};
use crate::session::{self, MemoryJournal, OutputMode, SessionError, SessionEvents, SessionHandle, SessionParts};

pub use crate::sandbox::SandboxRecord;
pub use crate::store::{ArtifactRow, EventRow, SessionRow, Store, StoreError, TooHeavy, from_ms, now_ms, seconds_in_ms};
pub use files::{FileEntry, FileError, MAX_FILE};
pub use journal::Follower;
pub use keeper::{Facts, Keeper};
pub use kept::{KeeperError, KeeperSettings, KeptRun, KeptSpec, NewSession};
pub use notebooks::{NotebookRun, failure_of};
pub use outputs::{OutputEvent, edited, inline_artifacts, names_artifacts, outputs_of, outputs_told, read_body};
pub use variables::{Variable, VariablesError};

/// How long after its manager's end a sandbox of a one-shot run ends itself.
const ORPHAN: Duration = Duration::from_secs(20);

/// Which sandbox a session is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxChoice {
    /// The process sandbox, else Docker.
    #[default]
    Auto,
    /// This one and no other.
    Only(SandboxKind),
}

impl SandboxChoice {
    /// Whether a session may get a sandbox of this kind.
    pub fn allows(self, kind: SandboxKind) -> bool {
        self == Self::Auto || self == Self::Only(kind)
    }
}

/// What a session is to be.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its sandbox.
    pub sandbox: SandboxChoice,
    /// Its limits.
    pub limits: Limits,
    /// Its network.
    pub network: Network,
    /// Variables for the kernel.
    pub env: Vec<(String, String)>,
}

/// Why there is no session.
#[derive(Debug, Error)]
pub enum ManagerError {
    /// The limits make no sense.
    #[error(transparent)]
    Limits(BadLimit),
    /// No sandbox could be had.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// None of the kinds works for this kernel.
    #[error(
        "no sandbox is ready for the {kernel} kernel, and nothing runs without one:\n- {process}\n- {docker}\n`cellkeep doctor` shows what is usable"
    )]
    NoSandbox {
        /// Which kernel.
        kernel: String,
        /// What keeps the process sandbox.
        process: SandboxError,
        /// What keeps Docker.
        docker: SandboxError,
    },
    /// The kernel did not start in it.
    #[error("the kernel did not start: {0}")]
    Start(#[from] SessionError),
}

impl ManagerError {
    /// Whether there is no room on the disk for what it needs.
    pub fn is_of_a_full_disk(&self) -> bool {
        match self {
            Self::Sandbox(error) => error.is_of_a_full_disk(),
            Self::NoSandbox { process, docker, .. } => process.is_of_a_full_disk() || docker.is_of_a_full_disk(),
            _ => false,
        }
    }
}

/// Makes and ends sessions.
pub struct Manager {
    paths: Paths,
}

/// A living session with its sandbox.
pub struct Session {
    /// For its runs.
    pub handle: SessionHandle,
    /// What it tells, as the kernel's messages.
    pub events: SessionEvents,
    /// What it lives in.
    pub record: SandboxRecord,
    sandbox: Arc<dyn Sandbox>,
}

impl Manager {
    /// A manager of this data folder.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    /// Makes a session and waits until its kernel is ready. What an earlier, killed run left behind is cleared away meanwhile.
    ///
    /// # Errors
    /// [`ManagerError`]; nothing is left behind.
    pub async fn create(&self, spec: SessionSpec) -> Result<Session, ManagerError> {
        spec.limits.validate().map_err(ManagerError::Limits)?;
        let (sandbox, record) = self.sandbox_for(&spec, &SessionId::random(), Some(ORPHAN)).await?;
        let (sweeper, paths) = (sandbox.clone(), self.paths.clone());
        tokio::spawn(async move {
            if let Err(error) = sandbox::sweep(&*sweeper, &paths).await {
                tracing::warn!(%error, "cannot look for sandboxes that were left behind");
            }
        });
        let (journal, events) = MemoryJournal::new();
        let handle = session::start(SessionParts {
            sandbox: sandbox.clone(),
            record: record.clone(),
            limits: spec.limits,
            late_output: spec.kernel.late_output,
            output_mode: OutputMode::Messages,
            journal: Box::new(journal),
            durable: false,
            stored: None,
        });
        let session = Session { handle, events, record, sandbox };
        match session.handle.ready().await {
            Ok(()) => Ok(session),
            Err(error) => {
                if let Err(remains) = session.destroy().await {
                    tracing::warn!(%remains, "a sandbox whose kernel did not start is left behind");
                }
                Err(error.into())
            }
        }
    }

    /// Makes a sandbox; one with `orphan` ends itself so long after its manager's end, others live on.
    async fn sandbox_for(
        &self,
        spec: &SessionSpec,
        session: &SessionId,
        orphan: Option<Duration>,
    ) -> Result<(Arc<dyn Sandbox>, SandboxRecord), ManagerError> {
        let sandbox_spec = SandboxSpec {
            session: session.clone(),
            kernel: spec.kernel.clone(),
            limits: spec.limits.clone(),
            network: spec.network,
            env: spec.env.clone(),
            orphan_seconds: orphan.map(|after| after.as_secs()),
        };
        match spec.sandbox {
            SandboxChoice::Only(kind) => Ok(self.create_in(kind, &sandbox_spec).await?),
            SandboxChoice::Auto => {
                let process = match self.create_in(SandboxKind::Process, &sandbox_spec).await {
                    Ok(made) => return Ok(made),
                    Err(error) => error,
                };
                match self.create_in(SandboxKind::Docker, &sandbox_spec).await {
                    Ok(made) => {
                        tracing::warn!("using the docker sandbox, since {process}");
                        Ok(made)
                    }
                    Err(docker) => Err(ManagerError::NoSandbox { kernel: spec.kernel.name.clone(), process, docker }),
                }
            }
        }
    }

    async fn create_in(
        &self,
        kind: SandboxKind,
        spec: &SandboxSpec,
    ) -> Result<(Arc<dyn Sandbox>, SandboxRecord), SandboxError> {
        let sandbox = self.sandbox(kind).await?;
        let record = sandbox.create(spec).await?;
        Ok((sandbox, record))
    }

    /// The sandboxes of one kind.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] when they do not work here.
    pub async fn sandbox(&self, kind: SandboxKind) -> Result<Arc<dyn Sandbox>, SandboxError> {
        match kind {
            SandboxKind::Process => Ok(Arc::new(ProcessSandbox::new(self.paths.clone()))),
            SandboxKind::Docker => Ok(Arc::new(DockerSandbox::connect(self.paths.clone()).await?)),
        }
    }
}

impl Session {
    /// Ends the session: its kernel, its sandbox and all that is in it.
    ///
    /// # Errors
    /// [`SandboxError`] when something could not be ended or removed.
    pub async fn destroy(self) -> Result<(), SandboxError> {
        self.sandbox.destroy(&self.record).await
    }
}

/// Whether the process sandbox works on this machine.
pub fn probe_process_sandbox() -> process::Probe {
    process::probe()
}

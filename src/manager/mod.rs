//! Creates, finds and ends sessions. The command line and the HTTP API use them through this module.
//!
//! [`Manager`] creates one-shot sessions, which end with this process. The others outlive it:
//!
//! ```text
//! SessionService   creates, claims, configures, recovers and removes sessions
//!   ├ SessionRegistry   the sessions in memory, and the ownership check
//!   ├ SessionReader     rows, cells, events and artifacts from the store
//!   ├ Pool              sessions that are started ahead
//!   ├ Admission         how many sessions and processes a principal may hold
//!   ├ Consumption       executions in an hour, and session seconds in a day
//!   └ Quota             refuses new work above the data limit
//! Reaper           ends sessions whose lifetime is over
//! Retention        keeps the stored data small
//! ```

mod admission;
mod cell_outputs;
mod changed_files;
mod compaction;
mod consumption;
mod creation_keys;
mod environment_builds;
mod environments;
mod event_feed;
mod evictions;
mod execution_traces;
mod files;
mod journal;
mod network;
mod notebooks;
mod one_shots;
mod output_ends;
mod package_sets;
mod packages;
mod pool;
mod quota;
mod reader;
mod reaper;
mod recovery;
mod registry;
mod removal;
mod removal_backlog;
mod retention;
pub mod run_record;
mod sandboxes;
pub mod seed;
mod service;
mod session_config;
mod silent_execution;
mod variables;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;

use self::registry::SandboxInstance;
use crate::config::Paths;
use crate::egress::{EgressSettings, Gateway, SandboxEgress, SandboxSecrets};
use crate::ids::{PrincipalId, SandboxId, SessionId};
use crate::kernels::KernelSpec;
use crate::policy::{DataMount, LimitOutOfRange, Limits, NetworkPolicy, PackageRules, Secret};
use crate::sandbox::docker::DockerSandbox;
use crate::sandbox::process::{self, ProcessSandbox};
use crate::sandbox::{self, MountedPackages, Sandbox, SandboxError, SandboxSpec};
use crate::session::{self, MemoryJournal, OutputMode, SessionError, SessionEvents, SessionHandle, SessionParts};

pub use crate::agent_protocol::{ProcessExit, ProcessInfo, ProcessStream, TerminalSize};
pub use crate::sandbox::{SandboxKind, SandboxRecord};
pub use crate::store::{
    ArtifactRow, CellPage, CellPosition, EnvironmentRow, EnvironmentState, EventKind, EventRow, KeyKind, OverByteLimit,
    SessionFilter, SessionPosition, SessionRow, Store, StoreError, from_ms, now_ms, seconds_in_ms,
};
pub use cell_outputs::{
    OutputEvent, apply_edit, fold_outputs, inline_artifacts, may_reference_artifacts, outputs_from_events, parse_body,
};
pub use changed_files::changed_files;
pub use environment_builds::LogLines;
pub use environments::{BuildEvent, EnvironmentDescription};
pub use event_feed::EventSubscription;
pub use files::{
    ArchiveFormat, EntryKind, FileError, FilePage, FileStat, MAX_ARCHIVE_BYTES, MAX_FILE, OpenFile, Position, PutOptions,
    Staging, Summary, Workspace, WorkspaceEntry, printable,
};
pub use notebooks::{NotebookRun, first_failure};
pub use package_sets::{BuildLog, Package, PackageError, PackageSet, WantedPackages};
pub use reader::SessionReader;
pub use reaper::Reaper;
pub use retention::Retention;
pub use sandboxes::{
    NewProcess, OneShotSandbox, ProcessError, ProcessOutput, ProcessReader, Processes, SandboxChange, SandboxDescription,
};
pub use service::{SessionProperties, SessionService};
pub use session_config::{JobConfig, NewSession, ServiceError, ServiceSettings, SessionConfig};
pub use variables::{Variable, VariablesError};

/// The sandbox of a one-shot session ends itself this long after the end of its manager.
const ORPHAN_LIFETIME: Duration = Duration::from_secs(20);

/// The kind of sandbox that a session gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxChoice {
    /// The process sandbox if it works on this machine, else Docker.
    #[default]
    Auto,
    /// This kind, or an error.
    Only(SandboxKind),
}

impl SandboxChoice {
    /// As on the command line.
    pub fn name(self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Only(kind) => kind.to_string(),
        }
    }

    pub fn allows(self, kind: SandboxKind) -> bool {
        self == Self::Auto || self == Self::Only(kind)
    }
}

/// The configuration of a new session.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    pub kernel: KernelSpec,
    pub sandbox: SandboxChoice,
    pub limits: Limits,
    pub network: NetworkPolicy,
    /// Environment variables of the kernel.
    pub env: Vec<(String, String)>,
    /// Folders of the machine that the sandbox sees.
    pub mounts: Vec<DataMount>,
    /// What the proxy puts into requests of its code.
    pub secrets: Vec<Secret>,
    /// The packages that it has besides those of the kernel's environment.
    pub package_set: Option<MountedPackages>,
}

/// Why a session cannot be created.
#[derive(Debug, Error)]
pub enum ManagerError {
    #[error(transparent)]
    Limits(LimitOutOfRange),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Neither kind of sandbox works for this kernel.
    #[error(
        "no sandbox works for the {kernel} kernel, and nothing runs without one:\n- {process}\n- {docker}\n`cellkeep doctor` shows what is usable"
    )]
    NoSandbox { kernel: String, process: SandboxError, docker: SandboxError },
    #[error("the kernel did not start: {0}")]
    Start(#[from] SessionError),
}

impl ManagerError {
    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sandbox(error) => error.is_disk_full(),
            Self::NoSandbox { process, docker, .. } => process.is_disk_full() || docker.is_disk_full(),
            _ => false,
        }
    }
}

/// Creates sandboxes and one-shot sessions.
pub struct Manager {
    paths: Paths,
    gateway: Gateway,
    package_rules: PackageRules,
}

/// A one-shot session with its sandbox.
pub struct Session {
    pub handle: SessionHandle,
    /// The messages of the kernel.
    pub events: SessionEvents,
    pub record: SandboxRecord,
    sandbox: Arc<dyn Sandbox>,
    egress: SandboxEgress,
}

impl Manager {
    /// A manager whose sandboxes have the default settings for the network.
    pub fn new(paths: Paths) -> Self {
        Self::with_gateway(paths, Gateway::new(EgressSettings::default(), None))
    }

    pub fn with_gateway(paths: Paths, gateway: Gateway) -> Self {
        Self { paths, gateway, package_rules: PackageRules::default() }
    }

    /// What packages may be installed.
    pub fn with_package_rules(self, package_rules: PackageRules) -> Self {
        Self { package_rules, ..self }
    }

    pub fn package_rules(&self) -> &PackageRules {
        &self.package_rules
    }

    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Creates a session and waits until its kernel is ready. Meanwhile, sandboxes that killed runs left behind are removed.
    /// After an error, nothing is left behind.
    pub async fn create(&self, spec: SessionSpec) -> Result<Session, ManagerError> {
        spec.limits.validate().map_err(ManagerError::Limits)?;
        let id = SessionId::random();
        let created = self.create_sandbox(&spec, id.clone().into(), Some(&id), Some(ORPHAN_LIFETIME)).await?;
        let SandboxInstance { engine: sandbox, record, egress, .. } = created;
        self.sweep_later(&sandbox);
        let (journal, events) = MemoryJournal::new();
        let handle = session::start(SessionParts {
            session: id,
            sandbox: sandbox.clone(),
            record: record.clone(),
            limits: spec.limits,
            output_mode: OutputMode::Messages,
            journal: Box::new(journal),
            durable: false,
            stored: None,
        });
        egress.set_policy(spec.network, None);
        let session = Session { handle, events, record, sandbox, egress };
        match session.handle.ready().await {
            Ok(()) => {
                session.egress.settle().await;
                Ok(session)
            }
            Err(error) => {
                if let Err(remains) = session.destroy().await {
                    tracing::warn!(%remains, "cannot remove a sandbox whose kernel did not start");
                }
                Err(error.into())
            }
        }
    }

    /// Creates a sandbox without a kernel, which ends with this process.
    pub async fn create_one_shot_sandbox(&self, spec: SessionSpec) -> Result<OneShotSandbox, ManagerError> {
        self.create_temporary_sandbox(spec, None).await
    }

    /// As [`Self::create_one_shot_sandbox`], with a network that is used for `principal`.
    async fn create_temporary_sandbox(
        &self,
        spec: SessionSpec,
        principal: Option<&PrincipalId>,
    ) -> Result<OneShotSandbox, ManagerError> {
        spec.limits.validate().map_err(ManagerError::Limits)?;
        let id = SandboxId::random();
        let instance = self.create_sandbox(&spec, id, None, Some(ORPHAN_LIFETIME)).await?;
        self.sweep_later(&instance.engine);
        instance.egress.set_policy(spec.network, principal);
        instance.egress.settle().await;
        Ok(OneShotSandbox::new(instance))
    }

    /// Removes what killed commands have left behind, in the background.
    fn sweep_later(&self, engine: &Arc<dyn Sandbox>) {
        let (engine, paths) = (engine.clone(), self.paths.clone());
        tokio::spawn(async move {
            if let Err(error) = sandbox::sweep(&*engine, &paths).await {
                tracing::warn!(%error, "cannot look for leftover sandboxes");
            }
        });
    }

    /// Creates a sandbox, with the kernel of `session` if there is one. With `orphan_lifetime`, the sandbox ends itself that long
    /// after the end of this process; without, it lives on.
    async fn create_sandbox(
        &self,
        spec: &SessionSpec,
        id: SandboxId,
        session: Option<&SessionId>,
        orphan_lifetime: Option<Duration>,
    ) -> Result<SandboxInstance, ManagerError> {
        let secrets = [self.gateway.index_secrets(&spec.network), &spec.secrets[..]].concat();
        let secrets = SandboxSecrets::new(secrets);
        let no_key = |source| SandboxError::Io { doing: "cannot make a key for secrets".to_owned(), source };
        let secrets = secrets.map_err(no_key)?;
        let certificates = self.certificates(&spec.network)?;
        let has_certificates = certificates.is_some() || secrets.is_some();
        let mut network_env = self.gateway.environment(&spec.network, has_certificates.then_some(sandbox::CERTIFICATES));
        network_env.extend(secrets.iter().flat_map(|secrets| secrets.variables()));
        let sandbox_spec = SandboxSpec {
            id,
            session: session.cloned(),
            kernel: spec.kernel.clone(),
            limits: spec.limits.clone(),
            network: spec.network.interface(),
            network_env,
            certificates,
            own_certificate: secrets.as_ref().map(|secrets| secrets.certificate()),
            env: spec.env.clone(),
            mounts: spec.mounts.clone(),
            package_set: spec.package_set.clone(),
            orphan_seconds: orphan_lifetime.map(|lifetime| lifetime.as_secs()),
        };
        let choice = match (spec.sandbox, &spec.package_set) {
            // Packages fit the interpreter of the kind of sandbox that they were installed in.
            (SandboxChoice::Auto, Some(set)) => SandboxChoice::Only(set.kind),
            (choice, _) => choice,
        };
        let (engine, record) = self.create_as_chosen(choice, &sandbox_spec).await?;
        let instance = SandboxInstance::new(engine, record, &self.gateway, secrets.clone());
        // A later server needs them; sandboxes of one command have none.
        if let Some(secrets) = secrets.filter(|_| orphan_lifetime.is_none())
            && let Err(error) = sandbox::write_private(&self.paths, &instance.record.id, &secrets.to_bytes())
        {
            if let Err(remains) = instance.destroy().await {
                tracing::warn!(%remains, "cannot remove a sandbox whose secrets cannot be stored");
            }
            return Err(error.into());
        }
        Ok(instance)
    }

    async fn create_as_chosen(
        &self,
        choice: SandboxChoice,
        spec: &SandboxSpec,
    ) -> Result<(Arc<dyn Sandbox>, SandboxRecord), ManagerError> {
        match choice {
            SandboxChoice::Only(kind) => Ok(self.create_in(kind, spec).await?),
            SandboxChoice::Auto => {
                let process = match self.create_in(SandboxKind::Process, spec).await {
                    Ok(created) => return Ok(created),
                    Err(error) => error,
                };
                match self.create_in(SandboxKind::Docker, spec).await {
                    Ok(created) => {
                        tracing::warn!("using the docker sandbox, because {process}");
                        Ok(created)
                    }
                    Err(docker) => Err(ManagerError::NoSandbox { kernel: spec.kernel.name.clone(), process, docker }),
                }
            }
        }
    }

    /// A sandbox that an earlier server created.
    fn found_sandbox(&self, engine: &Arc<dyn Sandbox>, record: SandboxRecord) -> SandboxInstance {
        let stored = sandbox::read_private(&self.paths, &record.id).map_err(io::Error::other);
        let secrets = stored.and_then(|stored| stored.map(|bytes| SandboxSecrets::from_bytes(&bytes)).transpose());
        let secrets = secrets.unwrap_or_else(|error| {
            tracing::error!(sandbox = %record.id, %error, "cannot read the secrets of a sandbox; its requests go without them");
            None
        });
        SandboxInstance::new(engine.clone(), record, &self.gateway, secrets)
    }

    /// The certificates for a sandbox. One with a network of its own has those of the system, unless the operator has others.
    fn certificates(&self, policy: &NetworkPolicy) -> Result<Option<PathBuf>, SandboxError> {
        let file = self.gateway.settings().ca_file.as_deref();
        if *policy == NetworkPolicy::Open && file.is_none() {
            return Ok(None);
        }
        let doing = "cannot copy the certificates that sandboxes trust".to_owned();
        sandbox::certificates_folder(&self.paths, file).map_err(|source| SandboxError::Io { doing, source })
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

    /// The engine of one kind of sandbox.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] if the kind does not work on this machine.
    pub async fn sandbox(&self, kind: SandboxKind) -> Result<Arc<dyn Sandbox>, SandboxError> {
        match kind {
            SandboxKind::Process => Ok(Arc::new(ProcessSandbox::new(self.paths.clone()))),
            SandboxKind::Docker => Ok(Arc::new(DockerSandbox::connect(self.paths.clone()).await?)),
        }
    }
}

impl Session {
    /// Ends the session: its kernel, its sandbox and the files in it.
    pub async fn destroy(self) -> Result<(), SandboxError> {
        self.egress.stop();
        self.sandbox.destroy(&self.record).await
    }
}

/// An id that depends on these bytes alone: 128 bits of SHA-256, as 32 hexadecimal digits.
fn digest_id(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the process sandbox works on this machine.
pub fn probe_process_sandbox() -> process::Probe {
    process::probe()
}

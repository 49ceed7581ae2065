//! Settings of the service, the configuration of one session, and the errors of both.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::package_sets::PackageError;
use super::{ManagerError, SandboxChoice};
use crate::egress::EgressSettings;
use crate::ids::{SandboxId, SessionId};
use crate::kernels;
use crate::machine;
use crate::notebook::parameters::ParameterError;
use crate::policy::{
    AboveCeiling, Ceilings, DataMounts, Limits, NetworkLevel, NetworkPolicy, PackageRequest, PackageRules, Secret,
    SecretDescription, UnknownMount,
};
use crate::sandbox::SandboxError;
use crate::session::SessionError;
use crate::store::{CreationKey, Durability, SessionRow, StoreError};

/// Settings that apply to all sessions of a server.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    pub sandbox: SandboxChoice,
    /// The number of sessions that may live at once.
    pub max_sessions: usize,
    /// The most that clients may ask for.
    pub ceilings: Ceilings,
    /// The network of sandboxes that have none of their own.
    pub egress: EgressSettings,
    /// The number of kernels that may start at once. Further starts wait.
    pub max_starting: usize,
    /// Seconds without use after which a session ends, unless the session has a value of its own.
    pub idle_timeout_seconds: u64,
    /// Seconds for which an ended session can still be read.
    pub keep_ended_seconds: u64,
    /// Seconds after the end of a cell before neighbouring events of its text are merged.
    pub compact_after_seconds: u64,
    /// The limit of journal and artifacts in megabytes. Above it, the sessions that ended first are removed first.
    pub max_data_mb: u64,
    /// What an acknowledged output survives.
    pub durability: Durability,
    /// Kernels, and how many sessions of each the warm pool holds.
    pub pool: Vec<(String, usize)>,
    /// The folders that sessions may ask for.
    pub mounts: DataMounts,
    /// The secrets that sessions may ask for by name.
    pub secrets: Vec<Secret>,
    /// The packages that sessions may ask for.
    pub packages: PackageRules,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            sandbox: SandboxChoice::Auto,
            max_sessions: 100,
            ceilings: Ceilings::of_machine(machine::detect()),
            egress: EgressSettings::default(),
            max_starting: cpus.max(2),
            idle_timeout_seconds: 3600,
            keep_ended_seconds: 24 * 3600,
            compact_after_seconds: 3600,
            max_data_mb: 20 << 10,
            durability: Durability::Normal,
            pool: Vec::new(),
            mounts: DataMounts::default(),
            secrets: Vec::new(),
            packages: PackageRules::default(),
        }
    }
}

/// A request for a session.
#[derive(Clone, Debug, Default)]
pub struct NewSession {
    /// The name of a kernel, one of its aliases, or its language. In a sandbox that exists, empty for its kernel.
    pub kernel: String,
    /// The sandbox in which the kernel starts. `None`: one of its own.
    pub sandbox: Option<SandboxId>,
    /// The display name, chosen by the owner.
    pub name: Option<String>,
    /// Environment variables of the kernel. They are not stored: they exist in the sandbox only.
    pub env: Vec<(String, String)>,
    /// Stored for the server alone, with the sandbox.
    pub secrets: Vec<Secret>,
    /// Packages that are installed first. The configuration names their environment afterwards.
    pub packages: Option<PackageRequest>,
    /// Chosen by the client, so that a retry gets the same session.
    pub key: Option<CreationKey>,
    pub config: SessionConfig,
}

/// The stored configuration of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionConfig {
    pub limits: Limits,
    pub network: NetworkPolicy,
    /// The names of the data mounts that the sandbox sees.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
    /// The secrets of the sandbox, without their values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretDescription>,
    /// The id of the environment whose packages the sandbox sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The default timeout of a cell in seconds.
    pub timeout_seconds: Option<f64>,
    /// The lifetime of the session in seconds.
    pub ttl_seconds: Option<u64>,
    /// Seconds without use after which the session ends.
    pub idle_timeout_seconds: Option<u64>,
    /// Labels, chosen by the owner.
    pub labels: HashMap<String, String>,
    /// The notebook job that the session was created for. The session ends with the job.
    #[serde(rename = "run", skip_serializing_if = "Option::is_none")]
    pub job: Option<JobConfig>,
    /// Whether the session is for one execution whose client asks once, so that nobody can ask for it after a restart.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub one_shot: bool,
}

impl SessionConfig {
    /// Checks a new configuration against the ceilings of the server.
    pub fn check(&self, ceilings: &Ceilings) -> Result<(), ServiceError> {
        ceilings.check_limits(&self.limits)?;
        ceilings.check_timeout(self.timeout_seconds)?;
        ceilings.check_idle_timeout(self.idle_timeout_seconds)?;
        ceilings.check_lifetime(self.ttl_seconds)?;
        Ok(())
    }

    /// The configuration in a stored row.
    pub fn of_row(row: &SessionRow) -> Self {
        serde_json::from_str(&row.spec).unwrap_or_default()
    }

    /// The JSON text that the store holds.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A notebook that runs as a job in a session of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobConfig {
    /// The ids of the cells to execute, in order.
    pub cells: Vec<String>,
    /// What is known about the run before its first cell, for the metadata of the notebook. JSON text.
    pub record: String,
}

/// Why a session cannot be created, found or used.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// No session has this id, or the caller cannot see it. The two cases look alike, so that ids cannot be probed.
    #[error("there is no session {id}")]
    SessionNotFound { id: String },
    #[error("there is no sandbox {id}")]
    SandboxNotFound { id: String },
    #[error("the sandbox {id} belongs to the session of the same id; delete the session")]
    SandboxOfSession { id: String },
    #[error("the sandbox {sandbox} has the {kernel} kernel and no other; leave `kernel` out, or create another sandbox")]
    OtherKernel { sandbox: String, kernel: String },
    #[error(transparent)]
    UnknownKernel(#[from] kernels::KernelError),
    #[error(transparent)]
    UnknownMount(#[from] UnknownMount),
    #[error("there is no environment {id}")]
    EnvironmentNotFound { id: String },
    #[error("the environment {id} is for the {kernel} kernel")]
    EnvironmentOfOtherKernel { id: String, kernel: String },
    #[error("the packages of the environment {id} are being installed; wait for the end")]
    EnvironmentBusy { id: String },
    #[error("sandboxes use the packages of the environment {id}; end them first")]
    EnvironmentInUse { id: String },
    #[error("{limit} installations of yours wait or run already, which is the limit; wait for one to end")]
    TooManyBuilds { limit: usize },
    #[error(
        "the key {key:?} was used for another request; a retry repeats the request as it was, and another request has another key"
    )]
    KeyOfOtherRequest { key: String },
    #[error("you have {limit} environments, which is the limit; delete some")]
    TooManyEnvironments { limit: usize },
    #[error("{reason}")]
    PackagesFailed { reason: String },
    #[error(transparent)]
    Packages(#[from] PackageError),
    #[error("the server has {limit} sessions already, which is its limit; end a session, or raise --max-sessions")]
    SessionLimit { limit: u64 },
    /// One principal may not take what others need.
    #[error(
        "you have {held} of the {limit} sessions of this server, and the rest is for others; end a session. \
         The operator can change the share with --max-sessions-per-principal"
    )]
    SessionShare { held: u64, limit: u64 },
    #[error(
        "your sessions may have {held} processes together already, and {more} more exceed your share or the machine; end a \
         session, or ask for fewer (limits.pids). The operator can change the share with --max-processes-per-principal"
    )]
    ProcessLimit { held: u64, more: u64 },
    #[error(
        "you have used your executions, which each hour restores evenly; wait {retry_after} s. The operator can raise that \
         with --max-executions-per-hour"
    )]
    ExecutionLimit { retry_after: u64 },
    #[error("{count} executions at once are more than the {limit} of an hour (--max-executions-per-hour)")]
    TooManyAtOnce { count: u32, limit: u32 },
    #[error(
        "your sessions have lived for the {limit} s that they may live in a day; wait {retry_after} s. The operator can raise \
         that with --max-session-seconds-per-day"
    )]
    SessionTimeLimit { limit: u64, retry_after: u64 },
    #[error(transparent)]
    AboveCeiling(#[from] AboveCeiling),
    #[error(
        "the network is `{asked}`, and this server allows at most `{most}`; its operator can allow it with --allow-network={asked}"
    )]
    NetworkNotAllowed { asked: NetworkLevel, most: NetworkLevel },
    /// Addresses are reached only where the operator says so.
    #[error("{host} is an address and not a name; the operator can let sandboxes reach it with --egress-private")]
    AddressNotAllowed { host: String },
    /// The interface of a sandbox cannot change.
    #[error("the network cannot change to or from `open` while the sandbox lives; create another one")]
    NetworkFixed,
    #[error(
        "the session is one of several in a sandbox, whose network it has; change it with PATCH /v1/sandboxes/{sandbox}"
    )]
    NetworkOfSandbox { sandbox: String },
    #[error(
        "your data exceeds your share of the {limit_mb} MB of this server, so nothing new can start; delete sessions. The \
         operator can raise --max-data-mb or --max-data-mb-per-principal"
    )]
    QuotaExceeded { limit_mb: u64 },
    /// Another session would only delay those that are being created.
    #[error("{pending} sessions are being created already; retry in a moment")]
    TooManyPending { pending: usize },
    #[error(transparent)]
    Manager(Box<ManagerError>),
    #[error(transparent)]
    Sandbox(Box<SandboxError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A frozen run was requested, and the environment differs from that of the recorded run.
    #[error("the environment differs from that of the recorded run: {}", differences.join("; "))]
    RecordMismatch { differences: Vec<String> },
    /// Recording packages or seeding failed before the first cell.
    #[error("the kernel cannot be prepared for the run: {0}")]
    KernelPreparation(String),
    #[error("an artifact cannot be read: {0}")]
    Artifacts(#[source] std::io::Error),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl ServiceError {
    pub(super) fn not_found(id: &SessionId) -> Self {
        Self::SessionNotFound { id: id.to_string() }
    }

    /// Whether the request succeeds once other sessions have started or ended.
    pub(super) fn is_lack_of_place(&self) -> bool {
        matches!(
            self,
            Self::SessionLimit { .. } | Self::SessionShare { .. } | Self::ProcessLimit { .. } | Self::TooManyPending { .. }
        )
    }
}

impl From<ManagerError> for ServiceError {
    fn from(error: ManagerError) -> Self {
        Self::Manager(Box::new(error))
    }
}

impl From<SandboxError> for ServiceError {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(Box::new(error))
    }
}

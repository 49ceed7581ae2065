//! What kept sessions are made of: how the server keeps them, how each is to be, and why one cannot be had.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ManagerError, SandboxChoice};
use crate::kernels;
use crate::notebook::parameters::ParameterError;
use crate::policy::Limits;
use crate::sandbox::SandboxError;
use crate::session::SessionError;
use crate::store::StoreError;

/// What is decided once for all kept sessions.
#[derive(Clone, Debug)]
pub struct KeeperSettings {
    /// The sandbox that sessions get.
    pub sandbox: SandboxChoice,
    /// Sessions that may live at once.
    pub max_sessions: usize,
    /// Kernels that may start at once; more wait.
    pub max_starting: usize,
    /// Seconds without use after which a session ends, where its maker says nothing.
    pub idle_timeout_seconds: u64,
    /// Seconds for which an ended session can still be read.
    pub keep_ended_seconds: u64,
    /// Seconds after its end for which a cell's events stay as they came; then those of growing or rewritten text are merged.
    pub compact_after_seconds: u64,
    /// Megabytes that journal and artifacts may take: over it, the sessions that ended first are forgotten first.
    pub max_data_mb: u64,
    /// Kernels, and how many sessions of each are made ahead.
    pub pool: Vec<(String, usize)>,
}

impl Default for KeeperSettings {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            sandbox: SandboxChoice::Auto,
            max_sessions: 100,
            max_starting: cpus.max(2),
            idle_timeout_seconds: 3600,
            keep_ended_seconds: 24 * 3600,
            compact_after_seconds: 3600,
            max_data_mb: 20 << 10,
            pool: Vec::new(),
        }
    }
}

/// A session to be made.
#[derive(Clone, Debug, Default)]
pub struct NewSession {
    /// The kernel's name, an alias of it, or its language.
    pub kernel: String,
    /// What its maker calls it.
    pub name: Option<String>,
    /// Variables for the kernel. They are nowhere but in the sandbox.
    pub env: Vec<(String, String)>,
    /// The rest.
    pub spec: KeptSpec,
}

/// What is written down of how a session is to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptSpec {
    /// Its limits.
    pub limits: Limits,
    /// Whether it has the network.
    pub open_network: bool,
    /// Seconds that each cell may take, where it says nothing itself.
    pub timeout_seconds: Option<f64>,
    /// Seconds that it may live in all.
    pub ttl_seconds: Option<u64>,
    /// Seconds without use after which it ends.
    pub idle_timeout_seconds: Option<u64>,
    /// Its maker's labels.
    pub labels: HashMap<String, String>,
    /// The notebook run that it was made for: it ends with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<KeptRun>,
}

/// A notebook that is run as a job of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptRun {
    /// The ids of the cells that are run, in order.
    pub cells: Vec<String>,
    /// What is known of the run before its first cell, for the notebook's metadata: JSON text.
    pub record: String,
}

/// Why a kept session cannot be had or made.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// There is none of that id that the asking principal may see.
    #[error("there is no session {id}")]
    NoSession {
        /// The id.
        id: String,
    },
    /// There is no such kernel.
    #[error(transparent)]
    NoKernel(#[from] kernels::KernelError),
    /// There are as many as there may be.
    #[error("there are {limit} sessions already, as many as this server keeps; end one, or wait until one ends")]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// The data takes as much as it may.
    #[error(
        "the sessions' data takes more than {limit_mb} MB, and yours the most, so nothing new is begun; delete sessions, or raise --max-data-mb"
    )]
    NoRoom {
        /// How much it may take.
        limit_mb: u64,
    },
    /// So many are being made that another would only slow them down.
    #[error("{waiting} sessions are being made already; try again in a moment")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// It could not be made.
    #[error(transparent)]
    Manager(Box<ManagerError>),
    /// Its sandbox could not be ended.
    #[error(transparent)]
    Sandbox(Box<SandboxError>),
    /// The journal failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A parameter cannot be given to a notebook.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A notebook is to be run with what it was run with before, and that is not what there is.
    #[error("this is not what the notebook was run with before: {}", differences.join("; "))]
    Changed {
        /// How it differs, in words.
        differences: Vec<String>,
    },
    /// The kernel could not be asked or told what a run needs before its first cell.
    #[error("the kernel cannot be prepared: {0}")]
    Unprepared(String),
    /// An artifact cannot be read.
    #[error("an artifact cannot be read: {0}")]
    Artifacts(#[source] std::io::Error),
    /// The session said no.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl From<ManagerError> for KeeperError {
    fn from(error: ManagerError) -> Self {
        Self::Manager(Box::new(error))
    }
}

impl From<SandboxError> for KeeperError {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(Box::new(error))
    }
}

//! What the manager tells the agent at its start, as one JSON argument. It holds no secret: the kernel can read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::Limits;
use crate::wire::connection_file::Transport;

/// Where the agent finds its listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listen {
    /// An inherited listening socket: the kernel cannot even see its path.
    Fd(i32),
    /// A path to bind, where no descriptor can be handed in (containers).
    Path(String),
}

/// Everything the agent must know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentConfig {
    /// Where to listen for the manager.
    pub listen: Listen,
    /// Kernel name, for the connection file.
    pub kernel: String,
    /// The kernelspec's argv, with `{connection_file}` in it.
    pub argv: Vec<String>,
    /// The kernel's whole environment.
    pub env: BTreeMap<String, String>,
    /// How the kernel's sockets are reached.
    pub transport: Transport,
    /// Whether interrupts go as `interrupt_request` on control (kernelspec `interrupt_mode: message`) instead of SIGINT.
    pub interrupt_by_message: bool,
    /// The workspace: the kernel's working directory, and the root of file requests.
    pub workspace: String,
    /// A folder that only the agent and its kernel use: connection files and ipc sockets.
    pub runtime_dir: String,
    /// Folders that the kernel may write, all else is denied by Landlock where there is one.
    pub writable: Vec<String>,
    /// The session's limits; the agent enforces output, and what rlimits can do.
    pub limits: Limits,
    /// Whether a cgroup holds the memory limit. If not, the agent watches memory itself.
    pub memory_enforced: bool,
    /// Whether rlimits must hold the number of processes (no cgroup does, and the user namespace makes the count ours).
    pub nproc_rlimit: bool,
    /// End the sandbox when no manager has been attached for so many seconds. `None`: wait for ever.
    pub orphan_seconds: Option<u64>,
}

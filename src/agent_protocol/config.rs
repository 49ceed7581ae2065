//! The agent's configuration, which the manager sends over the first connection to the agent's socket.
//!
//! It contains the kernel's environment, which may hold secrets. Arguments and environment variables are visible to other
//! users of the machine or of the container engine, and a file could outlive both ends; so the socket carries it.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::ids::SessionId;
use crate::policy::Limits;
use crate::wire::connection_file::Transport;

/// The type of the message that marks the end of an execution's outputs.
pub const END_MARKER: &str = "cellkeep_end";

/// The agent's confirmation that it has received its configuration.
const CONFIRMATION: &[u8] = b"taken";

/// Where the agent finds its listening socket: its one argument, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listen {
    /// An inherited listening socket, whose path the kernel cannot see.
    Fd(i32),
    /// A path to bind, for containers, which inherit no descriptors.
    Path(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentConfig {
    pub listen: Listen,
    /// The session whose kernel the agent starts at once; others are started by requests.
    pub session: Option<SessionId>,
    /// The kernel's name, for the connection file.
    pub kernel: String,
    /// The kernelspec's argv, which contains `{connection_file}`.
    pub argv: Vec<String>,
    /// The complete environment of kernels and processes.
    pub env: BTreeMap<String, String>,
    pub transport: Transport,
    /// Whether the kernel broadcasts on a pipe that it inherits, in addition to the ZeroMQ socket; see `agent::iopub_pipe`.
    pub iopub_pipe: bool,
    /// Code that the agent runs silently after each start of the kernel, before the kernel counts as ready.
    pub startup_code: Option<String>,
    /// Code in front of a cell's that sets environment and working folder, for a kernel that cannot read the metadata of requests. It has
    /// `{context}` where their JSON belongs. What it sets is set back by the end marker.
    pub context_code: Option<String>,
    /// Code that broadcasts a message of type [`END_MARKER`], for a kernel that broadcasts outputs after their execution's
    /// reply and idle. The agent runs it after each execution, and passes reply and idle on when the message has come.
    pub end_marker: Option<String>,
    /// Whether interrupts are sent as `interrupt_request` on control (kernelspec `interrupt_mode: message`) instead of
    /// SIGINT.
    pub interrupt_by_message: bool,
    /// The workspace: the kernel's working directory, and the root of file requests.
    pub workspace: String,
    /// The folder of ipc sockets, which only the agent and its kernel use.
    pub runtime_dir: String,
    /// The folder of connection files, in which the kernel cannot write.
    pub connection_dir: String,
    /// Folders that the kernel may write to; Landlock, where available, denies the rest.
    pub writable: Vec<String>,
    /// The agent enforces the output limit and what rlimits can enforce.
    pub limits: Limits,
    /// Whether the agent listens on [`EGRESS_PORT`](super::EGRESS_PORT): the sandbox has no network of its own.
    pub proxy_port: bool,
    /// Whether a cgroup enforces the memory limit. If not, the agent does.
    pub memory_enforced: bool,
    /// Whether `RLIMIT_NPROC` must limit the processes: no cgroup does, and the user namespace counts only this sandbox's.
    pub nproc_rlimit: bool,
    /// The agent ends the sandbox after this many seconds without a manager. `None`: never.
    pub orphan_seconds: Option<u64>,
}

/// The manager's side: sends the configuration and waits for the confirmation.
///
/// # Errors
/// When the agent exits or disconnects before it confirms; its standard error says why.
pub async fn send_config<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, config: &AgentConfig) -> io::Result<()> {
    let json = serde_json::to_vec(config)?;
    // Its length comes first: gVisor does not always report the end of a stream.
    stream.write_u64(json.len() as u64).await?;
    stream.write_all(&json).await?;
    let mut answer = [0; CONFIRMATION.len()];
    stream.read_exact(&mut answer).await?;
    if answer == CONFIRMATION { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The agent's side. Reads without a cap, since the agent trusts the manager that started it.
///
/// # Errors
/// When the connection fails or the JSON is not a configuration.
pub async fn receive_config<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<AgentConfig> {
    let length = stream.read_u64().await?;
    let mut json = Vec::new();
    (&mut stream).take(length).read_to_end(&mut json).await?;
    let config = serde_json::from_slice(&json)?;
    stream.write_all(CONFIRMATION).await?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            listen: Listen::Fd(3),
            session: Some(SessionId::random()),
            kernel: "python".into(),
            argv: vec!["python".into()],
            // More than the maximum length of a program argument.
            env: BTreeMap::from([("BIG".to_owned(), "x".repeat(1 << 20))]),
            transport: Transport::Ipc,
            iopub_pipe: true,
            startup_code: None,
            context_code: None,
            end_marker: None,
            interrupt_by_message: false,
            workspace: "/work".into(),
            runtime_dir: "/run/kernel".into(),
            connection_dir: "/run/connection".into(),
            writable: Vec::new(),
            limits: Limits::default(),
            proxy_port: true,
            memory_enforced: true,
            nproc_rlimit: false,
            orphan_seconds: Some(20),
        }
    }

    #[tokio::test]
    async fn received_configuration_is_confirmed() {
        let (here, there) = tokio::io::duplex(4096);
        let sent = config();
        let (confirmed, received) = tokio::join!(send_config(here, &sent), receive_config(there));
        assert!(confirmed.is_ok());
        assert_eq!(received.unwrap(), sent);
    }

    #[tokio::test]
    async fn dead_agent_confirms_nothing() {
        let (here, there) = tokio::io::duplex(4 << 20);
        let agent = async {
            let mut there = there;
            let mut byte = [0];
            there.read_exact(&mut byte).await.unwrap();
        };
        let sent = config();
        let (confirmed, ()) = tokio::join!(send_config(here, &sent), agent);
        assert!(confirmed.is_err());
    }
}

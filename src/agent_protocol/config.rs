//! What the manager tells the agent at its start, and how: over the first connection to the agent's socket.
//!
//! It holds the kernel's environment, so perhaps secrets of the user's. Hence no argument and no variable, which every user
//! of a machine or of a container engine can read, and no file, which could outlive both ends.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::policy::Limits;
use crate::wire::connection_file::Transport;

/// The agent's word that it has its configuration.
const TAKEN: &[u8] = b"taken";

/// Where the agent finds its listening socket: its one argument, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listen {
    /// A listening socket by its number: the kernel cannot even see its path.
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

/// The manager's side: sends the configuration and waits until the agent has taken it.
///
/// # Errors
/// When the agent ends or goes away before; what it says on its standard error tells why.
pub async fn send_config<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, config: &AgentConfig) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(config)?).await?;
    stream.shutdown().await?;
    let mut answer = [0; TAKEN.len()];
    stream.read_exact(&mut answer).await?;
    if answer == TAKEN { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The agent's side. The manager made this very agent, so what it sends needs no cap.
///
/// # Errors
/// When the connection fails, or what comes is no configuration.
pub async fn receive_config<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<AgentConfig> {
    let mut json = Vec::new();
    stream.read_to_end(&mut json).await?;
    let config = serde_json::from_slice(&json)?;
    stream.write_all(TAKEN).await?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            listen: Listen::Fd(3),
            kernel: "python".into(),
            argv: vec!["python".into()],
            // Far more than one argument of a program may have.
            env: BTreeMap::from([("BIG".to_owned(), "x".repeat(1 << 20))]),
            transport: Transport::Ipc,
            interrupt_by_message: false,
            workspace: "/work".into(),
            runtime_dir: "/run/kernel".into(),
            writable: Vec::new(),
            limits: Limits::default(),
            memory_enforced: true,
            nproc_rlimit: false,
            orphan_seconds: Some(20),
        }
    }

    #[tokio::test]
    async fn a_configuration_arrives_and_is_confirmed() {
        let (here, there) = tokio::io::duplex(4096);
        let sent = config();
        let (confirmed, received) = tokio::join!(send_config(here, &sent), receive_config(there));
        assert!(confirmed.is_ok());
        assert_eq!(received.unwrap(), sent);
    }

    #[tokio::test]
    async fn an_agent_that_ends_has_taken_nothing() {
        let (here, there) = tokio::io::duplex(4 << 20);
        let ends = async {
            let mut there = there;
            let mut byte = [0];
            there.read_exact(&mut byte).await.unwrap();
        };
        let sent = config();
        let (confirmed, ()) = tokio::join!(send_config(here, &sent), ends);
        assert!(confirmed.is_err());
    }
}

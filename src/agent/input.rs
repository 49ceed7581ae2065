//! The inputs of the agent's event loop. What waits for something outside sends them: connections and the kernel's sockets.

use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::channels::{Received, Senders};
use crate::agent_protocol::ToAgent;
use crate::ids::Generation;

pub(super) enum Input {
    Connection(UnixStream),
    Frame {
        connection: u64,
        frame: ToAgent,
    },
    Closed {
        connection: u64,
    },
    /// The result of connecting to the kernel's sockets.
    Connected {
        generation: Generation,
        result: Result<(Senders, JoinSet<()>), String>,
    },
    Received {
        generation: Generation,
        received: Received,
    },
}

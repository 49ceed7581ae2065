//! The inputs of a kernel's event loop. What waits for something outside sends them: connections and the kernel's sockets.

use tokio::task::JoinSet;

use super::channels::{Received, Senders};
use super::connection::ManagerStream;
use crate::agent_protocol::ToAgent;
use crate::ids::Generation;

pub(super) enum Input {
    Connection(ManagerStream),
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
    /// Another session executes now: what has changed so far belongs to this one.
    ReportChanges,
    /// End the kernel, and the task.
    Stop,
}

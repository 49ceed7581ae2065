//! The state of a session.

use serde::{Deserialize, Serialize};

use crate::ids::SessionPhase;

/// State of a session, with the names of the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// The first kernel has not answered yet.
    Starting,
    Idle,
    /// Executing a cell.
    Busy,
    /// Executing a cell that is being stopped.
    Interrupting,
    /// The kernel is being restarted in its sandbox.
    Restarting,
    /// The session is over.
    Gone {
        /// For people.
        why: String,
    },
}

impl SessionState {
    /// The state without its details.
    pub fn phase(&self) -> SessionPhase {
        match self {
            Self::Starting => SessionPhase::Starting,
            Self::Idle => SessionPhase::Idle,
            Self::Busy => SessionPhase::Busy,
            Self::Interrupting => SessionPhase::Interrupting,
            Self::Restarting => SessionPhase::Restarting,
            Self::Gone { .. } => SessionPhase::Gone,
        }
    }

    pub fn name(&self) -> &'static str {
        self.phase().as_str()
    }
}

//! A session: one kernel in one sandbox, and its cells, which are executed one at a time.
//!
//! ```text
//!            Ready           execution                  interrupt, timeout, too much output
//! Starting ─────────▶ Idle ◀────────▶ Busy ───────────────────────────────▶ Interrupting
//!    ▲                 │                │                                        │
//!    │                 │ kernel died    │ kernel died (kernel_died, ...)         │ reply: back to Idle
//!    └── Restarting ◀──┴────────────────┴────────────────────────────────────────┘ SIGKILL: kernel died
//!
//! any ── sandbox gone, session ended ──▶ Gone (nothing leads out of it)
//!
//!    SessionHandle ──command──▶ ┌────────── driver (one task) ──────────┐ ◀──event── Link
//!                               │ input ─▶ Machine ─▶ Transaction       │
//!    subscribers ◀──committed── │                     Effects           │ ──effects─▶ Link, sandbox, callers
//!                               └───────────────▲───────────────────────┘
//!                                               │ commit first, then effects (Journal)
//! ```
//!
//! `cell`, `execution`, `state` and `transaction` are plain types. [`machine`] is the pure logic, `driver` the one task that owns it,
//! `handle` what others hold of a session, `journal` where it commits, `upload` a file on its way into the sandbox. Every accepted execution ends exactly once, in one of the [`ExecutionStatus`]es.
//! Nothing has an effect outside before it is in the [`Journal`].

mod cell;
mod driver;
mod execution;
mod handle;
mod journal;
mod machine;
mod memory_journal;
#[cfg(test)]
mod simulation;
mod state;
mod transaction;
mod upload;

pub use crate::agent_protocol::{ChangeKind, ExecutionContext, ExecutionUsage, FileChange, FileChanges};
pub use cell::{Cell, CellEdit, CellExecution, CellPhase, CellType, ExecutionOptions, NewCell};
pub use driver::{SessionParts, end_stored, start};
pub use execution::{ExecutionResult, ExecutionStatus, metrics};
pub use handle::{SessionError, SessionHandle};
pub use journal::{Journal, JournalError};
pub use machine::{CLEARED, Denied, Stored};
pub use memory_journal::{MemoryJournal, SessionEvents};
pub use state::SessionState;
pub use transaction::{CellChange, EventBody, NotebookChange, OutputMode, OutputState, SessionEvent, Transaction};
pub use upload::{AgentRequests, Upload};

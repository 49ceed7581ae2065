//! A session: one kernel in one sandbox, and the cells it is given, which run one at a time.
//!
//! ```text
//!            Ready             run                     interrupt, timeout, too much output
//! Starting ─────────▶ Idle ◀────────▶ Busy ───────────────────────────────▶ Interrupting
//!    ▲                 │                │                                        │
//!    │                 │ kernel died    │ kernel died (run: kernel_died, ...)    │ reply: back to Idle
//!    └── Restarting ◀──┴────────────────┴────────────────────────────────────────┘ SIGKILL: kernel died
//!
//! any ── sandbox gone, ended ──▶ Gone (nothing leads out of it)
//!
//!   commands ──▶ ┌────────┐ piece  ┌─────────┐ then   ┌──────────────────────┐
//!   link     ──▶ │  core  │ ─────▶ │ journal │ ─────▶ │ effects, acks, replies│
//!   time     ──▶ └────────┘        └─────────┘        └──────────────────────┘
//! ```
//!
//! `core` (with `active`, `kernel`, `commands`, `questions`, `messages`, `late` and `captures`) is the machine, pure; `driver` is
//! the one task that owns it; `upload` is a file on its way into the sandbox; `cells` is the notebook; `run` and `ladder` are what a
//! run's messages mean and how an interrupt escalates. Every accepted run ends exactly once, in one of the [`RunStatus`]es. What has
//! happened is in the [`Journal`] before anything that follows from it is done.

mod active;
mod captures;
mod cells;
mod commands;
mod core;
#[cfg(test)]
mod core_tests;
mod driver;
mod handle;
mod kernel;
mod ladder;
mod late;
mod messages;
mod piece;
mod questions;
mod run;
#[cfg(test)]
mod simulation;
mod upload;
mod volatile;

pub use crate::agent_protocol::RunUsage;
pub use captures::CLEARED;
pub use cells::{Cell, CellPhase, CellRun, CellType, RunOptions};
pub use commands::{CellEdit, Denied, NewCell};
pub use core::Stored;
pub use driver::{SessionParts, end_stored, start};
pub use handle::{SessionError, SessionHandle, SessionState};
pub use piece::{CellChange, EventBody, FoldChange, Journal, JournalError, NotebookChange, Piece, SessionEvent, Telling};
pub use run::{RunResult, RunStatus, metrics};
pub use upload::Upload;
pub use volatile::{SessionEvents, VolatileJournal};

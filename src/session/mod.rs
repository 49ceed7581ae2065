//! A session: one kernel in one sandbox, and the runs it is given, one at a time.
//!
//! ```text
//!            Ready             run                     interrupt, timeout, too much output
//! Starting ─────────▶ Idle ◀────────▶ Busy ───────────────────────────────▶ Interrupting
//!    ▲                 │                │                                        │
//!    │                 │ kernel died    │ kernel died (run: kernel_died, ...)    │ reply: back to Idle
//!    └── Restarting ◀──┴────────────────┴────────────────────────────────────────┘ SIGKILL: kernel died
//!
//! any ── sandbox gone, stop ──▶ Gone (nothing leads out of it)
//! ```
//!
//! [`driver`] is the one task that owns all of this. [`run`] and [`ladder`] are pure: what a run's messages mean, and how an
//! interrupt escalates. Every accepted run ends exactly once, in one of the [`RunStatus`]es.

mod driver;
mod handle;
mod ladder;
mod run;

pub use driver::start;
pub use handle::{RunEvent, RunEvents, RunRequest, SessionError, SessionHandle, SessionState, StrayOutput};
pub use run::{RunResult, RunStatus};

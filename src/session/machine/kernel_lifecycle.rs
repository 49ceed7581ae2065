//! The session's state and the life of its kernel: generations, starts, deaths and restarts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use super::denied::Denied;
use crate::ids::Generation;
use crate::session::state::SessionState;
use crate::wire::json as wire_json;

/// How long a kernel may take to answer for the first time. Julia with precompilation takes half of it.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How many deaths in a row are followed by a restart. Only deaths of a kernel that was ready and ended by itself count, and an
/// execution that ends resets the count. A kernel that dies while it starts is not started again.
const MAX_DEATHS: u32 = 3;

/// See the [module](self) text.
#[derive(Debug)]
pub(super) struct KernelLifecycle {
    state: SessionState,
    /// Content of the `kernel_info_reply`. It is long, so a change is recognised by the pointer.
    info: Arc<Value>,
    generation: Generation,
    start_deadline: Option<Instant>,
    /// Deaths in a row.
    deaths: u32,
    /// The generation that a restart is to replace.
    restart_of: Option<Generation>,
    /// The generation whose restart was requested over this connection.
    requested_restart_of: Option<Generation>,
}

/// The part of [`KernelLifecycle`] that is journaled besides state and info.
#[derive(Serialize, Deserialize)]
pub(super) struct JournaledLifecycle {
    generation: Generation,
    deaths: u32,
    restart_of: Option<Generation>,
}

impl KernelLifecycle {
    pub fn new(cx: Context) -> Self {
        Self {
            state: SessionState::Starting,
            info: Arc::default(),
            generation: Generation(0),
            start_deadline: Some(cx.instant + START_DEADLINE),
            deaths: 0,
            restart_of: None,
            requested_restart_of: None,
        }
    }

    /// `info` is JSON text as the kernel sent it, which only the lenient parser may read.
    pub fn restore_info(&mut self, info: Option<&str>) {
        let info = info.and_then(|info| wire_json::parse_lenient(info.as_bytes()).ok());
        self.info = Arc::new(info.unwrap_or(Value::Null));
    }

    pub fn restore(&mut self, stored: &JournaledLifecycle) {
        (self.generation, self.deaths, self.restart_of) = (stored.generation, stored.deaths, stored.restart_of);
        if self.restart_of.is_some() {
            self.state = SessionState::Restarting;
        }
    }

    pub fn to_journal(&self) -> JournaledLifecycle {
        JournaledLifecycle { generation: self.generation, deaths: self.deaths, restart_of: self.restart_of }
    }

    // ---- state --------------------------------------------------------------------------------------------------------

    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Returns whether that is a change. Nothing leads out of `Gone`.
    pub fn set_state(&mut self, state: &SessionState) -> bool {
        let changes = self.state != *state && !self.is_gone();
        if changes {
            self.state.clone_from(state);
        }
        changes
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.state, SessionState::Gone { .. })
    }

    pub fn check_alive(&self) -> Result<(), Denied> {
        match &self.state {
            SessionState::Gone { why } => Err(Denied::Gone { why: why.clone() }),
            _ => Ok(()),
        }
    }

    /// Whether the kernel takes requests.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, SessionState::Idle | SessionState::Busy | SessionState::Interrupting)
    }

    pub fn check_ready(&self) -> Result<(), Denied> {
        self.check_alive()?;
        if self.is_ready() { Ok(()) } else { Err(Denied::NotReady { state: self.state.name() }) }
    }

    pub fn info(&self) -> &Arc<Value> {
        &self.info
    }

    // ---- generations --------------------------------------------------------------------------------------------------

    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Something was heard of this generation. Returns whether it is a later one than was known.
    pub fn advance_generation(&mut self, generation: Generation) -> bool {
        let is_later = generation > self.generation;
        if is_later {
            self.generation = generation;
        }
        is_later
    }

    // ---- starts -------------------------------------------------------------------------------------------------------

    /// A kernel starts, and has [`START_DEADLINE`] to answer.
    pub fn await_start(&mut self, cx: Context) {
        self.start_deadline = Some(cx.instant + START_DEADLINE);
    }

    pub fn start_deadline(&self) -> Option<Instant> {
        self.start_deadline
    }

    /// Why the session ends if the kernel's start is overdue.
    pub fn overdue_start(&self, now: Instant) -> Option<String> {
        self.start_deadline
            .filter(|at| *at <= now)
            .map(|_| format!("the kernel did not answer within {} s of its start", START_DEADLINE.as_secs()))
    }

    pub fn is_starting(&self) -> bool {
        self.start_deadline.is_some()
    }

    /// The kernel is known to have started, even if it has not said so yet.
    pub fn end_start(&mut self) {
        self.start_deadline = None;
    }

    /// The kernel says that it is ready; `info` is the content of its `kernel_info_reply`. Returns whether that is the kernel which
    /// is wanted: one that is about to be replaced is not.
    pub fn became_ready(&mut self, info: &str) -> bool {
        if self.restart_is_pending() {
            return false;
        }
        let info = wire_json::parse_lenient(info.as_bytes()).unwrap_or(Value::Null);
        // After a restart it mostly says the same, which need not be journaled again.
        if *self.info != info {
            self.info = Arc::new(info);
        }
        self.start_deadline = None;
        self.restart_of = None;
        true
    }

    // ---- restarts -----------------------------------------------------------------------------------------------------

    /// Whether the kernel that is known is to be replaced.
    pub fn restart_is_pending(&self) -> bool {
        self.restart_of == Some(self.generation)
    }

    pub fn forget_restart(&mut self) {
        self.restart_of = None;
    }

    /// The kernel is to be replaced. Returns whether the agent is to be asked now: once over each connection, and not while there
    /// is none, because a request that arrives twice could end the new kernel as well.
    pub fn request_restart(&mut self, is_attached: bool) -> bool {
        self.restart_of = Some(self.generation);
        is_attached && self.requested_restart_of.replace(self.generation) != Some(self.generation)
    }

    /// A new connection: what was requested over the last one may not have arrived.
    pub fn forget_requests(&mut self) {
        self.requested_restart_of = None;
    }

    /// Counts a death, and returns whether the kernel is to be started again.
    pub fn allows_restart(&mut self, by_itself: bool) -> bool {
        self.deaths += u32::from(by_itself);
        self.deaths <= MAX_DEATHS
    }

    pub fn deaths(&self) -> u32 {
        self.deaths
    }

    /// An execution has ended: the kernel works.
    pub fn reset_deaths(&mut self) {
        self.deaths = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn lifecycle() -> KernelLifecycle {
        KernelLifecycle::new(Context {
            instant: Instant::now(),
            time: SystemTime::UNIX_EPOCH,
            make_uuid: || "id".to_owned(),
        })
    }

    #[test]
    fn restart_is_requested_once_per_connection() {
        let mut kernel = lifecycle();
        kernel.set_generation(Generation(1));
        assert!(!kernel.request_restart(false), "nobody to ask");
        assert!(kernel.request_restart(true) && !kernel.request_restart(true));
        kernel.forget_requests();
        assert!(kernel.request_restart(true));
        assert!(!kernel.became_ready("{}"), "this one is being replaced");
        assert!(kernel.advance_generation(Generation(2)) && kernel.became_ready("{}"));
        assert!(!kernel.restart_is_pending());
    }

    #[test]
    fn deaths_in_a_row_are_limited() {
        let mut kernel = lifecycle();
        assert!(kernel.allows_restart(false), "one that was asked for does not count");
        assert_eq!([true, true, true, false], [(); 4].map(|()| kernel.allows_restart(true)));
        kernel.reset_deaths();
        assert!(kernel.allows_restart(true));
    }

    #[test]
    fn nothing_leads_out_of_gone() {
        let mut kernel = lifecycle();
        assert!(kernel.set_state(&SessionState::Gone { why: "over".to_owned() }));
        assert!(!kernel.set_state(&SessionState::Idle));
        assert_eq!(kernel.check_ready(), Err(Denied::Gone { why: "over".to_owned() }));
    }
}

//! What the machine may know of the world. The driver passes it in with every input, so that the machine itself reads no clock and
//! makes no random number: the same inputs in the same contexts give the same outcome.

use std::time::{Instant, SystemTime};

use crate::wire::Message;
use crate::wire::requests::KernelRequest;

/// The world at the moment of one input.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) struct Context {
    /// Monotonic clock: deadlines are computed from it.
    pub instant: Instant,
    /// Wall clock: what events and results are stamped with.
    pub time: SystemTime,
    /// Makes a UUID in text form that was never made before.
    pub make_uuid: fn() -> String,
}

impl Context {
    /// A message to the kernel with a fresh id.
    pub fn message(&self, session: &str, request: KernelRequest) -> Message {
        request.into_message(&(self.make_uuid)(), session, self.time)
    }
}

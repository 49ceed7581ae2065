//! Limits, ceilings, isolation levels, the seccomp table and hidden paths of sessions. Pure values and checks; adapters enforce them.

mod ceilings;
pub mod hidden_paths;
mod limits;
pub mod seccomp;

pub use ceilings::{AboveCeiling, Ceilings, Machine, PrincipalCeilings, leaves_a_share};
pub use limits::{Isolation, IsolationLevel, LimitOutOfRange, LimitState, Limits, MIB, Network, ParseSizeError, parse_size};

//! Limits, ceilings, isolation levels, the seccomp table, hidden paths and data mounts of sessions. Pure values and checks; adapters enforce them.

mod ceilings;
pub mod hidden_paths;
mod limits;
mod mounts;
pub mod seccomp;

pub use ceilings::{AboveCeiling, Ceilings, Machine, PrincipalCeilings, leaves_a_share};
pub use limits::{Isolation, IsolationLevel, LimitOutOfRange, LimitState, Limits, MIB, Network, ParseSizeError, parse_size};
pub use mounts::{DataMount, DataMounts, UnknownMount, is_mount_name};

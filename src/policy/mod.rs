//! Limits, isolation levels, the seccomp table and hidden paths of sessions. Pure values and checks; adapters enforce them.

pub mod hidden_paths;
mod limits;
pub mod seccomp;

pub use limits::{Isolation, IsolationLevel, LimitOutOfRange, LimitState, Limits, Network, ParseSizeError, parse_size};

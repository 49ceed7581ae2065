//! What a session may use and do. Plain values and pure decisions; adapters enforce them.

mod limits;
pub mod paths;
pub mod seccomp;

pub use limits::{BadLimit, Isolation, IsolationLevel, LimitState, Limits, Network, ParseSizeError, parse_size};

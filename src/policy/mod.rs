//! Limits, ceilings, network policies, secrets, isolation levels, the seccomp table, hidden paths, patterns of artifacts, data
//! mounts and packages of sessions.
//! Pure values and checks; adapters enforce them.

#[cfg(feature = "host")]
mod artifact_patterns;
#[cfg(feature = "host")]
mod ceilings;
pub mod hidden_paths;
mod limits;
mod mounts;
#[cfg(feature = "host")]
mod network;
#[cfg(feature = "host")]
mod packages;
pub mod seccomp;
#[cfg(feature = "host")]
mod secrets;

#[cfg(feature = "host")]
pub use artifact_patterns::{BadPattern, check_artifact_patterns};
#[cfg(feature = "host")]
pub use ceilings::{AboveCeiling, Ceilings, Machine, PrincipalCeilings, leaves_a_share};
pub use limits::{Isolation, IsolationLevel, LimitOutOfRange, LimitState, Limits, MIB, Network, ParseSizeError, parse_size};
pub use mounts::{DataMount, DataMounts, UnknownMount, is_mount_name};
#[cfg(feature = "host")]
pub use network::{HostName, HostRule, MAX_RULES, NetworkLevel, NetworkPolicy, PolicyError, parse_authority};
#[cfg(feature = "host")]
pub use packages::{MAX_LOCK, PackageRequest, PackageRequestError, PackageRules};
#[cfg(feature = "host")]
pub use secrets::{MAX_SECRETS, Secret, SecretDescription, SecretError, SecretUse, SecretValue};

//! Newtypes for ids and numbers, so that the compiler tells them apart, and the names of session phases.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Random bytes from the system.
///
/// The kernel's generator cannot fail once it is seeded, which happens long before user space runs. On a failure the process
/// aborts: predictable ids would be worse.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                eprintln!("cellkeep: cannot get random numbers from the system: {error}");
                std::process::abort();
            }
        }
    }
    bytes
}

/// A random UUID (version 4) as text. Jupyter clients expect ids of five groups separated by dashes.
pub fn random_uuid() -> String {
    let mut b: [u8; 16] = random_bytes();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in b.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.extend([byte >> 4, byte & 0x0f].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
    }
    text
}

/// Identifies a session: 128 random bits as a UUID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(String);

impl SessionId {
    /// A new id that cannot be guessed.
    pub fn random() -> Self {
        Self(random_uuid())
    }

    /// Parses an untrusted id. `None` unless it is 1 to 64 characters of `a-z 0-9 -`: ids become names of folders,
    /// containers and cgroups.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies a sandbox. One that was created for a session has the session's id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(SessionId);

impl SandboxId {
    /// A new id that cannot be guessed.
    pub fn random() -> Self {
        Self(SessionId::random())
    }

    /// Parses an untrusted id, by the same rules as [`SessionId::parse`].
    pub fn parse(text: &str) -> Option<Self> {
        SessionId::parse(text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The session for which the sandbox was created, if it was created for one.
    pub fn as_session(&self) -> &SessionId {
        &self.0
    }
}

impl From<SessionId> for SandboxId {
    fn from(session: SessionId) -> Self {
        Self(session)
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies a process of a sandbox: 128 random bits as a UUID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(String);

impl ProcessId {
    /// A new id that cannot be guessed.
    pub fn random() -> Self {
        Self(random_uuid())
    }

    /// Parses an untrusted id. `None` unless it is 1 to 64 characters of `a-z 0-9 -`.
    pub fn parse(text: &str) -> Option<Self> {
        SessionId::parse(text).map(|id| Self(id.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The owner of sessions: quotas, rate limits and visibility are per principal. Cloning does not allocate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrincipalId(Arc<str>);

impl PrincipalId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PrincipalId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for PrincipalId {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Which sessions a caller can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The sessions of every principal: administrators and the server itself.
    All,
    /// The sessions of one principal.
    Principal(PrincipalId),
}

impl Access {
    /// Whether a session of `owner` is visible.
    pub fn includes(&self, owner: &PrincipalId) -> bool {
        match self {
            Self::All => true,
            Self::Principal(principal) => principal == owner,
        }
    }

    /// The one principal whose sessions are visible. `None` means all principals.
    pub fn principal(&self) -> Option<&PrincipalId> {
        match self {
            Self::All => None,
            Self::Principal(principal) => Some(principal),
        }
    }
}

/// The phase of a session as the store and the HTTP API name it.
///
/// `Creating` and `Deleting` are written by the manager only; the other phases come from the session's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionPhase {
    /// The row exists, the sandbox or the kernel is not ready yet.
    Creating,
    Starting,
    Idle,
    Busy,
    Interrupting,
    Restarting,
    /// The session has ended. Its journal can still be read.
    Gone,
    /// The session is being removed. A server that starts with such a row continues the removal.
    Deleting,
}

impl SessionPhase {
    /// The phases that a client can see.
    pub const VISIBLE: [Self; 6] =
        [Self::Starting, Self::Idle, Self::Busy, Self::Interrupting, Self::Restarting, Self::Gone];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Interrupting => "interrupting",
            Self::Restarting => "restarting",
            Self::Gone => "gone",
            Self::Deleting => "deleting",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::VISIBLE.into_iter().chain([Self::Creating, Self::Deleting]).find(|phase| phase.as_str() == name)
    }
}

/// The phase of a cell's latest execution as the store and the HTTP API name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CellPhase {
    Queued,
    Running,
    /// Ended, or never executed.
    #[default]
    Finished,
}

impl CellPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Queued, Self::Running, Self::Finished].into_iter().find(|phase| phase.as_str() == name)
    }
}

/// The number of an event within an epoch, counted from 1 without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    pub const FIRST: Self = Self(1);

    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies one run of an agent. Random, so that event numbers of an earlier run are never mistaken for its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn random() -> Self {
        Self(u64::from_le_bytes(random_bytes()))
    }
}

/// Counts the starts of the kernel process inside a sandbox, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a cell in its session, in order of creation, from 1. It stays with the cell, whatever its place in the
/// notebook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellNumber(pub u32);

impl fmt::Display for CellNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies one execution of a cell. It is the `msg_id` of its `execute_request`, so that the kernel's messages refer to
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutionId(pub String);

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_distinct_uuids() {
        let (a, b) = (SessionId::random(), SessionId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(SessionId::parse(a.as_str()), Some(a));
    }

    #[test]
    fn untrusted_ids_cannot_contain_paths() {
        for bad in ["", "..", "a/b", "A", "a b", "ä", &"a".repeat(65)] {
            assert_eq!(SessionId::parse(bad), None, "{bad:?}");
        }
    }
}

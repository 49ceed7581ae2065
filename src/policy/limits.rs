//! Limits of a session and the statement of what isolation it really has.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes in a mebibyte; limits are given in these.
pub const MIB: u64 = 1024 * 1024;

/// What one session may use. Defaults are those of the HTTP contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory of all the session's processes together, MiB. No swap on top.
    pub memory_mb: u64,
    /// CPU time per wall time, in CPUs.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u64,
    /// Size of the workspace, MiB; `/tmp` has a quarter of it on top.
    pub disk_mb: u64,
    /// Output that one run of a cell may produce, MiB. Kept in full up to here.
    pub output_mb: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_mb: 512, cpus: 1.0, pids: 256, disk_mb: 256, output_mb: 100 }
    }
}

impl Limits {
    /// What a kernel and its threads need at least.
    pub const LEAST: Self = Self { memory_mb: 64, cpus: 0.01, pids: 16, disk_mb: 1, output_mb: 1 };
    /// Far more than machines have, and nothing that the system cannot count: 16 TB of memory, 1 TB of workspace, 16 GB of output.
    pub const MOST: Self = Self { memory_mb: 16 << 20, cpus: 256.0, pids: 65_536, disk_mb: 1 << 20, output_mb: 16 << 10 };

    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mb.saturating_mul(MIB)
    }

    /// Workspace size in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_mb.saturating_mul(MIB)
    }

    /// Size of `/tmp` in bytes.
    pub fn tmp_bytes(&self) -> u64 {
        (self.disk_bytes() / 4).max(16 * MIB)
    }

    /// Output per run in bytes.
    pub fn output_bytes(&self) -> u64 {
        self.output_mb.saturating_mul(MIB)
    }

    /// Memory in bytes that the parsed outputs of one run may take in the manager: JSON takes several times its text.
    pub fn output_memory(&self) -> usize {
        usize::try_from(self.output_bytes().saturating_mul(4).saturating_add(64 * MIB)).unwrap_or(usize::MAX)
    }

    /// Checks that a kernel can live within the limits at all, and that the system can hold them.
    ///
    /// # Errors
    /// The first limit that is out of its range.
    pub fn validate(&self) -> Result<(), BadLimit> {
        let (least, most) = (Self::LEAST, Self::MOST);
        let check = |field, given: f64, least: f64, most: f64| match (least..=most).contains(&given) {
            true => Ok(()),
            false => Err(BadLimit { field, given, least, most }),
        };
        check("cpus", self.cpus, least.cpus, most.cpus)?;
        // None of the bounds is near where floats leave whole numbers out.
        let whole = |field, given: u64, least: u64, most: u64| check(field, given as f64, least as f64, most as f64);
        whole("memory_mb", self.memory_mb, least.memory_mb, most.memory_mb)?;
        whole("pids", self.pids, least.pids, most.pids)?;
        whole("disk_mb", self.disk_mb, least.disk_mb, most.disk_mb)?;
        whole("output_mb", self.output_mb, least.output_mb, most.output_mb)
    }
}

/// A limit that no session can have.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{field} is {given}; it can be {least} to {most}")]
pub struct BadLimit {
    /// Which: the field of [`Limits`].
    pub field: &'static str,
    given: f64,
    least: f64,
    most: f64,
}

/// What a session may reach over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nothing but its own loopback.
    #[default]
    None,
    /// Whatever the host reaches. The process sandbox then has the host's own network, the container a bridge.
    Open,
}

/// How strongly a session is walled off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationLevel {
    /// Not at all.
    None,
    /// Namespaces, seccomp and limits around processes of this machine.
    Process,
    /// A hardened container.
    Container,
    /// A container whose system calls a user-space kernel serves.
    Gvisor,
    /// A virtual machine.
    Vm,
}

/// The isolation a session has, and which of its limits hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The level.
    pub level: IsolationLevel,
    /// Limits and locks that the system enforces.
    pub enforced: Vec<String>,
    /// What was asked for and is not enforced here, each with its reason.
    pub not_enforced: Vec<String>,
}

/// A limit, and whether the system holds it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it holds.
    pub held: bool,
    /// What there is instead, where it does not.
    pub instead: &'a str,
    /// Why it does not.
    pub why_not: &'a str,
}

impl Isolation {
    /// Isolation of this level, of which nothing is known to hold yet.
    pub fn new(level: IsolationLevel) -> Self {
        Self { level, enforced: Vec::new(), not_enforced: Vec::new() }
    }

    /// Adds locks that hold.
    pub fn with(mut self, locks: &[&str]) -> Self {
        self.enforced.extend(locks.iter().map(|lock| (*lock).to_owned()));
        self
    }

    /// Adds what does not hold, with the reason.
    pub fn without(mut self, name: &str, reason: &str) -> Self {
        self.not_enforced.push(format!("{name}: {reason}"));
        self
    }

    /// Adds the network; `open` says what an open one reaches.
    pub fn with_network(self, network: Network, open: &str) -> Self {
        match network {
            Network::None => self.with(&["no network"]),
            Network::Open => self.without("network", &format!("open, as asked: {open}")),
        }
    }

    /// Adds limits, each to where it belongs.
    pub fn with_limits<'a>(self, limits: impl IntoIterator<Item = LimitState<'a>>) -> Self {
        limits.into_iter().fold(self, |isolation, LimitState { name, held, instead, why_not }| match held {
            true => isolation.with(&[name]),
            false => isolation.without(name, &format!("{instead} ({why_not})")),
        })
    }
}

/// A size that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a size; write it like 512m, 2g or 1048576k")]
pub struct ParseSizeError {
    text: String,
}

/// Reads a size as Docker writes it (`512m`, `2g`, `64k`, plain bytes) and rounds it up to MiB.
///
/// # Errors
/// [`ParseSizeError`] for anything else.
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let error = || ParseSizeError { text: text.to_owned() };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1024,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1024 * MIB,
        _ => return Err(error()),
    };
    let number: f64 = digits.parse().map_err(|_| error())?;
    let bytes = number * unit as f64;
    if !bytes.is_finite() || !(1.0..1e16).contains(&bytes) {
        return Err(error());
    }
    Ok((bytes / MIB as f64).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mib) in [("512m", 512), ("2g", 2048), ("1.5G", 1536), ("1048576k", 1024), ("1", 1), ("64MiB", 64)] {
            assert_eq!(parse_size(text), Ok(mib), "{text}");
        }
        for bad in ["", "m", "-1m", "1t", "many", "0", "nan", "inf", "1e400"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn isolation_tells_apart_what_holds_and_what_does_not() {
        let limit = |name, held| LimitState { name, held, instead: "not held", why_not: "no controller" };
        let isolation = Isolation::new(IsolationLevel::Process)
            .with(&["seccomp"])
            .with_network(Network::Open, "all of it")
            .with_limits([limit("memory", true), limit("cpus", false)]);
        assert_eq!(isolation.enforced, ["seccomp", "memory"]);
        assert_eq!(isolation.not_enforced, ["network: open, as asked: all of it", "cpus: not held (no controller)"]);
        assert_eq!(Isolation::new(IsolationLevel::Vm).with_network(Network::None, "").enforced, ["no network"]);
    }

    #[test]
    fn limits_that_no_kernel_can_live_in_are_named() {
        assert_eq!(Limits::default().validate(), Ok(()));
        let told = Limits { memory_mb: 8, ..Limits::default() }.validate().unwrap_err().to_string();
        assert_eq!(told, "memory_mb is 8; it can be 64 to 16777216");
        assert!(Limits { cpus: f64::NAN, ..Limits::default() }.validate().is_err());
        assert!(Limits { pids: 1, ..Limits::default() }.validate().is_err());
        assert_eq!((Limits::LEAST.validate(), Limits::MOST.validate()), (Ok(()), Ok(())));
        let of = |limits: Limits| limits.validate().map_err(|bad| bad.field);
        assert_eq!(of(Limits { memory_mb: u64::MAX, ..Limits::default() }), Err("memory_mb"));
        assert_eq!(of(Limits { disk_mb: (1 << 20) + 1, ..Limits::default() }), Err("disk_mb"));
        assert_eq!(of(Limits { output_mb: 1 << 60, ..Limits::default() }), Err("output_mb"));
        assert_eq!(of(Limits { pids: 65_537, ..Limits::default() }), Err("pids"));
        assert_eq!(of(Limits { cpus: f64::INFINITY, ..Limits::default() }), Err("cpus"));
    }
}

//! The limits of a session, and the report of its actual isolation.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The unit of limits, bytes.
pub const MIB: u64 = 1024 * 1024;

/// Resource limits of a session. The defaults are those of the HTTP API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory of all processes of the session together, MiB, without swap.
    pub memory_mb: u64,
    /// CPU quota, in CPUs.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u64,
    /// Size of the workspace, MiB. `/tmp` has a quarter of this in addition.
    pub disk_mb: u64,
    /// Output of one execution, MiB; kept in full up to this limit.
    pub output_mb: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_mb: 512, cpus: 1.0, pids: 256, disk_mb: 256, output_mb: 100 }
    }
}

impl Limits {
    /// The minimum that a kernel and its threads need.
    pub const MIN: Self = Self { memory_mb: 64, cpus: 0.01, pids: 16, disk_mb: 1, output_mb: 1 };
    /// More than machines have, within what the system can represent: 16 TB of memory, 1 TB of workspace, 16 GB of output.
    pub const MAX: Self = Self { memory_mb: 16 << 20, cpus: 256.0, pids: 65_536, disk_mb: 1 << 20, output_mb: 16 << 10 };

    pub fn memory_bytes(&self) -> u64 {
        self.memory_mb.saturating_mul(MIB)
    }

    pub fn disk_bytes(&self) -> u64 {
        self.disk_mb.saturating_mul(MIB)
    }

    /// Size of `/tmp` in bytes.
    pub fn tmp_bytes(&self) -> u64 {
        (self.disk_bytes() / 4).max(16 * MIB)
    }

    /// Memory of TCP and UDP sockets in bytes, where cgroups count it apart from other memory.
    pub fn socket_bytes(&self) -> u64 {
        (self.memory_bytes() / 16).clamp(8 * MIB, 256 * MIB)
    }

    pub fn output_bytes(&self) -> u64 {
        self.output_mb.saturating_mul(MIB)
    }

    /// The cap of one execution's parsed outputs in the manager's memory, bytes: parsed JSON takes several times its text.
    pub fn output_memory(&self) -> usize {
        usize::try_from(self.output_bytes().saturating_mul(4).saturating_add(64 * MIB)).unwrap_or(usize::MAX)
    }

    /// These limits, each reduced to a ceiling.
    pub fn at_most(&self, most: &Self) -> Self {
        Self {
            memory_mb: self.memory_mb.min(most.memory_mb),
            cpus: self.cpus.min(most.cpus),
            pids: self.pids.min(most.pids),
            disk_mb: self.disk_mb.min(most.disk_mb),
            output_mb: self.output_mb.min(most.output_mb),
        }
    }

    /// Checks that all limits are between [`Self::MIN`] and [`Self::MAX`].
    ///
    /// # Errors
    /// The first limit out of range.
    pub fn validate(&self) -> Result<(), LimitOutOfRange> {
        let (least, most) = (Self::MIN, Self::MAX);
        let check = |field, given: f64, least: f64, most: f64| match (least..=most).contains(&given) {
            true => Ok(()),
            false => Err(LimitOutOfRange { field, given, least, most }),
        };
        check("cpus", self.cpus, least.cpus, most.cpus)?;
        // All bounds are exact as floats.
        let whole = |field, given: u64, least: u64, most: u64| check(field, given as f64, least as f64, most as f64);
        whole("memory_mb", self.memory_mb, least.memory_mb, most.memory_mb)?;
        whole("pids", self.pids, least.pids, most.pids)?;
        whole("disk_mb", self.disk_mb, least.disk_mb, most.disk_mb)?;
        whole("output_mb", self.output_mb, least.output_mb, most.output_mb)
    }
}

/// A limit out of range.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{field} is {given}; it must be {least} to {most}")]
pub struct LimitOutOfRange {
    /// The field of [`Limits`].
    pub field: &'static str,
    given: f64,
    least: f64,
    most: f64,
}

/// Network access of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Only the sandbox's loopback.
    #[default]
    None,
    /// What the host reaches, but not the host itself.
    Open,
}

/// Isolation levels, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationLevel {
    None,
    /// Processes of the host with namespaces, seccomp and limits.
    Process,
    /// A hardened container.
    Container,
    /// A container whose system calls a user-space kernel serves.
    Gvisor,
    /// A virtual machine.
    Vm,
}

impl std::fmt::Display for IsolationLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Container => "container",
            Self::Gvisor => "gvisor",
            Self::Vm => "vm",
        })
    }
}

impl IsolationLevel {
    /// The attacks that a sandbox of this level cannot stop.
    pub fn not_stopped(self) -> &'static [&'static str] {
        const PAGES: &str = "side channels: caches, timing, and which pages of shared read-only files are in memory";
        match self {
            Self::None => &["anything"],
            Self::Process | Self::Container => &["vulnerabilities of the machine's kernel", PAGES],
            Self::Gvisor => &["vulnerabilities of gVisor", PAGES],
            Self::Vm => &["vulnerabilities of the hypervisor", "side channels of the processor"],
        }
    }
}

/// The actual isolation of a session, and which of its limits are enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    pub level: IsolationLevel,
    /// What the system enforces.
    pub enforced: Vec<String>,
    /// What was requested but is not enforced here, each with the reason.
    pub not_enforced: Vec<String>,
    /// What this level does not stop, whatever is requested.
    #[serde(default)]
    pub not_stopped: Vec<String>,
}

/// A limit, and whether the system enforces it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState<'a> {
    pub name: &'a str,
    pub enforced: bool,
    /// The substitute, if it is not enforced.
    pub instead: &'a str,
    /// The reason, if it is not enforced.
    pub why_not: &'a str,
}

impl Isolation {
    /// A report for this level, with nothing enforced yet.
    pub fn new(level: IsolationLevel) -> Self {
        let not_stopped = level.not_stopped().iter().map(|attack| (*attack).to_owned()).collect();
        Self { level, enforced: Vec::new(), not_enforced: Vec::new(), not_stopped }
    }

    /// Adds enforced measures.
    pub fn with(mut self, measures: &[&str]) -> Self {
        self.enforced.extend(measures.iter().map(|measure| (*measure).to_owned()));
        self
    }

    /// Adds a measure that is not enforced, with the reason.
    pub fn without(mut self, name: &str, reason: &str) -> Self {
        self.not_enforced.push(format!("{name}: {reason}"));
        self
    }

    /// Adds attacks that are not stopped here.
    pub fn not_stopping(mut self, attacks: &[&str]) -> Self {
        self.not_stopped.extend(attacks.iter().map(|attack| (*attack).to_owned()));
        self
    }

    /// Adds the network; `open` describes what an open one reaches.
    pub fn with_network(self, network: Network, open: &str) -> Self {
        match network {
            Network::None => self.with(&["no network interface"]),
            Network::Open => self.without("network", &format!("open, as requested: {open}")),
        }
    }

    /// Adds limits as enforced or not.
    pub fn with_limits<'a>(self, limits: impl IntoIterator<Item = LimitState<'a>>) -> Self {
        limits.into_iter().fold(self, |isolation, LimitState { name, enforced, instead, why_not }| match enforced {
            true => isolation.with(&[name]),
            false => isolation.without(name, &format!("{instead} ({why_not})")),
        })
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a size; write it like 512m, 2g or 1048576k")]
pub struct ParseSizeError {
    text: String,
}

/// Parses a size in Docker's notation (`512m`, `2g`, `64k`, plain bytes), rounded up to MiB.
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
    fn sizes_are_parsed_and_rounded_up() {
        for (text, mib) in [("512m", 512), ("2g", 2048), ("1.5G", 1536), ("1048576k", 1024), ("1", 1), ("64MiB", 64)] {
            assert_eq!(parse_size(text), Ok(mib), "{text}");
        }
        for bad in ["", "m", "-1m", "1t", "many", "0", "nan", "inf", "1e400"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn isolation_separates_enforced_from_not_enforced() {
        let limit = |name, enforced| LimitState { name, enforced, instead: "not limited", why_not: "no controller" };
        let isolation = Isolation::new(IsolationLevel::Process)
            .with(&["seccomp"])
            .with_network(Network::Open, "all of it")
            .with_limits([limit("memory", true), limit("cpus", false)]);
        assert_eq!(isolation.enforced, ["seccomp", "memory"]);
        assert_eq!(isolation.not_enforced, ["network: open, as requested: all of it", "cpus: not limited (no controller)"]);
        assert_eq!(Isolation::new(IsolationLevel::Vm).with_network(Network::None, "").enforced, ["no network interface"]);
    }

    #[test]
    fn limits_out_of_range_are_named() {
        assert_eq!(Limits::default().validate(), Ok(()));
        let message = Limits { memory_mb: 8, ..Limits::default() }.validate().unwrap_err().to_string();
        assert_eq!(message, "memory_mb is 8; it must be 64 to 16777216");
        assert!(Limits { cpus: f64::NAN, ..Limits::default() }.validate().is_err());
        assert!(Limits { pids: 1, ..Limits::default() }.validate().is_err());
        assert_eq!((Limits::MIN.validate(), Limits::MAX.validate()), (Ok(()), Ok(())));
        let of = |limits: Limits| limits.validate().map_err(|bad| bad.field);
        assert_eq!(of(Limits { memory_mb: u64::MAX, ..Limits::default() }), Err("memory_mb"));
        assert_eq!(of(Limits { disk_mb: (1 << 20) + 1, ..Limits::default() }), Err("disk_mb"));
        assert_eq!(of(Limits { output_mb: 1 << 60, ..Limits::default() }), Err("output_mb"));
        assert_eq!(of(Limits { pids: 65_537, ..Limits::default() }), Err("pids"));
        assert_eq!(of(Limits { cpus: f64::INFINITY, ..Limits::default() }), Err("cpus"));
    }
}

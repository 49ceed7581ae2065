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

    /// Checks that a kernel can live within the limits at all.
    ///
    /// # Errors
    /// A sentence naming the field, its value and what would do.
    pub fn validate(&self) -> Result<(), String> {
        if self.memory_mb < 64 {
            return Err(format!("memory of {} MB is too little for a kernel; give at least 64m", self.memory_mb));
        }
        if !(self.cpus.is_finite() && (0.01..=1024.0).contains(&self.cpus)) {
            return Err(format!("{} CPUs cannot be given; use 0.01 to 1024", self.cpus));
        }
        if self.pids > 4_194_304 {
            return Err(format!("{} processes are more than Linux has numbers for; give at most 4194304", self.pids));
        }
        if self.pids < 16 {
            return Err(format!("{} processes are too few for a kernel and its threads; give at least 16", self.pids));
        }
        if self.disk_mb < 1 || self.output_mb < 1 {
            return Err("disk and output limits must be at least 1 MB".to_owned());
        }
        Ok(())
    }
}

/// What a session may reach over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nothing but its own loopback.
    #[default]
    None,
    /// Whatever the host reaches.
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
    fn limits_that_no_kernel_can_live_in_are_named() {
        assert_eq!(Limits::default().validate(), Ok(()));
        assert!(Limits { memory_mb: 8, ..Limits::default() }.validate().unwrap_err().contains("64m"));
        assert!(Limits { cpus: f64::NAN, ..Limits::default() }.validate().is_err());
        assert!(Limits { pids: 1, ..Limits::default() }.validate().is_err());
    }
}

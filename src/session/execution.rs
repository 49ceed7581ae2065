//! How an execution ends: its status, its result, and the errors that are ours to report.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent_protocol::{ExecutionUsage, KernelExit};
use crate::wire::content::ErrorInfo;

/// How an execution ended. Every accepted execution ends in exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionStatus {
    Ok,
    /// The code raised an error.
    Error,
    Interrupted,
    /// Stopped at its time limit.
    Timeout,
    /// The kernel was killed because the session's memory was used up.
    MemoryExceeded,
    /// Stopped at its output limit.
    OutputExceeded,
    /// The kernel ended during the execution.
    KernelDied,
    /// Taken out of the queue before it started.
    Cancelled,
}

impl ExecutionStatus {
    /// The name in the HTTP API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::MemoryExceeded => "memory_exceeded",
            Self::OutputExceeded => "output_exceeded",
            Self::KernelDied => "kernel_died",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the status itself says that the kernel has ended.
    pub fn kernel_is_gone(self) -> bool {
        matches!(self, Self::KernelDied | Self::MemoryExceeded)
    }
}

/// The end of an execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecutionResult {
    pub status: ExecutionStatus,
    /// The kernel's execution counter.
    pub execution_count: Option<i64>,
    /// The kernel's error; for a death or a limit, ours.
    pub error: Option<ErrorInfo>,
    /// When the request was handed to the kernel.
    pub started_at: SystemTime,
    pub wall: Duration,
    /// Times of the execution's messages, with the names that nbclient gives them in `metadata.execution`.
    pub timing: BTreeMap<String, String>,
    /// Whether the kernel has ended, whatever the status: an escalated interrupt also ends it.
    pub kernel_gone: bool,
    /// CPU and memory used. `None` where the kernel ended during the execution.
    pub used: Option<ExecutionUsage>,
}

impl ExecutionResult {
    /// The error as an nbformat output where the kernel could not send one, because it was stopped or dead.
    pub fn unsent_error(&self) -> Option<Value> {
        let was_sent = match self.status {
            ExecutionStatus::Ok | ExecutionStatus::Error => true,
            ExecutionStatus::Interrupted => !self.kernel_gone,
            _ => false,
        };
        let ErrorInfo { ename, evalue, traceback, .. } = self.error.as_ref().filter(|_| !was_sent)?;
        Some(json!({"output_type": "error", "ename": ename, "evalue": evalue, "traceback": traceback}))
    }

    /// The result of an execution that never started, or whose end is unknown.
    pub(super) fn not_run(status: ExecutionStatus, why: &str, now: SystemTime) -> Self {
        Self {
            status,
            execution_count: None,
            error: Some(error_info("NotRun", why.to_owned())),
            started_at: now,
            wall: Duration::ZERO,
            timing: BTreeMap::new(),
            kernel_gone: false,
            used: None,
        }
    }
}

/// The `metrics` object of a cell in the HTTP API.
pub fn metrics(result: &ExecutionResult) -> Value {
    let mut metrics = json!({"wall_ms": result.wall.as_secs_f64() * 1000.0});
    if let Some(used) = &result.used {
        metrics["cpu_ms"] = (used.cpu_seconds * 1000.0).into();
        metrics["peak_memory_bytes"] = used.peak_memory_bytes.into();
    }
    metrics
}

/// Why an execution is being stopped. It is recorded before the first signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StopReason {
    Interrupt,
    /// The time limit that was reached.
    Timeout(Duration),
    /// The output limit that was reached, in bytes.
    OutputExceeded(u64),
}

impl StopReason {
    pub fn status(self) -> ExecutionStatus {
        match self {
            Self::Interrupt => ExecutionStatus::Interrupted,
            Self::Timeout(_) => ExecutionStatus::Timeout,
            Self::OutputExceeded(_) => ExecutionStatus::OutputExceeded,
        }
    }

    pub fn error(self) -> ErrorInfo {
        match self {
            Self::Interrupt => error_info("Interrupted", "the cell was interrupted".to_owned()),
            Self::Timeout(after) => {
                error_info("CellTimeout", format!("the cell was stopped after its time limit of {} s", after.as_secs_f64()))
            }
            Self::OutputExceeded(limit) => error_info(
                "OutputExceeded",
                format!("the cell was stopped after {} MB of output, its limit; what came until then is kept", limit >> 20),
            ),
        }
    }
}

pub(super) fn error_info(ename: &str, evalue: String) -> ErrorInfo {
    ErrorInfo { ename: ename.to_owned(), traceback: vec![format!("{ename}: {evalue}")], evalue, state_lost: false }
}

/// The same error, of a kernel that has ended: it also says that the variables are gone. `why`: what is appended to the message, or empty.
pub(super) fn with_lost_state(error: &ErrorInfo, why: &str) -> ErrorInfo {
    let evalue = format!("{}{why}; all variables are gone", error.evalue);
    ErrorInfo { state_lost: true, ..error_info(&error.ename, evalue) }
}

pub(super) fn memory_error(memory_mb: u64) -> ErrorInfo {
    error_info(
        "OutOfMemory",
        format!("the kernel was killed: the session used up its {memory_mb} MB of memory (--memory gives more)"),
    )
}

pub(super) fn death_error(exit: &KernelExit) -> ErrorInfo {
    let how = match (exit.signal, exit.code) {
        (Some(signal), _) => format!("by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("with exit code {code}"),
        (None, None) => "in an unknown way".to_owned(),
    };
    error_info("KernelDied", format!("the kernel process ended {how} while the cell ran"))
}

/// Why a kernel never became ready.
pub(super) fn describe_failed_start(exit: &KernelExit) -> String {
    let how = match (exit.out_of_memory, exit.signal, exit.code) {
        (true, ..) => "it ran out of memory".to_owned(),
        (_, Some(signal), _) => format!("signal {signal}"),
        (_, _, Some(code)) => format!("exit code {code}"),
        _ => "unknown reason".to_owned(),
    };
    let log = if exit.start_log.is_empty() { String::new() } else { format!("\n{}", exit.start_log) };
    format!("the kernel ended before it was ready ({how}){log}")
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV: a crash in native code)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

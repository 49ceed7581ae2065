//! What manager and agent say about processes: commands that run in a sandbox beside its kernels.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{ProcessId, Seq};

/// How a process is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Chosen by the manager. A second start with the same id returns the process that the first has started.
    pub id: ProcessId,
    /// The program, and its arguments. A name without `/` is looked up in `PATH`.
    pub command: Vec<String>,
    /// Variables in addition to those of the sandbox.
    pub env: BTreeMap<String, String>,
    /// The working folder, relative to the workspace; empty for the workspace itself.
    pub cwd: String,
    /// The size of the terminal, for a process that has one. Else it has pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether its standard input is open. Else it reads the end of file at once. A terminal can always be written to.
    pub stdin: bool,
    /// How long it may run, milliseconds.
    pub timeout_ms: Option<u64>,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub cols: u16,
}

/// Where output of a process comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessStream {
    Stdout,
    Stderr,
    /// The terminal, which joins both.
    Terminal,
}

impl ProcessStream {
    /// The code of the binary encoding.
    pub fn code(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Terminal => 3,
        }
    }

    /// The stream with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::Terminal].into_iter().find(|stream| stream.code() == code)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExit {
    /// The exit code, unless a signal ended the process.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
    /// Whether it was killed because the sandbox had exceeded its memory.
    pub out_of_memory: bool,
}

/// A process as the agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    pub id: ProcessId,
    /// In a list, long commands are cut.
    pub command: Vec<String>,
    pub cwd: String,
    pub terminal: Option<TerminalSize>,
    /// Its PID inside the sandbox.
    pub pid: i32,
    /// Milliseconds since 1970.
    pub started_ms: i64,
    /// When and how it ended, if it has.
    pub ended: Option<(i64, ProcessExit)>,
    /// The oldest output event that is kept, and the number of the next one.
    pub first_seq: Seq,
    pub next_seq: Seq,
    /// Bytes of input that were accepted.
    pub input_bytes: u64,
}

/// An event of a process. It ends with [`ProcessEvent::Exited`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// What the process wrote, as it is: not necessarily text, and cut anywhere.
    Output {
        stream: ProcessStream,
        data: Bytes,
    },
    Exited(ProcessExit),
}

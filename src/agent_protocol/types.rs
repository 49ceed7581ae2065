//! The requests, answers and events that manager and agent exchange.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::process::{ProcessEvent, ProcessInfo, ProcessSpec, TerminalSize};
use super::workspace::{CollectedFile, FileChanges};
use crate::ids::{Epoch, Generation, ProcessId, Seq, SessionId};
use crate::wire::{Channel, Message};

/// The kernel's state as seen by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelState {
    /// The process runs, but has not answered `kernel_info_request` yet.
    Starting,
    Ready,
    Exited,
}

/// What a connection attaches to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The kernel of a session. The newest connection replaces an earlier one.
    Kernel(SessionId),
    /// A process. Any number of connections can read its output.
    Process(ProcessId),
    /// The sandbox itself: requests, and no events.
    Sandbox,
    /// The socket that listens on the sandbox's proxy port. The agent sends it with one byte, and the manager accepts the connections
    /// itself, as long as this connection is open. The agent closes it where it cannot send a descriptor. No hello follows.
    ProxyListener,
    /// The connections of the sandbox's proxy port, as streams; see [`StreamFrame`](super::StreamFrame). The newest connection replaces an
    /// earlier one, as with [`Target::ProxyListener`]. No hello follows.
    Egress,
}

/// The agent's first frame on every connection whose target exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Identifies this run of the agent.
    pub epoch: Epoch,
    /// Counts the kernel's starts within the epoch, from 1; 0 where the target is no kernel.
    pub generation: Generation,
    /// The oldest event that can be replayed.
    pub first_seq: Seq,
    /// The number of the next event.
    pub next_seq: Seq,
    /// [`KernelState::Exited`] where the target is no kernel.
    pub kernel_state: KernelState,
    /// The agent's version, for logs.
    pub version: String,
}

impl Hello {
    /// For a target that is no kernel, with this version of the agent.
    pub fn without_kernel(epoch: Epoch, first_seq: Seq, next_seq: Seq) -> Self {
        Self {
            epoch,
            generation: Generation(0),
            first_seq,
            next_seq,
            kernel_state: KernelState::Exited,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A signal to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// The kernelspec's interrupt: SIGINT to the process group, or `interrupt_request`.
    Interrupt,
    /// SIGTERM to the process group.
    Terminate,
    /// SIGKILL to the kernel and the processes that it has started.
    Kill,
}

/// A request of the manager. Each is answered exactly once, or the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Send a signal to the kernel of this generation; ignored if another generation is running.
    Signal {
        signal: SignalKind,
        generation: Generation,
    },
    /// End the kernel and the processes that it has started, and start it again.
    Restart {
        /// The generation to end; ignored if another one is running.
        generation: Generation,
    },
    /// Start a kernel for a session; not an error if it has one. The kernel is that of the agent's configuration.
    StartKernel {
        session: SessionId,
        /// Variables in addition to those of the configuration.
        env: BTreeMap<String, String>,
    },
    /// End the kernel of a session and forget it; not an error if there is none.
    StopKernel {
        session: SessionId,
    },
    /// Start a process, once for each id.
    StartProcess(Box<ProcessSpec>),
    /// Describe a process.
    Process {
        id: ProcessId,
    },
    /// Describe all processes, oldest first.
    ListProcesses,
    /// Write the frame's data to the standard input of a process.
    ProcessInput {
        id: ProcessId,
        /// The number of bytes that were sent before, if the caller counts: what the process has already is skipped.
        offset: Option<u64>,
        /// Whether the input ends with this.
        close: bool,
    },
    /// Send a signal to the process group of a process. SIGKILL reaches everything that it has started.
    ProcessSignal {
        id: ProcessId,
        signal: i32,
    },
    /// Change the size of a process's terminal.
    ProcessResize {
        id: ProcessId,
        size: TerminalSize,
    },
    /// Kill a process, unless it has ended, and forget it with its output; not an error if there is none.
    RemoveProcess {
        id: ProcessId,
    },
    Usage,
    /// Read a chunk of a regular file.
    FileGet {
        /// Relative to the workspace, as [`encode_name`](super::encode_name) writes it, like all paths here.
        path: String,
        /// Bytes from the start of the file.
        offset: u64,
        /// Bytes wanted; the answer has at most [`FILE_CHUNK`](super::FILE_CHUNK).
        length: u64,
    },
    /// Write a chunk of a file; the frame's data is the content. The first chunk has offset 0. The last chunk replaces the
    /// file atomically: until then, or if it never comes, an existing file stays unchanged.
    FilePut {
        /// Chosen by the manager; unique among the open uploads of a connection.
        upload: u64,
        path: String,
        /// Bytes that were sent before this chunk.
        offset: u64,
        /// Whether this is the final chunk.
        last: bool,
        options: PutOptions,
    },
    /// Discard an unfinished upload; not an error if there is none.
    FileDrop {
        upload: u64,
    },
    /// Describe an entry; a symlink is not followed. An empty path is the workspace itself.
    FileStat {
        path: String,
    },
    /// List a page of a folder.
    FileList {
        /// Empty for the workspace itself.
        path: String,
        /// The name after which the page begins; empty for the first page.
        after: String,
        /// The most entries of the page.
        limit: usize,
    },
    /// Create a folder and its parents; not an error if it exists.
    FileMakeFolder {
        path: String,
    },
    /// Create a symlink.
    FileLink {
        path: String,
        target: String,
    },
    /// Give an entry another path, whose parents are created.
    FileMove {
        path: String,
        to: String,
        /// Whether an existing file or empty folder is replaced.
        replace: bool,
    },
    /// Remove a file, a symlink (not its target) or a folder.
    FileRemove {
        path: String,
        /// Whether the contents of a folder are removed, too: a bounded number by each request.
        recursive: bool,
    },
}

/// Memory and CPU of the whole sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageReading {
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
    pub cpu_seconds: f64,
    pub processes: u64,
}

/// Resource usage of one execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecutionUsage {
    /// CPU time of all processes of the sandbox between the request and its reply, seconds.
    pub cpu_seconds: f64,
    /// Peak memory of the sandbox during the execution, bytes. Exact if it is the peak of the sandbox's life, else the
    /// maximum of several samples a second.
    pub peak_memory_bytes: u64,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutOptions {
    /// Refuse to replace an existing file.
    pub is_new: bool,
    /// Whether a new file can be executed.
    pub is_executable: bool,
    /// The modification time, milliseconds since 1970.
    pub modified_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    File,
    Folder,
    /// A symlink.
    Link,
    /// A device, pipe or socket.
    Other,
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The name within the folder, as [`encode_name`](super::encode_name) writes it.
    pub name: String,
    pub kind: EntryKind,
    pub size: u64,
    /// The modification time, milliseconds since 1970.
    pub modified_ms: i64,
    /// The permission bits.
    pub mode: u32,
    /// The target of a symlink.
    pub target: Option<String>,
}

impl FileEntry {
    /// Upper bound of its size in the JSON of an answer, bytes.
    pub fn json_size(&self) -> usize {
        let escaped = |text: &str| text.chars().map(|c| if c < ' ' { 6 } else { c.len_utf8() + 1 }).sum::<usize>();
        escaped(&self.name) + self.target.as_deref().map_or(0, escaped) + 192
    }
}

/// The agent's refusal of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A sentence for people.
    pub reason: String,
    #[serde(default)]
    pub cause: RefusalCause,
}

/// The causes of refusals that callers distinguish. Serialised names are those of protocol version 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCause {
    /// The request is invalid as it is.
    #[default]
    #[serde(rename = "unfit")]
    Invalid,
    #[serde(rename = "missing")]
    NotFound,
    /// The workspace is full.
    #[serde(rename = "no_room")]
    NoSpace,
    /// Something else exists at the path.
    Exists,
    /// Too many requests at once; a retry can succeed.
    Busy,
    /// The connection was lost during an upload, and the chunks before this one with it.
    #[serde(rename = "cut")]
    Interrupted,
}

impl<T: Into<String>> From<T> for Refused {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), cause: RefusalCause::Invalid }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The agent's answer to a [`Request`] or a submission.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerBody {
    /// Success. A submission was handed to the kernel, now or earlier.
    Done {
        /// Whether this submission is a repetition of an earlier one.
        repeated: bool,
    },
    Refused(Refused),
    Usage(UsageReading),
    Process(Box<ProcessInfo>),
    Processes(Vec<ProcessInfo>),
    /// A chunk of a file, whose bytes are the frame's data; or a written file.
    File(FileStat),
    Entry(FileEntry),
    Listing {
        /// Ordered by the bytes of their names.
        entries: Vec<FileEntry>,
        /// The name after which the next page begins, if there is one.
        next: Option<String>,
    },
    /// Entries were removed.
    Removed {
        /// Whether the request must be repeated to remove the rest.
        more: bool,
    },
}

/// The state of a file when it was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Bytes.
    pub size: u64,
    /// Identifies the file: the path may lead to another file by the next chunk.
    pub inode: u64,
    /// The times of the last change of the content, and of content, name or mode. Nanoseconds since 1970.
    pub modified_ns: i64,
    pub changed_ns: i64,
}

/// An answer and the id of its request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub id: u64,
    pub body: AnswerBody,
    /// File content, else empty.
    pub data: Bytes,
}

/// Why the agent ended the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// By a signal request of the manager.
    #[serde(rename = "asked")]
    Requested,
    /// By a restart request of the manager.
    Restart,
    /// Memory exceeded the limit, which no cgroup enforces.
    Memory,
}

/// How a kernel process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelExit {
    /// The exit code, unless a signal ended the process.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the memory limit ended it: the cgroup counted an OOM kill since the kernel's start, or the agent enforced the
    /// limit.
    pub out_of_memory: bool,
    /// The reason that the agent recorded before it sent a signal, if it did.
    pub reason: Option<KillReason>,
    /// The tail of what the process wrote to its stdout and stderr while it started, for people.
    pub start_log: String,
}

/// Events of the kernel process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelEvent {
    Starting,
    /// It answered `kernel_info_request`, and a message arrived on iopub.
    Ready {
        /// The JSON content of its `kernel_info_reply`.
        info: String,
    },
    Exited(KernelExit),
    /// The process could not be started.
    Failed {
        reason: String,
    },
    /// The OOM killer ended a process of the sandbox other than the kernel.
    ChildOutOfMemory,
    /// An execution exceeded the output limit; the agent drops the rest of its output.
    OutputCapped {
        /// The `msg_id` of the `execute_request`.
        msg_id: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// The usage of an execution; precedes its reply.
    RunUsed {
        /// The `msg_id` of the `execute_request`.
        msg_id: String,
        used: ExecutionUsage,
    },
    /// Files of the workspace have changed since the last report.
    FilesChanged {
        /// The `msg_id` of the newest `execute_request`, running or not; empty if there was none.
        msg_id: String,
        changes: FileChanges,
    },
    /// A malformed message on the kernel's sockets was dropped.
    BadMessage {
        reason: String,
    },
}

impl KernelEvent {
    /// Total length of its texts, bytes.
    fn size(&self) -> usize {
        match self {
            Self::Ready { info: text } | Self::Failed { reason: text } | Self::BadMessage { reason: text } => text.len(),
            Self::Exited(exit) => exit.start_log.len(),
            Self::OutputCapped { msg_id, .. } | Self::RunUsed { msg_id, .. } => msg_id.len(),
            Self::FilesChanged { msg_id, changes } => msg_id.len() + changes.size(),
            Self::Starting | Self::ChildOutOfMemory => 0,
        }
    }
}

/// An event, which the agent numbers and buffers until it is acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message from the kernel.
    Message {
        channel: Channel,
        generation: Generation,
        message: Message,
    },
    /// An event of the kernel process.
    Kernel {
        generation: Generation,
        event: KernelEvent,
    },
    /// A file that an execution leaves as an artifact, with its content, or empty if it cannot be kept.
    File {
        generation: Generation,
        file: CollectedFile,
        data: Bytes,
    },
    Process(ProcessEvent),
}

impl Event {
    /// Approximate memory size, bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.size(),
            Self::Kernel { event, .. } => event.size(),
            Self::File { file, data, .. } => file.change.path.len() + data.len(),
            Self::Process(ProcessEvent::Output { data, .. }) => data.len(),
            Self::Process(ProcessEvent::Exited(_)) => 0,
        }
    }
}

/// Frames from the manager.
#[derive(Clone, Debug, PartialEq)]
pub enum ToAgent {
    /// The first frame of every connection.
    Open { target: Target },
    /// Send events from `from_seq` on; if the epoch is not the agent's, from the oldest buffered event on.
    Attach { epoch: Epoch, from_seq: Seq },
    /// The manager has committed all events up to this one, so that the agent may drop them.
    Ack { seq: Seq },
    /// A message for the kernel. Submitting the same `msg_id` twice runs it once.
    Submit {
        /// Echoed by the answer.
        id: u64,
        channel: Channel,
        /// The generation it is meant for; `None` for any.
        generation: Option<Generation>,
        msg_id: String,
        message: Message,
    },
    Request {
        /// Echoed by the answer.
        id: u64,
        request: Request,
        /// File content, else empty.
        data: Bytes,
    },
}

/// Frames from the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum FromAgent {
    /// The answer to [`ToAgent::Open`].
    Hello(Hello),
    /// The answer to [`ToAgent::Open`] where the target does not exist: it has never existed, or was removed.
    Absent,
    /// A piece of an event, for the [`EventAssembler`](super::EventAssembler).
    EventPiece {
        seq: Seq,
        /// Length of the whole event, bytes.
        total: usize,
        piece: Bytes,
    },
    /// The bounded buffer dropped the events `from..=to` before they were acknowledged.
    Lost {
        from: Seq,
        to: Seq,
    },
    Answer(Answer),
}

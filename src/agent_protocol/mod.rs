//! The protocol between the manager and the agent inside a sandbox, over one byte stream.
//!
//! ```text
//! manager                                     agent
//!    ── AgentConfig, once, on the first connection ▶
//!    ◀──────────────────────────────────── taken ──
//!    ── preamble, Open{target} ─────────────────▶
//!    ◀────────────────────────────── preamble ──
//!    ◀───────────── Hello{epoch, numbers, state} ──
//!    ── Attach{epoch, from_seq} ────────────────▶
//!    ◀────────── Event{seq} ... / Lost{from, to} ──
//!    ── Ack{seq}, Submit{id, message}, Request{id} ──▶
//!    ◀───────────────────────────── Answer{id} ──
//! ```
//!
//! The manager does not trust the agent: a tenant may control it. Every frame kind has a cap that is checked before anything
//! is allocated, and both ends validate what they read. A framing error leads to a new connection, never to a dead kernel.
//!
//! [`frame`] delimits frames. [`types`] defines their contents, [`workspace`] those about changed files,
//! [`process`] those about processes. [`codec`] encodes them,
//! [`assembler`] splits and reassembles events.

mod assembler;
mod codec;
mod config;
mod file_names;
mod frame;
mod process;
mod streams;
mod types;
mod workspace;

pub use assembler::{EVENT_CHUNK, EventAssembler, MAX_MESSAGE, encode_event_frames};
pub use codec::{FILE_CHUNK, ProtocolError, SUBMIT_MAX};
pub use config::{AgentConfig, END_MARKER, Listen, receive_config, send_config};
pub use file_names::{decode_name, encode_name};
pub use frame::{FrameError, FrameReader, PREAMBLE, RawFrame, encode_frame, read_preamble, write_all_vectored};
pub use process::{ProcessEvent, ProcessExit, ProcessInfo, ProcessSpec, ProcessStream, TerminalSize};
pub use streams::{ACCEPTOR_WINDOW, EGRESS_PORT, OPENER_WINDOW, STREAM_CHUNK, StreamFrame};
pub use types::{
    Answer, AnswerBody, EntryKind, Event, ExecutionUsage, FileEntry, FileStat, FromAgent, Hello, KernelEvent, KernelExit,
    KernelState, KillReason, PutOptions, RefusalCause, Refused, Request, SignalKind, Target, ToAgent, UsageReading,
};
pub use workspace::{ChangeKind, CollectedFile, ExecutionContext, FileChange, FileChanges};

//! What the manager and the agent inside a sandbox say to each other, over one byte stream.
//!
//! ```text
//! manager                                     agent
//!    ── AgentConfig, once, on the first connection ▶
//!    ◀──────────────────────────────────── taken ──
//!    ── preamble ──────────────────────────────▶
//!    ◀────────────────────────────── preamble ──
//!    ◀───────────── Hello{epoch, numbers, state} ──
//!    ── Attach{epoch, from_seq} ────────────────▶
//!    ◀────────── Event{seq} ... / Lost{from, to} ──
//!    ── Ack{seq}, Submit{id, message}, Request{id} ──▶
//!    ◀───────────────────────────── Answer{id} ──
//! ```
//!
//! The agent is not trusted: a tenant may own it. Every frame kind has a cap that is checked before anything is allocated,
//! and both ends check what they read. A framing error means a new connection, never a dead kernel.

mod config;
mod frame;
mod message;

pub use config::{AgentConfig, Listen, receive_config, send_config};
pub use frame::{FrameError, FrameReader, PREAMBLE, RawFrame, encode_frame, read_preamble, write_all_vectored};
pub use message::{
    Answer, AnswerBody, Cause, EVENT_CHUNK, Event, EventAssembler, FILE_CHUNK, FileEntry, FromAgent, Hello, KernelEvent,
    KernelExit, KernelState, KillReason, MAX_MESSAGE, ProtocolError, Refused, Request, RunUsage, SUBMIT_MAX, SignalKind,
    ToAgent, UsageReading, encode_event_frames,
};

//! Cellkeep runs Jupyter kernels in locked-down sandboxes and keeps their sessions.
//!
//! The layers, top to bottom; each imports only from below (`tests/architecture.rs` holds the table):
//!
//! | layer | modules |
//! |---|---|
//! | top | `cli` |
//! | domain | `chat`, `runner`, `manager`, `report`, `session` |
//! | adapter | `store`, `artifacts`, `audit`, `sandbox`, `link`, `kernels`, `config`, `counters`, `descriptors`, `http_client`, `machine`, `private_files`, `telemetry`, `web`, and inside the sandbox `agent` |
//! | pure | `agent_protocol`, `export`, `render`, `notebook`, `output`, `wire`, `policy`, `mime`, `ids` |
//!
//! Two programs are built from this one crate: the manager (feature `host`) and the agent that runs inside every sandbox
//! (feature `agent`), which the manager carries. See ARCHITECTURE.md for the why.

#[cfg(feature = "agent")]
pub mod agent;
pub mod agent_protocol;
#[cfg(any(feature = "agent", feature = "host"))]
mod allocator;
#[cfg(feature = "host")]
mod counters;
#[cfg(any(feature = "agent", feature = "host"))]
mod descriptors;
pub mod ids;
pub mod policy;
#[cfg(any(feature = "agent", feature = "host"))]
mod streams;
pub mod wire;

#[cfg(feature = "host")]
pub mod api;
#[cfg(feature = "host")]
pub mod artifacts;
#[cfg(feature = "host")]
pub mod audit;
#[cfg(feature = "host")]
pub mod auth;
#[cfg(feature = "host")]
pub mod chat;
#[cfg(feature = "host")]
pub mod cli;
#[cfg(feature = "host")]
pub mod config;
#[cfg(feature = "host")]
pub mod egress;
#[cfg(feature = "host")]
pub mod export;
#[cfg(feature = "host")]
mod http_client;
#[cfg(feature = "host")]
pub mod kernels;
#[cfg(feature = "host")]
pub mod languages;
#[cfg(feature = "host")]
pub mod link;
#[cfg(feature = "host")]
mod machine;
#[cfg(feature = "host")]
pub mod manager;
#[cfg(feature = "host")]
pub mod mime;
#[cfg(feature = "host")]
pub mod notebook;
#[cfg(feature = "host")]
pub mod output;
#[cfg(feature = "host")]
pub mod page;
#[cfg(feature = "host")]
mod private_files;
#[cfg(feature = "host")]
pub mod render;
#[cfg(feature = "host")]
pub mod report;
#[cfg(feature = "host")]
pub mod runner;
#[cfg(feature = "host")]
pub mod sandbox;
#[cfg(feature = "host")]
pub mod server;
#[cfg(feature = "host")]
pub mod session;
#[cfg(feature = "host")]
mod sse_decoder;
#[cfg(feature = "host")]
pub mod store;
#[cfg(feature = "host")]
pub mod telemetry;
#[cfg(feature = "host")]
mod web;

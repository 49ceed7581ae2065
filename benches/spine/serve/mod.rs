//! `cellkeep serve`, asked over HTTP and WebSocket, against jupyter_server asked by the same client.

pub(crate) mod arrival;
pub(crate) mod cells;
mod client;
pub(crate) mod one_shot;
pub(crate) mod pool;
pub(crate) mod servers;
pub(crate) mod start;

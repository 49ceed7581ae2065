//! The Jupyter messaging protocol, raw first.
//!
//! A [`Message`] keeps the bytes that a kernel or a client sent. Its signature is computed over those bytes, and what we
//! read out of it are lenient views ([`content`]) that may fail to find a field but never lose a message: kernels in the
//! field leave out, add and mistype fields (IJulia answers an interrupt with `{}`).
//!
//! Source: <https://jupyter-client.readthedocs.io/en/stable/messaging.html>.

pub mod connection_file;
pub mod content;
pub mod json;
mod message;
mod signature;

pub use message::{Channel, Header, Message, WireError};
pub use signature::Signer;

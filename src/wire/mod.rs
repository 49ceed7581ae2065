//! The Jupyter messaging protocol, raw first.
//!
//! A [`Message`] keeps the bytes that a kernel or a client sent. Its signature is computed over these bytes. Fields are read
//! through lenient views ([`content`]), which may not find a field but never lose a message: real kernels omit, add and
//! mistype fields (IJulia answers an interrupt with `{}`).
//!
//! Source: <https://jupyter-client.readthedocs.io/en/stable/messaging.html>.

pub mod connection_file;
pub mod content;
pub mod json;
mod message;
#[cfg(feature = "host")]
pub mod requests;
mod signature;

pub use message::{Channel, Header, Message, WireError};
pub use signature::Signer;

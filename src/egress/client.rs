//! The sandbox's end of a connection: a socket that the server has accepted itself, or a stream of the agent.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::streams::{ByteStream, Pieces, Room, read_some};

/// What is read at once, bytes. Large pieces double the throughput, since programs wake each other more seldom.
const PIECE: usize = 64 * 1024;
const LARGE_PIECE: usize = 512 * 1024;
/// The large pieces of one sandbox that are read and not sent. Readers that stall keep them, and then others have small ones.
const LARGE_PIECES: usize = 16;

pub(super) enum Client {
    Socket { socket: TcpStream, pieces: LargePieces },
    Stream(ByteStream),
}

/// Counts the large pieces of a sandbox. Clones share the count.
#[derive(Clone)]
pub(super) struct LargePieces(Arc<Semaphore>);

impl Default for LargePieces {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_PIECES)))
    }
}

impl LargePieces {
    fn room(&self) -> Room {
        match self.0.clone().try_acquire_owned() {
            Ok(permit) => Room { bytes: LARGE_PIECE, permit: Some(permit) },
            Err(_) => Room { bytes: PIECE, permit: None },
        }
    }
}

impl Client {
    /// Waits until the client has gone, even if data was received that nobody has read. One task may wait.
    pub async fn broken(&self) {
        match self {
            // Nothing is known of a socket that cannot be waited for, which its reader finds out.
            Self::Socket { socket, .. } => match socket.ready(Interest::ERROR).await {
                Ok(_) => {}
                Err(_) => std::future::pending().await,
            },
            Self::Stream(stream) => stream.broken().await,
        }
    }
}

impl Pieces for Client {
    async fn receive(&self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Socket { socket, pieces } => read_some(socket, || pieces.room()).await,
            Self::Stream(stream) => Ok(stream.receive().await?),
        }
    }

    async fn until_sendable(&self) -> io::Result<()> {
        match self {
            Self::Socket { socket, .. } => socket.writable().await,
            Self::Stream(stream) => stream.until_sendable().await,
        }
    }

    fn room(&self) -> Room {
        match self {
            Self::Socket { pieces, .. } => pieces.room(),
            Self::Stream(stream) => stream.room(),
        }
    }

    async fn send(&self, mut bytes: Bytes) -> io::Result<()> {
        let socket = match self {
            Self::Socket { socket, .. } => socket,
            Self::Stream(stream) => return Ok(stream.send(bytes).await?),
        };
        while !bytes.is_empty() {
            socket.writable().await?;
            match socket.try_write(&bytes) {
                Ok(written) => drop(bytes.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn end(&self) -> io::Result<()> {
        match self {
            Self::Socket { socket, .. } => Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?),
            Self::Stream(stream) => Ok(stream.end().await?),
        }
    }
}

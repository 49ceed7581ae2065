//! The sandbox's end of a connection: a socket that the server has accepted itself, or a stream of the agent.

use std::io;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::streams::{ByteStream, Pieces, read_some};

/// What is read from a socket and written to it at once, bytes. Larger pieces leave the caches of the CPU, and are slower.
const PIECE: usize = 128 * 1024;

pub(super) enum Client {
    Socket(TcpStream),
    Stream(ByteStream),
}

impl Client {
    /// Waits until the client has gone, even if data was received that nobody has read. One task may wait.
    pub async fn broken(&self) {
        match self {
            // Nothing is known of a socket that cannot be waited for, which its reader finds out.
            Self::Socket(socket) => match socket.ready(Interest::ERROR).await {
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
            Self::Socket(socket) => read_some(socket, PIECE).await,
            Self::Stream(stream) => Ok(stream.receive().await?),
        }
    }

    async fn room(&self) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.writable().await.map(|()| PIECE),
            Self::Stream(stream) => Ok(stream.room().await?),
        }
    }

    async fn send(&self, mut bytes: Bytes) -> io::Result<()> {
        let socket = match self {
            Self::Socket(socket) => socket,
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
            Self::Socket(socket) => Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?),
            Self::Stream(stream) => Ok(stream.end().await?),
        }
    }
}

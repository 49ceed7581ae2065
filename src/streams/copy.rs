//! Copies between a connection in pieces and a socket. An idle connection holds no buffer.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// A connection that is read and written in pieces. One task may receive while another one sends.
pub(crate) trait Pieces {
    /// The next bytes; `None` at the end.
    async fn receive(&self) -> io::Result<Option<Bytes>>;
    /// Waits until bytes can be sent.
    async fn until_sendable(&self) -> io::Result<()>;
    /// How much should be sent at once, once it can.
    fn room(&self) -> Room;
    /// Sends all bytes, as soon as the other side takes them.
    async fn send(&self, bytes: Bytes) -> io::Result<()>;
    /// Says that no more bytes come.
    async fn end(&self) -> io::Result<()>;
}

/// How much is read at once.
pub(crate) struct Room {
    pub bytes: usize,
    /// Counts the memory of the piece until it is dropped.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What was read.
struct Piece {
    bytes: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Counts bytes before they are copied, and may delay or end the copying.
pub(crate) trait Meter {
    /// Bytes from the sandbox to the world.
    async fn outward(&self, bytes: usize) -> io::Result<()>;
    /// Bytes from the world to the sandbox.
    async fn inward(&self, bytes: usize) -> io::Result<()>;
}

/// Counts nothing.
impl Meter for () {
    async fn outward(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    async fn inward(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(any(feature = "agent", test))]
/// Copies until both directions have ended, or one fails.
///
/// # Errors
/// Of the socket, the connection or the meter.
pub(crate) async fn copy_both_ways(pieces: &impl Pieces, socket: &mut TcpStream, meter: &impl Meter) -> io::Result<()> {
    // Small pieces are already as large as their writer made them.
    let _ = socket.set_nodelay(true);
    let (reader, mut writer) = socket.split();
    let outward = copy_to_socket(pieces, Bytes::new(), &mut writer, meter);
    let inward = copy_from_socket(reader.as_ref(), pieces, meter);
    tokio::try_join!(outward, inward).map(drop)
}

/// Sends what comes from the connection to the socket, to its end; first `received`, which has come already.
///
/// # Errors
/// Of the socket, the connection or the meter.
pub(crate) async fn copy_to_socket(
    pieces: &impl Pieces,
    received: Bytes,
    socket: &mut (impl AsyncWrite + Unpin),
    meter: &impl Meter,
) -> io::Result<()> {
    let mut next = Some(received);
    while let Some(bytes) = next {
        meter.outward(bytes.len()).await?;
        socket.write_all(&bytes).await?;
        next = pieces.receive().await?;
    }
    socket.shutdown().await
}

/// Sends what comes from the socket to the connection, to its end.
///
/// # Errors
/// Of the socket, the connection or the meter.
pub(crate) async fn copy_from_socket(socket: &TcpStream, pieces: &impl Pieces, meter: &impl Meter) -> io::Result<()> {
    loop {
        pieces.until_sendable().await?;
        let Some(bytes) = read_some(socket, || pieces.room()).await? else { return pieces.end().await };
        meter.inward(bytes.len()).await?;
        pieces.send(bytes).await?;
    }
}

/// Reads as much as there is room for; `None` at the end. There is a buffer only when there is something to read.
///
/// # Errors
/// Of the socket.
pub(crate) async fn read_some(socket: &TcpStream, room: impl Fn() -> Room) -> io::Result<Option<Bytes>> {
    loop {
        // A socket that always has something would keep the task from all else.
        tokio::task::coop::consume_budget().await;
        socket.readable().await?;
        let Room { bytes, permit } = room();
        let mut bytes = Vec::with_capacity(bytes);
        match socket.try_read_buf(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(Bytes::from_owner(Piece { bytes, _permit: permit }))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

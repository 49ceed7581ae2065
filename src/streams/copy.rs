//! Copies between a stream and a socket. An idle connection holds no buffer.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::ByteStream;

/// Counts bytes before they are copied, and may delay or end the copying.
pub(crate) trait Meter {
    /// Bytes from the stream to the socket.
    async fn outward(&self, bytes: usize) -> io::Result<()>;
    /// Bytes from the socket to the stream.
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

/// Copies until both directions have ended, or one fails.
///
/// # Errors
/// Of the socket, the stream or the meter.
pub(crate) async fn copy_both_ways(stream: &ByteStream, socket: &mut TcpStream, meter: &impl Meter) -> io::Result<()> {
    // Small pieces are already as large as their writer made them.
    let _ = socket.set_nodelay(true);
    let (mut reader, mut writer) = socket.split();
    let outward = copy_to_socket(stream, Bytes::new(), &mut writer, meter);
    let inward = copy_from_socket(&mut reader, stream, meter);
    tokio::try_join!(outward, inward).map(drop)
}

/// Sends what comes from the stream to the socket, to its end; first `received`, which has come already.
///
/// # Errors
/// Of the socket, the stream or the meter.
pub(crate) async fn copy_to_socket(
    stream: &ByteStream,
    received: Bytes,
    socket: &mut (impl AsyncWrite + Unpin),
    meter: &impl Meter,
) -> io::Result<()> {
    let mut next = Some(received);
    while let Some(bytes) = next {
        meter.outward(bytes.len()).await?;
        socket.write_all(&bytes).await?;
        next = stream.receive().await.map_err(io::Error::other)?;
    }
    socket.shutdown().await
}

/// Sends what comes from the socket to the stream, to its end.
///
/// # Errors
/// Of the socket, the stream or the meter.
pub(crate) async fn copy_from_socket(socket: &mut ReadHalf<'_>, stream: &ByteStream, meter: &impl Meter) -> io::Result<()> {
    while let Some(bytes) = read_some(socket, stream.room().await.map_err(io::Error::other)?).await? {
        meter.inward(bytes.len()).await?;
        stream.send(bytes).await.map_err(io::Error::other)?;
    }
    stream.end().await.map_err(io::Error::other)
}

/// Reads at most so many bytes; `None` at the end. The buffer is made when there is something to read.
async fn read_some(socket: &mut ReadHalf<'_>, most: usize) -> io::Result<Option<Bytes>> {
    loop {
        socket.readable().await?;
        let mut buffer = BytesMut::with_capacity(most);
        match socket.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(buffer.freeze())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

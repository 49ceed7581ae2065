//! The sandbox's way out: a port on its loopback, whose connections become streams to the manager.
//!
//! Clients take the port for an HTTP proxy. The agent only passes bytes on: the manager reads the requests, since what is in the sandbox
//! decides nothing. Without a manager that serves the streams, the answer is a refusal that says what to ask for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::agent_protocol::{EGRESS_PORT, FrameReader, StreamFrame};
use crate::streams::{ByteStream, MAX_STREAMS, Streams, copy_both_ways};

/// How long a connection waits for a manager that has served streams before, and may be restarting.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that may wait to be accepted.
const QUEUE: u32 = 1024;
/// How long a refused client may take to send its request and to read the refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

const REFUSAL: &str = "HTTP/1.1 403 Forbidden: this sandbox has no network. Ask for the network \"packages\" or {\"allow\": [hosts]}\r\n\
    Content-Type: text/plain\r\nConnection: close\r\nProxy-Agent: cellkeep\r\n\r\n\
    The network policy of this sandbox is `none`, so its code reaches nothing.\n\
    Ask for the network \"packages\" (package indexes) or {\"allow\": [\"example.com\"]} when the session is created, or change it with \
    PATCH /v1/sessions/ID.\n";

/// The proxy port. The newest connection of a manager replaces an earlier one.
pub(super) struct Egress {
    streams: watch::Sender<Option<Streams>>,
}

impl Egress {
    /// Listens on the sandbox's loopback.
    ///
    /// # Errors
    /// If the port cannot be bound.
    pub fn listen() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], EGRESS_PORT)))?;
        let listener = socket.listen(QUEUE)?;
        let streams = watch::Sender::new(None);
        tokio::task::spawn_local(accept(listener, streams.subscribe()));
        Ok(Self { streams })
    }

    /// Sends connections to this manager from now on. Returns at the end of its connection.
    pub async fn attach(&self, frames: FrameReader<OwnedReadHalf>, writer: OwnedWriteHalf) {
        let mut streams = Streams::opener(frames.with_cap(StreamFrame::cap), writer);
        self.streams.send_replace(Some(streams.clone()));
        streams.ended().await;
    }
}

async fn accept(listener: TcpListener, streams: watch::Receiver<Option<Streams>>) {
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        // Further connections wait in the queue of the system.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let streams = streams.clone();
                tokio::task::spawn_local(async move {
                    let _place = place;
                    serve(client, streams).await;
                });
            }
            // Most likely out of descriptors: wait until some are closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(mut client: TcpStream, streams: watch::Receiver<Option<Streams>>) {
    let opened = tokio::time::timeout(MANAGER_TIMEOUT, open(streams)).await;
    match opened {
        Ok(Some(stream)) => drop(copy_both_ways(&stream, &mut client, &()).await),
        _ => drop(tokio::time::timeout(REFUSAL_TIMEOUT, refuse(client)).await),
    }
}

/// Opens a stream to the manager; `None` if none has ever attached.
async fn open(mut streams: watch::Receiver<Option<Streams>>) -> Option<ByteStream> {
    loop {
        let current = streams.borrow_and_update().clone()?;
        if let Some(stream) = current.open().await {
            return Some(stream);
        }
        streams.changed().await.ok()?;
    }
}

/// Refuses without reading what exactly was asked for. What the client has sent is read, so that the answer is not lost with it.
async fn refuse(mut client: TcpStream) -> io::Result<()> {
    let mut scratch = [0; 4096];
    let _ = client.read(&mut scratch).await?;
    client.write_all(REFUSAL.as_bytes()).await?;
    client.shutdown().await?;
    while client.read(&mut scratch).await? > 0 {}
    Ok(())
}

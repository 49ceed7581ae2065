//! The sandbox's way out: a port on its loopback, whose connections the manager serves.
//!
//! Clients take the port for an HTTP proxy. The agent reads no request: that is the manager's, since what is in the sandbox decides
//! nothing. The manager gets the listening socket and accepts connections itself; where sockets cannot be handed over, the agent accepts
//! them and passes their bytes on as streams. Without a manager, the answer is a refusal that says what to ask for.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::agent_protocol::{EGRESS_PORT, FrameReader, StreamFrame};
use crate::streams::{ByteStream, MAX_STREAMS, Streams, copy_both_ways, send_descriptor};

/// How long connections wait for a manager that was there before, and may be restarting.
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

/// Who serves the connections. The newest connection of a manager replaces an earlier one.
#[derive(Clone)]
enum Server {
    /// No manager has attached yet.
    Nobody,
    /// A manager that accepts them itself, by the number of its connection.
    Manager(u64),
    /// As before, but it has gone.
    Gone(Instant),
    Streams(Streams),
}

/// The proxy port.
pub(super) struct Egress {
    listener: Rc<TcpListener>,
    server: watch::Sender<Server>,
    /// How many managers have accepted connections themselves.
    managers: Cell<u64>,
}

impl Egress {
    /// Listens on the sandbox's loopback.
    ///
    /// # Errors
    /// If the port cannot be bound.
    pub fn listen() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], EGRESS_PORT)))?;
        let listener = Rc::new(socket.listen(QUEUE)?);
        let server = watch::Sender::new(Server::Nobody);
        tokio::task::spawn_local(accept(listener.clone(), server.subscribe()));
        Ok(Self { listener, server, managers: Cell::default() })
    }

    /// Lets this manager accept the connections. Returns when its connection has ended, or another one has replaced it.
    pub async fn hand_over(&self, mut frames: FrameReader<OwnedReadHalf>, writer: OwnedWriteHalf) {
        let number = self.managers.get() + 1;
        self.managers.set(number);
        self.server.send_replace(Server::Manager(number));
        let is_own = |server: &Server| matches!(server, Server::Manager(current) if *current == number);
        let mut changes = self.server.subscribe();
        if send_descriptor(writer.as_ref(), &self.listener).is_ok() {
            tokio::select! {
                // It sends nothing.
                _ = frames.next() => {}
                _ = changes.wait_for(|server| !is_own(server)) => {}
            }
        }
        self.server.send_if_modified(|server| {
            let was_own = is_own(server);
            if was_own {
                *server = Server::Gone(Instant::now());
            }
            was_own
        });
    }

    /// Sends connections to this manager from now on. Returns at the end of its connection.
    pub async fn attach(&self, frames: FrameReader<OwnedReadHalf>, writer: OwnedWriteHalf) {
        let mut streams = Streams::opener(frames.with_cap(StreamFrame::cap), writer);
        self.server.send_replace(Server::Streams(streams.clone()));
        streams.ended().await;
    }
}

async fn accept(listener: Rc<TcpListener>, mut server: watch::Receiver<Server>) {
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        // Further connections wait in the queue of the system.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        until_own(&mut server).await;
        let accepted = tokio::select! {
            biased;
            _ = server.changed() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                let server = server.clone();
                tokio::task::spawn_local(async move {
                    let _place = place;
                    serve(client, server).await;
                });
            }
            // Most likely out of descriptors: wait until some are closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Waits until connections are the agent's to accept: no manager does, or will soon.
async fn until_own(server: &mut watch::Receiver<Server>) {
    loop {
        let end = match *server.borrow_and_update() {
            Server::Nobody | Server::Streams(_) => return,
            Server::Manager(_) => None,
            Server::Gone(since) => Some(since + MANAGER_TIMEOUT),
        };
        let changed = server.changed();
        match end {
            None => drop(changed.await),
            Some(end) if tokio::time::timeout_at(end, changed).await.is_err() => return,
            Some(_) => {}
        }
    }
}

async fn serve(mut client: TcpStream, server: watch::Receiver<Server>) {
    let opened = tokio::time::timeout(MANAGER_TIMEOUT, open(server)).await;
    match opened {
        Ok(Some(stream)) => drop(copy_both_ways(&stream, &mut client, &()).await),
        _ => drop(tokio::time::timeout(REFUSAL_TIMEOUT, refuse(client)).await),
    }
}

/// Opens a stream to the manager; `None` if none takes streams.
async fn open(mut server: watch::Receiver<Server>) -> Option<ByteStream> {
    loop {
        let Server::Streams(current) = server.borrow_and_update().clone() else { return None };
        if let Some(stream) = current.open().await {
            return Some(stream);
        }
        server.changed().await.ok()?;
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

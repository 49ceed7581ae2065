//! The agent's side of the kernel's ZeroMQ sockets.
//!
//! One task per socket reads and forwards to the kernel's task. That never blocks, so the sockets are always drained.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use zeromq::util::PeerIdentity;
use zeromq::{DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::ids::random_uuid;
use crate::wire::connection_file::{ConnectionInfo, Transport};
use crate::wire::{Channel, Message, Signer, WireError};

/// Read size of a socket, bytes; fixed. By default zeromq shrinks its reads after a burst, and then reads a hundred small
/// messages into the rest of a large frame's memory, which stays allocated until that rest is used up.
const READ_CHUNK: usize = 16 * 1024;
/// From this size on, a frame's memory is tracked so that it can be released, bytes.
const LARGE_FRAME: usize = 1 << 20;

/// A message of a socket; ordered per socket.
pub(super) type Received = (Channel, Result<Message, WireError>);

/// Queues of messages to the kernel. Sending never waits; the queues are bounded by what the manager submits.
pub(super) struct Senders {
    shell: mpsc::UnboundedSender<Message>,
    control: mpsc::UnboundedSender<Message>,
    stdin: mpsc::UnboundedSender<Message>,
}

impl Senders {
    /// Queues a message. `false` for iopub, or if the kernel has exited.
    pub fn send(&self, channel: Channel, message: Message) -> bool {
        let sender = match channel {
            Channel::Shell => &self.shell,
            Channel::Control => &self.control,
            Channel::Stdin => &self.stdin,
            Channel::Iopub => return false,
        };
        sender.send(message).is_ok()
    }
}

/// Connects all four sockets and spawns their tasks into `tasks`, which ends them when dropped.
///
/// # Errors
/// The cause, for people; the kernel is unusable then.
pub(super) async fn connect(
    connection: &ConnectionInfo,
    received: mpsc::Sender<Received>,
    tasks: &mut JoinSet<()>,
) -> Result<Senders, String> {
    let signer = Signer::new(connection.key.as_bytes()).ok_or("the connection file has no key")?;
    // A connection attempt before the kernel has bound costs a reconnect interval of 100 ms.
    for channel in Channel::ALL {
        wait_until_bound(connection, channel).await;
    }
    let failed =
        |channel: Channel| move |error| format!("cannot connect to the kernel's {} socket: {error}", channel.name());
    let mut iopub = SubSocket::with_options(options());
    iopub.connect(&connection.endpoint(Channel::Iopub)).await.map_err(failed(Channel::Iopub))?;
    iopub.subscribe("").await.map_err(failed(Channel::Iopub))?;
    // A kernel routes input_request by the identity of the execute_request, so shell and stdin share one.
    let identity = random_uuid();
    let mut dealer = async |channel: Channel, identity: &str| -> Result<mpsc::UnboundedSender<Message>, String> {
        let mut options = options();
        options.peer_identity(PeerIdentity::try_from(Bytes::from(identity.to_owned())).map_err(failed(channel))?);
        let mut socket = DealerSocket::with_options(options);
        socket.connect(&connection.endpoint(channel)).await.map_err(failed(channel))?;
        let (send_half, receive_half) = socket.split();
        let (sender, outgoing) = mpsc::unbounded_channel();
        tasks.spawn_local(write(send_half, outgoing, signer.clone()));
        tasks.spawn_local(read(receive_half, channel, signer.clone(), received.clone()));
        Ok(sender)
    };
    let shell = dealer(Channel::Shell, &identity).await?;
    let stdin = dealer(Channel::Stdin, &identity).await?;
    let control = dealer(Channel::Control, &random_uuid()).await?;
    tasks.spawn_local(read(iopub, Channel::Iopub, signer, received));
    Ok(Senders { shell, control, stdin })
}

fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.read_buffer(READ_CHUNK, READ_CHUNK, 1);
    options
}

/// Waits until the kernel has bound a channel's socket. No timeout: the kernel's exit or the manager's start deadline ends
/// it.
async fn wait_until_bound(connection: &ConnectionInfo, channel: Channel) {
    const STEP: Duration = Duration::from_millis(2);
    let port = connection.port(channel);
    match connection.transport {
        Transport::Ipc => {
            let path = format!("{}-{port}", connection.ip);
            while !Path::new(&path).exists() {
                tokio::time::sleep(STEP).await;
            }
        }
        Transport::Tcp => {
            while tokio::net::TcpStream::connect((connection.ip.as_str(), port)).await.is_err() {
                tokio::time::sleep(STEP).await;
            }
        }
    }
}

async fn write(mut socket: impl SocketSend, mut outgoing: mpsc::UnboundedReceiver<Message>, signer: Signer) {
    while let Some(message) = outgoing.recv().await {
        let Ok(frames) = ZmqMessage::try_from(message.to_frames(&signer)) else { continue };
        // Fails only if the kernel has exited, which is reported separately.
        if socket.send(frames).await.is_err() {
            return;
        }
    }
}

async fn read(mut socket: impl SocketRecv, channel: Channel, signer: Signer, received: mpsc::Sender<Received>) {
    // zeromq continues to read behind a large frame, in the frame's own allocation. If that is full and all other references
    // to the frame are dropped, zeromq reuses the whole allocation as its buffer for good. So a reference is kept until
    // zeromq has dropped its own.
    let mut held: Vec<Bytes> = Vec::new();
    loop {
        match socket.recv().await {
            Ok(frames) => {
                let frames = frames.into_vec();
                held.retain(|frame| !frame.is_unique());
                held.extend(frames.iter().filter(|frame| frame.len() >= LARGE_FRAME).cloned());
                let message = Message::from_frames(frames, &signer);
                if received.send((channel, message)).await.is_err() {
                    return;
                }
            }
            // zeromq drops the peer after a codec error. What happens next depends on the kernel process.
            Err(zeromq::ZmqError::NoMessage) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

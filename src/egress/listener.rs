//! The socket that listens on the proxy port of a sandbox. Its agent hands it over, and the server accepts the connections itself, so
//! that their bytes pass through no other process.
//!
//! The agent is not trusted, and still has the socket:
//!
//! - What it sends may be anything, so it is checked.
//! - A call on the socket may block, since non-blocking mode belongs to all that have it, and so may closing it (`SO_LINGER`). Such calls
//!   are made on threads that nobody waits for. Each sandbox has one slot for a foreign socket, and so at most one thread that hangs.
//! - An accepted connection is this process's alone. The memory of its buffers counts as this process's, so they are bounded.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, accept_with, ipproto, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::streams::receive_descriptor;

/// How long the agent may take to send the socket.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The buffers of an accepted connection, bytes; the system doubles them. The other end is on the same machine, so this is enough.
const SEND_BUFFER: usize = 512 * 1024;
const RECEIVE_BUFFER: usize = 256 * 1024;

/// The place for the listening socket of one sandbox.
pub(super) struct Slot {
    free: Arc<Semaphore>,
    socket: Mutex<Weak<SharedSocket>>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(1)), socket: Mutex::default() }
    }
}

impl Slot {
    /// Ends a call that hangs, because the sandbox ends. Nobody can listen with the socket afterwards.
    pub fn interrupt(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(socket) = socket {
            let _ = socket.get().and_then(|socket| Ok(rustix::net::shutdown(socket, Shutdown::Both)?));
        }
    }

    /// Waits for the socket that the agent sends on this connection, which must listen on this address, and for the end of an earlier one.
    /// The connection is returned: the agent accepts no connections while it is open.
    ///
    /// # Errors
    /// If the agent sends something else, or nothing in time.
    pub async fn receive(&self, connection: UnixStream, address: SocketAddr) -> io::Result<(Listener, UnixStream)> {
        let slot = self.free.clone().acquire_owned().await.map_err(io::Error::other)?;
        let connection = connection.into_std()?;
        connection.set_nonblocking(false)?;
        connection.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        let received = on_own_thread(move || {
            let socket = SharedSocket(Some((receive_descriptor(&connection)?, slot)));
            check(socket.get()?, address)?;
            connection.set_nonblocking(true)?;
            Ok((socket, connection))
        });
        let (socket, connection) = received.await?;
        let socket = Arc::new(socket);
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&socket);
        // SAFETY: the socket is open until the last owner of `SharedSocket` drops it, and is never replaced.
        #[expect(unsafe_code, reason = "tokio knows sockets by their numbers")]
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok((Listener(watched), UnixStream::from_std(connection)?))
    }
}

/// A socket that the sandbox has, too. It is closed on a thread of its own, which keeps the slot so long.
struct SharedSocket(Option<(OwnedFd, OwnedSemaphorePermit)>);

impl SharedSocket {
    fn get(&self) -> io::Result<BorrowedFd<'_>> {
        self.0.as_ref().map(|(socket, _)| socket.as_fd()).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsRawFd for SharedSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_ref().map_or(-1, |(socket, _)| socket.as_raw_fd())
    }
}

impl Drop for SharedSocket {
    fn drop(&mut self) {
        let closed = self.0.take();
        let _ = thread().spawn(move || drop(closed));
    }
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("egress".to_owned()).stack_size(64 * 1024)
}

/// Makes a call that the agent can keep from returning.
async fn on_own_thread<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (result, called) = oneshot::channel();
    thread().spawn(move || drop(result.send(call())))?;
    called.await.map_err(io::Error::other)?
}

/// Whether it is a TCP socket that listens on this address. What a process of the sandbox does with it later changes neither its protocol nor
/// its address family.
fn check(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let is_tcp = sockopt::socket_domain(socket)? == AddressFamily::INET
        && sockopt::socket_type(socket)? == SocketType::STREAM
        && sockopt::socket_protocol(socket)? == Some(ipproto::TCP);
    let is_listener = is_tcp && sockopt::socket_acceptconn(socket)?;
    if !is_listener || SocketAddr::try_from(rustix::net::getsockname(socket)?)? != address {
        return Err(io::Error::other("the agent sent another descriptor than its listening socket"));
    }
    Ok(())
}

/// The listening socket.
pub(super) struct Listener(AsyncFd<Arc<SharedSocket>>);

impl Listener {
    /// Waits for a connection that can be accepted.
    ///
    /// # Errors
    /// If the socket listens no more.
    pub async fn ready(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut socket = [PollFd::from_borrowed_fd(self.0.get_ref().get()?, PollFlags::IN)];
            if poll(&mut socket, Some(&Timespec::default()))? > 0 {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Accepts a connection; `None` if there is none any more.
    ///
    /// # Errors
    /// If the socket listens no more.
    pub async fn accept(&self) -> io::Result<Option<TcpStream>> {
        let socket = self.0.get_ref().clone();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match on_own_thread(move || Ok(accept_with(socket.get()?, flags)?)).await {
            Ok(accepted) => configure(accepted).map(Some),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
                // They are free again when other connections have ended.
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }
}

/// Sets what a connection has inherited from the listening socket, and what it needs.
fn configure(socket: OwnedFd) -> io::Result<TcpStream> {
    sockopt::set_socket_linger(&socket, None)?;
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    TcpStream::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};

    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::OFlags;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::streams::send_descriptor;

    /// What the slot makes of this descriptor, where a socket on this address is expected.
    async fn offer(slot: &Slot, descriptor: impl AsFd, address: SocketAddr) -> io::Result<(Listener, UnixStream)> {
        let (here, there) = UnixStream::pair().unwrap();
        send_descriptor(&there, descriptor).unwrap();
        slot.receive(here, address).await
    }

    fn listening(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn other_descriptors_than_the_listener_are_refused() {
        let (listener, address) = listening("127.0.0.1:0");
        let (connected, accepted) = (std::net::TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
        let unix = std::env::temp_dir().join(format!("cellkeep-{}", crate::ids::random_uuid()));
        let descriptors: Vec<(&str, OwnedFd)> = vec![
            ("file", File::open("/proc/self/exe").unwrap().into()),
            ("path", rustix::fs::open("/proc", OFlags::PATH, rustix::fs::Mode::empty()).unwrap()),
            ("pipe", std::io::pipe().unwrap().0.into()),
            ("event counter", eventfd(0, EventfdFlags::empty()).unwrap()),
            ("epoll", epoll::create(epoll::CreateFlags::empty()).unwrap()),
            ("datagram socket", UdpSocket::bind("127.0.0.1:0").unwrap().into()),
            ("unix listener", std::os::unix::net::UnixListener::bind(&unix).unwrap().into()),
            ("netlink", rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap()),
            ("unbound socket", rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()),
            ("client", connected.into()),
            ("accepted connection", accepted.into()),
            ("listener on another port", listening("127.0.0.1:0").0.into()),
            ("listener on all addresses", listening("0.0.0.0:0").0.into()),
            ("version 6", listening("[::1]:0").0.into()),
        ];
        std::fs::remove_file(unix).unwrap();
        let slot = Slot::default();
        for (name, descriptor) in descriptors {
            assert!(offer(&slot, descriptor, address).await.is_err(), "{name}");
        }
        let (here, there) = UnixStream::pair().unwrap();
        drop(there);
        assert!(slot.receive(here, address).await.is_err(), "nothing");
        assert!(offer(&slot, listener, address).await.is_ok());
    }

    #[tokio::test]
    async fn connections_are_accepted_and_belong_to_nobody_else() {
        let (shared, address) = listening("127.0.0.1:0");
        // What hangs when the connection is closed, and what the agent has set otherwise.
        sockopt::set_socket_linger(&shared, Some(Duration::from_secs(1000))).unwrap();
        let (listener, _connection) = offer(&Slot::default(), &shared, address).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        listener.ready().await.unwrap();
        let mut accepted = listener.accept().await.unwrap().unwrap();
        assert_eq!(sockopt::socket_linger(&accepted).unwrap(), None);
        // A blocking listener makes no blocking connection.
        let flags = rustix::fs::fcntl_getfl(&accepted).unwrap();
        assert!(flags.contains(OFlags::NONBLOCK));
        client.write_all(b"hello").await.unwrap();
        let mut text = [0; 5];
        accepted.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"hello");
    }

    #[tokio::test]
    async fn accept_that_hangs_holds_up_only_its_slot() {
        let (shared, address) = listening("127.0.0.1:0");
        let slot = Slot::default();
        let (listener, _connection) = offer(&slot, &shared, address).await.unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        listener.ready().await.unwrap();
        // The agent takes the connection away, and has set the socket to block.
        shared.accept().unwrap();
        let hanging = tokio::spawn(async move { listener.accept().await.map(drop) });
        // This thread, which is the only one of the runtime, goes on. The slot is taken until the call has ended.
        let (other, other_address) = listening("127.0.0.1:0");
        let next = tokio::time::timeout(Duration::from_millis(50), offer(&slot, &other, other_address)).await;
        assert!(next.is_err() && !hanging.is_finished());
        slot.interrupt();
        assert!(hanging.await.unwrap().is_err());
        assert!(offer(&slot, &other, other_address).await.is_ok());
    }

    #[tokio::test]
    async fn close_that_hangs_holds_up_only_its_slot() {
        let (server, address) = listening("127.0.0.1:0");
        let lingering = std::net::TcpStream::connect(address).unwrap();
        let (peer, _) = server.accept().unwrap();
        sockopt::set_socket_linger(&lingering, Some(Duration::from_secs(1000))).unwrap();
        lingering.set_nonblocking(true).unwrap();
        // Data that the peer does not read keeps the end from being sent.
        while io::Write::write(&mut &lingering, &[0; 1 << 16]).is_ok() {}
        let slot = Slot::default();
        assert!(offer(&slot, OwnedFd::from(lingering), address).await.is_err());
        assert_eq!(slot.free.available_permits(), 0, "a thread waits for its end");
        drop(peer);
        assert!(offer(&slot, server, address).await.is_ok());
    }
}

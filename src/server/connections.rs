//! The accept loop. It bounds the number of connections and closes idle ones. axum's own loop does neither, so a client that
//! opens connections and leaves them open could use up all file descriptors of the process.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_io_timeout::TimeoutStream;

use super::counted_input::CountedInput;
use super::slow_reader::{STALL_BUDGET, SlowReaderLimit};
use crate::api::OpenConnection;

/// How long the head of a request may take, and how long a connection may be idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may read nothing while there is data for it. Slower than that is bounded by [`STALL_BUDGET`]. A subscriber that is
/// disconnected reconnects and continues by event number.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest head of a request, and the read buffer of its body. Bytes. Each connection may have as much, with or without a token.
const READ_BUFFER: usize = 16 << 10;
/// This many closed connections may be remembered in any case, so that a quiet server need not look for them each time.
const CLOSED_SLACK: usize = 32;
/// How long a stopping server waits for requests. Event streams never end by themselves.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after an accept that failed for want of a resource, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The response when there are too many connections. It is sent without reading the request.
const OVERLOADED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Serves at most so many connections at a time until `stop` completes, and then waits briefly for requests that have begun.
pub(super) async fn serve(most: usize, listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    serve_with(STALL_BUDGET, most, listener, router, stop).await;
}

/// Like [`serve`], with a stall budget for slow readers.
async fn serve_with(
    stall_budget: Duration,
    most: usize,
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(most));
    let (stopping, stopped) = watch::channel(false);
    let mut open = JoinSet::new();
    let mut connections = Connections::default();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let Some(permit) = connections.acquire_permit(&permits).await else {
            let _ = stream.try_write(OVERLOADED);
            continue;
        };
        let is_busy = Arc::new(AtomicBool::new(false));
        let connection = OpenConnection::new(permit);
        let task =
            open.spawn(serve_connection(stream, stall_budget, router.clone(), connection, is_busy.clone(), stopped.clone()));
        connections.add(task, is_busy, open.len());
    }
    drop(listener);
    stopping.send_replace(true);
    let drained = async { while open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

/// The open connections, oldest first, and whether each of them is processing a request.
#[derive(Default)]
struct Connections(VecDeque<(AbortHandle, Arc<AtomicBool>)>);

impl Connections {
    /// Adds a connection; `open` is their number. Closed ones are forgotten when they are the greater part: a handle keeps the memory
    /// of its task.
    fn add(&mut self, task: AbortHandle, is_busy: Arc<AtomicBool>, open: usize) {
        if self.0.len() > 2 * open + CLOSED_SLACK {
            self.0.retain(|(task, _)| !task.is_finished());
        }
        self.0.push_back((task, is_busy));
    }

    /// A permit for a new connection. If there is none, the oldest idle connection is closed. `None` if all connections are
    /// busy.
    async fn acquire_permit(&mut self, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        self.0.retain(|(task, _)| !task.is_finished());
        let idle = self.0.iter().position(|(_, is_busy)| !is_busy.load(Ordering::Relaxed))?;
        let (task, _) = self.0.remove(idle)?;
        task.abort();
        permits.clone().acquire_owned().await.ok()
    }
}

async fn serve_connection(
    stream: TcpStream,
    stall_budget: Duration,
    router: Router,
    open: OpenConnection,
    is_busy: Arc<AtomicBool>,
    mut stopped: watch::Receiver<bool>,
) {
    // Small responses must not wait for delayed acknowledgements of the client, which cost 40 ms each.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut protocol = http1::Builder::new();
    // A client may close its sending half and still wait for the response. A client that is gone is noticed by writes, and
    // streams write every few seconds.
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(READ_BUFFER).half_close(true);
    let router = TowerToHyperService::new(router);
    let input = open.input.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        is_busy.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(open.clone());
        let (response, is_busy) = (router.call(request), is_busy.clone());
        async move {
            let response = response.await;
            // A stream lasts as long as its connection. A response of known size counts as sent.
            let is_whole = response.as_ref().is_ok_and(|response| response.body().size_hint().exact().is_some());
            is_busy.store(!is_whole, Ordering::Relaxed);
            response
        }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let stream = CountedInput::new(SlowReaderLimit::new(Box::pin(stream), stall_budget), input);
    let connection = protocol.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    // The guard that `wait_for` returns must not live across the next await.
    let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        match io_cause(&error).filter(|error| error.kind() == io::ErrorKind::TimedOut) {
            Some(slow) => tracing::warn!(%slow, "closed the connection of a slow reader"),
            None => tracing::debug!(%error, "a connection failed"),
        }
    }
}

/// The I/O error below an HTTP error.
fn io_cause(error: &hyper::Error) -> Option<&io::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

async fn pause_after(error: &io::Error) {
    // The client disconnected before the accept, so there is nothing to wait for.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    tracing::warn!(%error, "cannot accept connections");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use axum::extract::{Path, State};
    use axum::routing::get;
    use bytes::Bytes;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;
    use tokio::time::Instant;

    use super::*;

    /// Signals when a response is no longer being sent.
    struct Sending {
        name: String,
        ended: tokio::sync::mpsc::UnboundedSender<String>,
    }

    impl Drop for Sending {
        fn drop(&mut self) {
            let _ = self.ended.send(std::mem::take(&mut self.name));
        }
    }

    /// A response without end.
    async fn endless(Path(name): Path<String>, State(ended): State<tokio::sync::mpsc::UnboundedSender<String>>) -> Body {
        let sending = Sending { name, ended };
        let chunks = stream::repeat(Bytes::from(vec![7; 64 << 10]));
        Body::from_stream(futures_util::StreamExt::map(chunks, move |chunk| {
            let _ = &sending;
            Ok::<_, Infallible>(chunk)
        }))
    }

    /// A client that reads nothing is disconnected when its stall budget is used up. A client that reads steadily, and makes
    /// the server wait for longer than that in total, is not.
    #[tokio::test]
    async fn slow_readers_are_disconnected_and_steady_ones_are_not() {
        const BUDGET: Duration = Duration::from_secs(3);
        // Small socket buffers, so that little data is on the way.
        let socket = || {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_send_buffer_size(64 << 10).unwrap();
            socket.set_recv_buffer_size(64 << 10).unwrap();
            socket
        };
        let listening = socket();
        listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listening.listen(8).unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, mut endings) = tokio::sync::mpsc::unbounded_channel();
        let router = Router::new().route("/{name}", get(endless)).with_state(ended);
        let server = tokio::spawn(serve_with(BUDGET, 1000, listener, router, std::future::pending()));
        let ask = async |name: &str| {
            let mut stream = socket().connect(address).await.unwrap();
            stream.write_all(format!("GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            stream
        };
        let (silent, mut steady) = (ask("silent").await, ask("steady").await);
        // Ten times the required rate, and a hundredth of the possible one.
        let began = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        while began.elapsed() < 2 * BUDGET {
            steady.read_exact(&mut buffer).await.expect("a steady reader is served");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The write timeout would disconnect it much later.
        let first =
            tokio::time::timeout(WRITE_TIMEOUT / 2, endings.recv()).await.expect("the silent reader is disconnected");
        assert_eq!(first.as_deref(), Some("silent"));
        assert!(endings.try_recv().is_err(), "no other reader is disconnected");
        drop((silent, steady));
        server.abort();
    }

    #[tokio::test]
    async fn closed_connections_are_forgotten() {
        let mut connections = Connections::default();
        let waiting = tokio::spawn(std::future::pending::<()>());
        connections.add(waiting.abort_handle(), Arc::default(), 1);
        for _ in 0..1000 {
            let closed = tokio::spawn(async {});
            let handle = closed.abort_handle();
            closed.await.unwrap();
            connections.add(handle, Arc::default(), 1);
            assert!(connections.0.len() <= CLOSED_SLACK + 3, "{}", connections.0.len());
        }
        assert!(!connections.0[0].0.is_finished(), "the open one is still known");
        waiting.abort();
    }
}

//! Takes connections in: so many at once, and none that says nothing for long. axum's own loop bounds neither, so that a client
//! that opens connections and leaves them open could take all descriptors of the process.

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
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_io_timeout::TimeoutStream;

use super::pace::{PATIENCE, Paced};
use crate::api::OpenConnection;

/// Connections that are open at once, where the process may have as many descriptors.
const MOST: usize = 10_000;
/// Descriptors for all else: two for each session, the journal, kernels that start.
const RESERVED: usize = 1_000;
/// How long a connection may take to send a request's head, and how long it may rest between two requests.
const HEAD: Duration = Duration::from_secs(60);
/// How long a client may take no byte of what is sent to it. Whoever follows events goes on by number.
const UNREAD: Duration = Duration::from_secs(120);
/// Bytes of a request's head, and of what is read ahead of its body.
const BUFFER: usize = 64 << 10;
/// How long requests may take to end once the server is to stop. Event streams never end by themselves.
const DRAIN: Duration = Duration::from_secs(3);
/// After an accept that failed for want of something that others will give back.
const PAUSE: Duration = Duration::from_millis(100);

/// The answer where there are too many, sent without looking at the request.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Serves until `stop` is done, and then for a moment what has begun.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    serve_with(PATIENCE, listener, router, stop).await;
}

/// The same, waiting for readers for so long.
async fn serve_with(patience: Duration, listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(most()));
    let (stopping, stopped) = watch::channel(false);
    let mut open = JoinSet::new();
    let mut resting = Resting::default();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            // What has ended is forgotten.
            Some(_) = open.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let Some(permit) = resting.make_room(&room).await else {
            let _ = stream.try_write(FULL);
            continue;
        };
        let busy = Arc::new(AtomicBool::new(false));
        let connection = OpenConnection::new(permit);
        let task = open.spawn(one(stream, patience, router.clone(), connection, busy.clone(), stopped.clone()));
        resting.0.push_back((task, busy));
    }
    drop(listener);
    stopping.send_replace(true);
    let drained = async { while open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

/// Connections in the order of their coming, and whether a request is being answered on each.
#[derive(Default)]
struct Resting(VecDeque<(AbortHandle, Arc<AtomicBool>)>);

impl Resting {
    /// Room for another connection. If there is none, the oldest of those on which nothing is going on gives way.
    async fn make_room(&mut self, room: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if self.0.len() > 2 * MOST {
            self.0.retain(|(task, _)| !task.is_finished());
        }
        if let Ok(permit) = room.clone().try_acquire_owned() {
            return Some(permit);
        }
        self.0.retain(|(task, _)| !task.is_finished());
        let rests = self.0.iter().position(|(_, busy)| !busy.load(Ordering::Relaxed))?;
        let (task, _) = self.0.remove(rests)?;
        task.abort();
        room.clone().acquire_owned().await.ok()
    }
}

/// As many as the process can hold, after raising its limit as far as it may.
fn most() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = (MOST + RESERVED) as u64;
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)).max(limit.current.unwrap_or(0));
    let has = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(_) => limit.current.unwrap_or(wanted),
    };
    room_in(usize::try_from(has).unwrap_or(usize::MAX))
}

/// Connections that so many descriptors leave room for.
fn room_in(descriptors: usize) -> usize {
    descriptors.saturating_sub(RESERVED).max(descriptors / 2).min(MOST)
}

async fn one(
    stream: TcpStream,
    patience: Duration,
    router: Router,
    open: OpenConnection,
    busy: Arc<AtomicBool>,
    mut stopped: watch::Receiver<bool>,
) {
    // Small answers must not wait for the other side's delayed acknowledgements, which costs 40 ms each.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut protocol = http1::Builder::new();
    // Who has said all it has to say may close its half and still wait for the answer. Who is gone altogether is noticed by what is
    // sent, of which a stream has some every few seconds.
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER).half_close(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        busy.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(open.clone());
        let (answer, busy) = (router.call(request), busy.clone());
        async move {
            let answer = answer.await;
            // A stream goes on for as long as its connection; what is whole is as good as sent.
            let is_whole = answer.as_ref().is_ok_and(|answer| answer.body().size_hint().exact().is_some());
            busy.store(!is_whole, Ordering::Relaxed);
            answer
        }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    let stream = Paced::new(Box::pin(stream), patience);
    let connection = protocol.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    // What it gives must not live on over the next wait.
    let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        match cause(&error).filter(|error| error.kind() == io::ErrorKind::TimedOut) {
            Some(slow) => tracing::warn!(%slow, "a connection was ended"),
            None => tracing::debug!(%error, "a connection broke off"),
        }
    }
}

/// What went wrong below HTTP.
fn cause(error: &hyper::Error) -> Option<&io::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

async fn pause_after(error: &io::Error) {
    // A connection that was gone before we took it is nothing to wait for.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    tracing::warn!(%error, "cannot take connections in");
    tokio::time::sleep(PAUSE).await;
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

    /// Tells when an answer is no longer being sent.
    struct Sending {
        name: String,
        ended: tokio::sync::mpsc::UnboundedSender<String>,
    }

    impl Drop for Sending {
        fn drop(&mut self) {
            let _ = self.ended.send(std::mem::take(&mut self.name));
        }
    }

    /// Bytes without end.
    async fn flood(Path(name): Path<String>, State(ended): State<tokio::sync::mpsc::UnboundedSender<String>>) -> Body {
        let sending = Sending { name, ended };
        let pieces = stream::repeat(Bytes::from(vec![7; 64 << 10]));
        Body::from_stream(futures_util::StreamExt::map(pieces, move |piece| {
            let _ = &sending;
            Ok::<_, Infallible>(piece)
        }))
    }

    /// Who takes nothing is let go when it has kept us waiting for long enough. Who takes little at a time, and keeps us waiting for
    /// longer than that in all, is not.
    #[tokio::test]
    async fn readers_are_let_go_for_their_pace_and_not_for_the_time_they_take() {
        const WAITS: Duration = Duration::from_secs(3);
        // What waits on the way, taken by nobody, is little.
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
        let (ended, mut told) = tokio::sync::mpsc::unbounded_channel();
        let router = Router::new().route("/{name}", get(flood)).with_state(ended);
        let server = tokio::spawn(serve_with(WAITS, listener, router, std::future::pending()));
        let ask = async |name: &str| {
            let mut stream = socket().connect(address).await.unwrap();
            stream.write_all(format!("GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            stream
        };
        let (silent, mut steady) = (ask("silent").await, ask("steady").await);
        // Ten times as fast as the least pace, and a hundredth of what could be sent.
        let began = Instant::now();
        let mut taken = vec![0; 64 << 10];
        while began.elapsed() < 2 * WAITS {
            steady.read_exact(&mut taken).await.expect("who reads steadily is served");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It would have been let go for taking no byte at all much later.
        let first = tokio::time::timeout(UNREAD / 2, told.recv()).await.expect("the silent one is let go");
        assert_eq!(first.as_deref(), Some("silent"));
        assert!(told.try_recv().is_err(), "and nobody else");
        drop((silent, steady));
        server.abort();
    }

    #[test]
    fn any_limit_leaves_room() {
        let rooms = [0, 256, 1_400, 11_000, 65_536, usize::MAX].map(room_in);
        assert_eq!(rooms, [0, 128, 700, 10_000, 10_000, 10_000]);
    }
}

//! Many byte streams over one connection: what both ends of the egress of a sandbox do.
//!
//! ```text
//!  socket ◀─▶ ByteStream ─┐                        ┌─ ByteStream ◀─▶ socket
//!  socket ◀─▶ ByteStream ─┼─ frames, in turn ──────┼─ ByteStream ◀─▶ socket
//!  socket ◀─▶ ByteStream ─┘                        └─ ByteStream ◀─▶ socket
//! ```
//!
//! A stream buffers at most the credit that its end has given, and the task that reads the connection never waits for anything else.
//! So a stream that nobody reads holds up no other. The other end is not trusted: what exceeds a bound ends the connection.

mod copy;
mod handover;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agent_protocol::{FrameError, FrameReader, ProtocolError, StreamFrame, write_all_vectored};

use self::stream::Half;
#[cfg(any(feature = "agent", test))]
pub(crate) use copy::copy_both_ways;
#[cfg(feature = "host")]
pub(crate) use copy::{Meter, Pieces, Room, copy_from_socket, copy_to_socket, read_some};
#[cfg(feature = "host")]
pub(crate) use handover::receive_descriptor;
#[cfg(any(feature = "agent", test))]
pub(crate) use handover::send_descriptor;
pub(crate) use stream::ByteStream;
#[cfg(test)]
pub(crate) use stream::StreamBroken;

/// The most streams that the opening side has at a time. The other side tolerates twice as many, since it may end some of them later.
pub(crate) const MAX_STREAMS: usize = 128;
/// Frames that wait for the connection, of all streams together.
const QUEUED_FRAMES: usize = 16;
/// Ends of streams that wait for the connection, beyond which the other end does not read.
const MAX_RESETS: usize = 1024;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum StreamsEnded {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("cannot write: {0}")]
    Write(std::io::Error),
    #[error("the other side broke the rules of streams: {0}")]
    Violation(&'static str),
}

/// The streams of one connection. The last clone that is dropped ends them all.
#[derive(Clone)]
pub(crate) struct Streams {
    #[cfg_attr(not(any(feature = "agent", test)), expect(dead_code, reason = "only the agent opens streams"))]
    shared: Arc<Shared>,
    /// Whether the connection has ended.
    #[cfg_attr(not(any(feature = "agent", test)), expect(dead_code, reason = "the agent waits for it"))]
    ended: watch::Receiver<bool>,
    _tasks: Arc<JoinSet<()>>,
}

/// What the streams share.
struct Shared {
    table: Mutex<Table>,
    frames: mpsc::Sender<StreamFrame>,
    resets: mpsc::UnboundedSender<u32>,
    queued_resets: AtomicUsize,
}

#[derive(Default)]
struct Table {
    streams: HashMap<u32, Arc<Half>>,
    /// The number of the newest stream.
    last: u32,
    has_ended: bool,
}

impl Streams {
    #[cfg(any(feature = "agent", test))]
    /// The opening side of a connection whose first frames have been exchanged.
    pub fn opener<R, W>(reader: FrameReader<R>, writer: W) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Self::start(reader, writer, None)
    }

    /// The accepting side, and the streams that the other side opens. At the end of the connection the receiver ends.
    pub fn acceptor<R, W>(reader: FrameReader<R>, writer: W) -> (Self, mpsc::Receiver<ByteStream>)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (accepted, receiver) = mpsc::channel(2 * MAX_STREAMS);
        (Self::start(reader, writer, Some(accepted)), receiver)
    }

    fn start<R, W>(reader: FrameReader<R>, writer: W, accepted: Option<mpsc::Sender<ByteStream>>) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (frames, queued) = mpsc::channel(QUEUED_FRAMES);
        if accepted.is_none() {
            // The other side learns that this one is ready; see `agent_protocol::streams`.
            let _ = frames.try_send(StreamFrame::Credit { stream: 0, bytes: 0 });
        }
        let (resets, queued_resets) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { table: Mutex::default(), frames, resets, queued_resets: AtomicUsize::default() });
        let (end, ended) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let running = RunningConnection { shared: shared.clone(), end };
        tasks.spawn(async move {
            let shared = &running.shared;
            let over = tokio::select! {
                over = read(reader, shared, accepted) => over,
                over = write(writer, queued, queued_resets, &shared.queued_resets) => over,
            };
            tracing::debug!(%over, "the streams of a sandbox end");
        });
        Self { shared, ended, _tasks: Arc::new(tasks) }
    }

    #[cfg(any(feature = "agent", test))]
    /// Opens a stream; `None` if the connection has ended.
    pub async fn open(&self) -> Option<ByteStream> {
        // The place first: between the number and its frame nothing may come, since numbers must arrive in order.
        let place = self.shared.frames.reserve().await.ok()?;
        let mut table = self.shared.table();
        if table.has_ended {
            return None;
        }
        table.last = table.last.checked_add(1)?;
        let (id, half) = (table.last, Arc::new(Half::opener()));
        table.streams.insert(id, half.clone());
        place.send(StreamFrame::Open { stream: id });
        drop(table);
        Some(ByteStream::new(id, half, self.shared.clone()))
    }

    #[cfg(any(feature = "agent", test))]
    /// Waits for the end of the connection.
    pub async fn ended(&mut self) {
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    #[cfg(test)]
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }
}

/// Breaks all streams when the connection ends, also by being dropped.
struct RunningConnection {
    shared: Arc<Shared>,
    end: watch::Sender<bool>,
}

impl Drop for RunningConnection {
    fn drop(&mut self) {
        self.shared.end();
        self.end.send_replace(true);
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a stream that this side has dropped. The other side learns it, unless both had ended it.
    fn forget(&self, id: u32, is_over: bool) {
        let was_known = self.table().streams.remove(&id).is_some();
        if was_known && !is_over {
            self.reset(id);
        }
    }

    fn reset(&self, id: u32) {
        self.queued_resets.fetch_add(1, Ordering::Relaxed);
        let _ = self.resets.send(id);
    }

    /// Breaks all streams.
    fn end(&self) {
        let mut table = self.table();
        table.has_ended = true;
        for half in std::mem::take(&mut table.streams).into_values() {
            half.break_off();
        }
    }

    fn handle(
        self: &Arc<Self>,
        frame: StreamFrame,
        accepted: Option<&mpsc::Sender<ByteStream>>,
    ) -> Result<(), StreamsEnded> {
        let (StreamFrame::Open { stream }
        | StreamFrame::Data { stream, .. }
        | StreamFrame::Credit { stream, .. }
        | StreamFrame::End { stream }
        | StreamFrame::Reset { stream }) = frame;
        if let StreamFrame::Open { .. } = frame {
            return self.accept(stream, accepted);
        }
        let half = {
            let table = self.table();
            if stream > table.last {
                return Err(StreamsEnded::Violation("a frame of a stream that was never opened"));
            }
            table.streams.get(&stream).cloned()
        };
        // This side may have dropped it already.
        let Some(half) = half else { return Ok(()) };
        match frame {
            StreamFrame::Data { bytes, .. } => half.push(bytes).map_err(StreamsEnded::Violation)?,
            StreamFrame::Credit { bytes, .. } => half.add_credit(bytes),
            StreamFrame::End { .. } => half.push_end(),
            StreamFrame::Reset { .. } => {
                self.table().streams.remove(&stream);
                half.break_off();
            }
            StreamFrame::Open { .. } => {}
        }
        Ok(())
    }

    fn accept(self: &Arc<Self>, id: u32, accepted: Option<&mpsc::Sender<ByteStream>>) -> Result<(), StreamsEnded> {
        let Some(accepted) = accepted else { return Err(StreamsEnded::Violation("this side opens streams")) };
        if self.queued_resets.load(Ordering::Relaxed) > MAX_RESETS {
            return Err(StreamsEnded::Violation("it opens streams and does not read"));
        }
        let half = Arc::new(Half::acceptor());
        {
            let mut table = self.table();
            if id <= table.last {
                return Err(StreamsEnded::Violation("a stream was opened twice"));
            }
            table.last = id;
            if table.streams.len() >= 2 * MAX_STREAMS {
                drop(table);
                self.reset(id);
                return Ok(());
            }
            table.streams.insert(id, half.clone());
        }
        // If it is not taken, it is dropped, and with it reset.
        let _ = accepted.try_send(ByteStream::new(id, half, self.clone()));
        Ok(())
    }
}

async fn read<R: AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    shared: &Arc<Shared>,
    accepted: Option<mpsc::Sender<ByteStream>>,
) -> StreamsEnded {
    loop {
        let frame = match reader.next().await {
            Ok(raw) => StreamFrame::decode(raw).map_err(StreamsEnded::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = frame.and_then(|frame| shared.handle(frame, accepted.as_ref())) {
            return error;
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: mpsc::Receiver<StreamFrame>,
    mut resets: mpsc::UnboundedReceiver<u32>,
    queued_resets: &AtomicUsize,
) -> StreamsEnded {
    loop {
        // `None` cannot come: the senders live as long as this task.
        let first = tokio::select! {
            frame = frames.recv() => frame,
            stream = resets.recv() => stream.map(|stream| {
                queued_resets.fetch_sub(1, Ordering::Relaxed);
                StreamFrame::Reset { stream }
            }),
        };
        let mut pieces = first.map(StreamFrame::encode).unwrap_or_default();
        while pieces.len() < 64
            && let Ok(frame) = frames.try_recv()
        {
            pieces.extend(frame.encode());
        }
        if let Err(error) = write_all_vectored(&mut writer, pieces).await {
            return StreamsEnded::Write(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::agent_protocol::{ACCEPTOR_WINDOW, OPENER_WINDOW};

    fn pair() -> (Streams, Streams, mpsc::Receiver<ByteStream>) {
        let (here, there) = tokio::io::duplex(4096);
        let (reader, writer) = tokio::io::split(here);
        let opener = Streams::opener(FrameReader::new(reader, StreamFrame::cap), writer);
        let (reader, writer) = tokio::io::split(there);
        let (acceptor, accepted) = Streams::acceptor(FrameReader::new(reader, StreamFrame::cap), writer);
        (opener, acceptor, accepted)
    }

    /// An accepting side whose other side is the test.
    fn acceptor() -> (DuplexStream, Streams, mpsc::Receiver<ByteStream>) {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(there);
        let (streams, accepted) = Streams::acceptor(FrameReader::new(reader, StreamFrame::cap), writer);
        (here, streams, accepted)
    }

    async fn send(raw: &mut DuplexStream, frame: StreamFrame) {
        raw.write_all(&frame.encode().concat()).await.unwrap();
    }

    async fn receive_all(stream: &ByteStream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = stream.receive().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    }

    /// Bytes that do not repeat with any buffer.
    fn pattern(length: usize) -> Bytes {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[tokio::test]
    async fn data_arrives_whole_in_both_directions() {
        let (opener, _acceptor, mut accepted) = pair();
        let here = opener.open().await.unwrap();
        let there = accepted.recv().await.unwrap();
        let data = pattern(3 * OPENER_WINDOW + 7);
        let send_both = async {
            let (one, two) = tokio::join!(here.send(data.clone()), there.send(data.clone()));
            one.unwrap();
            two.unwrap();
            here.end().await.unwrap();
            there.end().await.unwrap();
        };
        let ((), at_there, at_here) = tokio::join!(send_both, receive_all(&there), receive_all(&here));
        assert!(at_there == data && at_here == data);
        drop((here, there));
        assert!(opener.shared.table().streams.is_empty() && !opener.has_ended());
    }

    #[tokio::test]
    async fn unread_stream_blocks_no_other() {
        let (opener, _acceptor, mut accepted) = pair();
        let (stuck, free) = (opener.open().await.unwrap(), opener.open().await.unwrap());
        let (unread, read) = (accepted.recv().await.unwrap(), accepted.recv().await.unwrap());
        let blocked = tokio::spawn(async move { stuck.send(pattern(10 * ACCEPTOR_WINDOW)).await });
        let data = pattern(20 * ACCEPTOR_WINDOW);
        let sending = async {
            free.send(data.clone()).await.unwrap();
            free.end().await.unwrap();
        };
        let ((), received) = tokio::join!(sending, receive_all(&read));
        assert!(received == data && !blocked.is_finished());
        drop(unread);
        assert_eq!(blocked.await.unwrap(), Err(StreamBroken));
    }

    #[tokio::test]
    async fn small_pieces_are_read_together() {
        let (mut raw, _streams, mut accepted) = acceptor();
        send(&mut raw, StreamFrame::Open { stream: 1 }).await;
        for _ in 0..1000 {
            send(&mut raw, StreamFrame::Data { stream: 1, bytes: Bytes::from_static(b"x") }).await;
        }
        send(&mut raw, StreamFrame::End { stream: 1 }).await;
        let stream = accepted.recv().await.unwrap();
        while !stream.has_peer_ended() {
            tokio::task::yield_now().await;
        }
        assert_eq!(stream.receive().await.unwrap().unwrap().len(), 1000);
    }

    #[tokio::test]
    async fn violations_end_the_connection() {
        let data = |length| StreamFrame::Data { stream: 1, bytes: pattern(length) };
        let open = |stream| StreamFrame::Open { stream };
        for frames in [
            vec![data(1)],
            vec![open(1), open(1)],
            vec![open(2), open(1)],
            vec![open(1), data(ACCEPTOR_WINDOW), data(1)],
            vec![open(1), StreamFrame::End { stream: 1 }, data(1)],
            vec![StreamFrame::Credit { stream: 9, bytes: 1 }],
        ] {
            let (mut raw, mut streams, _accepted) = acceptor();
            for frame in frames {
                send(&mut raw, frame).await;
            }
            streams.ended().await;
        }
    }

    #[tokio::test]
    async fn too_many_streams_are_reset() {
        let (mut raw, streams, mut accepted) = acceptor();
        let most = 2 * MAX_STREAMS as u32;
        for stream in 1..=most + 1 {
            send(&mut raw, StreamFrame::Open { stream }).await;
        }
        let mut reader = FrameReader::new(&mut raw, StreamFrame::cap);
        let answer = StreamFrame::decode(reader.next().await.unwrap()).unwrap();
        assert_eq!(answer, StreamFrame::Reset { stream: most + 1 });
        assert!(accepted.recv().await.is_some() && !streams.has_ended());
    }

    #[tokio::test]
    async fn one_who_opens_and_never_reads_is_cut_off() {
        let (raw, mut streams, accepted) = acceptor();
        drop(accepted);
        let (_unread, mut writer) = tokio::io::split(raw);
        let opening = async {
            for stream in 1.. {
                let frame = StreamFrame::Open { stream }.encode().concat();
                if writer.write_all(&frame).await.is_err() {
                    break;
                }
            }
        };
        let closed = async {
            streams.ended().await;
            drop(streams);
        };
        tokio::join!(opening, closed);
    }

    #[tokio::test]
    async fn end_of_connection_breaks_streams() {
        let (opener, acceptor, mut accepted) = pair();
        let stream = opener.open().await.unwrap();
        let there = accepted.recv().await.unwrap();
        drop(acceptor);
        assert_eq!((stream.receive().await, there.receive().await), (Err(StreamBroken), Err(StreamBroken)));
        let mut opener = opener;
        opener.ended().await;
        assert!(opener.open().await.is_none());
    }

    #[tokio::test]
    async fn sockets_are_joined_by_streams() {
        let (opener, _acceptor, mut accepted) = pair();
        let (client, mut inner) = socket_pair().await;
        let (server, mut outer) = socket_pair().await;
        let stream = opener.open().await.unwrap();
        let there = accepted.recv().await.unwrap();
        let joined = async {
            let inner = copy_both_ways(&stream, &mut inner, &());
            let outer = copy_both_ways(&there, &mut outer, &());
            tokio::try_join!(inner, outer).unwrap();
        };
        let data = pattern(5 << 20);
        let talk = async {
            let ((mut client_reader, mut client_writer), (mut server_reader, mut server_writer)) =
                (client.into_split(), server.into_split());
            let (mut request, mut response) = (Vec::new(), Vec::new());
            let write = async {
                let (one, two) = tokio::join!(client_writer.write_all(&data), server_writer.write_all(&data));
                one.unwrap();
                two.unwrap();
                client_writer.shutdown().await.unwrap();
                server_writer.shutdown().await.unwrap();
            };
            let read = async {
                tokio::try_join!(server_reader.read_to_end(&mut request), client_reader.read_to_end(&mut response)).unwrap()
            };
            tokio::join!(write, read);
            assert!(request == data && response == data);
        };
        let both = async { tokio::join!(joined, talk) };
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    }

    async fn socket_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }
}

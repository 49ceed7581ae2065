//! The manager's connection to an agent: dials, attaches, replays, acknowledges, matches answers to requests.
//!
//! ```text
//!   ┌────────── dial ◀── back-off ◀──────────┐
//!   ▼                                        │ disconnect, framing error
//!  hello ─▶ attach(after the last received event) ─▶ events, answers
//! ```
//!
//! A link redials until it is dropped. If the agent violates the protocol repeatedly at the same event, a tenant may control
//! it, and the link ends with [`LinkEvent::Broken`]. Submissions without an answer are sent again after a disconnect; the
//! agent recognises repetitions by their id. Other requests fail with [`LinkError::Disconnected`], since they may not be idempotent.

pub(crate) mod byte_bounded_channel;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::agent_protocol::{
    Answer, AnswerBody, Event, EventAssembler, FrameError, FrameReader, FromAgent, Hello, PREAMBLE, ProtocolError, Refused,
    Request, SUBMIT_MAX, Target, ToAgent, read_preamble, write_all_vectored,
};
use crate::ids::{Epoch, Generation, Seq};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::wire::{Channel, Message};
pub use byte_bounded_channel::ByteBoundedReceiver;
use byte_bounded_channel::ByteBoundedSender;

/// Timeout of the handshake. An agent answers in microseconds, unless its CPU quota is exhausted.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Back-off between dials: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Capacity of the queues of events and of answers, bytes. While a queue is full, the link stops reading and the agent
/// buffers.
const QUEUE_BYTES: usize = 8 << 20;
/// As the one above, for the output of a process. It is smaller, because what waits here is still shown after Control-C.
const PROCESS_QUEUE_BYTES: usize = 256 << 10;
/// Overhead of an event beside its message, bytes.
const EVENT_OVERHEAD: usize = 512;
/// The most bytes of pending requests; beyond, requests fail with [`LinkError::Busy`]. Submissions, signals and restarts are
/// never refused.
const MAX_PENDING_BYTES: usize = 64 << 20;
/// Overhead of a pending request beside its data, bytes.
const REQUEST_OVERHEAD: usize = 1024;
/// Protocol violations in a row, without an event in between, after which the link ends.
const MAX_VIOLATIONS: u32 = 5;

/// The last committed event; an agent replays the events after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The default stands for that of the agent, whichever it is.
    pub epoch: Epoch,
    /// The last committed number of the epoch; zero for none.
    pub seq: Seq,
}

/// Events of a link, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEvent {
    /// A connection is established; its events follow.
    Attached(Hello),
    Event {
        seq: Seq,
        event: Event,
    },
    /// The agent's buffer overflowed and dropped the events `from..=to`.
    Lost {
        from: Seq,
        to: Seq,
    },
    /// The connection was lost; the link redials.
    Detached {
        reason: String,
    },
    /// What the link attaches to does not exist, or no more. This is the last event.
    Absent,
    /// The agent violates the protocol persistently. This is the last event.
    Broken {
        reason: String,
    },
}

impl LinkEvent {
    /// Approximate memory size, bytes.
    pub fn weight(&self) -> usize {
        match self {
            Self::Event { event, .. } => EVENT_OVERHEAD + event.size(),
            _ => EVENT_OVERHEAD,
        }
    }
}

pub type LinkEvents = ByteBoundedReceiver<LinkEvent>;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum LinkError {
    #[error("{0}")]
    Refused(Refused),
    #[error("the connection to the sandbox was lost before it answered")]
    Disconnected,
    #[error("the session has ended")]
    Closed,
    #[error("the code is {size} bytes; the limit is {SUBMIT_MAX}")]
    TooLarge { size: usize },
    /// Too many requests are pending.
    #[error("too many requests to the sandbox are unanswered; it may be disconnected or overloaded")]
    Busy,
    /// The type of the answer does not match the request.
    #[error("the agent sent an answer that does not match the request")]
    Unexpected,
}

type Reply = oneshot::Sender<Result<(AnswerBody, Bytes), LinkError>>;
type PendingAnswer = oneshot::Receiver<Result<(AnswerBody, Bytes), LinkError>>;

struct PendingRequest {
    id: u64,
    frame: Box<ToAgent>,
    reply: Reply,
    #[expect(dead_code, reason = "releases its bytes on drop")]
    reservation: Reservation,
}

/// Counts a request's bytes as pending until it is answered or fails.
struct Reservation {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A link to one agent. Clones share it; dropping the last one closes it.
///
/// Calls enqueue their requests in order before they return. The returned future only waits for the answer and does not keep
/// the link open.
#[derive(Clone)]
pub struct Link {
    commands: mpsc::UnboundedSender<PendingRequest>,
    acked: watch::Sender<Seq>,
    ids: Arc<AtomicU64>,
    pending_bytes: Arc<AtomicUsize>,
}

impl Link {
    /// Opens a link that replays the events after `position`. It dials in the background; [`LinkEvent::Attached`] is the
    /// first event.
    pub fn open(sandbox: Arc<dyn Sandbox>, record: SandboxRecord, target: Target, position: Position) -> (Self, LinkEvents) {
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (acked, ack_receiver) = watch::channel(Seq::default());
        let capacity = if matches!(target, Target::Process(_)) { PROCESS_QUEUE_BYTES } else { QUEUE_BYTES };
        let (events, event_receiver) = byte_bounded_channel::channel(capacity);
        let task = LinkTask {
            sandbox,
            record,
            target,
            position: Arc::new(Mutex::new(position)),
            events: Arc::new(events),
            commands: command_receiver,
            acked: ack_receiver,
            pending: BTreeMap::new(),
        };
        tokio::spawn(task.run());
        (Self { commands, acked, ids: Arc::new(AtomicU64::new(1)), pending_bytes: Arc::default() }, event_receiver)
    }

    /// Submits a message to the kernel, or only to one `generation` of it. `true` if the agent had seen its id before.
    ///
    /// # Errors
    /// [`LinkError::Refused`] if the kernel is not ready, and others.
    pub fn submit(
        &self,
        channel: Channel,
        generation: Option<Generation>,
        message: Message,
    ) -> impl Future<Output = Result<bool, LinkError>> + Send + use<> {
        let size = message.pack().iter().map(Bytes::len).sum();
        let answer = if size > SUBMIT_MAX {
            Err(LinkError::TooLarge { size })
        } else {
            let (id, msg_id) = (self.next_id(), message.header().msg_id);
            self.send(id, size, ToAgent::Submit { id, channel, generation, msg_id, message })
        };
        async move {
            match receive_answer(answer?).await? {
                (AnswerBody::Done { repeated }, _) => Ok(repeated),
                _ => Err(LinkError::Unexpected),
            }
        }
    }

    /// Sends a request to the agent. Returns the answer and, for files, the data.
    pub fn request(
        &self,
        request: Request,
        data: Bytes,
    ) -> impl Future<Output = Result<(AnswerBody, Bytes), LinkError>> + Send + use<> {
        let is_essential = matches!(request, Request::Signal { .. } | Request::Restart { .. });
        let answer = if !is_essential && self.pending_bytes.load(Ordering::Relaxed) >= MAX_PENDING_BYTES {
            Err(LinkError::Busy)
        } else {
            let (id, size) = (self.next_id(), data.len());
            self.send(id, size, ToAgent::Request { id, request, data })
        };
        async move { receive_answer(answer?).await }
    }

    /// Whether the link has ended, because its target is absent or its agent violates the protocol.
    pub fn has_ended(&self) -> bool {
        self.commands.is_closed()
    }

    /// Acknowledges all events up to `seq`, which the manager has committed.
    pub fn ack(&self, seq: Seq) {
        self.acked.send_replace(seq);
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, id: u64, size: usize, frame: ToAgent) -> Result<PendingAnswer, LinkError> {
        let (reply, answer) = oneshot::channel();
        let bytes = REQUEST_OVERHEAD + size;
        self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation { bytes, total: self.pending_bytes.clone() };
        self.commands
            .send(PendingRequest { id, frame: Box::new(frame), reply, reservation })
            .map_err(|_| LinkError::Closed)?;
        Ok(answer)
    }
}

async fn receive_answer(answer: PendingAnswer) -> Result<(AnswerBody, Bytes), LinkError> {
    match answer.await.map_err(|_| LinkError::Closed)?? {
        (AnswerBody::Refused(refused), _) => Err(LinkError::Refused(refused)),
        answer => Ok(answer),
    }
}

#[derive(Debug, Error)]
enum Disconnect {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("cannot write to the agent: {0}")]
    Write(#[from] io::Error),
    #[error("the agent sent no hello")]
    NoHello,
    /// What the link attaches to does not exist any more.
    #[error("the target does not exist")]
    Absent,
    #[error("the agent sent event {got} where {expected} was expected")]
    Numbering { got: Seq, expected: Seq },
    #[error("{0}")]
    Dial(String),
    /// All [`Link`]s were dropped.
    #[error("closed")]
    Closed,
}

impl Disconnect {
    /// Whether the agent sent what no correct agent sends, so that redialling will hardly help.
    fn is_violation(&self) -> bool {
        match self {
            Self::Frame(error) => !matches!(error, FrameError::Io(_) | FrameError::Closed),
            Self::Protocol(_) | Self::Numbering { .. } => true,
            Self::Write(_) | Self::NoHello | Self::Absent | Self::Dial(_) | Self::Closed => false,
        }
    }
}

struct LinkTask {
    sandbox: Arc<dyn Sandbox>,
    record: SandboxRecord,
    target: Target,
    /// Written by the reading task, read when attaching.
    position: Arc<Mutex<Position>>,
    events: Arc<ByteBoundedSender<LinkEvent>>,
    commands: mpsc::UnboundedReceiver<PendingRequest>,
    acked: watch::Receiver<Seq>,
    /// Unanswered requests in the order of the calls, in which they are also sent again.
    pending: BTreeMap<u64, PendingRequest>,
}

impl LinkTask {
    async fn run(mut self) {
        let mut back_off = BACK_OFF.0;
        let mut reported = false;
        let (mut violations, mut violated_at) = (0, Position::default());
        loop {
            let (attached, cut) = self.run_connection().await;
            if matches!(cut, Disconnect::Closed) {
                return;
            }
            if attached {
                (back_off, reported) = (BACK_OFF.0, false);
            }
            if matches!(cut, Disconnect::Absent) {
                let _ = self.emit(LinkEvent::Absent).await;
                return;
            }
            if cut.is_violation() {
                let at = *self.position();
                violations = if at == violated_at { violations + 1 } else { 1 };
                violated_at = at;
                if violations >= MAX_VIOLATIONS {
                    let _ = self.emit(LinkEvent::Broken { reason: cut.to_string() }).await;
                    return;
                }
            }
            if !std::mem::replace(&mut reported, true)
                && self.emit(LinkEvent::Detached { reason: cut.to_string() }).await.is_err()
            {
                return;
            }
            self.fail_pending_requests();
            if self.wait(back_off).await.is_err() {
                return;
            }
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    async fn emit(&self, event: LinkEvent) -> Result<(), Disconnect> {
        emit(&self.events, event).await
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        lock(&self.position)
    }

    /// Waits before the next dial. Receives commands meanwhile, so that a closed link is noticed.
    async fn wait(&mut self, time: Duration) -> Result<(), Disconnect> {
        let until = tokio::time::Instant::now() + time;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                command = self.commands.recv() => match command {
                    None => return Err(Disconnect::Closed),
                    Some(request) => drop(self.pending.insert(request.id, request)),
                },
            }
        }
    }

    /// Runs one connection from dial to disconnect. Also returns whether the handshake succeeded.
    async fn run_connection(&mut self) -> (bool, Disconnect) {
        let (reader, writer, hello) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake()).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(cut)) => return (false, cut),
            Err(_) => return (false, Disconnect::NoHello),
        };
        let cut = self.run_attached(reader, writer, hello).await.err().unwrap_or(Disconnect::Closed);
        (true, cut)
    }

    async fn handshake(&self) -> Result<(FrameReader<OwnedReadHalf>, OwnedWriteHalf, Hello), Disconnect> {
        let stream: UnixStream =
            self.sandbox.connect(&self.record).await.map_err(|error| Disconnect::Dial(error.to_string()))?;
        let (mut reader, mut writer) = stream.into_split();
        let open = ToAgent::Open { target: self.target.clone() }.encode();
        write_all_vectored(&mut writer, std::iter::once(Bytes::from_static(&PREAMBLE)).chain(open).collect()).await?;
        read_preamble(&mut reader).await?;
        let mut reader = FrameReader::new(reader, FromAgent::cap);
        match FromAgent::decode(reader.next().await?)? {
            FromAgent::Hello(hello) => Ok((reader, writer, hello)),
            FromAgent::Absent => Err(Disconnect::Absent),
            _ => Err(Disconnect::NoHello),
        }
    }

    async fn run_attached(
        &mut self,
        reader: FrameReader<OwnedReadHalf>,
        mut writer: OwnedWriteHalf,
        hello: Hello,
    ) -> Result<(), Disconnect> {
        let epoch = hello.epoch;
        let from_seq = self.start_epoch(epoch);
        self.emit(LinkEvent::Attached(hello)).await?;
        write_all_vectored(&mut writer, ToAgent::Attach { epoch, from_seq }.encode()).await?;
        for request in self.pending.values() {
            write_all_vectored(&mut writer, request.frame.encode()).await?;
        }
        // The attach frame already acknowledges up to this position.
        self.acked.mark_unchanged();
        let (answers, mut answered) = byte_bounded_channel::channel(QUEUE_BYTES);
        let reading = read(reader, from_seq, self.position.clone(), self.events.clone(), answers);
        let mut reading = AbortOnDrop(tokio::spawn(reading));
        loop {
            tokio::select! {
                biased;
                Some(answer) = answered.recv() => self.resolve(answer),
                command = self.commands.recv() => match command {
                    None => return Err(Disconnect::Closed),
                    Some(request) => {
                        let bytes = request.frame.encode();
                        self.pending.insert(request.id, request);
                        write(&mut writer, bytes, &mut reading).await?;
                    }
                },
                Ok(()) = self.acked.changed() => {
                    let seq = *self.acked.borrow_and_update();
                    write(&mut writer, ToAgent::Ack { seq }.encode(), &mut reading).await?;
                }
                ended = &mut reading.0 => return ended.unwrap_or(Err(Disconnect::Closed)),
            }
        }
    }

    /// Makes `epoch` the current one, and returns the number of the first event to receive.
    fn start_epoch(&self, epoch: Epoch) -> Seq {
        let mut position = self.position();
        if position.epoch == Epoch::default() {
            position.epoch = epoch;
        } else if position.epoch != epoch {
            *position = Position { epoch, seq: Seq::default() };
        }
        position.seq.next()
    }

    fn resolve(&mut self, answer: Answer) {
        // An answer without a request is late or forged, and is ignored.
        if let Some(request) = self.pending.remove(&answer.id) {
            let _ = request.reply.send(Ok((answer.body, answer.data)));
        }
    }

    /// Fails all pending requests but submissions, since only these are known to be idempotent.
    fn fail_pending_requests(&mut self) {
        let ids: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, request)| !matches!(*request.frame, ToAgent::Submit { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(request) = self.pending.remove(&id) {
                let _ = request.reply.send(Err(LinkError::Disconnected));
            }
        }
    }
}

/// Writes while the reading task runs. An agent that does not read could block the write for ever otherwise.
async fn write(
    writer: &mut OwnedWriteHalf,
    bytes: Vec<Bytes>,
    reading: &mut AbortOnDrop<Result<(), Disconnect>>,
) -> Result<(), Disconnect> {
    tokio::select! {
        biased;
        written = write_all_vectored(writer, bytes) => Ok(written?),
        ended = &mut reading.0 => ended.unwrap_or(Err(Disconnect::Closed)).and(Err(Disconnect::Closed)),
    }
}

/// Aborts its task on drop.
pub(crate) struct AbortOnDrop<T>(pub JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The reading task: forwards events to the session, in order and without gaps, and answers to the link task.
async fn read(
    mut reader: FrameReader<OwnedReadHalf>,
    mut expected: Seq,
    position: Arc<Mutex<Position>>,
    events: Arc<ByteBoundedSender<LinkEvent>>,
    answers: ByteBoundedSender<Answer>,
) -> Result<(), Disconnect> {
    let mut assembler = EventAssembler::default();
    loop {
        let event = match FromAgent::decode(reader.next().await?)? {
            FromAgent::Answer(answer) => {
                answers.room().await;
                let weight = EVENT_OVERHEAD + answer.data.len();
                let _ = answers.send(answer, weight);
                continue;
            }
            FromAgent::EventPiece { seq, total, piece } => {
                if seq != expected {
                    return Err(Disconnect::Numbering { got: seq, expected });
                }
                match assembler.push(seq, total, piece)? {
                    Some(event) => (seq, LinkEvent::Event { seq, event }),
                    None => continue,
                }
            }
            FromAgent::Lost { from, to } => {
                if from != expected || to < from {
                    return Err(Disconnect::Numbering { got: from, expected });
                }
                (to, LinkEvent::Lost { from, to })
            }
            FromAgent::Hello(_) | FromAgent::Absent => return Err(Disconnect::NoHello),
        };
        let (taken, event) = event;
        expected = taken.next();
        emit(&events, event).await?;
        lock(&position).seq = taken;
    }
}

async fn emit(events: &ByteBoundedSender<LinkEvent>, event: LinkEvent) -> Result<(), Disconnect> {
    events.room().await;
    let weight = event.weight();
    events.send(event, weight).map_err(|_| Disconnect::Closed)
}

fn lock(position: &Mutex<Position>) -> MutexGuard<'_, Position> {
    position.lock().unwrap_or_else(PoisonError::into_inner)
}

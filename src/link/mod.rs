//! The manager's end of the stream to an agent: dial, attach, replay, ack, correlate.
//!
//! ```text
//!   ┌────────── dial ◀── back-off ◀──────────┐
//!   ▼                                        │ cut, framing error
//!  hello ─▶ attach(from the last event taken) ─▶ events, answers
//! ```
//!
//! A link redials for as long as it is kept, unless what comes breaks the protocol again and again at the same event: an agent
//! that a tenant has taken over. Then it ends with [`LinkEvent::Broken`]. Submissions that were not answered when it was cut are submitted again, which
//! the agent recognises; other requests fail with [`LinkError::Cut`], since doing them twice may not be the same as once.

pub(crate) mod weighed;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::agent_protocol::{
    Answer, AnswerBody, Event, EventAssembler, FrameError, FrameReader, FromAgent, Hello, PREAMBLE, ProtocolError, Refused,
    Request, SUBMIT_MAX, ToAgent, read_preamble, write_all_vectored,
};
use crate::ids::{Epoch, Generation, Seq};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::wire::{Channel, Message};
pub use weighed::WeighedReceiver;
use weighed::WeighedSender;

/// How long an agent may take to answer a dial. It answers in microseconds, unless its CPU quota is used up.
const HELLO_DEADLINE: Duration = Duration::from_secs(20);
/// Waits between dials double from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Bytes of events, and of answers, that wait for the session. When so many do, the link reads no further, and the agent
/// keeps what follows.
const QUEUED: usize = 8 << 20;
/// What an event weighs beside its message.
const EVENT_WEIGHT: usize = 512;
/// How often in a row the protocol may be broken without a single event between.
const BREACHES: u32 = 5;

/// The last event that is safe with us, from which an agent replays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The agent's life.
    pub epoch: Epoch,
    /// The last number taken in it; zero for none.
    pub seq: Seq,
}

/// What comes from the agent, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEvent {
    /// A connection stands; its events follow.
    Attached(Hello),
    /// A numbered event.
    Event {
        /// Its number.
        seq: Seq,
        /// What it says.
        event: Event,
    },
    /// The agent's buffer overflowed: these events are gone.
    Lost {
        /// First number.
        from: Seq,
        /// Last number.
        to: Seq,
    },
    /// The connection was cut; the link is dialling again.
    Detached {
        /// Why.
        reason: String,
    },
    /// The agent does not keep to the protocol, however often it is dialled. The last event.
    Broken {
        /// How.
        reason: String,
    },
}

impl LinkEvent {
    /// Bytes of memory that it takes, roughly.
    pub fn weight(&self) -> usize {
        match self {
            Self::Event { event, .. } => EVENT_WEIGHT + event.size(),
            _ => EVENT_WEIGHT,
        }
    }
}

/// The events of a link, in order.
pub type LinkEvents = WeighedReceiver<LinkEvent>;

/// Why a request has no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LinkError {
    /// The agent said no.
    #[error("{0}")]
    Refused(Refused),
    /// The connection was cut before the answer.
    #[error("the connection to the sandbox was cut before it answered")]
    Cut,
    /// The link has been closed.
    #[error("the session has ended")]
    Closed,
    /// The request is larger than an agent takes.
    #[error("the code is {size} bytes; at most {SUBMIT_MAX} can be sent")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// The answer was of another kind than the question.
    #[error("the agent gave an answer that does not fit the question")]
    Unexpected,
}

type Reply = oneshot::Sender<Result<(AnswerBody, Bytes), LinkError>>;

enum Command {
    Send { id: u64, frame: Box<ToAgent>, reply: Reply },
    Ack(Seq),
}

/// A link to one agent. Clones share it; dropping the last one closes it.
#[derive(Clone)]
pub struct Link {
    commands: mpsc::UnboundedSender<Command>,
    ids: Arc<AtomicU64>,
}

impl Link {
    /// Opens a link that replays from behind `position`. Dialling happens in the background; the first event tells of it.
    pub fn open(sandbox: Arc<dyn Sandbox>, record: SandboxRecord, position: Position) -> (Self, LinkEvents) {
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (events, event_receiver) = weighed::channel(QUEUED);
        let task = Task {
            sandbox,
            record,
            position: Arc::new(Mutex::new(position)),
            events: Arc::new(events),
            commands: command_receiver,
            waiting: BTreeMap::new(),
        };
        tokio::spawn(task.run());
        (Self { commands, ids: Arc::new(AtomicU64::new(1)) }, event_receiver)
    }

    /// Hands a message to the kernel, to that of one life if it is named. `true` when the agent had seen its id before.
    ///
    /// # Errors
    /// [`LinkError`]; `Refused` when the kernel is not ready for it.
    pub async fn submit(
        &self,
        channel: Channel,
        generation: Option<Generation>,
        message: Message,
    ) -> Result<bool, LinkError> {
        let size = message.pack().iter().map(Bytes::len).sum();
        if size > SUBMIT_MAX {
            return Err(LinkError::TooLarge { size });
        }
        let msg_id = message.header().msg_id;
        let id = self.next_id();
        match self.send(id, ToAgent::Submit { id, channel, generation, msg_id, message }).await? {
            (AnswerBody::Done { repeated }, _) => Ok(repeated),
            _ => Err(LinkError::Unexpected),
        }
    }

    /// Asks the agent for something. Gives the answer and, for files, the data.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn request(&self, request: Request, data: Bytes) -> Result<(AnswerBody, Bytes), LinkError> {
        let id = self.next_id();
        self.send(id, ToAgent::Request { id, request, data }).await
    }

    /// Tells the agent that everything up to `seq` is safe.
    pub fn ack(&self, seq: Seq) {
        let _ = self.commands.send(Command::Ack(seq));
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    async fn send(&self, id: u64, frame: ToAgent) -> Result<(AnswerBody, Bytes), LinkError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Send { id, frame: Box::new(frame), reply }).map_err(|_| LinkError::Closed)?;
        match answer.await.map_err(|_| LinkError::Closed)?? {
            (AnswerBody::Refused(refused), _) => Err(LinkError::Refused(refused)),
            answer => Ok(answer),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Error)]
enum Cut {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("cannot write to the agent: {0}")]
    Write(#[from] io::Error),
    #[error("the agent did not say hello")]
    NoHello,
    #[error("the agent numbered event {got} where {expected} was due")]
    Numbering { got: Seq, expected: Seq },
    #[error("{0}")]
    Dial(String),
    /// Nobody holds the link any more.
    #[error("closed")]
    Closed,
}

impl Cut {
    /// Whether the agent said what no agent of ours says, so that dialling again will hardly help.
    fn breaks_protocol(&self) -> bool {
        match self {
            Self::Frame(error) => !matches!(error, FrameError::Io(_) | FrameError::Closed),
            Self::Protocol(_) | Self::Numbering { .. } => true,
            Self::Write(_) | Self::NoHello | Self::Dial(_) | Self::Closed => false,
        }
    }
}

struct Task {
    sandbox: Arc<dyn Sandbox>,
    record: SandboxRecord,
    /// Written by the reading task of the moment, read when attaching.
    position: Arc<Mutex<Position>>,
    events: Arc<WeighedSender<LinkEvent>>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// In the order in which they were asked, which is that in which they are sent again.
    waiting: BTreeMap<u64, (Box<ToAgent>, Reply)>,
}

impl Task {
    async fn run(mut self) {
        let mut back_off = BACK_OFF.0;
        let mut told = false;
        let (mut breaches, mut breached_at) = (0, Position::default());
        loop {
            let (attached, cut) = self.connection().await;
            if matches!(cut, Cut::Closed) {
                return;
            }
            if attached {
                (back_off, told) = (BACK_OFF.0, false);
            }
            if cut.breaks_protocol() {
                let at = *self.position();
                breaches = if at == breached_at { breaches + 1 } else { 1 };
                breached_at = at;
                if breaches >= BREACHES {
                    let _ = self.tell(LinkEvent::Broken { reason: cut.to_string() }).await;
                    return;
                }
            }
            if !std::mem::replace(&mut told, true)
                && self.tell(LinkEvent::Detached { reason: cut.to_string() }).await.is_err()
            {
                return;
            }
            self.fail_what_cannot_be_repeated();
            if self.wait(back_off).await.is_err() {
                return;
            }
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), Cut> {
        tell(&self.events, event).await
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        lock(&self.position)
    }

    /// Waits between dials; commands are taken meanwhile, so that a closed link is noticed.
    async fn wait(&mut self, time: Duration) -> Result<(), Cut> {
        let until = tokio::time::Instant::now() + time;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                command = self.commands.recv() => match command {
                    None => return Err(Cut::Closed),
                    Some(Command::Ack(_)) => {}
                    Some(Command::Send { id, frame, reply }) => { self.waiting.insert(id, (frame, reply)); }
                },
            }
        }
    }

    /// One connection from dial to end, and whether it had come to stand.
    async fn connection(&mut self) -> (bool, Cut) {
        let (reader, writer, hello) = match tokio::time::timeout(HELLO_DEADLINE, self.greet()).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(cut)) => return (false, cut),
            Err(_) => return (false, Cut::NoHello),
        };
        let cut = self.attached(reader, writer, hello).await.err().unwrap_or(Cut::Closed);
        (true, cut)
    }

    async fn greet(&self) -> Result<(FrameReader<OwnedReadHalf>, OwnedWriteHalf, Hello), Cut> {
        let stream: UnixStream = self.sandbox.connect(&self.record).await.map_err(|error| Cut::Dial(error.to_string()))?;
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(&PREAMBLE).await?;
        read_preamble(&mut reader).await?;
        let mut reader = FrameReader::new(reader, FromAgent::cap);
        match FromAgent::decode(reader.next().await?)? {
            FromAgent::Hello(hello) => Ok((reader, writer, hello)),
            _ => Err(Cut::NoHello),
        }
    }

    async fn attached(
        &mut self,
        reader: FrameReader<OwnedReadHalf>,
        mut writer: OwnedWriteHalf,
        hello: Hello,
    ) -> Result<(), Cut> {
        let epoch = hello.epoch;
        let from_seq = self.enter(epoch);
        self.tell(LinkEvent::Attached(hello)).await?;
        write_all_vectored(&mut writer, ToAgent::Attach { epoch, from_seq }.encode()).await?;
        for (frame, _) in self.waiting.values() {
            write_all_vectored(&mut writer, frame.encode()).await?;
        }
        let (answers, mut answered) = weighed::channel(QUEUED);
        let reading = read(reader, from_seq, self.position.clone(), self.events.clone(), answers);
        let mut reading = AbortOnDrop(tokio::spawn(reading));
        loop {
            tokio::select! {
                biased;
                Some(answer) = answered.recv() => self.resolve(answer),
                command = self.commands.recv() => match command {
                    None => return Err(Cut::Closed),
                    Some(Command::Ack(seq)) => write_all_vectored(&mut writer, ToAgent::Ack { seq }.encode()).await?,
                    Some(Command::Send { id, frame, reply }) => {
                        let bytes = frame.encode();
                        self.waiting.insert(id, (frame, reply));
                        write_all_vectored(&mut writer, bytes).await?;
                    }
                },
                ended = &mut reading.0 => return ended.unwrap_or(Err(Cut::Closed)),
            }
        }
    }

    /// Makes `epoch` the current one; gives the first number still wanted of it.
    fn enter(&self, epoch: Epoch) -> Seq {
        let mut position = self.position();
        if position.epoch != epoch {
            *position = Position { epoch, seq: Seq::default() };
        }
        position.seq.next()
    }

    fn resolve(&mut self, answer: Answer) {
        // An answer to nothing is a hostile agent's or a late one's; neither matters.
        if let Some((_, reply)) = self.waiting.remove(&answer.id) {
            let _ = reply.send(Ok((answer.body, answer.data)));
        }
    }

    fn fail_what_cannot_be_repeated(&mut self) {
        let ids: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, (frame, _))| !matches!(**frame, ToAgent::Submit { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some((_, reply)) = self.waiting.remove(&id) {
                let _ = reply.send(Err(LinkError::Cut));
            }
        }
    }
}

/// A task that ends with whoever holds it.
pub(crate) struct AbortOnDrop<T>(pub JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Owns the read half: events go to the session in order and without gaps, answers to the task.
async fn read(
    mut reader: FrameReader<OwnedReadHalf>,
    mut expected: Seq,
    position: Arc<Mutex<Position>>,
    events: Arc<WeighedSender<LinkEvent>>,
    answers: WeighedSender<Answer>,
) -> Result<(), Cut> {
    let mut assembler = EventAssembler::default();
    loop {
        let event = match FromAgent::decode(reader.next().await?)? {
            FromAgent::Answer(answer) => {
                answers.room().await;
                let weight = EVENT_WEIGHT + answer.data.len();
                let _ = answers.send(answer, weight);
                continue;
            }
            FromAgent::EventPiece { seq, total, piece } => {
                if seq != expected {
                    return Err(Cut::Numbering { got: seq, expected });
                }
                match assembler.push(seq, total, piece)? {
                    Some(event) => (seq, LinkEvent::Event { seq, event }),
                    None => continue,
                }
            }
            FromAgent::Lost { from, to } => {
                if from != expected || to < from {
                    return Err(Cut::Numbering { got: from, expected });
                }
                (to, LinkEvent::Lost { from, to })
            }
            FromAgent::Hello(_) => return Err(Cut::NoHello),
        };
        let (taken, event) = event;
        expected = taken.next();
        tell(&events, event).await?;
        lock(&position).seq = taken;
    }
}

async fn tell(events: &WeighedSender<LinkEvent>, event: LinkEvent) -> Result<(), Cut> {
    events.room().await;
    let weight = event.weight();
    events.send(event, weight).map_err(|_| Cut::Closed)
}

fn lock(position: &Mutex<Position>) -> MutexGuard<'_, Position> {
    position.lock().unwrap_or_else(PoisonError::into_inner)
}

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
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
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
/// Bytes of questions that an agent may leave unanswered; who asks more is told so. What the session itself needs is never refused.
const UNANSWERED: usize = 64 << 20;
/// What a question weighs beside its data.
const QUESTION_WEIGHT: usize = 1024;
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
    /// So much waits for the agent that no more is taken.
    #[error("the sandbox has left too many questions unanswered; it may be cut off or overloaded")]
    Busy,
    /// The answer was of another kind than the question.
    #[error("the agent gave an answer that does not fit the question")]
    Unexpected,
}

type Reply = oneshot::Sender<Result<(AnswerBody, Bytes), LinkError>>;
type Answered = oneshot::Receiver<Result<(AnswerBody, Bytes), LinkError>>;

struct Asked {
    id: u64,
    frame: Box<ToAgent>,
    reply: Reply,
    #[expect(dead_code, reason = "held")]
    held: Held,
}

/// Bytes that a question holds until it is answered, or will not be.
struct Held {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A link to one agent. Clones share it; dropping the last one closes it.
///
/// What is asked is on its way when the call returns, in the order of the calls, and the future that it gives only waits for the
/// answer. It does not keep the link open: of one that is closed nobody hears.
#[derive(Clone)]
pub struct Link {
    commands: mpsc::UnboundedSender<Asked>,
    acked: watch::Sender<Seq>,
    ids: Arc<AtomicU64>,
    unanswered: Arc<AtomicUsize>,
}

impl Link {
    /// Opens a link that replays from behind `position`. Dialling happens in the background; the first event tells of it.
    pub fn open(sandbox: Arc<dyn Sandbox>, record: SandboxRecord, position: Position) -> (Self, LinkEvents) {
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (acked, ack_receiver) = watch::channel(Seq::default());
        let (events, event_receiver) = weighed::channel(QUEUED);
        let task = Task {
            sandbox,
            record,
            position: Arc::new(Mutex::new(position)),
            events: Arc::new(events),
            commands: command_receiver,
            acked: ack_receiver,
            waiting: BTreeMap::new(),
        };
        tokio::spawn(task.run());
        (Self { commands, acked, ids: Arc::new(AtomicU64::new(1)), unanswered: Arc::default() }, event_receiver)
    }

    /// Hands a message to the kernel, to that of one life if it is named. `true` when the agent had seen its id before.
    ///
    /// # Errors
    /// [`LinkError`]; `Refused` when the kernel is not ready for it.
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
            match heard(answer?).await? {
                (AnswerBody::Done { repeated }, _) => Ok(repeated),
                _ => Err(LinkError::Unexpected),
            }
        }
    }

    /// Asks the agent for something. Gives the answer and, for files, the data.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn request(
        &self,
        request: Request,
        data: Bytes,
    ) -> impl Future<Output = Result<(AnswerBody, Bytes), LinkError>> + Send + use<> {
        let is_needed = matches!(request, Request::Signal { .. } | Request::Restart { .. });
        let answer = if !is_needed && self.unanswered.load(Ordering::Relaxed) >= UNANSWERED {
            Err(LinkError::Busy)
        } else {
            let (id, size) = (self.next_id(), data.len());
            self.send(id, size, ToAgent::Request { id, request, data })
        };
        async move { heard(answer?).await }
    }

    /// Tells the agent that everything up to `seq` is safe.
    pub fn ack(&self, seq: Seq) {
        self.acked.send_replace(seq);
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, id: u64, size: usize, frame: ToAgent) -> Result<Answered, LinkError> {
        let (reply, answer) = oneshot::channel();
        let bytes = QUESTION_WEIGHT + size;
        self.unanswered.fetch_add(bytes, Ordering::Relaxed);
        let held = Held { bytes, all: self.unanswered.clone() };
        self.commands.send(Asked { id, frame: Box::new(frame), reply, held }).map_err(|_| LinkError::Closed)?;
        Ok(answer)
    }
}

async fn heard(answer: Answered) -> Result<(AnswerBody, Bytes), LinkError> {
    match answer.await.map_err(|_| LinkError::Closed)?? {
        (AnswerBody::Refused(refused), _) => Err(LinkError::Refused(refused)),
        answer => Ok(answer),
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
    commands: mpsc::UnboundedReceiver<Asked>,
    acked: watch::Receiver<Seq>,
    /// In the order in which they were asked, which is that in which they are sent again.
    waiting: BTreeMap<u64, Asked>,
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
                    Some(asked) => drop(self.waiting.insert(asked.id, asked)),
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
        for asked in self.waiting.values() {
            write_all_vectored(&mut writer, asked.frame.encode()).await?;
        }
        // Attaching has said how far it is.
        self.acked.mark_unchanged();
        let (answers, mut answered) = weighed::channel(QUEUED);
        let reading = read(reader, from_seq, self.position.clone(), self.events.clone(), answers);
        let mut reading = AbortOnDrop(tokio::spawn(reading));
        loop {
            tokio::select! {
                biased;
                Some(answer) = answered.recv() => self.resolve(answer),
                command = self.commands.recv() => match command {
                    None => return Err(Cut::Closed),
                    Some(asked) => {
                        let bytes = asked.frame.encode();
                        self.waiting.insert(asked.id, asked);
                        write(&mut writer, bytes, &mut reading).await?;
                    }
                },
                Ok(()) = self.acked.changed() => {
                    let seq = *self.acked.borrow_and_update();
                    write(&mut writer, ToAgent::Ack { seq }.encode(), &mut reading).await?;
                }
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
        if let Some(asked) = self.waiting.remove(&answer.id) {
            let _ = asked.reply.send(Ok((answer.body, answer.data)));
        }
    }

    fn fail_what_cannot_be_repeated(&mut self) {
        let ids: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, asked)| !matches!(*asked.frame, ToAgent::Submit { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(asked) = self.waiting.remove(&id) {
                let _ = asked.reply.send(Err(LinkError::Cut));
            }
        }
    }
}

/// Writes for as long as the agent is heard: one that does not read might keep us here for ever.
async fn write(
    writer: &mut OwnedWriteHalf,
    bytes: Vec<Bytes>,
    reading: &mut AbortOnDrop<Result<(), Cut>>,
) -> Result<(), Cut> {
    tokio::select! {
        biased;
        written = write_all_vectored(writer, bytes) => Ok(written?),
        ended = &mut reading.0 => ended.unwrap_or(Err(Cut::Closed)).and(Err(Cut::Closed)),
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

//! The connections of the manager. The first frame of each says what it attaches to.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::buffer::{EventBuffer, Lookup};
use super::control;
use super::input::Input;
use super::sandbox::{Attachment, Sandbox};
use crate::agent_protocol::{
    FrameReader, FromAgent, Hello, Listen, PREAMBLE, Target, ToAgent, encode_event_frames, read_preamble, write_all_vectored,
};
use crate::ids::{Epoch, Seq};

/// How long a new connection may take to send its preamble and its first frame.
const PREAMBLE_DEADLINE: Duration = Duration::from_secs(10);
/// The most answers that wait for a manager that does not read; beyond, the connection is closed.
const MAX_ANSWERS: usize = 1024;

/// Accepts connections of the manager, each of which gets a task.
pub(super) fn listen(sandbox: &Rc<Sandbox>) -> io::Result<()> {
    let listener = open_listener(&sandbox.config.listen)?;
    tokio::task::spawn_local(accept(listener, sandbox.clone()));
    Ok(())
}

/// Opens the listening socket. For [`Listen::Fd`] it takes ownership of the descriptor; nothing else may own it.
pub(super) fn open_listener(listen: &Listen) -> io::Result<UnixListener> {
    match listen {
        Listen::Fd(fd) => {
            // SAFETY: the parent opened a listening socket at this number for the agent; nothing else in this process owns
            // it.
            #[expect(unsafe_code, reason = "an inherited descriptor is only a number until it is owned")]
            let owned = unsafe { OwnedFd::from_raw_fd(*fd) };
            rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
            let listener = std::os::unix::net::UnixListener::from(owned);
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        }
        Listen::Path(path) => {
            // A socket file of an earlier agent would make bind fail.
            let _ = std::fs::remove_file(path);
            let listener = UnixListener::bind(path)?;
            // The manager has another uid; the folder's mode keeps all others out.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
            Ok(listener)
        }
    }
}

async fn accept(listener: UnixListener, sandbox: Rc<Sandbox>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_manager(&stream) => {
                tokio::task::spawn_local(route(stream, sandbox.clone()));
            }
            Ok(_) => {}
            // Most likely out of descriptors: wait until some are closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether the peer is the manager and not a process of the sandbox. A process outside of the agent's PID namespace has no
/// PID in it; gVisor reports the agent's own.
pub(super) fn is_manager(stream: &UnixStream) -> bool {
    let is_init = std::process::id() == 1;
    !is_init || stream.peer_cred().is_ok_and(|peer| matches!(peer.pid(), None | Some(0 | 1)))
}

/// A connection whose first frame has been read.
pub(super) struct ManagerStream {
    pub frames: FrameReader<OwnedReadHalf>,
    pub writer: OwnedWriteHalf,
    pub attachment: Attachment,
}

/// Reads the first frame of a connection and passes the stream on to its target.
async fn route(stream: UnixStream, sandbox: Rc<Sandbox>) {
    let attachment = sandbox.attach();
    let (reader, mut writer) = stream.into_split();
    let greeted = tokio::time::timeout(PREAMBLE_DEADLINE, greet(reader, &mut writer));
    let Ok(Ok((frames, target))) = greeted.await else { return };
    let mut stream = ManagerStream { frames, writer, attachment };
    let inputs = match target {
        Target::Kernel(session) => sandbox.kernel(&session),
        Target::Process(id) => sandbox.processes.readers(&id),
        Target::Sandbox => return control::serve(stream, sandbox).await,
        Target::Egress | Target::ProxyListener => {
            let ManagerStream { frames, writer, attachment: _attachment } = stream;
            return match (&sandbox.egress, target) {
                (Some(egress), Target::Egress) => egress.attach(frames, writer).await,
                (Some(egress), _) => egress.hand_over(frames, writer).await,
                (None, _) => drop(writer),
            };
        }
    };
    match inputs {
        Some(inputs) => drop(inputs.send(Input::Connection(stream)).await),
        None => drop(write_all_vectored(&mut stream.writer, FromAgent::Absent.encode()).await),
    }
}

async fn greet(
    mut reader: OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> Result<(FrameReader<OwnedReadHalf>, Target), Disconnect> {
    write_all_vectored(writer, vec![Bytes::from_static(&PREAMBLE)]).await?;
    read_preamble(&mut reader).await?;
    let mut frames = FrameReader::new(reader, ToAgent::cap);
    match ToAgent::decode(frames.next().await?)? {
        ToAgent::Open { target } => Ok((frames, target)),
        _ => Err(Disconnect),
    }
}

/// The connection failed, or its first frame was another than [`ToAgent::Open`].
struct Disconnect;

impl<E: std::error::Error> From<E> for Disconnect {
    fn from(_: E) -> Self {
        Self
    }
}

/// What the writer sends.
#[derive(Default)]
struct SendQueue {
    answers: VecDeque<FromAgent>,
    /// The next event to send; `None` until the manager attaches.
    cursor: Option<Seq>,
}

/// A connection that reads events. Dropping it ends its tasks and closes the stream.
pub(super) struct Connection {
    pub id: u64,
    queue: Rc<RefCell<SendQueue>>,
    wake: Rc<Notify>,
    _tasks: JoinSet<()>,
    _attachment: Attachment,
}

impl Connection {
    /// Sends the hello, and starts to read frames.
    pub fn open(
        id: u64,
        stream: ManagerStream,
        hello: Hello,
        buffer: Rc<RefCell<EventBuffer>>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let ManagerStream { frames, writer, attachment } = stream;
        let queue = Rc::new(RefCell::new(SendQueue::default()));
        let wake = Rc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let write = write(writer, hello, buffer, queue.clone(), wake.clone());
        tasks.spawn_local(async move {
            // The reading side fails as well and reports it.
            let _ = write.await;
        });
        tasks.spawn_local(read(id, frames, inputs));
        Self { id, queue, wake, _tasks: tasks, _attachment: attachment }
    }

    /// Sends events from `from_seq` on if `epoch` is `own_epoch`, else from the oldest buffered event on.
    pub fn attach(&self, own_epoch: Epoch, epoch: Epoch, from_seq: Seq) {
        let from = if epoch == own_epoch { from_seq.max(Seq::FIRST) } else { Seq::FIRST };
        self.queue.borrow_mut().cursor = Some(from);
        self.wake.notify_one();
    }

    /// Queues an answer. `false` if the manager has stopped reading.
    pub fn answer(&self, answer: FromAgent) -> bool {
        let mut queue = self.queue.borrow_mut();
        queue.answers.push_back(answer);
        self.wake.notify_one();
        queue.answers.len() <= MAX_ANSWERS
    }

    /// The next event to send; `None` until the manager attaches.
    pub fn cursor(&self) -> Option<Seq> {
        self.queue.borrow().cursor
    }

    /// Notifies the writer of new events.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

async fn read(id: u64, mut frames: FrameReader<OwnedReadHalf>, inputs: mpsc::Sender<Input>) {
    while let Ok(raw) = frames.next().await {
        let Ok(frame) = ToAgent::decode(raw) else { break };
        if inputs.send(Input::Frame { connection: id, frame }).await.is_err() {
            return;
        }
    }
    let _ = inputs.send(Input::Closed { connection: id }).await;
}

async fn write(
    mut writer: OwnedWriteHalf,
    hello: Hello,
    buffer: Rc<RefCell<EventBuffer>>,
    queue: Rc<RefCell<SendQueue>>,
    wake: Rc<Notify>,
) -> io::Result<()> {
    write_all_vectored(&mut writer, FromAgent::Hello(hello).encode()).await?;
    let mut frames = VecDeque::new();
    loop {
        let answers: Vec<FromAgent> = queue.borrow_mut().answers.drain(..).collect();
        for answer in answers {
            write_all_vectored(&mut writer, answer.encode()).await?;
        }
        if frames.is_empty() {
            frames = next_frames(&buffer, &queue);
        }
        match frames.pop_front() {
            // Answers are sent between the frames of a large event.
            Some(frame) => write_all_vectored(&mut writer, frame).await?,
            None => wake.notified().await,
        }
    }
}

/// The frames of the next events: small ones are joined into one write, each frame of a large one is its own.
fn next_frames(buffer: &RefCell<EventBuffer>, queue: &RefCell<SendQueue>) -> VecDeque<Vec<Bytes>> {
    const GATHER: usize = 64 * 1024;
    let (buffer, mut queue) = (buffer.borrow(), queue.borrow_mut());
    let (mut writes, mut small) = (VecDeque::new(), Vec::new());
    let mut size = 0;
    while let (true, Some(cursor)) = (size < GATHER, queue.cursor) {
        match buffer.get(cursor) {
            Lookup::NotYet => break,
            Lookup::Dropped { until } => {
                small.extend(FromAgent::Lost { from: cursor, to: Seq(until.0 - 1) }.encode());
                queue.cursor = Some(until);
            }
            Lookup::Event(event) => {
                size += event.size();
                queue.cursor = Some(event.seq.next());
                if event.size() < GATHER {
                    small.extend(encode_event_frames(event.seq, &event.pieces).into_iter().flatten());
                } else {
                    writes.extend([std::mem::take(&mut small)].into_iter().filter(|write| !write.is_empty()));
                    writes.extend(encode_event_frames(event.seq, &event.pieces));
                }
            }
        }
    }
    if !small.is_empty() {
        writes.push_back(small);
    }
    writes
}

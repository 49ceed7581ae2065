//! The connection to the manager. One at a time; the newest wins.

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

use super::buffer::{Buffer, Lookup};
use super::hub::Input;
use crate::agent_protocol::{
    FrameReader, FromAgent, Hello, Listen, PREAMBLE, ToAgent, encode_event_frames, read_preamble, write_all_vectored,
};
use crate::ids::{Epoch, Seq};

/// How long a new connection may take to say who it is.
const PREAMBLE_DEADLINE: Duration = Duration::from_secs(10);
/// Answers waiting for a manager that does not read; beyond it the connection is closed.
const MAX_ANSWERS: usize = 1024;

/// Hands every connection of a manager to the hub.
pub(super) fn listen(listen: &Listen, inputs: mpsc::Sender<Input>) -> io::Result<()> {
    tokio::task::spawn_local(accept(open_listener(listen)?, inputs));
    Ok(())
}

/// Opens the listening socket. A number is owned from here on: nobody else may have made an owner of it.
pub(super) fn open_listener(listen: &Listen) -> io::Result<UnixListener> {
    match listen {
        Listen::Fd(fd) => {
            // SAFETY: a listening socket was put at this number for us alone; nothing else in this process owns it.
            #[expect(unsafe_code, reason = "an inherited descriptor is only a number until it is owned")]
            let owned = unsafe { OwnedFd::from_raw_fd(*fd) };
            rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
            let listener = std::os::unix::net::UnixListener::from(owned);
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        }
        Listen::Path(path) => {
            // A socket file that an earlier agent left behind would make bind fail.
            let _ = std::fs::remove_file(path);
            let listener = UnixListener::bind(path)?;
            // The manager has another uid, and the folder lets nobody else come here.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
            Ok(listener)
        }
    }
}

async fn accept(listener: UnixListener, inputs: mpsc::Sender<Input>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if comes_from_outside(&stream) => {
                if inputs.send(Input::Connection(stream)).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            // Out of descriptors, most likely: wait for some to be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether the peer is the manager and not a process of the sandbox: to us as PID 1, a process outside our PID namespace
/// has no number.
pub(super) fn comes_from_outside(stream: &UnixStream) -> bool {
    let namespace_is_ours = std::process::id() == 1;
    !namespace_is_ours || stream.peer_cred().is_ok_and(|peer| peer.pid().unwrap_or(0) == 0)
}

/// What the writer sends beside events.
#[derive(Default)]
struct Outbox {
    answers: VecDeque<FromAgent>,
    /// The next event to send, once the manager has attached.
    cursor: Option<Seq>,
}

/// One manager's connection. Dropping it ends its tasks and closes the stream.
pub(super) struct Connection {
    pub id: u64,
    outbox: Rc<RefCell<Outbox>>,
    wake: Rc<Notify>,
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Starts speaking: preamble and hello out, frames in.
    pub fn open(
        id: u64,
        stream: UnixStream,
        hello: Hello,
        buffer: Rc<RefCell<Buffer>>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let (reader, writer) = stream.into_split();
        let outbox = Rc::new(RefCell::new(Outbox::default()));
        let wake = Rc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let write = write(writer, hello, buffer, outbox.clone(), wake.clone());
        tasks.spawn_local(async move {
            // A failed write shows on the reading side as well, which reports it.
            let _ = write.await;
        });
        tasks.spawn_local(read(id, reader, inputs));
        Self { id, outbox, wake, _tasks: tasks }
    }

    /// Sends events from `from_seq` on, if it belongs to our epoch; else from the oldest there is.
    pub fn attach(&self, ours: Epoch, epoch: Epoch, from_seq: Seq) {
        let from = if epoch == ours { from_seq.max(Seq::FIRST) } else { Seq::FIRST };
        self.outbox.borrow_mut().cursor = Some(from);
        self.wake.notify_one();
    }

    /// Queues an answer. `false` where the manager takes none any more.
    pub fn answer(&self, answer: FromAgent) -> bool {
        let mut outbox = self.outbox.borrow_mut();
        outbox.answers.push_back(answer);
        self.wake.notify_one();
        outbox.answers.len() <= MAX_ANSWERS
    }

    /// Tells the writer that there are new events.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Gives the writer time to send what is queued, for the last words before the end.
    pub async fn drain(&self) {
        for _ in 0..100 {
            if self.outbox.borrow().answers.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn read(id: u64, mut reader: OwnedReadHalf, inputs: mpsc::Sender<Input>) {
    let preamble = tokio::time::timeout(PREAMBLE_DEADLINE, read_preamble(&mut reader)).await;
    if matches!(preamble, Ok(Ok(()))) {
        let mut frames = FrameReader::new(reader, ToAgent::cap);
        while let Ok(raw) = frames.next().await {
            let Ok(frame) = ToAgent::decode(raw) else { break };
            if inputs.send(Input::Frame { connection: id, frame }).await.is_err() {
                return;
            }
        }
    }
    let _ = inputs.send(Input::Closed { connection: id }).await;
}

async fn write(
    mut writer: OwnedWriteHalf,
    hello: Hello,
    buffer: Rc<RefCell<Buffer>>,
    outbox: Rc<RefCell<Outbox>>,
    wake: Rc<Notify>,
) -> io::Result<()> {
    let mut greeting = vec![Bytes::from_static(&PREAMBLE)];
    greeting.extend(FromAgent::Hello(hello).encode());
    write_all_vectored(&mut writer, greeting).await?;
    let mut frames = VecDeque::new();
    loop {
        let answers: Vec<FromAgent> = outbox.borrow_mut().answers.drain(..).collect();
        for answer in answers {
            write_all_vectored(&mut writer, answer.encode()).await?;
        }
        if frames.is_empty() {
            frames = next_frames(&buffer, &outbox);
        }
        match frames.pop_front() {
            // Between two frames of a large event there is room for answers.
            Some(frame) => write_all_vectored(&mut writer, frame).await?,
            None => wake.notified().await,
        }
    }
}

/// The next events: many small ones gathered into one write, a large one as its several frames.
fn next_frames(buffer: &RefCell<Buffer>, outbox: &RefCell<Outbox>) -> VecDeque<Vec<Bytes>> {
    const GATHER: usize = 64 * 1024;
    let (buffer, mut outbox) = (buffer.borrow(), outbox.borrow_mut());
    let (mut writes, mut small) = (VecDeque::new(), Vec::new());
    let mut size = 0;
    while let (true, Some(cursor)) = (size < GATHER, outbox.cursor) {
        match buffer.get(cursor) {
            Lookup::Nothing => break,
            Lookup::Gone { until } => {
                small.extend(FromAgent::Lost { from: cursor, to: Seq(until.0 - 1) }.encode());
                outbox.cursor = Some(until);
            }
            Lookup::Event(event) => {
                size += event.size();
                outbox.cursor = Some(event.seq.next());
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

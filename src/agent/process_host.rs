//! The task of one process: it reads the output into a numbered, bounded buffer, writes the input, and waits for the end.
//!
//! Connections read the buffer, each at its own place. A reader that keeps up misses nothing: while one is far behind and goes on
//! reading, the process's output waits in its pipe.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::input::Input;
use super::process_spawn::Ends;
use super::processes::{MAX_OUTPUT, Process, now_ms};
use super::sandbox::Sandbox;
use crate::agent_protocol::{Event, Hello, ProcessEvent, ProcessExit, ProcessStream, ToAgent};
use crate::ids::Seq;

/// Read size, bytes.
const CHUNK: usize = 64 * 1024;
/// How long the output of an exited process must be quiet before its exit is reported, while others hold its pipes.
const DRAIN_QUIET: Duration = Duration::from_millis(60);
/// How long the exit is put off while processes that it left behind go on writing.
const MAX_DRAIN: Duration = Duration::from_secs(10);
/// The most bytes that are read after the exit: more than pipes can hold.
const MAX_REST: usize = 4 << 20;
/// How long a process may go on after SIGTERM when its time is over.
const TERMINATION_GRACE: Duration = Duration::from_secs(2);
/// How far a reader may be behind before the process waits for it, bytes. For a terminal it is less: what the process has written before
/// Control-C stops it is still shown.
const MAX_BEHIND: usize = MAX_OUTPUT / 2;
const MAX_BEHIND_TERMINAL: usize = 256 << 10;
/// How often a reader that is behind is looked at, and after how long without progress it is not waited for any more.
const BEHIND_INTERVAL: Duration = Duration::from_millis(2);
const STALL: Duration = Duration::from_secs(5);

struct ProcessHost {
    sandbox: Rc<Sandbox>,
    process: Rc<Process>,
    /// Until the input ends.
    stdin: Option<AsyncFd<OwnedFd>>,
    /// Streams that have not ended: stdout or the terminal, and stderr.
    open: [bool; 2],
    chunk: Box<[u8]>,
    readers: Vec<Reader>,
    connections: u64,
    /// When the time limit sends SIGTERM, and when SIGKILL follows.
    terminate_at: Option<Instant>,
    kill_at: Option<Instant>,
    timed_out: bool,
    /// The stream that was read last: the other one comes first.
    last_stream: ProcessStream,
    /// The exit was reported. Output of processes that it left behind is read and dropped.
    is_reported: bool,
}

/// A connection that reads the output.
struct Reader {
    connection: Connection,
    /// Where it was when it last moved.
    cursor: Seq,
    moved: Instant,
}

/// Starts the task of a process. It ends when the process is removed from the table.
pub(super) fn spawn(
    sandbox: Rc<Sandbox>,
    process: Rc<Process>,
    stdin: Option<AsyncFd<OwnedFd>>,
    inputs: mpsc::Receiver<Input>,
    exits: mpsc::UnboundedReceiver<ExitStatus>,
) {
    let timeout = process.spec.timeout_ms.map(Duration::from_millis);
    let host = ProcessHost {
        open: [true, matches!(process.ends, Ends::Pipes { .. })],
        last_stream: ProcessStream::Stderr,
        is_reported: false,
        chunk: vec![0; CHUNK].into(),
        readers: Vec::new(),
        connections: 0,
        terminate_at: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        kill_at: None,
        timed_out: false,
        sandbox,
        process,
        stdin,
    };
    tokio::task::spawn_local(host.run(inputs, exits));
}

impl ProcessHost {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut exits: mpsc::UnboundedReceiver<ExitStatus>) {
        // The status, and when it is reported at the latest and if the output is quiet.
        let mut exit: Option<(ExitStatus, Instant, Instant)> = None;
        let mut rest = MAX_REST;
        while self.sandbox.processes.has(&self.process) {
            let (is_paused, process) = (self.is_reader_behind(), self.process.clone());
            let deadline = self.next_deadline(is_paused, exit.filter(|_| !is_paused).map(|(_, _, settled)| settled));
            let due = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
            tokio::select! {
                biased;
                Some(status) = exits.recv() => {
                    let now = Instant::now();
                    (self.terminate_at, self.kill_at) = (None, None);
                    exit = Some((status, now + MAX_DRAIN, now + DRAIN_QUIET));
                }
                Some(input) = inputs.recv() => self.handle_input(input),
                () = process.input_ready.notified() => {}
                () = self.input_writable() => self.write_input(),
                stream = self.output_readable(), if !is_paused => {
                    let read = self.read_output(stream);
                    if let Some((_, latest, settled)) = &mut exit {
                        *settled = (Instant::now() + DRAIN_QUIET).min(*latest);
                        rest = rest.saturating_sub(read);
                    }
                    // A process that always writes must not keep the others from being served.
                    tokio::task::yield_now().await;
                }
                () = due, if deadline.is_some() => {}
            }
            self.close_finished_input();
            self.enforce_timeout();
            if let Some((status, _, settled)) = exit
                && (self.open == [false; 2] || rest == 0 || (settled <= Instant::now() && !is_paused))
            {
                exit = None;
                self.report_exit(status);
            }
        }
    }

    // ---- readers ----------------------------------------------------------------------------------------------------

    fn handle_input(&mut self, input: Input) {
        match input {
            Input::Connection(stream) => {
                self.connections += 1;
                let buffer = self.process.buffer.clone();
                let (first, next) = (buffer.borrow().first(), buffer.borrow().next_seq());
                let hello = Hello::without_kernel(self.sandbox.epoch, first, next);
                let inputs = self.process.readers.clone();
                let connection = Connection::open(self.connections, stream, hello, buffer, inputs);
                self.readers.push(Reader { connection, cursor: Seq::default(), moved: Instant::now() });
            }
            Input::Frame { connection, frame: ToAgent::Attach { epoch, from_seq } } => {
                if let Some(reader) = self.readers.iter().find(|reader| reader.connection.id == connection) {
                    reader.connection.attach(self.sandbox.epoch, epoch, from_seq);
                }
            }
            // Output is kept until the process is removed, so acknowledgements change nothing.
            Input::Frame { frame: ToAgent::Ack { .. }, .. } => {}
            Input::Frame { connection, .. } | Input::Closed { connection } => {
                self.readers.retain(|reader| reader.connection.id != connection);
            }
            // Of kernels.
            Input::Connected { .. } | Input::Received { .. } | Input::ReportChanges | Input::Stop => {}
        }
    }

    /// Whether a reader that goes on reading would miss output if more were read now.
    fn is_reader_behind(&mut self) -> bool {
        let (buffer, now) = (self.process.buffer.borrow(), Instant::now());
        let most = if matches!(self.process.ends, Ends::Terminal(_)) { MAX_BEHIND_TERMINAL } else { MAX_BEHIND };
        let mut is_behind = false;
        for reader in &mut self.readers {
            let Some(cursor) = reader.connection.cursor() else { continue };
            if cursor != reader.cursor {
                (reader.cursor, reader.moved) = (cursor, now);
            }
            let is_far = buffer.bytes_from(cursor) > most as u64;
            is_behind |= is_far && now.duration_since(reader.moved) < STALL;
        }
        is_behind
    }

    fn store(&self, event: ProcessEvent) {
        self.process.buffer.borrow_mut().push(Event::Process(event).encode());
        self.sandbox.processes.bound_output(&self.sandbox);
        self.readers.iter().for_each(|reader| reader.connection.wake());
    }

    // ---- streams ----------------------------------------------------------------------------------------------------

    fn output(&self, stream: ProcessStream) -> Option<&AsyncFd<OwnedFd>> {
        match (&self.process.ends, stream) {
            (Ends::Pipes { stdout, .. }, ProcessStream::Stdout) => Some(stdout).filter(|_| self.open[0]),
            (Ends::Pipes { stderr, .. }, ProcessStream::Stderr) => Some(stderr).filter(|_| self.open[1]),
            (Ends::Terminal(end), ProcessStream::Terminal) => Some(end).filter(|_| self.open[0]),
            _ => None,
        }
    }

    /// Waits until a stream has output, or has ended.
    async fn output_readable(&self) -> ProcessStream {
        let mut all = [ProcessStream::Terminal, ProcessStream::Stdout, ProcessStream::Stderr];
        if self.last_stream == ProcessStream::Stdout {
            all.reverse();
        }
        std::future::poll_fn(|context| {
            for stream in all {
                if let Some(end) = self.output(stream)
                    && end.poll_read_ready(context).is_ready()
                {
                    return std::task::Poll::Ready(stream);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Reads a chunk of a stream, and returns how many bytes it had.
    fn read_output(&mut self, stream: ProcessStream) -> usize {
        let mut chunk = std::mem::take(&mut self.chunk);
        let read = self.output(stream).map(|end| {
            end.try_io(Interest::READABLE, |end| Ok(rustix::io::retry_on_intr(|| rustix::io::read(end, &mut *chunk))?))
        });
        let bytes = match read {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Some(Ok(bytes @ 1..)) => {
                if !self.is_reported {
                    self.store(ProcessEvent::Output { stream, data: Bytes::copy_from_slice(&chunk[..bytes]) });
                }
                bytes
            }
            // The end. A terminal reports an error instead.
            _ => {
                self.open[usize::from(stream == ProcessStream::Stderr)] = false;
                0
            }
        };
        self.last_stream = stream;
        self.chunk = chunk;
        bytes
    }

    fn input_end(&self) -> Option<&AsyncFd<OwnedFd>> {
        match &self.process.ends {
            Ends::Pipes { .. } => self.stdin.as_ref(),
            Ends::Terminal(end) => Some(end),
        }
    }

    /// Waits until there is input that can be written.
    async fn input_writable(&self) {
        let has_input = !self.process.input.borrow().bytes.is_empty();
        match self.input_end().filter(|_| has_input) {
            Some(end) => drop(end.writable().await),
            None => std::future::pending().await,
        }
    }

    fn write_input(&self) {
        let Some(end) = self.input_end() else { return };
        let mut input = self.process.input.borrow_mut();
        let bytes = &input.bytes[..input.bytes.len().min(CHUNK)];
        let written = end.try_io(Interest::WRITABLE, |end| Ok(rustix::io::retry_on_intr(|| rustix::io::write(end, bytes))?));
        match written {
            Ok(written) => input.bytes.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It has closed its standard input.
            Err(_) => {
                input.bytes.clear();
                input.broken = true;
            }
        }
    }

    /// Closes the standard input once everything is written.
    fn close_finished_input(&mut self) {
        let input = self.process.input.borrow();
        if input.broken || (input.closed && input.bytes.is_empty()) {
            self.stdin = None;
        }
    }

    // ---- end --------------------------------------------------------------------------------------------------------

    fn next_deadline(&self, is_paused: bool, settled: Option<Instant>) -> Option<Instant> {
        let behind = is_paused.then(|| Instant::now() + BEHIND_INTERVAL);
        [behind, settled, self.terminate_at, self.kill_at].into_iter().flatten().min()
    }

    fn enforce_timeout(&mut self) {
        let now = Instant::now();
        if self.terminate_at.is_some_and(|at| at <= now) {
            (self.terminate_at, self.kill_at, self.timed_out) = (None, Some(now + TERMINATION_GRACE), true);
            self.process.program.signal_group(Signal::TERM);
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.sandbox.programs.kill(&self.process.program);
        }
    }

    fn report_exit(&mut self, status: ExitStatus) {
        let exit = ProcessExit {
            code: status.code(),
            signal: status.signal(),
            timed_out: self.timed_out,
            out_of_memory: self.process.program.take_over_memory(),
        };
        if self.timed_out {
            // Nothing of it goes on.
            self.sandbox.programs.kill(&self.process.program);
        }
        (self.terminate_at, self.kill_at) = (None, None);
        let mut input = self.process.input.borrow_mut();
        (input.broken, input.closed) = (true, true);
        drop(input);
        self.process.ended.set(Some((now_ms(), exit)));
        self.store(ProcessEvent::Exited(exit));
        self.is_reported = true;
        self.sandbox.processes.note_end(&self.sandbox, &self.process);
    }
}

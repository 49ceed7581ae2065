//! Connects a process in a sandbox with the terminal or the pipes of this program, until it has ended.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Exit;
use super::print::{bytes_to_stderr, bytes_to_stdout};
use super::signals::Signals;
use crate::manager::{ProcessExit, ProcessOutput, ProcessStream, TerminalSize};

/// How much of the input is read at once, bytes.
const CHUNK: usize = 64 << 10;
/// How long to wait before input that the process does not read is sent again.
const INPUT_RETRY: Duration = Duration::from_millis(50);

/// A process that runs, here or on a server.
pub(super) trait RunningProcess: Clone + Send + Sync + 'static {
    /// Sends input, which begins at `offset`.
    fn write(&self, offset: u64, chunk: Bytes, close: bool) -> impl Future<Output = Written> + Send;
    fn signal(&self, number: i32) -> impl Future<Output = ()> + Send;
    fn resize(&self, size: TerminalSize) -> impl Future<Output = ()> + Send;
}

/// The output of a process.
pub(super) trait ProcessEvents {
    /// The next output. `None` if the sandbox ended before the process. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<ProcessOutput>> + Send;
}

/// What became of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Taken,
    /// The process does not read: try again.
    Busy,
    /// Nobody will read it.
    Closed,
}

/// Whether a person sits at a terminal.
pub(super) fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

pub(super) fn window_size() -> TerminalSize {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize { rows: size.ws_row, cols: size.ws_col },
        _ => TerminalSize { rows: 24, cols: 80 },
    }
}

/// Passes input, output, signals and sizes on until the process has ended. `None` if its sandbox ended before.
pub(super) async fn attend(
    process: impl RunningProcess,
    mut output: impl ProcessEvents,
    has_terminal: bool,
    signals: &mut Signals,
) -> Option<ProcessExit> {
    let _raw = has_terminal.then(RawMode::enter);
    let forwarding = tokio::spawn(forward_input(process.clone()));
    let mut resized = signal(SignalKind::window_change()).ok();
    let mut interrupts = 0;
    let exit = loop {
        tokio::select! {
            event = output.next() => match event {
                Some(ProcessOutput::Data { stream: ProcessStream::Stderr, data, .. }) => bytes_to_stderr(&data),
                Some(ProcessOutput::Data { data, .. }) => bytes_to_stdout(&data),
                Some(ProcessOutput::Lost { .. }) => eprint_line!("cellkeep: some output is missing; it came too fast"),
                Some(ProcessOutput::Exited { exit, .. }) => break Some(exit),
                None => break None,
            },
            () = signals.any() => {
                interrupts += 1;
                // A terminal in raw mode sends control characters instead.
                process.signal(if interrupts == 1 { libc::SIGINT } else { libc::SIGKILL }).await;
            }
            Some(()) = async { resized.as_mut()?.recv().await }, if has_terminal => process.resize(window_size()).await,
        }
    };
    forwarding.abort();
    exit
}

/// Sends the standard input of this program to the process, and its end.
async fn forward_input(process: impl RunningProcess) {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(4);
    // A thread, because reading a terminal cannot be cancelled. It ends with this program.
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = std::io::stdin().read(&mut buffer) {
            if sender.blocking_send(Bytes::copy_from_slice(&buffer[..read])).is_err() {
                return;
            }
        }
    });
    let mut sent = 0;
    while let Some(chunk) = chunks.recv().await {
        let length = chunk.len() as u64;
        if !write(&process, sent, chunk, false).await {
            return;
        }
        sent += length;
    }
    write(&process, sent, Bytes::new(), true).await;
}

/// Writes a chunk, as soon as the process takes it. `false` if its input is closed.
async fn write(process: &impl RunningProcess, offset: u64, chunk: Bytes, close: bool) -> bool {
    loop {
        match process.write(offset, chunk.clone(), close).await {
            Written::Taken => return true,
            Written::Busy => tokio::time::sleep(INPUT_RETRY).await,
            Written::Closed => return false,
        }
    }
}

/// The exit of this program for that of the process.
pub(super) fn exit_of(exit: Option<ProcessExit>) -> Exit {
    match exit {
        None => Exit::KernelDied,
        Some(exit) if exit.timed_out => Exit::TimedOut,
        // As shells say it.
        Some(ProcessExit { code, signal, .. }) => {
            Exit::Command(u8::try_from(code.or(signal.map(|number| 128 + number)).unwrap_or(1)).unwrap_or(u8::MAX))
        }
    }
}

/// The terminal passes every character on as it is, until the value is dropped.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Self {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(mut raw) = before.clone() {
            raw.make_raw();
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw);
        }
        Self(before)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
        }
        let _ = std::io::stdout().flush();
    }
}

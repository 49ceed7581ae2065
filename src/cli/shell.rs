//! `cellkeep exec --shell`: a command line in a sandbox, with this program's input and output.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::options::SandboxArgs;
use super::print::{bytes_to_stderr, bytes_to_stdout};
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::ids::{ProcessId, Seq};
use crate::kernels::KernelSpec;
use crate::manager::{
    NewProcess, OneShotSandbox, ProcessError, ProcessExit, ProcessOutput, ProcessStream, Processes, TerminalSize,
};

/// How much of the input is read at once, bytes.
const CHUNK: usize = 64 << 10;
/// How long to wait before input that the process does not read is sent again.
const INPUT_RETRY: Duration = Duration::from_millis(50);

/// Runs a command line of bash in a sandbox with the environment of `kernel`. The exit code is the command's.
pub(super) async fn run(
    paths: Paths,
    sandbox: &SandboxArgs,
    kernel: &KernelSpec,
    line: &str,
    timeout: Option<Duration>,
) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let sandbox = sandbox.one_shot(paths, kernel, signals.any()).await?;
    let has_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let new = NewProcess {
        command: vec!["/bin/bash".to_owned(), "-c".to_owned(), line.to_owned()],
        terminal: has_terminal.then(window_size),
        stdin: true,
        timeout_ms: timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        ..NewProcess::default()
    };
    let ended = attend(&sandbox, new, signals).await;
    let destroyed = sandbox.destroy().await;
    let exit = ended.map_err(Failure::no_sandbox)?;
    destroyed.map_err(Failure::no_sandbox)?;
    Ok(exit_of(exit))
}

/// Starts the process, and passes input, output, signals and sizes on until it has ended. `None` if its sandbox ended before.
async fn attend(
    sandbox: &OneShotSandbox,
    new: NewProcess,
    mut signals: Signals,
) -> Result<Option<ProcessExit>, ProcessError> {
    let has_terminal = new.terminal.is_some();
    let processes = sandbox.processes();
    let id = processes.start(new).await?.id;
    let mut output = processes.read(&id, Seq::default()).await?;
    let _raw = has_terminal.then(RawMode::enter);
    let forwarding = tokio::spawn(forward_input(processes.clone(), id.clone()));
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
                let number = if interrupts == 1 { libc::SIGINT } else { libc::SIGKILL };
                let _ = processes.signal(&id, number).await;
            }
            Some(()) = async { resized.as_mut()?.recv().await }, if has_terminal => {
                let _ = processes.resize(&id, window_size()).await;
            }
        }
    };
    forwarding.abort();
    Ok(exit)
}

/// Sends the standard input of this program to the process, and its end.
async fn forward_input(processes: Processes, id: ProcessId) {
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
        if !write(&processes, &id, sent, chunk, false).await {
            return;
        }
        sent += length;
    }
    write(&processes, &id, sent, Bytes::new(), true).await;
}

/// Writes a chunk, as soon as the process takes it. `false` if its input is closed.
async fn write(processes: &Processes, id: &ProcessId, offset: u64, chunk: Bytes, close: bool) -> bool {
    loop {
        match processes.write(id, Some(offset), chunk.clone(), close).await {
            Ok(_) => return true,
            Err(ProcessError::Busy(_)) => tokio::time::sleep(INPUT_RETRY).await,
            Err(_) => return false,
        }
    }
}

fn exit_of(exit: Option<ProcessExit>) -> Exit {
    match exit {
        None => Exit::KernelDied,
        Some(exit) if exit.timed_out => Exit::TimedOut,
        // As shells say it.
        Some(ProcessExit { code, signal, .. }) => {
            Exit::Command(u8::try_from(code.or(signal.map(|number| 128 + number)).unwrap_or(1)).unwrap_or(u8::MAX))
        }
    }
}

fn window_size() -> TerminalSize {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize { rows: size.ws_row, cols: size.ws_col },
        _ => TerminalSize { rows: 24, cols: 80 },
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

//! `cellkeep exec --shell`: a command line in a sandbox, with this program's input and output.

use std::time::Duration;

use bytes::Bytes;

use super::attend::{ProcessEvents, RunningProcess, Written, attend, exit_of, has_terminal, window_size};
use super::options::SandboxArgs;
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::ids::{ProcessId, Seq};
use crate::kernels::KernelSpec;
use crate::manager::{
    NewProcess, OneShotSandbox, ProcessError, ProcessExit, ProcessOutput, ProcessReader, Processes, TerminalSize,
};

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
    let new = NewProcess {
        command: vec!["/bin/bash".to_owned(), "-c".to_owned(), line.to_owned()],
        terminal: has_terminal().then(window_size),
        stdin: true,
        timeout_ms: timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        ..NewProcess::default()
    };
    let ended = run_in(&sandbox, new, &mut signals).await;
    let destroyed = sandbox.destroy().await;
    let exit = ended.map_err(Failure::no_sandbox)?;
    destroyed.map_err(Failure::no_sandbox)?;
    Ok(exit_of(exit))
}

async fn run_in(
    sandbox: &OneShotSandbox,
    new: NewProcess,
    signals: &mut Signals,
) -> Result<Option<ProcessExit>, ProcessError> {
    let has_terminal = new.terminal.is_some();
    let processes = sandbox.processes();
    let id = processes.start(new).await?.id;
    let output = processes.read(&id, Seq::default()).await?;
    Ok(attend(LocalProcess { processes, id }, output, has_terminal, signals).await)
}

/// A process in a sandbox of this program.
#[derive(Clone)]
struct LocalProcess {
    processes: Processes,
    id: ProcessId,
}

impl RunningProcess for LocalProcess {
    async fn write(&self, offset: u64, chunk: Bytes, close: bool) -> Written {
        match self.processes.write(&self.id, Some(offset), chunk, close).await {
            Ok(_) => Written::Taken,
            Err(ProcessError::Busy(_)) => Written::Busy,
            Err(_) => Written::Closed,
        }
    }

    async fn signal(&self, number: i32) {
        // Fails if it has ended, which its output says.
        let _ = self.processes.signal(&self.id, number).await;
    }

    async fn resize(&self, size: TerminalSize) {
        let _ = self.processes.resize(&self.id, size).await;
    }
}

impl ProcessEvents for ProcessReader {
    async fn next(&mut self) -> Option<ProcessOutput> {
        Self::next(self).await
    }
}

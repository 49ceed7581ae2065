//! One command in a sandbox, from its start to its end, for protocols whose answers have all of its output.

use std::time::{Duration, Instant};

use crate::api::Api;
use crate::api::error::Problem;
use crate::ids::{Access, SandboxId, Seq};
use crate::manager::{NewProcess, ProcessExit, ProcessOutput, ProcessStream, ServiceError};

/// The beginning of a stream.
#[derive(Default)]
pub(super) struct Captured {
    bytes: Vec<u8>,
    /// Whether more came.
    pub is_cut: bool,
}

impl Captured {
    fn add(&mut self, data: &[u8], most: usize) {
        let room = most.saturating_sub(self.bytes.len()).min(data.len());
        self.bytes.extend_from_slice(&data[..room]);
        self.is_cut |= room < data.len();
    }

    /// As text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A command that has ended.
pub(super) struct Ran {
    pub stdout: Captured,
    pub stderr: Captured,
    pub exit: ProcessExit,
    pub wall: Duration,
}

/// Runs a command to its end. `most`: the bytes of each stream that are kept.
pub(super) async fn run(
    api: &Api,
    sandbox: &SandboxId,
    access: &Access,
    new: NewProcess,
    most: usize,
) -> Result<Ran, Problem> {
    let began = Instant::now();
    let (info, processes) = api.sessions.start_process(sandbox, access, new).await?;
    let mut reader = processes.read(&info.id, Seq(0)).await?;
    let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
    let exit = loop {
        match reader.next().await {
            Some(ProcessOutput::Data { stream: ProcessStream::Stderr, data, .. }) => stderr.add(&data, most),
            Some(ProcessOutput::Data { data, .. }) => stdout.add(&data, most),
            Some(ProcessOutput::Lost { .. }) => stdout.is_cut = true,
            Some(ProcessOutput::Exited { exit, .. }) => break exit,
            None => return Err(ServiceError::SandboxNotFound { id: sandbox.to_string() }.into()),
        }
    };
    let wall = began.elapsed();
    // Its output is in the answer. A failure leaves it among those that have ended, of which few are kept.
    let _ = processes.remove(&info.id).await;
    Ok(Ran { stdout, stderr, exit, wall })
}

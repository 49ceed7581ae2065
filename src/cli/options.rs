//! Options that several commands share, and what they do with them.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};

use super::kernels::image_status;
use super::{Exit, Failure};
use crate::agent_protocol::FILE_CHUNK;
use crate::config::Paths;
use crate::kernels::{self, Kernel, Status};
use crate::manager::{Manager, ManagerError, SandboxChoice, Session, SessionSpec};
use crate::output::Artifact;
use crate::policy::{Limits, Network, parse_size};
use crate::sandbox::SandboxKind;
use crate::sandbox::docker::Images;
use crate::session::{RunStatus, SessionHandle, Upload};

/// How long a session that nobody wants any more may take to be made and cleared away.
const GIVE_UP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum SandboxOption {
    Auto,
    Docker,
    Process,
}

impl SandboxOption {
    pub fn choice(self) -> SandboxChoice {
        match self {
            Self::Auto => SandboxChoice::Auto,
            Self::Docker => SandboxChoice::Only(SandboxKind::Docker),
            Self::Process => SandboxChoice::Only(SandboxKind::Process),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum NetworkOption {
    None,
    Open,
}

/// The sandbox a session gets.
#[derive(Args)]
pub(super) struct SandboxArgs {
    /// Where the kernel runs; auto takes the process sandbox, else docker
    #[arg(long, value_enum, default_value = "auto", env = "CELLKEEP_SANDBOX", help_heading = "Sandbox")]
    sandbox: SandboxOption,
    /// Memory of the whole session
    #[arg(long, default_value = "512m", value_name = "SIZE", value_parser = parse_size, help_heading = "Sandbox")]
    memory: u64,
    /// CPUs, in fractions if need be
    #[arg(long, default_value_t = 1.0, value_name = "N", help_heading = "Sandbox")]
    cpus: f64,
    /// Processes and threads
    #[arg(long, default_value_t = 256, value_name = "N", help_heading = "Sandbox")]
    pids: u64,
    /// Size of the workspace, which is gone at the end
    #[arg(long, default_value = "256m", value_name = "SIZE", value_parser = parse_size, help_heading = "Sandbox")]
    disk: u64,
    /// Output that one cell may produce; it is stopped beyond
    #[arg(long, default_value = "100m", value_name = "SIZE", value_parser = parse_size, help_heading = "Sandbox")]
    output_limit: u64,
    /// What the code may reach; with open, in the process sandbox, all that this machine does, its localhost too
    #[arg(long, value_enum, default_value = "none", help_heading = "Sandbox")]
    network: NetworkOption,
    /// A variable for the kernel; with its name alone, as it is here, so that no other user sees it in the list of processes
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = parse_variable, help_heading = "Sandbox")]
    env: Vec<(String, String)>,
    /// A file to put into the workspace before the first cell
    #[arg(long = "file", value_name = "PATH", help_heading = "Sandbox")]
    files: Vec<PathBuf>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        None if !text.is_empty() => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("{text} is not set here, or not text; to give a value, write it like NAME=VALUE")),
        },
        _ => Err("write it like NAME=VALUE, or NAME for a variable that is set here".to_owned()),
    }
}

/// Reads a time limit in seconds.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    // Zero would stop every cell before it begins.
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
    } else {
        Err("it must be more than 0".to_owned())
    }
}

impl SandboxArgs {
    /// The limits they ask for.
    pub fn limits(&self) -> Limits {
        Limits { memory_mb: self.memory, cpus: self.cpus, pids: self.pids, disk_mb: self.disk, output_mb: self.output_limit }
    }

    /// Makes a session as these options say, its files in place, unless `stopped` comes first. `env`: variables before the user's own.
    pub async fn session(
        &self,
        paths: Paths,
        kernel: &Kernel,
        mut env: Vec<(String, String)>,
        stopped: impl Future<Output = ()>,
    ) -> Result<Session, Failure> {
        let limits = self.limits();
        let sandbox = self.sandbox.choice();
        let network = match self.network {
            NetworkOption::None => Network::None,
            NetworkOption::Open => Network::Open,
        };
        env.extend(self.env.iter().cloned());
        let spec = SessionSpec { kernel: kernel.clone(), sandbox, limits, network, env };
        let session = create_or_stop(paths.clone(), spec, stopped).await?;
        hint_if_stale(&paths, kernel, session.record.kind);
        for file in &self.files {
            if let Err(error) = put_file(&session.handle, file).await {
                let _ = session.destroy().await;
                return Err(Failure::usage(error.context(format!("cannot put {} into the workspace", file.display()))));
            }
        }
        Ok(session)
    }
}

/// Says when the kernel was not made by this version. In the background: an engine is asked, and nobody need wait for it.
fn hint_if_stale(paths: &Paths, kernel: &Kernel, kind: SandboxKind) {
    let (paths, kernel) = (paths.clone(), kernel.clone());
    tokio::spawn(async move {
        let (status, command) = match kind {
            SandboxKind::Process => (Some(kernels::status(&paths, &kernel)), "kernels install"),
            SandboxKind::Docker => (image_status(Images::connect().await.ok().as_ref(), &kernel).await, "images build"),
        };
        if status == Some(Status::Stale) {
            let name = &kernel.name;
            say!(
                "cellkeep: the {name} kernel was made by another version of cellkeep; to renew it, run: cellkeep {command} {name}"
            );
        }
    });
}

/// Makes the session; one that was called off meanwhile is ended as soon as it stands, so that nothing is left of it.
async fn create_or_stop(paths: Paths, spec: SessionSpec, stopped: impl Future<Output = ()>) -> Result<Session, Failure> {
    let creating = tokio::spawn(async move { Manager::new(paths).create(spec).await });
    tokio::pin!(creating, stopped);
    let failed = |error| match error {
        ManagerError::Limits(_) => Failure::usage(error),
        _ => Failure::no_sandbox(error),
    };
    tokio::select! {
        session = &mut creating => session.map_err(Failure::no_sandbox)?.map_err(failed),
        () = stopped => {
            // What is not there by then ends itself when we are gone, and the next command sweeps it away.
            if let Ok(Ok(Ok(session))) = tokio::time::timeout(GIVE_UP, creating).await {
                let _ = session.destroy().await;
            }
            Err(Failure { exit: Exit::Interrupted, error: anyhow!("stopped before the kernel was ready") })
        }
    }
}

async fn put_file(session: &SessionHandle, path: &Path) -> anyhow::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| anyhow!("it has no usable name"))?;
    let mut file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        bail!("it is not a regular file");
    }
    let mut upload = Upload::new(session.clone(), name);
    loop {
        let mut chunk = Vec::new();
        let read = (&mut file).take(FILE_CHUNK as u64).read_to_end(&mut chunk)?;
        if read < FILE_CHUNK {
            return Ok(upload.finish(chunk.into()).await?);
        }
        upload.push(chunk.into()).await?;
    }
}

/// The exit code that a run's status means.
pub(super) fn exit_of(status: RunStatus) -> Exit {
    match status {
        RunStatus::Ok => Exit::Ok,
        RunStatus::Error | RunStatus::OutputExceeded | RunStatus::Cancelled => Exit::CellFailed,
        RunStatus::Interrupted => Exit::Interrupted,
        RunStatus::Timeout => Exit::TimedOut,
        RunStatus::KernelDied | RunStatus::MemoryExceeded => Exit::KernelDied,
    }
}

/// Writes artifacts into a folder; gives the paths. What cannot be decoded is told and left out.
pub(super) fn write_artifacts(folder: &Path, artifacts: Vec<Artifact>) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for artifact in artifacts {
        let bytes = match artifact.content {
            Ok(bytes) => bytes,
            Err(error) => {
                say!("warning: {} of output {} is left out: {error}", artifact.mime, artifact.output_index + 1);
                continue;
            }
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(&artifact.name);
        write_safely(&path, &bytes)?;
        written.push(path);
    }
    Ok(written)
}

/// The file that a path stands for, through links, also to one that is yet to be made.
pub(super) fn behind_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // As many as the system itself follows.
    for _ in 0..40 {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().map_or(target.clone(), |folder| folder.join(&target));
    }
    path
}

/// Writes a file whole or not at all: beside it first, then in its place. Through a link, which stays. For what can be made again:
/// whether it is on the disk is not waited for, which would take longer than an export.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, |_| Ok(()))
}

/// The same for what took a run to make: it is on the disk when this returns.
pub(super) fn write_safely(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, std::fs::File::sync_all)
}

fn replace(path: &Path, bytes: &[u8], settle: impl FnOnce(&std::fs::File) -> std::io::Result<()>) -> anyhow::Result<()> {
    let path = &behind_links(path);
    let name = path.file_name().ok_or_else(|| anyhow!("{} is no file name", path.display()))?;
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), crate::ids::random_uuid()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create_new(&temporary)?;
        std::io::Write::write_all(&mut file, bytes)?;
        settle(&file)?;
        std::fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}

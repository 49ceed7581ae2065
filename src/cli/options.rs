//! Options that several commands share: the sandbox, time limits, and how results are written.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};

use super::kernels::image_status;
use super::packages::{self, PackageArgs};
use super::{Exit, Failure, mounts, secrets};
use crate::agent_protocol::{FILE_CHUNK, PutOptions};
use crate::config::{MountConfig, Paths};
use crate::kernels::{self, KernelSpec, Status};
use crate::manager::{ManagerError, OneShotSandbox, SandboxChoice, Session, SessionSpec};
use crate::output::Artifact;
use crate::policy::{Limits, NetworkPolicy, Secret, parse_size};
use crate::sandbox::docker::Images;
use crate::sandbox::{MountedPackages, SandboxKind};
use crate::session::{AgentRequests, ExecutionStatus, Upload};

/// How long a command that was stopped waits for its session, to destroy it.
const STOP_GRACE: Duration = Duration::from_secs(5);

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

/// Options of the session's sandbox.
#[derive(Args)]
pub(super) struct SandboxArgs {
    /// The sandbox of the kernel; auto prefers the process sandbox
    #[arg(long, value_enum, default_value = "auto", env = "CELLKEEP_SANDBOX", help_heading = "Sandbox")]
    sandbox: SandboxOption,
    /// Memory limit of the whole session [default: 512m; 1g for Julia]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Sandbox")]
    memory: Option<u64>,
    /// CPU limit; fractions are allowed
    #[arg(long, default_value_t = 1.0, value_name = "N", help_heading = "Sandbox")]
    cpus: f64,
    /// Limit of processes and threads
    #[arg(long, default_value_t = 256, value_name = "N", help_heading = "Sandbox")]
    pids: u64,
    /// Size of the workspace, which is deleted at the end
    #[arg(long, default_value = "256m", value_name = "SIZE", value_parser = parse_size, help_heading = "Sandbox")]
    disk: u64,
    /// Output limit of each cell; a cell that exceeds it is stopped
    #[arg(long, default_value = "100m", value_name = "SIZE", value_parser = parse_size, help_heading = "Sandbox")]
    output_limit: u64,
    /// What the code reaches: none, packages (package indexes), the hosts of a list (example.com,*.example.com), or open (the internet
    /// and this machine's networks, but not this machine)
    #[arg(long, default_value = "none", value_name = "POLICY", value_parser = parse_network, help_heading = "Sandbox")]
    network: NetworkPolicy,
    /// Set an environment variable of the kernel. NAME alone copies its value from here, which hides it from the process
    /// list
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = parse_variable, help_heading = "Sandbox")]
    env: Vec<(String, String)>,
    /// Copy a file into the workspace before the first cell
    #[arg(long = "file", value_name = "PATH", help_heading = "Sandbox")]
    files: Vec<PathBuf>,
    /// Show the code this folder at /mnt/NAME, read-only
    #[arg(long = "mount", value_name = "NAME=FOLDER", value_parser = mounts::parse, help_heading = "Sandbox")]
    mounts: Vec<(String, MountConfig)>,
    /// Let code use the value of the variable NAME in requests to HOST, without seeing it: its own variable NAME has a placeholder, which
    /// is replaced in header fields. The network must include the host
    #[arg(long = "secret", value_name = "NAME@HOST[,HOST]", value_parser = secrets::parse, help_heading = "Sandbox")]
    secrets: Vec<Secret>,
    #[command(flatten)]
    pub packages: PackageArgs,
}

pub(super) fn parse_network(text: &str) -> Result<NetworkPolicy, String> {
    match text {
        "none" => Ok(NetworkPolicy::None),
        "packages" => Ok(NetworkPolicy::Packages),
        "open" => Ok(NetworkPolicy::Open),
        // A word is rather a mistake than a host of this name.
        hosts if !hosts.contains(['.', ':', ',']) => {
            Err("use none, packages, open, or hosts with commas between them".to_owned())
        }
        hosts => NetworkPolicy::allowing(&hosts.split(',').collect::<Vec<_>>()).map_err(|error| error.to_string()),
    }
}

pub(super) fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        None if !text.is_empty() => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!(
                "{text} is not set in this environment, or is not valid UTF-8; to set a value, write NAME=VALUE"
            )),
        },
        _ => Err("write NAME=VALUE, or NAME for a variable of this environment".to_owned()),
    }
}

/// Parses a time limit in seconds, more than 0.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    // Zero would stop every cell before it starts.
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
    } else {
        Err("it must be more than 0".to_owned())
    }
}

impl SandboxArgs {
    /// The limits of a session with this kernel.
    pub fn limits(&self, kernel: &KernelSpec) -> Limits {
        let memory_mb = self.memory.unwrap_or_else(|| kernel.default_limits().memory_mb);
        Limits { memory_mb, cpus: self.cpus, pids: self.pids, disk_mb: self.disk, output_mb: self.output_limit }
    }

    pub fn network(&self) -> &NetworkPolicy {
        &self.network
    }

    /// The names of the files that are copied into the workspace.
    pub fn file_names(&self) -> Vec<String> {
        self.files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())).collect()
    }

    fn spec(&self, paths: &Paths, kernel: &KernelSpec, mut env: Vec<(String, String)>) -> Result<SessionSpec, Failure> {
        let limits = self.limits(kernel);
        let sandbox = self.sandbox.choice();
        let network = self.network.clone();
        env.extend(self.env.iter().cloned());
        let mounts = mounts::open(self.mounts.iter().cloned().collect(), paths).map_err(Failure::usage)?;
        let mounts = mounts.iter().cloned().collect();
        let secrets = self.secrets.clone();
        if !secrets.is_empty() && network == NetworkPolicy::Open {
            return Err(Failure::usage(anyhow!(
                "code with the network open connects by itself; name the hosts with --network"
            )));
        }
        Ok(SessionSpec { kernel: kernel.clone(), sandbox, limits, network, env, mounts, secrets, package_set: None })
    }

    /// Installs the packages of the options, and those that a notebook needs, unless `stopped` resolves first. `None` if there are none.
    pub async fn install(
        &self,
        paths: &Paths,
        kernel: &KernelSpec,
        needed: &[String],
        stopped: impl Future<Output = ()>,
    ) -> Result<Option<MountedPackages>, Failure> {
        let Some(request) = self.packages.request(needed).map_err(Failure::usage)? else { return Ok(None) };
        let manager = packages::manager(paths).map_err(Failure::usage)?;
        tokio::select! {
            set = packages::install(&manager, kernel, self.sandbox.choice(), request) => Ok(Some(manager.mounted_packages(&set?))),
            // The sandbox of the installation ends itself.
            () = stopped => Err(Failure { exit: Exit::Interrupted, error: anyhow!("stopped before the packages were installed") }),
        }
    }

    /// Creates a sandbox without a kernel and uploads the files, unless `stopped` resolves first.
    pub async fn one_shot(
        &self,
        paths: Paths,
        kernel: &KernelSpec,
        stopped: impl Future<Output = ()>,
    ) -> Result<OneShotSandbox, Failure> {
        tokio::pin!(stopped);
        let packages = self.install(&paths, kernel, &[], &mut stopped).await?;
        let spec = SessionSpec { package_set: packages, ..self.spec(&paths, kernel, Vec::new())? };
        let manager = packages::manager(&paths).map_err(Failure::usage)?;
        let creating = async move { manager.create_one_shot_sandbox(spec).await };
        let sandbox = unless_stopped(creating, OneShotSandbox::destroy, stopped).await?;
        warn_if_stale(&paths, kernel, sandbox.kind());
        for file in &self.files {
            if let Err(error) = upload_file(sandbox.clone(), file).await {
                let _ = sandbox.destroy().await;
                return Err(Failure::usage(error.context(format!("cannot copy {} into the workspace", file.display()))));
            }
        }
        Ok(sandbox)
    }

    /// Creates a session and uploads its files, unless `stopped` resolves first. `env` comes before the user's variables.
    pub async fn session(
        &self,
        paths: Paths,
        kernel: &KernelSpec,
        env: Vec<(String, String)>,
        packages: Option<MountedPackages>,
        stopped: impl Future<Output = ()>,
    ) -> Result<Session, Failure> {
        let spec = SessionSpec { package_set: packages, ..self.spec(&paths, kernel, env)? };
        let manager = packages::manager(&paths).map_err(Failure::usage)?;
        let creating = async move { manager.create(spec).await };
        let session = unless_stopped(creating, Session::destroy, stopped).await?;
        warn_if_stale(&paths, kernel, session.record.kind);
        for file in &self.files {
            if let Err(error) = upload_file(session.handle.clone(), file).await {
                let _ = session.destroy().await;
                return Err(Failure::usage(error.context(format!("cannot copy {} into the workspace", file.display()))));
            }
        }
        Ok(session)
    }
}

/// Warns if the kernel was built by another version. Runs in the background, since the container engine may answer slowly.
fn warn_if_stale(paths: &Paths, kernel: &KernelSpec, kind: SandboxKind) {
    let (paths, kernel) = (paths.clone(), kernel.clone());
    tokio::spawn(async move {
        let (status, command) = match kind {
            SandboxKind::Process => (Some(kernels::status(&paths, &kernel)), "kernels install"),
            SandboxKind::Docker => (image_status(Images::connect().await.ok().as_ref(), &kernel).await, "images build"),
        };
        if status == Some(Status::Stale) {
            let name = &kernel.name;
            eprint_line!(
                "cellkeep: the {name} kernel was built by another version of cellkeep; to update it, run: cellkeep {command} {name}"
            );
        }
    });
}

fn creation_failure(error: ManagerError) -> Failure {
    match error {
        ManagerError::Limits(_) => Failure::usage(error),
        _ => Failure::no_sandbox(error),
    }
}

/// Waits for what is being created. If the command is stopped meanwhile, it is destroyed as soon as it exists.
async fn unless_stopped<T: Send + 'static, D: Future>(
    creating: impl Future<Output = Result<T, ManagerError>> + Send + 'static,
    destroy: impl FnOnce(T) -> D,
    stopped: impl Future<Output = ()>,
) -> Result<T, Failure> {
    let creating = tokio::spawn(creating);
    tokio::pin!(creating, stopped);
    tokio::select! {
        created = &mut creating => created.map_err(Failure::no_sandbox)?.map_err(creation_failure),
        () = stopped => {
            // What takes longer ends itself once this process is gone, and the next command sweeps it away.
            if let Ok(Ok(Ok(created))) = tokio::time::timeout(STOP_GRACE, creating).await {
                destroy(created).await;
            }
            Err(Failure { exit: Exit::Interrupted, error: anyhow!("stopped before the sandbox was ready") })
        }
    }
}

async fn upload_file(agent: impl AgentRequests, path: &Path) -> anyhow::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| anyhow!("its name is not valid UTF-8"))?;
    let mut file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        bail!("it is not a regular file");
    }
    let mut upload = Upload::new(agent, name, PutOptions::default());
    loop {
        let mut chunk = Vec::new();
        let read = (&mut file).take(FILE_CHUNK as u64).read_to_end(&mut chunk)?;
        if read < FILE_CHUNK {
            return Ok(upload.finish(chunk.into()).await.map(drop)?);
        }
        upload.push(chunk.into()).await?;
    }
}

/// The exit code for a run's status.
pub(super) fn exit_for(status: ExecutionStatus) -> Exit {
    match status {
        ExecutionStatus::Ok => Exit::Ok,
        ExecutionStatus::Error | ExecutionStatus::OutputExceeded | ExecutionStatus::Cancelled => Exit::CellFailed,
        ExecutionStatus::Interrupted => Exit::Interrupted,
        ExecutionStatus::Timeout => Exit::TimedOut,
        ExecutionStatus::KernelDied | ExecutionStatus::MemoryExceeded => Exit::KernelDied,
    }
}

/// Writes artifacts into a folder and returns their paths. An artifact that cannot be decoded is skipped with a warning.
pub(super) fn write_artifacts(folder: &Path, artifacts: Vec<Artifact>) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for artifact in artifacts {
        let bytes = match artifact.content {
            Ok(bytes) => bytes,
            Err(error) => {
                eprint_line!("warning: {} of output {} is left out: {error}", artifact.mime, artifact.output_index + 1);
                continue;
            }
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(&artifact.name);
        write_durably(&path, &bytes)?;
        written.push(path);
    }
    Ok(written)
}

/// Resolves symbolic links, also those to a file that does not exist yet.
pub(super) fn resolve_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // The kernel's own limit.
    for _ in 0..40 {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().map_or(target.clone(), |folder| folder.join(&target));
    }
    path
}

/// Replaces a file atomically: writes a temporary file beside it, then renames. Symbolic links are followed. Does not fsync:
/// the content can be made again, and an fsync takes longer than an export.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, |_| Ok(()))
}

/// [`write_atomically`] with fsync, for content that took a run to make.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, std::fs::File::sync_all)
}

fn replace(path: &Path, bytes: &[u8], sync: impl FnOnce(&std::fs::File) -> std::io::Result<()>) -> anyhow::Result<()> {
    let path = &resolve_links(path);
    let name = path.file_name().ok_or_else(|| anyhow!("{} does not name a file", path.display()))?;
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), crate::ids::random_uuid()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create_new(&temporary)?;
        std::io::Write::write_all(&mut file, bytes)?;
        sync(&file)?;
        std::fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}

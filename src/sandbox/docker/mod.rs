//! The docker sandbox: a hardened container of a Docker or Podman engine on this machine.
//!
//! ```text
//! create: record on disk ─▶ socket folder ─▶ create container ─▶ start ─▶ agent listens ─▶ configuration ─▶ socket folder read-only
//! ```
//!
//! The agent is mounted into the container and is its first process. It creates its socket in a folder that is mounted from
//! the sandbox's folder. Only our user can enter the latter, so no other user of this machine can reach the socket.

mod derived_image;
mod engine;
mod image_kernelspec;
mod images;
mod open_network;
mod outside;
mod profile;
mod session_files;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, ContainerSummary, MountPoint};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, StatsOptionsBuilder,
};
use futures_util::StreamExt;
use rustix::fs::OFlags;
use tokio::net::UnixStream;
use tokio::time::Instant;

use self::engine::{Client, call, unavailable};
use self::profile::{Profile, SOCKET_DIR, SOCKET_NAME};
use self::session_files::SessionFiles;
use super::{
    ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats, agent_binary,
    environment, records,
};
use crate::agent_protocol::{AgentConfig, Listen, send_config};
use crate::config::Paths;
use crate::ids::SandboxId;
use crate::policy::{Isolation, IsolationLevel, Network};
use crate::private_files;

pub use derived_image::{Derived, DerivedError};
pub use engine::{Engine, engine, runtimes};
pub use images::{BuildError, BuildOptions, Image, Images, how_to_get};

const KIND: SandboxKind = SandboxKind::Docker;
/// Timeout until the agent listens; it takes a few milliseconds after the start of the container.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for a container that another process is removing.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// The folder of the agent's socket, within the sandbox's folder.
const SOCKET_FOLDER: &str = "sock";
/// The longest path of a unix socket, bytes.
const MAX_SOCKET_PATH: usize = 107;
/// The most of an agent's standard error that is kept, bytes.
const MAX_STDERR: usize = 4096;

const LABEL_SANDBOX: &str = "cellkeep.sandbox";
const LABEL_OWNER: &str = "cellkeep.owner";
const LABEL_DATA: &str = "cellkeep.data";

/// Creates containers, with their records in a data folder.
pub struct DockerSandbox {
    client: Client,
    paths: Paths,
    runtime: Option<String>,
}

impl DockerSandbox {
    /// Connects to the engine of this machine: the one of `CELLKEEP_DOCKER_HOST` or `DOCKER_HOST`, else Docker, else Podman.
    /// `CELLKEEP_DOCKER_RUNTIME` selects another OCI runtime than the engine's default (`runsc`, `kata`).
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] if there is no usable engine, or it lacks the runtime; [`SandboxError::Io`] if the data
    /// folder cannot be created.
    pub async fn connect(paths: Paths) -> Result<Self, SandboxError> {
        let client = Client::open().await?;
        let runtime = std::env::var("CELLKEEP_DOCKER_RUNTIME").ok().filter(|name| !name.is_empty());
        check_runtime(runtime.as_deref(), &client.info.runtimes)?;
        Ok(Self { client, paths: canonical(&paths)?, runtime })
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        let folder = records::create_folder(&self.paths, &spec.id)?;
        let agent_binary = agent_binary::ensure_written(&self.paths.agent())
            .map_err(SandboxError::io("cannot write the agent's binary"))?;
        let socket_dir = folder.join(SOCKET_FOLDER);
        let mut record = SandboxRecord {
            id: spec.id.clone(),
            kind: KIND,
            kernel: spec.kernel.name.clone(),
            socket: folder.join(records::SOCKETS[0]),
            isolation: profile::isolation(&self.client.info, self.runtime.as_deref(), spec.network),
            owner: ProcessStamp::own(),
            keep: spec.orphan_seconds.is_none(),
            agent_binary,
            agent: None,
            controllers: None,
            container: None,
            package_set: spec.package_set.as_ref().map(|set| set.id.clone()),
        };
        records::write(&folder, &record)?;
        create_socket_dir(&socket_dir)?;
        let certificates = super::certificates::together(spec.certificates.as_deref(), spec.own_certificate.as_deref());
        let certificates = certificates.map_err(SandboxError::io("cannot read the certificates"))?;
        let own = SessionFiles::write(
            &folder,
            &record.agent_binary,
            certificates.as_deref(),
            profile::uid(&self.client.info, &spec.id),
        )?;
        let listen = Listen::Path(format!("{SOCKET_DIR}/{SOCKET_NAME}"));
        let is_open = spec.network == Network::Open;
        if is_open && !self.client.info.podman {
            open_network::ensure_created(&self.client).await?;
        }
        let id = self.create_container(spec, self.container(spec, &folder, &own, &listen)?).await?;
        record.container = Some(id.clone());
        records::write(&folder, &record)?;
        let config = environment::agent_config(spec, listen, self.client.info.memory, false);
        let listening = socket_path(&socket_dir)?;
        self.run(&id, &listening, &record.socket, &config, spec).await?;
        protect_socket_dir(&socket_dir)?;
        Ok(record)
    }

    /// The engine's request for the session's container.
    fn container(
        &self,
        spec: &SandboxSpec,
        folder: &Path,
        own: &SessionFiles,
        listen: &Listen,
    ) -> Result<ContainerCreateBody, SandboxError> {
        let listen = serde_json::to_string(listen).map_err(|error| SandboxError::io("agent argument")(error.into()))?;
        let labels = [
            (LABEL_SANDBOX, spec.id.to_string()),
            (LABEL_OWNER, owner_label(ProcessStamp::own())),
            (LABEL_DATA, self.data_label()),
        ];
        let profile = Profile {
            spec,
            info: &self.client.info,
            runtime: self.runtime.as_deref(),
            own,
            socket_dir: &folder.join(SOCKET_FOLDER),
            listen,
            seccomp: self.seccomp(folder)?,
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        Ok(profile.container())
    }

    /// The seccomp profile: Docker accepts it as text, Podman's service only as a file.
    fn seccomp(&self, folder: &Path) -> Result<String, SandboxError> {
        let profile = profile::seccomp_profile(std::env::consts::ARCH).to_string();
        if !self.client.info.podman {
            return Ok(profile);
        }
        let path = folder.join("seccomp.json");
        fs::write(&path, profile).map_err(SandboxError::io(format!("cannot write {}", path.display())))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Creates the container and returns its id.
    async fn create_container(&self, spec: &SandboxSpec, body: ContainerCreateBody) -> Result<String, SandboxError> {
        let options = CreateContainerOptionsBuilder::new().name(&container_name(&spec.id)).build();
        match call(self.client.docker.create_container(Some(options), body)).await {
            Ok(created) => Ok(created.id),
            Err(error) if error.status == Some(404) && error.reason.to_ascii_lowercase().contains("image") => {
                Err(SandboxError::NoKernel {
                    kernel: spec.kernel.name.clone(),
                    kind: KIND,
                    reason: format!("there is no image {}", spec.kernel.image().unwrap_or_default()),
                    remedy: images::how_to_get(&spec.kernel),
                })
            }
            Err(error) => Err(error.when("cannot create the container")),
        }
    }

    /// Starts the container, waits until its agent is `listening`, moves its socket to where the container does not see it, and
    /// sends the configuration.
    async fn run(
        &self,
        id: &str,
        listening: &Path,
        socket: &Path,
        config: &AgentConfig,
        spec: &SandboxSpec,
    ) -> Result<(), SandboxError> {
        let stderr = self.attach_stderr(id).await;
        let started = call(self.client.docker.start_container(id, None::<StartContainerOptions>)).await;
        started.map_err(|error| SandboxError::Start { kind: KIND, reason: error.reason })?;
        outside::confine(&self.client, self.runtime.as_deref(), id, spec).await?;
        let (end, mut next_check) = (Instant::now() + START_TIMEOUT, Instant::now() + Duration::from_millis(100));
        loop {
            let sent = async {
                let stream = UnixStream::connect(listening).await?;
                fs::rename(listening, socket)?;
                Ok::<_, std::io::Error>(send_config(stream, config).await)
            };
            match tokio::time::timeout_at(end, sent).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(error))) => {
                    let reason = stderr.append_to(format!("the agent did not accept its configuration: {error}")).await;
                    return Err(SandboxError::Start { kind: KIND, reason });
                }
                // It does not listen yet.
                Ok(Err(_)) | Err(_) => {}
            }
            if Instant::now() > end {
                return Err(SandboxError::Start { kind: KIND, reason: self.timeout_reason() });
            }
            if Instant::now() > next_check {
                if let SandboxState::Ended { why } = self.state(id).await? {
                    return Err(SandboxError::Start { kind: KIND, reason: stderr.append_to(why).await });
                }
                next_check = Instant::now() + Duration::from_millis(200);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Why a running agent may be unreachable.
    fn timeout_reason(&self) -> String {
        let reason = format!("the agent did not listen within {} s", START_TIMEOUT.as_secs());
        match &self.runtime {
            Some(runtime) => {
                format!("{reason}; the runtime {runtime} must pass unix sockets through (runsc does with --host-uds=all)")
            }
            None => reason,
        }
    }

    /// Attaches to the standard error of a container before its start. The container has no log driver, so it cannot be read
    /// later.
    async fn attach_stderr(&self, id: &str) -> AgentStderr {
        let options = AttachContainerOptionsBuilder::new().stderr(true).stream(true).build();
        let Ok(mut attached) = call(self.client.docker.attach_container(id, Some(options))).await else {
            return AgentStderr(None);
        };
        AgentStderr(Some(tokio::spawn(async move {
            let mut bytes = Vec::new();
            while let (Some(Ok(piece)), true) = (attached.output.next().await, bytes.len() < MAX_STDERR) {
                bytes.extend_from_slice(piece.as_ref());
            }
            String::from_utf8_lossy(&bytes).trim().to_owned()
        })))
    }

    async fn state(&self, container: &str) -> Result<SandboxState, SandboxError> {
        let inspected = match call(self.client.docker.inspect_container(container, None::<InspectContainerOptions>)).await {
            Ok(inspected) => inspected,
            Err(error) if error.status == Some(404) => {
                return Ok(SandboxState::Ended { why: "the container does not exist".into() });
            }
            Err(error) => return Err(error.when("cannot inspect the container")),
        };
        let state = inspected.state.unwrap_or_default();
        if state.running == Some(true) {
            return Ok(SandboxState::Running);
        }
        let status = state.status.map(|status| status.to_string()).unwrap_or_default();
        let exit = state.exit_code.map(|code| format!(" with exit code {code}")).unwrap_or_default();
        let error = state.error.filter(|error| !error.is_empty()).map(|error| format!(": {error}")).unwrap_or_default();
        Ok(SandboxState::Ended { why: format!("the container is {status}{exit}{error}") })
    }

    /// Removes a sandbox's container in any state, and its folder.
    async fn remove(&self, sandbox: &SandboxId) -> Result<(), SandboxError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let end = Instant::now() + END_TIMEOUT;
        // 409: another process is removing it. It is gone only once the engine answers 404.
        loop {
            match call(self.client.docker.remove_container(&container_name(sandbox), Some(options.clone()))).await {
                Ok(()) => break,
                Err(error) if error.status == Some(404) => break,
                Err(error) if error.status == Some(409) && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.when("cannot remove the container")),
            }
        }
        records::remove_folder(&self.paths, sandbox)
    }

    /// Containers of this data folder, with or without a record.
    async fn containers(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        let filters = HashMap::from([("label", vec![format!("{LABEL_DATA}={}", self.data_label())])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = call(self.client.docker.list_containers(Some(options))).await;
        let found = found.map_err(|error| error.when("cannot list containers"))?;
        Ok(found.into_iter().filter_map(|container| self.record_of(container)).collect())
    }

    /// Reconstructs a lost record from a container's labels.
    fn record_of(&self, container: ContainerSummary) -> Option<SandboxRecord> {
        let labels = container.labels?;
        let id = SandboxId::parse(labels.get(LABEL_SANDBOX)?)?;
        let image = container.image.unwrap_or_default();
        let kernel =
            image.trim_start_matches("localhost/").trim_start_matches("cellkeep/").trim_end_matches(":latest").to_owned();
        Some(SandboxRecord {
            socket: records::folder(&self.paths, &id).join(records::SOCKETS[0]),
            id,
            kind: KIND,
            kernel,
            isolation: Isolation::new(IsolationLevel::Container),
            owner: labels.get(LABEL_OWNER).and_then(|label| parse_owner_label(label)).unwrap_or(ProcessStamp::unknown()),
            keep: false,
            agent_binary: mounted_agent(container.mounts.as_deref().unwrap_or_default()),
            agent: None,
            controllers: None,
            container: container.id,
            package_set: None,
        })
    }

    fn data_label(&self) -> String {
        self.paths.data().to_string_lossy().into_owned()
    }
}

/// The standard error of an agent until it listens.
struct AgentStderr(Option<tokio::task::JoinHandle<String>>);

impl AgentStderr {
    /// Appends the text to `why`.
    async fn append_to(mut self, why: String) -> String {
        let Some(task) = self.0.as_mut() else { return why };
        match tokio::time::timeout(Duration::from_secs(1), task).await {
            Ok(Ok(text)) if !text.is_empty() => format!("{why}: {text}"),
            _ => why,
        }
    }
}

impl Drop for AgentStderr {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The container's name, by which it is found even before its id is recorded.
/// Connects to the agent's socket. Its folder belongs to the sandbox: a link in its place is not followed, since it would lead to sockets
/// of the host.
async fn connect_to_socket(path: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
    super::connect_to_agent(Path::new(&format!("/proc/self/fd/{}", socket.as_raw_fd()))).await
}

fn container_name(sandbox: &SandboxId) -> String {
    format!("cellkeep-{sandbox}")
}

fn owner_label(owner: ProcessStamp) -> String {
    let ProcessStamp { pid, started, boot, namespace } = owner;
    format!("{pid}:{started}:{boot:x}:{namespace}")
}

fn parse_owner_label(label: &str) -> Option<ProcessStamp> {
    let parts: Vec<&str> = label.split(':').collect();
    let [pid, started, boot, namespace] = parts.as_slice() else { return None };
    Some(ProcessStamp {
        pid: pid.parse().ok()?,
        started: started.parse().ok()?,
        boot: u64::from_str_radix(boot, 16).ok()?,
        namespace: namespace.parse().ok()?,
    })
}

/// The path of the agent's binary on the host, from a container's mounts.
fn mounted_agent(mounts: &[MountPoint]) -> PathBuf {
    let mount = mounts.iter().find(|mount| mount.destination.as_deref() == Some(environment::AGENT_PATH));
    mount.and_then(|mount| mount.source.clone()).unwrap_or_default().into()
}

fn check_runtime(wanted: Option<&str>, known: &[String]) -> Result<(), SandboxError> {
    match wanted {
        Some(name) if !known.iter().any(|known| known == name) => Err(unavailable(
            format!("the engine has no runtime {name:?}; it has {}", known.join(", ")),
            "register it in /etc/docker/daemon.json and restart the engine, or unset CELLKEEP_DOCKER_RUNTIME",
        )),
        _ => Ok(()),
    }
}

/// The canonical data folder: the engine needs an absolute path, and the label must always be equal.
fn canonical(paths: &Paths) -> Result<Paths, SandboxError> {
    let canonicalize = || {
        private_files::create_data_folder(paths.data())?;
        fs::canonicalize(paths.data())
    };
    let data = canonicalize().map_err(SandboxError::io(format!("cannot create {}", paths.data().display())))?;
    Ok(Paths::new(&data))
}

fn socket_path(socket_dir: &Path) -> Result<PathBuf, SandboxError> {
    let socket = socket_dir.join(SOCKET_NAME);
    if socket.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(socket);
    }
    let reason = format!("the path {} is too long for a socket", socket.display());
    Err(unavailable(reason, "use a shorter data folder: --data DIR"))
}

/// Creates the folder of the agent's socket, writable for everyone: only root could give it to the container's uid, which
/// also depends on the engine. The parent folder keeps other users out.
fn create_socket_dir(folder: &Path) -> Result<(), SandboxError> {
    let created = fs::create_dir(folder).and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o777)));
    created.map_err(SandboxError::io(format!("cannot create {}", folder.display())))
}

/// Makes the folder read-only once it contains the socket, so that a sandbox can neither fill the disk through it nor
/// replace the socket.
fn protect_socket_dir(folder: &Path) -> Result<(), SandboxError> {
    let protected = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    protected.map_err(SandboxError::io(format!("cannot change the mode of {}", folder.display())))
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn kind(&self) -> SandboxKind {
        KIND
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        super::check_mounts(KIND, spec)?;
        if spec.kernel.image().is_none() {
            return Err(SandboxError::NoKernel {
                kernel: spec.kernel.name.clone(),
                kind: KIND,
                reason: "it was added without an image".to_owned(),
                remedy: images::how_to_get(&spec.kernel),
            });
        }
        match self.start(spec).await {
            Err(error) => Err(error.with_remains(self.remove(&spec.id).await)),
            created => created,
        }
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        connect_to_socket(&record.socket).await.map_err(SandboxError::io("cannot reach the agent"))
    }

    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError> {
        self.state(&container_name(&record.id)).await
    }

    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let mut answers = Box::pin(self.client.docker.stats(&container_name(&record.id), Some(options)));
        let first = async { answers.next().await.unwrap_or_else(|| Ok(Default::default())) };
        let stats = call(first).await.map_err(|error| error.when("cannot read the container's usage"))?;
        let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|usage| usage.total_usage);
        Ok(SandboxStats {
            memory_bytes: stats.memory_stats.and_then(|memory| memory.usage).unwrap_or(0),
            cpu_seconds: cpu.unwrap_or(0) as f64 / 1e9,
        })
    }

    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        self.remove(&record.id).await
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        // Containers first: one that is created meanwhile has its record by the time the records are read.
        let containers = self.containers().await?;
        let mut all = records::list(&self.paths, KIND)?;
        for container in containers {
            if all.iter().all(|record| record.id != container.id) {
                all.push(container);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_runtime_is_refused_with_alternatives() {
        let known = ["runc".to_owned(), "crun".to_owned()];
        assert!(check_runtime(None, &known).is_ok() && check_runtime(Some("crun"), &known).is_ok());
        let error = check_runtime(Some("runsc"), &known).unwrap_err().to_string();
        assert!(error.contains("runsc") && error.contains("runc, crun"), "{error}");
    }

    #[test]
    fn owner_labels_round_trip() {
        let owner = ProcessStamp { pid: 12, started: 345, boot: u64::MAX, namespace: 4_026_531_836 };
        assert_eq!(parse_owner_label(&owner_label(owner)), Some(owner));
        assert_eq!(parse_owner_label("12"), None);
        assert_eq!(parse_owner_label("12:345"), None);
    }

    #[test]
    fn too_long_socket_path_is_refused() {
        assert!(socket_path(Path::new("/var/lib/cellkeep/s/x/sock")).is_ok());
        assert!(socket_path(Path::new(&"/x".repeat(60))).unwrap_err().to_string().contains("--data"));
    }
}

//! The sandbox of a container engine: a hardened container of Docker or Podman, on this machine.
//!
//! ```text
//! create: record on disk ─▶ folder for the socket ─▶ container made ─▶ started ─▶ the agent listens ─▶ configuration ─▶ folder closed
//! ```
//!
//! The agent is mounted into the container and is its first process. It makes its socket in a folder that is mounted from
//! the session's own; that folder's parent is ours alone, so nobody else on this machine can reach it.

mod engine;
mod images;
mod profile;

use std::collections::HashMap;
use std::fs;
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
use tokio::net::UnixStream;
use tokio::time::Instant;

use self::engine::{Client, call, unavailable};
use self::profile::{Profile, SOCKET_DIR, SOCKET_NAME};
use super::{
    ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats, agent_binary,
    environment, records,
};
use crate::agent_protocol::{AgentConfig, Listen, send_config};
use crate::config::Paths;
use crate::ids::SessionId;
use crate::policy::{Isolation, IsolationLevel};

pub use engine::{Engine, engine};
pub use images::{BuildError, BuildOptions, Image, Images};

const KIND: SandboxKind = SandboxKind::Docker;
/// How long the agent may take to listen; it takes a few milliseconds from the container's start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the engine may take to remove a container that is being removed already.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// The folder in the session's own that the agent makes its socket in.
const SOCKET_FOLDER: &str = "sock";
/// The longest path that a unix socket's address holds.
const MAX_SOCKET_PATH: usize = 107;
/// How much of what an agent says before it fails is kept, bytes.
const MAX_LAST_WORDS: usize = 4096;

const LABEL_SESSION: &str = "cellkeep.session";
const LABEL_OWNER: &str = "cellkeep.owner";
const LABEL_DATA: &str = "cellkeep.data";

/// Makes containers, with their records beneath a data folder.
pub struct DockerSandbox {
    client: Client,
    paths: Paths,
    runtime: Option<String>,
}

impl DockerSandbox {
    /// Containers of this data folder, made by the engine of this machine: the one that `CELLKEEP_DOCKER_HOST` or
    /// `DOCKER_HOST` names, else Docker's, else Podman's. `CELLKEEP_DOCKER_RUNTIME` names another OCI runtime than the
    /// engine's default (`runsc`, `kata`).
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] when there is no usable engine, or it lacks the runtime; [`SandboxError::Io`] when the
    /// data folder cannot be made.
    pub async fn connect(paths: Paths) -> Result<Self, SandboxError> {
        let client = Client::open().await?;
        let runtime = std::env::var("CELLKEEP_DOCKER_RUNTIME").ok().filter(|name| !name.is_empty());
        check_runtime(runtime.as_deref(), &client.facts.runtimes)?;
        Ok(Self { client, paths: absolute(&paths)?, runtime })
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        let folder = records::make_folder(&self.paths, &spec.session)?;
        let agent_binary =
            agent_binary::written_out(&self.paths.agent()).map_err(SandboxError::io("cannot write out the agent"))?;
        let socket_dir = folder.join(SOCKET_FOLDER);
        let mut record = SandboxRecord {
            session: spec.session.clone(),
            kind: KIND,
            kernel: spec.kernel.name.clone(),
            socket: socket_path(&socket_dir)?,
            isolation: profile::isolation(&self.client.facts, self.runtime.as_deref(), spec.network),
            owner: ProcessStamp::own(),
            keep: spec.orphan_seconds.is_none(),
            agent_binary,
            agent: None,
            controllers: None,
            container: None,
        };
        records::write(&folder, &record)?;
        make_socket_dir(&socket_dir)?;
        let listen = Listen::Path(format!("{SOCKET_DIR}/{SOCKET_NAME}"));
        let id = self.make(spec, self.container(spec, &folder, &record.agent_binary, &listen)?).await?;
        record.container = Some(id.clone());
        records::write(&folder, &record)?;
        let config = environment::agent_config(spec, listen, self.client.facts.memory, false);
        self.run(&id, &record.socket, &config).await?;
        close_socket_dir(&socket_dir)?;
        Ok(record)
    }

    /// What the session's container is to be.
    fn container(
        &self,
        spec: &SandboxSpec,
        folder: &Path,
        agent: &Path,
        listen: &Listen,
    ) -> Result<ContainerCreateBody, SandboxError> {
        let listen = serde_json::to_string(listen).map_err(|error| SandboxError::io("agent argument")(error.into()))?;
        let labels = [
            (LABEL_SESSION, spec.session.to_string()),
            (LABEL_OWNER, owner_label(ProcessStamp::own())),
            (LABEL_DATA, self.data_label()),
        ];
        let profile = Profile {
            spec,
            facts: &self.client.facts,
            runtime: self.runtime.as_deref(),
            agent,
            socket_dir: &folder.join(SOCKET_FOLDER),
            listen,
            seccomp: self.seccomp(folder)?,
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        Ok(profile.container())
    }

    /// The filter of system calls: Docker takes it as text, Podman's service only as a file.
    fn seccomp(&self, folder: &Path) -> Result<String, SandboxError> {
        let profile = profile::seccomp_profile(std::env::consts::ARCH).to_string();
        if !self.client.facts.podman {
            return Ok(profile);
        }
        let path = folder.join("seccomp.json");
        fs::write(&path, profile).map_err(SandboxError::io(format!("cannot write {}", path.display())))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Makes the container; returns its id.
    async fn make(&self, spec: &SandboxSpec, body: ContainerCreateBody) -> Result<String, SandboxError> {
        let options = CreateContainerOptionsBuilder::new().name(&name(&spec.session)).build();
        match call(self.client.docker.create_container(Some(options), body)).await {
            Ok(made) => Ok(made.id),
            Err(error) if error.status == Some(404) && error.reason.to_ascii_lowercase().contains("image") => {
                Err(SandboxError::NoKernel {
                    kernel: spec.kernel.name.clone(),
                    kind: KIND,
                    reason: format!("there is no image {}", profile::image(&spec.kernel.name)),
                    remedy: format!("run: cellkeep images build {}", spec.kernel.name),
                })
            }
            Err(error) => Err(error.when("cannot make the container")),
        }
    }

    /// Starts the container, waits until its agent listens, and gives it its configuration.
    async fn run(&self, id: &str, socket: &Path, config: &AgentConfig) -> Result<(), SandboxError> {
        let last_words = self.listen_for_last_words(id).await;
        let started = call(self.client.docker.start_container(id, None::<StartContainerOptions>)).await;
        started.map_err(|error| SandboxError::Start { kind: KIND, reason: error.reason })?;
        let (end, mut next_look) = (Instant::now() + START_DEADLINE, Instant::now() + Duration::from_millis(100));
        loop {
            let handed_over = async { send_config(UnixStream::connect(socket).await?, config).await };
            if let Ok(Ok(())) = tokio::time::timeout_at(end, handed_over).await {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(SandboxError::Start { kind: KIND, reason: self.silence() });
            }
            if Instant::now() > next_look {
                if let SandboxState::Ended { why } = self.state(id).await? {
                    return Err(SandboxError::Start { kind: KIND, reason: last_words.added_to(why).await });
                }
                next_look = Instant::now() + Duration::from_millis(200);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Why an agent that runs may not be heard.
    fn silence(&self) -> String {
        let silence = format!("the agent did not listen within {} s", START_DEADLINE.as_secs());
        match &self.runtime {
            Some(runtime) => format!(
                "{silence}; its unix socket must cross the wall of the runtime {runtime} (runsc does that with --host-uds=create)"
            ),
            None => silence,
        }
    }

    /// Attaches to the standard error of a container that is still to be started. Its log driver keeps nothing, so what is
    /// not heard now can never be read.
    async fn listen_for_last_words(&self, id: &str) -> LastWords {
        let options = AttachContainerOptionsBuilder::new().stderr(true).stream(true).build();
        let Ok(mut attached) = call(self.client.docker.attach_container(id, Some(options))).await else {
            return LastWords(None);
        };
        LastWords(Some(tokio::spawn(async move {
            let mut said = Vec::new();
            while let (Some(Ok(piece)), true) = (attached.output.next().await, said.len() < MAX_LAST_WORDS) {
                said.extend_from_slice(piece.as_ref());
            }
            String::from_utf8_lossy(&said).trim().to_owned()
        })))
    }

    async fn state(&self, container: &str) -> Result<SandboxState, SandboxError> {
        let inspected = match call(self.client.docker.inspect_container(container, None::<InspectContainerOptions>)).await {
            Ok(inspected) => inspected,
            Err(error) if error.status == Some(404) => {
                return Ok(SandboxState::Ended { why: "the container is gone".into() });
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

    /// Removes a session's container, however it is, and its folder.
    async fn remove(&self, session: &SessionId) -> Result<(), SandboxError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let end = Instant::now() + END_DEADLINE;
        // 409: another process is removing it. It is gone only when the engine says that it knows none.
        loop {
            match call(self.client.docker.remove_container(&name(session), Some(options.clone()))).await {
                Ok(()) => break,
                Err(error) if error.status == Some(404) => break,
                Err(error) if error.status == Some(409) && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.when("cannot remove the container")),
            }
        }
        records::remove_folder(&self.paths, session)
    }

    /// Containers of this data folder, whether or not there is a record of them.
    async fn containers(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        let ours = HashMap::from([("label", vec![format!("{LABEL_DATA}={}", self.data_label())])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&ours).build();
        let found = call(self.client.docker.list_containers(Some(options))).await;
        let found = found.map_err(|error| error.when("cannot list containers"))?;
        Ok(found.into_iter().filter_map(|container| self.record_of(container)).collect())
    }

    /// What a container's labels tell, where its record is lost.
    fn record_of(&self, container: ContainerSummary) -> Option<SandboxRecord> {
        let labels = container.labels?;
        let session = SessionId::parse(labels.get(LABEL_SESSION)?)?;
        let image = container.image.unwrap_or_default();
        let kernel =
            image.trim_start_matches("localhost/").trim_start_matches("cellkeep/").trim_end_matches(":latest").to_owned();
        Some(SandboxRecord {
            socket: records::folder(&self.paths, &session).join(SOCKET_FOLDER).join(SOCKET_NAME),
            session,
            kind: KIND,
            kernel,
            isolation: Isolation::new(IsolationLevel::Container),
            owner: labels.get(LABEL_OWNER).and_then(|label| read_owner_label(label)).unwrap_or(ProcessStamp::unknown()),
            keep: false,
            agent_binary: mounted_agent(container.mounts.as_deref().unwrap_or_default()),
            agent: None,
            controllers: None,
            container: container.id,
        })
    }

    fn data_label(&self) -> String {
        self.paths.data().to_string_lossy().into_owned()
    }
}

/// What an agent says on its standard error, before it listens.
struct LastWords(Option<tokio::task::JoinHandle<String>>);

impl LastWords {
    /// `why` with what was said.
    async fn added_to(mut self, why: String) -> String {
        let Some(task) = self.0.as_mut() else { return why };
        match tokio::time::timeout(Duration::from_secs(1), task).await {
            Ok(Ok(said)) if !said.is_empty() => format!("{why}: {said}"),
            _ => why,
        }
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The container's name, by which it is found even before its id has been written down.
fn name(session: &SessionId) -> String {
    format!("cellkeep-{session}")
}

fn owner_label(owner: ProcessStamp) -> String {
    let ProcessStamp { pid, started, boot, namespace } = owner;
    format!("{pid}:{started}:{boot:x}:{namespace}")
}

fn read_owner_label(label: &str) -> Option<ProcessStamp> {
    let parts: Vec<&str> = label.split(':').collect();
    let [pid, started, boot, namespace] = parts.as_slice() else { return None };
    Some(ProcessStamp {
        pid: pid.parse().ok()?,
        started: started.parse().ok()?,
        boot: u64::from_str_radix(boot, 16).ok()?,
        namespace: namespace.parse().ok()?,
    })
}

/// The agent's binary on this machine, by a container's mounts.
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

/// The data folder as the engine, which runs elsewhere, must be told it; and always the same, as it is a label.
fn absolute(paths: &Paths) -> Result<Paths, SandboxError> {
    let make = || {
        fs::create_dir_all(paths.data())?;
        fs::canonicalize(paths.data())
    };
    let data = make().map_err(SandboxError::io(format!("cannot make {}", paths.data().display())))?;
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

/// The folder for the agent's socket. Only root could give it to the container's uid, and which uid that is out here
/// depends on the engine; so anyone may write it, and the parent lets nobody but us come so far.
fn make_socket_dir(folder: &Path) -> Result<(), SandboxError> {
    let made = fs::create_dir(folder).and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o777)));
    made.map_err(SandboxError::io(format!("cannot make {}", folder.display())))
}

/// Once the socket is in it, nobody else needs to write it: no sandbox can fill our disk through it, nor put another
/// socket in its place.
fn close_socket_dir(folder: &Path) -> Result<(), SandboxError> {
    let closed = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    closed.map_err(SandboxError::io(format!("cannot close {}", folder.display())))
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn kind(&self) -> SandboxKind {
        KIND
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        match self.start(spec).await {
            Err(error) => Err(error.with_remains(self.remove(&spec.session).await)),
            made => made,
        }
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        UnixStream::connect(&record.socket).await.map_err(SandboxError::io("cannot reach the agent"))
    }

    async fn inspect(&self, record: &SandboxRecord) -> Result<SandboxState, SandboxError> {
        self.state(&name(&record.session)).await
    }

    async fn stats(&self, record: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let mut answers = Box::pin(self.client.docker.stats(&name(&record.session), Some(options)));
        let first = async { answers.next().await.unwrap_or_else(|| Ok(Default::default())) };
        let stats = call(first).await.map_err(|error| error.when("cannot read the container's usage"))?;
        let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|usage| usage.total_usage);
        Ok(SandboxStats {
            memory_bytes: stats.memory_stats.and_then(|memory| memory.usage).unwrap_or(0),
            cpu_seconds: cpu.unwrap_or(0) as f64 / 1e9,
        })
    }

    async fn destroy(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        self.remove(&record.session).await
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        // The containers first: one that is made in between has its record by the time those are read.
        let containers = self.containers().await?;
        let mut all = records::list(&self.paths, KIND)?;
        for container in containers {
            if all.iter().all(|record| record.session != container.session) {
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
    fn an_unknown_runtime_is_refused_with_those_there_are() {
        let known = ["runc".to_owned(), "crun".to_owned()];
        assert!(check_runtime(None, &known).is_ok() && check_runtime(Some("crun"), &known).is_ok());
        let error = check_runtime(Some("runsc"), &known).unwrap_err().to_string();
        assert!(error.contains("runsc") && error.contains("runc, crun"), "{error}");
    }

    #[test]
    fn owners_are_read_back() {
        let owner = ProcessStamp { pid: 12, started: 345, boot: u64::MAX, namespace: 4_026_531_836 };
        assert_eq!(read_owner_label(&owner_label(owner)), Some(owner));
        assert_eq!(read_owner_label("12"), None);
        assert_eq!(read_owner_label("12:345"), None);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
        assert!(socket_path(Path::new("/var/lib/cellkeep/s/x/sock")).is_ok());
        assert!(socket_path(Path::new(&"/x".repeat(60))).unwrap_err().to_string().contains("--data"));
    }
}

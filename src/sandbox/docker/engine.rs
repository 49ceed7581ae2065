//! Finds the container engine of this machine and its capabilities.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum, SystemVersion};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::KIND;
use crate::sandbox::SandboxError;

/// Timeout of the first requests, so that a hung engine does not block.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of one request: a loaded machine needs seconds to create or remove a container.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The most of an engine's error that is shown, characters.
const MAX_MESSAGE: usize = 1000;
/// The API of Docker 20.10.
const OLDEST_API: (u32, u32) = (1, 41);

/// The capabilities that an engine reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct EngineInfo {
    /// Podman, which is mostly compatible with Docker.
    pub podman: bool,
    /// For example `20.10.24`.
    pub version: String,
    /// For example `runc 1.1.5`, if reported.
    pub oci_runtime: Option<String>,
    /// 1 or 2; 0 if not reported.
    pub cgroup_version: u8,
    /// Whether it can limit memory.
    pub memory: bool,
    /// Whether it can limit swap.
    pub swap: bool,
    /// Whether it can limit CPU time.
    pub cpu: bool,
    /// Whether it can limit the number of processes.
    pub pids: bool,
    pub cpu_count: Option<f64>,
    /// Whether it supports seccomp.
    pub seccomp: bool,
    /// Whether its default AppArmor profile is active.
    pub apparmor: bool,
    /// Whether uids are remapped, by `userns-remap` or a rootless engine.
    pub user_namespace: bool,
    /// Whether containers outlive a restart of the daemon.
    pub live_restore: bool,
    /// The available OCI runtimes.
    pub runtimes: Vec<String>,
}

impl EngineInfo {
    fn new(info: &SystemInfo, version: &SystemVersion) -> Self {
        let components = version.components.as_deref().unwrap_or_default();
        let component = |name: &str| components.iter().find(|component| component.name == name);
        let options = info.security_options.as_deref().unwrap_or_default();
        let secured_by =
            |name: &str| options.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")));
        let podman = component("Podman Engine").is_some();
        Self {
            podman,
            version: version.version.clone().unwrap_or_default(),
            oci_runtime: component("runc").map(|runc| format!("runc {}", runc.version)),
            cgroup_version: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_1) => 1,
                Some(SystemInfoCgroupVersionEnum::_2) => 2,
                _ => 0,
            },
            memory: info.memory_limit == Some(true),
            swap: info.swap_limit == Some(true),
            cpu: info.cpu_cfs_quota == Some(true),
            pids: info.pids_limit == Some(true),
            cpu_count: info.ncpu.filter(|count| *count > 0).map(|count| count as f64),
            seccomp: secured_by("seccomp"),
            apparmor: secured_by("apparmor"),
            user_namespace: secured_by("userns") || secured_by("rootless"),
            live_restore: podman || info.live_restore_enabled == Some(true),
            runtimes: info.runtimes.iter().flatten().map(|(name, _)| name.clone()).collect(),
        }
    }

    fn name(&self) -> &'static str {
        if self.podman { "Podman" } else { "Docker" }
    }
}

/// A connection to an engine.
pub(super) struct Client {
    pub docker: Docker,
    pub info: EngineInfo,
    socket: PathBuf,
}

impl Client {
    /// Finds the engine of this machine and queries its capabilities.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] with a remedy.
    pub async fn open() -> Result<Self, SandboxError> {
        let socket = find_reachable(candidates(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?).await?;
        let docker =
            Docker::connect_with_unix(&socket.to_string_lossy(), CALL_TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION)
                .map_err(|error| unavailable(explain(&error), START_IT))?;
        let (info, version) =
            timeout(PROBE_TIMEOUT, async { tokio::join!(docker.info(), docker.version()) }).await.map_err(|_| {
                let reason =
                    format!("the engine at {} does not answer within {} s", socket.display(), PROBE_TIMEOUT.as_secs());
                unavailable(reason, "restart it: sudo systemctl restart docker")
            })?;
        let unusable =
            |error| unavailable(format!("the engine at {} answers: {}", socket.display(), explain(&error)), START_IT);
        let (info, version) = (info.map_err(unusable)?, version.map_err(unusable)?);
        let info = EngineInfo::new(&info, &version);
        check_version(&info, version.api_version.as_deref())?;
        Ok(Self { docker, info, socket })
    }

    fn description(&self) -> String {
        let EngineInfo { version, oci_runtime, cgroup_version, .. } = &self.info;
        let runtime = oci_runtime.as_ref().map(|runtime| format!(", {runtime}")).unwrap_or_default();
        format!("{} {version}{runtime}, cgroups version {cgroup_version}, {}", self.info.name(), self.socket.display())
    }
}

const START_IT: &str = "start it: sudo systemctl start docker (to install it: sudo apt-get install docker.io)";

pub(super) fn unavailable(reason: impl Into<String>, remedy: impl Into<String>) -> SandboxError {
    SandboxError::Unavailable { kind: KIND, reason: reason.into(), remedy: remedy.into() }
}

fn check_version(info: &EngineInfo, api: Option<&str>) -> Result<(), SandboxError> {
    let number = |text: &str| -> Option<(u32, u32)> {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match api.and_then(number) {
        // Podman numbers its API versions differently.
        Some(api) if api < OLDEST_API && !info.podman => {
            Err(unavailable(format!("Docker {} is too old", info.version), "install Docker 20.10 or newer"))
        }
        _ => Ok(()),
    }
}

/// Possible sockets of an engine, most likely first. If a variable names one, only that.
fn candidates(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<PathBuf>, SandboxError> {
    for name in ["CELLKEEP_DOCKER_HOST", "DOCKER_HOST"] {
        let Some(host) = variable(name) else { continue };
        return match host.strip_prefix("unix://") {
            Some(path) => Ok(vec![path.into()]),
            None => Err(unavailable(
                format!(
                    "{name} is {host}, but only an engine on this machine can be used, since the agent is mounted from here"
                ),
                format!("unset {name}, or set it to unix:///path/to/socket"),
            )),
        };
    }
    let runtime_dir = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let user_sockets = runtime_dir.iter().flat_map(|folder| [folder.join("docker.sock"), folder.join("podman/podman.sock")]);
    let mut all = vec![PathBuf::from("/var/run/docker.sock")];
    all.extend(user_sockets);
    all.push("/run/podman/podman.sock".into());
    Ok(all)
}

/// The first socket that accepts connections, else the problem of the most likely one.
async fn find_reachable(candidates: Vec<PathBuf>) -> Result<PathBuf, SandboxError> {
    let mut first_problem = None;
    for path in &candidates {
        match timeout(PROBE_TIMEOUT, UnixStream::connect(path)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        {
            Ok(_) => return Ok(path.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && candidates.len() > 1 => {}
            Err(error) => {
                first_problem.get_or_insert_with(|| connection_error(path, &error));
            }
        }
    }
    Err(first_problem.unwrap_or_else(|| unavailable("no Docker or Podman engine is running on this machine", START_IT)))
}

fn connection_error(path: &Path, error: &io::Error) -> SandboxError {
    let at = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => unavailable(
            format!("this user may not use the engine at {at}"),
            "add yourself to the docker group: sudo usermod -aG docker \"$USER\", and log in again",
        ),
        io::ErrorKind::ConnectionRefused => unavailable(format!("no engine listens at {at}"), START_IT),
        _ => unavailable(format!("the engine at {at} cannot be reached: {error}"), START_IT),
    }
}

/// A failed request to the engine.
#[derive(Debug)]
pub(super) struct CallError {
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    pub reason: String,
}

impl CallError {
    /// Converts to a [`SandboxError`], with the action that failed.
    pub fn when(self, doing: impl Into<String>) -> SandboxError {
        SandboxError::Engine { doing: doing.into(), reason: self.reason }
    }
}

/// Awaits one request with a timeout over the whole response; bollard's own timeout covers only the head.
pub(super) async fn call<T>(request: impl Future<Output = Result<T, bollard::errors::Error>>) -> Result<T, CallError> {
    match timeout(CALL_TIMEOUT, Box::pin(request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError { status: status(&error), reason: explain(&error) }),
        Err(_) => {
            let reason = format!("the engine did not answer within {} s", CALL_TIMEOUT.as_secs());
            Err(CallError { status: None, reason })
        }
    }
}

fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// The engine's message, else the error with its causes. Cut to [`MAX_MESSAGE`] characters, since some messages repeat the
/// request.
pub(super) fn explain(error: &bollard::errors::Error) -> String {
    let mut message = full_message(error);
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
        message.replace_range(end.., " ...");
    }
    message
}

fn full_message(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        bollard::errors::Error::DockerStreamError { error } => error.trim().to_owned(),
        other => {
            let causes = std::iter::successors(other.source(), |error| (*error).source());
            std::iter::once(other.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
        }
    }
}

/// The state of the container engine on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    Usable {
        /// Name, version and socket.
        description: String,
        /// Weaknesses of its configuration, each with a remedy.
        warnings: Vec<String>,
    },
    Unusable {
        reason: String,
        remedy: String,
    },
}

/// Finds the engine and its capabilities, within 20 s even if the engine hangs.
pub async fn engine() -> Engine {
    match Client::open().await {
        Ok(client) => Engine::Usable { description: client.description(), warnings: warnings(&client.info) },
        Err(SandboxError::Unavailable { reason, remedy, .. }) => Engine::Unusable { reason, remedy },
        Err(error) => Engine::Unusable { reason: error.to_string(), remedy: START_IT.into() },
    }
}

/// The OCI runtimes of the engine; none if there is no usable engine.
pub async fn runtimes() -> Vec<String> {
    Client::open().await.map_or_else(|_| Vec::new(), |client| client.info.runtimes)
}

fn warnings(info: &EngineInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    for (supported, limit) in [(info.memory, "memory"), (info.cpu, "cpus"), (info.pids, "processes")] {
        if !supported {
            warnings.push(format!("the engine cannot limit {limit} (a rootless engine requires cgroups version 2)"));
        }
    }
    if info.memory && !info.swap {
        warnings
            .push("the engine cannot limit swap, so memory limits apply to RAM only (boot with swapaccount=1)".to_owned());
    }
    if !info.seccomp {
        warnings.push("the engine does not support seccomp: only the agent's own filter is active".to_owned());
    }
    // Podman has no such setting; it remaps uids when it runs rootless.
    if !info.user_namespace && !info.podman {
        warnings.push(
            "user namespaces are not remapped: a container's uid is the same uid on the host, where each session has one of its own"
                .to_owned(),
        );
    }
    if !info.live_restore {
        warnings.push(
            "live-restore is off: a restart of the daemon ends all sessions (\"live-restore\": true in /etc/docker/daemon.json)"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &'static [(&'static str, &'static str)]) -> Result<Vec<PathBuf>, SandboxError> {
        candidates(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn named_socket_is_the_only_candidate() {
        assert_eq!(with(&[("DOCKER_HOST", "unix:///a")]).unwrap(), [PathBuf::from("/a")]);
        let both = with(&[("DOCKER_HOST", "tcp://far:2376"), ("CELLKEEP_DOCKER_HOST", "unix:///b")]);
        assert_eq!(both.unwrap(), [PathBuf::from("/b")]);
        let refused = with(&[("DOCKER_HOST", "tcp://far:2376")]).unwrap_err().to_string();
        assert!(refused.contains("tcp://far:2376") && refused.contains("unset DOCKER_HOST"), "{refused}");
    }

    #[test]
    fn default_sockets_are_ordered() {
        let all = with(&[("XDG_RUNTIME_DIR", "/run/user/7")]).unwrap();
        let expected =
            ["/var/run/docker.sock", "/run/user/7/docker.sock", "/run/user/7/podman/podman.sock", "/run/podman/podman.sock"];
        assert_eq!(all, expected.map(PathBuf::from));
        assert_eq!(with(&[]).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn unreachable_socket_is_explained() {
        let folder = std::env::temp_dir().join(format!("cellkeep-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let stale = folder.join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let away = find_reachable(vec![stale.clone(), folder.join("none")]).await.unwrap_err().to_string();
        assert!(away.contains("no engine listens at"), "{away}");
        let none = find_reachable(vec![folder.join("a"), folder.join("b")]).await.unwrap_err().to_string();
        assert!(none.contains("no Docker or Podman engine"), "{none}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn capabilities_are_parsed() {
        let info = SystemInfo {
            memory_limit: Some(true),
            cgroup_version: Some(SystemInfoCgroupVersionEnum::_2),
            security_options: Some(vec!["name=seccomp,profile=default".into(), "name=rootless".into()]),
            ..SystemInfo::default()
        };
        let info = EngineInfo::new(&info, &SystemVersion::default());
        assert!(info.memory && info.seccomp && info.user_namespace && !info.apparmor && !info.pids);
        assert_eq!(info.cgroup_version, 2);
        let warnings = warnings(&info).join("\n");
        assert!(warnings.contains("live-restore") && warnings.contains("limit cpus") && !warnings.contains("limit memory"));
    }

    #[test]
    fn old_docker_is_refused() {
        let docker = EngineInfo { version: "19.03".into(), ..EngineInfo::default() };
        assert!(check_version(&docker, Some("1.40")).unwrap_err().to_string().contains("20.10"));
        assert!(check_version(&docker, Some("1.41")).is_ok());
        assert!(check_version(&EngineInfo { podman: true, ..docker }, Some("1.40")).is_ok());
    }
}

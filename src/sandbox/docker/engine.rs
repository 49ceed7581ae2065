//! Finding a container engine on this machine, and what it can do.

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

/// How long an engine may take to say what it is. One that is hung must not hang us.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// How long one request may take: a loaded machine needs seconds to make or remove a container.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How much of an engine's refusal is shown, characters.
const MAX_WORDS: usize = 1000;
/// The API of Docker 20.10.
const OLDEST_API: (u32, u32) = (1, 41);

/// What an engine can do, as it says itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// Podman, which answers like Docker in most ways.
    pub podman: bool,
    /// `20.10.24`.
    pub version: String,
    /// `runc 1.1.5`, where it says so.
    pub oci_runtime: Option<String>,
    /// 1 or 2; 0 where it does not say.
    pub cgroup_version: u8,
    /// Whether it can limit memory.
    pub memory: bool,
    /// Whether it can limit swap.
    pub swap: bool,
    /// Whether it can limit CPU time.
    pub cpu: bool,
    /// Whether it can limit the number of processes.
    pub pids: bool,
    /// How many CPUs there are.
    pub cpu_count: Option<f64>,
    /// Whether it can filter system calls.
    pub seccomp: bool,
    /// Whether its default AppArmor profile is in force.
    pub apparmor: bool,
    /// Whether uids in a container are others outside, because of `userns-remap` or a rootless engine.
    pub user_namespace: bool,
    /// Whether containers outlive a restart of the daemon.
    pub live_restore: bool,
    /// The OCI runtimes that may be named.
    pub runtimes: Vec<String>,
}

impl Facts {
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

/// An engine that answers.
pub(super) struct Client {
    pub docker: Docker,
    pub facts: Facts,
    socket: PathBuf,
}

impl Client {
    /// Finds the engine of this machine and asks what it can do.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] with what mends it.
    pub async fn open() -> Result<Self, SandboxError> {
        let socket = reachable(candidates(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?).await?;
        let docker =
            Docker::connect_with_unix(&socket.to_string_lossy(), CALL_DEADLINE.as_secs(), bollard::API_DEFAULT_VERSION)
                .map_err(|error| unavailable(explain(&error), START_IT))?;
        let (info, version) =
            timeout(PROBE_DEADLINE, async { tokio::join!(docker.info(), docker.version()) }).await.map_err(|_| {
                let reason =
                    format!("the engine at {} does not answer within {} s", socket.display(), PROBE_DEADLINE.as_secs());
                unavailable(reason, "restart it: sudo systemctl restart docker")
            })?;
        let unusable =
            |error| unavailable(format!("the engine at {} answers: {}", socket.display(), explain(&error)), START_IT);
        let (info, version) = (info.map_err(unusable)?, version.map_err(unusable)?);
        let facts = Facts::new(&info, &version);
        check_age(&facts, version.api_version.as_deref())?;
        Ok(Self { docker, facts, socket })
    }

    /// In a few words, for people.
    fn description(&self) -> String {
        let Facts { version, oci_runtime, cgroup_version, .. } = &self.facts;
        let runtime = oci_runtime.as_ref().map(|runtime| format!(", {runtime}")).unwrap_or_default();
        format!("{} {version}{runtime}, cgroups version {cgroup_version}, {}", self.facts.name(), self.socket.display())
    }
}

const START_IT: &str = "start it: sudo systemctl start docker (where there is none: sudo apt-get install docker.io)";

pub(super) fn unavailable(reason: impl Into<String>, remedy: impl Into<String>) -> SandboxError {
    SandboxError::Unavailable { kind: KIND, reason: reason.into(), remedy: remedy.into() }
}

fn check_age(facts: &Facts, api: Option<&str>) -> Result<(), SandboxError> {
    let number = |text: &str| -> Option<(u32, u32)> {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match api.and_then(number) {
        // Podman counts its imitation of the API otherwise.
        Some(api) if api < OLDEST_API && !facts.podman => {
            Err(unavailable(format!("Docker {} is too old", facts.version), "install Docker 20.10 or newer"))
        }
        _ => Ok(()),
    }
}

/// Where an engine may listen, the likeliest first; only what was named, if something was.
fn candidates(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<PathBuf>, SandboxError> {
    for name in ["CELLKEEP_DOCKER_HOST", "DOCKER_HOST"] {
        let Some(host) = variable(name) else { continue };
        return match host.strip_prefix("unix://") {
            Some(path) => Ok(vec![path.into()]),
            None => Err(unavailable(
                format!("{name} is {host}, and only an engine on this machine can be used: the agent is mounted from here"),
                format!("unset {name}, or set it to unix:///path/to/socket"),
            )),
        };
    }
    let runtime_dir = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let users_own = runtime_dir.iter().flat_map(|folder| [folder.join("docker.sock"), folder.join("podman/podman.sock")]);
    let mut all = vec![PathBuf::from("/var/run/docker.sock")];
    all.extend(users_own);
    all.push("/run/podman/podman.sock".into());
    Ok(all)
}

/// The first socket that somebody listens on; else what is wrong with the likeliest one.
async fn reachable(candidates: Vec<PathBuf>) -> Result<PathBuf, SandboxError> {
    let mut first_problem = None;
    for path in &candidates {
        match timeout(PROBE_DEADLINE, UnixStream::connect(path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        {
            Ok(_) => return Ok(path.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && candidates.len() > 1 => {}
            Err(error) => {
                first_problem.get_or_insert_with(|| unreachable_socket(path, &error));
            }
        }
    }
    Err(first_problem.unwrap_or_else(|| unavailable("no Docker or Podman engine runs here", START_IT)))
}

fn unreachable_socket(path: &Path, error: &io::Error) -> SandboxError {
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

/// A request that the engine refused or did not answer.
#[derive(Debug)]
pub(super) struct CallError {
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// What the engine said.
    pub reason: String,
}

impl CallError {
    /// As the sandbox's error, with what was being done.
    pub fn when(self, doing: impl Into<String>) -> SandboxError {
        SandboxError::Engine { doing: doing.into(), reason: self.reason }
    }
}

/// Awaits one request, with a deadline over all of it (bollard's own ends with the answer's head).
pub(super) async fn call<T>(request: impl Future<Output = Result<T, bollard::errors::Error>>) -> Result<T, CallError> {
    match timeout(CALL_DEADLINE, Box::pin(request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError { status: status(&error), reason: explain(&error) }),
        Err(_) => {
            let reason = format!("the engine did not answer within {} s", CALL_DEADLINE.as_secs());
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

/// The engine's own words; else the error with its causes, which it does not show by itself.
pub(super) fn explain(error: &bollard::errors::Error) -> String {
    let mut words = in_words(error);
    // Some refusals repeat the request, which may be long.
    if let Some((end, _)) = words.char_indices().nth(MAX_WORDS) {
        words.replace_range(end.., " ...");
    }
    words
}

fn in_words(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        bollard::errors::Error::DockerStreamError { error } => error.trim().to_owned(),
        other => {
            let causes = std::iter::successors(other.source(), |error| (*error).source());
            std::iter::once(other.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
        }
    }
}

/// Whether containers can be used on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Yes.
    Usable {
        /// Which engine, and where.
        description: String,
        /// What is weaker than it could be, each with what mends it.
        warnings: Vec<String>,
    },
    /// No.
    Unusable {
        /// Why not.
        reason: String,
        /// What mends it.
        remedy: String,
    },
}

/// Looks for an engine and asks what it can do. Answers within 20 s, hung engine or not.
pub async fn engine() -> Engine {
    match Client::open().await {
        Ok(client) => Engine::Usable { description: client.description(), warnings: warnings(&client.facts) },
        Err(SandboxError::Unavailable { reason, remedy, .. }) => Engine::Unusable { reason, remedy },
        Err(error) => Engine::Unusable { reason: error.to_string(), remedy: START_IT.into() },
    }
}

fn warnings(facts: &Facts) -> Vec<String> {
    let mut warnings = Vec::new();
    for (holds, limit) in [(facts.memory, "memory"), (facts.cpu, "cpus"), (facts.pids, "processes")] {
        if !holds {
            warnings.push(format!("the engine cannot limit {limit} (a rootless engine needs cgroups version 2)"));
        }
    }
    if facts.memory && !facts.swap {
        warnings.push("the engine cannot limit swap: memory limits hold for RAM only (boot with swapaccount=1)".to_owned());
    }
    if !facts.seccomp {
        warnings.push("the engine cannot filter system calls: only the agent's own filter is in force".to_owned());
    }
    // Podman has no such setting: there it is a matter of running it rootless.
    if !facts.user_namespace && !facts.podman {
        warnings.push(
            "user namespaces are not remapped: a container's uid is the same uid here (\"userns-remap\": \"default\" in \
             /etc/docker/daemon.json)"
                .to_owned(),
        );
    }
    if !facts.live_restore {
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
    fn a_named_socket_is_the_only_one() {
        assert_eq!(with(&[("DOCKER_HOST", "unix:///a")]).unwrap(), [PathBuf::from("/a")]);
        let both = with(&[("DOCKER_HOST", "tcp://far:2376"), ("CELLKEEP_DOCKER_HOST", "unix:///b")]);
        assert_eq!(both.unwrap(), [PathBuf::from("/b")]);
        let refused = with(&[("DOCKER_HOST", "tcp://far:2376")]).unwrap_err().to_string();
        assert!(refused.contains("tcp://far:2376") && refused.contains("unset DOCKER_HOST"), "{refused}");
    }

    #[test]
    fn the_usual_places_are_searched_in_order() {
        let all = with(&[("XDG_RUNTIME_DIR", "/run/user/7")]).unwrap();
        let expected =
            ["/var/run/docker.sock", "/run/user/7/docker.sock", "/run/user/7/podman/podman.sock", "/run/podman/podman.sock"];
        assert_eq!(all, expected.map(PathBuf::from));
        assert_eq!(with(&[]).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_socket_is_named() {
        let folder = std::env::temp_dir().join(format!("cellkeep-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let stale = folder.join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let away = reachable(vec![stale.clone(), folder.join("none")]).await.unwrap_err().to_string();
        assert!(away.contains("no engine listens at"), "{away}");
        let none = reachable(vec![folder.join("a"), folder.join("b")]).await.unwrap_err().to_string();
        assert!(none.contains("no Docker or Podman engine"), "{none}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn facts_are_read_from_the_engines_words() {
        let info = SystemInfo {
            memory_limit: Some(true),
            cgroup_version: Some(SystemInfoCgroupVersionEnum::_2),
            security_options: Some(vec!["name=seccomp,profile=default".into(), "name=rootless".into()]),
            ..SystemInfo::default()
        };
        let facts = Facts::new(&info, &SystemVersion::default());
        assert!(facts.memory && facts.seccomp && facts.user_namespace && !facts.apparmor && !facts.pids);
        assert_eq!(facts.cgroup_version, 2);
        let warnings = warnings(&facts).join("\n");
        assert!(warnings.contains("live-restore") && warnings.contains("limit cpus") && !warnings.contains("limit memory"));
    }

    #[test]
    fn an_old_docker_is_refused() {
        let docker = Facts { version: "19.03".into(), ..Facts::default() };
        assert!(check_age(&docker, Some("1.40")).unwrap_err().to_string().contains("20.10"));
        assert!(check_age(&docker, Some("1.41")).is_ok());
        assert!(check_age(&Facts { podman: true, ..docker }, Some("1.40")).is_ok());
    }
}

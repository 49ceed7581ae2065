//! The request for a new session, which runs, sandboxes and one-shot executions build too, and the checks of its fields.

use std::collections::HashMap;

use serde::Deserialize;
use utoipa::ToSchema;

use super::environments;
use super::error::Problem;
use super::extract::optional_object;
use super::network::RequestedNetwork;
use super::secrets::{self, RequestedSecret};
use super::view::NetworkView;
use crate::ids::SandboxId;
use crate::kernels;
use crate::manager::{NewSession, SessionConfig, SessionService};
use crate::policy::{Ceilings, Limits};

/// The largest number of characters in a name or label.
const MAX_NAME: usize = 200;
/// The largest number of labels.
const MAX_LABELS: usize = 50;
/// The longest key of a request, bytes.
const MAX_KEY: usize = 200;
/// The largest size of one environment variable (`MAX_ARG_STRLEN` of Linux) and of all of them, in bytes. Linux accepts 2 MB
/// in all.
const MAX_VARIABLE: usize = 131_072;
const MAX_ENV: usize = 1 << 20;
/// The largest duration in seconds: ten years.
const MAX_SECONDS: u64 = 315_360_000;

/// The configuration of a new session. All fields are optional.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewSession, examples(json!({"kernel": "python", "name": "report", "limits": {"memory_mb": 1024}})))]
pub(super) struct Create {
    /// The id of a sandbox that exists, or of a session whose sandbox is used. Its kernel, limits and network are those of the
    /// sandbox, so that only names, environment, timeouts and labels can be given.
    pub sandbox: Option<String>,
    /// The name, an alias or the language of a kernel.
    #[schema(default = "python")]
    pub kernel: Option<String>,
    /// A name for people.
    #[schema(max_length = 200)]
    pub name: Option<String>,
    /// Environment variables of the kernel. They exist only in the sandbox and are not stored. A variable has at most 131070
    /// bytes including its name; all together have at most 1 MB.
    #[serde(default)]
    pub env: HashMap<String, String>,
    #[serde(default, deserialize_with = "optional_object")]
    pub limits: Option<RequestedLimits>,
    /// What code in the session reaches.
    #[schema(value_type = Option<NetworkView>, default = "none")]
    pub network: Option<RequestedNetwork>,
    /// The names of data mounts, which are read-only folders that the operator shares (`GET /v1/mounts`). The session sees them
    /// at `/mnt/NAME`.
    #[serde(default)]
    pub mounts: Vec<String>,
    /// At most 20 secrets by name, which code uses and cannot read.
    #[serde(default)]
    pub secrets: HashMap<String, RequestedSecret>,
    /// Packages that are installed first, as the package manager of the language names them. The first session with them waits for
    /// that; later ones start at once. The server must allow the network `packages`.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub packages: Vec<String>,
    /// More packages: the text of a `requirements.txt`.
    pub requirements: Option<String>,
    /// The lock of an environment instead, for exactly its packages.
    pub lock: Option<String>,
    /// The id of an environment (`POST /v1/environments`), whose packages the session sees.
    pub environment: Option<String>,
    /// The timeout of cells that have none of their own, in seconds.
    #[schema(default = 60, exclusive_minimum = 0, maximum = 315360000)]
    pub timeout_seconds: Option<f64>,
    /// The lifetime of the session in seconds. The default is no limit.
    #[schema(maximum = 315360000)]
    pub ttl_seconds: Option<u64>,
    /// The session ends after this many seconds without use. Running or changing cells, input, completion and access to files
    /// count as use; reading events and cells does not. The default is that of the server.
    #[schema(maximum = 315360000)]
    pub idle_timeout_seconds: Option<u64>,
    /// At most 50 labels. A key or a value has at most 200 characters.
    #[serde(default)]
    pub labels: HashMap<String, String>,
    /// Chosen by the client, at most 200 bytes. A retry with the same key and the same fields gets the session that was created, until that
    /// is deleted. Values of variables and secrets are not compared.
    #[schema(min_length = 1, max_length = 200)]
    pub key: Option<String>,
}

/// Limits of a new session. A limit that is absent has its default.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewLimits)]
pub(super) struct RequestedLimits {
    /// Memory of all processes of the session together, in MB. The default of Julia is 1024.
    #[schema(default = 512, minimum = 64, maximum = 16777216)]
    memory_mb: Option<u64>,
    /// The number of CPUs. Fractions are allowed.
    #[schema(default = 1, minimum = 0.01, maximum = 256)]
    cpus: Option<f64>,
    /// The number of processes and threads.
    #[schema(default = 256, minimum = 16, maximum = 65536)]
    pids: Option<u64>,
    /// The size of the workspace in MB.
    #[schema(default = 256, minimum = 1, maximum = 1048576)]
    disk_mb: Option<u64>,
    /// Output of one execution in MB. A message counts its content as the kernel writes it, plus 256 bytes. Text that is
    /// written in quick succession is joined into few messages.
    #[schema(default = 100, minimum = 1, maximum = 16384)]
    output_mb: Option<u64>,
}

impl RequestedLimits {
    /// Those that a one-shot execution names.
    pub fn of_execution(memory_mb: Option<u64>, cpus: Option<f64>) -> Self {
        Self { memory_mb, cpus, ..Self::default() }
    }

    fn over(&self, default: Limits) -> Limits {
        Limits {
            memory_mb: self.memory_mb.unwrap_or(default.memory_mb),
            cpus: self.cpus.unwrap_or(default.cpus),
            pids: self.pids.unwrap_or(default.pids),
            disk_mb: self.disk_mb.unwrap_or(default.disk_mb),
            output_mb: self.output_mb.unwrap_or(default.output_mb),
        }
    }
}

/// The default timeout of a cell in seconds.
pub(super) const DEFAULT_TIMEOUT: f64 = 60.0;

impl Create {
    /// Validates the request, and adds defaults. The key is left out.
    pub fn validate(self, sessions: &SessionService) -> Result<NewSession, Problem> {
        check_texts(self.name.as_deref(), &self.labels)?;
        check_key(self.key.as_deref())?;
        let has_network = self.network.is_some();
        let network = self.network.map(RequestedNetwork::policy).transpose()?.unwrap_or_default();
        check_env(&self.env)?;
        check_seconds("ttl_seconds", self.ttl_seconds)?;
        check_seconds("idle_timeout_seconds", self.idle_timeout_seconds)?;
        let ceilings = sessions.ceilings();
        let default_timeout = DEFAULT_TIMEOUT.min(ceilings.timeout_seconds as f64);
        let timeout_seconds = check_timeout(ceilings, self.timeout_seconds)?.or(Some(default_timeout));
        let sandbox = self.sandbox.as_deref().map(parse_sandbox).transpose()?;
        let in_sandbox = sandbox.is_some();
        let of_sandbox = [
            ("limits", self.limits.is_some()),
            ("network", has_network),
            ("mounts", !self.mounts.is_empty()),
            ("secrets", !self.secrets.is_empty()),
            ("packages", !self.packages.is_empty()),
            ("requirements", self.requirements.is_some()),
            ("lock", self.lock.is_some()),
            ("environment", self.environment.is_some()),
        ];
        if let Some((field, _)) = of_sandbox.into_iter().find(|(_, is_given)| in_sandbox && *is_given) {
            let detail = format!("`{field}` belongs to the sandbox; leave it out");
            return Err(Problem::unprocessable("bad_sandbox", detail).field(field));
        }
        let secrets = secrets::check(self.secrets, sessions.secrets(), &self.env, &network)?;
        let packages = environments::request(&self.packages, self.requirements.as_deref(), self.lock.as_deref())?;
        if packages.is_some() && self.environment.is_some() {
            let detail = "an environment has its packages already; leave out `packages`, `requirements` and `lock`";
            return Err(Problem::unprocessable("bad_packages", detail).field("environment"));
        }
        let kernel = self.kernel.unwrap_or_else(|| if in_sandbox { String::new() } else { "python".to_owned() });
        // An unknown kernel is refused when the session is created.
        let default_limits = kernels::find(&kernel).map(|kernel| sessions.default_limits(kernel)).unwrap_or_default();
        Ok(NewSession {
            kernel,
            sandbox,
            name: self.name,
            env: self.env.into_iter().collect(),
            packages,
            config: SessionConfig {
                secrets: secrets.iter().map(|secret| secret.description.clone()).collect(),
                limits: self.limits.unwrap_or_default().over(default_limits),
                network,
                mounts: self.mounts,
                environment: self.environment,
                timeout_seconds,
                ttl_seconds: self.ttl_seconds,
                idle_timeout_seconds: self.idle_timeout_seconds,
                labels: self.labels,
                job: None,
                one_shot: false,
            },
            secrets,
            key: None,
        })
    }
}

/// Ends what one request creates this many seconds after its time limit, in case its server ends meanwhile.
pub(super) fn bound_lifetime(new: &mut NewSession, sessions: &SessionService, grace: u64) {
    let lifetime = new.config.timeout_seconds.map_or(0, |seconds| seconds.ceil() as u64).saturating_add(grace);
    new.config.ttl_seconds = Some(lifetime.min(sessions.ceilings().lifetime_seconds.unwrap_or(u64::MAX)));
}

/// Checks the key of a request that may be repeated.
pub(super) fn check_key(key: Option<&str>) -> Result<(), Problem> {
    match key.is_none_or(|key| (1..=MAX_KEY).contains(&key.len())) {
        true => Ok(()),
        false => Err(Problem::unprocessable("bad_key", format!("a key has 1 to {MAX_KEY} bytes")).field("key")),
    }
}

/// Reads the id of a sandbox.
fn parse_sandbox(id: &str) -> Result<SandboxId, Problem> {
    let unknown = || Problem::not_found("no_such_sandbox", format!("there is no sandbox {id:?}")).field("sandbox");
    SandboxId::parse(id).ok_or_else(unknown)
}

/// Checks the limits of Linux for environment variables.
pub(super) fn check_env(env: &HashMap<String, String>) -> Result<(), Problem> {
    let bad = |detail: String| Err(Problem::unprocessable("bad_env", detail).field("env"));
    // A program gets NAME=VALUE and a NUL.
    let size = |(name, value): (&String, &String)| name.len() + value.len() + 2;
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return bad(format!("{:?} is not a valid name of a variable", name.chars().take(MAX_NAME).collect::<String>()));
    }
    if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
        return bad(format!("the value of {name:?} contains a NUL"));
    }
    if let Some((name, _)) = env.iter().find(|variable| size(*variable) > MAX_VARIABLE) {
        let name: String = name.chars().take(MAX_NAME).collect();
        return bad(format!("{name:?} is too large: a variable has at most {} bytes, including its name", MAX_VARIABLE - 2));
    }
    if env.iter().map(size).sum::<usize>() > MAX_ENV {
        return bad(format!("all variables together have at most {} KB; use files for larger data", MAX_ENV >> 10));
    }
    Ok(())
}

/// Bounds a duration, so that dates do not overflow.
pub(super) fn check_seconds(field: &'static str, seconds: Option<u64>) -> Result<(), Problem> {
    match seconds {
        Some(seconds) if seconds > MAX_SECONDS => {
            let detail = format!("{field} is at most {MAX_SECONDS}, which is ten years");
            Err(Problem::unprocessable("bad_timeout", detail).field(field))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_texts(name: Option<&str>, labels: &HashMap<String, String>) -> Result<(), Problem> {
    let too_long = |text: &str| text.chars().count() > MAX_NAME;
    if name.is_some_and(too_long) {
        let detail = format!("a name has at most {MAX_NAME} characters");
        return Err(Problem::unprocessable("bad_name", detail).field("name"));
    }
    if labels.len() > MAX_LABELS || labels.iter().any(|(key, value)| too_long(key) || too_long(value)) {
        let detail = format!("a session has at most {MAX_LABELS} labels of at most {MAX_NAME} characters");
        return Err(Problem::unprocessable("bad_labels", detail).field("labels"));
    }
    Ok(())
}

/// Checks the timeout of executions, which must be positive and below the ceiling of the server.
pub(super) fn check_timeout(ceilings: &Ceilings, seconds: Option<f64>) -> Result<Option<f64>, Problem> {
    match seconds {
        Some(seconds) if !(seconds > 0.0 && seconds <= MAX_SECONDS as f64) => {
            let detail =
                format!("a timeout must be a positive number of seconds, at most {MAX_SECONDS}, which is ten years");
            Err(Problem::unprocessable("bad_timeout", detail).field("timeout_seconds"))
        }
        seconds => {
            ceilings.check_timeout(seconds)?;
            Ok(seconds)
        }
    }
}

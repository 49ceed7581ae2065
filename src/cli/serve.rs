//! `cellkeep serve`: serves persistent sessions over HTTP.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use axum::http::Uri;
use clap::{Args, ValueEnum};

use super::ceilings::{self, CeilingArgs};
use super::egress::{self, EgressArgs};
use super::model::ModelArgs;
use super::options::SandboxOption;
use super::packages::{self, PackageRuleArgs};
use super::signals::Signals;
use super::{Exit, Failure, mounts, secrets};
use crate::chat::ModelSettings;
use crate::config::{ConfigFile, MountConfig, Paths, ServeConfig};
use crate::kernels;
use crate::manager::ServiceSettings;
use crate::policy::{DataMounts, Secret};
use crate::private_files;
use crate::server::{self, ServerSettings, Welcome};
use crate::store::Durability;

/// Serve persistent sessions over HTTP.
#[derive(Args)]
#[command(after_help = "\
The first start prints a link to the page with an admin token, which cannot be shown again. To create another:
  cellkeep token create NAME --scope admin
Sessions survive a stop of the server, even kill -9: the next start continues them where they were.
All settings can also be in cellkeep.toml, in the working directory or the data folder; see --print-config.")]
pub(super) struct ServeArgs {
    /// The address to listen on [default: 127.0.0.1:7788]
    #[arg(long, value_name = "ADDR:PORT", env = "CELLKEEP_LISTEN")]
    listen: Option<SocketAddr>,
    /// Another address, for clients of NeMo's local sandbox (/execute) and of Piston (/api/v2/execute), which send no token: on
    /// loopback, every program of this machine may run code there
    #[arg(long, value_name = "ADDR:PORT")]
    protocol_listen: Option<Vec<SocketAddr>>,
    /// Use this admin token instead of creating one. Other users of the machine can see it in the list of processes: better set
    /// CELLKEEP_TOKEN, or use --token-file
    #[arg(long, value_name = "TOKEN", env = "CELLKEEP_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Use the admin token in this file instead of creating one
    #[arg(long, value_name = "FILE", env = "CELLKEEP_TOKEN_FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The sandbox of sessions [default: auto]
    #[arg(long, value_enum, env = "CELLKEEP_SANDBOX")]
    sandbox: Option<SandboxOption>,
    /// Threads that handle requests and sessions [default: the CPUs that the server may use, at least 2]
    #[arg(long, value_name = "COUNT", value_parser = parse_workers, env = "CELLKEEP_WORKERS")]
    workers: Option<usize>,
    /// How many sessions may be alive at once [default: 100]
    #[arg(long, value_name = "COUNT", env = "CELLKEEP_MAX_SESSIONS")]
    max_sessions: Option<usize>,
    /// Idle seconds after which a session ends [default: 3600]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_IDLE_TIMEOUT")]
    idle_timeout: Option<u64>,
    /// Seconds for which an ended session stays readable [default: 86400]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_KEEP_ENDED")]
    keep_ended: Option<u64>,
    /// Seconds after a cell's end before its stream events are compacted [default: 3600]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_COMPACT_AFTER")]
    compact_after: Option<u64>,
    /// Megabytes for the outputs of all sessions; beyond, the sessions that ended first are deleted [default: 20480]
    #[arg(long, value_name = "MB", env = "CELLKEEP_MAX_DATA_MB")]
    max_data_mb: Option<u64>,
    /// What an acknowledged output survives: `normal` a killed server, `full` a power cut too, for one disk flush (fsync) for each
    /// group of commits [default: normal]
    #[arg(long, value_enum, env = "CELLKEEP_DURABILITY")]
    durability: Option<DurabilityOption>,
    /// Kernels to start ahead, and how many sessions of each, for example python=2,r=1
    #[arg(long, value_name = "KERNEL=COUNT,...", value_delimiter = ',', value_parser = parse_pool, env = "CELLKEEP_POOL")]
    pool: Option<Vec<(String, usize)>>,
    /// Rate limit of each principal in requests a second, with bursts of five times as many; 0 is unlimited [default: 2000]
    #[arg(long, value_name = "COUNT", env = "CELLKEEP_RATE_LIMIT")]
    rate_limit: Option<u32>,
    /// Serve /metrics without a token [default: false]
    #[arg(
        long, value_name = "BOOL", env = "CELLKEEP_OPEN_METRICS", num_args = 0..=1, require_equals = true,
        default_missing_value = "true"
    )]
    open_metrics: Option<bool>,
    /// Another accepted host name, for a server that listens on loopback behind a proxy
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Option<Vec<String>>,
    /// An origin (with scheme) whose pages may use this server
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    origins: Option<Vec<String>>,
    /// A folder that sessions may see at /mnt/NAME, read-only, if they ask for it by name
    #[arg(long = "mount", value_name = "NAME=FOLDER", value_parser = mounts::parse)]
    mounts: Vec<(String, MountConfig)>,
    #[command(flatten)]
    ceilings: CeilingArgs,
    #[command(flatten)]
    egress: EgressArgs,
    #[command(flatten)]
    packages: PackageRuleArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// End all sessions when the server stops, instead of keeping them for the next start
    #[arg(long)]
    end_sessions: bool,
    /// The configuration file [default: cellkeep.toml in the working directory, else in the data folder]
    #[arg(long, value_name = "FILE", env = "CELLKEEP_CONFIG")]
    config: Option<PathBuf>,
    /// Print the merged settings of flags, environment and file as a configuration file, and exit
    #[arg(long)]
    print_config: bool,
}

/// `--durability`.
#[derive(Clone, Copy, ValueEnum)]
enum DurabilityOption {
    Normal,
    Full,
}

impl From<DurabilityOption> for Durability {
    fn from(option: DurabilityOption) -> Self {
        match option {
            DurabilityOption::Normal => Self::Normal,
            DurabilityOption::Full => Self::Full,
        }
    }
}

/// The default rate limit of each principal, requests a second: more than one server answers on two cores.
const DEFAULT_RATE_LIMIT: u32 = 2000;
/// The most bytes that are read from the file of a token.
const MAX_TOKEN: u64 = 4096;
/// The most sessions of one kernel in the pool.
const MAX_POOL: usize = 1000;
/// The most worker threads. More than CPUs are of no use.
const MAX_WORKERS: usize = 1024;

fn parse_workers(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| format!("{text:?} is not a number of threads"))?;
    check_workers(count)
}

fn check_workers(count: usize) -> Result<usize, String> {
    match count {
        1..=MAX_WORKERS => Ok(count),
        _ => Err(format!("{count} workers are not between 1 and {MAX_WORKERS}")),
    }
}

/// Two at least: while one thread is busy with a large message, the other answers.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get).clamp(2, MAX_WORKERS)
}

fn parse_pool(text: &str) -> Result<(String, usize), String> {
    let (kernel, count) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form KERNEL=COUNT, for example python=2"))?;
    let count = count.parse().map_err(|_| format!("{count:?} is not a number of sessions"))?;
    check_pool(kernel, count)
}

fn check_pool(kernel: &str, count: usize) -> Result<(String, usize), String> {
    let kernel = kernels::find(kernel).map_err(|error| error.to_string())?;
    if count > MAX_POOL {
        return Err(format!("{count} sessions are more than the limit of {MAX_POOL}"));
    }
    Ok((kernel.name.clone(), count))
}

impl ServeArgs {
    /// Merges with the configuration file and the defaults; flags and environment win over the file.
    fn merged_over(&self, file: ServeConfig) -> ServeConfig {
        let defaults = ServiceSettings::default();
        let sandbox = self.sandbox.and_then(|option| option.to_possible_value()).map(|value| value.get_name().to_owned());
        let durability = self.durability.and_then(|option| option.to_possible_value());
        let durability = durability.map(|value| value.get_name().to_owned());
        let pool = self.pool.as_ref().map(|pool| pool.iter().cloned().collect());
        let idle_timeout = self.idle_timeout.or(file.idle_timeout);
        ServeConfig {
            listen: self.listen.or(file.listen).or(Some(SocketAddr::from(([127, 0, 0, 1], 7788)))),
            protocol_listen: self.protocol_listen.clone().or(file.protocol_listen).or(Some(Vec::new())),
            sandbox: sandbox.or(file.sandbox).or(Some("auto".to_owned())),
            workers: self.workers.or(file.workers).or_else(|| Some(default_workers())),
            max_sessions: self.max_sessions.or(file.max_sessions).or(Some(defaults.max_sessions)),
            idle_timeout: idle_timeout.or(Some(defaults.idle_timeout_seconds)),
            keep_ended: self.keep_ended.or(file.keep_ended).or(Some(defaults.keep_ended_seconds)),
            compact_after: self.compact_after.or(file.compact_after).or(Some(defaults.compact_after_seconds)),
            max_data_mb: self.max_data_mb.or(file.max_data_mb).or(Some(defaults.max_data_mb)),
            durability: durability.or(file.durability).or(Some("normal".to_owned())),
            pool: pool.or(file.pool).or(Some(BTreeMap::new())),
            rate_limit: self.rate_limit.or(file.rate_limit).or(Some(DEFAULT_RATE_LIMIT)),
            open_metrics: self.open_metrics.or(file.open_metrics).or(Some(false)),
            allow_hosts: self.hosts.clone().or(file.allow_hosts).or(Some(Vec::new())),
            allow_origins: self.origins.clone().or(file.allow_origins).or(Some(Vec::new())),
            egress: self.egress.merged_over(file.egress),
            packages: self.packages.merged_over(file.packages),
            ceilings: self.ceilings.merged_over(file.ceilings, &defaults.ceilings, idle_timeout),
        }
    }
}

impl ServeArgs {
    /// The number of worker threads, which must be known before anything else runs. A file that cannot be read is reported by
    /// [`serve`].
    pub fn workers(&self, paths: &Paths) -> usize {
        let file = ConfigFile::read(self.config.as_deref(), paths).unwrap_or_default();
        self.workers.or(file.serve.workers).filter(|count| check_workers(*count).is_ok()).unwrap_or_else(default_workers)
    }

    pub fn config_file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The token from the command line, the environment or a file. Warns if other users can see it.
    fn configured_token(&self) -> anyhow::Result<Option<String>> {
        let is_argument = |argument: OsString| argument.as_encoded_bytes().starts_with(b"--token=") || argument == "--token";
        if std::env::args_os().any(is_argument) {
            eprint_line!(
                "warning: every user of this machine can see the token in the list of processes; set CELLKEEP_TOKEN, or use \
                 --token-file"
            );
        }
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => self.token.clone(),
        };
        match token {
            Some(token) if token.trim().is_empty() => {
                bail!("the token is empty (--token, --token-file or CELLKEEP_TOKEN); leave it out to have one created")
            }
            token => Ok(token),
        }
    }
}

/// Reads a token without the white space around it.
fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read the token in {}", path.display()))?;
    if private_files::is_open_to_others(&file.metadata()?) {
        eprint_line!("warning: other users of this machine can read the token in {}; chmod 600 it", path.display());
    }
    let mut text = String::new();
    file.by_ref().take(MAX_TOKEN).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Refuses origins that no browser sends: origins are compared as text, and browsers serialise them in one form.
fn check_origin(origin: &str) -> anyhow::Result<()> {
    let parts = origin.parse::<Uri>().ok().map(Uri::into_parts);
    let is_origin = parts.is_some_and(|parts| {
        let path = parts.path_and_query.is_none_or(|path| path == "/");
        parts.scheme.is_some() && parts.authority.is_some() && path && !origin.ends_with('/')
    });
    if is_origin {
        Ok(())
    } else {
        bail!("{origin:?} is not an origin; write it like https://chat.example or http://localhost:3000")
    }
}

/// What sessions may ask for by name.
struct Shared {
    mounts: DataMounts,
    secrets: Vec<Secret>,
}

fn settings(
    config: ServeConfig,
    token: Option<String>,
    end_sessions: bool,
    model: Option<ModelSettings>,
    Shared { mounts, mut secrets }: Shared,
) -> anyhow::Result<ServerSettings> {
    let defaults = ServiceSettings::default();
    let sandbox = config.sandbox.unwrap_or_default();
    let sandbox = SandboxOption::from_str(&sandbox, true)
        .map_err(|_| anyhow!("{sandbox:?} is not a sandbox; use auto, docker or process"))?;
    let durability = config.durability.unwrap_or_default();
    let durability = DurabilityOption::from_str(&durability, true)
        .map_err(|_| anyhow!("{durability:?} is not a durability; use normal or full"))?;
    config.workers.map(check_workers).transpose().map_err(|error| anyhow!("workers: {error}"))?;
    let pool = config.pool.unwrap_or_default().into_iter();
    let pool = pool
        .map(|(kernel, count)| check_pool(&kernel, count))
        .collect::<Result<_, _>>()
        .map_err(|error| anyhow!("pool: {error}"))?;
    let origins = config.allow_origins.unwrap_or_default();
    origins.iter().try_for_each(|origin| check_origin(origin))?;
    let egress = egress::settings(config.egress, &secrets).map_err(|error| anyhow!("egress: {error}"))?;
    // Sessions do not ask for those of indexes.
    secrets.retain(|secret| egress.index_secrets.iter().all(|one| one.description.name != secret.description.name));
    Ok(ServerSettings {
        listen: config.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7788))),
        protocol_listen: config.protocol_listen.unwrap_or_default(),
        token,
        hosts: config.allow_hosts.unwrap_or_default(),
        origins,
        rate_limit: config.rate_limit.unwrap_or(DEFAULT_RATE_LIMIT),
        open_metrics: config.open_metrics.unwrap_or(false),
        end_sessions,
        model,
        service: ServiceSettings {
            sandbox: sandbox.choice(),
            max_sessions: config.max_sessions.unwrap_or(defaults.max_sessions),
            idle_timeout_seconds: config.idle_timeout.unwrap_or(defaults.idle_timeout_seconds),
            keep_ended_seconds: config.keep_ended.unwrap_or(defaults.keep_ended_seconds),
            compact_after_seconds: config.compact_after.unwrap_or(defaults.compact_after_seconds),
            max_data_mb: config.max_data_mb.unwrap_or(defaults.max_data_mb),
            durability: durability.into(),
            ceilings: ceilings::ceilings(config.ceilings, defaults.ceilings.clone())
                .map_err(|error| anyhow!("ceilings: {error}"))?,
            egress,
            packages: packages::rules(config.packages),
            pool,
            mounts,
            secrets,
            ..defaults
        },
    })
}

pub(super) async fn serve(paths: Paths, args: ServeArgs) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let file = ConfigFile::read(args.config.as_deref(), &paths).map_err(Failure::usage)?;
    let config = args.merged_over(file.serve);
    let model = args.model.merged_over(file.model);
    let mut mounts = file.mounts;
    mounts.extend(args.mounts.iter().cloned());
    if args.print_config {
        let printed = ConfigFile { serve: config, model, kernels: file.kernels, mounts, secrets: file.secrets };
        print_line!("{}", printed.print().trim_end());
        return Ok(Exit::Ok);
    }
    let mounts = mounts::open(mounts, &paths).map_err(Failure::usage)?;
    let secrets = secrets::open(file.secrets).map_err(Failure::usage)?;
    let token = args.configured_token().map_err(Failure::usage)?;
    let end_sessions = args.end_sessions;
    let model = args.model.settings(model).map_err(Failure::usage)?;
    let settings = settings(config, token, end_sessions, model, Shared { mounts, secrets }).map_err(Failure::usage)?;
    let stop = async move {
        signals.any().await;
        if end_sessions {
            eprint_line!("stopping and ending all sessions");
        } else {
            eprint_line!("stopping; sessions stay alive, and the next `cellkeep serve` continues them");
        }
    };
    server::serve(&paths, settings, print_address, stop).await.map_err(Failure::usage)?;
    Ok(Exit::Ok)
}

fn print_address(Welcome { address, protocols, new_token }: Welcome) {
    match new_token {
        Some(token) => {
            print_line!("cellkeep serves http://{address}/#token={token}\nThe token is {token}; it cannot be shown again.")
        }
        None => print_line!("cellkeep serves http://{address}"),
    }
    for (address, is_open) in protocols {
        let who = if is_open { "every program of this machine may run code there" } else { "with a token in the URL" };
        print_line!("/execute of NeMo and Piston's /api/v2: http://{address} ({who})");
    }
}

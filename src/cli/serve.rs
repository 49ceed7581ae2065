//! `cellkeep serve`: sessions over HTTP, which outlive this process.

use std::net::SocketAddr;

use clap::Args;

use super::options::SandboxOption;
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels;
use crate::manager::KeeperSettings;
use crate::server::{self, ServerSettings, Welcome};

/// Keep sessions, and serve them over HTTP.
#[derive(Args)]
#[command(after_help = "\
The first start prints a link with a token that may do everything; it is shown only this once. Without it:
  cellkeep token create NAME          make another
Sessions live on when the server stops, also after kill -9: start it again, and they go on where they were.")]
pub(super) struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7788", env = "CELLKEEP_LISTEN")]
    listen: SocketAddr,
    /// A token that may do everything, instead of one that is made
    #[arg(long, value_name = "TOKEN", env = "CELLKEEP_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Which sandbox sessions get
    #[arg(long, value_enum, default_value_t = SandboxOption::Auto, env = "CELLKEEP_SANDBOX")]
    sandbox: SandboxOption,
    /// How many sessions may live at once
    #[arg(long, value_name = "COUNT", default_value_t = KeeperSettings::default().max_sessions, env = "CELLKEEP_MAX_SESSIONS")]
    max_sessions: usize,
    /// Seconds without use after which a session ends
    #[arg(long, value_name = "SECS", default_value_t = KeeperSettings::default().idle_timeout_seconds)]
    idle_timeout: u64,
    /// Seconds for which an ended session can still be read
    #[arg(long, value_name = "SECS", default_value_t = KeeperSettings::default().keep_ended_seconds)]
    keep_ended: u64,
    /// Kernels to keep ready, and how many sessions of each, as python=2,r=1
    #[arg(long, value_name = "KERNEL=COUNT,...", value_delimiter = ',', value_parser = parse_pool, env = "CELLKEEP_POOL")]
    pool: Vec<(String, usize)>,
    /// A name of this server beside localhost, when it listens on loopback behind a proxy
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<String>,
    /// An origin whose pages may use this server, as https://chat.example
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    origins: Vec<String>,
}

/// The most sessions of one kernel that are made ahead.
const MAX_POOL: usize = 1000;

fn parse_pool(text: &str) -> Result<(String, usize), String> {
    let (kernel, count) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KERNEL=COUNT, as python=2"))?;
    let kernel = kernels::find(kernel).map_err(|error| error.to_string())?;
    match count.parse() {
        Ok(count) if count <= MAX_POOL => Ok((kernel.name.clone(), count)),
        _ => Err(format!("{count:?} is no number of sessions from 0 to {MAX_POOL}")),
    }
}

pub(super) async fn serve(paths: Paths, args: ServeArgs) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let settings = ServerSettings {
        listen: args.listen,
        token: args.token,
        hosts: args.hosts,
        origins: args.origins,
        keeper: KeeperSettings {
            sandbox: args.sandbox.choice(),
            max_sessions: args.max_sessions,
            idle_timeout_seconds: args.idle_timeout,
            keep_ended_seconds: args.keep_ended,
            pool: args.pool,
            ..KeeperSettings::default()
        },
    };
    let stop = async move {
        signals.any().await;
        say!("stopping; sessions live on, and the next `cellkeep serve` takes them up");
    };
    server::serve(&paths, settings, greet, stop).await.map_err(Failure::usage)?;
    Ok(Exit::Ok)
}

fn greet(Welcome { address, new_token }: Welcome) {
    match new_token {
        Some(token) => {
            tell!("cellkeep serves http://{address}/v1/kernels?token={token}\nThe token is shown only this once.")
        }
        None => tell!("cellkeep serves http://{address}"),
    }
}

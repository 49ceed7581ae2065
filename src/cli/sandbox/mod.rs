//! `cellkeep sandbox`: the sandboxes of a server, from the command line.

mod client;
mod process;

use std::collections::BTreeMap;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use self::client::{RequestError, ServerArgs, ServerClient};
use self::process::RemoteProcess;
use super::attend::{attend, exit_of, has_terminal, window_size};
use super::options::{parse_network, parse_seconds, parse_variable};
use super::packages::PackageArgs;
use super::signals::Signals;
use super::{Exit, Failure};
use crate::policy::{NetworkPolicy, parse_size};

/// The length of an id, a UUID as text.
const ID_LENGTH: usize = 36;

/// Create, list, use and end sandboxes of a server (`cellkeep serve`)
#[derive(Args)]
#[command(after_help = "\
Examples:
  export CELLKEEP_TOKEN=$(cellkeep token create me)
  cellkeep sandbox create --name work --packages polars
  cellkeep sandbox exec work -- python3 -c 'import polars; print(polars.__version__)'
  cellkeep sandbox exec work                       an interactive bash
  tar c src | cellkeep sandbox exec work -- tar x
  cellkeep sandbox delete work")]
pub(super) struct SandboxCommandArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: SandboxCommand,
}

#[derive(Subcommand)]
enum SandboxCommand {
    /// Create a sandbox and print its id
    Create(Box<CreateArgs>),
    /// List the sandboxes that were created by themselves
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print everything about a sandbox as JSON
    Show {
        #[command(flatten)]
        sandbox: Named,
    },
    /// Run a command in a sandbox, with this program's input and output; without a command, an interactive bash
    ///
    /// The command goes on while the server restarts, and its output is complete. The exit code is the command's.
    Exec(ExecArgs),
    /// Change what code in a sandbox reaches: none, packages, or hosts with commas between them
    Network {
        #[command(flatten)]
        sandbox: Named,
        #[arg(value_parser = parse_network)]
        policy: NetworkPolicy,
    },
    /// End sandboxes with their sessions, processes and files
    Delete {
        /// Their ids, the beginnings of ids, or names
        #[arg(required = true, value_name = "SANDBOX")]
        sandboxes: Vec<String>,
    },
}

#[derive(Args)]
struct Named {
    /// Its id, the beginning of the id, or its name
    #[arg(value_name = "SANDBOX")]
    name: String,
}

#[derive(Args)]
struct CreateArgs {
    /// The kernel whose environment it has
    #[arg(short, long, default_value = "python")]
    kernel: String,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// What code reaches: none, packages, hosts with commas between them, or open
    #[arg(long, default_value = "none", value_name = "POLICY", value_parser = parse_network)]
    network: NetworkPolicy,
    #[command(flatten)]
    packages: PackageArgs,
    /// Set an environment variable; NAME alone copies its value from here
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Show it a folder that the operator of the server shares
    #[arg(long = "mount", value_name = "NAME")]
    mounts: Vec<String>,
    /// Let code use a secret that the operator of the server has declared
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// Memory limit [default: the server's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// CPU limit; fractions are allowed
    #[arg(long, value_name = "N")]
    cpus: Option<f64>,
    /// Limit of processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u64>,
    /// Size of the workspace
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
    /// It ends after this many seconds [default: never]
    #[arg(long, value_name = "SECS")]
    ttl: Option<u64>,
    /// It ends after this many seconds without use [default: the server's]
    #[arg(long, value_name = "SECS")]
    idle_timeout: Option<u64>,
    /// Print everything about it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ExecArgs {
    #[command(flatten)]
    sandbox: Named,
    /// A command line for bash, instead of a command
    #[arg(short = 'c', long = "shell", value_name = "LINE", conflicts_with = "command")]
    line: Option<String>,
    /// The working folder in the workspace
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Set an environment variable; NAME alone copies its value from here
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Stop the command after this many seconds
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<std::time::Duration>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: SandboxCommandArgs) -> Result<Exit, Failure> {
    let client = ServerClient::new(&args.server)?;
    match args.command {
        SandboxCommand::Create(create) => create_sandbox(&client, *create).await?,
        SandboxCommand::List { json } => list(&client, json).await?,
        SandboxCommand::Show { sandbox } => {
            let id = find(&client, &sandbox.name).await?;
            print_json(&client.json(Method::GET, &format!("/v1/sandboxes/{id}"), None).await?);
        }
        SandboxCommand::Exec(exec) => return exec_in(client, exec).await,
        SandboxCommand::Network { sandbox, policy } => {
            let id = find(&client, &sandbox.name).await?;
            let change = json!({"network": network(&policy)});
            client.json(Method::PATCH, &format!("/v1/sandboxes/{id}"), Some(&change)).await?;
        }
        SandboxCommand::Delete { sandboxes } => {
            for name in sandboxes {
                let id = find(&client, &name).await?;
                client.json(Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await?;
                print_line!("{id}");
            }
        }
    }
    Ok(Exit::Ok)
}

async fn create_sandbox(client: &ServerClient, args: CreateArgs) -> Result<(), Failure> {
    let as_json = args.json;
    let request = args.request().map_err(Failure::usage)?;
    let created = client.json(Method::POST, "/v1/sandboxes", Some(&request)).await?;
    match as_json {
        true => print_json(&created),
        false => print_line!("{}", created["id"].as_str().unwrap_or_default()),
    }
    Ok(())
}

impl CreateArgs {
    fn request(self) -> anyhow::Result<Value> {
        let (packages, requirements, lock) = self.packages.texts()?;
        let limits = json!({"memory_mb": self.memory, "cpus": self.cpus, "pids": self.pids, "disk_mb": self.disk});
        let secrets: BTreeMap<String, Value> = self.secrets.into_iter().map(|name| (name, json!({}))).collect();
        Ok(json!({
            "kernel": self.kernel, "name": self.name, "network": network(&self.network), "packages": packages,
            "requirements": requirements, "lock": lock,
            "env": self.env.into_iter().collect::<BTreeMap<_, _>>(), "mounts": self.mounts, "secrets": secrets, "limits": limits,
            "ttl_seconds": self.ttl, "idle_timeout_seconds": self.idle_timeout,
        }))
    }
}

/// A policy as the API has it.
fn network(policy: &NetworkPolicy) -> Value {
    match policy {
        NetworkPolicy::None => json!("none"),
        NetworkPolicy::Packages => json!("packages"),
        NetworkPolicy::Open => json!("open"),
        NetworkPolicy::Allow(hosts) => json!({"allow": hosts.iter().map(ToString::to_string).collect::<Vec<_>>()}),
    }
}

async fn exec_in(client: ServerClient, args: ExecArgs) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let id = find(&client, &args.sandbox.name).await?;
    let terminal = has_terminal().then(window_size);
    let mut new = json!({
        "env": args.env.into_iter().collect::<BTreeMap<_, _>>(), "cwd": args.cwd, "stdin": true,
        "pty": terminal.map(|size| json!({"rows": size.rows, "cols": size.cols})),
        "timeout_seconds": args.timeout.map(|limit| limit.as_secs_f64()),
    });
    match (args.line, args.command.is_empty()) {
        (Some(line), _) => new["shell"] = json!(line),
        (None, true) => new["command"] = json!(["/bin/bash"]),
        (None, false) => new["command"] = json!(args.command),
    }
    let process = RemoteProcess::start(client, &id, new).await?;
    let exit = attend(process.clone(), process.output(), terminal.is_some(), &mut signals).await;
    match exit {
        Some(_) => process.delete().await,
        None => eprint_line!("cellkeep: the sandbox has ended"),
    }
    Ok(exit_of(exit))
}

async fn all(client: &ServerClient) -> Result<Vec<Value>, RequestError> {
    let mut answer = client.json(Method::GET, "/v1/sandboxes", None).await?;
    Ok(answer["sandboxes"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// The id of the sandbox that is meant.
async fn find(client: &ServerClient, name: &str) -> Result<String, Failure> {
    // A whole id, which may be that of a session: the list does not have those.
    let is_id = name.len() == ID_LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if is_id {
        return Ok(name.to_owned());
    }
    let sandboxes = all(client).await?;
    let ids = |is_meant: &dyn Fn(&Value) -> bool| -> Vec<String> {
        sandboxes.iter().filter(|one| is_meant(one)).filter_map(|one| one["id"].as_str().map(str::to_owned)).collect()
    };
    let mut found = ids(&|one| one["name"] == name);
    if found.is_empty() && !name.is_empty() {
        found = ids(&|one| one["id"].as_str().is_some_and(|id| id.starts_with(name)));
    }
    match (found.pop(), found.is_empty()) {
        (Some(id), true) => Ok(id),
        (Some(_), false) => {
            Err(Failure::usage(anyhow!("{name:?} means several sandboxes; give an id (`cellkeep sandbox list`)")))
        }
        (None, _) => Err(Failure::usage(anyhow!("there is no sandbox {name:?} (`cellkeep sandbox list` has all of yours)"))),
    }
}

async fn list(client: &ServerClient, as_json: bool) -> Result<(), Failure> {
    let sandboxes = all(client).await?;
    if as_json {
        print_json(&json!({"sandboxes": sandboxes}));
        return Ok(());
    }
    if sandboxes.is_empty() {
        print_line!("there are no sandboxes; `cellkeep sandbox create` makes one");
    }
    for one in &sandboxes {
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let network = one["network"].as_str().map_or_else(|| one["network"]["allow"].to_string(), str::to_owned);
        let sessions = one["sessions"].as_array().map_or(0, Vec::len);
        let limits = format!("{} MB, {} CPU", one["limits"]["memory_mb"], one["limits"]["cpus"]);
        print_line!(
            "{}  {:<16} {:<14} network {network}, {limits}, sessions: {sessions}, used {}",
            text("id"),
            text("name"),
            text("kernel"),
            text("last_active_at")
        );
    }
    Ok(())
}

fn print_json(value: &Value) {
    print_line!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

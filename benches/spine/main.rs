//! What Cellkeep costs, against the same kernel without it: one run, one machine, one table.
//!
//! ```text
//! cargo bench --bench spine                  everything
//! cargo bench --bench spine -- round start   some of: round, start, memory, flood, cells, arrival, pool, server,
//!                                            packages, proxy, notebooks
//! ```
//!
//! Ours and the peers' measurements alternate in small blocks, so that whatever else this machine does hits both. The peers
//! (jupyter_client, pyzmq, nbclient, papermill, nbconvert, `docker run`) run in `benches/peers/*.py`, on the very environment and launcher that
//! our sandboxes use. `cellkeep serve` and jupyter_server are asked by the same client, in `benches/spine/serve`. The table is printed, and written to `target/bench/latest.json` for machines.

mod flood;
mod memory;
mod notebooks;
mod packages;
mod peer;
mod proxy;
mod round_trip;
mod serve;
mod start;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use cellkeep::config::Paths;
use cellkeep::kernels::{self, KernelSpec};
use cellkeep::manager::{Manager, SandboxChoice, Session, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::sandbox::SandboxKind;
use cellkeep::session::{EventBody, ExecutionStatus, NewCell};

use self::table::Table;

/// Where everything is that is measured.
struct Lab {
    paths: Paths,
    manager: Manager,
    kernel: &'static KernelSpec,
    /// The kernel's environment on this machine, which sandboxes see as `/opt/kernel`.
    environment: PathBuf,
    /// A Python that has the peers.
    python: PathBuf,
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |section: &str| asked.is_empty() || asked.iter().any(|name| name == section);
    // As the command line has it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let lab = Lab::find()?;
    let mut table = Table::default();
    let began = std::time::Instant::now();
    runtime.block_on(async {
        if wants("round") {
            table.section("Execute `1`, from the call to its reply and idle", round_trip::measure(&lab).await);
        }
        if wants("start") {
            table.section("From nothing to the result of `1`", start::measure(&lab).await);
        }
        if wants("memory") {
            table.section("Private memory of the agent (process sandbox)", memory::measure(&lab).await);
        }
        if wants("packages") {
            table.section("Packages, from the index and installed", packages::measure(&lab).await);
        }
        if wants("proxy") {
            table.section("The network of a sandbox, through the proxy", proxy::measure(&lab).await);
        }
        if wants("flood") {
            table.section("A cell with 60,000 flushed 1 KB writes, and one with a 50 MB output", flood::measure(&lab).await);
        }
    });
    if wants("cells") {
        table.section("Execute `1` over HTTP, from the request to the cell's end", serve::cells::measure(&lab));
    }
    if wants("arrival") {
        table.section("A cell that prints 50 MB, over HTTP", serve::arrival::measure(&lab));
    }
    if wants("pool") {
        table.section("A session from the warm pool, over HTTP", serve::pool::measure(&lab));
    }
    if wants("oneshot") {
        table.section("Code that runs once (POST /v1/execute), on a warm pool", serve::one_shot::measure(&lab));
    }
    if wants("server") {
        table.section("The server, from its start", serve::start::measure(&lab));
    }
    if wants("notebooks") {
        table.section("Notebooks, from file to file", notebooks::measure(&lab));
    }
    print!("{table}");
    println!("\nTaken in {:.0} s on {}.", began.elapsed().as_secs_f64(), machine());
    let target = project().join("target/bench/latest.json");
    table.write(&target, &machine()).with_context(|| format!("cannot write {}", target.display()))?;
    println!("Also in {}.", target.display());
    ensure!(!table.has_failures(), "some of it could not be measured");
    Ok(())
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    format!(
        "{count} x {}, Linux {}, load {load}",
        cpu.unwrap_or("unknown CPU".into()),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

impl Lab {
    fn find() -> anyhow::Result<Self> {
        let paths = Paths::from_environment();
        let kernel = kernels::find("python")?;
        let environment = kernels::environment(&paths, kernel).context("run: cellkeep kernels install python")?;
        let python = project().join("target/test-venv/bin/python");
        ensure!(python.exists(), "{} is missing; run: sh scripts/setup-test.sh", python.display());
        Ok(Self { manager: Manager::new(paths.clone()), paths, kernel, environment, python })
    }

    /// A session with the limits that everybody gets.
    async fn session(&self, kind: SandboxKind) -> anyhow::Result<Session> {
        self.session_with(kind, Limits::default()).await
    }

    async fn session_with(&self, kind: SandboxKind, limits: Limits) -> anyhow::Result<Session> {
        let spec = SessionSpec {
            kernel: self.kernel.clone(),
            sandbox: SandboxChoice::Only(kind),
            limits,
            network: NetworkPolicy::None,
            env: Vec::new(),
            mounts: Vec::new(),
            secrets: Vec::new(),
            package_set: None,
        };
        Ok(self.manager.create(spec).await?)
    }
}

/// Runs code to its end; gives the text that it printed. An error unless the run ends well.
async fn run(session: &mut Session, code: &str) -> anyhow::Result<String> {
    session.handle.add_cell(NewCell { source: code.to_owned(), run: true, ..NewCell::default() }).await?;
    let mut printed = String::new();
    while let Some(event) = session.events.recv().await {
        match event.body {
            EventBody::Message { msg_type, message } if msg_type == "stream" => {
                printed.push_str(message.content_value()["text"].as_str().unwrap_or_default());
            }
            EventBody::Finished(result) => {
                ensure!(result.status == ExecutionStatus::Ok, "the cell ended with {:?}: {:?}", result.status, result.error);
                return Ok(printed);
            }
            body => body.notice().into_iter().for_each(|text| eprintln!("  notice: {text}")),
        }
    }
    anyhow::bail!("the session ended without a word")
}

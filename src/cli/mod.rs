//! The command line.

#[macro_use]
mod print;

mod added_kernels;
mod attend;
mod audit;
mod ceilings;
mod chromium;
mod derived_images;
mod doctor;
mod egress;
mod exec;
mod exec_report;
mod export;
mod images;
mod kernels;
mod model;
mod mounts;
mod nbval;
mod notebook_file;
mod options;
mod packages;
mod run;
mod sandbox;
mod secrets;
mod serve;
mod shell;
mod signals;
mod test;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Paths;

/// The outcome of a command; each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Ok,
    CellFailed,
    Usage,
    NoSandbox,
    TimedOut,
    Interrupted,
    KernelDied,
    /// That of a command in a sandbox.
    Command(u8),
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::CellFailed => 1,
            Self::Usage => 2,
            Self::NoSandbox => 3,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
            Self::KernelDied => 138,
            Self::Command(code) => code,
        }
    }
}

/// Run Jupyter notebooks and code on real kernels, each in a locked-down sandbox.
#[derive(Parser)]
#[command(
    name = "cellkeep",
    version,
    max_term_width = 100,
    after_help = "\
First steps:
  cellkeep doctor                     check this machine, and show how to fix what does not work
  cellkeep kernels install python     install a kernel for the process sandbox
  cellkeep exec -c 'print(6*7)'       run code
  cellkeep run notebook.ipynb         run a notebook; writes notebook.out.ipynb
  cellkeep export notebook.ipynb      export a notebook to one HTML file that works offline
  cellkeep serve                      serve persistent sessions over HTTP"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The data folder: kernels, sandboxes, the journal [default: /var/lib/cellkeep for root, else ~/.local/share/cellkeep]
    #[arg(long, global = true, env = "CELLKEEP_DATA", value_name = "DIR")]
    data: Option<std::path::PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run notebooks and write them with their outputs
    Run(Box<run::RunArgs>),
    /// Run notebooks and compare their outputs with the stored ones
    Test(Box<test::TestArgs>),
    /// Export notebooks to HTML, markdown, scripts, PDF or notebooks
    Export(export::ExportArgs),
    /// Run code and print its output
    Exec(Box<exec::ExecArgs>),
    /// Serve persistent sessions over HTTP
    Serve(Box<serve::ServeArgs>),
    /// Create, list, use and end sandboxes of a server
    Sandbox(sandbox::SandboxCommandArgs),
    /// List or install kernels for the process sandbox
    #[command(subcommand)]
    Kernels(kernels::KernelsCommand),
    /// List or build container images for the docker sandbox
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// List, export and remove installed packages
    #[command(subcommand)]
    Packages(packages::PackagesCommand),
    /// Check what works on this machine, and show how to fix what does not
    Doctor,
    /// Print and check the audit log of a server
    Audit(audit::AuditArgs),
    /// Create, list and revoke access tokens of a server
    #[command(subcommand)]
    Token(token::TokenCommand),
}

/// Threads of a command other than `serve`: it drives a few kernels, and each thread delays its start.
const ONE_SHOT_WORKERS: usize = 2;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging();
    let paths = cli.data.as_deref().map_or_else(Paths::from_environment, Paths::new);
    if !matches!(cli.command, Command::Export(_) | Command::Audit(_) | Command::Token(_) | Command::Sandbox(_)) {
        let config = match &cli.command {
            Command::Serve(args) => args.config_file(),
            _ => None,
        };
        added_kernels::load(&paths, config);
    }
    let workers = match &cli.command {
        Command::Serve(args) => args.workers(&paths),
        _ => ONE_SHOT_WORKERS,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprint_line!("error: cannot start: {error}");
            return ExitCode::from(Exit::Usage.code());
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => Box::pin(run::run(paths, *args)).await,
            Command::Test(args) => Box::pin(test::test(paths, *args)).await,
            Command::Export(args) => export::run(args).await,
            Command::Exec(args) => Box::pin(exec::exec(paths, *args)).await,
            Command::Kernels(command) => kernels::run(&paths, command).await,
            Command::Images(command) => images::run(&paths, command).await,
            Command::Packages(command) => packages::run(&paths, command),
            Command::Doctor => doctor::run(&paths).await,
            Command::Serve(args) => serve::serve(paths, *args).await,
            Command::Sandbox(args) => sandbox::run(args).await,
            Command::Audit(args) => audit::run(&paths, &args),
            Command::Token(command) => token::run(&paths, command).await,
        }
    });
    // A thread that is blocked reading the terminal must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(Exit::Ok) if let Some(failure) = print::write_error() => {
            eprint_line!("error: {failure}");
            ExitCode::from(Exit::CellFailed.code())
        }
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            eprint_line!("error: {}", print::explain(&failure.error));
            ExitCode::from(failure.exit.code())
        }
    }
}

/// An error and the exit code of the command.
struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }

    fn no_sandbox(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::NoSandbox, error: error.into() }
    }
}

/// Reads `CELLKEEP_LOG` (filter: `info`, `debug`, `cellkeep=trace`) and `CELLKEEP_LOG_FORMAT` (`json`, else text).
fn init_logging() {
    use tracing_subscriber::EnvFilter;
    let mut filter = EnvFilter::try_from_env("CELLKEEP_LOG").unwrap_or_else(|_| EnvFilter::new("warn,bollard=info"));
    // A notebook can make the parser of HTML report hundreds of thousands of errors.
    if let Ok(silent) = "html5ever=off".parse() {
        filter = filter.add_directive(silent);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var("CELLKEEP_LOG_FORMAT").as_deref() {
        Ok("json") => log.json().init(),
        _ => log.without_time().init(),
    }
}

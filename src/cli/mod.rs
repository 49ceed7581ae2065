//! The command line.

#[macro_use]
mod print;

mod chromium;
mod compare;
mod doctor;
mod exec;
mod export;
mod images;
mod kernels;
mod model;
mod notebook_file;
mod options;
mod run;
mod serve;
mod signals;
mod test;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Paths;

/// How a command ended, as its exit code tells scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Ok,
    CellFailed,
    Usage,
    NoSandbox,
    TimedOut,
    Interrupted,
    KernelDied,
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
  cellkeep doctor                     what works on this machine, and how to mend what does not
  cellkeep kernels install python     get a kernel for the process sandbox
  cellkeep exec -c 'print(6*7)'       run code
  cellkeep run notebook.ipynb         run a notebook; writes notebook.out.ipynb
  cellkeep export notebook.ipynb      make a page of a notebook that needs no network
  cellkeep serve                      keep sessions, and serve them over HTTP"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Where kernels and sandboxes are kept [default: /var/lib/cellkeep for root, else ~/.local/share/cellkeep]
    #[arg(long, global = true, env = "CELLKEEP_DATA", value_name = "DIR")]
    data: Option<std::path::PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run notebooks and write them with their outputs
    Run(Box<run::RunArgs>),
    /// Run notebooks and compare their outputs with the stored ones
    Test(Box<test::TestArgs>),
    /// Make pages, markdown, scripts, PDF or plain notebooks of notebooks
    Export(export::ExportArgs),
    /// Run code and print what it prints
    Exec(exec::ExecArgs),
    /// Keep sessions, and serve them over HTTP
    Serve(serve::ServeArgs),
    /// Show or install kernels for the process sandbox
    #[command(subcommand)]
    Kernels(kernels::KernelsCommand),
    /// Show or build container images for the docker sandbox
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Show what is usable on this machine, and how to mend what is not
    Doctor,
    /// Make, list and revoke tokens of a server
    #[command(subcommand)]
    Token(token::TokenCommand),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging();
    let paths = cli.data.as_deref().map_or_else(Paths::from_environment, Paths::new);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("error: cannot start: {error}");
            return ExitCode::from(Exit::Usage.code());
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => Box::pin(run::run(paths, *args)).await,
            Command::Test(args) => Box::pin(test::test(paths, *args)).await,
            Command::Export(args) => export::run(args).await,
            Command::Exec(args) => exec::exec(paths, args).await,
            Command::Kernels(command) => kernels::run(&paths, command).await,
            Command::Images(command) => images::run(command).await,
            Command::Doctor => doctor::run(&paths).await,
            Command::Serve(args) => serve::serve(paths, args).await,
            Command::Token(command) => token::run(&paths, command).await,
        }
    });
    // A blocked read of the terminal must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(Exit::Ok) if let Some(failure) = print::failure() => {
            say!("error: {failure}");
            ExitCode::from(Exit::CellFailed.code())
        }
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            say!("error: {}", print::explain(&failure.error));
            ExitCode::from(failure.exit.code())
        }
    }
}

/// An error with the exit code it means.
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

/// `CELLKEEP_LOG` says what is logged (`info`, `debug`, `cellkeep=trace`), `CELLKEEP_LOG_FORMAT=json` how.
fn init_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("CELLKEEP_LOG").unwrap_or_else(|_| EnvFilter::new("warn,bollard=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var("CELLKEEP_LOG_FORMAT").as_deref() {
        Ok("json") => log.json().init(),
        _ => log.without_time().init(),
    }
}

//! `cellkeep kernels`: the environments of the process sandbox.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels::{self, Kernel, Status};
use crate::sandbox::process;

/// Show or install kernels for the process sandbox.
#[derive(Subcommand)]
pub(super) enum KernelsCommand {
    /// Show the kernels there are and which are installed
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Install kernels; does nothing where they are up to date
    Install {
        /// python, r, julia, deno, bash
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(super) fn run(paths: &Paths, command: KernelsCommand) -> Result<Exit, Failure> {
    match command {
        KernelsCommand::List { json } => {
            list(paths, json);
            Ok(Exit::Ok)
        }
        KernelsCommand::Install { names } => {
            let kernels = names.iter().map(|name| kernels::find(name)).collect::<Result<Vec<_>, _>>();
            for kernel in kernels.map_err(Failure::usage)? {
                let installed = install(paths, kernel).with_context(|| format!("cannot install {}", kernel.name));
                installed.map_err(|error| Failure { exit: Exit::CellFailed, error })?;
            }
            Ok(Exit::Ok)
        }
    }
}

pub(super) fn state_name(status: Status) -> &'static str {
    match status {
        Status::Ready => "ready",
        Status::Stale => "stale",
        Status::Missing => "missing",
    }
}

/// How a kernel stands in the process sandbox, and the command that mends it.
pub(super) fn state_in_words(kernel: &Kernel, status: Status) -> String {
    match status {
        Status::Ready => "ready".to_owned(),
        Status::Stale => format!("from another version; {}", process::how_to_install(kernel)),
        Status::Missing => format!("not installed; {}", process::how_to_install(kernel)),
    }
}

fn list(paths: &Paths, as_json: bool) {
    if as_json {
        let all: Vec<_> = kernels::all()
            .iter()
            .map(|kernel| {
                serde_json::json!({
                    "name": kernel.name, "display_name": kernel.display_name, "language": kernel.language,
                    "process": state_name(kernels::status(paths, kernel)),
                })
            })
            .collect();
        tell!("{}", serde_json::Value::from(all));
        return;
    }
    tell!("{:<8} {:<24} {:<10} PROCESS SANDBOX", "NAME", "KERNEL", "LANGUAGE");
    for kernel in kernels::all() {
        let state = state_in_words(kernel, kernels::status(paths, kernel));
        tell!("{:<8} {:<24} {:<10} {state}", kernel.name, kernel.display_name, kernel.language);
    }
}

/// Shows that something long goes on, where a person is watching.
pub(super) fn spinner(name: &str) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let spinner = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}");
        spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        spinner.set_prefix(name.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    })
}

fn install(paths: &Paths, kernel: &Kernel) -> Result<(), kernels::InstallError> {
    if kernels::status(paths, kernel) == Status::Ready {
        say!("{} is up to date", kernel.name);
        return Ok(());
    }
    let started = Instant::now();
    let spinner = spinner(&kernel.name);
    let result = kernels::install(paths, kernel, &mut |line| match &spinner {
        Some(spinner) => spinner.set_message(line.to_owned()),
        None => say!("{}: {line}", kernel.name),
    });
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let path = result?;
    say!("{} is installed in {} ({:.0} s)", kernel.name, path.display(), started.elapsed().as_secs_f64());
    Ok(())
}

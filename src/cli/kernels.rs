//! `cellkeep kernels`: lists and installs the environments of the process sandbox.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Exit, Failure, added_kernels};
use crate::config::Paths;
use crate::kernels::{self, KernelSpec, Status};
use crate::sandbox::Sandbox;
use crate::sandbox::docker::{Images, how_to_get};
use crate::sandbox::process::ProcessSandbox;

/// List or install kernels for the process sandbox.
#[derive(Subcommand)]
pub(super) enum KernelsCommand {
    /// List all kernels and whether they are installed
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Install kernels that are missing or out of date
    Install {
        /// python, python-minimal, r, julia, deno, bash
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Add a kernel of your own: any kernelspec of Jupyter, or an image
    #[command(after_help = added_kernels::HELP)]
    Add(added_kernels::AddArgs),
    /// Remove a kernel that was added
    Remove {
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(super) async fn run(paths: &Paths, command: KernelsCommand) -> Result<Exit, Failure> {
    match command {
        KernelsCommand::List { json } => {
            list(paths, json).await;
            Ok(Exit::Ok)
        }
        KernelsCommand::Add(args) => added_kernels::add(paths, args).await,
        KernelsCommand::Remove { name } => added_kernels::remove(paths, &name),
        KernelsCommand::Install { names } => {
            let kernels = names.iter().map(|name| kernels::find(name)).collect::<Result<Vec<_>, _>>();
            for kernel in kernels.map_err(Failure::usage)? {
                let installed = install(paths, kernel).with_context(|| format!("cannot install {}", kernel.name));
                installed.map_err(|error| Failure { exit: Exit::CellFailed, error })?;
                remove_unused(paths, kernel).await;
            }
            if let Some(remedy) = missing_commands() {
                eprint_line!("warning: some commands are missing in sandboxes; {remedy}");
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
        Status::Own => "own",
    }
}

/// The status of a kernel's container image; `None` if no container engine answers.
pub(super) async fn image_status(images: Option<&Images>, kernel: &KernelSpec) -> Option<Status> {
    kernel.image()?;
    Some(images?.status(kernel).await.ok()?.status)
}

/// How to install the commands that process sandboxes lack, if they lack any.
pub(super) fn missing_commands() -> Option<String> {
    let packages = kernels::missing_command_packages();
    (!packages.is_empty()).then(|| format!("as root, run: apt-get install {}", packages.join(" ")))
}

/// A kernel and its status in each sandbox.
struct Row {
    kernel: &'static KernelSpec,
    process: Status,
    /// `None` if no container engine answers.
    docker: Option<Status>,
}

impl Row {
    /// The commands that install or update the kernel.
    fn update_commands(&self) -> String {
        let usable = |status: Status| status != Status::Missing;
        let nowhere = !usable(self.process) && !self.docker.is_some_and(usable);
        let (has_environment, name) = (self.kernel.has_environment(), &self.kernel.name);
        let mut commands = Vec::new();
        if self.process == Status::Stale || nowhere && has_environment {
            commands.push(format!("cellkeep kernels install {name}"));
        }
        if self.kernel.is_own() && nowhere && !has_environment {
            return how_to_get(self.kernel);
        }
        if self.docker == Some(Status::Stale) || nowhere && !has_environment {
            commands.push(format!("cellkeep images build {name}"));
        }
        commands.join("; ")
    }
}

async fn list(paths: &Paths, as_json: bool) {
    let images = Images::connect().await.ok();
    let mut rows = Vec::new();
    for kernel in kernels::all() {
        let docker = image_status(images.as_ref(), kernel).await;
        rows.push(Row { kernel, process: kernels::status(paths, kernel), docker });
    }
    if as_json {
        let as_value = |Row { kernel, process, docker }: &Row| {
            serde_json::json!({
                "name": kernel.name, "display_name": kernel.display_name, "language": kernel.language,
                "process": state_name(*process), "docker": docker.map(state_name),
                "memory_mb": kernel.default_limits().memory_mb, "own": kernel.is_own(),
            })
        };
        print_line!("{}", rows.iter().map(as_value).collect::<serde_json::Value>());
        return;
    }
    print_line!(
        "{:<14} {:<20} {:<10} {:<8} {:<8} {:<8} UPDATE WITH",
        "NAME",
        "KERNEL",
        "LANGUAGE",
        "MEMORY",
        "PROCESS",
        "DOCKER"
    );
    for row in rows {
        let KernelSpec { name, display_name, language, .. } = row.kernel;
        let (process, docker) = (state_name(row.process), row.docker.map_or("-", state_name));
        let memory = format!("{} MB", row.kernel.default_limits().memory_mb);
        let line = format!(
            "{name:<14} {display_name:<20} {language:<10} {memory:<8} {process:<8} {docker:<8} {}",
            row.update_commands()
        );
        print_line!("{}", line.trim_end());
    }
    let available = kernels::available();
    if !available.is_empty() {
        print_line!("\nKernelspecs of Jupyter on this machine, which can be added:");
        available.iter().for_each(|(name, path)| print_line!("  {name:<20} cellkeep kernels add {}", path.display()));
    }
}

/// Removes old versions of an environment, unless a session may use one.
pub(super) async fn remove_unused(paths: &Paths, kernel: &KernelSpec) {
    if !kernels::has_old_versions(paths, kernel) {
        return;
    }
    let used = match ProcessSandbox::new(paths.clone()).list().await {
        // A session that is starting has no agent yet, but an owner.
        Ok(records) => records
            .iter()
            .filter(|record| record.kernel == kernel.name)
            .any(|record| record.agent.unwrap_or(record.owner).is_alive()),
        Err(_) => true,
    };
    if used {
        return eprint_line!("{}: sessions may still use old versions; the next installation removes them", kernel.name);
    }
    if let Err(error) = kernels::remove_old_versions(paths, kernel) {
        eprint_line!("warning: {error}");
    }
}

/// A progress spinner, if standard error is a terminal.
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

pub(super) fn install(paths: &Paths, kernel: &KernelSpec) -> Result<(), kernels::InstallError> {
    if kernels::status(paths, kernel) == Status::Ready {
        eprint_line!("{} is up to date", kernel.name);
        return Ok(());
    }
    let started = Instant::now();
    let spinner = spinner(&kernel.name);
    let result = kernels::install(paths, kernel, &mut |line| match &spinner {
        Some(spinner) => spinner.set_message(line.to_owned()),
        None => eprint_line!("{}: {line}", kernel.name),
    });
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let path = result?;
    eprint_line!("{} is installed in {} ({:.0} s)", kernel.name, path.display(), started.elapsed().as_secs_f64());
    Ok(())
}

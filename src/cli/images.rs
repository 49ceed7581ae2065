//! `cellkeep images`: lists and builds the container images of the docker sandbox.

use std::time::Instant;

use anyhow::{anyhow, bail};
use clap::Subcommand;
use indicatif::ProgressBar;

use super::derived_images::DerivedArgs;
use super::kernels::{spinner, state_name};
use super::{Exit, Failure, derived_images};
use crate::config::Paths;
use crate::kernels::{self, KernelSpec, Status};
use crate::sandbox::docker::{BuildError, BuildOptions, Image, Images, how_to_get};

/// List or build container images for the docker sandbox.
#[derive(Subcommand)]
pub(super) enum ImagesCommand {
    /// List all images and whether they are up to date
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Build images that are missing or out of date
    #[command(after_help = "\
Examples:
  cellkeep images build python r
  cellkeep images build julia --base mirror.example/julia:1.11-bookworm
  cellkeep images build --from python --packages lightgbm 'shap<1' --system-packages graphviz --name ml

Set CELLKEEP_BUILD_NETWORK=host to build on the host's network instead of the engine's default network.")]
    Build {
        /// python, python-minimal, r, julia, deno, bash [default: all]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Start from this image instead of the one that the Dockerfile names, a mirror for example (the argument BASE)
        #[arg(long, value_name = "IMAGE", conflicts_with = "from")]
        base: Option<String>,
        /// Set an ARG of the Dockerfile
        #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = parse_argument, conflicts_with = "from")]
        arguments: Vec<(String, String)>,
        #[command(flatten)]
        derived: DerivedArgs,
        /// Rebuild every step, even if the image is up to date
        #[arg(long)]
        no_cache: bool,
    },
}

fn parse_argument(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form NAME=VALUE")),
    }
}

pub(super) async fn run(paths: &Paths, command: ImagesCommand) -> Result<Exit, Failure> {
    match command {
        ImagesCommand::List { json } => {
            let images = Images::connect().await.map_err(Failure::no_sandbox)?;
            list(&images, json).await.map_err(Failure::no_sandbox)?;
            Ok(Exit::Ok)
        }
        ImagesCommand::Build { names, base, mut arguments, derived, no_cache } => {
            let host_network = std::env::var("CELLKEEP_BUILD_NETWORK").is_ok_and(|network| network == "host");
            arguments.extend(base.map(|image| ("BASE".to_owned(), image)));
            let options = BuildOptions { no_cache, host_network, arguments: arguments.into_iter().collect() };
            if derived.from.is_some() {
                return derived_images::build(paths, derived, &options).await;
            }
            let kernels = select_kernels(&names).map_err(Failure::usage)?;
            let images = Images::connect().await.map_err(Failure::no_sandbox)?;
            build_all(&images, &kernels, &options).await
        }
    }
}

fn select_kernels(names: &[String]) -> anyhow::Result<Vec<&'static KernelSpec>> {
    if names.is_empty() {
        return Ok(kernels::all().iter().filter(|kernel| !kernel.is_own()).collect());
    }
    let kernels: Vec<_> = names.iter().map(|name| kernels::find(name)).collect::<Result<_, _>>()?;
    match kernels.iter().find(|kernel| kernel.is_own()) {
        Some(own) => bail!("{} is a kernel of yours; {}", own.name, how_to_get(own)),
        None => Ok(kernels),
    }
}

async fn list(images: &Images, as_json: bool) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for kernel in kernels::all().iter().filter(|kernel| kernel.image().is_some()) {
        all.push((kernel, images.status(kernel).await?));
    }
    if as_json {
        print_line!("{}", all.iter().map(|(kernel, image)| as_value(kernel, image)).collect::<serde_json::Value>());
        return Ok(());
    }
    print_line!("{:<14} {:<32} {:>8}  STATE", "NAME", "IMAGE", "SIZE");
    for (kernel, Image { reference, status, size_bytes, .. }) in all {
        let size = size_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
        let state = match status {
            Status::Ready => "ready".to_owned(),
            Status::Stale => format!("built by another version; run: cellkeep images build {}", kernel.name),
            Status::Own => "the operator's".to_owned(),
            Status::Missing if kernel.is_own() => format!("not there; {}", how_to_get(kernel)),
            Status::Missing => format!("not built; {}", how_to_get(kernel)),
        };
        print_line!("{:<14} {reference:<32} {size:>8}  {state}", kernel.name);
    }
    Ok(())
}

fn as_value(kernel: &KernelSpec, image: &Image) -> serde_json::Value {
    serde_json::json!({
        "name": kernel.name, "image": image.reference, "state": state_name(image.status), "size_bytes": image.size_bytes,
    })
}

/// Builds one after the other; one that fails does not keep the rest from being built.
async fn build_all(images: &Images, kernels: &[&KernelSpec], options: &BuildOptions) -> Result<Exit, Failure> {
    let names: Vec<_> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    eprint_line!("building {}", names.join(", "));
    let mut failed = Vec::new();
    for kernel in kernels {
        if let Err(error) = build(images, kernel, options).await {
            eprint_line!("{} failed: {error}", kernel.name);
            failed.push(kernel.name.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(Failure { exit: Exit::CellFailed, error: anyhow!("not built: {}", failed.join(", ")) })
}

async fn build(images: &Images, kernel: &KernelSpec, options: &BuildOptions) -> Result<(), BuildError> {
    // With arguments, the engine's cache knows whether anything has changed.
    if !options.no_cache && options.arguments.is_empty() && images.status(kernel).await?.status == Status::Ready {
        eprint_line!("{} is up to date", kernel.name);
        return Ok(());
    }
    let started = Instant::now();
    let spinner = spinner(&kernel.name);
    let result = images.build(kernel, options, &mut |line| show(spinner.as_ref(), &kernel.name, line)).await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    result?;
    let image = images.status(kernel).await?;
    eprint_line!("{} is built: {} ({:.0} s)", kernel.name, image.reference, started.elapsed().as_secs_f64());
    Ok(())
}

/// Shows a line of a build. A log needs only the steps: the output of a failed step is in the error.
pub(super) fn show(spinner: Option<&ProgressBar>, name: &str, line: &str) {
    match spinner {
        Some(spinner) => spinner.set_message(line.to_owned()),
        None if line.starts_with("Step ") || line.starts_with("STEP ") => eprint_line!("{name}: {line}"),
        None => {}
    }
}

//! `cellkeep images`: lists and builds the container images of the docker sandbox.

use std::time::Instant;

use anyhow::anyhow;
use clap::Subcommand;

use super::kernels::{spinner, state_name};
use super::{Exit, Failure};
use crate::kernels::{self, KernelSpec, Status};
use crate::sandbox::docker::{BuildError, BuildOptions, Image, Images};

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
Set CELLKEEP_BUILD_NETWORK=host to build on the host's network instead of the engine's default network.")]
    Build {
        /// python, python-minimal, r, julia, deno, bash [default: all]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Rebuild every step, even if the image is up to date
        #[arg(long)]
        no_cache: bool,
    },
}

pub(super) async fn run(command: ImagesCommand) -> Result<Exit, Failure> {
    match command {
        ImagesCommand::List { json } => {
            let images = Images::connect().await.map_err(Failure::no_sandbox)?;
            list(&images, json).await.map_err(Failure::no_sandbox)?;
            Ok(Exit::Ok)
        }
        ImagesCommand::Build { names, no_cache } => {
            let kernels = select_kernels(&names).map_err(Failure::usage)?;
            let images = Images::connect().await.map_err(Failure::no_sandbox)?;
            let host_network = std::env::var("CELLKEEP_BUILD_NETWORK").is_ok_and(|network| network == "host");
            build_all(&images, &kernels, BuildOptions { no_cache, host_network }).await
        }
    }
}

fn select_kernels(names: &[String]) -> Result<Vec<&'static KernelSpec>, kernels::KernelError> {
    if names.is_empty() {
        return Ok(kernels::all().iter().collect());
    }
    names.iter().map(|name| kernels::find(name)).collect()
}

async fn list(images: &Images, as_json: bool) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for kernel in kernels::all() {
        all.push((kernel, images.status(kernel).await?));
    }
    if as_json {
        print_line!("{}", all.iter().map(|(kernel, image)| as_value(kernel, image)).collect::<serde_json::Value>());
        return Ok(());
    }
    print_line!("{:<8} {:<26} {:>8}  STATE", "NAME", "IMAGE", "SIZE");
    for (kernel, Image { reference, status, size_bytes, .. }) in all {
        let size = size_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
        let state = match status {
            Status::Ready => "ready".to_owned(),
            Status::Stale => format!("built by another version; run: cellkeep images build {}", kernel.name),
            Status::Missing => format!("not built; run: cellkeep images build {}", kernel.name),
        };
        print_line!("{:<8} {reference:<26} {size:>8}  {state}", kernel.name);
    }
    Ok(())
}

fn as_value(kernel: &KernelSpec, image: &Image) -> serde_json::Value {
    serde_json::json!({
        "name": kernel.name, "image": image.reference, "state": state_name(image.status), "size_bytes": image.size_bytes,
    })
}

/// Builds one after the other; one that fails does not keep the rest from being built.
async fn build_all(images: &Images, kernels: &[&KernelSpec], options: BuildOptions) -> Result<Exit, Failure> {
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

async fn build(images: &Images, kernel: &KernelSpec, options: BuildOptions) -> Result<(), BuildError> {
    if !options.no_cache && images.status(kernel).await?.status == Status::Ready {
        eprint_line!("{} is up to date", kernel.name);
        return Ok(());
    }
    let started = Instant::now();
    let spinner = spinner(&kernel.name);
    let result = images
        .build(kernel, options, &mut |line| match &spinner {
            Some(spinner) => spinner.set_message(line.to_owned()),
            // A log needs only the steps: the output of a failed step is in the error.
            None if line.starts_with("Step ") || line.starts_with("STEP ") => eprint_line!("{}: {line}", kernel.name),
            None => {}
        })
        .await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    result?;
    let image = images.status(kernel).await?;
    eprint_line!("{} is built: {} ({:.0} s)", kernel.name, image.reference, started.elapsed().as_secs_f64());
    Ok(())
}

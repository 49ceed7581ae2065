//! `cellkeep images build --from`: an image with more packages, which becomes a kernel.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;

use super::added_kernels::{check_name, of_image};
use super::images::show;
use super::kernels::spinner;
use super::{Exit, Failure};
use crate::config::{AddedKernels, Paths};
use crate::kernels;
use crate::sandbox::docker::{BuildOptions, Derived, DerivedError, Images};

/// The options that make an image from another one.
#[derive(Args)]
pub(super) struct DerivedArgs {
    /// Build an image of your own from that of this kernel, and add it as a kernel
    #[arg(long, value_name = "KERNEL", requires = "name", conflicts_with = "names")]
    pub from: Option<String>,
    /// Python packages, as pip takes them
    #[arg(long, value_name = "PACKAGE", requires = "from", num_args = 1..)]
    packages: Vec<String>,
    /// A file with Python packages, one a line
    #[arg(long, value_name = "FILE", requires = "from")]
    requirements: Option<PathBuf>,
    /// Debian packages: libraries, commands, R packages (r-cran-...)
    #[arg(long, value_name = "PACKAGE", requires = "from", num_args = 1..)]
    system_packages: Vec<String>,
    /// The name of the new kernel
    #[arg(long, requires = "from")]
    name: Option<String>,
}

pub(super) async fn build(paths: &Paths, args: DerivedArgs, options: &BuildOptions) -> Result<Exit, Failure> {
    let name = args.name.clone().unwrap_or_default();
    let mut added = AddedKernels::read(paths).map_err(Failure::usage)?;
    check_name(&added, &name)?;
    let kernel = kernels::find(args.from.as_deref().unwrap_or_default()).map_err(Failure::usage)?;
    let mut packages = args.packages;
    if let Some(file) = args.requirements {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()));
        let text = text.map_err(Failure::usage)?;
        let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
        packages.extend(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    let derived = Derived::new(kernel, packages, args.system_packages).map_err(Failure::usage)?;
    let images = Images::connect().await.map_err(Failure::no_sandbox)?;
    let reference = format!("cellkeep/own-{name}:latest");
    let (started, spinner) = (Instant::now(), spinner(&name));
    let built = images.build_derived(&derived, &reference, options, &mut |line| show(spinner.as_ref(), &name, line)).await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let built = built.map_err(|error| match error {
        DerivedError::Build(_) => Failure { exit: Exit::CellFailed, error: error.into() },
        other => Failure::usage(other),
    })?;
    let config = of_image(paths, &name, reference.clone()).await?;
    kernels::read_own(&name, &config).map_err(Failure::usage)?;
    added.kernels.insert(name.clone(), config);
    added
        .write(paths)
        .map_err(|error| Failure::usage(anyhow!("cannot write {}: {error}", paths.added_kernels().display())))?;
    match built {
        true => eprint_line!("{name} is built: {reference} ({:.0} s)", started.elapsed().as_secs_f64()),
        false => eprint_line!("{name} is up to date: {reference}"),
    }
    Ok(Exit::Ok)
}

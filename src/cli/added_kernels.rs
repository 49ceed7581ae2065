//! `cellkeep kernels add` and `remove`: kernels of the operator. They are loaded when a command starts.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;

use super::kernels::{install, remove_unused};
use super::{Exit, Failure};
use crate::config::{AddedKernels, ConfigFile, KernelConfig, Paths};
use crate::kernels;
use crate::sandbox::docker::Images;

pub(super) const HELP: &str = "\
Examples:
  cellkeep kernels add ~/envs/old-pandas/share/jupyter/kernels/python3 --name old-pandas
  cellkeep kernels add ~/.local/share/jupyter/kernels/rust --folder ~/.cargo/bin
  cellkeep kernels add --image registry.example/team/python:7 --name team
A running server knows new kernels when it is started again. [kernels.NAME] sections of cellkeep.toml add kernels too, with the
keys kernelspec, folders and image.";

/// Options of `kernels add`.
#[derive(Args)]
pub(super) struct AddArgs {
    /// The folder with the kernel.json; without it, the image's own is read
    #[arg(value_name = "KERNELSPEC", required_unless_present = "image")]
    kernelspec: Option<PathBuf>,
    /// The name of the kernel [default: that of the folder]
    #[arg(long, required_unless_present = "kernelspec")]
    name: Option<String>,
    /// Another folder that the program needs; process sandboxes see it at the same path, read-only. The environment (venv, conda)
    /// that the program is in is found without it
    #[arg(long = "folder", value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// The image for the docker sandbox
    #[arg(long)]
    image: Option<String>,
}

/// Reads the kernels that were added, and those of the configuration file. One that cannot be read is left out with a warning.
pub(super) fn load(paths: &Paths, config: Option<&Path>) {
    let added = AddedKernels::read(paths).unwrap_or_else(|error| {
        eprint_line!("warning: no kernels of your own: {error}");
        AddedKernels::default()
    });
    // `serve` reports a file that it cannot read; other commands need nothing else of it.
    let file = ConfigFile::read(config, paths).unwrap_or_default();
    let mut own = Vec::new();
    for (name, config) in added.kernels.into_iter().chain(file.kernels) {
        let kernel = kernels::read_own(&name, &config).map_err(anyhow::Error::from);
        match kernel.and_then(|kernel| check_folders(&config, paths).map(|()| kernel)) {
            Ok(kernel) => own.push(kernel),
            Err(error) => eprint_line!("warning: the kernel {name} is left out: {error}"),
        }
    }
    for kernel in kernels::add(own) {
        eprint_line!("warning: the kernel {} is left out, because its name means another one", kernel.name);
    }
}

pub(super) async fn add(paths: &Paths, args: AddArgs) -> Result<Exit, Failure> {
    let named = args.name.clone().or_else(|| {
        let folder = args.kernelspec.as_deref().and_then(Path::file_name);
        folder.map(|name| name.to_string_lossy().to_ascii_lowercase())
    });
    let name = named.ok_or_else(|| Failure::usage(anyhow!("the kernelspec has no name; use --name")))?;
    let mut added = AddedKernels::read(paths).map_err(Failure::usage)?;
    check_name(&added, &name)?;
    let config = match args.kernelspec {
        Some(folder) => of_machine(&folder, args.folders, args.image).map_err(Failure::usage)?,
        None => of_image(paths, &name, args.image.unwrap_or_default()).await?,
    };
    let kernel = kernels::read_own(&name, &config).map_err(Failure::usage)?;
    check_folders(&config, paths).map_err(Failure::usage)?;
    let folders: Vec<_> = config.folders.iter().map(|folder| folder.display().to_string()).collect();
    added.kernels.insert(name.clone(), config);
    if kernel.has_environment() {
        let installed = install(paths, &kernel).with_context(|| format!("cannot install {name}"));
        installed.map_err(|error| Failure { exit: Exit::CellFailed, error })?;
        remove_unused(paths, &kernel).await;
    }
    added
        .write(paths)
        .map_err(|error| Failure::usage(anyhow!("cannot write {}: {error}", paths.added_kernels().display())))?;
    if !folders.is_empty() {
        eprint_line!("process sandboxes see, read-only: {}", folders.join(", "));
    }
    eprint_line!("{name} is added; try it: cellkeep exec -k {name} -c ...");
    Ok(Exit::Ok)
}

/// Folders of the system that say more of the machine than a kernel needs.
const REFUSED: &[&str] = &["/proc", "/sys", "/dev", "/run", "/etc"];

/// Checks where the folders of a kernel really are: sandboxes see what is in them.
fn check_folders(config: &KernelConfig, paths: &Paths) -> anyhow::Result<()> {
    let data = std::fs::canonicalize(paths.data()).unwrap_or_else(|_| paths.data().to_owned());
    for folder in &config.folders {
        // A folder that is missing cannot be shown, which is said when a sandbox starts.
        let Ok(real) = std::fs::canonicalize(folder) else { continue };
        if data.starts_with(&real) || real.starts_with(&data) {
            bail!("{} has Cellkeep's own data ({}) in it, or is a part of it", folder.display(), data.display());
        }
        if real == Path::new("/") || REFUSED.iter().any(|refused| real.starts_with(refused)) {
            bail!("{} leads to {}, a folder of the system", folder.display(), real.display());
        }
    }
    Ok(())
}

fn of_machine(kernelspec: &Path, folders: Vec<PathBuf>, image: Option<String>) -> anyhow::Result<KernelConfig> {
    let kernelspec =
        if kernelspec.ends_with("kernel.json") { kernelspec.parent().unwrap_or(kernelspec) } else { kernelspec };
    let kernelspec = std::path::absolute(kernelspec)?;
    let mut all = folders.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
    match kernels::needed_folders(&kernelspec) {
        Ok(needed) => all.extend(needed),
        Err(bin) if all.iter().any(|folder| bin.starts_with(folder)) => {}
        Err(bin) => bail!(
            "its program is in {}, which is no environment of Python or conda; name the folders that it needs: --folder {}",
            bin.display(),
            bin.display()
        ),
    }
    if let Some(missing) = all.iter().find(|folder| !folder.is_dir()) {
        bail!("{} is not a folder", missing.display());
    }
    all.sort();
    all.dedup();
    Ok(KernelConfig { kernelspec, folders: all, image })
}

/// The name of a new kernel, or of one that was added and is replaced.
pub(super) fn check_name(added: &AddedKernels, name: &str) -> Result<(), Failure> {
    // It becomes the name of a folder.
    if !kernels::is_kernel_name(name) {
        return Err(Failure::usage(kernels::OwnKernelError::Name));
    }
    if !added.kernels.contains_key(name) && kernels::find(name).is_ok() {
        return Err(Failure::usage(anyhow!("{name:?} means a kernel already; choose another name with --name")));
    }
    Ok(())
}

/// Copies the kernelspec of an image into the data folder.
pub(super) async fn of_image(paths: &Paths, name: &str, image: String) -> Result<KernelConfig, Failure> {
    let images = Images::connect().await.map_err(Failure::no_sandbox)?;
    let files = images.kernelspec(&image).await.map_err(Failure::no_sandbox)?;
    let kernelspec = paths.kernelspecs().join(name);
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_dir_all(&kernelspec);
        std::fs::create_dir_all(&kernelspec)?;
        files.iter().try_for_each(|(file, bytes)| std::fs::write(kernelspec.join(file), bytes))
    };
    write().with_context(|| format!("cannot write {}", kernelspec.display())).map_err(Failure::usage)?;
    Ok(KernelConfig { kernelspec, folders: Vec::new(), image: Some(image) })
}

pub(super) fn remove(paths: &Paths, name: &str) -> Result<Exit, Failure> {
    let mut added = AddedKernels::read(paths).map_err(Failure::usage)?;
    if added.kernels.remove(name).is_none() {
        return Err(Failure::usage(anyhow!("no kernel {name:?} was added with `cellkeep kernels add`")));
    }
    added.write(paths).map_err(Failure::usage)?;
    // Its environment stays for living sessions; only the link to it goes.
    let _ = std::fs::remove_file(paths.kernels().join(name));
    let _ = std::fs::remove_dir_all(paths.kernelspecs().join(name));
    eprint_line!("{name} is removed; a running server knows it until it is started again");
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_checked_where_links_lead() {
        let folder = std::env::temp_dir().join(format!("cellkeep-own-kernels-{}", crate::ids::random_uuid()));
        let data = folder.join("data");
        std::fs::create_dir_all(data.join("s")).unwrap();
        std::fs::create_dir(folder.join("env")).unwrap();
        for (link, target) in [("etc", Path::new("/etc")), ("inside", &data.join("s")), ("above", &folder)] {
            std::os::unix::fs::symlink(target, folder.join("env").join(link)).unwrap();
        }
        let check = |name: &str| {
            let folders = vec![folder.join("env").join(name)];
            let config = KernelConfig { kernelspec: folder.clone(), folders, image: None };
            check_folders(&config, &Paths::new(&data)).map_err(|error| error.to_string())
        };
        for (name, expected) in [("etc", "leads to /etc"), ("inside", "own data"), ("above", "own data")] {
            assert!(check(name).unwrap_err().contains(expected), "{name}");
        }
        assert!(check("").is_ok() && check("missing").is_ok());
        std::fs::remove_dir_all(folder).unwrap();
    }
}

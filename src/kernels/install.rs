//! Installs kernel environments, which the process sandbox mounts at `/opt/kernel`.
//!
//! An environment is made from the same folder as the container image: the requirements in a virtual environment (with `uv`,
//! which takes seconds, else with pip), the kernel's files beside it, then its `bake.sh`. It is made in a staging folder,
//! which becomes a version once it is complete ([`versions`]). So a broken installation is never visible, and a new one does
//! not affect running sessions.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use super::catalog::{KernelSpec, command_packages, context};
use super::versions;
use crate::config::Paths;

/// The interpreter of the environments. Not the one in PATH, which is often in a home folder that the uid of a sandbox
/// cannot read.
const PYTHON: &str = "/usr/bin/python3";
const FINGERPRINT: &str = "fingerprint";
/// Cellkeep's own uv, with the hashes of its wheels.
const UV_REQUIREMENTS: &str = include_str!("uv-requirements.txt");
/// Wheels with known hashes only: no code of a package runs while it is installed.
const PIP_INSTALL: [&str; 8] =
    ["-m", "pip", "install", "--no-compile", "--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"];

/// Receives each step, and each line that a step prints.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

#[derive(Debug, Error)]
pub enum InstallError {
    #[error("it is not installed in {}", .path.display())]
    Missing { path: PathBuf },
    /// Debian packages are missing, and only root can install them.
    #[error("these Debian packages are missing: {packages}\n  as root, run: apt-get install {packages}")]
    Packages { packages: String },
    /// The kernel exists only as a container image.
    #[error(
        "{kernel} has no environment for the process sandbox; run: cellkeep images build {kernel}, and use --sandbox docker"
    )]
    ImageOnly { kernel: String },
    /// A program of the kernel is missing.
    #[error("{program} does not exist; {remedy}")]
    Program { program: String, remedy: String },
    #[error("{step} failed:\n{output}")]
    Step {
        step: String,
        /// The last lines that it printed.
        output: String,
    },
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
}

/// The state of an environment or an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Made from the kernel folder of this version of Cellkeep.
    Ready,
    /// Made from another version of the kernel folder.
    Stale,
    Missing,
    /// An image that the operator provides.
    Own,
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> InstallError {
    let doing = doing.into();
    move |source| InstallError::Io { doing, source }
}

/// The state of the environment of `kernel`.
pub fn status(paths: &Paths, kernel: &KernelSpec) -> Status {
    let folder = paths.kernels().join(&kernel.name);
    match fs::read_to_string(folder.join(FINGERPRINT)) {
        Ok(fingerprint) if fingerprint.trim() == kernel.fingerprint() => Status::Ready,
        Ok(_) => Status::Stale,
        Err(_) => Status::Missing,
    }
}

/// The folder of the current environment, to be mounted.
pub fn environment(paths: &Paths, kernel: &KernelSpec) -> Result<PathBuf, InstallError> {
    versions::current(&paths.kernels(), &kernel.name)
        .map_err(|_| InstallError::Missing { path: paths.kernels().join(&kernel.name) })
}

/// Installs the environment of `kernel` unless it is ready. Old versions stay until [`remove_old_versions`].
///
/// # Errors
/// [`InstallError`]; the current version then stays current.
pub fn install(paths: &Paths, kernel: &KernelSpec, progress: Progress<'_>) -> Result<PathBuf, InstallError> {
    let (kernels, fingerprint) = (paths.kernels(), kernel.fingerprint());
    if status(paths, kernel) == Status::Ready {
        return environment(paths, kernel);
    }
    if !kernel.has_environment() {
        return Err(InstallError::ImageOnly { kernel: kernel.name.clone() });
    }
    // The uids of sandboxes must be able to read everything.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    install_packages(kernel, progress)?;
    fs::create_dir_all(&kernels).map_err(io_error("cannot create the folder for kernels"))?;
    if !versions::exists(&kernels, &kernel.name, &fingerprint) {
        let staging = kernels.join(format!(".new-{}-{}", kernel.name, crate::ids::random_uuid()));
        let created = create_environment(paths, kernel, &staging, progress).and_then(|()| {
            versions::add(&kernels, &kernel.name, &fingerprint, &staging).map_err(io_error("cannot store the environment"))
        });
        if created.is_err() {
            let _ = fs::remove_dir_all(&staging);
        }
        created?;
    }
    versions::make_current(&kernels, &kernel.name, &fingerprint).map_err(io_error("cannot activate the new environment"))?;
    environment(paths, kernel)
}

pub fn has_old_versions(paths: &Paths, kernel: &KernelSpec) -> bool {
    versions::old_versions(&paths.kernels(), &kernel.name).is_ok_and(|old| !old.is_empty())
}

/// Removes old versions. The caller ensures that no session uses them by reading the records: a starting session writes its
/// record before it looks up its environment.
pub fn remove_old_versions(paths: &Paths, kernel: &KernelSpec) -> Result<(), InstallError> {
    versions::remove_old(&paths.kernels(), &kernel.name).map_err(io_error("cannot remove old versions"))
}

fn create_environment(
    paths: &Paths,
    kernel: &KernelSpec,
    staging: &Path,
    progress: Progress<'_>,
) -> Result<(), InstallError> {
    fs::create_dir_all(staging).map_err(io_error("cannot create a staging folder"))?;
    let files = context(kernel);
    if files.iter().any(|(name, _)| name == "requirements.txt") {
        virtual_environment(paths, kernel, staging, progress)?;
    }
    for (name, data) in files.iter().filter(|(name, _)| name != "Dockerfile") {
        let path = staging.join(name);
        let write = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, data));
        write.map_err(io_error(format!("cannot write {}", path.display())))?;
    }
    let program = kernel.argv.first().map(String::as_str).unwrap_or_default();
    if let Some(in_environment) = program.strip_prefix("/opt/kernel/") {
        require(&staging.join(in_environment), "the environment is incomplete")?;
    } else {
        require(
            Path::new(program),
            &format!("install {} first; its packages: {}", kernel.display_name, kernel.packages().join(" ")),
        )?;
    }
    let mut bake = Command::new("sh");
    bake.arg(staging.join("bake.sh")).arg(staging);
    run(&format!("preparing {}", kernel.name), &mut bake, progress)?;
    fs::write(staging.join(FINGERPRINT), kernel.fingerprint()).map_err(io_error("cannot write the fingerprint"))
}

fn require(program: &Path, remedy: &str) -> Result<(), InstallError> {
    if program.exists() || program.is_symlink() {
        return Ok(());
    }
    Err(InstallError::Program { program: program.display().to_string(), remedy: remedy.to_owned() })
}

fn virtual_environment(
    paths: &Paths,
    kernel: &KernelSpec,
    staging: &Path,
    progress: Progress<'_>,
) -> Result<(), InstallError> {
    let requirements = staging.join("requirements.in");
    fs::write(&requirements, kernel.file("requirements.txt")).map_err(io_error("cannot write the requirements"))?;
    let step = format!("installing the packages of {}", kernel.name);
    match uv(paths, progress) {
        Some(uv) => {
            let mut venv = Command::new(&uv);
            venv.args(["venv", "--quiet", "--allow-existing", "--python", PYTHON]).arg(staging);
            run("creating a virtual environment", &mut venv, progress)?;
            let mut sync = Command::new(&uv);
            // Copies: links into uv's cache would change with the cache.
            sync.args(["pip", "install", "--require-hashes", "--no-build", "--link-mode", "copy", "--python"]);
            run(&step, sync.arg(staging.join("bin/python")).arg("-r").arg(&requirements), progress)?;
        }
        None => {
            let mut venv = Command::new(PYTHON);
            run("creating a virtual environment", venv.args(["-m", "venv"]).arg(staging), progress)?;
            let mut pip = Command::new(staging.join("bin/python"));
            run(&step, pip.args(PIP_INSTALL).arg("-r").arg(&requirements), progress)?;
        }
    }
    let _ = fs::remove_file(requirements);
    Ok(())
}

/// `uv` from PATH, else Cellkeep's own copy, which is installed on first use. `None` if that fails; pip does the same,
/// slower.
fn uv(paths: &Paths, progress: Progress<'_>) -> Option<PathBuf> {
    if Command::new("uv")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return Some(PathBuf::from("uv"));
    }
    let own = paths.tools().join("bin/uv");
    if own.exists() {
        return Some(own);
    }
    let mut venv = Command::new(PYTHON);
    run("creating a folder for tools", venv.args(["-m", "venv"]).arg(paths.tools()), progress).ok()?;
    let mut pip = Command::new(paths.tools().join("bin/python"));
    let requirements = paths.tools().join("uv-requirements.txt");
    fs::write(&requirements, UV_REQUIREMENTS).ok()?;
    run("installing uv", pip.args(PIP_INSTALL).arg("-r").arg(&requirements), progress).ok()?;
    own.exists().then_some(own)
}

/// Installs the Debian packages of a kernel and of the commands. Only root can; without root, only those of the kernel must be
/// there.
fn install_packages(kernel: &KernelSpec, progress: Progress<'_>) -> Result<(), InstallError> {
    let missing = missing(kernel.packages());
    if !rustix::process::geteuid().is_root() {
        return if missing.is_empty() { Ok(()) } else { Err(InstallError::Packages { packages: missing.join(" ") }) };
    }
    apt_install(&missing, progress)?;
    // The caller checks again which packages are missing, and reports a failure.
    let _ = apt_install(&missing_command_packages(), progress);
    Ok(())
}

fn apt_install(packages: &[String], progress: Progress<'_>) -> Result<(), InstallError> {
    if packages.is_empty() {
        return Ok(());
    }
    let step = format!("installing {}", packages.join(" "));
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "--no-install-recommends"]).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    if run(&step, &mut apt, progress).is_ok() {
        return Ok(());
    }
    // The package lists may be missing.
    run("apt-get update", Command::new("apt-get").arg("update"), progress)?;
    run(&step, &mut apt, progress)
}

/// The Debian packages whose commands are absent in process sandboxes, because they are not installed on this machine.
pub fn missing_command_packages() -> Vec<String> {
    missing(command_packages())
}

fn missing(packages: Vec<String>) -> Vec<String> {
    packages.into_iter().filter(|package| !is_installed(package)).collect()
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).stderr(Stdio::null()).output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

/// Runs a command and passes its lines to `progress`.
fn run(step: &str, command: &mut Command, progress: Progress<'_>) -> Result<(), InstallError> {
    progress(step);
    let (reader, writer) = io::pipe().map_err(io_error("cannot create a pipe"))?;
    let error_writer = writer.try_clone().map_err(io_error("cannot create a pipe"))?;
    let started = command.stdin(Stdio::null()).stdout(writer).stderr(error_writer).spawn();
    let mut child = started.map_err(io_error(format!("cannot start {}", command.get_program().to_string_lossy())))?;
    // The command still owns the write end of the pipe; without this, reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail: Vec<String> = Vec::new();
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !line.is_empty() {
            progress(&line);
            tail.push(line);
            let excess = tail.len().saturating_sub(20);
            tail.drain(..excess);
        }
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(InstallError::Step { step: step.to_owned(), output: tail.join("\n") }),
        Err(error) => Err(io_error(step)(error)),
    }
}

//! Starts the program of a process, with pipes or a terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;

use super::confine::Confinement;
use super::programs::{self, Program};
use super::sandbox::Sandbox;
use crate::agent_protocol::{ProcessSpec, RefusalCause, Refused, TerminalSize};

/// The type of terminal that programs see.
const TERM: (&str, &str) = ("TERM", "xterm-256color");

/// The agent's ends of a process's output, and of its terminal.
pub(super) enum Ends {
    Pipes { stdout: AsyncFd<OwnedFd>, stderr: AsyncFd<OwnedFd> },
    Terminal(AsyncFd<OwnedFd>),
}

pub(super) struct SpawnedProcess {
    pub pid: Pid,
    pub ends: Ends,
    /// The agent's end of the standard input, if that is an open pipe.
    pub stdin: Option<AsyncFd<OwnedFd>>,
}

/// Starts the program of `spec` as `owner`'s.
///
/// # Errors
/// If the working folder does not exist, the program cannot be executed, or the system refuses a part.
pub(super) fn spawn(sandbox: &Sandbox, spec: &ProcessSpec, owner: &Program) -> Result<SpawnedProcess, Refused> {
    let [program, arguments @ ..] = spec.command.as_slice() else { return Err("a command has a program".to_owned().into()) };
    let folder = working_folder(&sandbox.config.workspace, &spec.cwd)?;
    let failed = |error: io::Error| Refused::from(format!("cannot prepare the process: {error}"));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&sandbox.config.env)
        .envs(spec.terminal.map(|_| TERM))
        .envs(&spec.env)
        .env(programs::VARIABLE, &owner.id)
        .current_dir(folder);
    let mut confinement = Confinement::prepare(&sandbox.config).map_err(failed)?;
    let has_terminal = spec.terminal.is_some();
    // SAFETY: runs between fork and exec of this single-threaded program, so no other thread holds a lock; the closure only
    // makes system calls on prepared data.
    #[expect(unsafe_code, reason = "confinement must be applied in the child, before exec")]
    unsafe {
        command.pre_exec(move || {
            confinement.apply()?;
            if has_terminal {
                rustix::process::ioctl_tiocsctty(std::io::stdin())?;
            }
            Ok(())
        });
    }
    match spec.terminal {
        Some(size) => spawn_in_terminal(command, size, owner),
        None => spawn_with_pipes(command, spec.stdin, owner),
    }
}

fn spawn_in_terminal(mut command: Command, size: TerminalSize, owner: &Program) -> Result<SpawnedProcess, Refused> {
    let open = || -> io::Result<(OwnedFd, OwnedFd)> {
        let own = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&own)?;
        rustix::pty::unlockpt(&own)?;
        let window = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&own, window)?;
        let other = rustix::pty::ioctl_tiocgptpeer(&own, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        Ok((own, other))
    };
    let (own, other) = open().map_err(|error| Refused::from(format!("cannot open a terminal: {error}")))?;
    let clone = || other.try_clone().map(Stdio::from).map_err(|error| Refused::from(error.to_string()));
    command.stdin(clone()?).stdout(clone()?).stderr(clone()?);
    let pid = start(command, owner)?.0;
    Ok(SpawnedProcess { pid, ends: Ends::Terminal(register(own)?), stdin: None })
}

fn spawn_with_pipes(mut command: Command, stdin: bool, owner: &Program) -> Result<SpawnedProcess, Refused> {
    command.stdin(if stdin { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (pid, mut child) = start(command, owner)?;
    let stdin = child.stdin.take().map(|end| register(end.into())).transpose()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the process has no output pipes".to_owned().into());
    };
    let ends = Ends::Pipes { stdout: register(stdout.into())?, stderr: register(stderr.into())? };
    Ok(SpawnedProcess { pid, ends, stdin })
}

/// Executes the command. Its ends of the streams are closed in this process when the command is dropped.
fn start(mut command: Command, owner: &Program) -> Result<(Pid, std::process::Child), Refused> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().map_err(|error| Refused {
        cause: match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => RefusalCause::NotFound,
            _ => RefusalCause::Invalid,
        },
        reason: format!("cannot start {name}: {error}"),
    })?;
    let pid = Pid::from_child(&child);
    owner.started(pid);
    Ok((pid, child))
}

fn register(end: OwnedFd) -> Result<AsyncFd<OwnedFd>, Refused> {
    let register = |end: OwnedFd| -> io::Result<AsyncFd<OwnedFd>> {
        rustix::io::ioctl_fionbio(&end, true)?;
        // SAFETY: an `OwnedFd` that nothing takes out of the `AsyncFd` stays the same open descriptor.
        #[expect(unsafe_code, reason = "tokio requires this promise")]
        let registered = unsafe { AsyncFd::register(end) };
        registered.map_err(io::Error::from)
    };
    register(end).map_err(|error| Refused::from(format!("cannot watch a stream of the process: {error}")))
}

fn working_folder(workspace: &str, cwd: &str) -> Result<PathBuf, Refused> {
    // An absolute path replaces the workspace.
    let folder = Path::new(workspace).join(cwd);
    match folder.is_dir() {
        true => Ok(folder),
        false => {
            let reason = format!("there is no folder {cwd:?} to work in");
            Err(Refused { reason, cause: RefusalCause::NotFound })
        }
    }
}

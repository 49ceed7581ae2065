//! Starts the kernel process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::confine::Confinement;
use super::output_pipes::OutputPipes;
use super::positions_page::PositionsPage;
use super::programs::{self, Program};
use crate::agent_protocol::AgentConfig;
use crate::descriptors;
use crate::ids::{Generation, random_uuid};
use crate::wire::connection_file::{ConnectionInfo, Transport};

/// Makes the OOM killer prefer the kernel to the agent and the manager. The kernel can lower it to the agent's, which the
/// sandbox sets.
const OOM_SCORE_ADJ: &str = "900";
/// The variable that tells a kernel the numbers of its iopub pipe and of the page of positions, separated by a comma.
const IOPUB_PIPE_VARIABLE: &str = "CELLKEEP_IOPUB_PIPE";

pub(super) struct SpawnedKernel {
    pub connection: ConnectionInfo,
    pub output: OutputPipes,
}

/// What tells one kernel of the sandbox from the others.
pub(super) struct KernelIdentity<'a> {
    pub program: &'a Program,
    pub generation: Generation,
    /// Variables in addition to those of the configuration.
    pub env: &'a BTreeMap<String, String>,
}

/// Starts a kernel.
///
/// # Errors
/// The failed step, for people.
pub(super) fn start(config: &AgentConfig, identity: &KernelIdentity) -> Result<SpawnedKernel, String> {
    let KernelIdentity { program: owner, generation, env } = *identity;
    let connection = connection_info(config, generation).map_err(|error| format!("cannot choose sockets: {error}"))?;
    remove_files(&config.connection_dir, &owner.id);
    let path = format!("{}/{}-{generation}-{}.json", config.connection_dir, owner.id, random_uuid());
    write_private(&path, &connection).map_err(|error| format!("cannot write {path}: {error}"))?;
    let argv: Vec<String> = config.argv.iter().map(|argument| argument.replace("{connection_file}", &path)).collect();
    let [program, arguments @ ..] = argv.as_slice() else { return Err("the kernelspec has no argv".to_owned()) };
    let iopub =
        if config.iopub_pipe { Some(IopubPipe::create().map_err(|error| format!("no iopub pipe: {error}"))?) } else { None };
    let inherited = iopub.as_ref().map(IopubPipe::numbers);
    let mut confinement =
        Confinement::prepare(config).map_err(|error| format!("cannot prepare the kernel's confinement: {error}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&config.env)
        .envs(env)
        .env(programs::VARIABLE, &owner.id)
        .envs(inherited.map(|[iopub, positions]| (IOPUB_PIPE_VARIABLE, format!("{iopub},{positions}"))))
        .current_dir(&config.workspace)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: runs between fork and exec of this single-threaded program, so no other thread holds a lock; the closure only
    // makes system calls on prepared data.
    #[expect(unsafe_code, reason = "confinement must be applied in the child, before exec")]
    unsafe {
        command.pre_exec(move || {
            confinement.apply()?;
            inherited.into_iter().flatten().try_for_each(descriptors::keep_at_exec)
        });
    }
    let mut child = command.spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the kernel has no output pipes".to_owned());
    };
    let iopub = iopub.map(|pipe| (pipe.reader, pipe.page));
    let output = OutputPipes::new(stdout.into(), stderr.into(), iopub)
        .map_err(|error| format!("cannot read the kernel's output: {error}"))?;
    let pid = Pid::from_child(&child);
    owner.started(pid);
    // Best effort: raising the score is always allowed, and a system without the file has no OOM killer.
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj", pid = pid.as_raw_nonzero()), OOM_SCORE_ADJ);
    Ok(SpawnedKernel { connection, output })
}

/// The iopub pipe and its page, with the ends that the kernel inherits.
struct IopubPipe {
    reader: OwnedFd,
    writer: OwnedFd,
    page: PositionsPage,
    positions: OwnedFd,
}

impl IopubPipe {
    fn create() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (page, positions) = PositionsPage::create()?;
        Ok(Self { reader, writer, page, positions })
    }

    /// The numbers of the inherited descriptors: the pipe and the page.
    fn numbers(&self) -> [RawFd; 2] {
        [self.writer.as_raw_fd(), self.positions.as_raw_fd()]
    }
}

fn connection_info(config: &AgentConfig, generation: Generation) -> io::Result<ConnectionInfo> {
    match config.transport {
        Transport::Ipc => {
            // An unknown name, since an earlier kernel may have left files of any other.
            let prefix = format!("{}/{generation}-{}", config.runtime_dir, random_uuid());
            Ok(ConnectionInfo::new(Transport::Ipc, &prefix, [1, 2, 3, 4, 5], &config.kernel))
        }
        Transport::Tcp => {
            // All five are bound at once, so they differ. No other process can take one afterwards: the loopback is the
            // sandbox's.
            let held = (0..5).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
            let mut ports = [0; 5];
            for (port, listener) in ports.iter_mut().zip(&held) {
                *port = listener.local_addr()?.port();
            }
            Ok(ConnectionInfo::new(Transport::Tcp, "127.0.0.1", ports, &config.kernel))
        }
    }
}

/// Removes the connection files of a program's earlier kernels.
fn remove_files(folder: &str, program: &str) {
    let is_own = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(program.as_bytes());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(is_own) {
        // What is left takes little room.
        let _ = fs::remove_file(entry.path());
    }
}

/// Writes a new file: whatever an earlier kernel has left at the path is neither opened nor followed.
fn write_private(path: &str, connection: &ConnectionInfo) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    serde_json::to_writer(file, connection).map_err(io::Error::from)
}

/// The tail of what the kernel process wrote to stdout and stderr while it started.
#[derive(Default)]
pub(super) struct StartLog {
    bytes: Vec<u8>,
}

impl StartLog {
    const CAPACITY: usize = 4096;

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&bytes[bytes.len().saturating_sub(Self::CAPACITY)..]);
        let excess = self.bytes.len().saturating_sub(Self::CAPACITY);
        self.bytes.drain(..excess);
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

//! An open network: the sandbox's network namespace, connected to the outside by slirp4netns, a TCP/IP stack in a process.
//!
//! ```text
//! bubblewrap makes the namespace ─▶ routes refuse addresses ─▶ slirp4netns makes a device in it ─▶ the kernel starts
//! ```
//!
//! Code in the sandbox may not change routes. slirp4netns makes each connection of the sandbox as a connection of the machine,
//! so addresses that only the machine should reach must be refused before it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use super::cgroup::{self, Cgroup};
use crate::descriptors;
use crate::sandbox::refused_addresses::refuse;

/// What an open network reaches.
pub const OPEN_NETWORK: &str = "the internet and the machine's networks, but not the machine itself, link-local addresses and services that describe it";
/// What installs the program.
pub const HOW_TO_INSTALL: &str = "an open network needs slirp4netns; run: apt-get install slirp4netns";

/// The sandbox's network, of a range for measurements, which no real network uses.
const CIDR: &str = "--cidr=198.18.77.0/24";
/// The name server of slirp4netns, for `/etc/resolv.conf`.
pub(super) const RESOLV_CONF: &str = "nameserver 198.18.77.3\n";

/// How long slirp4netns may take to be ready; it takes 20 ms.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// The path of slirp4netns.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if it is not installed.
pub fn program() -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("slirp4netns")).find(|program| program.is_file());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, HOW_TO_INSTALL))
}

/// Connects the network namespace of the process `pid` to the outside, until the other end of the pipe `exit` is closed.
/// slirp4netns gives up its privileges itself, once it has the device. It belongs to the session's cgroup.
///
/// # Errors
/// If slirp4netns is not installed, or does not become ready.
pub(super) fn connect(pid: i32, exit: OwnedFd, cgroup: &Cgroup) -> io::Result<()> {
    let program = program()?;
    let network = OwnedFd::from(File::open(format!("/proc/{pid}/ns/net"))?);
    let user = owner(&network)?;
    refuse(&network, (!rustix::process::geteuid().is_root()).then_some(&user))?;
    let (ready, ready_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = Command::new(program);
    let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
    command
        .env_clear()
        .args([
            "--configure",
            "--mtu=65520",
            "--disable-host-loopback",
            "--enable-sandbox",
            "--enable-seccomp",
            "--netns-type=path",
            CIDR,
        ])
        .arg(format!("--userns-path=/proc/self/fd/{}", number(&user)))
        .arg(format!("--ready-fd={}", number(&ready_write)))
        .arg(format!("--exit-fd={}", number(&exit)))
        .arg(format!("/proc/self/fd/{}", number(&network)))
        .arg("tap0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let (groups, inherited) = (cgroup.open_for_joining()?, [user, network, ready_write, exit]);
    // SAFETY: runs between fork and exec; the closure makes system calls on descriptors that it owns and does not allocate.
    #[expect(unsafe_code, reason = "the child must join its cgroup before exec")]
    unsafe {
        command.pre_exec(move || {
            cgroup::join(&groups)?;
            rustix::process::setsid()?;
            descriptors::close_all_at_exec()?;
            inherited.iter().try_for_each(|fd| descriptors::keep_at_exec(fd.as_raw_fd()))
        });
    }
    let mut child = command.spawn()?;
    // Our own end of the pipe must be closed to see that the child has exited.
    drop(command);
    if !is_ready(ready) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(io::Error::other("slirp4netns did not become ready"));
    }
    std::thread::spawn(move || child.wait());
    Ok(())
}

fn is_ready(pipe: OwnedFd) -> bool {
    let timeout = rustix::event::Timespec { tv_sec: READY_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    let mut poll = [rustix::event::PollFd::new(&pipe, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut poll, Some(&timeout)).unwrap_or(0) > 0
        && File::from(pipe).read(&mut [0]).is_ok_and(|read| read > 0)
}

/// The user namespace that owns a network namespace.
fn owner(network: &OwnedFd) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request has no argument and returns a new descriptor.
    #[expect(unsafe_code, reason = "rustix lacks this request")]
    let number = unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nothing else owns it.
    #[expect(unsafe_code, reason = "the request returns a number")]
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}

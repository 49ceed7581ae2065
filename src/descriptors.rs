//! Keeps descriptors from where they do not belong: inherited ones are closed at exec, and connections take none.

use std::io;
use std::mem::MaybeUninit;

use rustix::fs::{Mode, OFlags, RawDir, open};
use rustix::io::FdFlags;

/// The first descriptor after the standard streams.
const FIRST: libc::c_int = 3;

/// Sets close-on-exec on all descriptors except the standard streams. Safe between fork and exec: it makes system calls and
/// does not allocate.
///
/// # Errors
/// If `close_range` is unavailable and the descriptors cannot be listed.
pub fn close_all_at_exec() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: a plain system call without memory arguments.
    #[expect(unsafe_code, reason = "rustix has no close_range")]
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    // Linux before 5.9 lacks the call, before 5.11 its flag, and some containers deny unknown calls.
    if result == 0 { Ok(()) } else { mark_one_by_one() }
}

/// Lets the program that is executed next inherit a descriptor, after [`close_all_at_exec`]. Safe between fork and exec.
///
/// # Errors
/// If it is not open.
pub fn keep_at_exec(number: std::os::fd::RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is only borrowed for one system call, which fails if it is not open.
    #[expect(unsafe_code, reason = "the child of a fork knows inherited descriptors by their numbers")]
    let descriptor = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?)
}

/// Sets whether the other side of a Unix socket can send descriptors.
///
/// Those that nobody takes are closed by the call that reads the bytes beside them, and closing can take as long as the sender likes: the
/// last owner of a lingering socket (`SO_LINGER`) waits until its data is sent.
///
/// # Errors
/// Before Linux 6.16, where it always can.
#[cfg(feature = "host")]
pub fn permit_descriptors(socket: impl std::os::fd::AsFd, permitted: bool) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // The number of all architectures but SPARC and PA-RISC.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let value = libc::c_int::from(permitted);
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value lives until the call returns, and has this length.
    #[expect(unsafe_code, reason = "rustix does not have this option yet")]
    let result = unsafe {
        let value = std::ptr::from_ref(&value).cast();
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, value, length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mark_one_by_one() -> io::Result<()> {
    let folder = open(c"/proc/self/fd", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse::<libc::c_int>().ok());
        if let Some(number) = number.filter(|number| *number >= FIRST) {
            // SAFETY: it was open when it was listed, and nothing in this process closes descriptors meanwhile.
            #[expect(unsafe_code, reason = "a descriptor of unknown origin is only a number")]
            let descriptor = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// How many inheritable descriptors a program sees after `mark` ran before its exec.
    fn inherited(mark: fn() -> io::Result<()>) -> String {
        let (left_open, _other_end) = std::io::pipe().unwrap();
        let number = rustix::io::fcntl_dupfd_cloexec(&left_open, 700).unwrap();
        rustix::io::fcntl_setfd(&number, FdFlags::empty()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "ls /proc/self/fd | grep -c '^7..$'"]).stdout(Stdio::piped());
        // SAFETY: the functions passed here only make system calls.
        #[expect(unsafe_code, reason = "the function must run between fork and exec")]
        unsafe {
            command.pre_exec(mark);
        }
        let mut child = command.spawn().unwrap();
        let mut seen = String::new();
        child.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
        child.wait().unwrap();
        seen.trim().to_owned()
    }

    #[test]
    #[cfg(feature = "host")]
    fn refused_descriptors_cannot_be_sent() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::os::fd::AsFd;
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [there.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(&there, &[io::IoSlice::new(b"x")], &mut control, SendFlags::empty())
        };
        assert!(send().is_ok());
        match permit_descriptors(&here, false) {
            Ok(()) => {
                assert_eq!(send(), Err(rustix::io::Errno::PERM));
                permit_descriptors(&here, true).unwrap();
                assert!(send().is_ok());
            }
            Err(unsupported) => assert_eq!(unsupported.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
    }

    #[test]
    fn descriptors_are_closed_with_and_without_close_range() {
        assert_eq!(inherited(|| Ok(())), "1");
        assert_eq!(inherited(close_all_at_exec), "0");
        assert_eq!(inherited(mark_one_by_one), "0");
    }
}

//! Hands a descriptor over from one process to another, on a Unix socket. The receiver does not trust the sender.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::cmsg_space;

/// The byte that a descriptor comes with.
const CARRIER: u8 = b'D';

/// Sends a descriptor, without waiting.
///
/// # Errors
/// Where descriptors cannot be sent, which is so in gVisor, or the socket is full.
#[cfg(any(feature = "agent", test))]
pub(crate) fn send_descriptor(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[io::IoSlice::new(&[CARRIER])], &mut control, flags)?;
    Ok(())
}

/// Waits for the one descriptor that the other side sends. What else comes is closed.
///
/// It may block for as long as the sender likes: the last owner of a socket waits for its data to be sent if the socket lingers
/// (`SO_LINGER`), and may be this process. So it needs a thread that nobody else waits for.
///
/// # Errors
/// If something else comes than one byte with one descriptor.
#[cfg(feature = "host")]
pub(crate) fn receive_descriptor(socket: impl AsFd) -> io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let (mut control, mut bytes) = (RecvAncillaryBuffer::new(&mut space), [0]);
    let received = recvmsg(socket, &mut [io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // All are owned here, since there may be room for more than one.
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let is_whole = received.bytes == 1 && bytes == [CARRIER] && !received.flags.contains(ReturnFlags::CTRUNC);
    match (is_whole, descriptors.len(), descriptors.pop()) {
        (true, 1, Some(descriptor)) => Ok(descriptor),
        _ => Err(io::Error::other("the other side sent no descriptor, or more than one")),
    }
}

#[cfg(test)]
#[cfg(feature = "host")]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn send_all(socket: &UnixStream, text: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn descriptor_arrives_and_is_closed_at_exec() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send_descriptor(&there, &writer).unwrap();
        drop(writer);
        let received = receive_descriptor(&here).unwrap();
        assert!(rustix::io::fcntl_getfd(&received).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(received).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn other_numbers_of_descriptors_are_refused_and_closed() {
        for count in [0, 2, 3, 20] {
            let (here, there) = UnixStream::pair().unwrap();
            let (mut reader, writer) = std::io::pipe().unwrap();
            send_all(&there, &[CARRIER], &vec![writer.as_fd(); count]);
            drop(writer);
            assert!(receive_descriptor(&here).is_err(), "{count}");
            // The pipe ends only when no copy of its writer is left.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{count}");
        }
        let (here, there) = UnixStream::pair().unwrap();
        send_all(&there, b"x", &[there.as_fd()]);
        assert!(receive_descriptor(&here).is_err(), "the byte is another");
        drop(there);
        assert!(receive_descriptor(&here).is_err(), "nothing comes any more");
    }
}

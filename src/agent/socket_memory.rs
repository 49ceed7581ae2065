//! Measures the memory of the sandbox's sockets: of its network namespace, also of those that no process has open, by the
//! system's socket monitoring interface (sock_diag(7)).

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// A family of sockets: its dump request, and where the answer has the memory.
struct Family {
    request: Vec<u8>,
    /// The size of the fixed part of each message after its header, bytes.
    fixed: usize,
    /// The attribute with the memory.
    attribute: u16,
}

impl Family {
    /// `inet_diag_req_v2`, with the extension INET_DIAG_SKMEMINFO for all states.
    fn internet(family: u8, protocol: u8) -> Self {
        let mut request = vec![family, protocol, 1 << 6, 0];
        request.extend(u32::MAX.to_ne_bytes());
        request.resize(56, 0);
        Self { request, fixed: 72, attribute: 7 }
    }

    /// `unix_diag_req`, with UDIAG_SHOW_MEMINFO for all states.
    fn unix() -> Self {
        let mut request = vec![1, 0, 0, 0];
        request.extend([u32::MAX, 0, 0x20, 0, 0].iter().flat_map(|field| field.to_ne_bytes()));
        Self { request, fixed: 16, attribute: 5 }
    }
}

/// The memory of all sockets, bytes. What cannot be measured counts as nothing.
pub(super) fn socket_bytes() -> u64 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let internet = [(2, TCP), (10, TCP), (2, UDP), (10, UDP)].map(|(family, protocol)| Family::internet(family, protocol));
    internet.into_iter().chain([Family::unix()]).map(|family| family_bytes(&family).unwrap_or(0)).sum()
}

fn family_bytes(family: &Family) -> io::Result<u64> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?;
    let length = (HEADER + family.request.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(&family.request);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let (mut bytes, mut buffer) = (0, vec![0; 32 << 10]);
    loop {
        let (read, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let (sum, is_last) = sum_messages(&buffer[..read], family);
        bytes += sum;
        if is_last || read == 0 {
            return Ok(bytes);
        }
    }
}

/// The memory in a datagram of messages, and whether the dump ends with it.
fn sum_messages(mut datagram: &[u8], family: &Family) -> (u64, bool) {
    let mut bytes = 0;
    while datagram.len() >= HEADER {
        let length = number(datagram, 0) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        if matches!(kind, NLMSG_DONE | NLMSG_ERROR) || length < HEADER || length > datagram.len() {
            return (bytes, true);
        }
        bytes += memory_in(datagram.get(HEADER + family.fixed..length).unwrap_or_default(), family.attribute);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (bytes, false)
}

/// The memory by the attribute with `SK_MEMINFO_*`: received, sent, reserved, options, backlog.
fn memory_in(mut attributes: &[u8], wanted: u16) -> u64 {
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        if length < 4 || length > attributes.len() {
            return 0;
        }
        if kind == wanted && length >= 4 + 8 * 4 {
            let field = |index: usize| u64::from(number(attributes, 4 + index * 4));
            return field(0) + field(2).max(field(5)) + field(4) + field(6) + field(7);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    0
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn unread_data_of_sockets_is_counted() {
        let before = socket_bytes();
        let receivers: Vec<_> = (0..32).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for receiver in &receivers {
            for _ in 0..2 {
                receiver.send_to(&[1; 60_000], receiver.local_addr().unwrap()).unwrap();
            }
        }
        let (sender, _receiver) = UnixDatagram::pair().unwrap();
        sender.send(&[1; 60_000]).unwrap();
        let grown = socket_bytes().saturating_sub(before);
        assert!(grown > 33 * 60_000, "{grown}");
    }

    #[test]
    fn broken_messages_end_the_dump() {
        let family = Family::unix();
        for broken in [vec![0; 16], vec![0xff; 64], vec![40; 3]] {
            assert_eq!(sum_messages(&broken, &family).0, 0);
        }
    }
}

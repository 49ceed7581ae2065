//! Addresses that no sandbox with an open network may reach: the machine's own, link-local ones, and services that describe a
//! machine to its programs. They are refused by routes in the sandbox's network namespace, which code in it may not change.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Link-local addresses, with the metadata services of most clouds, and services of clouds that are elsewhere.
const REFUSED: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    (Ipv4Addr::new(192, 0, 0, 192), 32),
];
/// Adds routes that refuse the addresses to a network namespace, in a child process. Without root, it enters the `user` namespace
/// that owns the other.
///
/// # Errors
/// If this user may not change the routes of the namespace.
pub(super) fn refuse(network: &OwnedFd, user: Option<&OwnedFd>) -> io::Result<()> {
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let own = own_addresses(&table).into_iter().map(|address| (address, 32));
    let messages: Vec<_> = REFUSED.iter().copied().chain(own).map(|(to, bits)| unreachable_route(to, bits)).collect();
    let (user, network) = (user.map(OwnedFd::try_clone).transpose()?, network.try_clone()?);
    let mut command = Command::new("/bin/true");
    // SAFETY: the closure only makes system calls on prepared data.
    #[expect(unsafe_code, reason = "the routes are added between fork and exec")]
    unsafe {
        command.pre_exec(move || {
            if let Some(user) = &user {
                move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
            }
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            let flags = SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            for message in &messages {
                rustix::net::send(&socket, message, SendFlags::empty())?;
                let mut answer = [0; 256];
                rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
                // The error of the acknowledgement; a route that exists already is as good.
                match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
                    0 | -17 => {}
                    error => return Err(io::Error::from_raw_os_error(-error)),
                }
            }
            Ok(())
        });
    }
    command.env_clear().status().map(drop)
}

/// The machine's own addresses beyond loopback, from `/proc/net/fib_trie`: each is in the line before `host LOCAL`.
fn own_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut all: Vec<Ipv4Addr> = table
        .lines()
        .zip(table.lines().skip(1))
        .filter(|(_, kind)| kind.trim_end().ends_with("host LOCAL"))
        .filter_map(|(address, _)| address.trim().strip_prefix("|-- ")?.parse().ok())
        .filter(|address: &Ipv4Addr| !address.is_loopback())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A netlink message that adds an unreachable route: header, `rtmsg`, destination.
fn unreachable_route(to: Ipv4Addr, bits: u8) -> [u8; 36] {
    const RTM_NEWROUTE: u16 = 24;
    const REQUEST_CREATE_ACK: u16 = 0x405;
    const MAIN_TABLE: u8 = 254;
    const STATIC: u8 = 4;
    const UNREACHABLE: u8 = 7;
    let mut message = [0; 36];
    message[0..4].copy_from_slice(&36u32.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_NEWROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_CREATE_ACK.to_ne_bytes());
    message[16..24].copy_from_slice(&[2, bits, 0, 0, MAIN_TABLE, STATIC, 0, UNREACHABLE]);
    message[28..30].copy_from_slice(&8u16.to_ne_bytes());
    message[30..32].copy_from_slice(&1u16.to_ne_bytes());
    message[32..36].copy_from_slice(&to.octets());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_found() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 172.17.0.1\n        \
                     /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 172.17.0.1\n        /32 host \
                     LOCAL\n     |-- 172.17.255.255\n        /32 link BROADCAST\n";
        assert_eq!(own_addresses(table), [Ipv4Addr::new(172, 17, 0, 1)]);
    }
}

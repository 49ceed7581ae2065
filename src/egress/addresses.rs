//! Which addresses the proxy never connects to, whatever name led to them: private networks, the machine itself, its neighbours on the link,
//! services that describe a machine to its programs. The operator can name exceptions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use crate::policy::{HostName, HostRule};

/// IPv4 networks, each with what it is.
const REFUSED_V4: &[(Ipv4Addr, u32, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "private"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a metadata service"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "private"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Why no connection is made to an address, if none is.
pub(super) fn refused(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refused_v4(address),
        IpAddr::V6(address) => refused_v6(address),
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    let is_in = |(network, bits, _): &&(Ipv4Addr, u32, &str)| {
        (u32::from(address) ^ u32::from(*network)).checked_shr(32 - bits).unwrap_or(0) == 0
    };
    REFUSED_V4.iter().find(is_in).map(|(_, _, what)| *what)
}

/// Only addresses of the global unicast range are reached. Those that contain an IPv4 address are as that one.
fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    let parts = address.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        refused_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // IPv4-mapped.
        [0, 0, 0, 0, 0, 0xffff, high, low] => inner(high, low),
        // NAT64: how a network without IPv4 reaches public IPv4 hosts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Some("private"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        // 6to4, Teredo and other tunnels, whose ends are IPv4 addresses.
        [0x2002, ..] | [0x2001, 0..=0x1ff, ..] => Some("a tunnel"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

/// Whether it is an address of this machine, whose services sandboxes must not reach, even in a network that they may reach. A socket
/// can be bound to these alone; nothing is sent.
pub(super) fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    UdpSocket::bind((address, 0)).is_ok() && !binds_foreign(address.is_ipv4())
        // For most of its own addresses, the system would choose the same one to send from.
        || chosen_source(address).is_some_and(|chosen| chosen.to_canonical() == address)
}

/// Whether this machine binds sockets to addresses that it does not have (the setting `ip_nonlocal_bind`). The addresses are of networks
/// for documentation, which nobody has.
fn binds_foreign(is_v4: bool) -> bool {
    let documentation: IpAddr =
        if is_v4 { Ipv4Addr::new(192, 0, 2, 1).into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() };
    UdpSocket::bind((documentation, 0)).is_ok()
}

/// The address from which the system would send to this one. Nothing is sent.
fn chosen_source(address: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((address, 9)).ok()?;
    socket.local_addr().ok().map(|chosen| chosen.ip())
}

/// The private addresses that an operator lets sandboxes reach, where their policies allow the host: `10.1.0.0/16`, `10.1.2.3`,
/// `10.1.2.3:8080` or `mirror.internal:443`. A network does not include the machine's own addresses.
#[derive(Clone, Debug, Default)]
pub struct PrivateAddresses(Vec<Exception>);

#[derive(Clone, Debug)]
enum Exception {
    Network(IpAddr, u8),
    /// All ports of an address.
    Host(IpAddr),
    Address(SocketAddr),
    /// All addresses of a name.
    Name(HostRule),
}

impl PrivateAddresses {
    pub(super) fn include(&self, host: &HostName, address: SocketAddr) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.0.iter().any(|exception| match exception {
            Exception::Network(network, bits) => contains(*network, *bits, address.ip()) && !is_own(address.ip()),
            Exception::Host(own) => *own == address.ip(),
            Exception::Address(own) => *own == address,
            Exception::Name(rule) => rule.matches(host, address.port()),
        })
    }
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let same = |difference: u128, width: u32| difference.checked_shr(width - u32::from(bits)).unwrap_or(0) == 0;
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => same(u128::from(u32::from(network) ^ u32::from(address)), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => same(u128::from(network) ^ u128::from(address), 128),
        _ => false,
    }
}

impl FromStr for Exception {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is neither a network (10.0.0.0/8) nor an address or a name with a port (10.1.2.3:8080)");
        if let Some((network, bits)) = text.split_once('/') {
            let network: IpAddr = network.parse().map_err(|_| bad())?;
            let most = if network.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(bad)?;
            return Ok(Self::Network(network, bits));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Host(address.to_canonical()));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(address));
        }
        text.parse::<HostRule>().map(Self::Name).map_err(|_| bad())
    }
}

impl PrivateAddresses {
    /// # Errors
    /// Names the first entry that is none.
    pub fn parse<T: AsRef<str>>(entries: &[T]) -> Result<Self, String> {
        entries.iter().map(|entry| entry.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_refused(address: &str) -> bool {
        refused(address.parse().unwrap()).is_some()
    }

    #[test]
    fn addresses_of_machines_and_their_networks_are_refused() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "2001:0:7f00:1::",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(is_refused(address), "{address}");
        }
        for address in [
            "8.8.8.8",
            "172.32.0.1",
            "11.0.0.1",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
            "2001:4860:4860::8888",
        ] {
            assert!(!is_refused(address), "{address}");
        }
    }

    #[test]
    fn operator_excepts_networks_addresses_and_names() {
        let exceptions =
            PrivateAddresses::parse(&["10.1.0.0/16", "127.0.0.1:8080", "fd00::/8", "mirror.internal:443", "192.168.0.7"])
                .unwrap();
        let includes =
            |host: &str, address: &str| exceptions.include(&HostName::parse(host).unwrap(), address.parse().unwrap());
        assert!(includes("a", "10.1.200.3:22") && !includes("a", "10.2.0.1:80"));
        assert!(
            includes("a", "127.0.0.1:8080") && includes("a", "[::ffff:127.0.0.1]:8080") && !includes("a", "127.0.0.1:8081")
        );
        assert!(includes("a", "[fd00::1]:1") && !includes("a", "[fe80::1]:1") && includes("a", "192.168.0.7:9"));
        assert!(includes("mirror.internal", "10.9.9.9:443") && !includes("other.internal", "10.9.9.9:443"));
        for bad in ["10.0.0.0/33", "10.0.0/8", "*", "a..b:80", ""] {
            assert!(PrivateAddresses::parse(&[bad]).is_err(), "{bad}");
        }
        assert!(
            PrivateAddresses::parse(&["0.0.0.0/0"])
                .unwrap()
                .include(&HostName::parse("a").unwrap(), "9.9.9.9:1".parse().unwrap())
        );
    }

    #[test]
    fn networks_do_not_include_the_machine_itself() {
        // The system sends to 127.0.0.2 from 127.0.0.1, as to the second address of any interface from the first.
        for own in ["127.0.0.1", "127.0.0.2", "::ffff:127.0.0.2"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        assert!(!is_own("192.0.2.1".parse().unwrap()) && !is_own("8.8.8.8".parse().unwrap()));
        let includes = |exception: &str, address: &str| {
            let exceptions = PrivateAddresses::parse(&[exception]).unwrap();
            exceptions.include(&HostName::parse("a").unwrap(), address.parse().unwrap())
        };
        for network in ["127.0.0.0/8", "0.0.0.0/0"] {
            assert!(!includes(network, "127.0.0.2:80") && !includes(network, "[::ffff:127.0.0.2]:80"), "{network}");
        }
        assert!(includes("127.0.0.2", "127.0.0.2:80") && includes("127.0.0.2:80", "127.0.0.2:80"));
    }

    proptest! {
        #[test]
        fn embedded_addresses_are_as_their_own(bits in any::<u32>()) {
            let [a, b, c, d] = bits.to_be_bytes();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let own = refused_v4(bits.into());
            prop_assert_eq!(refused_v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low)), own);
            prop_assert_eq!(refused_v6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)), own);
            prop_assert!(refused_v6(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 0)).is_some());
            prop_assert!(refused_v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low)).is_some());
        }
    }
}

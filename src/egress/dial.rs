//! From a host name to a connection. The name is resolved once, and the address that was checked is the one that is dialled: a name server
//! that answers differently the next time gains nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::addresses::{self, PrivateAddresses};
use crate::policy::HostName;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Finds the addresses of a name.
#[async_trait]
pub trait Resolver: Send + Sync {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// As the programs of this machine do.
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DialError {
    /// All addresses of the name are refused. What they are.
    Refused(&'static str),
    /// The status of the proxy's response, and what failed.
    Failed(u16, String),
}

/// Connects to a host that the policy allows.
pub(super) async fn dial(
    resolver: &dyn Resolver,
    private: &PrivateAddresses,
    host: &HostName,
    port: u16,
) -> Result<TcpStream, DialError> {
    let resolving = tokio::time::timeout(RESOLVE_TIMEOUT, resolver.resolve(host.as_str(), port));
    let found = match resolving.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(DialError::Failed(502, format!("{host} cannot be resolved: {error}"))),
        Err(_) => return Err(DialError::Failed(504, format!("{host} was not resolved in time"))),
    };
    let (mut permitted, mut refused) = (Vec::new(), None);
    for address in found.into_iter().map(|found| SocketAddr::new(found.ip(), port)) {
        match refusal(address, host, private) {
            None => permitted.push(address),
            Some(what) => refused = Some(what),
        }
    }
    if permitted.is_empty() {
        let nothing = || DialError::Failed(502, format!("{host} has no address"));
        return Err(refused.map_or_else(nothing, DialError::Refused));
    }
    let mut failure = DialError::Failed(504, format!("{host} did not answer on port {port} in time"));
    for address in permitted.into_iter().take(MAX_ADDRESSES) {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failure = DialError::Failed(502, format!("cannot connect to {host} on port {port}: {error}")),
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Why an address is not dialled, if it is not.
fn refusal(address: SocketAddr, host: &HostName, private: &PrivateAddresses) -> Option<&'static str> {
    if private.include(host, address) {
        return None;
    }
    addresses::refused(address.ip()).or_else(|| is_own(address.ip()).then_some("this machine's own"))
}

/// Whether it is an address of this machine, whose services sandboxes must not reach. The system sends nothing for this: it only chooses
/// the address from which it would send, which for its own addresses is the same.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let chosen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    chosen.is_ok_and(|chosen| chosen.ip().to_canonical() == address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    /// Answers with one list after the other, and with the last one from then on.
    struct Answers(Vec<Vec<&'static str>>, AtomicUsize);

    #[async_trait]
    impl Resolver for Answers {
        async fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            let at = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
            Ok(self.0[at].iter().map(|address| SocketAddr::new(address.parse().unwrap(), port)).collect())
        }
    }

    fn answers(lists: &[&[&'static str]]) -> Answers {
        Answers(lists.iter().map(|list| list.to_vec()).collect(), AtomicUsize::new(0))
    }

    async fn dial_to(answers: &Answers, private: &[&str], port: u16) -> Result<TcpStream, DialError> {
        let private = PrivateAddresses::parse(private).unwrap();
        dial(answers, &private, &HostName::parse("a.example").unwrap(), port).await
    }

    #[tokio::test]
    async fn private_addresses_of_public_names_are_refused() {
        for (address, what) in [("127.0.0.1", "loopback"), ("::ffff:10.0.0.1", "private"), ("169.254.169.254", "link-local")]
        {
            let error = dial_to(&answers(&[&[address]]), &[], 80).await.unwrap_err();
            assert_eq!(error, DialError::Refused(what), "{address}");
        }
        let error = dial_to(&answers(&[&[]]), &[], 80).await.unwrap_err();
        assert_eq!(error, DialError::Failed(502, "a.example has no address".to_owned()));
    }

    #[tokio::test]
    async fn name_is_resolved_once_for_check_and_connection() {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let private = format!("127.0.0.2:{port}");
        // The second answer would be another address of the loopback, on which nothing may be reached.
        let resolver = answers(&[&["127.0.0.2"], &["127.0.0.1"]]);
        let socket = dial_to(&resolver, &[&private], port).await.unwrap();
        assert_eq!(
            (socket.peer_addr().unwrap().ip().to_string().as_str(), resolver.1.load(Ordering::SeqCst)),
            ("127.0.0.2", 1)
        );
        assert_eq!(dial_to(&resolver, &[&private], port).await.unwrap_err(), DialError::Refused("loopback"));
    }

    #[tokio::test]
    async fn refused_addresses_are_skipped() {
        let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mixed = answers(&[&["10.0.0.1", "127.0.0.3"]]);
        assert!(dial_to(&mixed, &[&format!("127.0.0.3:{port}")], port).await.is_ok());
    }

    #[test]
    fn own_addresses_are_recognised() {
        assert!(is_own("127.0.0.1".parse().unwrap()) && !is_own("192.0.2.1".parse().unwrap()));
    }
}

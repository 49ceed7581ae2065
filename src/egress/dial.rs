//! From a host name to a connection. The name is resolved once, and the address that was checked is the one that is dialled: a name server
//! that answers differently the next time gains nothing.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::addresses::{self, PrivateAddresses};
use super::shares::Places;
use crate::policy::HostName;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Finds the addresses of a name. Runs on a thread that may block.
pub trait Resolver: Send + Sync {
    /// # Errors
    /// If the name has no address, or no name server answers.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// As the programs of this machine do.
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.collect())
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
    resolver: &Arc<dyn Resolver>,
    lookups: &Places,
    private: &PrivateAddresses,
    host: &HostName,
    port: u16,
) -> Result<TcpStream, DialError> {
    let found = resolve(resolver, lookups, host, port).await?;
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

/// The addresses of a host. A look-up that takes too long is not waited for, but keeps its place and its thread until it ends.
async fn resolve(
    resolver: &Arc<dyn Resolver>,
    lookups: &Places,
    host: &HostName,
    port: u16,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Ok(address) = host.as_str().parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let Some(place) = lookups.acquire(RESOLVE_TIMEOUT).await else {
        return Err(DialError::Failed(503, "too many names are being resolved; retry".to_owned()));
    };
    let (resolver, name) = (resolver.clone(), host.as_str().to_owned());
    let resolving = tokio::task::spawn_blocking(move || {
        let _place = place;
        resolver.resolve(&name, port)
    });
    match tokio::time::timeout(RESOLVE_TIMEOUT, resolving).await {
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(error))) => Err(DialError::Failed(502, format!("{host} cannot be resolved: {error}"))),
        Ok(Err(_)) => Err(DialError::Failed(502, format!("{host} cannot be resolved"))),
        Err(_) => Err(DialError::Failed(504, format!("{host} was not resolved in time"))),
    }
}

/// Why an address is not dialled, if it is not.
fn refusal(address: SocketAddr, host: &HostName, private: &PrivateAddresses) -> Option<&'static str> {
    if private.include(host, address) {
        return None;
    }
    addresses::refused(address.ip()).or_else(|| addresses::is_own(address.ip()).then_some("this machine's own"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;
    use crate::egress::shares::Shares;

    /// Answers with one list after the other, and with the last one from then on.
    struct Answers(Vec<Vec<&'static str>>, AtomicUsize);

    impl Resolver for Answers {
        fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            let at = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
            Ok(self.0[at].iter().map(|address| SocketAddr::new(address.parse().unwrap(), port)).collect())
        }
    }

    fn answers(lists: &[&[&'static str]]) -> Arc<Answers> {
        Arc::new(Answers(lists.iter().map(|list| list.to_vec()).collect(), AtomicUsize::new(0)))
    }

    async fn dial_to(answers: &Arc<Answers>, private: &[&str], port: u16) -> Result<TcpStream, DialError> {
        let private = PrivateAddresses::parse(private).unwrap();
        let (resolver, share): (Arc<dyn Resolver>, _) = (answers.clone(), Shares::new(1).of("ann"));
        dial(&resolver, &share.lookups, &private, &HostName::parse("a.example").unwrap(), port).await
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
}

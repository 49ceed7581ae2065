//! A tunnel: bytes in both directions, of which only the first are read. If they begin TLS, it must be with the host that was asked for,
//! since many servers serve other hosts on the same address.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::net::TcpStream;

use super::client::Client;
use super::proxy::send_last;
use super::tls_hello::{self, Opening, OpeningReader};
use super::traffic::Connection;
use crate::policy::HostName;
use crate::streams::{Pieces, copy_from_socket, copy_to_socket};

/// How long a client may take to begin TLS, where nothing else is expected.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What may pass through a tunnel.
pub(super) struct TunnelRules<'a> {
    pub host: &'a HostName,
    /// Whether anything but TLS may.
    pub takes_any_bytes: bool,
}

/// Why a tunnel ends that was established.
#[derive(Debug, Error)]
enum TunnelRefused {
    #[error("TLS with another name than the host's")]
    OtherName,
    #[error("something else than TLS on port 443")]
    NoTls,
    #[error("TLS that does not begin with a readable hello")]
    BadHello,
}

/// What a decision says about a tunnel that was ended for what passed through it; `None` if it ended for other reasons.
pub(super) fn refusal(error: &io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref()? {
        TunnelRefused::OtherName => Some("its TLS names another host"),
        TunnelRefused::NoTls => Some("it is not TLS"),
        TunnelRefused::BadHello => Some("its TLS cannot be read"),
    }
}

/// Answers that the tunnel stands, and copies until both directions have ended. `rest` came with the request.
pub(super) async fn serve(
    client: &Client,
    socket: &mut TcpStream,
    rest: Bytes,
    rules: &TunnelRules<'_>,
    meter: &Connection<'_>,
) -> io::Result<()> {
    if !rules.takes_any_bytes {
        let (opening, _) = open(client, rest, rules).await?;
        return copy(client, socket, opening, meter).await;
    }
    establish(client).await?;
    let _ = socket.set_nodelay(true);
    let (reader, mut writer) = socket.split();
    // The server may be the one that begins.
    let outward = async {
        let (opening, _) = read_checked(client, rest, rules).await?;
        copy_to_socket(client, opening, &mut writer, meter).await
    };
    let inward = copy_from_socket(reader.as_ref(), client, meter);
    tokio::try_join!(outward, inward).map(drop)
}

/// Answers that the tunnel stands, and reads how the client begins.
pub(super) async fn open(client: &Client, rest: Bytes, rules: &TunnelRules<'_>) -> io::Result<(Bytes, Opening)> {
    establish(client).await?;
    let opening = tokio::time::timeout(HELLO_TIMEOUT, read_checked(client, rest, rules));
    opening.await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Sends on how the client begins, and copies until both directions have ended.
pub(super) async fn copy(client: &Client, socket: &mut TcpStream, opening: Bytes, meter: &Connection<'_>) -> io::Result<()> {
    let _ = socket.set_nodelay(true);
    let (reader, mut writer) = socket.split();
    let outward = copy_to_socket(client, opening, &mut writer, meter);
    let inward = copy_from_socket(reader.as_ref(), client, meter);
    tokio::try_join!(outward, inward).map(drop)
}

async fn establish(client: &Client) -> io::Result<()> {
    client.send(Bytes::from_static(ESTABLISHED)).await
}

/// Reads how the client begins, and ends the tunnel with an alert if that may not pass.
async fn read_checked(client: &Client, rest: Bytes, rules: &TunnelRules<'_>) -> io::Result<(Bytes, Opening)> {
    let (bytes, opening) = read_opening(client, rest, rules).await?;
    match opening.and_then(|opening| check(&opening, rules).map(|()| opening)) {
        Ok(opening) => Ok((bytes, opening)),
        Err(refused) => {
            let alert = tls_hello::alert(matches!(refused, TunnelRefused::OtherName));
            send_last(client, Bytes::copy_from_slice(&alert)).await;
            Err(io::Error::other(refused))
        }
    }
}

/// The first bytes of the client, and what they are.
async fn read_opening(
    client: &Client,
    rest: Bytes,
    rules: &TunnelRules<'_>,
) -> io::Result<(Bytes, Result<Opening, TunnelRefused>)> {
    let (mut reader, mut all, mut new) = (OpeningReader::default(), BytesMut::new(), rest);
    loop {
        all.extend_from_slice(&new);
        match reader.read(&new) {
            Ok(Some(opening)) => return Ok((all.freeze(), Ok(opening))),
            Ok(None) => {}
            Err(_) => return Ok((all.freeze(), Err(TunnelRefused::BadHello))),
        }
        match client.receive().await? {
            Some(bytes) => new = bytes,
            // The client sends nothing, and may still receive.
            None if rules.takes_any_bytes => return Ok((all.freeze(), Ok(Opening::Other))),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn check(opening: &Opening, rules: &TunnelRules<'_>) -> Result<(), TunnelRefused> {
    match opening {
        // A server that is asked for no name, or has an address only, answers as the host.
        Opening::Tls { server: None } => Ok(()),
        Opening::Tls { server: Some(_) } if rules.host.is_address() => Ok(()),
        Opening::Tls { server: Some(server) } if HostName::parse(server).is_ok_and(|name| name == *rules.host) => Ok(()),
        Opening::Tls { .. } => Err(TunnelRefused::OtherName),
        Opening::Other if rules.takes_any_bytes => Ok(()),
        Opening::Other => Err(TunnelRefused::NoTls),
    }
}

//! The first bytes of a tunnel: whether they begin TLS, and which server they name. The rest of TLS passes through unread.

use tokio_rustls::rustls::server::Acceptor;

/// The first byte of a TLS connection: the type of a record with handshake messages.
const HANDSHAKE: u8 = 0x16;
/// The most bytes of a first message.
const MAX_HELLO: usize = 64 * 1024;

/// How a client begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// TLS, with the server's name if the client sends one.
    Tls { server: Option<String> },
    /// Another protocol.
    Other,
}

/// The client begins TLS, but with a message that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadHello;

/// Reads the beginning, in pieces as they come.
#[derive(Default)]
pub(super) struct OpeningReader {
    acceptor: Acceptor,
    length: usize,
}

impl OpeningReader {
    /// Reads the next bytes; `None` if more are needed.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<Option<Opening>, BadHello> {
        if self.length == 0 && bytes.first().is_some_and(|first| *first != HANDSHAKE) {
            return Ok(Some(Opening::Other));
        }
        self.length += bytes.len();
        while !bytes.is_empty() {
            self.acceptor.read_tls(&mut bytes).map_err(|_| BadHello)?;
            if let Some(accepted) = self.acceptor.accept().map_err(|_| BadHello)? {
                let server = accepted.client_hello().server_name().map(str::to_owned);
                return Ok(Some(Opening::Tls { server }));
            }
        }
        if self.length > MAX_HELLO { Err(BadHello) } else { Ok(None) }
    }
}

/// A fatal alert, which clients show by its name.
pub(super) fn alert(is_unknown_name: bool) -> [u8; 7] {
    const UNRECOGNIZED_NAME: u8 = 112;
    const DECODE_ERROR: u8 = 50;
    [0x15, 3, 3, 0, 2, 2, if is_unknown_name { UNRECOGNIZED_NAME } else { DECODE_ERROR }]
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::Arc;

    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};

    /// The first message of a client that wants to reach this server.
    pub fn client_hello(server: &str) -> Vec<u8> {
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), server.to_owned().try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::client_hello;
    use super::*;

    fn named(server: &str) -> Opening {
        Opening::Tls { server: Some(server.to_owned()) }
    }

    #[test]
    fn server_is_read_from_pieces_of_a_hello() {
        let hello = client_hello("a.example");
        assert_eq!(OpeningReader::default().read(&hello), Ok(Some(named("a.example"))));
        let mut reader = OpeningReader::default();
        for byte in &hello[..hello.len() - 1] {
            assert_eq!(reader.read(&[*byte]), Ok(None));
        }
        assert_eq!(reader.read(&hello[hello.len() - 1..]), Ok(Some(named("a.example"))));
        let of_address = OpeningReader::default().read(&client_hello("127.0.0.1"));
        assert_eq!(of_address, Ok(Some(Opening::Tls { server: None })), "addresses are not named");
    }

    #[test]
    fn name_in_several_records_is_read() {
        let hello = client_hello("evil.example");
        let mut records = Vec::new();
        for part in hello[5..].chunks(20) {
            records.extend_from_slice(&[HANDSHAKE, 3, 1, 0, part.len() as u8]);
            records.extend_from_slice(part);
        }
        assert_eq!(OpeningReader::default().read(&records), Ok(Some(named("evil.example"))));
    }

    #[test]
    fn other_protocols_and_broken_hellos_are_told_apart() {
        for other in [&b"SSH-2.0-x\r\n"[..], b"GET / HTTP/1.1\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f"] {
            assert_eq!(OpeningReader::default().read(other), Ok(Some(Opening::Other)));
        }
        let mut broken = client_hello("a.example");
        broken[5] = 2;
        assert_eq!(OpeningReader::default().read(&broken), Err(BadHello));
        // A hello that says it is 16 MB long.
        let mut endless = OpeningReader::default();
        let record = [&[HANDSHAKE, 3, 1, 0x10, 0, 1, 0xff, 0xff, 0xff][..], &[0; 0xffc]].concat();
        assert!((0..100).any(|_| endless.read(&record).is_err()));
    }

    proptest! {
        #[test]
        fn arbitrary_beginnings_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            bytes[0] = HANDSHAKE;
            let _ = OpeningReader::default().read(&bytes);
        }
    }
}

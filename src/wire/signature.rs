//! The signature of a message: HMAC-SHA256 over its four JSON frames.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Signs and verifies messages with the key of one connection file.
///
/// The key protects against other users of the machine, not against the kernel: its code can read the key and forge
/// messages.
#[derive(Clone)]
pub struct Signer {
    mac: Hmac<Sha256>,
}

impl Signer {
    /// `None` for an empty key, which means unsigned messages in Jupyter; those are refused.
    pub fn new(key: &[u8]) -> Option<Self> {
        if key.is_empty() {
            return None;
        }
        // Never fails: an HMAC key may have any length (RFC 2104).
        Hmac::new_from_slice(key).ok().map(|mac| Self { mac })
    }

    /// The signature in lower-case hex.
    pub fn sign(&self, parts: [&[u8]; 4]) -> String {
        let bytes = self.mac_of(parts).finalize().into_bytes();
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether `signature` (hex) matches, compared in constant time.
    pub fn verify(&self, signature: &[u8], parts: [&[u8]; 4]) -> bool {
        decode_hex(signature).is_some_and(|bytes| self.mac_of(parts).verify_slice(&bytes).is_ok())
    }

    fn mac_of(&self, parts: [&[u8]; 4]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

fn decode_hex(hex: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_key_is_refused() {
        assert!(Signer::new(b"").is_none());
    }

    #[test]
    fn signature_matches_python_hmac() {
        // Made with Python: hmac.new(b"key", b"{}" * 4, "sha256").hexdigest()
        let signer = Signer::new(b"key").unwrap();
        let parts: [&[u8]; 4] = [b"{}", b"{}", b"{}", b"{}"];
        let signature = signer.sign(parts);
        assert_eq!(signature, "ca767b02c5bc061ed184a9a029e7f93a7f2f7ed4e8fe74120fc1212f0b008fa3");
        assert!(signer.verify(signature.as_bytes(), parts));
        assert!(!signer.verify(signature.as_bytes(), [b"{ }", b"{}", b"{}", b"{}"]));
        assert!(!signer.verify(b"", parts));
        assert!(!signer.verify(&signature.as_bytes()[..63], parts));
    }
}

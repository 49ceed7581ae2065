//! Cell ids: validation, and reproducible new ids.

use sha2::{Digest as _, Sha256};

/// Longest id that the nbformat 4.5 schema allows, in characters.
const MAX_LEN: usize = 64;
/// Length of new ids, in hexadecimal digits, as in other tools.
const LEN: usize = 8;

/// Whether the nbformat 4.5 schema accepts this cell id.
pub(super) fn is_valid(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LEN).contains(&id.len()) && id.bytes().all(allowed)
}

/// An unused id, derived from the cell's position and source. With random ids, each conversion of a file would produce a
/// different file.
pub(super) fn derive(index: usize, source: &str, taken: &dyn Fn(&str) -> bool) -> String {
    let mut attempt = 0u64;
    loop {
        let mut hash = Sha256::new();
        hash.update(b"cellkeep cell id\0");
        hash.update((index as u64).to_le_bytes());
        hash.update(attempt.to_le_bytes());
        hash.update(source.as_bytes());
        let mut id: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        id.truncate(LEN);
        if !taken(&id) {
            return id;
        }
        attempt += 1;
    }
}

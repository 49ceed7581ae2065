//! Cell ids: what is one by the format, and new ones that are the same every time.

use sha2::{Digest as _, Sha256};

/// Longest id that the nbformat 4.5 schema allows, in characters.
const MAX_LEN: usize = 64;
/// Length of the ids that we make, in hexadecimal digits, as those of other tools.
const LEN: usize = 8;

/// Whether the nbformat 4.5 schema takes this as a cell id.
pub(super) fn is_valid(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LEN).contains(&id.len()) && id.bytes().all(allowed)
}

/// An id that is not taken, from the cell's place and source. Random ids would make every conversion of the same file
/// a different file.
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

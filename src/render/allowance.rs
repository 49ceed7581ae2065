//! How much longer a page may be than the text that it is made of. Where a few bytes stand for many (a reference to an attachment, a
//! formula, a picture that is not loaded), the difference is taken from an allowance. When it is used up, the short form stays, so
//! that the length of a page is bounded by a factor of its source, whatever the source is.

use std::cell::Cell;

/// What a page may be longer in any case. Bytes.
const BASE: usize = 2 << 20;
/// What it may be longer for each byte of its source.
const FACTOR: usize = 4;

/// The bytes that are left.
#[derive(Debug)]
pub struct Allowance(Cell<usize>);

impl Allowance {
    /// The allowance of a page that is made of this many bytes.
    pub fn for_source(bytes: usize) -> Self {
        Self(Cell::new(BASE.saturating_add(bytes.saturating_mul(FACTOR))))
    }

    /// Takes bytes. `false` if fewer are left, and nothing is taken.
    pub fn take(&self, bytes: usize) -> bool {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.unwrap_or(self.0.get()));
        left.is_some()
    }

    /// Whether this many bytes are left.
    pub fn has(&self, bytes: usize) -> bool {
        self.0.get() >= bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance_is_used_up() {
        let allowance = Allowance::for_source(10);
        assert!(allowance.take(BASE) && allowance.take(30));
        assert!(!allowance.take(11), "more than is left");
        assert!(allowance.take(10) && !allowance.take(1));
    }
}

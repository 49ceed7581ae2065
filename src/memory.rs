//! Memory that the allocator keeps after a rush goes back to the system.

/// Gives back what is free. It costs some hundred microseconds, so not after every few bytes.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer and touches only memory that is free.
    #[expect(unsafe_code, reason = "the allocator has no other interface for it")]
    let _ = unsafe { libc::malloc_trim(0) };
}

//! Memory that the allocator keeps after a rush goes back to the system.

/// From here on a block is mapped by itself, and what is free at the end of a heap goes back. Bytes.
#[cfg(feature = "host")]
const LARGE: libc::c_int = 1 << 20;
/// Heaps beside each other: glibc makes eight for each core, and each keeps what its busiest moment took.
#[cfg(feature = "host")]
const HEAPS: libc::c_int = 4;

/// Makes the allocator keep little. Otherwise glibc raises its own thresholds to 32 MB and more after the first large blocks, and
/// what was free at the end of a heap stayed: 30 MB for each large answer, on each thread that ever made one.
#[cfg(feature = "host")]
pub(crate) fn keep_little() {
    // SAFETY: they take numbers, and may be called at any time.
    #[expect(unsafe_code, reason = "the allocator has no other interface for it")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives back what is free. It costs some hundred microseconds, so not after every few bytes.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer and touches only memory that is free.
    #[expect(unsafe_code, reason = "the allocator has no other interface for it")]
    let _ = unsafe { libc::malloc_trim(0) };
}

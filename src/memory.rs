//! Returns memory that the allocator retains after bursts to the system.

/// Larger blocks are mapped separately, and more free memory at the end of a heap is returned. Bytes.
#[cfg(feature = "host")]
const LARGE_BLOCK: libc::c_int = 1 << 20;
/// The number of heaps. glibc creates eight per core by default, and each retains the memory of its busiest moment.
#[cfg(feature = "host")]
const MAX_HEAPS: libc::c_int = 4;

/// Limits the memory that the allocator retains. By default glibc raises its thresholds to 32 MB and more after the first large blocks,
/// and retains free memory at the end of heaps: 30 MB for each large response, on each thread that ever made one.
#[cfg(feature = "host")]
pub(crate) fn keep_little() {
    // SAFETY: the calls take numbers and are allowed at any time.
    #[expect(unsafe_code, reason = "the allocator has no other interface for it")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_ARENA_MAX, MAX_HEAPS);
    }
}

/// Returns free memory to the system. Takes some hundred microseconds, so callers must not call it after every few bytes.
pub(crate) fn give_back() {
    // SAFETY: the call takes no pointer and touches only free memory.
    #[expect(unsafe_code, reason = "the allocator has no other interface for it")]
    let _ = unsafe { libc::malloc_trim(0) };
}

//! Allocator settings: memory that is freed after a load peak returns to the system.

/// Blocks of this size are mapped separately, and this much free memory at the end of a heap is returned. Bytes.
#[cfg(feature = "host")]
const LARGE_BLOCK: libc::c_int = 1 << 20;
/// The number of heaps. By default glibc has eight per core, and each keeps the memory of its peak.
#[cfg(feature = "host")]
const MAX_HEAPS: libc::c_int = 4;

/// Limits the free memory that the allocator keeps. Otherwise glibc raises its thresholds to 32 MB and more after the first
/// large blocks, and keeps free memory at the end of heaps: 30 MB for each large response, on each thread that ever produced
/// one.
#[cfg(feature = "host")]
pub(crate) fn limit_free_memory() {
    // SAFETY: `mallopt` takes numbers, and may be called at any time.
    #[expect(unsafe_code, reason = "the allocator has no safe interface for it")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_ARENA_MAX, MAX_HEAPS);
    }
}

/// Returns free memory to the system. This takes some hundred microseconds, so it is called after large work only.
pub(crate) fn release_free_memory() {
    // SAFETY: `malloc_trim` takes no pointer and touches free memory only.
    #[expect(unsafe_code, reason = "the allocator has no safe interface for it")]
    let _ = unsafe { libc::malloc_trim(0) };
}

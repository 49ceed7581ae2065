//! A page of memory that tells the kernel how much of its stdout and stderr the agent has read.
//!
//! Together with the number of bytes that still are in a pipe (`FIONREAD`), the kernel knows how much had been written to each
//! stream when it sends a broadcast; see [`super::iopub_pipe`]. The page is shared: three words of 64 bits in native order.
//!
//! ```text
//! 0  odd while the agent reads from a pipe; the other words and FIONREAD agree only if it was the same even number
//!    before and after they were taken
//! 8  bytes read from stdout
//! 16 bytes read from stderr
//! 24 bytes read from the iopub pipe; a kernel that cannot ask for FIONREAD waits until this is all that it has written
//! ```
//! The agent never reads the page, since the kernel could write anything to it.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::output_order::Stream;

const SIZE: usize = 4096;

pub(super) struct PositionsPage {
    page: NonNull<AtomicU64>,
    sequence: u64,
}

impl PositionsPage {
    /// Maps a new page, and returns it with a descriptor by which the kernel maps it too.
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    #[expect(unsafe_code, reason = "shared memory is a mapping, which Rust has no safe type for")]
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let memory = rustix::fs::memfd_create(c"positions", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, SIZE as u64)?;
        // SAFETY: a new mapping at an address that the system chooses aliases nothing.
        let page = unsafe {
            rustix::mm::mmap(ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memory, 0)?
        };
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok((Self { page, sequence: 0 }, memory))
    }

    /// Marks the page as changing. Called before bytes are taken from a pipe.
    pub fn begin_change(&mut self) {
        self.sequence += 1;
        self.store(0, self.sequence);
    }

    /// Publishes `total`, the bytes that were read from `stream` since the kernel's start.
    pub fn end_change(&mut self, stream: Stream, total: u64) {
        self.store(1 + stream as usize, total);
        self.sequence += 1;
        self.store(0, self.sequence);
    }

    /// Publishes the bytes read from the iopub pipe since the kernel's start.
    pub fn set_broadcast_bytes(&mut self, total: u64) {
        self.store(3, total);
    }

    #[expect(unsafe_code, reason = "the mapping is reached by its address")]
    fn store(&self, word: usize, value: u64) {
        // SAFETY: the page is mapped until `self` is dropped, aligned, and longer than four words. Both sides access it
        // atomically or, in the kernel's process, outside of this program.
        unsafe { self.page.add(word).as_ref() }.store(value, Ordering::SeqCst);
    }
}

impl Drop for PositionsPage {
    #[expect(unsafe_code, reason = "the counterpart of the mapping")]
    fn drop(&mut self) {
        // SAFETY: mapped by `create` with this size, and not used afterwards. It fails for no valid mapping.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), SIZE) };
    }
}

//! Memory that kernels and the host share, as `MTLStorageModeShared`: exact in size, with a guard page behind its end.

use std::fmt::{self, Debug, Formatter};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::shadow::Shadow;

const PAGE: usize = 4096;
/// The largest alignment of a Metal scalar or vector whose accesses are checked.
const ALIGNMENT: usize = 16;

/// A buffer; clones share the memory. Fresh bytes are 0xFF (NaN, -1) and count as unwritten.
///
/// As with Metal, the caller keeps host accesses and launches that use the same buffer apart.
#[derive(Clone)]
pub struct Buffer(Arc<Memory>);

struct Memory {
    start: *mut u8,
    len: usize,
    mapping: Mapping,
    is_all_written: AtomicBool,
    shadow: Shadow,
}

// SAFETY: plain memory; the type's contract keeps concurrent accesses apart.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Buffer {
    /// `len` bytes that nobody wrote.
    pub fn new(len: usize) -> Self {
        let body = len.max(1).next_multiple_of(ALIGNMENT);
        let pages = body.next_multiple_of(PAGE);
        let mapping = Mapping::reserve(pages + 2 * PAGE);
        mapping.open(PAGE..PAGE + pages);
        // The end, not the start, touches a page's border: overruns are what happens.
        let start = mapping.start.wrapping_add(PAGE + pages - body);
        // SAFETY: `body` bytes from `start` were just opened.
        unsafe { start.write_bytes(0xFF, body) };
        let shadow = Shadow::new(len);
        Self(Arc::new(Memory { start, len, mapping, is_all_written: AtomicBool::new(false), shadow }))
    }

    /// A copy of `values`.
    pub fn from_slice<T: Copy>(values: &[T]) -> Self {
        let buffer = Self::new(size_of_val(values));
        buffer.write(0, values);
        buffer
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The bytes, for reading.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.start
    }

    /// The bytes, for writing: from now on all of them count as written.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.0.is_all_written.store(true, Ordering::Relaxed);
        self.0.start
    }

    /// The bytes, for writing; the caller says with [`Self::mark_written`] which ones it wrote.
    pub fn as_unmarked_mut_ptr(&self) -> *mut u8 {
        self.0.start
    }

    /// Counts a range of bytes as written.
    ///
    /// # Panics
    /// When the range is not inside the buffer.
    pub fn mark_written(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.0.len, "{range:?} of a buffer of {} bytes", self.0.len);
        if range == (0..self.0.len) {
            self.0.is_all_written.store(true, Ordering::Relaxed);
        } else {
            self.0.shadow.mark_written(range);
        }
    }

    /// Copies `values` to byte `offset`.
    ///
    /// # Panics
    /// When they don't fit.
    pub fn write<T: Copy>(&self, offset: usize, values: &[T]) {
        let bytes = size_of_val(values);
        self.mark_written(offset..offset + bytes);
        // SAFETY: `mark_written` checked the range.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr().cast(), self.0.start.add(offset), bytes) };
    }

    /// All whole values of type `T`. The caller knows that every bit pattern is one (numbers are, `bool` is not).
    pub fn read<T: Copy>(&self) -> Vec<T> {
        let count = self.0.len / size_of::<T>();
        // SAFETY: the first `count` values lie inside the buffer.
        (0..count).map(|i| unsafe { self.0.start.cast::<T>().add(i).read_unaligned() }).collect()
    }

    pub(crate) fn address(&self) -> usize {
        self.0.start as usize
    }

    pub(crate) fn shadow(&self) -> &Shadow {
        &self.0.shadow
    }

    pub(crate) fn is_all_written(&self) -> bool {
        self.0.is_all_written.load(Ordering::Relaxed)
    }
}

impl Debug for Buffer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:p})", self.0.len, self.0.start)
    }
}

impl PartialEq for Buffer {
    /// Whether both are the same memory.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Buffer {}

impl Debug for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.len).field("mapping", &self.mapping.len).finish_non_exhaustive()
    }
}

/// Address space from the kernel, unusable until opened; opened pages are zero and take no memory until written.
pub(crate) struct Mapping {
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
}

// SAFETY: plain address space; who writes where is the owner's matter.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn reserve(len: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping touches no other memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert!(start != libc::MAP_FAILED, "no address space for {len} bytes");
        Self { start: start.cast(), len }
    }

    /// Makes a page-aligned range readable and writable.
    pub(crate) fn open(&self, range: Range<usize>) {
        assert!(range.end <= self.len);
        // SAFETY: the range lies in this mapping.
        let rc = unsafe {
            libc::mprotect(self.start.add(range.start).cast(), range.len(), libc::PROT_READ | libc::PROT_WRITE)
        };
        assert!(rc == 0, "cannot open {} bytes of memory", range.len());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody else unmaps it, and its owner is gone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

//! Fuzz targets for what the engine reads from strangers, in the layout of cargo-fuzz: `cargo xtask fuzz` builds and runs
//! them. What they do with an input is in `crates/engine/src/fuzzing/`, one file each, with what an input is made of.
//!
//! `corpus/` keeps one input for each thing there is to reach, and one for each bug that was found; a test of the engine
//! replays them. `docs/ARCHITECTURE.md` says how to work with it.
//!
//! This file is a limit of memory: an input of some kilobytes that makes the engine hold more is a finding. libFuzzer's own
//! limit sees only memory that was written to, not what a header claims.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes for each of an input: words, and what is noted of each.
const FOR_EACH_BYTE: usize = 64;

/// Calls `target` with an input, for which it may hold `most_mib` MiB and some bytes for each of its bytes.
///
/// Aborts where it holds more at any time.
pub fn run(target: fn(&[u8]), data: &[u8], most_mib: usize) {
    let most = (most_mib << 20) + FOR_EACH_BYTE * data.len();
    LIMIT.store(HELD.load(Ordering::Relaxed).saturating_add(most), Ordering::Relaxed);
    target(data);
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;
static HELD: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        hold(size);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn hold(size: usize) {
    let held = HELD.fetch_add(size, Ordering::Relaxed).saturating_add(size);
    let limit = LIMIT.load(Ordering::Relaxed);
    // A panic is a finding already; what tells of it is not the engine's, and may not be asked for again inside of itself.
    if held > limit && !std::thread::panicking() {
        // What tells of it allocates, too.
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        eprintln!("{size} bytes more make {held}, more than {limit}\n{}", Backtrace::force_capture());
        std::process::abort();
    }
}

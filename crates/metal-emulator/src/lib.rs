//! Runs Metal kernels on the CPU, for tests on Linux: no Mac, no GPU.
//!
//! The Metal Shading Language is C++14 with address spaces, so clang compiles `.metal` files as C++ against a small
//! `metal_stdlib` (`shim/`), and every thread of a threadgroup runs as a fiber on one CPU thread. The build script
//! compiles each file twice: [`Checks::Fast`], which only stops at guard pages behind buffers, and [`Checks::Full`],
//! where every load and store is looked at. What Metal leaves undefined is a [`Fault`] that names kernel, thread and
//! address.
//!
//! ```no_run
//! use metal_emulator::{Buffer, Launch, library};
//!
//! let x = Buffer::from_slice(&[1f32, 2.0, 3.0, 4.0]);
//! let y = Buffer::new(16);
//! Launch::new(library("candle/unary").unwrap(), "exp_f32")
//!     .threadgroups([1, 1, 1], [4, 1, 1])
//!     .value(0, &4usize)
//!     .buffer(1, &x, 0)
//!     .buffer(2, &y, 0)
//!     .run()?;
//! let exp: Vec<f32> = y.read();
//! # Ok::<(), metal_emulator::Fault>(())
//! ```
//!
//! It never ships: only tests depend on it, and on macOS, where Metal itself runs, it is empty. It says nothing of speed,
//! registers, or whether Apple's compiler takes the source ([`lint`] finds wrong address spaces).
//!
//! Start reading in `launch.rs`; then `machine.rs` (the scheduler), `memory.rs` and `shadow.rs` (the checks) and `build/` (from `.metal`
//! to a shared object).
#![cfg(target_os = "linux")]
#![warn(missing_docs)]

#[expect(unsafe_code, reason = "it owns mapped memory")]
mod buffer;
pub mod build;
pub mod coverage;
mod fault;
#[expect(unsafe_code, reason = "it switches stacks")]
mod fibers;
#[expect(unsafe_code, reason = "it reads what a loaded library describes")]
mod image;
mod launch;
pub mod lint;
#[expect(unsafe_code, reason = "it runs compiled kernels, which call back")]
mod machine;
#[expect(unsafe_code, reason = "it reads shadow memory by address")]
mod memory;
mod registry;
#[expect(unsafe_code, reason = "shadow memory is mapped, and as large as what it shadows")]
mod shadow;
#[expect(unsafe_code, reason = "it handles signals")]
mod signals;

pub use buffer::Buffer;
pub use fault::{Access, Address, Fault, FaultKind, SourceLine};
pub use launch::{ConstantId, ConstantValue, Launch};
pub use registry::{Library, libraries, library, library_with_source};

/// What a launch looks at while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checks {
    /// Every load and store: bounds, memory that nobody wrote, alignment, races. 2 to 8 times slower than `Fast`.
    Full,
    /// Guard pages behind buffers, barriers, SIMD operations and threadgroup memory's size. What the kernel does with
    /// buffers counts as written.
    Fast,
}

/// In which order the threads of a threadgroup, its SIMD-groups and the threadgroups of a grid run. Metal promises
/// none, so a kernel must give the same result in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// By index.
    Forward,
    /// From the last to the first.
    Reverse,
    /// Pseudo-random, the same for the same seed.
    Shuffled(u64),
}

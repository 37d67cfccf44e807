//! What a kernel did that Metal leaves undefined, in plain words.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

/// A launch that was stopped: what happened, in which kernel and thread. The buffers hold what was written until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Host name of the kernel.
    pub kernel: String,
    /// Position of the threadgroup in the grid.
    pub threadgroup: [u32; 3],
    /// Position of the thread in its threadgroup; none where a whole SIMD-group or threadgroup is at fault.
    pub thread: Option<[u32; 3]>,
    /// The line of the `.metal` file, where debug information says it.
    pub line: Option<SourceLine>,
    /// What happened.
    pub kind: FaultKind,
}

impl std::error::Error for Fault {}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if !matches!(self.kind, FaultKind::BadLaunch(_)) {
            write!(f, ", threadgroup {:?}", self.threadgroup)?;
        }
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread:?}")?;
        }
        if let Some(line) = &self.line {
            write!(f, ", {line}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

/// A line of a source file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceLine {
    /// The file as it was compiled.
    pub file: &'static Path,
    /// Counted from 1.
    pub line: u32,
}

impl Display for SourceLine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// How memory was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Access {
    Read,
    Write,
    Atomic,
}

impl Display for Access {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic operation",
        })
    }
}

/// An address as the kernel's author knows it. Offsets are bytes from the start of the buffer or variable, negative
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// In or near the buffer bound at an index: from the start of the buffer, not from the binding's offset.
    #[expect(missing_docs, reason = "said above")]
    Buffer { index: u32, offset: i64, len: usize },
    /// In or near threadgroup memory that is an argument.
    #[expect(missing_docs, reason = "said above")]
    ThreadgroupArgument { index: u32, offset: i64, len: usize },
    /// In or near a threadgroup variable; variables count in the order in which the kernel reaches them.
    #[expect(missing_docs, reason = "said above")]
    ThreadgroupVariable { ordinal: u32, offset: i64, len: usize },
    /// An argument that the launch bound nothing to.
    #[expect(missing_docs, reason = "said above")]
    Unbound { index: u32, offset: i64 },
    /// Far from anything that the kernel was given.
    Wild(usize),
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffer { index, offset, len } => write!(f, "byte {offset} of buffer {index} ({len} bytes)"),
            Self::ThreadgroupArgument { index, offset, len } => {
                write!(f, "byte {offset} of threadgroup argument {index} ({len} bytes)")
            }
            Self::ThreadgroupVariable { ordinal, offset, len } => {
                write!(f, "byte {offset} of threadgroup variable {ordinal} ({len} bytes)")
            }
            Self::Unbound { index, offset } => write!(f, "byte {offset} of buffer {index}, to which nothing is bound"),
            Self::Wild(address) => write!(f, "address {address:#x}, far from every buffer"),
        }
    }
}

/// What happened. The sections are those of the Metal Shading Language Specification, version 4.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are in the messages")]
pub enum FaultKind {
    /// Outside every buffer and threadgroup variable.
    #[error("{access} of {size} bytes out of bounds at {address}")]
    OutOfBounds { access: Access, size: usize, address: Address },
    /// Neither the host nor a kernel wrote these bytes before; threadgroup memory starts unwritten.
    #[error("read of {size} bytes that nobody wrote at {address}")]
    Uninitialized { size: usize, address: Address },
    /// A write to the argument table's own copy (`set_bytes`) or to another constant.
    #[error("write of {size} bytes to constant memory at {address}")]
    ReadOnly { size: usize, address: Address },
    /// A vector or scalar that is not at a multiple of its size (section 2.2.3; packed vectors have their elements').
    #[error("{access} of {size} bytes is not aligned to its size at {address}")]
    Misaligned { access: Access, size: usize, address: Address },
    /// Two threads of a threadgroup, one of them writing, with no barrier between that orders this memory (6.9.1).
    #[error("{access} at {address} races with the {other_access} of thread {other:?}, no barrier between")]
    Race { access: Access, address: Address, other: [u32; 3], other_access: Access },
    /// Two threadgroups of one grid, one of them writing; nothing orders them.
    #[error("{access} at {address} races with a {other_access} of another threadgroup")]
    ThreadgroupRace { access: Access, address: Address, other_access: Access },
    /// More than the 32 KiB of every Apple GPU.
    #[error("{bytes} bytes of threadgroup memory, of which there are 32768")]
    ThreadgroupMemory { bytes: usize },
    /// A SIMD-group operation that not all threads of the SIMD-group execute together (6.9.2). Without full checks,
    /// threads that have ended don't count.
    #[error("SIMD-group {simdgroup}: {active} of {live} threads are in a SIMD-group operation, the others are not")]
    DivergentSimd { simdgroup: u32, active: u32, live: u32 },
    /// A barrier that only some threads of the threadgroup reach (6.9.1: "all threads … must execute").
    #[error("{waiting} threads wait at a barrier, {finished} have ended without it")]
    BarrierNotReached { waiting: u32, finished: u32 },
    /// Threads of one threadgroup that wait at different barriers.
    #[error("threads wait at different barriers, in lines {first} and {second}")]
    BarrierMismatch { first: u32, second: u32 },
    /// Of integers; the result is undefined. Without full checks only on x86-64.
    #[error("integer division by zero")]
    DivisionByZero,
    /// The launch itself is wrong: no such kernel, constant or argument, or too large.
    #[error("{0}")]
    BadLaunch(String),
}

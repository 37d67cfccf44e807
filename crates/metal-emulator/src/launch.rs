//! One dispatch of a kernel: what it is given, and running it.

use crate::buffer::Buffer;
use crate::fault::Fault;
use crate::registry::Library;
use crate::{Checks, Order, machine};

/// A kernel with its arguments, built step by step and run with [`Launch::run`]. One launch runs at a time in a process.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    pub(crate) library: &'a Library,
    pub(crate) kernel: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) per_threadgroup: [u32; 3],
    pub(crate) is_grid_in_threads: bool,
    pub(crate) arguments: Vec<Option<(Buffer, usize, bool)>>,
    pub(crate) threadgroup_memory: Vec<usize>,
    pub(crate) constants: Vec<(ConstantId, ConstantValue)>,
    pub(crate) order: Order,
    pub(crate) checks: Checks,
    pub(crate) opens_barriers_early: bool,
}

/// A function constant by its `[[function_constant(index)]]` or by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ConstantId {
    Index(u32),
    Name(String),
}

impl From<u32> for ConstantId {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl From<&str> for ConstantId {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// The value of a function constant; its size must be the constant's, except that an integer may be wider.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ConstantValue {
    Bool(bool),
    Int(i64),
    Float(f32),
}

impl From<bool> for ConstantValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i32> for ConstantValue {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<u32> for ConstantValue {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<usize> for ConstantValue {
    fn from(value: usize) -> Self {
        Self::Int(value as i64)
    }
}

impl From<f32> for ConstantValue {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

impl<'a> Launch<'a> {
    /// A launch of the kernel with this host name: one thread, [`Order::Forward`], [`Checks::Full`].
    pub fn new(library: &'a Library, kernel: &'a str) -> Self {
        Self {
            library,
            kernel,
            grid: [1; 3],
            per_threadgroup: [1; 3],
            is_grid_in_threads: false,
            arguments: Vec::new(),
            threadgroup_memory: Vec::new(),
            constants: Vec::new(),
            order: Order::Forward,
            checks: Checks::Full,
            opens_barriers_early: false,
        }
    }

    /// The grid in threadgroups, each of `per_threadgroup` threads (`dispatchThreadgroups`).
    pub fn threadgroups(mut self, threadgroups: [u32; 3], per_threadgroup: [u32; 3]) -> Self {
        (self.grid, self.per_threadgroup, self.is_grid_in_threads) = (threadgroups, per_threadgroup, false);
        self
    }

    /// The grid in threads; threadgroups at its border are smaller (`dispatchThreads`).
    pub fn threads(mut self, threads: [u32; 3], per_threadgroup: [u32; 3]) -> Self {
        (self.grid, self.per_threadgroup, self.is_grid_in_threads) = (threads, per_threadgroup, true);
        self
    }

    /// Binds `buffer` from byte `offset` on at an argument index.
    pub fn buffer(self, index: u32, buffer: &Buffer, offset: usize) -> Self {
        self.argument(index, buffer.clone(), offset, false)
    }

    /// Binds a copy of `bytes`, which the kernel can't write (`setBytes`).
    pub fn bytes(self, index: u32, bytes: &[u8]) -> Self {
        self.argument(index, Buffer::from_slice(bytes), 0, true)
    }

    /// Binds the bytes of a value or of an array. Padding inside of it counts as written.
    pub fn value<T: Copy>(self, index: u32, value: &T) -> Self {
        self.argument(index, Buffer::from_slice(std::slice::from_ref(value)), 0, true)
    }

    /// Sets the length in bytes of a threadgroup memory argument.
    pub fn threadgroup_memory(mut self, index: u32, len: usize) -> Self {
        let index = index as usize;
        self.threadgroup_memory.resize(self.threadgroup_memory.len().max(index + 1), 0);
        self.threadgroup_memory[index] = len;
        self
    }

    /// Sets a function constant. One that the kernel's file declares and no launch sets is not defined
    /// (`is_function_constant_defined`) and zero.
    pub fn constant(mut self, id: impl Into<ConstantId>, value: impl Into<ConstantValue>) -> Self {
        self.constants.push((id.into(), value.into()));
        self
    }

    /// The order in which threads run.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// What is looked at.
    pub fn checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// Opens a barrier when every thread that has not ended waits there, as Apple's GPUs do; Metal only promises it when
    /// all threads come (6.9.1). For kernels that are known to rely on it.
    pub fn open_barriers_early(mut self) -> Self {
        self.opens_barriers_early = true;
        self
    }

    /// Runs all threads of the grid and returns when the last has ended, or at the first fault.
    ///
    /// # Errors
    /// What the kernel did that Metal leaves undefined, or what is wrong with the launch.
    pub fn run(&self) -> Result<(), Fault> {
        machine::run(self)
    }

    fn argument(mut self, index: u32, buffer: Buffer, offset: usize, is_constant: bool) -> Self {
        let index = index as usize;
        self.arguments.resize(self.arguments.len().max(index + 1), None);
        self.arguments[index] = Some((buffer, offset, is_constant));
        self
    }
}

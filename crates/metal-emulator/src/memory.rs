//! What a launch may touch, and whether an access to it is right.

use std::ops::Range;
use std::ptr;

use crate::buffer::{Buffer, Mapping};
use crate::fault::{Access, Address, FaultKind};
use crate::image::{ALIGNED, ATOMIC, UPDATE, WRITE};
use crate::shadow::{Cell, Clock, Conflict, Mark, Shadow};

const PAGE: usize = 4096;
const THREADGROUP_MEMORY: usize = 32 << 10;
/// Threadgroup memory is spread over this much: variables lie apart, so that an index past the end of one doesn't hit
/// the next.
pub(crate) const ARENA: usize = 512 << 10;
/// What stands for arguments that nothing is bound to: a page for each index. There is another half behind it that may
/// be read, for arguments that a function constant switches off.
pub(crate) const UNBOUND: usize = 32 * PAGE;
/// Farther than this from every buffer, an address says nothing.
const FAR: usize = 1 << 30;

const DEVICE: usize = 0;
const THREADGROUP: usize = 1;
/// `mem_flags::mem_device` and `mem_flags::mem_threadgroup`, by the indices above.
const MEM_FLAGS: [u32; 2] = [1, 2];

/// A thread's barriers with its SIMD-group, by device and threadgroup memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Steps([u16; 2]);

impl Steps {
    pub(crate) fn pass_barrier(&mut self, flags: u32) {
        for (step, flag) in self.0.iter_mut().zip(MEM_FLAGS) {
            *step = step.wrapping_add(u16::from(flags & flag != 0));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Buffer { index: u32, is_constant: bool },
    ThreadgroupArgument(u32),
    ThreadgroupVariable { ordinal: u32, key: usize },
}

struct Region {
    place: Place,
    start: usize,
    len: usize,
    /// Null in threadgroup memory, whose cells say it.
    written: *mut u8,
    cells: *mut Cell,
    is_all_written: bool,
}

/// Where threadgroup memory lies.
pub(crate) struct Arena {
    start: *mut u8,
    cells: *mut Cell,
    used: usize,
    /// Without the gaps.
    bytes: usize,
}

impl Arena {
    pub(crate) fn new(mapping: &Mapping, shadow: Option<&Shadow>) -> Self {
        let cells = shadow.map_or(ptr::null_mut(), Shadow::cells);
        Self { start: mapping.start.wrapping_add(PAGE), cells, used: ARENA, bytes: 0 }
    }
}

pub(crate) struct Memory {
    /// Buffers first, then threadgroup memory.
    regions: Vec<Region>,
    buffers: usize,
    last: usize,
    arena: Arena,
    unbound: usize,
    image: Range<usize>,
    launch_epoch: u32,
    group_epoch: u32,
    /// Of device and of threadgroup memory.
    epochs: [u32; 2],
    /// Threads of the threadgroup.
    size: [u32; 3],
}

impl Memory {
    pub(crate) fn new(arena: Arena, unbound: usize, image: Range<usize>, epoch: u32) -> Self {
        let (launch_epoch, group_epoch, epochs) = (epoch, epoch, [epoch; 2]);
        let (regions, buffers, last, size) = (Vec::new(), 0, 0, [1; 3]);
        Self { regions, buffers, last, arena, unbound, image, launch_epoch, group_epoch, epochs, size }
    }

    /// Before the first threadgroup.
    pub(crate) fn bind(&mut self, index: u32, buffer: &Buffer, is_constant: bool, is_full: bool) {
        if !is_full && !is_constant {
            // Nobody looks at what is written now, and a later launch with full checks may read it.
            buffer.mark_written(0..buffer.len());
        }
        if self.regions.iter().any(|region| region.start == buffer.address()) {
            return;
        }
        let shadow = buffer.shadow();
        self.regions.push(Region {
            place: Place::Buffer { index, is_constant },
            start: buffer.address(),
            len: buffer.len(),
            written: if is_full { shadow.written() } else { ptr::null_mut() },
            cells: if is_full { shadow.cells() } else { ptr::null_mut() },
            is_all_written: buffer.is_all_written(),
        });
        self.buffers = self.regions.len();
    }

    pub(crate) fn start_threadgroup(&mut self, epoch: u32, size: [u32; 3]) {
        // SAFETY: the arena's open part. What a threadgroup finds there is undefined: NaN.
        unsafe { self.arena.start.write_bytes(0xFF, self.arena.used) };
        self.regions.truncate(self.buffers);
        (self.arena.used, self.arena.bytes, self.last) = (0, 0, 0);
        (self.group_epoch, self.epochs, self.size) = (epoch, [epoch; 2], size);
    }

    pub(crate) fn pass_barrier(&mut self, flags: u32, epoch: u32) {
        for (of_space, flag) in self.epochs.iter_mut().zip(MEM_FLAGS) {
            if flags & flag != 0 {
                *of_space = epoch;
            }
        }
    }

    /// Threadgroup memory for one argument or variable.
    pub(crate) fn allocate(&mut self, place: Place, len: usize, align: usize) -> Result<*mut u8, FaultKind> {
        self.arena.bytes = self.arena.bytes.next_multiple_of(align.max(1)) + len;
        let offset = self.arena.used.next_multiple_of(128);
        if self.arena.bytes > THREADGROUP_MEMORY || offset + len > ARENA {
            return Err(FaultKind::ThreadgroupMemory { bytes: self.arena.bytes });
        }
        self.arena.used = (offset + len + len.max(1024)).min(ARENA);
        let start = self.arena.start.wrapping_add(offset);
        let cells = self.arena.cells.wrapping_add(if self.arena.cells.is_null() { 0 } else { offset });
        let written = ptr::null_mut();
        self.regions.push(Region { place, start: start as usize, len, written, cells, is_all_written: false });
        Ok(start)
    }

    /// Where the variable with this key lies in the threadgroup's memory; the first thread that comes by allocates it.
    pub(crate) fn variable(&mut self, key: usize, len: usize, align: usize) -> Result<*mut u8, FaultKind> {
        let variables = || {
            self.regions[self.buffers..].iter().filter_map(|region| match region.place {
                Place::ThreadgroupVariable { key, .. } => Some((key, region.start)),
                _ => None,
            })
        };
        if let Some((_, start)) = variables().find(|(of, _)| *of == key) {
            return Ok(start as *mut u8);
        }
        let ordinal = variables().count() as u32;
        self.allocate(Place::ThreadgroupVariable { ordinal, key }, len, align)
    }

    /// What is wrong with an access to memory, if anything.
    pub(crate) fn check(
        &mut self,
        address: usize,
        size: usize,
        flags: u32,
        thread: u32,
        steps: Steps,
    ) -> Option<FaultKind> {
        let is_write = flags & WRITE != 0;
        let is_atomic = flags & ATOMIC != 0;
        let access = access_kind(is_write, is_atomic);
        let holds = |region: &Region| address >= region.start && address - region.start <= region.len;
        let fits = |region: &Region| holds(region) && region.len - (address - region.start) >= size;
        if !self.regions.get(self.last).is_some_and(fits) {
            match self.regions.iter().position(fits) {
                Some(region) => self.last = region,
                // Tables in constant memory and function constants.
                None if !is_write && self.image.contains(&address) => return None,
                None => return Some(FaultKind::OutOfBounds { access, size, address: self.nearest(address) }),
            }
        }
        let index = self.last;
        if flags & ALIGNED != 0 && !address.is_multiple_of(size) {
            return Some(FaultKind::Misaligned { access, size, address: self.name(index, address) });
        }
        let region = &self.regions[index];
        let is_buffer = matches!(region.place, Place::Buffer { .. });
        if is_write && matches!(region.place, Place::Buffer { is_constant: true, .. }) {
            return Some(FaultKind::ReadOnly { size, address: self.name(index, address) });
        }
        let space = if is_buffer { DEVICE } else { THREADGROUP };
        let now = Mark::new(self.epochs[space], thread, steps.0[space], is_atomic);
        let clock = Clock {
            launch: if is_buffer { self.launch_epoch } else { self.group_epoch },
            threadgroup: self.group_epoch,
        };
        let offset = address - region.start;
        for byte in offset..offset + size {
            // SAFETY: each byte of a region has its cell and, if it is a buffer's, its byte in `written`.
            let (cell, written) = unsafe { (&mut *region.cells.add(byte), region.written.wrapping_add(byte)) };
            let is_read = !is_write || flags & UPDATE != 0;
            if is_read && !region.is_all_written {
                let is_written =
                    // SAFETY: as above.
                    if is_buffer { unsafe { *written != 0 } } else { cell.is_written_since(self.group_epoch) };
                if !is_written {
                    return Some(FaultKind::Uninitialized { size, address: self.name(index, region.start + byte) });
                }
            }
            if let Some(conflict) = cell.touch(now, clock, is_write) {
                return Some(self.race(access, self.name(index, region.start + byte), conflict));
            }
            if is_write && is_buffer {
                // SAFETY: as above.
                unsafe { *written = 1 };
            }
        }
        None
    }

    fn race(&self, access: Access, address: Address, conflict: Conflict) -> FaultKind {
        match conflict {
            Conflict::Thread { index, is_write, is_atomic } => FaultKind::Race {
                access,
                address,
                other: [
                    index % self.size[0],
                    index / self.size[0] % self.size[1],
                    index / (self.size[0] * self.size[1]),
                ],
                other_access: access_kind(is_write, is_atomic),
            },
            Conflict::Threadgroup { is_write, is_atomic } => {
                FaultKind::ThreadgroupRace { access, address, other_access: access_kind(is_write, is_atomic) }
            }
        }
    }

    /// An address in the words of what lies next to it.
    pub(crate) fn nearest(&self, address: usize) -> Address {
        let unbound = self.unbound;
        if (unbound..unbound + 2 * UNBOUND).contains(&address) {
            let offset = address - unbound;
            return Address::Unbound { index: (offset % UNBOUND / PAGE) as u32, offset: (offset % PAGE) as i64 };
        }
        let distance = |region: &Region| {
            if address < region.start {
                region.start - address
            } else {
                (address - region.start).saturating_sub(region.len)
            }
        };
        let nearest = (0..self.regions.len()).min_by_key(|&index| distance(&self.regions[index]));
        match nearest {
            Some(index) if distance(&self.regions[index]) < FAR => self.name(index, address),
            _ => Address::Wild(address),
        }
    }

    fn name(&self, region: usize, address: usize) -> Address {
        let Region { place, start, len, .. } = self.regions[region];
        let offset = address as i64 - start as i64;
        match place {
            Place::Buffer { index, .. } => Address::Buffer { index, offset, len },
            Place::ThreadgroupArgument(index) => Address::ThreadgroupArgument { index, offset, len },
            Place::ThreadgroupVariable { ordinal, .. } => Address::ThreadgroupVariable { ordinal, offset, len },
        }
    }
}

fn access_kind(is_write: bool, is_atomic: bool) -> Access {
    match (is_atomic, is_write) {
        (true, _) => Access::Atomic,
        (_, true) => Access::Write,
        _ => Access::Read,
    }
}

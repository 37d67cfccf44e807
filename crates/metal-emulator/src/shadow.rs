//! What is known of each byte of memory: whether anybody wrote it, and who touched it last.
//!
//! A race is an access with no barrier since a conflicting one of another thread. Time is counted in epochs: each
//! barrier that orders this memory starts one for the whole threadgroup, each threadgroup starts with a new one, and
//! epochs never repeat, so nothing is ever cleared. Within an epoch a SIMD-group's own barriers count as steps.

use std::ops::Range;
use std::sync::OnceLock;

use crate::buffer::Mapping;

/// The last access of one kind to a byte; epoch 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(crate) struct Mark {
    pub(crate) epoch: u32,
    /// Index in the threadgroup, of which there are at most 1024, and [`ATOMIC_MARK`].
    thread: u16,
    /// Barriers of the SIMD-group in this epoch.
    step: u16,
}

const ATOMIC_MARK: u16 = 1 << 15;
const SIMD_WIDTH: u16 = 32;

impl Mark {
    pub(crate) fn new(epoch: u32, thread: u32, step: u16, is_atomic: bool) -> Self {
        Self { epoch, thread: thread as u16 | if is_atomic { ATOMIC_MARK } else { 0 }, step }
    }

    pub(crate) fn thread(self) -> u32 {
        u32::from(self.thread & !ATOMIC_MARK)
    }

    pub(crate) fn is_atomic(self) -> bool {
        self.thread & ATOMIC_MARK != 0
    }
}

/// Which epochs belong to what is running now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// First epoch of the launch; for threadgroup memory, of the threadgroup.
    pub(crate) launch: u32,
    /// First epoch of the threadgroup.
    pub(crate) threadgroup: u32,
}

/// An earlier access that nothing orders before the one at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Of this thread of the threadgroup.
    Thread { index: u32, is_write: bool, is_atomic: bool },
    /// Of another threadgroup.
    Threadgroup { is_write: bool, is_atomic: bool },
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Cell {
    write: Mark,
    /// The last reader, and one more: of another threadgroup if there was one, else another thread.
    read: Mark,
    other_read: Mark,
}

impl Cell {
    /// Notes an access, and says what it conflicts with.
    pub(crate) fn touch(&mut self, now: Mark, clock: Clock, is_write: bool) -> Option<Conflict> {
        let conflict = conflict(self.write, now, clock, true);
        if !is_write {
            self.note_read(now, clock);
            return conflict;
        }
        let conflict = conflict
            .or_else(|| conflict_with_read(self.read, now, clock))
            .or_else(|| conflict_with_read(self.other_read, now, clock));
        self.write = now;
        conflict
    }

    /// Whether a thread of this threadgroup wrote the byte: for threadgroup memory, which starts unwritten.
    pub(crate) fn is_written_since(&self, epoch: u32) -> bool {
        self.write.epoch >= epoch
    }

    fn note_read(&mut self, now: Mark, clock: Clock) {
        let is_of_another_group = |mark: Mark| (clock.launch..clock.threadgroup).contains(&mark.epoch);
        if is_of_another_group(self.read)
            || (self.read.thread() != now.thread() && !is_of_another_group(self.other_read))
        {
            self.other_read = self.read;
        }
        self.read = now;
    }
}

fn conflict_with_read(mark: Mark, now: Mark, clock: Clock) -> Option<Conflict> {
    conflict(mark, now, clock, false)
}

fn conflict(mark: Mark, now: Mark, clock: Clock, is_write: bool) -> Option<Conflict> {
    if mark.epoch < clock.launch || mark.epoch == 0 || (mark.is_atomic() && now.is_atomic()) {
        return None;
    }
    let is_atomic = mark.is_atomic();
    if mark.epoch < clock.threadgroup {
        return Some(Conflict::Threadgroup { is_write, is_atomic });
    }
    let is_same_simdgroup = mark.thread() / u32::from(SIMD_WIDTH) == now.thread() / u32::from(SIMD_WIDTH);
    let is_ordered = mark.epoch < now.epoch || (is_same_simdgroup && mark.step < now.step);
    (mark.thread() != now.thread() && !is_ordered).then(|| Conflict::Thread {
        index: mark.thread(),
        is_write,
        is_atomic,
    })
}

/// Of a piece of memory, made when it is first needed. Only pages that are used take memory.
#[derive(Default)]
pub(crate) struct Shadow {
    len: usize,
    written: OnceLock<Mapping>,
    cells: OnceLock<Mapping>,
}

impl Shadow {
    pub(crate) fn new(len: usize) -> Self {
        Self { len, ..Self::default() }
    }

    pub(crate) fn mark_written(&self, range: Range<usize>) {
        // SAFETY: callers check that the range lies in the memory, of which each byte has one here.
        unsafe { self.written().add(range.start).write_bytes(1, range.len()) };
    }

    /// One byte for each: 0 or 1.
    pub(crate) fn written(&self) -> *mut u8 {
        self.written.get_or_init(|| open(self.len)).start
    }

    pub(crate) fn cells(&self) -> *mut Cell {
        self.cells.get_or_init(|| open(self.len * size_of::<Cell>())).start.cast()
    }
}

fn open(len: usize) -> Mapping {
    let mapping = Mapping::reserve(len.max(1).next_multiple_of(4096));
    mapping.open(0..mapping.len);
    mapping
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock { launch: 10, threadgroup: 20 };

    fn mark(epoch: u32, thread: u32, step: u16) -> Mark {
        Mark::new(epoch, thread, step, false)
    }

    /// What the second access conflicts with, after the first.
    fn check(first: (Mark, bool), second: (Mark, bool), expected: bool) {
        let mut cell = Cell::default();
        assert_eq!(cell.touch(first.0, CLOCK, first.1), None);
        assert_eq!(cell.touch(second.0, CLOCK, second.1).is_some(), expected, "{first:?} {second:?}");
    }

    #[test]
    fn threads_conflict_unless_a_barrier_is_between() {
        let (me, other) = (mark(20, 1, 0), mark(20, 40, 0));
        check((me, true), (other, false), true);
        check((me, false), (other, true), true);
        check((me, true), (other, true), true);
        check((me, false), (other, false), false);
        check((me, true), (me, true), false);
        check((me, true), (mark(21, 40, 0), true), false);
    }

    #[test]
    fn a_simdgroup_barrier_orders_its_own_threads_only() {
        check((mark(20, 1, 0), true), (mark(20, 2, 1), false), false);
        check((mark(20, 1, 0), true), (mark(20, 2, 0), false), true);
        check((mark(20, 1, 0), true), (mark(20, 40, 1), false), true);
    }

    #[test]
    fn threadgroups_of_one_launch_conflict() {
        check((mark(12, 1, 0), true), (mark(20, 1, 0), true), true);
        check((mark(12, 1, 0), true), (mark(20, 1, 0), false), true);
        check((mark(9, 1, 0), true), (mark(20, 1, 0), true), false);
    }

    #[test]
    fn atomic_operations_conflict_with_plain_ones_only() {
        let atomic = |thread| Mark::new(20, thread, 0, true);
        check((atomic(1), true), (atomic(2), true), false);
        check((atomic(1), true), (mark(20, 2, 0), false), true);
    }

    #[test]
    fn of_several_readers_one_that_conflicts_is_kept() {
        let mut cell = Cell::default();
        for thread in [1, 2, 3] {
            cell.touch(mark(20, thread, 0), CLOCK, false);
        }
        assert!(cell.touch(mark(20, 3, 0), CLOCK, true).is_some());
    }
}

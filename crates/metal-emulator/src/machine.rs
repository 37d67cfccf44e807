//! The scheduler: runs the threadgroups of a launch one after another, each thread a fiber.
//!
//! A thread runs until it ends, reaches a barrier or takes part in a SIMD-group operation. When no thread of a
//! SIMD-group can run, its operation is done for all at once; when none of the threadgroup can, the barrier opens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::{mem, ptr};

use crate::buffer::{Buffer, Mapping};
use crate::coverage;
use crate::fault::{Access, Address, Fault, FaultKind};
use crate::fibers::{Stack, switch};
use crate::image::{self, Collective, Current, Hooks, Kernel, Thread};
use crate::launch::{ConstantId, ConstantValue, Launch};
use crate::registry::Loaded;
use crate::shadow::{Clock, Conflict, Mark, Shadow};
use crate::{Checks, Order};

const SIMD_WIDTH: usize = 32;
const MAX_THREADS: u32 = 1024;
const MAX_BUFFERS: usize = 31;
const THREADGROUP_MEMORY: usize = 32 << 10;
/// Variables lie apart, so that an index past the end of one doesn't hit the next.
const ARENA: usize = 512 << 10;
const PAGE: usize = 4096;

/// What outlives a launch, and its lock: function constants are global variables of the libraries.
struct Machine {
    stacks: Vec<Stack>,
    arena: Mapping,
    arena_shadow: Shadow,
    /// Stands for arguments that nothing is bound to: a page for each index. The upper half may be read, for arguments
    /// that a function constant switches off.
    unbound: Mapping,
    epoch: u32,
}

static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(|| {
    let arena = Mapping::reserve(ARENA + 2 * PAGE);
    arena.open(PAGE..PAGE + ARENA);
    let unbound = Mapping::reserve(2 * UNBOUND);
    unbound.open(UNBOUND..2 * UNBOUND);
    // SAFETY: the upper half was just opened.
    unsafe { unbound.start.add(UNBOUND).write_bytes(0xFF, UNBOUND) };
    Mutex::new(Machine { stacks: Vec::new(), arena, arena_shadow: Shadow::new(ARENA), unbound, epoch: 1 })
});
const UNBOUND: usize = 32 * PAGE;

/// The launch that runs now. Hooks and the signal handler find it here.
static RUN: AtomicPtr<Run> = AtomicPtr::new(ptr::null_mut());

static HOOKS: LazyLock<SharedHooks> = LazyLock::new(|| {
    let current = Box::leak(Box::new(OUTSIDE));
    SharedHooks(Hooks { current, collective, threadgroup_barrier, simdgroup_barrier, threadgroup_variable, access })
});

/// Where the scheduler itself runs a library's code, everything counts as own stack.
const OUTSIDE: Current = Current { thread: ptr::null(), stack_start: 0, stack_len: usize::MAX };

struct SharedHooks(Hooks);
// SAFETY: `current` is written under the machine's lock only.
unsafe impl Send for SharedHooks {}
// SAFETY: as above.
unsafe impl Sync for SharedHooks {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    InCollective(*mut Collective),
    AtBarrier { flags: u32, line: u32 },
    Ended,
}

struct Fiber {
    stack: Option<usize>,
    pointer: usize,
    state: State,
    thread: Thread,
    /// Barriers of its SIMD-group, for device and for threadgroup memory.
    steps: [u16; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Buffer { index: u32, is_constant: bool },
    ThreadgroupArgument(u32),
    ThreadgroupVariable { ordinal: u32, key: usize },
}

struct Region {
    place: Place,
    start: usize,
    len: usize,
    written: *mut u8,
    cells: *mut crate::shadow::Cell,
    is_all_written: bool,
}

const DEVICE: usize = 0;
const THREADGROUP: usize = 1;

struct Run<'a> {
    launch: &'a Launch<'a>,
    kernel_name: &'static str,
    kernel: &'static Kernel,
    loaded: &'static Loaded,
    machine: &'a mut Machine,
    /// Buffers first, then threadgroup memory.
    regions: Vec<Region>,
    buffers: usize,
    last_region: usize,
    arena_used: usize,
    threadgroup_bytes: usize,
    arguments: Vec<*mut u8>,
    fibers: Vec<Fiber>,
    free_stacks: Vec<usize>,
    current: Option<usize>,
    main: usize,
    threadgroup: [u32; 3],
    launch_epoch: u32,
    group_epoch: u32,
    /// Of device and of threadgroup memory.
    epochs: [u32; 2],
    fault: Option<Box<Fault>>,
    signal: Option<(usize, bool)>,
    random: u64,
}

pub(crate) fn run(launch: &Launch<'_>) -> Result<(), Fault> {
    let bad = |why: String| Fault {
        kernel: launch.kernel.to_owned(),
        threadgroup: [0; 3],
        thread: None,
        line: None,
        kind: FaultKind::BadLaunch(why),
    };
    let mut machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded: &'static Loaded = {
        let library = crate::registry::library(launch.library.name());
        library.map(|library| library.loaded(launch.checks)).ok_or_else(|| bad("no such library".into()))?
    };
    let Some((&kernel_name, &kernel)) = loaded.kernels.get_key_value(launch.kernel) else {
        return Err(bad(format!("library {} has no such kernel", launch.library.name())));
    };
    let per_group = launch.per_threadgroup.iter().try_fold(1u32, |product, n| product.checked_mul(*n)).unwrap_or(0);
    if per_group == 0 || per_group > MAX_THREADS {
        return Err(bad(format!("{:?} threads per threadgroup, at most {MAX_THREADS} fit", launch.per_threadgroup)));
    }
    if launch.arguments.len() > MAX_BUFFERS {
        return Err(bad(format!("{} arguments, at most {MAX_BUFFERS} can be bound", launch.arguments.len())));
    }
    for (index, (buffer, offset, _)) in launch.arguments.iter().enumerate().filter_map(|(i, a)| Some((i, a.as_ref()?)))
    {
        if *offset > buffer.len() {
            return Err(bad(format!("buffer {index} is bound at byte {offset} of {}", buffer.len())));
        }
    }
    set_constants(loaded, &launch.constants).map_err(bad)?;
    // SAFETY: the library's hooks are its own variable, written under the machine's lock.
    unsafe { *loaded.image.hooks = &raw const HOOKS.0 };
    catch_signals();
    launch.library.note_launch(kernel_name);
    machine.epoch += 1;
    let launch_epoch = machine.epoch;
    let seed = if let Order::Shuffled(seed) = launch.order { seed } else { 0 };
    let mut run = Run {
        launch,
        kernel_name,
        kernel,
        loaded,
        regions: Vec::new(),
        buffers: 0,
        last_region: 0,
        arena_used: 0,
        threadgroup_bytes: 0,
        arguments: Vec::new(),
        fibers: Vec::new(),
        free_stacks: Vec::new(),
        current: None,
        main: 0,
        threadgroup: [0; 3],
        launch_epoch,
        group_epoch: launch_epoch,
        epochs: [launch_epoch; 2],
        fault: None,
        signal: None,
        random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        machine: &mut machine,
    };
    run.bind_buffers();
    RUN.store((&raw mut run).cast(), Ordering::Release);
    let result = run.grid();
    RUN.store(ptr::null_mut(), Ordering::Release);
    set_current(OUTSIDE);
    result.map_err(|fault| *fault)
}

/// Sets what the launch gives and clears the others.
fn set_constants(loaded: &Loaded, given: &[(ConstantId, ConstantValue)]) -> Result<(), String> {
    for constant in loaded.image.constants() {
        let value = given.iter().rev().find(|(id, _)| match id {
            ConstantId::Index(index) => *index == constant.index,
            ConstantId::Name(name) => name == constant.name(),
        });
        let bytes = match value {
            None => [0; 8],
            Some((_, ConstantValue::Bool(value))) => u64::from(*value).to_le_bytes(),
            Some((_, ConstantValue::Int(value))) => value.to_le_bytes(),
            Some((_, ConstantValue::Float(value))) => u64::from(value.to_bits()).to_le_bytes(),
        };
        if let Some((_, value)) = value
            && (matches!(value, ConstantValue::Float(_)) != constant.is_float
                || constant.is_float && constant.size != 4)
        {
            return Err(format!("function constant {} ({} bytes) is of another type", constant.name(), constant.size));
        }
        // SAFETY: the constant has `size` bytes, at most 8; the machine's lock is held.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), constant.value, constant.size.min(8));
            *constant.is_defined = value.is_some();
        }
    }
    Ok(())
}

impl Run<'_> {
    fn bind_buffers(&mut self) {
        let is_full = self.launch.checks == Checks::Full;
        for (index, argument) in self.launch.arguments.iter().enumerate() {
            let Some((buffer, _, is_constant)) = argument else { continue };
            if self.regions.iter().any(|region| region.start == buffer.address()) {
                continue;
            }
            if !is_full && !is_constant {
                // Nobody looks at what is written now, and a later launch with full checks may read it.
                buffer.mark_written(0..buffer.len());
            }
            let place = Place::Buffer { index: index as u32, is_constant: *is_constant };
            self.regions.push(region(place, buffer, is_full));
        }
        self.buffers = self.regions.len();
    }

    fn grid(&mut self) -> Result<(), Box<Fault>> {
        let Launch { grid, per_threadgroup: per, is_grid_in_threads, .. } = *self.launch;
        let groups = if is_grid_in_threads { [0, 1, 2].map(|i| grid[i].div_ceil(per[i])) } else { grid };
        let threads = if is_grid_in_threads { grid } else { [0, 1, 2].map(|i| grid[i].saturating_mul(per[i])) };
        let count = groups.iter().map(|n| u64::from(*n)).product::<u64>();
        let mut order: Vec<u64> = (0..count).collect();
        self.arrange(&mut order);
        for flat in order {
            let (x, y) = (u64::from(groups[0]), u64::from(groups[1]));
            let at = [(flat % x) as u32, (flat / x % y) as u32, (flat / (x * y)) as u32];
            // At the border of a grid of threads, threadgroups are smaller.
            let size = [0, 1, 2].map(|i| per[i].min(threads[i] - at[i] * per[i]));
            self.threadgroup = at;
            self.threadgroup(at, size, groups, threads)?;
        }
        Ok(())
    }

    fn threadgroup(
        &mut self,
        at: [u32; 3],
        size: [u32; 3],
        groups: [u32; 3],
        grid: [u32; 3],
    ) -> Result<(), Box<Fault>> {
        self.start_threadgroup()?;
        let per = self.launch.per_threadgroup;
        let count = size.iter().product::<u32>();
        let simdgroups = (count as usize).div_ceil(SIMD_WIDTH);
        self.fibers.clear();
        self.fibers.extend((0..count).map(|index| {
            let position = [index % size[0], index / size[0] % size[1], index / (size[0] * size[1])];
            let thread = Thread {
                position_in_grid: [0, 1, 2].map(|i| at[i] * per[i] + position[i]).into(),
                position_in_threadgroup: position.into(),
                threadgroup_position: at.into(),
                threads_per_threadgroup: size.into(),
                threadgroups_per_grid: groups.into(),
                threads_per_grid: grid.into(),
                index_in_threadgroup: index,
                lane: index % SIMD_WIDTH as u32,
                simdgroup: index / SIMD_WIDTH as u32,
                simdgroups: simdgroups as u32,
            };
            Fiber { stack: None, pointer: 0, state: State::Ready, thread, steps: [0; 2] }
        }));
        self.free_stacks = (0..self.machine.stacks.len()).rev().collect();
        let mut order: Vec<usize> = (0..simdgroups).collect();
        let mut lanes: Vec<usize> = (0..SIMD_WIDTH).collect();
        self.arrange(&mut lanes);
        self.arrange(&mut order);
        loop {
            for &simdgroup in &order {
                self.simdgroup(simdgroup, &lanes)?;
            }
            if !self.open_barrier()? {
                return Ok(());
            }
            if matches!(self.launch.order, Order::Shuffled(_)) {
                self.arrange(&mut lanes);
                self.arrange(&mut order);
            }
        }
    }

    fn start_threadgroup(&mut self) -> Result<(), Box<Fault>> {
        let arena = self.machine.arena.start.wrapping_add(PAGE);
        // SAFETY: the arena's open part. What a threadgroup finds there is undefined: NaN.
        unsafe { arena.write_bytes(0xFF, self.arena_used) };
        self.regions.truncate(self.buffers);
        (self.arena_used, self.threadgroup_bytes, self.last_region) = (0, 0, 0);
        self.machine.epoch += 1;
        self.group_epoch = self.machine.epoch;
        self.epochs = [self.group_epoch; 2];
        let mut threadgroup_arguments = Vec::new();
        for (index, &len) in self.launch.threadgroup_memory.iter().enumerate() {
            let at =
                if len == 0 { None } else { Some(self.allocate(Place::ThreadgroupArgument(index as u32), len, 16)?) };
            threadgroup_arguments.push(at);
        }
        let unbound = self.machine.unbound.start;
        let argument = |parameter: &image::Parameter| {
            let index = parameter.index as usize;
            // SAFETY: a condition is a function of the library that reads constants.
            let is_used = parameter.is_used.is_none_or(|is_used| unsafe { is_used() });
            let page = unbound.wrapping_add(index.min(31) * PAGE + if is_used { 0 } else { UNBOUND });
            match parameter.kind as u8 {
                b'b' if is_used => match self.launch.arguments.get(index).and_then(Option::as_ref) {
                    Some((buffer, offset, _)) => (buffer.address() + offset) as *mut u8,
                    None => page,
                },
                b't' => threadgroup_arguments.get(index).copied().flatten().unwrap_or(page),
                _ => page,
            }
        };
        self.arguments = self.kernel.parameters().iter().map(argument).collect();
        Ok(())
    }

    /// Threadgroup memory for one argument or variable.
    fn allocate(&mut self, place: Place, len: usize, align: usize) -> Result<*mut u8, Box<Fault>> {
        self.threadgroup_bytes = self.threadgroup_bytes.next_multiple_of(align.max(1)) + len;
        if self.threadgroup_bytes > THREADGROUP_MEMORY {
            return Err(self.fault(None, 0, FaultKind::ThreadgroupMemory { bytes: self.threadgroup_bytes }));
        }
        let offset = self.arena_used.next_multiple_of(128);
        self.arena_used = offset + len + len.max(1024);
        let start = self.machine.arena.start.wrapping_add(PAGE + offset);
        let is_full = self.launch.checks == Checks::Full;
        let cells = if is_full { self.machine.arena_shadow.cells().wrapping_add(offset) } else { ptr::null_mut() };
        self.regions.push(Region {
            place,
            start: start as usize,
            len,
            written: ptr::null_mut(),
            cells,
            is_all_written: false,
        });
        Ok(start)
    }

    /// Runs the threads of a SIMD-group until each has ended or waits at a barrier.
    fn simdgroup(&mut self, simdgroup: usize, lanes: &[usize]) -> Result<(), Box<Fault>> {
        let low = simdgroup * SIMD_WIDTH;
        let high = (low + SIMD_WIDTH).min(self.fibers.len());
        loop {
            for index in lanes.iter().map(|lane| low + lane).filter(|index| *index < high) {
                if self.fibers[index].state == State::Ready {
                    self.resume(index)?;
                }
            }
            // All that take part must be in the same operation of the same line.
            let waiting = |fiber: &Fiber| match fiber.state {
                // SAFETY: the part lies on the stack of a fiber that waits.
                State::InCollective(part) => Some(unsafe { ((*part).line, (*part).run) }),
                _ => None,
            };
            let Some((line, operation)) =
                self.fibers[low..high].iter().filter_map(waiting).min_by_key(|(line, _)| *line)
            else {
                return Ok(());
            };
            let mut parts = [ptr::null_mut::<Collective>(); SIMD_WIDTH];
            let (mut active, mut live) = (0, 0);
            let is_full = self.launch.checks == Checks::Full;
            for (part, fiber) in parts.iter_mut().zip(&mut self.fibers[low..high]) {
                // An operation of the threads that have not ended is defined, and still most often a mistake.
                live += u32::from(is_full || fiber.state != State::Ended);
                if waiting(fiber).is_some_and(|(at, run)| at == line && ptr::fn_addr_eq(run, operation))
                    && let State::InCollective(own) = fiber.state
                {
                    (*part, fiber.state) = (own, State::Ready);
                    active += 1;
                }
            }
            if active != live {
                let kind = FaultKind::DivergentSimd { simdgroup: simdgroup as u32, active, live };
                let mut fault = self.fault(None, 0, kind);
                fault.line = Some(coverage::metal_line(self.launch.library, line));
                return Err(fault);
            }
            // SAFETY: no fiber runs; each part belongs to a fiber that waits.
            unsafe { operation(parts.as_ptr()) };
        }
    }

    /// Lets the threads that wait at a barrier go on; false when all have ended.
    fn open_barrier(&mut self) -> Result<bool, Box<Fault>> {
        let barriers = self.fibers.iter().filter_map(|fiber| match fiber.state {
            State::AtBarrier { flags, line } => Some((flags, line)),
            _ => None,
        });
        let (mut waiting, mut first, mut different) = (0, None, None);
        for (flags, line) in barriers {
            let (_, first_line) = *first.get_or_insert((flags, line));
            waiting += 1;
            if line != first_line {
                different = Some(line);
            }
        }
        let Some((flags, line)) = first else { return Ok(false) };
        let finished = self.fibers.len() as u32 - waiting;
        let kind = match different {
            _ if finished > 0 && !self.launch.opens_barriers_early => {
                Some(FaultKind::BarrierNotReached { waiting, finished })
            }
            Some(second) => Some(FaultKind::BarrierMismatch { first: line.min(second), second: line.max(second) }),
            None => None,
        };
        if let Some(kind) = kind {
            let mut fault = self.fault(None, 0, kind);
            fault.line = Some(coverage::metal_line(self.launch.library, line));
            return Err(fault);
        }
        self.machine.epoch += 1;
        for (space, flag) in [(DEVICE, MEM_DEVICE), (THREADGROUP, MEM_THREADGROUP)] {
            if flags & flag != 0 {
                self.epochs[space] = self.machine.epoch;
            }
        }
        for fiber in self.fibers.iter_mut().filter(|fiber| fiber.state != State::Ended) {
            fiber.state = State::Ready;
        }
        Ok(true)
    }

    /// Runs one thread until it waits or ends.
    fn resume(&mut self, index: usize) -> Result<(), Box<Fault>> {
        if self.fibers[index].stack.is_none() {
            // A thread that never waits leaves its stack to the next.
            let stack = self.free_stacks.pop().unwrap_or_else(|| {
                self.machine.stacks.push(Stack::new());
                self.machine.stacks.len() - 1
            });
            self.fibers[index].stack = Some(stack);
            self.fibers[index].pointer = self.machine.stacks[stack].start(enter);
        }
        let stack = self.fibers[index].stack.unwrap_or_default();
        let (stack_start, stack_len) = self.machine.stacks[stack].bounds();
        self.current = Some(index);
        let to = self.fibers[index].pointer;
        set_current(Current { thread: &raw const self.fibers[index].thread, stack_start, stack_len });
        let run: *mut Self = self;
        // SAFETY: the fiber's stack is alive and `to` is where it waits; hooks reach `self` through `RUN` only while
        // this thread is in `switch`.
        unsafe { switch(&raw mut (*run).main, to) };
        set_current(OUTSIDE);
        self.current = None;
        if let Some((address, is_write)) = mem::take(&mut self.signal) {
            let access = if is_write { Access::Write } else { Access::Read };
            let address = self.nearest(address);
            return Err(self.fault(Some(index), 0, FaultKind::OutOfBounds { access, size: 1, address }));
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if self.fibers[index].state == State::Ended {
            self.free_stacks.extend(self.fibers[index].stack);
        }
        Ok(())
    }

    /// What is wrong with an access to memory, if anything.
    fn check(&mut self, address: usize, size: usize, flags: u32) -> Option<FaultKind> {
        let is_write = flags & image::WRITE != 0;
        let is_atomic = flags & image::ATOMIC != 0;
        let access = match (is_atomic, is_write) {
            (true, _) => Access::Atomic,
            (_, true) => Access::Write,
            _ => Access::Read,
        };
        let holds = |region: &Region| address >= region.start && address - region.start <= region.len;
        let fits = |region: &Region| holds(region) && region.len - (address - region.start) >= size;
        if !self.regions.get(self.last_region).is_some_and(fits) {
            let image = self.loaded.image;
            match self.regions.iter().position(fits) {
                Some(region) => self.last_region = region,
                // Tables in constant memory and function constants.
                None if !is_write && (image.start..image.end).contains(&address) => return None,
                None => return Some(FaultKind::OutOfBounds { access, size, address: self.nearest(address) }),
            }
        }
        let index = self.last_region;
        if flags & image::ALIGNED != 0 && !address.is_multiple_of(size) {
            return Some(FaultKind::Misaligned { access, size, address: self.name(index, address) });
        }
        let region = &self.regions[index];
        let is_buffer = matches!(region.place, Place::Buffer { .. });
        if is_write && matches!(region.place, Place::Buffer { is_constant: true, .. }) {
            return Some(FaultKind::ReadOnly { size, address: self.name(index, address) });
        }
        let space = if is_buffer { DEVICE } else { THREADGROUP };
        let me = &self.fibers[self.current?];
        let now = Mark::new(self.epochs[space], me.thread.index_in_threadgroup, me.steps[space], is_atomic);
        let clock = Clock {
            launch: if is_buffer { self.launch_epoch } else { self.group_epoch },
            threadgroup: self.group_epoch,
        };
        let offset = address - region.start;
        for byte in offset..offset + size {
            // SAFETY: each byte of a region has its cell and, if it is a buffer's, its byte in `written`.
            let (cell, written) = unsafe { (&mut *region.cells.add(byte), region.written.wrapping_add(byte)) };
            let is_read = !is_write || flags & image::UPDATE != 0;
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
        let earlier = |is_write, is_atomic| match (is_atomic, is_write) {
            (true, _) => Access::Atomic,
            (_, true) => Access::Write,
            _ => Access::Read,
        };
        match conflict {
            Conflict::Thread { index, is_write, is_atomic } => FaultKind::Race {
                access,
                address,
                other: self.fibers[index as usize].thread.position_in_threadgroup.into(),
                other_access: earlier(is_write, is_atomic),
            },
            Conflict::Threadgroup { is_write, is_atomic } => {
                FaultKind::ThreadgroupRace { access, address, other_access: earlier(is_write, is_atomic) }
            }
        }
    }

    /// An address in the words of what lies next to it.
    fn nearest(&self, address: usize) -> Address {
        let unbound = self.machine.unbound.start as usize;
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

    /// A fault of a thread at an address of code, or of the threadgroup.
    fn fault(&self, thread: Option<usize>, code: usize, kind: FaultKind) -> Box<Fault> {
        let line =
            if code == 0 { None } else { coverage::line_of(self.launch.library, code - self.loaded.image.start) };
        Box::new(Fault {
            kernel: self.kernel_name.to_owned(),
            threadgroup: self.threadgroup,
            thread: thread.map(|index| self.fibers[index].thread.position_in_threadgroup.into()),
            line,
            kind,
        })
    }

    /// Puts indices in the order that the launch asks for.
    fn arrange<T>(&mut self, indices: &mut [T]) {
        match self.launch.order {
            Order::Forward => {}
            Order::Reverse => indices.reverse(),
            Order::Shuffled(_) => {
                for last in (1..indices.len()).rev() {
                    self.random ^= self.random << 13;
                    self.random ^= self.random >> 7;
                    self.random ^= self.random << 17;
                    indices.swap(last, (self.random % (last as u64 + 1)) as usize);
                }
            }
        }
    }
}

/// Farther than this from every buffer, an address says nothing.
const FAR: usize = 1 << 30;
const MEM_DEVICE: u32 = 1;
const MEM_THREADGROUP: u32 = 2;

fn region(place: Place, buffer: &Buffer, is_full: bool) -> Region {
    let shadow = buffer.shadow();
    Region {
        place,
        start: buffer.address(),
        len: buffer.len(),
        written: if is_full { shadow.written() } else { ptr::null_mut() },
        cells: if is_full { shadow.cells() } else { ptr::null_mut() },
        is_all_written: buffer.is_all_written(),
    }
}

fn set_current(current: Current) {
    // SAFETY: the machine's lock is held, and no code of a library runs now.
    unsafe { HOOKS.0.current.write(current) };
}

/// The launch that runs now.
fn running() -> &'static mut Run<'static> {
    // SAFETY: only fibers call this, and they run while `Run::resume` waits in `switch` and touches nothing.
    unsafe { &mut *RUN.load(Ordering::Acquire) }
}

/// Leaves the fiber that runs now until it is resumed.
fn wait(state: State) {
    let run = running();
    let Some(index) = run.current else { return };
    run.fibers[index].state = state;
    let (save, main) = (&raw mut run.fibers[index].pointer, run.main);
    // SAFETY: `main` is where `Run::resume` waits.
    unsafe { switch(save, main) };
}

/// Where every fiber starts.
extern "C" fn enter() -> ! {
    let run = running();
    let index = run.current.unwrap_or_default();
    let (kernel, thread, arguments) = (run.kernel, &raw const run.fibers[index].thread, run.arguments.as_ptr());
    // SAFETY: the kernel describes its own parameters, and there is an argument for each.
    unsafe { (kernel.invoke)(kernel.function, arguments, thread, kernel.parameters().as_ptr()) };
    wait(State::Ended);
    std::process::abort()
}

unsafe extern "C" fn collective(part: *mut Collective) {
    wait(State::InCollective(part));
}

unsafe extern "C" fn threadgroup_barrier(flags: u32, line: u32) {
    wait(State::AtBarrier { flags, line });
}

/// Called by each thread after all of its SIMD-group have met.
unsafe extern "C" fn simdgroup_barrier(flags: u32) {
    let run = running();
    let Some(index) = run.current else { return };
    for (space, flag) in [(DEVICE, MEM_DEVICE), (THREADGROUP, MEM_THREADGROUP)] {
        run.fibers[index].steps[space] += u16::from(flags & flag != 0);
    }
}

unsafe extern "C" fn threadgroup_variable(key: usize, len: usize, align: usize) -> *mut u8 {
    let run = running();
    let known = run.regions[run.buffers..]
        .iter()
        .find(|region| matches!(region.place, Place::ThreadgroupVariable { key: of, .. } if of == key));
    if let Some(region) = known {
        return region.start as *mut u8;
    }
    let is_variable = |region: &&Region| matches!(region.place, Place::ThreadgroupVariable { .. });
    let ordinal = run.regions[run.buffers..].iter().filter(is_variable).count() as u32;
    match run.allocate(Place::ThreadgroupVariable { ordinal, key }, len, align) {
        Ok(at) => at,
        Err(fault) => stop(fault),
    }
}

unsafe extern "C" fn access(address: usize, size: usize, flags: u32, code: usize) {
    let run = running();
    if run.current.is_some_and(|index| is_own_stack(run, index, address)) {
        // The callback only asks about the own stack when the address is misaligned.
        let kind = FaultKind::Misaligned { access: Access::Read, size, address: Address::Wild(address) };
        stop(run.fault(run.current, code, kind));
    }
    if let Some(kind) = run.check(address, size, flags) {
        stop(run.fault(run.current, code, kind));
    }
}

fn is_own_stack(run: &Run, index: usize, address: usize) -> bool {
    let bounds = run.fibers[index].stack.map(|stack| run.machine.stacks[stack].bounds());
    bounds.is_some_and(|(start, len)| (start..start + len).contains(&address))
}

/// Ends the launch from inside a fiber, which is never resumed.
fn stop(fault: Box<Fault>) -> ! {
    let run = running();
    run.fault = Some(fault);
    leave()
}

extern "C" fn leave() -> ! {
    let run = running();
    let mut nowhere = 0;
    // SAFETY: `main` is where `Run::resume` waits.
    unsafe { switch(&raw mut nowhere, run.main) };
    std::process::abort()
}

static mut PREVIOUS: Option<HashMap<i32, libc::sigaction>> = None;

/// Turns a hit of a guard page into a fault of the launch.
fn catch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut previous = HashMap::new();
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: an all-zero sigaction is valid, and the handler below has the right type.
            unsafe {
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                let mut before: libc::sigaction = mem::zeroed();
                libc::sigaction(signal, &raw const action, &raw mut before);
                previous.insert(signal, before);
            }
        }
        // SAFETY: written once, before any fiber runs.
        unsafe { PREVIOUS = Some(previous) };
    });
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: while a fiber runs, whoever started it waits; the kernel made `info` and `context`.
    unsafe {
        if let Some(run) = RUN.load(Ordering::Acquire).as_mut()
            && let Some(index) = run.current
            && is_own_stack(run, index, stack_pointer(context))
        {
            run.signal = Some(((*info).si_addr() as usize, is_write(context)));
            // The fiber is never resumed, so its stack is free from the top.
            let top = run.machine.stacks[run.fibers[index].stack.unwrap_or_default()].top();
            go_to(context, leave as *const () as usize, top);
            return;
        }
        // Not ours: whoever was there before sees it when the instruction runs again.
        #[expect(static_mut_refs, reason = "written once, before any handler can run")]
        if let Some(previous) = PREVIOUS.as_ref().and_then(|previous| previous.get(&signal)) {
            libc::sigaction(signal, previous, ptr::null_mut());
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn stack_pointer(context: *mut libc::ucontext_t) -> usize {
    // SAFETY: the kernel made the context.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize }
}

#[cfg(target_arch = "x86_64")]
unsafe fn is_write(context: *mut libc::ucontext_t) -> bool {
    // SAFETY: as above. Bit 1 of the page fault's error code.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0 }
}

#[cfg(target_arch = "x86_64")]
unsafe fn go_to(context: *mut libc::ucontext_t, code: usize, top: usize) {
    // SAFETY: as above. A function starts 8 bytes below a multiple of 16, as after a call.
    unsafe {
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = code as i64;
        (*context).uc_mcontext.gregs[libc::REG_RSP as usize] = (top - 8) as i64;
    }
}

#[cfg(target_arch = "aarch64")]
unsafe fn stack_pointer(context: *mut libc::ucontext_t) -> usize {
    // SAFETY: the kernel made the context.
    unsafe { (*context).uc_mcontext.sp as usize }
}

/// Not in the context's fixed part.
#[cfg(target_arch = "aarch64")]
unsafe fn is_write(_: *mut libc::ucontext_t) -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
unsafe fn go_to(context: *mut libc::ucontext_t, code: usize, top: usize) {
    // SAFETY: as above.
    unsafe {
        (*context).uc_mcontext.pc = code as u64;
        (*context).uc_mcontext.sp = top as u64;
    }
}

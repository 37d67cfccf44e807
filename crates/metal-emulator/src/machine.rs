//! The scheduler: runs the threadgroups of a launch one after another, each thread a fiber.
//!
//! A thread runs until it ends, reaches a barrier or takes part in a SIMD-group operation. When no thread of a
//! SIMD-group can run, its operation is done for all at once; when none of the threadgroup can, the barrier opens.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::{mem, ptr};

use crate::buffer::Mapping;
use crate::coverage;
use crate::fault::{Access, Address, Fault, FaultKind};
use crate::fibers::{Stack, switch};
use crate::image::{self, Collective, Current, Hooks, Kernel, Thread};
use crate::launch::{ConstantId, ConstantValue, Launch};
use crate::memory::{ARENA, Arena, Memory, Place, Steps, UNBOUND};
use crate::registry::Loaded;
use crate::shadow::Shadow;
use crate::signals::{self, Cause, Interrupt};
use crate::{Checks, Order};

const SIMD_WIDTH: usize = 32;
const MAX_THREADS: u32 = 1024;
const MAX_BUFFERS: usize = 31;
const PAGE: usize = 4096;

/// What outlives a launch, and its lock: function constants are global variables of the libraries.
struct Machine {
    stacks: Vec<Stack>,
    arena: Mapping,
    arena_shadow: Shadow,
    /// See [`UNBOUND`].
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
    steps: Steps,
}

struct Run<'a> {
    launch: &'a Launch<'a>,
    kernel_name: &'static str,
    kernel: &'static Kernel,
    loaded: &'static Loaded,
    machine: &'a mut Machine,
    memory: Memory,
    arguments: Vec<*mut u8>,
    fibers: Vec<Fiber>,
    free_stacks: Vec<usize>,
    current: Option<usize>,
    main: usize,
    threadgroup: [u32; 3],
    fault: Option<Box<Fault>>,
    signal: Option<Interrupt>,
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
    signals::catch();
    launch.library.note_launch(kernel_name);
    machine.epoch += 1;
    let is_full = launch.checks == Checks::Full;
    let arena = Arena::new(&machine.arena, is_full.then_some(&machine.arena_shadow));
    let image = loaded.image.start..loaded.image.end;
    let mut memory = Memory::new(arena, machine.unbound.start as usize, image, machine.epoch);
    for (index, argument) in launch.arguments.iter().enumerate() {
        if let Some((buffer, _, is_constant)) = argument {
            memory.bind(index as u32, buffer, *is_constant, is_full);
        }
    }
    let seed = if let Order::Shuffled(seed) = launch.order { seed } else { 0 };
    let mut run = Run {
        launch,
        kernel_name,
        kernel,
        loaded,
        memory,
        arguments: Vec::new(),
        fibers: Vec::new(),
        free_stacks: Vec::new(),
        current: None,
        main: 0,
        threadgroup: [0; 3],
        fault: None,
        signal: None,
        random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        machine: &mut machine,
    };
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
        self.machine.epoch += 1;
        self.memory.start_threadgroup(self.machine.epoch, size);
        self.bind_arguments()?;
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
            Fiber { stack: None, pointer: 0, state: State::Ready, thread, steps: Steps::default() }
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

    fn bind_arguments(&mut self) -> Result<(), Box<Fault>> {
        let mut threadgroup_arguments = Vec::new();
        for (index, &len) in self.launch.threadgroup_memory.iter().enumerate() {
            let place = Place::ThreadgroupArgument(index as u32);
            let at = if len == 0 { None } else { Some(self.memory.allocate(place, len, 16)) };
            threadgroup_arguments.push(at.transpose().map_err(|kind| self.fault(None, 0, kind))?);
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
            let at_barrier = |fiber: &Fiber| matches!(fiber.state, State::AtBarrier { .. });
            if self.launch.opens_barriers_early && self.fibers[low..high].iter().any(at_barrier) {
                // The barrier opens for those that wait at it, and they catch up.
                return Ok(());
            }
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
        self.memory.pass_barrier(flags, self.machine.epoch);
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
        if let Some(Interrupt { code, cause }) = mem::take(&mut self.signal) {
            let kind = match cause {
                Cause::DivisionByZero => FaultKind::DivisionByZero,
                Cause::BadAddress { address, is_write } => FaultKind::OutOfBounds {
                    access: if is_write { Access::Write } else { Access::Read },
                    size: 1,
                    address: self.memory.nearest(address),
                },
            };
            return Err(self.fault(Some(index), code + 1, kind));
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if self.fibers[index].state == State::Ended {
            self.free_stacks.extend(self.fibers[index].stack);
        }
        Ok(())
    }

    /// A fault of a thread before an address of code, or of the threadgroup.
    fn fault(&self, thread: Option<usize>, code: usize, kind: FaultKind) -> Box<Fault> {
        // Libraries without checks have no line tables.
        let image = self.loaded.image;
        let is_known = self.launch.checks == Checks::Full && (image.start..image.end).contains(&code);
        let line = is_known.then(|| coverage::line_of(self.launch.library, code - image.start)).flatten();
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
    run.fibers[index].steps.pass_barrier(flags);
}

unsafe extern "C" fn threadgroup_variable(key: usize, len: usize, align: usize) -> *mut u8 {
    let run = running();
    match run.memory.variable(key, len, align) {
        Ok(at) => at,
        Err(kind) => stop(run.fault(run.current, 0, kind)),
    }
}

unsafe extern "C" fn access(address: usize, size: usize, flags: u32, code: usize) {
    let run = running();
    if run.current.is_some_and(|index| is_own_stack(run, index, address)) {
        // The callback only asks about the own stack when the address is misaligned.
        let kind = FaultKind::Misaligned { access: Access::Read, size, address: Address::Wild(address) };
        stop(run.fault(run.current, code, kind));
    }
    let Some(me) = run.current.map(|index| &run.fibers[index]) else { return };
    if let Some(kind) = run.memory.check(address, size, flags, me.thread.index_in_threadgroup, me.steps) {
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

/// For the signal handler: notes the interrupt if it was a fiber's, and says where to go on with which stack pointer.
pub(crate) fn interrupt(stack_pointer: usize, interrupt: Interrupt) -> Option<(usize, usize)> {
    // SAFETY: while a fiber runs, whoever started it waits.
    let run = unsafe { RUN.load(Ordering::Acquire).as_mut() }?;
    let index = run.current?;
    if !is_own_stack(run, index, stack_pointer) {
        return None;
    }
    run.signal = Some(interrupt);
    // The fiber is never resumed, so its stack is free from the top.
    let top = run.machine.stacks[run.fibers[index].stack?].top();
    Some((leave as *const () as usize, top))
}

extern "C" fn leave() -> ! {
    let run = running();
    let mut nowhere = 0;
    // SAFETY: `main` is where `Run::resume` waits.
    unsafe { switch(&raw mut nowhere, run.main) };
    std::process::abort()
}

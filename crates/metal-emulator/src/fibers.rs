//! Threads of a GPU as fibers: each has a stack, and the processor moves from one to another by exchanging stack
//! pointers. All of them run on the OS thread that launches.

use std::arch::global_asm;

use crate::buffer::Mapping;

const PAGE: usize = 4096;
/// Kernels keep arrays of registers on the stack, which unoptimized C++ multiplies. Only touched pages take memory.
const STACK: usize = 512 << 10;

unsafe extern "C" {
    /// Saves the registers that a callee must keep, stores the stack pointer at `save`, and goes on at `to`.
    fn metal_emulator_switch(save: *mut usize, to: usize);
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".text",
    ".globl metal_emulator_switch",
    "metal_emulator_switch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov rsp, rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".text",
    ".globl metal_emulator_switch",
    "metal_emulator_switch:",
    "sub sp, sp, #160",
    "stp x19, x20, [sp]",
    "stp x21, x22, [sp, #16]",
    "stp x23, x24, [sp, #32]",
    "stp x25, x26, [sp, #48]",
    "stp x27, x28, [sp, #64]",
    "stp x29, x30, [sp, #80]",
    "stp d8, d9, [sp, #96]",
    "stp d10, d11, [sp, #112]",
    "stp d12, d13, [sp, #128]",
    "stp d14, d15, [sp, #144]",
    "mov x9, sp",
    "str x9, [x0]",
    "mov sp, x1",
    "ldp x19, x20, [sp]",
    "ldp x21, x22, [sp, #16]",
    "ldp x23, x24, [sp, #32]",
    "ldp x25, x26, [sp, #48]",
    "ldp x27, x28, [sp, #64]",
    "ldp x29, x30, [sp, #80]",
    "ldp d8, d9, [sp, #96]",
    "ldp d10, d11, [sp, #112]",
    "ldp d12, d13, [sp, #128]",
    "ldp d14, d15, [sp, #144]",
    "add sp, sp, #160",
    "ret",
);

/// Goes on at the stack pointer `to` and leaves the own one at `save`; returns when somebody switches back.
///
/// # Safety
/// `to` comes from [`Stack::start`] or from a switch that has not been returned to; its stack is alive.
pub(crate) unsafe fn switch(save: *mut usize, to: usize) {
    // SAFETY: the caller's promise.
    unsafe { metal_emulator_switch(save, to) };
}

/// The stack of one fiber, with a guard page below.
pub(crate) struct Stack(Mapping);

impl Stack {
    pub(crate) fn new() -> Self {
        let mapping = Mapping::reserve(STACK + PAGE);
        mapping.open(PAGE..PAGE + STACK);
        Self(mapping)
    }

    pub(crate) fn bounds(&self) -> (usize, usize) {
        (self.0.start as usize, self.0.len)
    }

    /// The highest address that a call may start from.
    pub(crate) fn top(&self) -> usize {
        self.0.start as usize + self.0.len - 64
    }

    /// A stack pointer at which [`switch`] starts `entry`, which must not return.
    pub(crate) fn start(&self, entry: extern "C" fn() -> !) -> usize {
        let mut frame = [0usize; 20];
        let frame = if cfg!(target_arch = "x86_64") {
            // Six registers, the address that `ret` takes, and the place of a return address.
            frame[6] = entry as usize;
            &frame[..8]
        } else {
            // x19 to x29, x30 (where `ret` goes), d8 to d15.
            frame[11] = entry as usize;
            &frame[..]
        };
        let at = self.top() - size_of_val(frame);
        // SAFETY: the frame lies inside the stack, which no fiber uses now.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), at as *mut usize, frame.len()) };
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static MAIN: Cell<usize> = const { Cell::new(0) };
        static FIBER: Cell<usize> = const { Cell::new(0) };
        static STEPS: Cell<u32> = const { Cell::new(0) };
    }

    extern "C" fn count() -> ! {
        let mut kept = 1.5f64;
        loop {
            STEPS.set(STEPS.get() + 1);
            kept *= 2.0;
            // SAFETY: the test waits in its own switch.
            unsafe { switch(FIBER.with(Cell::as_ptr), MAIN.get()) };
            assert!(kept > 2.0);
        }
    }

    #[test]
    fn a_fiber_keeps_its_place_and_its_registers() {
        let stack = Stack::new();
        FIBER.set(stack.start(count));
        let kept = std::hint::black_box(0.25f64);
        for step in 1..=3 {
            // SAFETY: the fiber was started above and switches back each time.
            unsafe { switch(MAIN.with(Cell::as_ptr), FIBER.get()) };
            assert_eq!((STEPS.get(), kept), (step, 0.25));
        }
    }
}

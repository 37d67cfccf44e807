//! Hits of guard pages and divisions by zero, as faults of the launch instead of the end of the process.

use std::sync::OnceLock;
use std::{mem, ptr};

use crate::machine;

/// Signals that a kernel can cause, and who handled them before.
static PREVIOUS: [(i32, OnceLock<libc::sigaction>); 5] = [
    (libc::SIGSEGV, OnceLock::new()),
    (libc::SIGBUS, OnceLock::new()),
    // A division by zero, and what clang inserts before one: on x86-64 and on ARM.
    (libc::SIGFPE, OnceLock::new()),
    (libc::SIGILL, OnceLock::new()),
    (libc::SIGTRAP, OnceLock::new()),
];

/// What a fiber was doing when the signal came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interrupt {
    /// The instruction.
    pub(crate) code: usize,
    pub(crate) cause: Cause,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Cause {
    BadAddress { address: usize, is_write: bool },
    DivisionByZero,
}

/// Installs the handler, once.
pub(crate) fn catch() {
    for (signal, previous) in &PREVIOUS {
        previous.get_or_init(|| {
            // SAFETY: an all-zero sigaction is valid, and the handler has the type that SA_SIGINFO says.
            unsafe {
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                let mut before: libc::sigaction = mem::zeroed();
                libc::sigaction(*signal, &raw const action, &raw mut before);
                before
            }
        });
    }
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel made `info` and `context`.
    unsafe {
        let cause = if [libc::SIGFPE, libc::SIGILL, libc::SIGTRAP].contains(&signal) {
            Cause::DivisionByZero
        } else {
            Cause::BadAddress { address: (*info).si_addr() as usize, is_write: is_write(context) }
        };
        let (stack_pointer, code) = position(context);
        if let Some((code, top)) = machine::interrupt(stack_pointer, Interrupt { code, cause }) {
            go_to(context, code, top);
            return;
        }
        // Not ours: whoever was there before sees it when the instruction runs again.
        if let Some(before) = PREVIOUS.iter().find(|(of, _)| *of == signal).and_then(|(_, before)| before.get()) {
            libc::sigaction(signal, before, ptr::null_mut());
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn position(context: *mut libc::ucontext_t) -> (usize, usize) {
    // SAFETY: the kernel made the context.
    let registers = unsafe { (*context).uc_mcontext.gregs };
    (registers[libc::REG_RSP as usize] as usize, registers[libc::REG_RIP as usize] as usize)
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
unsafe fn position(context: *mut libc::ucontext_t) -> (usize, usize) {
    // SAFETY: the kernel made the context.
    unsafe { ((*context).uc_mcontext.sp as usize, (*context).uc_mcontext.pc as usize) }
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

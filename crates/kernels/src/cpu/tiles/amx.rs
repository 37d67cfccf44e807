//! AMX: sixteen tokens with sixteen rows are one instruction for each 32 weights. What is done with its sums is
//! AVX-512's: the same operations in the same order as for one token, so the same bits.
//!
//! A tile block's eight groups of codes are a tile register as they are. Tokens come in panels of sixteen, whose codes
//! are one too.

#![expect(unsafe_code, reason = "the processor's instructions; `isa` makes sure that it has them")]
#![expect(clippy::needless_range_loop, reason = "closures can't be inlined where instructions are, so loops are plain")]

use core::arch::asm;
use core::arch::x86_64::*;
use std::sync::LazyLock;

use super::avx512::Avx512;
use super::blocks::Blocks;
use super::panels::{PANEL, PANELS, Panel, TOKENS};
use super::product::{self, Task};
use super::simd::{ROWS, Simd};

/// So few tokens beyond whole panels are faster one by one.
pub(crate) const LEAST: usize = 6;

/// 32 weights of each row of a tile.
#[repr(C, align(64))]
struct Weights {
    /// Signed: less the packing's offset.
    codes: [__m512i; 8],
    /// Of each half.
    scales: [__m512; 2],
    mins: __m512,
}

/// Weights that are unpacked at once, as a multiple of 32.
const AT_ONCE: usize = 8;

impl Weights {
    // SAFETY: any bytes are such vectors.
    const NONE: Self = unsafe { core::mem::zeroed() };
}

/// Whole-number sums of 32 weights, or half of them, of a tile's rows with a panel's tokens.
#[repr(C, align(64))]
struct Dots([__m512i; PANEL]);

impl Dots {
    // SAFETY: any bytes are such vectors.
    const NONE: Self = unsafe { core::mem::zeroed() };
}

/// Whether the processor has AMX for bytes and the system lets this process use it, which it is asked for.
pub(crate) fn is_permitted() -> bool {
    static IS_PERMITTED: LazyLock<bool> = LazyLock::new(|| {
        const TILE_AND_INT8: u32 = 3 << 24;
        /// What the system keeps of a thread: the configuration of tiles, and tiles.
        const KEPT: u64 = 3 << 17;
        let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8;
        // SAFETY: the processor was asked about the instruction.
        has && is_x86_feature_detected!("xsave") && unsafe { kept() } & KEPT == KEPT && permission()
    });
    *IS_PERMITTED
}

#[target_feature(enable = "xsave")]
fn kept() -> u64 {
    // SAFETY: register 0 is there wherever the instruction is.
    unsafe { _xgetbv(0) }
}

/// Linux keeps tiles only for processes that asked for them; other systems for all.
fn permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILES: i64 = 18;
    if std::env::consts::OS != "linux" {
        return true;
    }
    let mut result = ARCH_PRCTL;
    // SAFETY: this call reads and writes no memory of the process; the two registers are those that any call changes.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILES, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// As [`product::multiply`], for a task with panels.
///
/// # Safety
/// As there, and [`is_permitted`].
#[inline(always)]
pub(crate) unsafe fn multiply<B: Blocks>(task: &Task<'_>) {
    if B::HAS_MINS && B::HAS_HALVES {
        // Panels have no sums of halves, which one packing alone needs.
        // SAFETY: as asked of the caller.
        return unsafe { product::multiply::<Avx512, B>(task) };
    }
    let groups = task.x.len() / task.tokens;
    let rest = task.tokens % PANEL;
    let by_panels = if rest < LEAST { task.tokens - rest } else { task.tokens };
    // SAFETY: as asked of the caller; tiles are configured while they are used.
    unsafe {
        configure::<B>();
        for (index, panels) in task.panels[..by_panels.div_ceil(PANEL) * groups].chunks(PANELS * groups).enumerate() {
            let token = index * TOKENS;
            panels_product::<B>(task, panels, groups, token, TOKENS.min(by_panels - token));
        }
        release();
    }
    if by_panels < task.tokens {
        let mut output = task.output;
        output.values = output.values.wrapping_add(by_panels * output.rows);
        let tokens = task.tokens - by_panels;
        let rest = Task { x: &task.x[by_panels * groups..], tokens, output, ..*task };
        // SAFETY: as asked of the caller.
        unsafe { product::multiply::<Avx512, B>(&rest) }
    }
}

/// Up to [`PANELS`] panels with all tiles of the task.
#[inline(always)]
unsafe fn panels_product<B: Blocks>(task: &Task<'_>, panels: &[Panel], groups: usize, token: usize, tokens: usize) {
    let mut weights = [const { Weights::NONE }; AT_ONCE];
    let mut dots = [const { [const { Dots::NONE }; AT_ONCE] }; 2];
    for (i, tile) in task.tiles.chunks_exact(task.tile_bytes).enumerate() {
        let mut sums = [[Avx512::floats(0.0); PANEL]; PANELS];
        for (chunk, blocks) in tile.chunks(32 * AT_ONCE / B::WEIGHTS * B::BYTES).enumerate() {
            let count = unpack::<B>(blocks, &mut weights);
            for (panels, sums) in panels.chunks_exact(groups).zip(&mut sums) {
                // SAFETY: as asked of the caller.
                unsafe { panel_product::<B>(&weights[..count], &panels[chunk * AT_ONCE..][..count], &mut dots, sums) }
            }
        }
        let row = (task.first + i) * ROWS;
        for (t, sums) in sums.as_flattened()[..tokens].iter().enumerate() {
            // SAFETY: as asked of the caller.
            unsafe { task.output.write(token + t, row, Avx512::to_array(*sums)) }
        }
    }
}

/// Unpacks tile blocks; gives the number of weights in 32.
#[inline(always)]
fn unpack<B: Blocks>(blocks: &[u8], weights: &mut [Weights; AT_ONCE]) -> usize {
    let parts = B::WEIGHTS / 32;
    let mut count = 0;
    for block in blocks.chunks_exact(B::BYTES) {
        let scales = B::scales::<Avx512>(block);
        for part in 0..parts {
            let to = &mut weights[count];
            let codes = B::codes::<Avx512>(block, part);
            for i in 0..8 {
                // SAFETY: as everywhere here, the processor has AVX-512.
                to.codes[i] = unsafe { _mm512_sub_epi8(codes[i], _mm512_set1_epi8(B::OFFSET as i8)) };
            }
            to.scales = [B::scale(&scales, part, 0), B::scale(&scales, part, 1)];
            to.mins = B::min(&scales, part, 0);
            count += 1;
        }
    }
    count
}

/// Adds the products of one panel, with sums that stay in registers. `dots` is room for what comes between.
#[inline(always)]
unsafe fn panel_product<B: Blocks>(
    weights: &[Weights],
    panels: &[Panel],
    dots: &mut [[Dots; AT_ONCE]; 2],
    sums: &mut [__m512; PANEL],
) {
    // SAFETY: as asked of the caller.
    unsafe { dot_all::<B>(weights, panels, dots) };
    let mut of_tokens = *sums;
    for (i, (of_rows, panel)) in weights.iter().zip(panels).enumerate() {
        for t in 0..PANEL {
            let scale = Avx512::floats(panel.scales[t]);
            let mut sum = of_tokens[t];
            for half in 0..halves::<B>() {
                let scale = Avx512::multiply(of_rows.scales[half], scale);
                sum = Avx512::multiply_add(Avx512::to_floats(dots[half][i].0[t]), scale, sum);
            }
            if B::HAS_MINS {
                sum = Avx512::multiply_add(of_rows.mins, Avx512::floats(panel.sums[t]), sum);
            }
            of_tokens[t] = sum;
        }
    }
    *sums = of_tokens;
}

/// Parts of 32 weights that have sums of their own.
const fn halves<B: Blocks>() -> usize {
    1 + B::HAS_HALVES as usize
}

/// Multiplies each 32 weights of each row with those of each token. Four products are begun before the first is stored:
/// storing waits for what was begun, and a load for what was stored.
#[inline(always)]
unsafe fn dot_all<B: Blocks>(weights: &[Weights], panels: &[Panel], dots: &mut [[Dots; AT_ONCE]; 2]) {
    if cfg!(test) && !is_permitted() {
        return dot_all_in_plain_rust::<B>(weights, panels, dots);
    }
    let halves = halves::<B>();
    let count = weights.len() * halves;
    for first in (0..count).step_by(4) {
        let x = |at: usize| panels[at / halves].codes.as_ptr().wrapping_byte_add(32 / halves * (at % halves));
        let codes = |at: usize| weights[at / halves].codes.as_ptr().wrapping_add(8 / halves * (at % halves));
        let mut to = |at: usize| dots[at % halves][at / halves].0.as_mut_ptr();
        let is_there = |at: usize| first + at < count;
        // SAFETY: as asked of the caller; registers are configured for what is behind the pointers.
        unsafe {
            begin::<0, 4, 6>(x(first), codes(first));
            if is_there(1) {
                begin::<1, 5, 7>(x(first + 1), codes(first + 1));
            }
            if is_there(2) {
                begin::<2, 4, 6>(x(first + 2), codes(first + 2));
            }
            if is_there(3) {
                begin::<3, 5, 7>(x(first + 3), codes(first + 3));
            }
            store::<0>(to(first));
            if is_there(1) {
                store::<1>(to(first + 1));
            }
            if is_there(2) {
                store::<2>(to(first + 2));
            }
            if is_there(3) {
                store::<3>(to(first + 3));
            }
        }
    }
}

/// Register `SUMS` becomes the product of a panel's codes and a tile's, which go through two others.
#[inline(always)]
unsafe fn begin<const SUMS: usize, const X: usize, const CODES: usize>(x: *const [i32; 8], codes: *const __m512i) {
    // SAFETY: as asked of the caller.
    unsafe {
        asm!(
            "tileloadd tmm{x}, [{at_x} + {x_row}]",
            "tileloadd tmm{codes}, [{at_codes} + {codes_row}]",
            "tilezero tmm{sums}",
            "tdpbssd tmm{sums}, tmm{x}, tmm{codes}",
            sums = const SUMS, x = const X, codes = const CODES,
            at_x = in(reg) x, x_row = in(reg) size_of::<[i32; 8]>(),
            at_codes = in(reg) codes, codes_row = in(reg) size_of::<__m512i>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags)
        );
    }
}

#[inline(always)]
unsafe fn store<const SUMS: usize>(to: *mut __m512i) {
    // SAFETY: as asked of the caller.
    unsafe {
        asm!("tilestored [{to} + {row}], tmm{sums}", sums = const SUMS, to = in(reg) to, row = in(reg) size_of::<__m512i>(), options(nostack, preserves_flags));
    }
}

/// Configures registers 0 to 3 for sums, 4 and 5 for tokens and 6 and 7 for weights.
#[inline(always)]
unsafe fn configure<B: Blocks>() {
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    // Four weights of all rows of the tile are one row of a register.
    let groups = 8 / halves::<B>() as u16;
    let of_x = 4 * groups;
    let configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, of_x, of_x, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, groups as u8, groups as u8, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    if cfg!(test) && !is_permitted() {
        return;
    }
    // SAFETY: as asked of the caller; the configuration is one.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly, preserves_flags)) }
}

/// A thread that has no tiles configured is cheaper to interrupt.
#[inline(always)]
unsafe fn release() {
    if cfg!(test) && !is_permitted() {
        return;
    }
    // SAFETY: as asked of the caller.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

/// What [`dot_all`] does, where tests run without AMX: so all else is tested there.
fn dot_all_in_plain_rust<B: Blocks>(weights: &[Weights], panels: &[Panel], dots: &mut [[Dots; AT_ONCE]; 2]) {
    for (i, (weights, panel)) in weights.iter().zip(panels).enumerate() {
        // SAFETY: vectors are their lanes' bytes.
        let codes: &[[[i8; 4]; ROWS]; 8] = unsafe { &*weights.codes.as_ptr().cast() };
        for (t, x) in panel.codes.iter().enumerate() {
            for (half, dots) in dots.iter_mut().enumerate().take(halves::<B>()) {
                let mut sums = [0; ROWS];
                for group in (0..8).filter(|group| group * halves::<B>() / 8 == half) {
                    let x = x[group].to_le_bytes().map(|x| i32::from(x.cast_signed()));
                    for (sum, codes) in sums.iter_mut().zip(&codes[group]) {
                        *sum += codes.iter().zip(x).map(|(code, x)| i32::from(*code) * x).sum::<i32>();
                    }
                }
                // SAFETY: as above.
                dots[i].0[t] = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
            }
        }
    }
}

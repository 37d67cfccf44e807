//! AMX: sixteen tokens with sixteen rows are one instruction for each 32 weights. What is done with its sums is
//! AVX-512's: the same operations in the same order as for one token, so the same bits.
//!
//! A tile block's eight groups of codes are a tile register as they are. Tokens come in panels of sixteen, whose codes
//! are one too.

#![expect(unsafe_code, reason = "the processor's instructions; `isa` makes sure that it has them")]

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

/// Whole-number sums of each half of 32 weights of sixteen rows with a panel's tokens; only the first, where halves are
/// added up.
#[repr(C, align(64))]
struct Dots([[__m512i; PANEL]; 2]);

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
    for (i, tile) in task.tiles.chunks_exact(task.tile_bytes).enumerate() {
        let mut sums = [[Avx512::floats(0.0); PANEL]; PANELS];
        for (chunk, blocks) in tile.chunks(32 * AT_ONCE / B::WEIGHTS * B::BYTES).enumerate() {
            let count = unpack::<B>(blocks, &mut weights);
            for (panels, sums) in panels.chunks_exact(groups).zip(&mut sums) {
                // SAFETY: as asked of the caller.
                unsafe { panel_product::<B>(&weights[..count], &panels[chunk * AT_ONCE..][..count], sums) }
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
            to.mins = B::min(&scales, part);
            count += 1;
        }
    }
    count
}

/// Adds the products of one panel, with sums that stay in registers.
#[inline(always)]
unsafe fn panel_product<B: Blocks>(weights: &[Weights], panels: &[Panel], sums: &mut [__m512; PANEL]) {
    // SAFETY: any bytes are such vectors.
    let mut dots: [Dots; 2] = unsafe { core::mem::zeroed() };
    let mut of_tokens = *sums;
    // SAFETY, here and below: as asked of the caller.
    unsafe { dot::<B>(&weights[0], &panels[0], &mut dots[0]) };
    for (i, (of_rows, panel)) in weights.iter().zip(panels).enumerate() {
        // What comes next is begun first: it takes its time, and other units than what comes here.
        if let (Some(weights), Some(panel)) = (weights.get(i + 1), panels.get(i + 1)) {
            unsafe { dot::<B>(weights, panel, &mut dots[(i + 1) % 2]) };
        }
        let Dots(ints) = &dots[i % 2];
        for t in 0..PANEL {
            let scale = Avx512::floats(panel.scales[t]);
            let mut sum = of_tokens[t];
            for half in 0..1 + usize::from(B::HAS_HALVES) {
                let scale = Avx512::multiply(of_rows.scales[half], scale);
                sum = Avx512::multiply_add(Avx512::to_floats(ints[half][t]), scale, sum);
            }
            if B::HAS_MINS {
                sum = Avx512::multiply_add(of_rows.mins, Avx512::floats(panel.sums[t]), sum);
            }
            of_tokens[t] = sum;
        }
    }
    *sums = of_tokens;
}

/// A tile register's rows and the bytes of one of them: what each has beside the sums' sixteen.
const STRIDE_OF_TOKENS: usize = 32;
const STRIDE_OF_WEIGHTS: usize = 64;

/// Configures registers 0 and 1 for sums, 2 and 3 for tokens and 4 and 5 for weights.
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
    let groups = if B::HAS_HALVES { 4 } else { 8 };
    let configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 4 * groups, 4 * groups, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, groups as u8, groups as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
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

/// Multiplies 32 weights of each row with those of each token.
#[inline(always)]
unsafe fn dot<B: Blocks>(weights: &Weights, panel: &Panel, dots: &mut Dots) {
    if cfg!(test) && !is_permitted() {
        return dot_in_plain_rust::<B>(weights, panel, dots);
    }
    let (x, codes, dots) = (panel.codes.as_ptr(), weights.codes.as_ptr(), dots.0.as_mut_ptr());
    // SAFETY: as asked of the caller; registers are configured for what is behind the references.
    unsafe {
        if B::HAS_HALVES {
            asm!(
                "tileloadd tmm2, [{x} + {of_x}]",
                "tileloadd tmm4, [{codes} + {of_codes}]",
                "tilezero tmm0",
                "tileloadd tmm3, [{x} + {of_x} + 16]",
                "tileloadd tmm5, [{codes} + {of_codes} + 256]",
                "tilezero tmm1",
                "tdpbssd tmm0, tmm2, tmm4",
                "tdpbssd tmm1, tmm3, tmm5",
                "tilestored [{dots} + {of_codes}], tmm0",
                "tilestored [{dots} + {of_codes} + 1024], tmm1",
                x = in(reg) x, codes = in(reg) codes, dots = in(reg) dots,
                of_x = in(reg) STRIDE_OF_TOKENS, of_codes = in(reg) STRIDE_OF_WEIGHTS,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                options(nostack, preserves_flags)
            );
        } else {
            asm!(
                "tileloadd tmm2, [{x} + {of_x}]",
                "tileloadd tmm4, [{codes} + {of_codes}]",
                "tilezero tmm0",
                "tdpbssd tmm0, tmm2, tmm4",
                "tilestored [{dots} + {of_codes}], tmm0",
                x = in(reg) x, codes = in(reg) codes, dots = in(reg) dots,
                of_x = in(reg) STRIDE_OF_TOKENS, of_codes = in(reg) STRIDE_OF_WEIGHTS,
                out("tmm0") _, out("tmm2") _, out("tmm4") _,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// The same where tests run without AMX, so that all else is tested there.
fn dot_in_plain_rust<B: Blocks>(weights: &Weights, panel: &Panel, dots: &mut Dots) {
    // SAFETY: vectors are their lanes' bytes.
    let codes: &[[[i8; 4]; ROWS]; 8] = unsafe { &*weights.codes.as_ptr().cast() };
    // SAFETY: as above.
    let dots: &mut [[[i32; ROWS]; PANEL]; 2] = unsafe { &mut *dots.0.as_mut_ptr().cast() };
    *dots = [[[0; ROWS]; PANEL]; 2];
    for (t, x) in panel.codes.iter().enumerate() {
        for (group, x) in x.iter().enumerate() {
            let half = if B::HAS_HALVES { group / 4 } else { 0 };
            for row in 0..ROWS {
                let products = codes[group][row].iter().zip(x.to_le_bytes());
                dots[half][t][row] += products.map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed())).sum::<i32>();
            }
        }
    }
}

//! The product of tiles with tokens, the same for every instruction set.

#![expect(unsafe_code, reason = "several threads write different parts of an output")]

use super::activations::Group;
use super::blocks::Blocks;
use super::scalar::Scalar;
use super::simd::{ROWS, Simd};

/// Where one matrix's product goes: `(tokens, rows)`, of which several threads write different columns.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) values: *mut f32,
    pub(crate) rows: usize,
    /// Added to every token's product.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Tiles from `first` on, with all of `tokens`, each of which has `columns / 32` groups in `x`.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) tiles: &'a [u8],
    pub(crate) tile_bytes: usize,
    pub(crate) first: usize,
    pub(crate) x: &'a [Group],
    pub(crate) tokens: usize,
    pub(crate) output: Output<'a>,
}

/// Multiplies, with so many tokens at once that their sums stay in registers, and so many of those one after the other
/// that codes are unpacked rarely. Whatever their number, the sum of one row and one token is made in the same order.
///
/// # Safety
/// The processor has the instructions of `S`; `output` has `tokens` rows of `rows` values, and nobody else uses those of
/// these tiles.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, B: Blocks>(task: &Task<'_>) {
    let groups = task.x.len() / task.tokens;
    let mut token = 0;
    while token < task.tokens {
        let x = &task.x[token * groups..];
        // SAFETY: as asked of the caller.
        token += unsafe {
            match task.tokens - token {
                32.. => tokens::<S, B, 8, 4>(task, x, groups, token),
                8.. => tokens::<S, B, 8, 1>(task, x, groups, token),
                4.. => tokens::<S, B, 4, 1>(task, x, groups, token),
                2.. => tokens::<S, B, 2, 1>(task, x, groups, token),
                _ => tokens::<S, B, 1, 1>(task, x, groups, token),
            }
        };
    }
}

/// `T · R` tokens; gives their number.
#[inline(always)]
unsafe fn tokens<S: Simd, B: Blocks, const T: usize, const R: usize>(
    task: &Task<'_>,
    x: &[Group],
    groups: usize,
    token: usize,
) -> usize {
    let mut of_tokens = [[x; T]; R];
    for (i, of_token) in of_tokens.as_flattened_mut().iter_mut().enumerate() {
        *of_token = &x[i * groups..][..groups];
    }
    for (i, tile) in task.tiles.chunks_exact(task.tile_bytes).enumerate() {
        let sums = tile_product::<S, B, T, R>(tile, &of_tokens);
        let row = (task.first + i) * ROWS;
        let rows = ROWS.min(task.output.rows - row);
        for (t, sums) in sums.as_flattened().iter().enumerate() {
            let mut sums = S::to_array(*sums);
            if let Some(bias) = task.output.bias {
                sums.iter_mut().zip(&bias[row..]).for_each(|(sum, bias)| *sum += bias);
            }
            // SAFETY: as asked of the caller; the last tile may have fewer rows.
            unsafe {
                let to = task.output.values.add((token + t) * task.output.rows + row);
                to.copy_from_nonoverlapping(sums.as_ptr(), rows);
            }
        }
    }
    T * R
}

#[expect(clippy::needless_range_loop, reason = "closures can't be inlined where instructions are, so loops are plain")]
#[inline(always)]
fn tile_product<S: Simd, B: Blocks, const T: usize, const R: usize>(
    tile: &[u8],
    x: &[[&[Group]; T]; R],
) -> [[S::Floats; T]; R] {
    /// About what memory delivers to one core while it is waited for. The lines are asked for with the parts, not all of a
    /// block's at once, for which a core has too few places to wait in.
    const AHEAD: usize = 4096;
    let parts = B::WEIGHTS / 32;
    let mut sums = [[S::floats(0.0); T]; R];
    for (index, block) in tile.chunks_exact(B::BYTES).enumerate() {
        let scales = B::scales::<S>(block);
        for part in 0..parts {
            if R == 1 {
                for line in (0..B::BYTES / parts).step_by(64) {
                    S::prefetch(block.as_ptr().wrapping_add(AHEAD + part * (B::BYTES / parts) + line));
                }
            }
            let codes = B::codes::<S>(block, part);
            let scale = [B::scale(&scales, part, 0), B::scale(&scales, part, 1)];
            let min = [B::min(&scales, part, 0), B::min(&scales, part, 1)];
            for r in 0..R {
                let at = index * parts + part;
                let mut ints = [[S::ints(0); 2]; T];
                for t in 0..T {
                    let [first, second] = x[r][t][at].code_sums;
                    if B::HAS_HALVES {
                        ints[t] = [S::ints(-B::OFFSET * i32::from(first)), S::ints(-B::OFFSET * i32::from(second))];
                    } else if B::OFFSET != 0 {
                        ints[t][0] = S::ints(-B::OFFSET * i32::from(first + second));
                    }
                }
                for i in 0..8 {
                    let half = if B::HAS_HALVES { i / 4 } else { 0 };
                    for t in 0..T {
                        ints[t][half] = S::dot(ints[t][half], codes[i], x[r][t][at].codes[i]);
                    }
                }
                for t in 0..T {
                    let group = &x[r][t][at];
                    let token_scale = S::floats(group.scale);
                    let mut sum = sums[r][t];
                    sum = S::multiply_add(S::to_floats(ints[t][0]), S::multiply(scale[0], token_scale), sum);
                    if B::HAS_HALVES {
                        sum = S::multiply_add(S::to_floats(ints[t][1]), S::multiply(scale[1], token_scale), sum);
                    }
                    if B::HAS_MINS && B::HAS_HALVES {
                        for half in 0..2 {
                            let of_half = group.scale * f32::from(group.code_sums[half]);
                            sum = S::multiply_add(min[half], S::floats(of_half), sum);
                        }
                    } else if B::HAS_MINS {
                        sum = S::multiply_add(min[0], S::floats(group.sum), sum);
                    }
                    sums[r][t] = sum;
                }
            }
        }
    }
    sums
}

/// Writes the weights of one row of `tile`, as whoever reads the file's blocks would.
pub(crate) fn unpack_row<B: Blocks>(tile: &[u8], row: usize, out: &mut [f32]) {
    for (block, out) in tile.chunks_exact(B::BYTES).zip(out.chunks_exact_mut(B::WEIGHTS)) {
        let scales = B::scales::<Scalar>(block);
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let codes = B::codes::<Scalar>(block, part);
            for (half, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let min = B::min(&scales, part, half)[row];
                let scale = B::scale(&scales, part, half)[row];
                for (i, out) in out.iter_mut().enumerate() {
                    let code = i32::from(codes[4 * half + i / 4][4 * row + i % 4]) - B::OFFSET;
                    *out = if B::HAS_MINS { scale * code as f32 + min } else { scale * code as f32 };
                }
            }
        }
    }
}

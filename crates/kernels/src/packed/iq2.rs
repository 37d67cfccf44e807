//! Eight weights an entry of a codebook of magnitudes, with their signs, times a scale.

use super::codebooks::{IQ2_S, IQ2_XS, IQ2_XXS};
use super::{even_signs, f16_at, u16_at, u32_at, write_signed};

/// The scale of 256, and for each 32 weights four indices, 4 × 7 signs and a scale of four bits.
#[inline(always)]
pub(super) fn unpack_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (group, out) in block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let signs_and_scale = u32_at(group, 4);
        let scale = quarter_steps(d, (signs_and_scale >> 28) as u8);
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let entry = IQ2_XXS[usize::from(group[k])].to_le_bytes();
            write_signed(&entry, even_signs(signs_and_scale >> (7 * k)), scale, out);
        }
    }
}

/// The scale of 256, 16 bits for each eight weights with an index of nine and seven signs, and a scale of four bits for
/// each 16 weights.
#[inline(always)]
pub(super) fn unpack_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let index_and_signs = u16_at(block, 2 + 2 * i);
        let entry = IQ2_XS[usize::from(index_and_signs & 511)].to_le_bytes();
        write_signed(&entry, even_signs(u32::from(index_and_signs >> 9)), scale_of(&block[66..], i, d), out);
    }
}

/// The scale of 256, 32 low bytes of indices, 32 × 8 signs, 32 × 2 high bits, and a scale of four bits for each 16
/// weights.
#[inline(always)]
pub(super) fn unpack_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (low, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let index = u16::from(low[i]) | u16::from(high[i / 4] >> (2 * (i % 4)) & 3) << 8;
        write_signed(&IQ2_S[usize::from(index)].to_le_bytes(), signs[i], scale_of(scales, i, d), out);
    }
}

/// The scale of the eight weights `i`, of four bits for each 16.
#[inline(always)]
fn scale_of(scales: &[u8], i: usize, d: f32) -> f32 {
    quarter_steps(d, scales[i / 4] >> (4 * (i / 2 % 2)) & 0xf)
}

#[inline(always)]
fn quarter_steps(d: f32, steps: u8) -> f32 {
    d * (0.5 + f32::from(steps)) * 0.25
}

//! Four weights an entry of a codebook of magnitudes, with their signs, times a scale.

use super::codebooks::{IQ3_S, IQ3_XXS};
use super::{even_signs, f16_at, u32_at, write_signed};

/// The scale of 256, 64 indices, and for each 32 weights 4 × 7 signs and a scale of four bits.
#[inline(always)]
pub(super) fn unpack_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let signs_and_scale = u32_at(block, 66 + 4 * i);
        let scale = d * (0.5 + (signs_and_scale >> 28) as f32) * 0.5;
        for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let signs = even_signs(signs_and_scale >> (7 * (k / 2))) >> (4 * (k % 2));
            write_signed(&IQ3_XXS[usize::from(block[2 + 8 * i + k])].to_le_bytes(), signs, scale, out);
        }
    }
}

/// The scale of 256, 64 low bytes of indices, 64 high bits, 256 signs, and a scale of four bits for each 32 weights.
#[inline(always)]
pub(super) fn unpack_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let (low, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let index = u16::from(low[i]) | u16::from(high[i / 8] >> (i % 8) & 1) << 8;
        let group = i / 8;
        let scale = d * f32::from(1 + 2 * (scales[group / 2] >> (4 * (group % 2)) & 0xf));
        write_signed(&IQ3_S[usize::from(index)].to_le_bytes(), signs[i / 2] >> (4 * (i % 2)), scale, out);
    }
}

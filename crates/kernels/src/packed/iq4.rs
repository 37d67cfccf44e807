//! Four bits each, which stand for sixteen values that lie closer together around zero, times a scale.

use super::codebooks::IQ4_NL;
use super::{f16_at, u16_at};

/// A scale for 32 weights.
#[inline(always)]
pub(super) fn unpack_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    write_nibbles(&block[2..], f16_at(block, 0), out);
}

/// The scale of 256, and for each 32 weights one of six bits: two of 16 at the front, four in the four bytes behind it.
#[inline(always)]
pub(super) fn unpack_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let high = u16_at(block, 2);
    for (i, (group, out)) in block[8..].as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0).enumerate() {
        let low = u16::from(block[4 + i / 2] >> (4 * (i % 2)) & 0xf);
        let steps = low | (high >> (2 * i) & 3) << 4;
        write_nibbles(group, d * (f32::from(steps) - 32.0), out);
    }
}

/// The lower halves of the bytes come first.
#[inline(always)]
fn write_nibbles(bytes: &[u8], scale: f32, out: &mut [f32; 32]) {
    let (first, second) = out.split_at_mut(16);
    for (byte, (first, second)) in bytes.iter().zip(first.iter_mut().zip(second)) {
        *first = scale * f32::from(IQ4_NL[usize::from(byte & 0xf)]);
        *second = scale * f32::from(IQ4_NL[usize::from(byte >> 4)]);
    }
}

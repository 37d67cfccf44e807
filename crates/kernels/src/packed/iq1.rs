//! Eight weights an entry of a codebook of -1, 0 and 1, all moved up or down by an eighth, times a scale.

use super::codebooks::IQ1;
use super::{f16_at, u16_at};

const DELTA: f32 = 0.125;

/// The scale of 256, 32 × 4 low bytes of indices, and for each 32 weights 4 × 3 high bits, a scale and the direction.
#[inline(always)]
pub(super) fn unpack_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let high = u16_at(block, 34 + 2 * i);
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        let delta = if high & 0x8000 == 0 { DELTA } else { -DELTA };
        for (k, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            write_entry(block[2 + 4 * i + k], high >> (3 * k), delta, scale, out);
        }
    }
}

/// 32 × 4 low bytes of indices, four bits for each entry with three high bits and the direction, and 4 × 16 bits with
/// four scales of three bits each, and a quarter of the scale of 256.
#[inline(always)]
pub(super) fn unpack_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales = [0, 1, 2, 3].map(|i| u16_at(block, 48 + 2 * i));
    let quarters = scales.iter().enumerate().map(|(i, quarter)| quarter >> 12 << (4 * i));
    let d = f16_at(&quarters.sum::<u16>().to_le_bytes(), 0);
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(2 * (scales[i / 4] >> (3 * (i % 4)) & 7) + 1);
        for (k, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let high = block[32 + i] >> (4 * k);
            let delta = if high & 8 == 0 { DELTA } else { -DELTA };
            write_entry(block[2 * i + k], u16::from(high), delta, scale, out);
        }
    }
}

/// The entry's index has its lowest three of `high` above the bits of `low`.
#[inline(always)]
fn write_entry(low: u8, high: u16, delta: f32, scale: f32, out: &mut [f32; 8]) {
    let entry = IQ1[usize::from(u16::from(low) | (high & 7) << 8)].to_le_bytes();
    for (out, value) in out.iter_mut().zip(entry) {
        *out = scale * (f32::from(value.cast_signed()) + delta);
    }
}

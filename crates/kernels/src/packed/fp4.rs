//! Four-bit floats with a scale that is a float of eight bits. The codebook has twice the values, so the scales are
//! halved.

use super::codebooks::FP4;

/// A scale for 32 weights that is a power of two (E8M0), as the OCP's microscaling formats define it.
#[inline(always)]
pub(super) fn unpack_mx(block: &[u8; 17], out: &mut [f32; 32]) {
    let exponent = u32::from(block[0]);
    // 2^(exponent - 128), of which the first two are subnormal.
    let scale = f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 });
    write_nibbles(&block[1..], scale, out);
}

/// For each 16 weights a scale with four bits of exponent and three of mantissa (E4M3, without its sign). The scale of
/// the whole matrix, which the format has besides, is a tensor of its own.
#[inline(always)]
pub(super) fn unpack_nv(block: &[u8; 36], out: &mut [f32; 64]) {
    let groups = block[4..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<16>().0);
    for (scale, (group, out)) in block.iter().zip(groups) {
        write_nibbles(group, half_of_e4m3(*scale), out);
    }
}

#[inline(always)]
fn half_of_e4m3(bits: u8) -> f32 {
    // ggml reads the format's one NaN as zero.
    if bits == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let value =
        if exponent == 0 { mantissa * 2_f32.powi(-9) } else { (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7) };
    value * 0.5
}

/// The lower halves of the bytes come first.
#[inline(always)]
fn write_nibbles(bytes: &[u8], scale: f32, out: &mut [f32]) {
    let (first, second) = out.split_at_mut(bytes.len());
    for (byte, (first, second)) in bytes.iter().zip(first.iter_mut().zip(second)) {
        *first = f32::from(FP4[usize::from(byte & 0xf)]) * scale;
        *second = f32::from(FP4[usize::from(byte >> 4)]) * scale;
    }
}

//! Whole numbers of one or two bits, or of one digit in base 3, times one scale.

use super::f16_at;

/// One bit each: minus the scale, or the scale.
#[inline(always)]
pub(super) fn unpack_q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = if block[2 + i / 8] >> (i % 8) & 1 == 1 { scale } else { -scale };
    }
}

/// Two bits each: -1, 0, 1 or 2 times the scale.
#[inline(always)]
pub(super) fn unpack_q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = less_one(block[2 + i / 4] >> (2 * (i % 4)) & 3) * scale;
    }
}

/// A digit in base 3 each, five to a byte and in the last four bytes four: -1, 0 or 1 times the scale. Neighbours lie in
/// neighbouring bytes.
#[inline(always)]
pub(super) fn unpack_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let scale = f16_at(block, 52);
    let mut out = out.iter_mut();
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for digit in 0..digits {
            for (byte, out) in bytes.iter().zip(&mut out) {
                // A byte is the fraction 0.d₀d₁d₂… in base 3, in 256ths: the wanted digit is moved to the front and
                // read off by one more factor of 3.
                let moved = byte.wrapping_mul(3_u8.pow(digit));
                *out = less_one(((u16::from(moved) * 3) >> 8) as u8) * scale;
            }
        }
    }
}

/// Two bits each: -1, 0, 1 or 2 times the scale. Neighbours lie in neighbouring bytes.
#[inline(always)]
pub(super) fn unpack_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 64);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, shift, byte) = (i / 128, i % 128 / 32, i % 32);
        *out = less_one(block[32 * half + byte] >> (2 * shift) & 3) * scale;
    }
}

#[inline(always)]
fn less_one(digit: u8) -> f32 {
    f32::from(digit) - 1.0
}

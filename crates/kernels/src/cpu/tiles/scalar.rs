//! Plain Rust: for processors without anything better, and what the others are compared with.

use half::f16;

use super::simd::{ROWS, Simd};

pub(crate) struct Scalar;

impl Simd for Scalar {
    type Codes = [u8; 64];
    type Ints = [i32; ROWS];
    type Floats = [f32; ROWS];

    #[inline(always)]
    fn load(codes: &[u8; 64]) -> [u8; 64] {
        *codes
    }

    #[inline(always)]
    fn low(codes: [u8; 64]) -> [u8; 64] {
        codes.map(|code| code & 0x0f)
    }

    #[inline(always)]
    fn high(codes: [u8; 64]) -> [u8; 64] {
        codes.map(|code| code >> 4)
    }

    #[inline(always)]
    fn merge<const LEFT: u32, const RIGHT: u32>(codes: [u8; 64], bits: [u8; 64], mask: u8) -> [u8; 64] {
        std::array::from_fn(|i| codes[i] | ((bits[i] << LEFT) >> RIGHT & mask))
    }

    #[inline(always)]
    fn look_up(table: &[u8; 16], codes: [u8; 64]) -> [u8; 64] {
        codes.map(|code| table[usize::from(code & 0x0f)])
    }

    #[inline(always)]
    fn ints(value: i32) -> [i32; ROWS] {
        [value; ROWS]
    }

    #[inline(always)]
    fn dot(sum: [i32; ROWS], codes: [u8; 64], x: i32) -> [i32; ROWS] {
        let x = x.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        std::array::from_fn(|row| sum[row] + (0..4).map(|i| i32::from(codes[4 * row + i]) * x[i]).sum::<i32>())
    }

    #[inline(always)]
    fn floats(value: f32) -> [f32; ROWS] {
        [value; ROWS]
    }

    #[inline(always)]
    fn to_floats(ints: [i32; ROWS]) -> [f32; ROWS] {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    fn from_f16(bits: &[u8; 32]) -> [f32; ROWS] {
        std::array::from_fn(|row| f16::from_le_bytes([bits[2 * row], bits[2 * row + 1]]).to_f32())
    }

    #[inline(always)]
    fn from_bf16(bits: &[u8; 32]) -> [f32; ROWS] {
        std::array::from_fn(|row| f32::from_bits(u32::from_le_bytes([0, 0, bits[2 * row], bits[2 * row + 1]])))
    }

    #[inline(always)]
    fn from_u8(bytes: &[u8; 16]) -> [f32; ROWS] {
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn from_i8(bytes: &[u8; 16]) -> [f32; ROWS] {
        bytes.map(|byte| f32::from(byte.cast_signed()))
    }

    #[inline(always)]
    fn from_array(values: &[f32; 16]) -> [f32; ROWS] {
        *values
    }

    #[inline(always)]
    fn to_array(values: [f32; ROWS]) -> [f32; 16] {
        values
    }

    #[inline(always)]
    fn multiply(a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        std::array::from_fn(|row| a[row] * b[row])
    }

    #[inline(always)]
    fn multiply_add(a: [f32; ROWS], b: [f32; ROWS], c: [f32; ROWS]) -> [f32; ROWS] {
        std::array::from_fn(|row| a[row].mul_add(b[row], c[row]))
    }

    #[inline(always)]
    fn sum(mut values: [f32; ROWS]) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                values[i] += values[half + i];
            }
        }
        values[0]
    }

    #[inline(always)]
    fn transpose(vectors: [[f32; ROWS]; ROWS]) -> [[f32; ROWS]; ROWS] {
        std::array::from_fn(|i| vectors.map(|vector| vector[i]))
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}
}

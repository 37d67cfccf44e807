//! NEON: a vector is four registers. With the dot-product instructions (every Apple chip), four products a lane are one.

#![expect(unsafe_code, reason = "the processor's instructions; `isa` makes sure that it has them")]

use core::arch::aarch64::*;
use core::arch::asm;

use super::simd::Simd;

/// With what every 64-bit ARM has; `DOT` adds the dot-product instructions.
pub(crate) struct Neon<const DOT: bool>;

// SAFETY of all below: [`Simd`] is only used where the processor has the instructions; loads and stores are of the size of
// the arrays behind the references, and none needs an alignment.
impl<const DOT: bool> Simd for Neon<DOT> {
    type Codes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    #[inline(always)]
    fn load(codes: &[u8; 64]) -> [uint8x16_t; 4] {
        // SAFETY: see above.
        unsafe {
            let at = codes.as_ptr();
            [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))]
        }
    }

    #[inline(always)]
    fn low(mut codes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        for codes in &mut codes {
            // SAFETY: see above.
            *codes = unsafe { vandq_u8(*codes, vdupq_n_u8(0x0f)) };
        }
        codes
    }

    #[inline(always)]
    fn high(mut codes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        for codes in &mut codes {
            // SAFETY: see above.
            *codes = unsafe { vshrq_n_u8::<4>(*codes) };
        }
        codes
    }

    #[inline(always)]
    fn merge<const LEFT: u32, const RIGHT: u32>(
        mut codes: [uint8x16_t; 4],
        bits: [uint8x16_t; 4],
        mask: u8,
    ) -> [uint8x16_t; 4] {
        for i in 0..4 {
            // SAFETY: see above.
            unsafe {
                // By a register, whose negative values shift to the right: one of the two is none.
                let bits = vshlq_u8(bits[i], vdupq_n_s8(LEFT as i8 - RIGHT as i8));
                codes[i] = vorrq_u8(codes[i], vandq_u8(bits, vdupq_n_u8(mask)));
            }
        }
        codes
    }

    #[inline(always)]
    fn look_up(table: &[u8; 16], mut codes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        for codes in &mut codes {
            // SAFETY: see above.
            *codes = unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), *codes) };
        }
        codes
    }

    #[inline(always)]
    fn ints(value: i32) -> [int32x4_t; 4] {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(value); 4] }
    }

    #[inline(always)]
    fn dot(mut sum: [int32x4_t; 4], codes: [uint8x16_t; 4], x: i32) -> [int32x4_t; 4] {
        // SAFETY: see above.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            if DOT {
                // Codes are taken as signed, 128 less than they are.
                let mut less = vdupq_n_s32(0);
                let minus_128 = vdupq_n_s8(-128);
                asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) less, in(vreg) minus_128, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
                for i in 0..4 {
                    let signed = veorq_u8(codes[i], vdupq_n_u8(0x80));
                    let mut dot = sum[i];
                    asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) dot, in(vreg) signed, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
                    sum[i] = vsubq_s32(dot, less);
                }
                return sum;
            }
            let x = vmovl_s8(vget_low_s8(x));
            for i in 0..4 {
                let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes[i])));
                let high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(codes[i])));
                let of_low = vpaddq_s32(vmull_s16(vget_low_s16(low), vget_low_s16(x)), vmull_high_s16(low, x));
                let of_high = vpaddq_s32(vmull_s16(vget_low_s16(high), vget_low_s16(x)), vmull_high_s16(high, x));
                sum[i] = vaddq_s32(sum[i], vpaddq_s32(of_low, of_high));
            }
            sum
        }
    }

    #[inline(always)]
    fn floats(value: f32) -> [float32x4_t; 4] {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn to_floats(ints: [int32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: see above.
        unsafe { [vcvtq_f32_s32(ints[0]), vcvtq_f32_s32(ints[1]), vcvtq_f32_s32(ints[2]), vcvtq_f32_s32(ints[3])] }
    }

    #[inline(always)]
    fn from_f16(bits: &[u8; 32]) -> [float32x4_t; 4] {
        // SAFETY: see above.
        unsafe {
            let at = bits.as_ptr();
            let (low, high) = (vld1q_u8(at), vld1q_u8(at.add(16)));
            let mut values = [vdupq_n_f32(0.0); 4];
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) values[0], in(vreg) low, options(pure, nomem, nostack, preserves_flags));
            asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) values[1], in(vreg) low, options(pure, nomem, nostack, preserves_flags));
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) values[2], in(vreg) high, options(pure, nomem, nostack, preserves_flags));
            asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) values[3], in(vreg) high, options(pure, nomem, nostack, preserves_flags));
            values
        }
    }

    #[inline(always)]
    fn from_bf16(bits: &[u8; 32]) -> [float32x4_t; 4] {
        // SAFETY: see above.
        unsafe {
            let at = bits.as_ptr();
            let (low, high) = (vreinterpretq_u16_u8(vld1q_u8(at)), vreinterpretq_u16_u8(vld1q_u8(at.add(16))));
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(low))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(high))),
            ]
        }
    }

    #[inline(always)]
    fn from_u8(bytes: &[u8; 16]) -> [float32x4_t; 4] {
        Self::from_array(&bytes.map(f32::from))
    }

    #[inline(always)]
    fn from_i8(bytes: &[u8; 16]) -> [float32x4_t; 4] {
        Self::from_array(&bytes.map(|byte| f32::from(byte.cast_signed())))
    }

    #[inline(always)]
    fn from_array(values: &[f32; 16]) -> [float32x4_t; 4] {
        // SAFETY: see above.
        unsafe {
            let at = values.as_ptr();
            [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))]
        }
    }

    #[inline(always)]
    fn to_array(values: [float32x4_t; 4]) -> [f32; 16] {
        let mut array = [0.0; 16];
        for (array, values) in array.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            // SAFETY: see above.
            unsafe { vst1q_f32(array.as_mut_ptr(), values) };
        }
        array
    }

    #[inline(always)]
    fn multiply(mut a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        for i in 0..4 {
            // SAFETY: see above.
            a[i] = unsafe { vmulq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    fn multiply_add(a: [float32x4_t; 4], b: [float32x4_t; 4], mut c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        for i in 0..4 {
            // SAFETY: see above.
            c[i] = unsafe { vfmaq_f32(c[i], a[i], b[i]) };
        }
        c
    }

    #[inline(always)]
    fn sum(values: [float32x4_t; 4]) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = vaddq_f32(vaddq_f32(values[0], values[2]), vaddq_f32(values[1], values[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    // The processor sees by itself what is read in order, and has no instruction for it that Rust offers.
    #[inline(always)]
    fn transpose(vectors: [[float32x4_t; 4]; 16]) -> [[float32x4_t; 4]; 16] {
        let mut transposed = vectors;
        for column in 0..4 {
            for row in 0..4 {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| vectors[4 * row + i][column]);
                // SAFETY: see above.
                let small = unsafe {
                    let [even, odd] = [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|x| vreinterpretq_f64_f32(x));
                    let [even2, odd2] = [vtrn1q_f32(c, d), vtrn2q_f32(c, d)].map(|x| vreinterpretq_f64_f32(x));
                    [vtrn1q_f64(even, even2), vtrn1q_f64(odd, odd2), vtrn2q_f64(even, even2), vtrn2q_f64(odd, odd2)]
                        .map(|x| vreinterpretq_f32_f64(x))
                };
                for i in 0..4 {
                    transposed[4 * column + i][row] = small[i];
                }
            }
        }
        transposed
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}
}

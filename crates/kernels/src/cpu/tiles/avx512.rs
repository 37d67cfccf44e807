//! AVX-512 with VNNI: a vector is one register, and four products a lane are one instruction.

#![expect(unsafe_code, reason = "the processor's instructions; `isa` makes sure that it has them")]

use core::arch::x86_64::*;

use super::avx2::Avx2;
use super::simd::Simd;

pub(crate) struct Avx512;

// SAFETY of all below: [`Simd`] is only used where the processor has the instructions; loads and stores are of the size of
// the arrays behind the references, and none needs an alignment.
impl Simd for Avx512 {
    type Codes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn load(codes: &[u8; 64]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low(codes: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn high(codes: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn merge<const LEFT: u32, const RIGHT: u32>(codes: __m512i, bits: __m512i, mask: u8) -> __m512i {
        /// `a | (b & c)` as the instruction's truth table.
        const A_OR_B_AND_C: i32 = 0xf8;
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_srli_epi16::<RIGHT>(_mm512_slli_epi16::<LEFT>(bits));
            _mm512_ternarylogic_epi32::<A_OR_B_AND_C>(codes, bits, _mm512_set1_epi8(mask.cast_signed()))
        }
    }

    #[inline(always)]
    fn look_up(table: &[u8; 16], codes: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, codes)
        }
    }

    #[inline(always)]
    fn ints(value: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn dot(sum: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn floats(value: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn to_floats(ints: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn from_f16(bits: &[u8; 32]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) }
    }

    #[inline(always)]
    fn from_bf16(bits: &[u8; 32]) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bits.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    fn from_u8(bytes: &[u8; 16]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn from_i8(bytes: &[u8; 16]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn from_array(values: &[f32; 16]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn to_array(values: __m512) -> [f32; 16] {
        let mut array = [0.0; 16];
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(array.as_mut_ptr(), values) };
        array
    }

    #[inline(always)]
    fn multiply(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(values: __m512) -> f32 {
        // SAFETY: see above.
        let halves = unsafe {
            let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(values));
            [_mm512_castps512_ps256(values), _mm256_castpd_ps(upper)]
        };
        Avx2::sum(halves)
    }

    /// Within quarters of four by four, and then these.
    #[inline(always)]
    fn transpose(vectors: [__m512; 16]) -> [__m512; 16] {
        let mut quarters = vectors;
        let mut transposed = vectors;
        // SAFETY: see above.
        unsafe {
            for i in (0..16).step_by(4) {
                let [a, b, c, d] = [vectors[i], vectors[i + 1], vectors[i + 2], vectors[i + 3]];
                let [low, high] = [_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)].map(|x| _mm512_castps_pd(x));
                let [low2, high2] = [_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)].map(|x| _mm512_castps_pd(x));
                quarters[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
                quarters[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
                quarters[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
                quarters[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
            }
            for i in 0..4 {
                let [a, b, c, d] = [quarters[i], quarters[4 + i], quarters[8 + i], quarters[12 + i]];
                let [even, odd] = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)];
                let [even2, odd2] = [_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d)];
                transposed[i] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                transposed[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                transposed[8 + i] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                transposed[12 + i] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
        }
        transposed
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: see above; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

//! AVX2 with FMA and F16C: a vector is two registers, and products of bytes are added in pairs of 16 bits.

#![expect(unsafe_code, reason = "the processor's instructions; `isa` makes sure that it has them")]

use core::arch::x86_64::*;

use super::simd::Simd;

pub(crate) struct Avx2;

// SAFETY of all below: [`Simd`] is only used where the processor has the instructions; loads and stores are of the size of
// the arrays behind the references, and none needs an alignment.
impl Simd for Avx2 {
    type Codes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    fn load(codes: &[u8; 64]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes[32..].as_ptr().cast())] }
    }

    #[inline(always)]
    fn low(codes: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            [_mm256_and_si256(codes[0], _mm256_set1_epi8(0x0f)), _mm256_and_si256(codes[1], _mm256_set1_epi8(0x0f))]
        }
    }

    #[inline(always)]
    fn high(codes: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { Self::low([_mm256_srli_epi16::<4>(codes[0]), _mm256_srli_epi16::<4>(codes[1])]) }
    }

    #[inline(always)]
    fn merge<const LEFT: u32, const RIGHT: u32>(codes: [__m256i; 2], bits: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            // Shifts by a register, since the others take no unsigned constant; a compiler knows better.
            let (left, right) = (_mm_cvtsi32_si128(LEFT.cast_signed()), _mm_cvtsi32_si128(RIGHT.cast_signed()));
            let mask = _mm256_set1_epi8(mask.cast_signed());
            let mut merged = codes;
            for i in 0..2 {
                let bits = _mm256_srl_epi16(_mm256_sll_epi16(bits[i], left), right);
                merged[i] = _mm256_or_si256(codes[i], _mm256_and_si256(bits, mask));
            }
            merged
        }
    }

    #[inline(always)]
    fn look_up(table: &[u8; 16], codes: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
    }

    #[inline(always)]
    fn ints(value: i32) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn dot(sum: [__m256i; 2], codes: [__m256i; 2], x: i32) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            let (x, ones, even) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1), _mm256_set1_epi16(0x00ff));
            let mut sums = sum;
            for i in 0..2 {
                // Pairs of bytes are added in 16 bits, too few for two products of 255 and 127: even and odd bytes apart.
                let of_even = _mm256_maddubs_epi16(_mm256_and_si256(codes[i], even), x);
                let of_odd = _mm256_maddubs_epi16(_mm256_andnot_si256(even, codes[i]), x);
                let products = _mm256_add_epi32(_mm256_madd_epi16(of_even, ones), _mm256_madd_epi16(of_odd, ones));
                sums[i] = _mm256_add_epi32(sum[i], products);
            }
            sums
        }
    }

    #[inline(always)]
    fn floats(value: f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn to_floats(ints: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }

    #[inline(always)]
    fn from_f16(bits: &[u8; 32]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(bits[16..].as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn from_bf16(bits: &[u8; 32]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(bits.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(bits[16..].as_ptr().cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }

    #[inline(always)]
    fn from_u8(bytes: &[u8; 16]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let upper = _mm_srli_si128::<8>(bytes);
            [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(upper))]
        }
    }

    #[inline(always)]
    fn from_i8(bytes: &[u8; 16]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let upper = _mm_srli_si128::<8>(bytes);
            [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(upper))]
        }
    }

    #[inline(always)]
    fn from_array(values: &[f32; 16]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())] }
    }

    #[inline(always)]
    fn to_array(values: [__m256; 2]) -> [f32; 16] {
        let mut array = [0.0; 16];
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(array.as_mut_ptr(), values[0]);
            _mm256_storeu_ps(array[8..].as_mut_ptr(), values[1]);
        }
        array
    }

    #[inline(always)]
    fn multiply(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn multiply_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn sum(values: [__m256; 2]) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_add_ps(values[0], values[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn transpose(vectors: [[__m256; 2]; 16]) -> [[__m256; 2]; 16] {
        let mut transposed = vectors;
        for half in 0..2 {
            for rows in 0..2 {
                let mut quarter = [vectors[0][0]; 8];
                for i in 0..8 {
                    quarter[i] = vectors[8 * rows + i][half];
                }
                let quarter = transpose_quarter(quarter);
                for i in 0..8 {
                    transposed[8 * half + i][rows] = quarter[i];
                }
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

/// Eight by eight: within four by four, and then these.
#[inline(always)]
fn transpose_quarter(vectors: [__m256; 8]) -> [__m256; 8] {
    let mut small = vectors;
    let mut transposed = vectors;
    // SAFETY: see above.
    unsafe {
        for i in [0, 4] {
            let [a, b, c, d] = [vectors[i], vectors[i + 1], vectors[i + 2], vectors[i + 3]];
            let [low, high] = [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
            let [low2, high2] = [_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)];
            small[i] = _mm256_shuffle_ps::<0x44>(low, low2);
            small[i + 1] = _mm256_shuffle_ps::<0xee>(low, low2);
            small[i + 2] = _mm256_shuffle_ps::<0x44>(high, high2);
            small[i + 3] = _mm256_shuffle_ps::<0xee>(high, high2);
        }
        for i in 0..4 {
            transposed[i] = _mm256_permute2f128_ps::<0x20>(small[i], small[4 + i]);
            transposed[4 + i] = _mm256_permute2f128_ps::<0x31>(small[i], small[4 + i]);
        }
    }
    transposed
}

//! How each packing lies in tiles. A tile is sixteen rows of weights; it consists of tile blocks, each with one of the
//! file's blocks of every row, in the same number of bytes: first the rows' scales side by side, then codes.
//!
//! Codes of 32 weights are eight groups of four weights. A *plane* of 64 bytes has one byte for each weight of a group,
//! row after row: with four bits, groups `i` and `4 + i` share a plane, the first in the lower half of its bytes. A fifth
//! bit of all eight groups is one more plane, where bit `g` belongs to group `g`; a fifth and sixth are two more, each for
//! four groups. With two bits, four groups share a plane, and a third bit is one as a fifth is.

use super::simd::{ROWS, Simd};

/// Scales of one tile block.
pub(crate) struct Scales<S: Simd> {
    /// Of each row.
    d: S::Floats,
    /// What the second kind of scale is multiplied with.
    d_min: S::Floats,
    /// For each 32 weights, or 16; of these K-quants have several in a block.
    scales: [[u8; ROWS]; 16],
    mins: [[u8; ROWS]; 8],
}

/// One packing in tiles.
pub(crate) trait Blocks {
    /// Weights of a row in one block.
    const WEIGHTS: usize;
    /// Bytes of a tile block.
    const BYTES: usize;
    /// What is taken from each code.
    const OFFSET: i32;
    /// Whether a multiple of the values' sum is added.
    const HAS_MINS: bool = false;
    /// Whether each 16 weights have a scale.
    const HAS_HALVES: bool = false;

    fn scales<S: Simd>(block: &[u8]) -> Scales<S>;

    /// The scale of the weights `32 · part + 16 · half` on.
    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, _part: usize, _half: usize) -> S::Floats {
        scales.d
    }

    /// What is added to each of the weights `32 · part + 16 · half` on.
    #[inline(always)]
    fn min<S: Simd>(scales: &Scales<S>, _part: usize, _half: usize) -> S::Floats {
        scales.d_min
    }

    /// Codes of the weights from `32 · part` on, group by group.
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8];
}

/// `N` bytes at `at`.
#[inline(always)]
fn bytes<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("a tile block is whole")
}

const PLANE: usize = 64;
const NIBBLES: usize = 4 * PLANE;
const F16S: usize = 2 * ROWS;

#[inline(always)]
fn plain<S: Simd>(d: S::Floats, d_min: S::Floats) -> Scales<S> {
    Scales { d, d_min, scales: [[0; ROWS]; 16], mins: [[0; ROWS]; 8] }
}

// Arrays are written out here and below: a closure is a function of its own, which can't be inlined where it would have
// the processor's instructions.
#[inline(always)]
fn nibbles<S: Simd>(block: &[u8], at: usize) -> [S::Codes; 8] {
    let a = S::load(bytes(block, at));
    let b = S::load(bytes(block, at + PLANE));
    let c = S::load(bytes(block, at + 2 * PLANE));
    let d = S::load(bytes(block, at + 3 * PLANE));
    [S::low(a), S::low(b), S::low(c), S::low(d), S::high(a), S::high(b), S::high(c), S::high(d)]
}

#[inline(always)]
fn looked_up<S: Simd>(table: &[u8; 16], mut codes: [S::Codes; 8]) -> [S::Codes; 8] {
    for codes in &mut codes {
        *codes = S::look_up(table, *codes);
    }
    codes
}

#[inline(always)]
fn with_fifth_bits<S: Simd>(codes: [S::Codes; 8], bits: S::Codes) -> [S::Codes; 8] {
    const FIFTH: u8 = 0x10;
    [
        S::merge::<4, 0>(codes[0], bits, FIFTH),
        S::merge::<3, 0>(codes[1], bits, FIFTH),
        S::merge::<2, 0>(codes[2], bits, FIFTH),
        S::merge::<1, 0>(codes[3], bits, FIFTH),
        S::merge::<0, 0>(codes[4], bits, FIFTH),
        S::merge::<0, 1>(codes[5], bits, FIFTH),
        S::merge::<0, 2>(codes[6], bits, FIFTH),
        S::merge::<0, 3>(codes[7], bits, FIFTH),
    ]
}

/// The packings with a scale in f16 for 32 weights, and maybe a minimum after it.
macro_rules! block_of_32 {
    ($name:ident, offset $offset:expr, mins $mins:expr, $codes_bytes:expr, |$block:ident, $at:ident| $codes:expr) => {
        pub(crate) struct $name;

        impl Blocks for $name {
            const WEIGHTS: usize = 32;
            const BYTES: usize = F16S * (1 + $mins as usize) + $codes_bytes;
            const OFFSET: i32 = $offset;
            const HAS_MINS: bool = $mins;

            #[inline(always)]
            fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
                let min = if $mins { S::from_f16(bytes(block, F16S)) } else { S::floats(0.0) };
                plain(S::from_f16(bytes(block, 0)), min)
            }

            #[inline(always)]
            fn codes<S: Simd>($block: &[u8], _part: usize) -> [S::Codes; 8] {
                let $at = F16S * (1 + $mins as usize);
                $codes
            }
        }
    };
}

block_of_32!(Q4_0, offset 8, mins false, NIBBLES, |block, at| nibbles::<S>(block, at));
block_of_32!(Q4_1, offset 0, mins true, NIBBLES, |block, at| nibbles::<S>(block, at));
block_of_32!(Q5_0, offset 16, mins false, NIBBLES + PLANE, |block, at| {
    with_fifth_bits::<S>(nibbles::<S>(block, at + PLANE), S::load(bytes(block, at)))
});
block_of_32!(Q5_1, offset 0, mins true, NIBBLES + PLANE, |block, at| {
    with_fifth_bits::<S>(nibbles::<S>(block, at + PLANE), S::load(bytes(block, at)))
});
// Their sign bit is turned round, which makes them codes from 0 to 255.
block_of_32!(Q8_0, offset 128, mins false, 8 * PLANE, |block, at| {
    [
        S::load(bytes(block, at)),
        S::load(bytes(block, at + PLANE)),
        S::load(bytes(block, at + 2 * PLANE)),
        S::load(bytes(block, at + 3 * PLANE)),
        S::load(bytes(block, at + 4 * PLANE)),
        S::load(bytes(block, at + 5 * PLANE)),
        S::load(bytes(block, at + 6 * PLANE)),
        S::load(bytes(block, at + 7 * PLANE)),
    ]
});
block_of_32!(Iq4Nl, offset 128, mins false, NIBBLES, |block, at| {
    looked_up::<S>(&IQ4_NL_CODES, nibbles::<S>(block, at))
});

/// The values of IQ4_NL (`kvalues_iq4nl` of ggml), 128 more each.
const IQ4_NL_CODES: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// Twice the values of a four-bit float, 12 more each.
const FP4_CODES: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// Its scale is a power of two in eight bits.
pub(crate) struct Mxfp4;

impl Blocks for Mxfp4 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = ROWS + NIBBLES;
    const OFFSET: i32 = 12;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        let exponents: &[u8; ROWS] = bytes(block, 0);
        // Half of the format's scale, 2^(exponent - 128), of which the first two are subnormal: the codes are doubled.
        let scale = |exponent: u8| {
            f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (u32::from(exponent) - 1) << 23 })
        };
        plain(S::from_array(&exponents.map(scale)), S::floats(0.0))
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], _part: usize) -> [S::Codes; 8] {
        looked_up::<S>(&FP4_CODES, nibbles::<S>(block, ROWS))
    }
}

/// Scales and minima of 32 weights are six bits each, in twelve bytes for a row's eight (`get_scale_min_k4` of ggml).
const SIX_BITS: usize = 12 * ROWS;
/// Two scales in f16 and these.
const K_SCALES: usize = 2 * F16S + SIX_BITS;

#[inline(always)]
fn six_bits<S: Simd>(block: &[u8]) -> Scales<S> {
    let mut scales =
        plain::<S>(S::from_f16(bytes(block, 0)), S::multiply(S::from_f16(bytes(block, F16S)), S::floats(-1.0)));
    for i in 0..4 {
        let packed: &[u8; 9 * ROWS] = bytes(block, 2 * F16S + i * ROWS);
        for row in 0..ROWS {
            let [low, high, rest] = [packed[row], packed[4 * ROWS + row], packed[8 * ROWS + row]];
            scales.scales[i][row] = low & 63;
            scales.mins[i][row] = high & 63;
            scales.scales[4 + i][row] = rest & 15 | low >> 6 << 4;
            scales.mins[4 + i][row] = rest >> 4 | high >> 6 << 4;
        }
    }
    scales
}

pub(crate) struct Q4K;

impl Blocks for Q4K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = K_SCALES + 8 * NIBBLES;
    const OFFSET: i32 = 0;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        six_bits(block)
    }

    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, part: usize, _half: usize) -> S::Floats {
        S::multiply(scales.d, S::from_u8(&scales.scales[part]))
    }

    #[inline(always)]
    fn min<S: Simd>(scales: &Scales<S>, part: usize, _half: usize) -> S::Floats {
        S::multiply(scales.d_min, S::from_u8(&scales.mins[part]))
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8] {
        nibbles::<S>(block, K_SCALES + part * NIBBLES)
    }
}

pub(crate) struct Q5K;

impl Blocks for Q5K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = K_SCALES + 8 * (NIBBLES + PLANE);
    const OFFSET: i32 = 0;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        six_bits(block)
    }

    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, part: usize, half: usize) -> S::Floats {
        Q4K::scale(scales, part, half)
    }

    #[inline(always)]
    fn min<S: Simd>(scales: &Scales<S>, part: usize, half: usize) -> S::Floats {
        Q4K::min(scales, part, half)
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8] {
        let at = K_SCALES + part * (NIBBLES + PLANE);
        with_fifth_bits::<S>(nibbles::<S>(block, at + PLANE), S::load(bytes(block, at)))
    }
}

pub(crate) struct Q6K;

/// A scale in f16, and a signed byte for each 16 weights.
const Q6K_SCALES: usize = F16S + 16 * ROWS;

impl Blocks for Q6K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = Q6K_SCALES + 8 * (NIBBLES + 2 * PLANE);
    const OFFSET: i32 = 32;
    const HAS_HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        let mut scales = plain::<S>(S::from_f16(bytes(block, 0)), S::floats(0.0));
        for (i, scale) in scales.scales.iter_mut().enumerate() {
            *scale = *bytes(block, F16S + i * ROWS);
        }
        scales
    }

    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, part: usize, half: usize) -> S::Floats {
        S::multiply(scales.d, S::from_i8(&scales.scales[2 * part + half]))
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8] {
        /// The fifth and the sixth bit.
        const UPPER: u8 = 0x30;
        let at = Q6K_SCALES + part * (NIBBLES + 2 * PLANE);
        let codes = nibbles::<S>(block, at + 2 * PLANE);
        let [first, second] = [S::load(bytes(block, at)), S::load(bytes(block, at + PLANE))];
        [
            S::merge::<4, 0>(codes[0], first, UPPER),
            S::merge::<2, 0>(codes[1], first, UPPER),
            S::merge::<0, 0>(codes[2], first, UPPER),
            S::merge::<0, 2>(codes[3], first, UPPER),
            S::merge::<4, 0>(codes[4], second, UPPER),
            S::merge::<2, 0>(codes[5], second, UPPER),
            S::merge::<0, 0>(codes[6], second, UPPER),
            S::merge::<0, 2>(codes[7], second, UPPER),
        ]
    }
}

/// Two bits of each code, four groups to a plane.
#[inline(always)]
fn crumbs<S: Simd>(block: &[u8], at: usize) -> [S::Codes; 8] {
    const CRUMB: u8 = 3;
    let none = S::load(&[0; PLANE]);
    let [a, b] = [S::load(bytes(block, at)), S::load(bytes(block, at + PLANE))];
    [
        S::merge::<0, 0>(none, a, CRUMB),
        S::merge::<0, 2>(none, a, CRUMB),
        S::merge::<0, 4>(none, a, CRUMB),
        S::merge::<0, 6>(none, a, CRUMB),
        S::merge::<0, 0>(none, b, CRUMB),
        S::merge::<0, 2>(none, b, CRUMB),
        S::merge::<0, 4>(none, b, CRUMB),
        S::merge::<0, 6>(none, b, CRUMB),
    ]
}

/// The only one with a scale and a minimum for each 16 weights, four bits each.
pub(crate) struct Q2K;

/// Two scales in f16, and a byte for each 16 weights.
const Q2K_SCALES: usize = 2 * F16S + 16 * ROWS;

impl Blocks for Q2K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = Q2K_SCALES + 8 * 2 * PLANE;
    const OFFSET: i32 = 0;
    const HAS_MINS: bool = true;
    const HAS_HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        let mut scales =
            plain::<S>(S::from_f16(bytes(block, 0)), S::multiply(S::from_f16(bytes(block, F16S)), S::floats(-1.0)));
        for (i, scale) in scales.scales.iter_mut().enumerate() {
            *scale = *bytes(block, 2 * F16S + i * ROWS);
        }
        scales
    }

    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, part: usize, half: usize) -> S::Floats {
        let mut low = scales.scales[2 * part + half];
        for scale in &mut low {
            *scale &= 15;
        }
        S::multiply(scales.d, S::from_u8(&low))
    }

    #[inline(always)]
    fn min<S: Simd>(scales: &Scales<S>, part: usize, half: usize) -> S::Floats {
        let mut high = scales.scales[2 * part + half];
        for min in &mut high {
            *min >>= 4;
        }
        S::multiply(scales.d_min, S::from_u8(&high))
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8] {
        crumbs::<S>(block, Q2K_SCALES + part * 2 * PLANE)
    }
}

pub(crate) struct Q3K;

/// A scale in f16, and six bits for each 16 weights.
const Q3K_SCALES: usize = F16S + SIX_BITS;

impl Blocks for Q3K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = Q3K_SCALES + 8 * 3 * PLANE;
    const OFFSET: i32 = 4;
    const HAS_HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        let mut scales = plain::<S>(S::from_f16(bytes(block, 0)), S::floats(0.0));
        let packed: &[u8; SIX_BITS] = bytes(block, F16S);
        for i in 0..4 {
            for row in 0..ROWS {
                let [first, second, upper] =
                    [packed[i * ROWS + row], packed[(4 + i) * ROWS + row], packed[(8 + i) * ROWS + row]];
                scales.scales[i][row] = (first & 15 | (upper & 3) << 4).wrapping_sub(32);
                scales.scales[4 + i][row] = (second & 15 | (upper >> 2 & 3) << 4).wrapping_sub(32);
                scales.scales[8 + i][row] = (first >> 4 | (upper >> 4 & 3) << 4).wrapping_sub(32);
                scales.scales[12 + i][row] = (second >> 4 | upper >> 6 << 4).wrapping_sub(32);
            }
        }
        scales
    }

    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, part: usize, half: usize) -> S::Floats {
        Q6K::scale(scales, part, half)
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8] {
        const THIRD: u8 = 4;
        let at = Q3K_SCALES + part * 3 * PLANE;
        let codes = crumbs::<S>(block, at + PLANE);
        let bits = S::load(bytes(block, at));
        [
            S::merge::<2, 0>(codes[0], bits, THIRD),
            S::merge::<1, 0>(codes[1], bits, THIRD),
            S::merge::<0, 0>(codes[2], bits, THIRD),
            S::merge::<0, 1>(codes[3], bits, THIRD),
            S::merge::<0, 2>(codes[4], bits, THIRD),
            S::merge::<0, 3>(codes[5], bits, THIRD),
            S::merge::<0, 4>(codes[6], bits, THIRD),
            S::merge::<0, 5>(codes[7], bits, THIRD),
        ]
    }
}

pub(crate) struct Iq4Xs;

/// A scale in f16, and six bits for each 32 weights: the upper two of all in two bytes, the lower four in four.
const IQ4_XS_SCALES: usize = F16S + 6 * ROWS;

impl Blocks for Iq4Xs {
    const WEIGHTS: usize = 256;
    const BYTES: usize = IQ4_XS_SCALES + 8 * NIBBLES;
    const OFFSET: i32 = 128;

    #[inline(always)]
    fn scales<S: Simd>(block: &[u8]) -> Scales<S> {
        let mut scales = plain::<S>(S::from_f16(bytes(block, 0)), S::floats(0.0));
        let packed: &[u8; 6 * ROWS] = bytes(block, F16S);
        for part in 0..8 {
            for row in 0..ROWS {
                let upper = packed[part / 4 * ROWS + row] >> (2 * (part % 4)) & 3;
                let lower = packed[(2 + part / 2) * ROWS + row] >> (4 * (part % 2)) & 15;
                scales.scales[part][row] = (lower | upper << 4).wrapping_sub(32);
            }
        }
        scales
    }

    #[inline(always)]
    fn scale<S: Simd>(scales: &Scales<S>, part: usize, _half: usize) -> S::Floats {
        S::multiply(scales.d, S::from_i8(&scales.scales[part]))
    }

    #[inline(always)]
    fn codes<S: Simd>(block: &[u8], part: usize) -> [S::Codes; 8] {
        looked_up::<S>(&IQ4_NL_CODES, nibbles::<S>(block, IQ4_XS_SCALES + part * NIBBLES))
    }
}

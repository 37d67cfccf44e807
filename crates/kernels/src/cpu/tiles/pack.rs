//! From the file's blocks to tiles. Any bytes are valid blocks.

use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::simd::ROWS;
use crate::packed::{PackedType, Packing};

/// The packings that have tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
    MXFP4,
}

impl Kind {
    pub(crate) const fn of(packing: Packing) -> Option<Self> {
        Some(match packing {
            Packing::Candle(GgmlDType::Q4_0) => Self::Q4_0,
            Packing::Candle(GgmlDType::Q4_1) => Self::Q4_1,
            Packing::Candle(GgmlDType::Q5_0) => Self::Q5_0,
            Packing::Candle(GgmlDType::Q5_1) => Self::Q5_1,
            Packing::Candle(GgmlDType::Q8_0) => Self::Q8_0,
            Packing::Candle(GgmlDType::Q2K) => Self::Q2K,
            Packing::Candle(GgmlDType::Q3K) => Self::Q3K,
            Packing::Candle(GgmlDType::Q4K) => Self::Q4K,
            Packing::Candle(GgmlDType::Q5K) => Self::Q5K,
            Packing::Candle(GgmlDType::Q6K) => Self::Q6K,
            Packing::Ours(PackedType::IQ4NL) => Self::IQ4NL,
            Packing::Ours(PackedType::IQ4XS) => Self::IQ4XS,
            Packing::Ours(PackedType::MXFP4) => Self::MXFP4,
            _ => return None,
        })
    }

    /// Where scales lie in one of the file's blocks: the f16, and then those of a byte.
    const fn scales(self) -> (&'static [usize], Range<usize>) {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::IQ4NL => (&[0], 0..0),
            Self::Q4_1 | Self::Q5_1 => (&[0, 2], 0..0),
            Self::MXFP4 => (&[], 0..1),
            Self::Q2K => (&[80, 82], 0..16),
            Self::Q3K => (&[108], 96..108),
            Self::IQ4XS => (&[0], 2..8),
            Self::Q4K | Self::Q5K => (&[0, 2], 4..16),
            Self::Q6K => (&[208], 192..208),
        }
    }

    /// Bits of a code.
    const fn bits(self) -> usize {
        match self {
            Self::Q2K => 2,
            Self::Q3K => 3,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K | Self::IQ4NL | Self::IQ4XS | Self::MXFP4 => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// Codes of the weights from `32 · part` on of one of the file's blocks, four in each word: computed with side by side.
    #[inline(always)]
    fn codes(self, block: &[u8], part: usize) -> [u32; 8] {
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let nibbles = |at: usize, i: usize| word(at + 4 * (i % 4)) >> (4 * (i / 4)) & LOW_NIBBLES;
        // Of four bits, each to the lowest of a byte's five: the products don't overlap.
        let fifths = |at: usize, i: usize| (((word(at) >> (4 * i) & 15) * 0x0020_4081) & LOW_BITS) << 4;
        let k_nibbles = |at: usize, i: usize| word(at + 32 * (part / 2) + 4 * i) >> (4 * (part % 2)) & LOW_NIBBLES;
        let crumbs = |at: usize, i: usize| word(at + 32 * (part / 4) + 4 * i) >> (2 * (part % 4)) & LOW_PAIRS;
        let mut codes = [0; 8];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = match self {
                Self::Q4_0 | Self::IQ4NL => nibbles(2, i),
                Self::Q4_1 => nibbles(4, i),
                Self::MXFP4 => nibbles(1, i),
                Self::Q5_0 => nibbles(6, i) | fifths(2, i),
                Self::Q5_1 => nibbles(8, i) | fifths(4, i),
                Self::Q8_0 => word(2 + 4 * i) ^ 0x8080_8080,
                Self::IQ4XS => nibbles(8 + 16 * part, i),
                Self::Q2K => crumbs(16, i),
                Self::Q3K => crumbs(32, i) | (word(4 * i) >> part & LOW_BITS) << 2,
                Self::Q4K => k_nibbles(16, i),
                Self::Q5K => k_nibbles(48, i) | (word(16 + 4 * i) >> part & LOW_BITS) << 4,
                Self::Q6K => {
                    let (half, quarter) = (part / 4, part % 4);
                    let low = word(64 * half + 32 * (quarter % 2) + 4 * i) >> (4 * (quarter / 2)) & LOW_NIBBLES;
                    low | (word(128 + 32 * half + 4 * i) >> (2 * quarter) & LOW_PAIRS) << 4
                }
            };
        }
        codes
    }
}

/// The lowest bits of each byte of a word.
const LOW_BITS: u32 = 0x0101_0101;
const LOW_PAIRS: u32 = 0x0303_0303;
const LOW_NIBBLES: u32 = 0x0f0f_0f0f;

/// Writes one tile: `rows` are up to sixteen rows of `row_bytes`, of blocks of `block_bytes`.
pub(crate) fn pack(kind: Kind, rows: &[u8], row_bytes: usize, block_bytes: usize, tile: &mut [u8]) {
    macro_rules! pack {
        ($($kind:ident),*) => {
            // Each by itself, so that what depends on the kind is no question in the innermost loop.
            match kind { $(Kind::$kind => pack_kind(Kind::$kind, rows, row_bytes, block_bytes, tile)),* }
        };
    }
    pack!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL, IQ4XS, MXFP4);
}

#[inline(always)]
fn pack_kind(kind: Kind, rows: &[u8], row_bytes: usize, block_bytes: usize, tile: &mut [u8]) {
    if rows.len() < ROWS * row_bytes {
        // Rows that aren't there have a scale of zero.
        tile.fill(0);
    }
    for (row, blocks) in rows.chunks_exact(row_bytes).enumerate() {
        let blocks = blocks.chunks_exact(block_bytes);
        for (block, tile_block) in blocks.zip(tile.chunks_exact_mut(ROWS * block_bytes)) {
            let (halves, bytes) = kind.scales();
            let mut at = 0;
            for half in halves {
                tile_block[at + 2 * row] = block[*half];
                tile_block[at + 2 * row + 1] = block[half + 1];
                at += 2 * ROWS;
            }
            for byte in &block[bytes] {
                tile_block[at + row] = *byte;
                at += ROWS;
            }
            let codes = &mut tile_block[at..];
            let bytes = 8 * kind.bits() * ROWS / 2;
            for (part, to) in codes.chunks_exact_mut(bytes).enumerate() {
                place(kind.bits(), kind.codes(block, part), row, to);
            }
        }
    }
}

/// Puts a row's 32 codes where `super::blocks` says: upper bits first.
#[inline(always)]
fn place(bits: usize, codes: [u32; 8], row: usize, to: &mut [u8]) {
    const PLANE: usize = 4 * ROWS;
    let mut put = |plane: usize, word: u32| to[plane * PLANE + 4 * row..][..4].copy_from_slice(&word.to_le_bytes());
    if bits == 8 {
        codes.into_iter().enumerate().for_each(|(group, codes)| put(group, codes));
        return;
    }
    // One bit of all groups.
    let bit =
        |bit: usize| codes.iter().enumerate().fold(0, |word, (group, codes)| word | (codes >> bit & LOW_BITS) << group);
    let (lower, upper) = codes.split_at(4);
    let first = match bits {
        3 => {
            put(0, bit(2));
            1
        }
        5 => {
            put(0, bit(4));
            1
        }
        6 => {
            let pair = |word: u32, (group, codes): (usize, &u32)| word | (codes >> 4 & LOW_PAIRS) << (2 * group);
            put(0, lower.iter().enumerate().fold(0, pair));
            put(1, upper.iter().enumerate().fold(0, pair));
            2
        }
        _ => 0,
    };
    if bits < 4 {
        for (half, codes) in [lower, upper].into_iter().enumerate() {
            let pairs =
                codes.iter().enumerate().fold(0, |word, (group, codes)| word | (codes & LOW_PAIRS) << (2 * group));
            put(first + half, pairs);
        }
        return;
    }
    for (group, (lower, upper)) in lower.iter().zip(upper).enumerate() {
        put(first + group, lower & LOW_NIBBLES | (upper & LOW_NIBBLES) << 4);
    }
}

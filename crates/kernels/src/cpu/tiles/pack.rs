//! From the file's blocks to tiles. Any bytes are valid blocks.

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

    /// Bytes of a row's scales in one of the file's blocks, which lie side by side in a tile block; and where they are.
    const fn scales(self) -> &'static [(usize, usize)] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::IQ4NL => &[(0, 2)],
            Self::Q4_1 | Self::Q5_1 => &[(0, 2), (2, 2)],
            Self::MXFP4 => &[(0, 1)],
            Self::Q2K => {
                const {
                    &[
                        (80, 2),
                        (82, 2),
                        (0, 1),
                        (1, 1),
                        (2, 1),
                        (3, 1),
                        (4, 1),
                        (5, 1),
                        (6, 1),
                        (7, 1),
                        (8, 1),
                        (9, 1),
                        (10, 1),
                        (11, 1),
                        (12, 1),
                        (13, 1),
                        (14, 1),
                        (15, 1),
                    ]
                }
            }
            Self::Q3K => {
                const {
                    &[
                        (108, 2),
                        (96, 1),
                        (97, 1),
                        (98, 1),
                        (99, 1),
                        (100, 1),
                        (101, 1),
                        (102, 1),
                        (103, 1),
                        (104, 1),
                        (105, 1),
                        (106, 1),
                        (107, 1),
                    ]
                }
            }
            Self::IQ4XS => &[(0, 2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)],
            Self::Q4K | Self::Q5K => {
                const {
                    &[
                        (0, 2),
                        (2, 2),
                        (4, 1),
                        (5, 1),
                        (6, 1),
                        (7, 1),
                        (8, 1),
                        (9, 1),
                        (10, 1),
                        (11, 1),
                        (12, 1),
                        (13, 1),
                        (14, 1),
                        (15, 1),
                    ]
                }
            }
            Self::Q6K => {
                const {
                    &[
                        (208, 2),
                        (192, 1),
                        (193, 1),
                        (194, 1),
                        (195, 1),
                        (196, 1),
                        (197, 1),
                        (198, 1),
                        (199, 1),
                        (200, 1),
                        (201, 1),
                        (202, 1),
                        (203, 1),
                        (204, 1),
                        (205, 1),
                        (206, 1),
                        (207, 1),
                    ]
                }
            }
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

    /// Codes of the weights from `32 · part` on of one of the file's blocks.
    #[inline(always)]
    fn codes(self, block: &[u8], part: usize) -> [u8; 32] {
        let nibble = |at: usize, i: usize| block[at + i % 16] >> (4 * (i / 16)) & 15;
        let fifth = |at: usize, i: usize| (block[at + i / 8] >> (i % 8) & 1) << 4;
        let k_nibble = |at: usize, i: usize| block[at + 32 * (part / 2) + i] >> (4 * (part % 2)) & 15;
        let crumb = |at: usize, i: usize| block[at + 32 * (part / 4) + i] >> (2 * (part % 4)) & 3;
        let mut codes = [0; 32];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = match self {
                Self::Q4_0 | Self::IQ4NL => nibble(2, i),
                Self::Q4_1 => nibble(4, i),
                Self::MXFP4 => nibble(1, i),
                Self::Q5_0 => nibble(6, i) | fifth(2, i),
                Self::Q5_1 => nibble(8, i) | fifth(4, i),
                Self::Q8_0 => block[2 + i] ^ 0x80,
                Self::IQ4XS => nibble(8 + 16 * part, i),
                Self::Q2K => crumb(16, i),
                Self::Q3K => crumb(32, i) | (block[i] >> part & 1) << 2,
                Self::Q4K => k_nibble(16, i),
                Self::Q5K => k_nibble(48, i) | (block[16 + i] >> part & 1) << 4,
                Self::Q6K => {
                    let (half, quarter) = (part / 4, part % 4);
                    let low = block[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter / 2)) & 15;
                    low | (block[128 + 32 * half + i] >> (2 * quarter) & 3) << 4
                }
            };
        }
        codes
    }
}

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
    // Rows that aren't there have a scale of zero.
    tile.fill(0);
    for (row, blocks) in rows.chunks_exact(row_bytes).enumerate() {
        let blocks = blocks.chunks_exact(block_bytes);
        for (block, tile_block) in blocks.zip(tile.chunks_exact_mut(ROWS * block_bytes)) {
            let mut at = 0;
            for (from, len) in kind.scales() {
                tile_block[at + row * len..][..*len].copy_from_slice(&block[*from..from + len]);
                at += ROWS * len;
            }
            let codes = &mut tile_block[at..];
            let bytes = 8 * kind.bits() * ROWS / 2;
            for (part, to) in codes.chunks_exact_mut(bytes).enumerate() {
                place(kind.bits(), &kind.codes(block, part), row, to);
            }
        }
    }
}

/// Puts a row's 32 codes where `super::blocks` says: upper bits first.
#[inline(always)]
fn place(bits: usize, codes: &[u8; 32], row: usize, to: &mut [u8]) {
    const PLANE: usize = 4 * ROWS;
    let plane = |index: usize| index * PLANE + 4 * row;
    if bits == 8 {
        for (group, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
            to[plane(group)..][..4].copy_from_slice(codes);
        }
        return;
    }
    // One bit of all groups.
    let bit = |i: usize, bit: usize| (0..8).fold(0, |byte, group| byte | (codes[4 * group + i] >> bit & 1) << group);
    let upper = match bits {
        3 => {
            (0..4).for_each(|i| to[plane(0) + i] = bit(i, 2));
            1
        }
        5 => {
            (0..4).for_each(|i| to[plane(0) + i] = bit(i, 4));
            1
        }
        6 => {
            for half in 0..2 {
                let codes = &codes[16 * half..];
                let byte =
                    |i: usize| (0..4).fold(0, |byte, group| byte | (codes[4 * group + i] >> 4 & 3) << (2 * group));
                (0..4).for_each(|i| to[plane(half) + i] = byte(i));
            }
            2
        }
        _ => 0,
    };
    if bits < 4 {
        for (half, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
            let byte = |i: usize| (0..4).fold(0, |byte, group| byte | (codes[4 * group + i] & 3) << (2 * group));
            (0..4).for_each(|i| to[plane(upper + half) + i] = byte(i));
        }
        return;
    }
    for group in 0..4 {
        for i in 0..4 {
            to[plane(upper + group) + i] = codes[4 * group + i] & 15 | codes[16 + 4 * group + i] << 4;
        }
    }
}

//! The packings of weights that candle lacks, as ggml lays them out: blocks of weights with a scale of their own, where
//! a row is a whole number of blocks. Unpacking gives the same bits as `ggml-quants.c` of llama.cpp, whose formulas
//! these are. Start at [`PackedType::unpack`] and [`PackedMatrix`].

mod codebooks;
mod fp4;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod low_bits;
mod matrix;
mod packing;

use half::f16;

pub use matrix::PackedMatrix;
pub use packing::Packing;

/// How the weights of a block are packed, as GGUF names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "GGUF's names say what there is to say")]
pub enum PackedType {
    Q1_0,
    Q2_0,
    TQ1_0,
    TQ2_0,
    IQ1S,
    IQ1M,
    IQ2XXS,
    IQ2XS,
    IQ2S,
    IQ3XXS,
    IQ3S,
    IQ4NL,
    IQ4XS,
    MXFP4,
    NVFP4,
}

impl PackedType {
    /// Every type.
    pub const ALL: [Self; 15] = [
        Self::Q1_0,
        Self::Q2_0,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::IQ1S,
        Self::IQ1M,
        Self::IQ2XXS,
        Self::IQ2XS,
        Self::IQ2S,
        Self::IQ3XXS,
        Self::IQ3S,
        Self::IQ4NL,
        Self::IQ4XS,
        Self::MXFP4,
        Self::NVFP4,
    ];

    /// Weights per block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::IQ4NL | Self::MXFP4 => 32,
            Self::Q2_0 | Self::NVFP4 => 64,
            Self::Q1_0 => 128,
            _ => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::MXFP4 => 17,
            Self::Q1_0 | Self::Q2_0 | Self::IQ4NL => 18,
            Self::NVFP4 => 36,
            Self::IQ1S => 50,
            Self::TQ1_0 => 54,
            Self::IQ1M => 56,
            Self::TQ2_0 | Self::IQ2XXS => 66,
            Self::IQ2XS => 74,
            Self::IQ2S => 82,
            Self::IQ3XXS => 98,
            Self::IQ3S => 110,
            Self::IQ4XS => 136,
        }
    }

    /// What indices in the blocks refer to, as bytes: four or eight an entry, one where an entry is a value.
    pub fn codebook(self) -> Vec<u8> {
        use codebooks::{FP4, IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL};

        let of_eight = |entries: &[u64]| entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let of_four = |entries: &[u32]| entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let of_one = |entries: &[i8]| entries.iter().map(|entry| entry.cast_unsigned()).collect();
        match self {
            Self::Q1_0 | Self::Q2_0 | Self::TQ1_0 | Self::TQ2_0 => Vec::new(),
            Self::IQ1S | Self::IQ1M => of_eight(&IQ1),
            Self::IQ2XXS => of_eight(&IQ2_XXS),
            Self::IQ2XS => of_eight(&IQ2_XS),
            Self::IQ2S => of_eight(&IQ2_S),
            Self::IQ3XXS => of_four(&IQ3_XXS),
            Self::IQ3S => of_four(&IQ3_S),
            Self::IQ4NL | Self::IQ4XS => of_one(&IQ4_NL),
            Self::MXFP4 | Self::NVFP4 => of_one(&FP4),
        }
    }

    /// Writes the weights of `blocks` to `out`: as many whole blocks as both have. Any bytes are valid blocks.
    pub fn unpack(self, blocks: &[u8], out: &mut [f32]) {
        self.unpack_inlined(blocks, out);
    }

    /// [`Self::unpack`] with the instructions of whoever calls.
    #[inline(always)]
    pub(crate) fn unpack_inlined(self, blocks: &[u8], out: &mut [f32]) {
        match self {
            Self::Q1_0 => each_block(blocks, out, low_bits::unpack_q1_0),
            Self::Q2_0 => each_block(blocks, out, low_bits::unpack_q2_0),
            Self::TQ1_0 => each_block(blocks, out, low_bits::unpack_tq1_0),
            Self::TQ2_0 => each_block(blocks, out, low_bits::unpack_tq2_0),
            Self::IQ1S => each_block(blocks, out, iq1::unpack_s),
            Self::IQ1M => each_block(blocks, out, iq1::unpack_m),
            Self::IQ2XXS => each_block(blocks, out, iq2::unpack_xxs),
            Self::IQ2XS => each_block(blocks, out, iq2::unpack_xs),
            Self::IQ2S => each_block(blocks, out, iq2::unpack_s),
            Self::IQ3XXS => each_block(blocks, out, iq3::unpack_xxs),
            Self::IQ3S => each_block(blocks, out, iq3::unpack_s),
            Self::IQ4NL => each_block(blocks, out, iq4::unpack_nl),
            Self::IQ4XS => each_block(blocks, out, iq4::unpack_xs),
            Self::MXFP4 => each_block(blocks, out, fp4::unpack_mx),
            Self::NVFP4 => each_block(blocks, out, fp4::unpack_nv),
        }
    }
}

#[inline(always)]
fn each_block<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    unpack: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        unpack(block, out);
    }
}

#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_bits(u16_at(block, at)).to_f32()
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Writes `scale` times the magnitudes of a codebook's entry, negative where the bit of `signs` is set.
#[inline(always)]
fn write_signed(magnitudes: &[u8], signs: u8, scale: f32, out: &mut [f32]) {
    for (i, (out, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let value = scale * f32::from(*magnitude);
        *out = f32::from_bits(value.to_bits() ^ u32::from(signs >> i) << 31);
    }
}

/// Eight signs out of the lowest seven bits: the eighth makes their number even.
#[inline(always)]
const fn even_signs(bits: u32) -> u8 {
    let seven = bits as u8 & 0x7f;
    seven | (seven.count_ones() as u8 & 1) << 7
}

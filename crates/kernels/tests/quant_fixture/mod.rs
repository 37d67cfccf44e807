//! Blocks of every GGUF type with the weights that they stand for, made by `tools/quant_reference.py`.

use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use kernels::packed::{PackedType, Packing};

/// Every packing of weights.
pub(crate) fn packings() -> impl Iterator<Item = Packing> {
    use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let of_candle = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
    of_candle.map(Packing::Candle).into_iter().chain(PackedType::ALL.map(Packing::Ours))
}

/// One type's blocks.
pub(crate) struct QuantFixture {
    name: String,
    /// Whole blocks.
    pub(crate) packed: Vec<u8>,
    /// How many there are.
    pub(crate) blocks: usize,
    hash: u64,
    /// The weights of the first blocks.
    first: Vec<f32>,
}

impl QuantFixture {
    /// The blocks of a packing.
    pub(crate) fn of(packing: Packing) -> Self {
        let name = packing.kernel_name();
        // `IQ1S` is GGUF's `IQ1_S`, and `Q2K` its `Q2_K`.
        let digit = name.find(|character: char| character.is_ascii_digit()).map_or(0, |digit| digit + 1);
        let name = match name.starts_with("IQ") || name.ends_with('K') {
            true => format!("{}_{}", &name[..digit], &name[digit..]),
            false => name,
        };
        Self::read(&name, packing.block_bytes())
    }

    /// The blocks of a type of `block_bytes` each.
    pub(crate) fn read(name: &str, block_bytes: usize) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kernels/tests/fixtures/quants");
        let file = std::fs::read(folder.join(format!("{name}.bin"))).expect("every type has a fixture");
        let [counts, hash] = [0, 1].map(|i| u64::from_le_bytes(file.as_chunks().0[i]));
        let blocks = counts as u32 as usize;
        let (packed, first) = file[16..].split_at(blocks * block_bytes);
        Self {
            name: name.to_owned(),
            packed: packed.to_vec(),
            blocks,
            hash,
            first: first.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        }
    }

    /// The blocks without the first, whose scales are zeros, infinities and other limits.
    pub(crate) fn usual(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.packed.chunks_exact(self.packed.len() / self.blocks).skip(11)
    }

    /// `rows` × `columns` weights of the size that weights have.
    pub(crate) fn matrix(packing: Packing, rows: usize, columns: usize) -> Vec<u8> {
        let plain = (0..rows * columns).map(|i| (i * i % 61) as f32 / 32.0 - 1.0);
        match packing {
            Packing::Candle(GgmlDType::F32) => plain.flat_map(f32::to_le_bytes).collect(),
            Packing::Candle(GgmlDType::F16) => plain.flat_map(|weight| f16::from_f32(weight).to_le_bytes()).collect(),
            Packing::Candle(GgmlDType::BF16) => plain.flat_map(|weight| bf16::from_f32(weight).to_le_bytes()).collect(),
            _ => {
                let bytes = columns / packing.block_len() * packing.block_bytes() * rows;
                Self::of(packing).usual().flatten().copied().cycle().take(bytes).collect()
            }
        }
    }

    /// Compares the weights of all blocks with the reference, bit by bit.
    #[track_caller]
    pub(crate) fn check(&self, weights: &[f32]) {
        for (i, (found, expected)) in weights.iter().zip(&self.first).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{} {i}: {found} is not {expected}", self.name);
        }
        let fnv1a = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = weights.iter().flat_map(|weight| weight.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, fnv1a);
        assert_eq!(hash, self.hash, "{}: a weight behind the first {} differs", self.name, self.first.len());
    }
}

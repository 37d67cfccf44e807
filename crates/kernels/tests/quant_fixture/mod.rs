//! Blocks of every GGUF type with the weights that they stand for, made by `tools/quant_reference.py`.

use std::path::PathBuf;

use kernels::packed::PackedType;

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
    /// The blocks of one of our packings.
    pub(crate) fn of(packed_type: PackedType) -> Self {
        let name = format!("{packed_type:?}");
        // `IQ1S` is GGUF's `IQ1_S`.
        let name = name.strip_prefix("IQ").map(|rest| format!("IQ{}_{}", &rest[..1], &rest[1..])).unwrap_or(name);
        Self::read(&name, packed_type.block_bytes())
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

use candle_core::quantized::GgmlDType;
use kernels::packed::{PackedType, Packing};

/// How the weights of a tensor are packed, as GGUF numbers and names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TensorType {
    id: u32,
    name: &'static str,
    /// Weights per block.
    block_len: u64,
    /// Bytes per block.
    block_bytes: u64,
}

/// `ggml.h` and `gguf-py/gguf/constants.py` of llama.cpp.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// Types that were removed from the format.
const REMOVED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// `general.file_type`, the mix that the whole file was made as.
const FILE_TYPES: &[(u64, &str)] = &[
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

pub(crate) fn file_type_name(file_type: u64) -> Option<&'static str> {
    FILE_TYPES.iter().find(|(id, _)| *id == file_type).map(|(_, name)| *name)
}

impl TensorType {
    pub(crate) const F32: Self = Self { id: 0, name: "F32", block_len: 1, block_bytes: 4 };
    pub(crate) const F16: Self = Self { id: 1, name: "F16", block_len: 1, block_bytes: 2 };
    pub(crate) const BF16: Self = Self { id: 30, name: "BF16", block_len: 1, block_bytes: 2 };

    pub(crate) fn from_id(id: u32) -> Option<Self> {
        let (id, name, block_len, block_bytes) = *TYPES.iter().find(|(known, ..)| *known == id)?;
        Some(Self { id, name, block_len, block_bytes })
    }

    pub(crate) const fn name(self) -> &'static str {
        self.name
    }

    pub(crate) const fn block_len(self) -> u64 {
        self.block_len
    }

    pub(crate) const fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// A type that [`Self::from_id`] doesn't know, for people.
    pub(super) fn describe_unknown(id: u32) -> String {
        match REMOVED.iter().find(|(removed, _)| *removed == id) {
            Some((_, name)) => format!("{name} (removed from GGUF)"),
            None => format!("type {id} (unknown)"),
        }
    }

    /// How weights of this type are read; `None` where they are no weights: whole numbers, f64, and the types that
    /// activations are packed as.
    pub(crate) const fn packing(self) -> Option<Packing> {
        Some(match self.id {
            0 => Packing::Candle(GgmlDType::F32),
            1 => Packing::Candle(GgmlDType::F16),
            2 => Packing::Candle(GgmlDType::Q4_0),
            3 => Packing::Candle(GgmlDType::Q4_1),
            6 => Packing::Candle(GgmlDType::Q5_0),
            7 => Packing::Candle(GgmlDType::Q5_1),
            8 => Packing::Candle(GgmlDType::Q8_0),
            10 => Packing::Candle(GgmlDType::Q2K),
            11 => Packing::Candle(GgmlDType::Q3K),
            12 => Packing::Candle(GgmlDType::Q4K),
            13 => Packing::Candle(GgmlDType::Q5K),
            14 => Packing::Candle(GgmlDType::Q6K),
            16 => Packing::Ours(PackedType::IQ2XXS),
            17 => Packing::Ours(PackedType::IQ2XS),
            18 => Packing::Ours(PackedType::IQ3XXS),
            19 => Packing::Ours(PackedType::IQ1S),
            20 => Packing::Ours(PackedType::IQ4NL),
            21 => Packing::Ours(PackedType::IQ3S),
            22 => Packing::Ours(PackedType::IQ2S),
            23 => Packing::Ours(PackedType::IQ4XS),
            29 => Packing::Ours(PackedType::IQ1M),
            30 => Packing::Candle(GgmlDType::BF16),
            34 => Packing::Ours(PackedType::TQ1_0),
            35 => Packing::Ours(PackedType::TQ2_0),
            39 => Packing::Ours(PackedType::MXFP4),
            40 => Packing::Ours(PackedType::NVFP4),
            41 => Packing::Ours(PackedType::Q1_0),
            42 => Packing::Ours(PackedType::Q2_0),
            _ => return None,
        })
    }

    /// Whether a graph can use a tensor of this type: as weights, or as a table of whole numbers.
    pub(crate) fn is_usable(self) -> bool {
        self.packing().is_some() || self.name == "I32"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_of_unpacked_weights_are_in_the_table() {
        for tensor_type in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            assert_eq!(TensorType::from_id(tensor_type.id), Some(tensor_type));
        }
    }

    #[test]
    fn block_sizes_are_those_of_whoever_reads_the_blocks() {
        let mut ours = 0;
        for (id, ..) in TYPES {
            let tensor_type = TensorType::from_id(*id).unwrap();
            let (len, bytes) = match tensor_type.packing() {
                Some(Packing::Candle(theirs)) => (theirs.block_size(), theirs.type_size()),
                Some(Packing::Ours(packed_type)) => {
                    ours += 1;
                    let name = tensor_type.name().replace('_', "");
                    assert_eq!(format!("{packed_type:?}").replace('_', ""), name);
                    (packed_type.block_len(), packed_type.block_bytes())
                }
                None => continue,
            };
            let found = (tensor_type.block_len(), tensor_type.block_bytes());
            assert_eq!(found, (len as u64, bytes as u64), "{}", tensor_type.name());
        }
        assert_eq!(ours, PackedType::ALL.len());
    }
}

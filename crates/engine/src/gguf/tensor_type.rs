use candle_core::quantized::GgmlDType;

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

/// `ggml.h` and `gguf-py/gguf/constants.py` of llama.cpp; 4, 5, 31–33 and 36–38 were removed from the format.
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
];

pub(crate) fn file_type_name(file_type: u64) -> Option<&'static str> {
    FILE_TYPES.iter().find(|(id, _)| *id == file_type).map(|(_, name)| *name)
}

impl TensorType {
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

    /// The type as candle computes with it; `None` where it doesn't.
    pub(crate) const fn candle(self) -> Option<GgmlDType> {
        Some(match self.id {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            30 => GgmlDType::BF16,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_candles() {
        for (id, ..) in TYPES {
            let ours = TensorType::from_id(*id).unwrap();
            if let Some(theirs) = ours.candle() {
                assert_eq!(ours.block_len(), theirs.block_size() as u64, "{}", ours.name());
                assert_eq!(ours.block_bytes(), theirs.type_size() as u64, "{}", ours.name());
            }
        }
    }
}

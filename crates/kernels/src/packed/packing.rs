use candle_core::Result;
use candle_core::quantized::GgmlDType;

use super::PackedType;

/// How weights are packed, by who reads the blocks on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// candle, or nobody where they are plain.
    Candle(GgmlDType),
    /// We do, since candle lacks them.
    Ours(PackedType),
}

impl Packing {
    /// Weights per block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.block_size(),
            Self::Ours(packed_type) => packed_type.block_len(),
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.type_size(),
            Self::Ours(packed_type) => packed_type.block_bytes(),
        }
    }

    /// What indices in the blocks refer to, as [`PackedType::codebook`].
    pub fn codebook(self) -> Vec<u8> {
        match self {
            Self::Candle(_) => Vec::new(),
            Self::Ours(packed_type) => packed_type.codebook(),
        }
    }

    /// What our Metal kernels for it have behind their names.
    pub fn kernel_name(self) -> String {
        match self {
            Self::Candle(dtype) => format!("{dtype:?}"),
            Self::Ours(packed_type) => format!("{packed_type:?}"),
        }
    }

    /// Whether `bytes` are `rows` rows of whole blocks.
    pub(crate) fn check_rows(self, bytes: usize, rows: usize, columns: usize) -> Result<()> {
        let is_whole = columns > 0 && columns.is_multiple_of(self.block_len());
        if !is_whole || (columns / self.block_len() * self.block_bytes()).checked_mul(rows) != Some(bytes) {
            candle_core::bail!("{bytes} bytes of {} for {rows} rows of {columns} weights", self.kernel_name());
        }
        Ok(())
    }
}

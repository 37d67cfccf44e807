use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use kernels::packed::PackedMatrix;

use super::mapped::MappedBytes;

/// A matrix of weights `(rows, columns)` in the layout in which the device computes with it.
pub(crate) enum Matrix {
    /// Blocks that candle has products for.
    Candle(QTensor),
    /// Blocks that candle lacks, in the mapped file. Only the CPU has products for them.
    Packed(PackedMatrix<MappedBytes>),
    /// f32 weights, of which candle's plain product is faster than the one over "blocks"; or on a GPU, f16 in place of
    /// blocks that candle lacks.
    Plain(Tensor),
}

impl Matrix {
    /// f32 blocks as plain weights; anything else as it is.
    pub(super) fn from_candle(blocks: QTensor) -> candle_core::Result<Self> {
        match blocks.dtype() {
            GgmlDType::F32 => blocks.dequantize(&blocks.device()).map(Self::Plain),
            _ => Ok(Self::Candle(blocks)),
        }
    }

    /// The rows `ids`, `(…)` → `(…, columns)`, as f32.
    pub(crate) fn embedding(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Candle(blocks) => blocks.embedding(ids),
            Self::Packed(blocks) => blocks.embedding(ids),
            Self::Plain(weights) => {
                let mut shape = ids.dims().to_vec();
                shape.push(weights.dim(1)?);
                weights.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?.to_dtype(DType::F32)
            }
        }
    }

    /// `x` `(tokens, columns)` → `(tokens, rows)`.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Candle(blocks) => x.apply_op1_no_bwd(blocks),
            Self::Packed(blocks) => blocks.product(x),
            Self::Plain(weights) => x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(x.dtype()),
        }
    }
}

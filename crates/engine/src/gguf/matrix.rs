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
    /// f32 weights, of which candle's plain product is faster than the one over "blocks"; or on a GPU, f16 or bf16 in
    /// place of blocks that candle has no kernels for.
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
            Self::Candle(blocks) if x.device().is_metal() => metal_product(x, blocks),
            Self::Candle(blocks) => x.apply_op1_no_bwd(blocks),
            Self::Packed(blocks) => blocks.product(x),
            Self::Plain(weights) => x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(x.dtype()),
        }
    }
}

/// `x` `(tokens, columns)` → `(tokens, rows)`, around what candle's Metal kernels get wrong.
fn metal_product(x: &Tensor, blocks: &QTensor) -> candle_core::Result<Tensor> {
    if x.dim(0)? == 1 && !has_metal_kernel_for_one_token(blocks) {
        return Tensor::cat(&[x, x], 0)?.apply_op1_no_bwd(blocks)?.narrow(0, 0, 1);
    }
    // The one for several tokens reads from the beginning of the buffer, wherever in it `x` begins.
    let begins_late = x.dim(0)? > 1 && x.layout().start_offset() > 0;
    if begins_late { x.force_contiguous()? } else { x.clone() }.apply_op1_no_bwd(blocks)
}

/// candle's kernel for one token has too few threads for plain weights, and stores whole tiles of rows; those of Q2_K are
/// twice as many as there are rows.
fn has_metal_kernel_for_one_token(blocks: &QTensor) -> bool {
    const TILE: usize = 8;
    let has_own = !matches!(blocks.dtype(), GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::Q2K);
    has_own && blocks.shape().dims().first().is_some_and(|rows| rows.is_multiple_of(TILE))
}

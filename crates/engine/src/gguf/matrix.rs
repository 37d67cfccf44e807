use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
#[cfg(feature = "metal")]
use kernels::metal::PackedTensor;
use kernels::packed::PackedMatrix;

use super::mapped::MappedBytes;

/// A matrix of weights `(rows, columns)` in the layout in which the device computes with it.
pub(crate) enum Matrix {
    /// Blocks that candle has products for, on the CPU or with CUDA.
    Candle(Box<QTensor>),
    /// Blocks that candle lacks, in the mapped file. Only the CPU has products for them.
    Packed(PackedMatrix<MappedBytes>),
    /// Blocks of any packing in the memory of an Apple GPU.
    #[cfg(feature = "metal")]
    Metal(PackedTensor),
    /// f32 weights, of which candle's plain product is faster than the one over "blocks"; or with CUDA, f16 in place of
    /// blocks that there are no kernels for.
    Plain(Tensor),
}

impl Matrix {
    /// f32 blocks as plain weights; anything else as it is.
    pub(super) fn from_candle(blocks: Box<QTensor>) -> candle_core::Result<Self> {
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
            #[cfg(feature = "metal")]
            Self::Metal(blocks) => blocks.embedding(ids),
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
            // candle repacks them for several rows, and adds one alone up in another order: its answer would depend on
            // what else runs.
            Self::Candle(blocks) if blocks.dtype() == GgmlDType::Q6K && x.dim(0)? == 1 && x.device().is_cpu() => {
                x.pad_with_zeros(0, 0, 1)?.apply_op1_no_bwd(&**blocks)?.narrow(0, 0, 1)
            }
            Self::Candle(blocks) => x.apply_op1_no_bwd(&**blocks),
            Self::Packed(blocks) => blocks.product(x),
            #[cfg(feature = "metal")]
            Self::Metal(blocks) => blocks.product(x),
            Self::Plain(weights) => x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(x.dtype()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// An answer is the same whatever else runs with it, so a row's product is the same whatever rows are beside it.
    #[test]
    fn a_row_by_itself_is_the_row_among_others() {
        const TYPES: [GgmlDType; 12] = [
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ];
        for (columns, rows) in [(256, 48), (1024, 33), (512, 64)] {
            let weights = Tensor::randn(0_f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
            let x = Tensor::randn(0_f32, 1.0, (40, columns), &Device::Cpu).unwrap();
            for dtype in TYPES {
                let matrix = Matrix::from_candle(Box::new(QTensor::quantize(&weights, dtype).unwrap())).unwrap();
                let product =
                    |at, len| matrix.product(&x.narrow(0, at, len).unwrap()).unwrap().to_vec2::<f32>().unwrap();
                let all = product(0, 40);
                for (at, len) in [(0, 1), (39, 1), (3, 2), (1, 3), (4, 32), (8, 31)] {
                    assert_eq!(product(at, len), all[at..at + len], "{dtype:?} {rows}x{columns}: {len} rows at {at}");
                }
            }
        }
    }
}

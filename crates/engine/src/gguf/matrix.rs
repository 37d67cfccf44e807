use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use kernels::cpu::{FloatMatrix, Tiles};
#[cfg(feature = "metal")]
use kernels::metal::PackedTensor;
use kernels::packed::PackedMatrix;

use super::mapped::MappedBytes;

/// A matrix of weights `(rows, columns)` in the layout in which the device computes with it.
pub(crate) enum Matrix {
    /// Blocks that candle has products for, on the CPU or with CUDA.
    Candle(Box<QTensor>),
    /// f32, f16 or bf16 in the mapped file, for the CPU.
    Floats(FloatMatrix<MappedBytes>),
    /// Blocks repacked for the CPU.
    Tiled(Tiles<MappedBytes>),
    /// Blocks that candle lacks, in the mapped file. Only the CPU has products for them.
    Packed(PackedMatrix<MappedBytes>),
    /// Blocks of any packing in the memory of an Apple GPU.
    #[cfg(feature = "metal")]
    Metal(PackedTensor),
    /// f32 weights in a GPU's memory, of which candle's plain product is faster than the one over "blocks"; or with CUDA,
    /// f16 in place of blocks that there are no kernels for.
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
            Self::Floats(matrix) => matrix.embedding(ids),
            Self::Tiled(tiles) => tiles.embedding(ids),
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

    /// The products of all `matrices` with `x` `(tokens, columns)`, each `(tokens, rows)` with its bias added. The CPU
    /// rounds `x` once for all.
    pub(crate) fn products(matrices: &[(&Self, Option<&Tensor>)], x: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let tiles = matrices.iter().map(|(matrix, bias)| match matrix {
            Self::Tiled(tiles) => Some((tiles, *bias)),
            _ => None,
        });
        if let Some(tiles) = tiles.collect::<Option<Vec<_>>>() {
            return Tiles::products(&tiles, &x.contiguous()?);
        }
        let floats = matrices.iter().map(|(matrix, bias)| match matrix {
            Self::Floats(floats) => Some((floats, *bias)),
            _ => None,
        });
        if let Some(floats) = floats.collect::<Option<Vec<_>>>() {
            return FloatMatrix::products(&floats, &x.contiguous()?);
        }
        let product = |(matrix, bias): &(&Self, Option<&Tensor>)| match bias {
            Some(bias) => matrix.product(x)?.broadcast_add(bias),
            None => matrix.product(x),
        };
        matrices.iter().map(product).collect()
    }

    /// The matrix in tiles, if it is.
    pub(crate) const fn tiles(&self) -> Option<&Tiles<MappedBytes>> {
        match self {
            Self::Tiled(tiles) => Some(tiles),
            _ => None,
        }
    }

    /// `x` `(tokens, columns)` → `(tokens, rows)`.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Candle(blocks) => x.apply_op1_no_bwd(&**blocks),
            Self::Floats(matrix) => Ok(FloatMatrix::products(&[(matrix, None)], &x.contiguous()?)?.remove(0)),
            Self::Tiled(tiles) => Ok(Tiles::products(&[(tiles, None)], &x.contiguous()?)?.remove(0)),
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
    use kernels::packed::Packing;

    use super::super::mapped::tiled;
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
                let blocks = QTensor::quantize(&weights, dtype).unwrap();
                let tiles = tiled(
                    MappedBytes::made(blocks.data().unwrap().into()),
                    Packing::Candle(dtype),
                    rows,
                    columns,
                    |_| {},
                )
                .unwrap();
                let matrix = match tiles {
                    Some(tiles) => Matrix::Tiled(Tiles::new(tiles, Packing::Candle(dtype), rows, columns).unwrap()),
                    None => {
                        let bytes = MappedBytes::made(blocks.data().unwrap().into());
                        Matrix::Floats(FloatMatrix::new(bytes, Packing::Candle(dtype), rows, columns).unwrap())
                    }
                };
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

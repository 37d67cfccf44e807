use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};

use crate::LoadError;
use crate::gguf::Weights;

/// A matrix of weights, packed as in the file, with an optional bias.
pub(crate) struct Linear {
    matrix: Matrix,
    bias: Option<Tensor>,
}

enum Matrix {
    Packed(Arc<QTensor>),
    /// f32 weights: a plain product is faster than candle's packed one over f32 "blocks".
    Plain(Tensor),
}

impl Linear {
    pub(crate) fn load(weights: &mut Weights<'_>, name: &str, rows: usize, columns: usize) -> Result<Self, LoadError> {
        let matrix = weights.matrix(&format!("{name}.weight"), rows, columns)?;
        Self::from_packed(Arc::new(matrix)).map_err(LoadError::Device)
    }

    pub(crate) fn load_with_bias(
        weights: &mut Weights<'_>,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Self, LoadError> {
        let bias = weights.vector(&format!("{name}.bias"), rows)?;
        Ok(Self { bias: Some(bias), ..Self::load(weights, name, rows, columns)? })
    }

    pub(crate) fn from_packed(matrix: Arc<QTensor>) -> candle_core::Result<Self> {
        let matrix = match matrix.dtype() {
            GgmlDType::F32 => Matrix::Plain(matrix.dequantize(&matrix.device())?),
            _ => Matrix::Packed(matrix),
        };
        Ok(Self { matrix, bias: None })
    }

    /// `x` `(tokens, columns)` → `(tokens, rows)`.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = match &self.matrix {
            Matrix::Packed(matrix) => x.apply_op1_no_bwd(matrix.as_ref())?,
            Matrix::Plain(matrix) => x.matmul(&matrix.t()?)?,
        };
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

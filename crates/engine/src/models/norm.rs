use candle_core::Tensor;
use kernels::rms_norm;

use crate::LoadError;
use crate::gguf::Weights;

/// Root-mean-square norm over the last dimension. One without a weight in the file has ones.
pub(super) struct Norm {
    weight: Tensor,
    epsilon: f32,
}

impl Norm {
    pub(super) fn load(weights: &mut Weights<'_>, name: &str, width: usize, epsilon: f32) -> Result<Self, LoadError> {
        Ok(Self { weight: weights.vector(&format!("{name}.weight"), width)?, epsilon })
    }

    /// The norm, where the file has it.
    pub(super) fn load_optional(
        weights: &mut Weights<'_>,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<Option<Self>, LoadError> {
        weights.has(&format!("{name}.weight")).then(|| Self::load(weights, name, width, epsilon)).transpose()
    }

    /// A norm without a weight.
    pub(super) fn plain(weights: &Weights<'_>, width: usize, epsilon: f32) -> Result<Self, LoadError> {
        let weight = Tensor::ones(width, candle_core::DType::F32, weights.device()).map_err(LoadError::Device)?;
        Ok(Self { weight, epsilon })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        rms_norm(x, &self.weight, self.epsilon)
    }
}

/// `x`, normed where there is a norm.
pub(super) fn normed_by(norm: Option<&Norm>, x: Tensor) -> candle_core::Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}

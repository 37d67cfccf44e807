use candle_core::{D, DType, Result, Tensor};

use crate::cpu;

/// Root-mean-square norm over the last dimension, scaled by `weight`.
///
/// # Errors
/// When the last dimension isn't `weight`'s.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::F32 && weight.dtype() == DType::F32 {
        return cpu::rms_norm(x, weight, epsilon);
    }
    // One kernel on Metal and CUDA.
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, epsilon)
}

/// [`rms_norm`] in plain candle ops.
///
/// # Errors
/// When the last dimension isn't `weight`'s.
pub fn rms_norm_reference(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let norm = (mean_square + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&norm)?.broadcast_mul(weight)
}

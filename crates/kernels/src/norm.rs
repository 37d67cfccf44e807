use candle_core::{D, Result, Tensor};

/// Root-mean-square norm over the last dimension, scaled by `weight`.
///
/// # Errors
/// When the last dimension isn't `weight`'s.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    // One kernel on Metal and CUDA, one pass per row on the CPU.
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

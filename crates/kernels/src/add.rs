use candle_core::{DType, Result, Tensor};

use crate::cpu;

/// `a + b` of one shape: what a layer adds to the residual stream.
///
/// # Errors
/// When the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let is_plain = |x: &Tensor| x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous();
    if is_plain(a) && is_plain(b) { a.apply_op2_no_bwd(b, &cpu::Add) } else { a + b }
}

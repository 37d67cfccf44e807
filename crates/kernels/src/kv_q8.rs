use candle_core::{D, DType, Device, Result, Tensor};

use crate::cpu;

/// The integer that stands for zero: candle has no signed bytes.
pub(crate) const ZERO: u8 = 128;

/// Values that share a scale, so that one large value costs no more than these their small digits.
const GROUP: usize = 32;

/// Scales of a vector of `dim` values: one for each 32, or one for all where they don't divide it.
pub(crate) const fn scales(dim: usize) -> usize {
    if dim.is_multiple_of(GROUP) { dim / GROUP } else { 1 }
}

/// `x` `(…, …, dim)` as integers of the same shape and its [`scales`]: `x ≈ (code − 128) · scale`, with `scale` a 127th of
/// the largest magnitude in a group, so that no value is further off than half of it.
pub(crate) fn pack(x: &Tensor) -> Result<[Tensor; 2]> {
    let (rows, heads, dim) = x.dims3()?;
    let groups = scales(dim);
    let x = x.to_dtype(DType::F32)?.reshape((rows, heads, groups, dim / groups))?;
    // A group of zeros has a scale too.
    let scales = (x.abs()?.max_keepdim(D::Minus1)? / 127.0)?.maximum(f64::from(f32::MIN_POSITIVE))?;
    let codes = (x.broadcast_div(&scales)?.round()? + f64::from(ZERO))?.to_dtype(DType::U8)?;
    Ok([codes.reshape((rows, heads, dim))?, scales.squeeze(D::Minus1)?])
}

/// What was packed: f32 on the CPU, f16 elsewhere, as attention wants it there.
pub(crate) fn unpack(codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
    match codes.device() {
        Device::Cpu => codes.contiguous()?.apply_op2_no_bwd(&scales.contiguous()?, &cpu::UnpackQ8),
        Device::Cuda(_) | Device::Metal(_) => unpack_reference(codes, scales)?.to_dtype(DType::F16),
    }
}

/// [`unpack`] in plain candle ops, as f32.
pub(crate) fn unpack_reference(codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
    let ((rows, heads, dim), groups) = (codes.dims3()?, scales.dim(2)?);
    let groups = codes.to_dtype(DType::F32)?.reshape((rows, heads, groups, dim / groups))?;
    (groups - f64::from(ZERO))?.broadcast_mul(&scales.unsqueeze(3)?)?.reshape((rows, heads, dim))
}

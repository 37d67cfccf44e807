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

/// Adds `weights[i]` times row `i` of `x` `(count, columns)` to row `rows[i]` of `sum` `(tokens, columns)`, in this order.
///
/// # Errors
/// When shapes or types differ, or a row isn't there.
pub fn add_rows(sum: &Tensor, x: &Tensor, rows: &[u32], weights: &[f32]) -> Result<Tensor> {
    let (tokens, columns) = sum.dims2()?;
    let is_there = rows.iter().all(|row| (*row as usize) < tokens);
    if x.dims() != [rows.len(), columns] || rows.len() != weights.len() || !is_there {
        candle_core::bail!("{:?} rows to add to {tokens} of {columns}", x.dims());
    }
    if sum.device().is_cpu() {
        return sum.contiguous()?.apply_op2_no_bwd(&x.contiguous()?, &cpu::AddRows { rows, weights });
    }
    let weighted = x.broadcast_mul(&Tensor::new(weights, x.device())?.unsqueeze(1)?)?;
    sum.index_add(&Tensor::new(rows, x.device())?, &weighted, 0)
}

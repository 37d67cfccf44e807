//! Fast versions for the CPU. The only folder that may ask for the processor's architecture.

mod add;
mod attention;
mod delta_rule;
mod exp;
mod floats;
mod gate;
mod norm;
mod packed;
mod parts;
mod rope;
mod store;
mod team;
mod tiles;
mod unpack_q8;

pub(crate) use add::{Add, AddRows};
pub(crate) use attention::attention;
pub(crate) use delta_rule::DeltaRule;
pub use floats::FloatMatrix;
pub(crate) use gate::Gated;
pub(crate) use norm::rms_norm;
pub(crate) use packed::packed_product;
pub(crate) use parts::Parts;
pub(crate) use rope::Rope;
pub(crate) use store::store;
pub use tiles::{TILE_ROWS, Tiles, instruction_set, tile, tiled_bytes};
pub(crate) use unpack_q8::UnpackQ8;

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, WithDType};

/// The values of a contiguous tensor.
pub(crate) fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

/// The f32 of a bias for a matrix of `rows` rows.
fn bias(bias: &Tensor, rows: usize) -> Result<Vec<f32>> {
    match bias.dims() {
        [len] if *len == rows => bias.to_vec1(),
        shape => candle_core::bail!("a bias {shape:?} for {rows} rows"),
    }
}

/// What `multiply` makes of `x` `(tokens, columns)` and all `matrices`, whose rows and columns `shape` tells: a tensor
/// `(tokens, rows)` of each.
fn products<M>(
    matrices: &[(&M, Option<&Tensor>)],
    shape: impl Fn(&M) -> (usize, usize),
    x: &Tensor,
    multiply: impl FnOnce(&[(&M, Option<&[f32]>)], &[f32], usize) -> Vec<Vec<f32>>,
) -> Result<Vec<Tensor>> {
    let (tokens, columns) = x.dims2()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(x) = &*storage else { candle_core::bail!("this is multiplied on the CPU") };
    let x = values::<f32>(x, layout)?;
    if tokens == 0 || matrices.iter().any(|(matrix, _)| shape(matrix).1 != columns) {
        candle_core::bail!("{tokens} tokens of {columns} values for rows of other lengths");
    }
    let biases = matrices.iter().map(|(matrix, it)| it.map(|it| bias(it, shape(matrix).0)).transpose());
    let biases = biases.collect::<Result<Vec<_>>>()?;
    let with_bias: Vec<_> =
        matrices.iter().zip(&biases).map(|((matrix, _), bias)| (*matrix, bias.as_deref())).collect();
    let outputs = multiply(&with_bias, x, tokens).into_iter().zip(matrices);
    outputs.map(|(output, (matrix, _))| Tensor::from_vec(output, (tokens, shape(matrix).0), &Device::Cpu)).collect()
}

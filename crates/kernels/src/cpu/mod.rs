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
pub use tiles::{TILE_ROWS, Tiles, tile, tiled_bytes};
pub(crate) use unpack_q8::UnpackQ8;

use candle_core::{CpuStorage, Layout, Result, WithDType};

/// The values of a contiguous tensor.
pub(crate) fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

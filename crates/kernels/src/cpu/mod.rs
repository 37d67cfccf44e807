//! Fast versions for the CPU, and what candle's own CPU code costs in memory. The only folder that may ask for the
//! processor's architecture.

mod delta_rule;
mod gate;
mod repack;
mod rope;
mod team;
mod tiles;
mod unpack_q8;
mod widen;

pub(crate) use delta_rule::DeltaRule;
pub(crate) use gate::SiluGate;
pub use repack::{one_token_reads_blocks, repacked_bytes};
pub(crate) use rope::Rope;
pub use tiles::{Tiles, tile, tiled_bytes};
pub(crate) use unpack_q8::UnpackQ8;
pub use widen::q5_0_as_q8_0;

use candle_core::{CpuStorage, Layout, Result, WithDType};

/// The values of a contiguous tensor.
pub(crate) fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

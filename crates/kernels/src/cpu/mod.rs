//! Fast versions for the CPU, and what candle's own CPU code costs in memory. The only folder that may ask for the
//! processor's architecture.

mod gate;
mod repack;
mod rope;
mod widen;

pub(crate) use gate::SiluGate;
pub use repack::{one_token_reads_blocks, repacked_bytes};
pub(crate) use rope::Rope;
pub use widen::q5_0_as_q8_0;

use candle_core::{CpuStorage, Layout, Result};

/// The values of a contiguous f32 tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

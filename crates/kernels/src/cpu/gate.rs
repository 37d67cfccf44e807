use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use rayon::prelude::*;

use super::values;

/// One pass, on all cores where there is enough of it; candle's silu and product are two, the first on one core.
pub(crate) struct SiluGate;

/// Below this many values, waking other threads costs more than it saves.
const VALUES_PER_TASK: usize = 16 * 1024;

impl CustomOp2 for SiluGate {
    fn name(&self) -> &'static str {
        "silu-gate"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values::<f32>(gate, gate_layout)?, values::<f32>(up, up_layout)?);
        if gate.len() != up.len() {
            candle_core::bail!("a gate of {} values for {}", gate.len(), up.len());
        }
        let mut out = gate.to_vec();
        out.par_chunks_mut(VALUES_PER_TASK).zip(up.par_chunks(VALUES_PER_TASK)).for_each(|(out, up)| {
            for (x, up) in out.iter_mut().zip(up) {
                *x = *x / (1.0 + (-*x).exp()) * up;
            }
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

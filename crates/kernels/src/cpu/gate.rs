use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};

use super::exp::exp;
use super::{Parts, team, values};

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
        let to = Parts::new(&mut out);
        team::for_each(up.len().div_ceil(VALUES_PER_TASK), |index| {
            let up = &up[index * VALUES_PER_TASK..];
            let up = &up[..VALUES_PER_TASK.min(up.len())];
            #[expect(unsafe_code, reason = "several threads write different parts of an output")]
            // SAFETY: these values are one index's.
            let out = unsafe { std::slice::from_raw_parts_mut(to.at(index * VALUES_PER_TASK), up.len()) };
            silu_gate(out, up);
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

fn silu_gate(gate: &mut [f32], up: &[f32]) {
    let ((gate, gate_rest), (up, up_rest)) = (gate.as_chunks_mut::<16>(), up.as_chunks::<16>());
    for (gate, up) in gate.iter_mut().zip(up) {
        // The sigmoid of -|x| and of |x| add up to one.
        let mut small = *gate;
        small.iter_mut().for_each(|x| *x = -x.abs());
        let small = exp(small);
        for ((x, small), up) in gate.iter_mut().zip(small).zip(up) {
            let share = 1.0 / (1.0 + small);
            *x *= if *x < 0.0 { small * share } else { share } * up;
        }
    }
    for (x, up) in gate_rest.iter_mut().zip(up_rest) {
        *x = *x / (1.0 + (-*x).exp()) * up;
    }
}

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};

use super::exp::exp;
use super::{Parts, team, values};
use crate::Activation;

/// One pass, on all cores where there is enough of it; candle's are several, most of them on one core.
pub(crate) struct Gated(pub(crate) Activation);

/// Below this many values, waking other threads costs more than it saves.
const VALUES_PER_TASK: usize = 16 * 1024;
/// Values of a vector.
const WIDTH: usize = 16;

type Lanes = [f32; WIDTH];

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
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
            match self.0 {
                Activation::Silu => each(out, up, |gate, up| (scaled(gate, gate), up)),
                Activation::Gelu => each(out, up, |gate, up| (scaled(gate, gelu_slope(gate)), up)),
                Activation::ClampedSilu { limit } => each(out, up, |gate, up| {
                    let gate = gate.map(|x| at_most(x, limit));
                    (scaled(gate, gate), up.map(|x| within(x, limit)))
                }),
                Activation::ClampedSwiglu { alpha, limit } => each(out, up, |gate, up| {
                    let gate = gate.map(|x| at_most(x, limit));
                    (scaled(gate, gate.map(|x| x * alpha)), up.map(|x| within(x, limit) + 1.0))
                }),
            }
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

/// Puts the product of what `activation` makes of gate and up in the gate's place, a vector at a time.
#[inline(always)]
fn each(gate: &mut [f32], up: &[f32], activation: impl Fn(Lanes, Lanes) -> (Lanes, Lanes)) {
    let ((gate, gate_rest), (up, up_rest)) = (gate.as_chunks_mut::<WIDTH>(), up.as_chunks::<WIDTH>());
    let run = |gate: &mut Lanes, up: &Lanes| {
        let (a, b) = activation(*gate, *up);
        for ((x, a), b) in gate.iter_mut().zip(a).zip(b) {
            *x = a * b;
        }
    };
    for (gate, up) in gate.iter_mut().zip(up) {
        run(gate, up);
    }
    if !gate_rest.is_empty() {
        let (mut last, mut last_up) = ([0.0; WIDTH], [0.0; WIDTH]);
        last[..gate_rest.len()].copy_from_slice(gate_rest);
        last_up[..up_rest.len()].copy_from_slice(up_rest);
        run(&mut last, &last_up);
        gate_rest.copy_from_slice(&last[..gate_rest.len()]);
    }
}

/// What isn't a number stays none.
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

fn within(x: f32, limit: f32) -> f32 {
    if x < -limit { -limit } else { at_most(x, limit) }
}

/// `x · sigmoid(y)`
#[inline(always)]
fn scaled(mut x: Lanes, y: Lanes) -> Lanes {
    // The sigmoid of -|y| and of |y| add up to one.
    let mut small = y;
    small.iter_mut().for_each(|y| *y = -y.abs());
    let small = exp(small);
    for ((x, y), small) in x.iter_mut().zip(y).zip(small) {
        let share = 1.0 / (1.0 + small);
        *x *= if y < 0.0 { small * share } else { share };
    }
    x
}

/// `2 · √(2/π) · (x + 0.044715 · x³)`, whose sigmoid is the factor of x in the GELU that is made of a tanh.
#[inline(always)]
fn gelu_slope(mut x: Lanes) -> Lanes {
    const SCALE: f32 = 2.0 * 0.797_884_6;
    x.iter_mut().for_each(|x| *x = SCALE * *x * (1.0 + 0.044_715 * *x * *x));
    x
}

use candle_core::{D, Tensor};
use kernels::{sigmoid, silu_gate};

use super::linear::Linear;
use crate::LoadError;
use crate::gguf::Weights;
use crate::spec::Activation;

/// A gated feed-forward layer: `down(activation(gate(x), up(x)))`.
pub(super) struct FeedForward {
    input: Input,
    down_proj: Linear,
    activation: Activation,
}

enum Input {
    Separate {
        gate_proj: Linear,
        up_proj: Linear,
    },
    /// One matrix makes the gate and then up.
    Fused(Linear),
}

impl FeedForward {
    /// Loads `ffn_gate…`, `ffn_up…` and `ffn_down…` of a layer; `suffix` is what their names end with.
    pub(super) fn load(
        weights: &mut Weights<'_>,
        layer: usize,
        suffix: &str,
        hidden: usize,
        width: usize,
        activation: Activation,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}{suffix}");
        let input = if weights.has(&format!("{}.weight", name("gate"))) {
            Input::Separate {
                gate_proj: Linear::load(weights, &name("gate"), width, hidden)?,
                up_proj: Linear::load(weights, &name("up"), width, hidden)?,
            }
        } else {
            Input::Fused(Linear::load(weights, &name("up"), 2 * width, hidden)?)
        };
        Ok(Self { input, down_proj: Linear::load(weights, &name("down"), hidden, width)?, activation })
    }

    /// One for each expert.
    pub(super) fn load_experts(
        weights: &mut Weights<'_>,
        layer: usize,
        experts: usize,
        hidden: usize,
        width: usize,
        activation: Activation,
    ) -> Result<Vec<Self>, LoadError> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}_exps");
        let inputs: Vec<Input> = if weights.has(&format!("{}.weight", name("gate_up"))) {
            let fused = Linear::load_experts(weights, &name("gate_up"), experts, 2 * width, hidden)?;
            fused.into_iter().map(Input::Fused).collect()
        } else {
            let gates = Linear::load_experts(weights, &name("gate"), experts, width, hidden)?;
            let ups = Linear::load_experts(weights, &name("up"), experts, width, hidden)?;
            gates.into_iter().zip(ups).map(|(gate_proj, up_proj)| Input::Separate { gate_proj, up_proj }).collect()
        };
        let downs = Linear::load_experts(weights, &name("down"), experts, hidden, width)?;
        Ok(inputs.into_iter().zip(downs).map(|(input, down_proj)| Self { input, down_proj, activation }).collect())
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (gate, up) = match &self.input {
            Input::Separate { gate_proj, up_proj } => (gate_proj.forward(x)?, up_proj.forward(x)?),
            Input::Fused(proj) => {
                let both = proj.forward(x)?;
                let width = both.dim(D::Minus1)? / 2;
                (both.narrow(1, 0, width)?.contiguous()?, both.narrow(1, width, width)?.contiguous()?)
            }
        };
        self.down_proj.forward(&self.activation.apply(&gate, &up)?)
    }
}

impl Activation {
    fn apply(self, gate: &Tensor, up: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Silu => silu_gate(gate, up),
            Self::Gelu => gate.gelu()? * up,
            Self::ClampedSilu { limit } => silu_gate(&gate.minimum(f64::from(limit))?, &up.clamp(-limit, limit)?),
            Self::ClampedSwiglu { alpha, limit } => {
                let gate = gate.minimum(f64::from(limit))?;
                let up = up.clamp(-limit, limit)?;
                let gate = (&gate * sigmoid(&(&gate * f64::from(alpha))?)?)?;
                gate * (up + 1.0)?
            }
        }
    }
}

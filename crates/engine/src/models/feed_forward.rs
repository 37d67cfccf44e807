#[cfg(feature = "metal")]
use candle_core::MetalDevice;
use candle_core::{D, Tensor};
#[cfg(feature = "metal")]
use kernels::metal::{ChosenExperts, PackedExperts};
use kernels::{Activation, gated};

use super::linear::Linear;
use crate::LoadError;
use crate::gguf::Weights;

/// A gated feed-forward layer: `down(activation(gate(x), up(x)))`. `P` is a matrix, or those of all experts.
pub(super) struct FeedForward<P = Linear> {
    input: Input<P>,
    down_proj: P,
    activation: Activation,
}

enum Input<P> {
    Separate {
        gate_proj: P,
        up_proj: P,
    },
    /// One matrix makes the gate and then up.
    Fused(P),
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
        let inputs: Vec<Input<Linear>> = if weights.has(&format!("{}.weight", name("gate_up"))) {
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
        self.forward_with(x, Linear::forward_all)
    }
}

#[cfg(feature = "metal")]
impl FeedForward<PackedExperts> {
    /// Those of all experts of a layer, in the memory of an Apple GPU.
    pub(super) fn load_packed_experts(
        weights: &mut Weights<'_>,
        layer: usize,
        (experts, hidden, width): (usize, usize, usize),
        activation: Activation,
        device: &MetalDevice,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}_exps");
        let is_fused = weights.has(&format!("{}.weight", name("gate_up")));
        let mut load = |part: &str, rows: usize, columns: usize| {
            Linear::load_packed_experts(weights, &name(part), (experts, rows, columns), device)
        };
        let input = if is_fused {
            Input::Fused(load("gate_up", 2 * width, hidden)?)
        } else {
            Input::Separate { gate_proj: load("gate", width, hidden)?, up_proj: load("up", width, hidden)? }
        };
        Ok(Self { input, down_proj: load("down", hidden, width)?, activation })
    }

    /// `x` `(tokens, hidden)`, or one row for each of the chosen → `(tokens · used, hidden)`.
    pub(super) fn forward(&self, x: &Tensor, chosen: &ChosenExperts) -> candle_core::Result<Tensor> {
        self.forward_with(x, |all, x| all.iter().map(|experts| experts.product(x, chosen)).collect())
    }
}

impl<P> FeedForward<P> {
    fn forward_with(
        &self,
        x: &Tensor,
        products: impl Fn(&[&P], &Tensor) -> candle_core::Result<Vec<Tensor>>,
    ) -> candle_core::Result<Tensor> {
        let one = |matrix: &P, x: &Tensor| Ok::<_, candle_core::Error>(products(&[matrix], x)?.remove(0));
        let (gate, up) = match &self.input {
            Input::Separate { gate_proj, up_proj } => {
                let mut both = products(&[gate_proj, up_proj], x)?.into_iter();
                (both.next().expect("one for each"), both.next().expect("one for each"))
            }
            Input::Fused(proj) => {
                let both = one(proj, x)?;
                let width = both.dim(D::Minus1)? / 2;
                (both.narrow(1, 0, width)?.contiguous()?, both.narrow(1, width, width)?.contiguous()?)
            }
        };
        one(&self.down_proj, &gated(self.activation, &gate, &up)?)
    }
}

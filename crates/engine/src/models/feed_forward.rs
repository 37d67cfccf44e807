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

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.down_proj.forward(&self.gated(Linear::forward_all(&self.inputs(), x)?)?)
    }
}

impl FeedForward<Vec<Linear>> {
    /// Those of all experts of a layer.
    pub(super) fn load_experts(
        weights: &mut Weights<'_>,
        layer: usize,
        (experts, hidden, width): (usize, usize, usize),
        activation: Activation,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}_exps");
        let is_fused = weights.has(&format!("{}.weight", name("gate_up")));
        let mut load = |part: &str, rows: usize, columns: usize| {
            Linear::load_experts(weights, &name(part), experts, rows, columns)
        };
        let input = if is_fused {
            Input::Fused(load("gate_up", 2 * width, hidden)?)
        } else {
            Input::Separate { gate_proj: load("gate", width, hidden)?, up_proj: load("up", width, hidden)? }
        };
        Ok(Self { input, down_proj: load("down", hidden, width)?, activation })
    }

    /// What the experts make of their rows, one expert's after the other's `(rows, hidden)`: those of `x`
    /// `(tokens, hidden)` that `rows` names, or all in order, of which each expert gets so many as `counts` says.
    pub(super) fn forward(&self, x: &Tensor, rows: Option<&[u32]>, counts: &[usize]) -> candle_core::Result<Tensor> {
        let gated = self.gated(Linear::forward_experts(&self.inputs(), x, rows, counts)?)?;
        Ok(Linear::forward_experts(&[&self.down_proj], &gated, None, counts)?.remove(0))
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
        let products = self.inputs().into_iter().map(|experts| experts.product(x, chosen));
        self.down_proj.product(&self.gated(products.collect::<candle_core::Result<_>>()?)?, chosen)
    }
}

impl<P> FeedForward<P> {
    fn inputs(&self) -> Vec<&P> {
        match &self.input {
            Input::Separate { gate_proj, up_proj } => vec![gate_proj, up_proj],
            Input::Fused(proj) => vec![proj],
        }
    }

    /// What goes down, of the products of [`Self::inputs`].
    fn gated(&self, products: Vec<Tensor>) -> candle_core::Result<Tensor> {
        match products.as_slice() {
            [gate, up] => gated(self.activation, gate, up),
            [both] => {
                let width = both.dim(D::Minus1)? / 2;
                let [gate, up] = [both.narrow(1, 0, width)?, both.narrow(1, width, width)?];
                gated(self.activation, &gate.contiguous()?, &up.contiguous()?)
            }
            _ => candle_core::bail!("{} products of a gate and what it lets through", products.len()),
        }
    }
}

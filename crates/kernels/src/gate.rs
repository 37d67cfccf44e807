use candle_core::{Device, Result, Tensor};

use crate::cpu;

/// What a gated feed-forward layer makes of its gate and what goes through it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(gate) · up`
    Silu,
    /// `gelu_tanh(gate) · up`
    Gelu,
    /// DeepSeek V4: `silu(g) · u` with `g ≤ limit` and `−limit ≤ u ≤ limit`.
    ClampedSilu {
        /// Above zero.
        limit: f32,
    },
    /// gpt-oss: `g · sigmoid(α · g) · (u + 1)` with `g ≤ limit` and `−limit ≤ u ≤ limit`.
    ClampedSwiglu {
        /// How steep the sigmoid is.
        alpha: f32,
        /// Above zero.
        limit: f32,
    },
}

/// The activation of `gate` and `up`, of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if let Device::Cpu = gate.device() {
        return gate.contiguous()?.apply_op2_no_bwd(&up.contiguous()?, &cpu::Gated(activation));
    }
    gated_reference(activation, gate, up)
}

/// [`gated`] in plain candle ops.
///
/// # Errors
/// When the shapes differ.
pub fn gated_reference(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        Activation::Gelu => gate.gelu()? * up,
        Activation::ClampedSilu { limit } => gate.minimum(f64::from(limit))?.silu()? * up.clamp(-limit, limit)?,
        Activation::ClampedSwiglu { alpha, limit } => {
            let gate = gate.minimum(f64::from(limit))?;
            let up = up.clamp(-limit, limit)?;
            let gate = (&gate * sigmoid(&(&gate * f64::from(alpha))?)?)?;
            gate * (up + 1.0)?
        }
    }
}

/// `1 / (1 + e⁻ˣ)`
///
/// # Errors
/// Where the device has no memory for it.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(x)
}

use candle_core::Tensor;
use kernels::{DeltaSteps, delta_rule, rms_norm, sigmoid};

use super::batch::{Batch, Part, rows};
use super::linear::Linear;
use super::norm::Norm;
use super::short_conv::CausalConv;
use crate::LoadError;
use crate::gguf::Weights;
use crate::kv_cache::LayerState;
use crate::spec::{DeltaNetSpec, HeadOrder, Spec};

/// The gated delta net of Qwen3-Next and Qwen3.5, `transformers/models/qwen3_5`: each head keeps a matrix that maps keys
/// to values, forgets a part of it with each token, and corrects what it has for the token's key.
pub(super) struct DeltaNet {
    spec: DeltaNetSpec,
    layer: usize,
    qkv_proj: Linear,
    gate_proj: Linear,
    /// How much of the correction is made, and how much is forgotten, for each head.
    strength_proj: Strength,
    conv: CausalConv,
    /// `−e^A`: how fast each head forgets.
    decay: Tensor,
    decay_bias: Tensor,
    norm: Norm,
    out_proj: Linear,
    ones: Tensor,
}

enum Strength {
    Separate {
        beta: Linear,
        alpha: Linear,
    },
    /// For each key head the betas of its value heads, then the alphas.
    ByKeyHead(Linear),
}

/// `l2norm` of `transformers` and `fla` is within a root with this.
const L2_EPSILON: f32 = 1e-6;

impl DeltaNet {
    pub(super) fn load(
        model: &Spec,
        spec: &DeltaNetSpec,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (hidden, heads, inner) = (model.hidden, spec.value_heads, spec.value_heads * spec.value_dim);
        let strength_proj = if weights.has(&name("ssm_ba.weight")) {
            Strength::ByKeyHead(Linear::load(weights, &name("ssm_ba"), 2 * heads, hidden)?)
        } else {
            Strength::Separate {
                beta: Linear::load(weights, &name("ssm_beta"), heads, hidden)?,
                alpha: Linear::load(weights, &name("ssm_alpha"), heads, hidden)?,
            }
        };
        Ok(Self {
            spec: *spec,
            layer,
            qkv_proj: Linear::load(weights, &name("attn_qkv"), spec.conv_width(), hidden)?,
            gate_proj: Linear::load(weights, &name("attn_gate"), inner, hidden)?,
            strength_proj,
            conv: CausalConv::load(weights, &name("ssm_conv1d.weight"), spec.conv_width(), spec.kernel)?,
            decay: weights.vector(&name("ssm_a"), heads)?,
            decay_bias: weights.vector(&name("ssm_dt.bias"), heads)?,
            norm: Norm::load(weights, &name("ssm_norm"), spec.value_dim, model.norm_epsilon)?,
            out_proj: Linear::load(weights, &name("ssm_out"), hidden, inner)?,
            ones: Tensor::ones(spec.key_dim, candle_core::DType::F32, weights.device()).map_err(LoadError::Device)?,
        })
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(&self, x: &Tensor, batch: &Batch, parts: &mut [Part<'_>]) -> candle_core::Result<Tensor> {
        let DeltaNetSpec { value_heads, value_dim, .. } = self.spec;
        let tokens = batch.len();
        let (qkv, (beta, alpha)) = (self.qkv_proj.forward(x)?, self.strengths(x)?);
        let beta = sigmoid(&beta)?;
        let decay = softplus(&alpha.broadcast_add(&self.decay_bias)?)?.broadcast_mul(&self.decay)?.exp()?;
        let mixed = batch.by_part(parts, |span, cache| {
            let LayerState::Recurrent(state) = &mut cache.layers[self.layer] else {
                candle_core::bail!("layer {} has no state", self.layer)
            };
            let qkv = self.conv.forward(&rows(&qkv, &span)?, &mut state.conv)?.silu()?;
            self.delta_rule(&qkv, &rows(&decay, &span)?, &rows(&beta, &span)?, &mut state.memory)
        })?;
        let gate = self.gate_proj.forward(x)?.reshape((tokens, value_heads, value_dim))?;
        let gated = (self.norm.forward(&mixed)? * gate.silu()?)?;
        self.out_proj.forward(&gated.reshape((tokens, value_heads * value_dim))?)
    }

    /// What the betas and alphas of the value heads `(tokens, value_heads)` are made of.
    fn strengths(&self, x: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        match &self.strength_proj {
            Strength::Separate { beta, alpha } => Ok((beta.forward(x)?, alpha.forward(x)?)),
            Strength::ByKeyHead(proj) => {
                let DeltaNetSpec { key_heads, value_heads, .. } = self.spec;
                let (tokens, group) = (x.dim(0)?, value_heads / key_heads);
                let both = proj.forward(x)?.reshape((tokens, key_heads, 2 * group))?;
                let part = |from: usize| both.narrow(2, from, group)?.reshape((tokens, value_heads));
                Ok((part(0)?, part(group)?))
            }
        }
    }

    /// Gives `(tokens, value_heads, value_dim)`.
    fn delta_rule(
        &self,
        qkv: &Tensor,
        decay: &Tensor,
        beta: &Tensor,
        memory: &mut Option<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let DeltaNetSpec { key_heads, value_heads, key_dim, value_dim, .. } = self.spec;
        let (tokens, keys_width) = (qkv.dim(0)?, key_heads * key_dim);
        let keyed = |from: usize| -> candle_core::Result<Tensor> {
            let heads = qkv.narrow(1, from, keys_width)?.contiguous()?.reshape((tokens, key_heads, key_dim))?;
            // x / √(Σx² + ε) is the root-mean-square norm with ε / n, over √n.
            let n = key_dim as f32;
            let normed = (rms_norm(&heads, &self.ones, L2_EPSILON / n)? / f64::from(n.sqrt()))?;
            self.for_value_heads(&normed)
        };
        let queries = (keyed(0)? / (key_dim as f64).sqrt())?;
        let keys = keyed(keys_width)?;
        let values =
            qkv.narrow(1, 2 * keys_width, value_heads * value_dim)?.reshape((tokens, value_heads, value_dim))?;
        let state = match memory.take() {
            Some(state) => state,
            None => Tensor::zeros((value_heads, key_dim, value_dim), qkv.dtype(), qkv.device())?,
        };
        let steps = DeltaSteps { queries: &queries, keys: &keys, values: &values, decay, beta };
        let (outputs, after) = delta_rule(&steps, &state)?;
        *memory = Some(after);
        Ok(outputs)
    }

    /// `(tokens, key_heads, dim)` → `(tokens, value_heads, dim)`.
    fn for_value_heads(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (tokens, key_heads, dim) = x.dims3()?;
        let group = self.spec.value_heads / key_heads;
        if group == 1 {
            return Ok(x.clone());
        }
        let repeated = match self.spec.head_order {
            HeadOrder::Grouped => x.unsqueeze(2)?.broadcast_as((tokens, key_heads, group, dim))?,
            HeadOrder::Tiled => x.unsqueeze(1)?.broadcast_as((tokens, group, key_heads, dim))?,
        };
        repeated.reshape((tokens, key_heads * group, dim))
    }
}

/// `ln(1 + eˣ)`, without overflow: `max(x, 0) + ln(1 + e^−|x|)`.
fn softplus(x: &Tensor) -> candle_core::Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

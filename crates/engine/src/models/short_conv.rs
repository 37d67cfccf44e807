use candle_core::Tensor;

use super::batch::{Batch, Part, rows};
use super::linear::Linear;
use crate::LoadError;
use crate::gguf::Weights;
use crate::kv_cache::LayerState;
use crate::spec::Spec;

/// LFM2's gated short convolution, `transformers/models/lfm2`: `C · conv(B · x)`, each channel by itself.
pub(super) struct ShortConv {
    layer: usize,
    in_proj: Linear,
    conv: CausalConv,
    out_proj: Linear,
}

/// A causal convolution of each channel over the last few tokens.
pub(super) struct CausalConv {
    /// `(kernel, channels)`, the oldest token first.
    weight: Tensor,
}

impl ShortConv {
    pub(super) fn load(
        model: &Spec,
        kernel: usize,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.shortconv.{part}");
        Ok(Self {
            layer,
            in_proj: Linear::load(weights, &name("in_proj"), 3 * model.hidden, model.hidden)?,
            conv: CausalConv::load(weights, &name("conv.weight"), model.hidden, kernel)?,
            out_proj: Linear::load(weights, &name("out_proj"), model.hidden, model.hidden)?,
        })
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(&self, x: &Tensor, batch: &Batch, parts: &mut [Part<'_>]) -> candle_core::Result<Tensor> {
        let hidden = x.dim(1)?;
        let projected = self.in_proj.forward(x)?;
        let part = |i: usize| projected.narrow(1, i * hidden, hidden);
        let (gate_in, gate_out) = (part(0)?, part(1)?);
        let inputs = (gate_in * part(2)?)?;
        let mixed = batch.by_part(parts, |span, cache| {
            let LayerState::Recurrent(state) = &mut cache.layers[self.layer] else {
                candle_core::bail!("layer {} has no state", self.layer)
            };
            self.conv.forward(&rows(&inputs, &span)?, &mut state.conv)
        })?;
        self.out_proj.forward(&(gate_out * mixed)?)
    }
}

impl CausalConv {
    pub(super) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        channels: usize,
        kernel: usize,
    ) -> Result<Self, LoadError> {
        let weight = weights.unpacked(name, &[channels, kernel])?;
        Ok(Self { weight: weight.t().and_then(|weight| weight.contiguous()).map_err(LoadError::Device)? })
    }

    /// `x` `(tokens, channels)` after the inputs in `past`, which then has the last `kernel − 1` of all.
    pub(super) fn forward(&self, x: &Tensor, past: &mut Option<Tensor>) -> candle_core::Result<Tensor> {
        let ((kernel, channels), tokens) = (self.weight.dims2()?, x.dim(0)?);
        let before = match past.take() {
            Some(past) => past,
            None => Tensor::zeros((kernel - 1, channels), x.dtype(), x.device())?,
        };
        let all = Tensor::cat(&[&before, x], 0)?;
        let mut sum = all.narrow(0, 0, tokens)?.broadcast_mul(&self.weight.get(0)?)?;
        for tap in 1..kernel {
            sum = (sum + all.narrow(0, tap, tokens)?.broadcast_mul(&self.weight.get(tap)?)?)?;
        }
        // A copy, so that a long prompt's inputs are not kept for their end.
        *past = Some(all.narrow(0, tokens, kernel - 1)?.force_contiguous()?);
        Ok(sum)
    }
}

//! The decoder of Llama, Mistral, SmolLM, SmolLM3 and Qwen2: pre-norm, rotary grouped-query attention, gated SiLU.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use kernels::{Pairing, attention, rms_norm, rope, silu_gate};

use super::linear::Linear;
use super::{Model, TokenId};
use crate::gguf::Weights;
use crate::kv_cache::KvCache;
use crate::spec::{RopePairing, Spec};
use crate::{GenerateError, LoadError};

/// A loaded model; shapes are `(tokens, …)`, one sequence at a time.
pub(crate) struct Llama {
    spec: Spec,
    device: Device,
    embedding: Arc<QTensor>,
    layers: Vec<Layer>,
    output_norm: Tensor,
    output: Linear,
    /// Turns per token of each pair of a head.
    inverse_frequencies: Vec<f32>,
}

struct Layer {
    attention_norm: Tensor,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    feed_forward_norm: Tensor,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    uses_rope: bool,
}

/// Cosine and sine `(tokens, head_dim / 2)` of the positions of one forward.
struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Llama {
    pub(crate) fn load(spec: Spec, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let vocabulary = weights.rows("token_embd.weight")?;
        let (embedding, output) = if weights.has("output.weight") {
            let embedding = Arc::new(weights.table("token_embd.weight", vocabulary, spec.hidden)?);
            (embedding, Linear::load(weights, "output", vocabulary, spec.hidden)?)
        } else {
            let shared = Arc::new(weights.matrix("token_embd.weight", vocabulary, spec.hidden)?);
            (shared.clone(), Linear::from_packed(shared).map_err(LoadError::Device)?)
        };
        let layers = (0..spec.layers).map(|i| Layer::load(&spec, weights, i)).collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            layers,
            output_norm: weights.vector("output_norm.weight", spec.hidden)?,
            output,
            inverse_frequencies: inverse_frequencies(&spec, weights)?,
            device: weights.device().clone(),
            spec,
        })
    }

    /// The residual stream after the last layer, `(tokens, hidden)`.
    fn hidden_states(&self, tokens: &[TokenId], cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let angles = self.angles(cache.n_past(), tokens.len())?;
        let mut x = self.embedding.embedding(&Tensor::new(tokens, &self.device)?)?;
        for (layer, cached) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(&self.spec, &x, cached, &angles)?;
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.output.forward(&rms_norm(hidden, &self.output_norm, self.spec.norm_epsilon)?)
    }

    /// Logits of every position, `(tokens, vocabulary)`; what the oracles are compared with.
    #[cfg(test)]
    pub(crate) fn forward_all(&self, tokens: &[TokenId], cache: &mut KvCache) -> candle_core::Result<Tensor> {
        self.logits(&self.hidden_states(tokens, cache)?)
    }

    fn angles(&self, n_past: usize, tokens: usize) -> candle_core::Result<Angles> {
        let half = self.inverse_frequencies.len();
        let turns = (n_past..n_past + tokens)
            .flat_map(|position| self.inverse_frequencies.iter().map(move |frequency| position as f32 * frequency));
        let (sin, cos): (Vec<f32>, Vec<f32>) = turns.map(f32::sin_cos).unzip();
        Ok(Angles {
            cos: Tensor::from_vec(cos, (tokens, half), &self.device)?,
            sin: Tensor::from_vec(sin, (tokens, half), &self.device)?,
        })
    }
}

impl Model for Llama {
    fn forward(&self, tokens: &[TokenId], cache: &mut KvCache) -> Result<Tensor, GenerateError> {
        let hidden = self.hidden_states(tokens, cache)?;
        let last = hidden.narrow(0, tokens.len() - 1, 1)?;
        Ok(self.logits(&last)?.squeeze(0)?)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(&self.spec, &self.device)
    }
}

impl Layer {
    fn load(spec: &Spec, weights: &mut Weights<'_>, index: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, q_width, kv_width) = (spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let load_qkv = if spec.qkv_bias { Linear::load_with_bias } else { Linear::load };
        Ok(Self {
            attention_norm: weights.vector(&name("attn_norm.weight"), hidden)?,
            q_proj: load_qkv(weights, &name("attn_q"), q_width, hidden)?,
            k_proj: load_qkv(weights, &name("attn_k"), kv_width, hidden)?,
            v_proj: load_qkv(weights, &name("attn_v"), kv_width, hidden)?,
            o_proj: Linear::load(weights, &name("attn_output"), hidden, q_width)?,
            feed_forward_norm: weights.vector(&name("ffn_norm.weight"), hidden)?,
            gate_proj: Linear::load(weights, &name("ffn_gate"), spec.feed_forward, hidden)?,
            up_proj: Linear::load(weights, &name("ffn_up"), spec.feed_forward, hidden)?,
            down_proj: Linear::load(weights, &name("ffn_down"), hidden, spec.feed_forward)?,
            uses_rope: spec.uses_rope(index),
        })
    }

    fn forward(
        &self,
        spec: &Spec,
        x: &Tensor,
        cached: &mut kernels::KvLayer,
        angles: &Angles,
    ) -> candle_core::Result<Tensor> {
        let tokens = x.dim(0)?;
        let normed = rms_norm(x, &self.attention_norm, spec.norm_epsilon)?;
        let mut queries = self.q_proj.forward(&normed)?.reshape((tokens, spec.heads, spec.head_dim))?;
        let mut keys = self.k_proj.forward(&normed)?.reshape((tokens, spec.kv_heads, spec.head_dim))?;
        let values = self.v_proj.forward(&normed)?.reshape((tokens, spec.kv_heads, spec.head_dim))?;
        if self.uses_rope {
            let pairing = match spec.rope.pairing {
                RopePairing::Interleaved => Pairing::Interleaved,
                RopePairing::Halves => Pairing::Halves,
            };
            queries = rope(&queries, &angles.cos, &angles.sin, pairing)?;
            keys = rope(&keys, &angles.cos, &angles.sin, pairing)?;
        }
        cached.append(&keys, &values)?;
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        let x = (x + self.o_proj.forward(&attention(&queries, cached, scale)?)?)?;
        let normed = rms_norm(&x, &self.feed_forward_norm, spec.norm_epsilon)?;
        let gated = silu_gate(&self.gate_proj.forward(&normed)?, &self.up_proj.forward(&normed)?)?;
        x + self.down_proj.forward(&gated)?
    }
}

/// Llama 3 stretches its slow frequencies by the factors in `rope_freqs.weight`.
fn inverse_frequencies(spec: &Spec, weights: &mut Weights<'_>) -> Result<Vec<f32>, LoadError> {
    let half = spec.head_dim / 2;
    let factors = if weights.has("rope_freqs.weight") {
        let factors = weights.vector("rope_freqs.weight", half)?;
        factors.to_vec1::<f32>().map_err(LoadError::Device)?
    } else {
        vec![1.0; half]
    };
    let frequency = |i: usize| spec.rope.base.powf(-(2.0 * i as f32) / spec.head_dim as f32);
    Ok(factors.iter().enumerate().map(|(i, factor)| frequency(i) / factor / spec.rope.linear_factor).collect())
}

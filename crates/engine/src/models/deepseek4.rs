//! DeepSeek V4: layers of compressed attention and experts around several residual streams.

use candle_core::{Device, Tensor};

use super::Model;
use super::batch::{Batch, Part};
use super::compressed_attention::CompressedAttention;
use super::experts::Experts;
use super::hyper_connection::{HyperConnection, HyperHead};
use super::linear::Linear;
use super::norm::Norm;
use super::rope::RopeTable;
use crate::device::KvType;
use crate::gguf::{Matrix, Weights};
use crate::kv_cache::{Compressed, KvCache, LayerState};
use crate::spec::Deepseek4Spec;
use crate::{GenerateError, LoadError};

/// A loaded model; shapes are `(tokens, …)`, the tokens of all sequences end to end.
pub(super) struct Deepseek4 {
    spec: Deepseek4Spec,
    device: Device,
    embedding: Matrix,
    ropes: Vec<RopeTable>,
    layers: Vec<Layer>,
    head: HyperHead,
    output_norm: Norm,
    output: Linear,
}

struct Layer {
    attention_streams: HyperConnection,
    attention_norm: Norm,
    attention: CompressedAttention,
    experts_streams: HyperConnection,
    experts_norm: Norm,
    experts: Experts,
}

impl Deepseek4 {
    pub(super) fn load(spec: Deepseek4Spec, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let vocabulary = weights.rows("token_embd.weight")?;
        let Deepseek4Spec { hidden, norm_epsilon, streams, .. } = spec;
        Ok(Self {
            embedding: weights.table("token_embd.weight", vocabulary, hidden)?,
            ropes: spec.ropes.iter().map(|rope| RopeTable::load(rope, weights)).collect::<Result<_, _>>()?,
            layers: (0..spec.layers.len()).map(|i| Layer::load(&spec, weights, i)).collect::<Result<_, _>>()?,
            head: HyperHead::load(streams, weights, "output_hc", hidden, norm_epsilon)?,
            output_norm: Norm::load(weights, "output_norm", hidden, norm_epsilon)?,
            output: Linear::load(weights, "output", vocabulary, hidden)?,
            device: weights.device().clone(),
            spec,
        })
    }

    fn run(&self, parts: &mut [Part<'_>]) -> candle_core::Result<Tensor> {
        let mut batch = Batch::new(parts, &self.device);
        for rope in &self.ropes {
            batch.angles.push(rope.angles(&batch.positions, &self.device)?);
        }
        let embedded = self.embedding.embedding(&Tensor::new(batch.tokens.as_slice(), &self.device)?)?;
        let shape = (batch.len(), self.spec.streams.count, self.spec.hidden);
        let mut streams = embedded.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?;
        for layer in &self.layers {
            streams = layer.forward(&streams, &batch, &self.ropes, parts)?;
        }
        let x = self.head.forward(&batch.select(&streams, parts)?)?;
        self.output.forward(&self.output_norm.forward(&x)?)
    }
}

impl Model for Deepseek4 {
    fn forward(&self, parts: &mut [Part<'_>]) -> Result<Tensor, GenerateError> {
        parts.iter_mut().for_each(|part| part.cache.begin());
        let logits = self.run(parts)?;
        parts.iter_mut().for_each(|part| part.cache.advance(part.tokens.len()));
        Ok(logits)
    }

    fn new_cache(&self, kv_type: KvType) -> KvCache {
        let layers = self.spec.layers.iter();
        let states = layers.map(|layer| Compressed::new(&self.spec, layer.compression, kv_type, &self.device));
        KvCache::new(states.map(LayerState::Compressed).collect())
    }
}

impl Layer {
    fn load(spec: &Deepseek4Spec, weights: &mut Weights<'_>, index: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, epsilon) = (spec.hidden, spec.norm_epsilon);
        Ok(Self {
            attention_streams: HyperConnection::load(spec.streams, weights, &name("hc_attn"), hidden, epsilon)?,
            attention_norm: Norm::load(weights, &name("attn_norm"), hidden, epsilon)?,
            attention: CompressedAttention::load(spec, weights, index)?,
            experts_streams: HyperConnection::load(spec.streams, weights, &name("hc_ffn"), hidden, epsilon)?,
            experts_norm: Norm::load(weights, &name("ffn_norm"), hidden, epsilon)?,
            experts: Experts::load(hidden, epsilon, &spec.layers[index].experts, weights, index)?,
        })
    }

    /// `streams` `(tokens, streams, hidden)` → the same.
    fn forward(
        &self,
        streams: &Tensor,
        batch: &Batch,
        ropes: &[RopeTable],
        parts: &mut [Part<'_>],
    ) -> candle_core::Result<Tensor> {
        let (x, write_back) = self.attention_streams.read(streams)?;
        let made = self.attention.forward(&self.attention_norm.forward(&x)?, batch, ropes, parts)?;
        let streams = write_back.write(streams, &made)?;
        let (x, write_back) = self.experts_streams.read(&streams)?;
        let normed = self.experts_norm.forward(&x)?;
        let made = self.experts.forward(&normed, &normed, &batch.tokens)?;
        write_back.write(&streams, &made)
    }
}

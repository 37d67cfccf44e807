//! The decoder: embedding, layers of a mixer and a feed-forward each with its norms, norm, logits.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use kernels::{Activation, add, gated};

use super::attention::Attention;
use super::batch::{Batch, Part};
use super::delta_net::DeltaNet;
use super::experts::Experts;
use super::feed_forward::FeedForward;
use super::latent::Latent;
use super::linear::Linear;
use super::norm::{Norm, normed_by};
use super::rope::RopeTable;
use super::short_conv::ShortConv;
use super::{Model, TokenId};
use crate::device::KvType;
use crate::gguf::{Matrix, Weights};
use crate::kv_cache::{KvCache, LayerState};
use crate::spec::{FeedForwardSpec, LayerSpec, MixerSpec, Spec};
use crate::{GenerateError, LoadError};

/// A loaded model; shapes are `(tokens, …)`, the tokens of all sequences end to end.
pub(super) struct Decoder {
    spec: Spec,
    device: Device,
    embedding: Arc<Matrix>,
    per_layer: Option<PerLayerEmbedding>,
    ropes: Vec<RopeTable>,
    layers: Vec<Layer>,
    output_norm: Norm,
    output: Linear,
}

struct Layer {
    mixer_norm: Norm,
    mixer: Mixer,
    mixer_out_norm: Option<Norm>,
    feed_forward_norm: Norm,
    feed_forward: Block,
    feed_forward_out_norm: Option<Norm>,
    per_layer_input: Option<PerLayerInput>,
    output_scale: Option<Tensor>,
}

enum Mixer {
    Attention(Attention),
    Latent(Latent),
    DeltaNet(DeltaNet),
    ShortConv(ShortConv),
}

enum Block {
    Dense(FeedForward),
    Experts(Box<Experts>),
    DenseAndExperts(Box<DenseAndExperts>),
}

/// Gemma 4: a dense layer and experts side by side, each with norms of its own. The router and the experts' norm see the
/// residual stream, before the layer's norm.
struct DenseAndExperts {
    dense: FeedForward,
    dense_out_norm: Norm,
    experts_norm: Norm,
    experts: Experts,
    experts_out_norm: Norm,
}

/// Gemma 4 E-series: an embedding of each token for each layer.
struct PerLayerEmbedding {
    table: Matrix,
    /// From the token's embedding proper to what is added.
    proj: Linear,
    proj_norm: Norm,
    width: usize,
}

/// Where a layer takes its own embedding in.
struct PerLayerInput {
    gate: Linear,
    proj: Linear,
    norm: Norm,
}

impl Decoder {
    pub(super) fn load(spec: Spec, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let vocabulary = weights.rows("token_embd.weight")?;
        let (embedding, output) = if weights.has("output.weight") {
            let embedding = Arc::new(weights.table("token_embd.weight", vocabulary, spec.hidden)?);
            (embedding, Linear::load(weights, "output", vocabulary, spec.hidden)?)
        } else {
            let shared = Arc::new(weights.matrix("token_embd.weight", vocabulary, spec.hidden)?);
            (shared.clone(), Linear::shared(shared))
        };
        let per_layer = match spec.per_layer_width {
            0 => None,
            width => Some(PerLayerEmbedding::load(&spec, weights, vocabulary, width)?),
        };
        let ropes = spec.ropes.iter().map(|rope| RopeTable::load(rope, weights)).collect::<Result<_, _>>()?;
        let layers = (0..spec.layers.len()).map(|i| Layer::load(&spec, weights, i)).collect::<Result<_, _>>()?;
        // LFM2 names it after the embedding.
        let output_norm = if weights.has("output_norm.weight") { "output_norm" } else { "token_embd_norm" };
        Ok(Self {
            embedding,
            per_layer,
            ropes,
            layers,
            output_norm: Norm::load(weights, output_norm, spec.hidden, spec.norm_epsilon)?,
            output,
            device: weights.device().clone(),
            spec,
        })
    }

    fn run(&self, parts: &mut [Part<'_>]) -> candle_core::Result<Tensor> {
        let mut batch = Batch::new(parts, &self.device);
        for rope in &self.ropes {
            batch.angles.push(rope.angles(&batch.positions, &self.device)?);
        }
        let ids = Tensor::new(batch.tokens.as_slice(), &self.device)?;
        let mut x = (self.embedding.embedding(&ids)? * f64::from(self.spec.embedding_scale))?;
        let own = match &self.per_layer {
            Some(per_layer) => Some(per_layer.forward(&ids, &x, self.layers.len())?),
            None => None,
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let own = own.as_ref().map(|own| own.narrow(1, index, 1)?.squeeze(1)).transpose()?;
            x = layer.forward(&x, own.as_ref(), &batch, &self.ropes, parts)?;
        }
        let logits = self.output.forward(&self.output_norm.forward(&batch.select(&x, parts)?)?)?;
        match self.spec.logit_softcap {
            Some(cap) => (logits / f64::from(cap))?.tanh()? * f64::from(cap),
            None => Ok(logits),
        }
    }
}

impl Model for Decoder {
    fn forward(&self, parts: &mut [Part<'_>]) -> Result<Tensor, GenerateError> {
        parts.iter_mut().for_each(|part| part.cache.begin());
        let logits = self.run(parts)?;
        parts.iter_mut().for_each(|part| part.cache.advance(part.tokens.len()));
        Ok(logits)
    }

    fn new_cache(&self, kv_type: KvType) -> KvCache {
        let state = |layer: &LayerSpec| LayerState::new(&layer.mixer, self.spec.hidden, kv_type, &self.device);
        KvCache::new(self.spec.layers.iter().map(state).collect())
    }
}

impl Layer {
    fn load(spec: &Spec, weights: &mut Weights<'_>, index: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, epsilon) = (spec.hidden, spec.norm_epsilon);
        let layer = &spec.layers[index];
        let mixer = match &layer.mixer {
            MixerSpec::Attention(mixer) => Mixer::Attention(Attention::load(spec, mixer, weights, index)?),
            MixerSpec::Latent(mixer) => Mixer::Latent(Latent::load(spec, mixer, weights, index)?),
            MixerSpec::DeltaNet(mixer) => Mixer::DeltaNet(DeltaNet::load(spec, mixer, weights, index)?),
            MixerSpec::ShortConv { kernel } => Mixer::ShortConv(ShortConv::load(spec, *kernel, weights, index)?),
        };
        let feed_forward = match &layer.feed_forward {
            FeedForwardSpec::Dense { width, activation } => {
                Block::Dense(FeedForward::load(weights, index, "", hidden, *width, *activation)?)
            }
            FeedForwardSpec::Experts(experts) => {
                Block::Experts(Box::new(Experts::load(hidden, epsilon, experts, weights, index)?))
            }
            FeedForwardSpec::DenseAndExperts { width, activation, experts } => {
                Block::DenseAndExperts(Box::new(DenseAndExperts {
                    dense: FeedForward::load(weights, index, "", hidden, *width, *activation)?,
                    dense_out_norm: Norm::load(weights, &name("post_ffw_norm_1"), hidden, epsilon)?,
                    experts_norm: Norm::load(weights, &name("pre_ffw_norm_2"), hidden, epsilon)?,
                    experts: Experts::load(hidden, epsilon, experts, weights, index)?,
                    experts_out_norm: Norm::load(weights, &name("post_ffw_norm_2"), hidden, epsilon)?,
                }))
            }
        };
        // What some families call the norm after the attention is the one before the feed-forward.
        let has_own = weights.has(&name("ffn_norm.weight"));
        let feed_forward_norm = if has_own { "ffn_norm" } else { "post_attention_norm" };
        let mixer_out_norm = match has_own {
            true => Norm::load_optional(weights, &name("post_attention_norm"), hidden, epsilon)?,
            false => None,
        };
        let scale = name("layer_output_scale.weight");
        Ok(Self {
            mixer_norm: Norm::load(weights, &name("attn_norm"), hidden, epsilon)?,
            mixer,
            mixer_out_norm,
            feed_forward_norm: Norm::load(weights, &name(feed_forward_norm), hidden, epsilon)?,
            feed_forward,
            feed_forward_out_norm: Norm::load_optional(weights, &name("post_ffw_norm"), hidden, epsilon)?,
            per_layer_input: match spec.per_layer_width {
                0 => None,
                width => Some(PerLayerInput {
                    gate: Linear::load(weights, &name("inp_gate"), width, hidden)?,
                    proj: Linear::load(weights, &name("proj"), hidden, width)?,
                    norm: Norm::load(weights, &name("post_norm"), hidden, epsilon)?,
                }),
            },
            output_scale: if weights.has(&scale) { Some(weights.vector(&scale, 1)?) } else { None },
        })
    }

    /// `own`: the layer's own embedding of each token.
    fn forward(
        &self,
        x: &Tensor,
        own: Option<&Tensor>,
        batch: &Batch,
        ropes: &[RopeTable],
        parts: &mut [Part<'_>],
    ) -> candle_core::Result<Tensor> {
        let normed = self.mixer_norm.forward(x)?;
        let mixed = match &self.mixer {
            Mixer::Attention(mixer) => mixer.forward(&normed, batch, ropes, parts)?,
            Mixer::Latent(mixer) => mixer.forward(&normed, batch, ropes, parts)?,
            Mixer::DeltaNet(mixer) => mixer.forward(&normed, batch, parts)?,
            Mixer::ShortConv(mixer) => mixer.forward(&normed, batch, parts)?,
        };
        let x = add(x, &normed_by(self.mixer_out_norm.as_ref(), mixed)?)?;
        let normed = self.feed_forward_norm.forward(&x)?;
        let made = match &self.feed_forward {
            Block::Dense(dense) => dense.forward(&normed)?,
            Block::Experts(experts) => experts.forward(&normed, &normed, &batch.tokens)?,
            Block::DenseAndExperts(both) => both.forward(&normed, &x, &batch.tokens)?,
        };
        let mut x = add(&x, &normed_by(self.feed_forward_out_norm.as_ref(), made)?)?;
        if let (Some(input), Some(own)) = (&self.per_layer_input, own) {
            let gated = gated(Activation::Gelu, &input.gate.forward(&x)?, own)?;
            x = (x + input.norm.forward(&input.proj.forward(&gated)?)?)?;
        }
        match &self.output_scale {
            Some(scale) => x.broadcast_mul(scale),
            None => Ok(x),
        }
    }
}

impl DenseAndExperts {
    fn forward(&self, normed: &Tensor, residual: &Tensor, tokens: &[TokenId]) -> candle_core::Result<Tensor> {
        let dense = self.dense_out_norm.forward(&self.dense.forward(normed)?)?;
        let experts = self.experts.forward(&self.experts_norm.forward(residual)?, residual, tokens)?;
        dense + self.experts_out_norm.forward(&experts)?
    }
}

impl PerLayerEmbedding {
    fn load(spec: &Spec, weights: &mut Weights<'_>, vocabulary: usize, width: usize) -> Result<Self, LoadError> {
        let all = spec.layers.len() * width;
        Ok(Self {
            table: weights.table("per_layer_token_embd.weight", vocabulary, all)?,
            proj: Linear::load(weights, "per_layer_model_proj", all, spec.hidden)?,
            proj_norm: Norm::load(weights, "per_layer_proj_norm", width, spec.norm_epsilon)?,
            width,
        })
    }

    /// `(tokens, layers, width)`, from the ids and their scaled embeddings.
    fn forward(&self, ids: &Tensor, x: &Tensor, layers: usize) -> candle_core::Result<Tensor> {
        let (tokens, hidden) = x.dims2()?;
        let shape = (tokens, layers, self.width);
        let own = (self.table.embedding(ids)?.reshape(shape)? * (self.width as f64).sqrt())?;
        let projected = (self.proj.forward(x)? / (hidden as f64).sqrt())?.reshape(shape)?;
        (self.proj_norm.forward(&projected)? + own)? / 2.0_f64.sqrt()
    }
}

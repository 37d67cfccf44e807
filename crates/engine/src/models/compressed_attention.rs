use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use kernels::{KeySet, attention_over_sets};

use super::batch::{Batch, Part, rows};
use super::compressor::{Compressor, Indexer, Scorer};
use super::linear::Linear;
use super::norm::Norm;
use super::rope::RopeTable;
use crate::LoadError;
use crate::gguf::Weights;
use crate::kv_cache::{Blocks, Compressed, LayerState};
use crate::spec::{Compression, Deepseek4Spec};

/// Queries of one step, where each has keys of its own.
pub(crate) const MOST_QUERIES: usize = 32;

/// DeepSeek V4's attention. All heads share one key per token, which is its value too. The last tokens are attended to
/// as they are, those before as blocks: all of them, or the best for each token. `transformers/models/deepseek_v4`
pub(super) struct CompressedAttention {
    layer: usize,
    heads: usize,
    head_dim: usize,
    /// Index of its rotary positions.
    rope: usize,
    q_down_proj: Linear,
    q_down_norm: Norm,
    q_up_proj: Linear,
    /// Of each head, without a weight.
    q_norm: Norm,
    kv_proj: Linear,
    kv_norm: Norm,
    scale: f32,
    sinks: Tensor,
    /// One for each group of heads.
    o_down_projs: Vec<Linear>,
    o_up_proj: Linear,
    /// Of the blocks that are attended to, then of the indexer's.
    compressors: Vec<Compressor>,
    indexer: Option<Indexer>,
}

impl CompressedAttention {
    pub(super) fn load(spec: &Deepseek4Spec, weights: &mut Weights<'_>, layer: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let Deepseek4Spec { hidden, heads, head_dim, q_rank, norm_epsilon, output_groups, output_rank, .. } = *spec;
        let compression = spec.layers[layer].compression;
        let shapes = spec.blocks(compression).into_iter().zip(["attn", "indexer"]);
        Ok(Self {
            layer,
            heads,
            head_dim,
            rope: usize::from(compression.is_some()),
            q_down_proj: Linear::load(weights, &name("attn_q_a"), q_rank, hidden)?,
            q_down_norm: Norm::load(weights, &name("attn_q_a_norm"), q_rank, norm_epsilon)?,
            q_up_proj: Linear::load(weights, &name("attn_q_b"), heads * head_dim, q_rank)?,
            q_norm: Norm::plain(weights, head_dim, norm_epsilon)?,
            kv_proj: Linear::load(weights, &name("attn_kv"), head_dim, hidden)?,
            kv_norm: Norm::load(weights, &name("attn_kv_a_norm"), head_dim, norm_epsilon)?,
            scale: 1.0 / (head_dim as f32).sqrt(),
            sinks: weights.vector(&name("attn_sinks.weight"), heads)?,
            o_down_projs: Linear::load_parts(
                weights,
                &name("attn_output_a"),
                output_groups,
                output_rank,
                heads / output_groups * head_dim,
            )?,
            o_up_proj: Linear::load(weights, &name("attn_output_b"), hidden, output_groups * output_rank)?,
            compressors: shapes
                .map(|(shape, prefix)| Compressor::load(spec, shape, prefix, weights, layer))
                .collect::<Result<_, _>>()?,
            indexer: match compression {
                Some(Compression::Sparse) => Some(Indexer::load(spec, weights, layer)?),
                Some(Compression::Heavy) | None => None,
            },
        })
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        batch: &Batch,
        ropes: &[RopeTable],
        parts: &mut [Part<'_>],
    ) -> candle_core::Result<Tensor> {
        let (rope, angles) = (&ropes[self.rope], &batch.angles[self.rope]);
        let compressed = self.q_down_norm.forward(&self.q_down_proj.forward(x)?)?;
        let queries = self.q_up_proj.forward(&compressed)?.reshape((batch.len(), self.heads, self.head_dim))?;
        let queries = rope.turn_end(&self.q_norm.forward(&queries)?, angles)?;
        let keys = rope.turn_end(&self.kv_norm.forward(&self.kv_proj.forward(x)?)?.unsqueeze(1)?, angles)?;
        let inputs = self.compressors.iter().map(|compressor| compressor.inputs(x)).collect::<Result<Vec<_>, _>>()?;
        let scorer = match &self.indexer {
            Some(indexer) => Some(indexer.scorer(x, &compressed, rope, angles)?),
            None => None,
        };
        let mixed = batch.by_part(parts, |span, cache| {
            let LayerState::Compressed(state) = &mut cache.layers[self.layer] else {
                candle_core::bail!("layer {} has no window of keys", self.layer)
            };
            let keys = rows(&keys, &span)?;
            state.window.append(&keys, &keys)?;
            for ((compressor, inputs), blocks) in self.compressors.iter().zip(&inputs).zip(&mut state.blocks) {
                compressor.append(inputs, &span, blocks, rope)?;
            }
            self.attend_in_steps(&queries, scorer.as_ref(), &span, batch.positions[span.start], state)
        })?;
        // The values were turned with the keys; turned back, they are where they were relative to the query.
        let mixed = rope.turn_end(&mixed, &angles.reversed()?)?.flatten_from(1)?;
        let width = mixed.dim(1)? / self.o_down_projs.len();
        let groups = self.o_down_projs.iter().enumerate();
        let groups = groups.map(|(group, proj)| proj.forward(&mixed.narrow(1, group * width, width)?.contiguous()?));
        self.o_up_proj.forward(&Tensor::cat(&groups.collect::<Result<Vec<_>, _>>()?, 1)?)
    }

    /// The rows `span` of `queries`, whose first stands at position `first` of a sequence that `state` has already taken
    /// in, → `(tokens, heads, head_dim)`.
    fn attend_in_steps(
        &self,
        queries: &Tensor,
        scorer: Option<&Scorer>,
        span: &Range<usize>,
        first: usize,
        state: &Compressed,
    ) -> candle_core::Result<Tensor> {
        let heads = self.heads.max(self.indexer.as_ref().map_or(0, Indexer::heads));
        let blocks = state.blocks.first().map_or(0, |blocks| blocks.keys.len());
        let step = (kernels::MOST_SCORES / (heads * blocks.max(1))).clamp(1, MOST_QUERIES);
        let mut outs = Vec::new();
        for start in span.clone().step_by(step) {
            let step = start..span.end.min(start + step);
            let positions = first + step.start - span.start..first + step.end - span.start;
            let mut sets = vec![window_keys(state, &positions)?];
            sets.extend(self.block_keys(scorer, &step, &positions, state)?);
            outs.push(attention_over_sets(&rows(queries, &step)?, &sets, self.scale, &self.sinks)?);
        }
        Tensor::cat(&outs, 0)
    }

    /// The keys of blocks that the rows `step`, which stand at `positions`, attend to.
    fn block_keys(
        &self,
        scorer: Option<&Scorer>,
        step: &Range<usize>,
        positions: &Range<usize>,
        state: &Compressed,
    ) -> candle_core::Result<Option<KeySet>> {
        let Some(blocks) = state.blocks.first() else { return Ok(None) };
        // Whole blocks up to and with the token itself.
        let visible: Vec<usize> = positions.clone().map(|position| (position + 1) / blocks.shape.len).collect();
        let most = visible.last().copied().unwrap_or(0);
        if most == 0 {
            return Ok(None);
        }
        if let (Some(indexer), Some(scorer), [_, index]) = (&self.indexer, scorer, state.blocks.as_slice())
            && most > indexer.top_k()
        {
            let chosen = indexer.choose(scorer, step, index, &visible)?;
            return chosen_keys(blocks, &chosen, indexer.top_k()).map(Some);
        }
        let keys = blocks.keys.heads_first()?.0.narrow(1, 0, most)?;
        let mask = mask(visible.len(), most, |token, block| block < visible[token], keys.device())?;
        Ok(Some(KeySet { keys: keys.to_dtype(DType::F32)?, mask }))
    }
}

/// The keys of the last tokens that `positions` see.
fn window_keys(state: &Compressed, positions: &Range<usize>) -> candle_core::Result<KeySet> {
    let (window, span) = (&state.window, state.window.shape().span);
    let from = span.first_seen(positions.start);
    let keys = window.heads_first()?.0.narrow(1, from - window.start(), positions.end - from)?;
    let sees = |token: usize, key: usize| {
        let position = positions.start + token;
        (span.first_seen(position)..=position).contains(&(from + key))
    };
    let mask = mask(positions.len(), positions.end - from, sees, keys.device())?;
    Ok(KeySet { keys: keys.to_dtype(DType::F32)?, mask })
}

/// The keys of the `chosen` blocks of each token, of which there are at most `top_k`.
fn chosen_keys(blocks: &Blocks, chosen: &[Vec<usize>], top_k: usize) -> candle_core::Result<KeySet> {
    let keys = blocks.keys.heads_first()?.0.squeeze(0)?;
    let (tokens, dim) = (chosen.len(), keys.dim(1)?);
    // Tokens with fewer are filled up with a block that they don't see.
    let ids = chosen.iter().flat_map(|chosen| chosen.iter().copied().chain(std::iter::repeat(0)).take(top_k));
    let ids = Tensor::from_vec(ids.map(|block| block as u32).collect(), tokens * top_k, keys.device())?;
    let mask = mask(tokens, top_k, |token, place| place < chosen[token].len(), keys.device())?;
    let keys = keys.contiguous()?.index_select(&ids, 0)?.reshape((tokens, top_k, dim))?;
    Ok(KeySet { keys: keys.to_dtype(DType::F32)?, mask })
}

/// 0 where a token sees a key and −∞ elsewhere, `(tokens, 1, keys)`.
fn mask(
    tokens: usize,
    keys: usize,
    sees: impl Fn(usize, usize) -> bool,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let mut mask = Vec::with_capacity(tokens * keys);
    for token in 0..tokens {
        mask.extend((0..keys).map(|key| if sees(token, key) { 0.0 } else { f32::NEG_INFINITY }));
    }
    Tensor::from_vec(mask, (tokens, 1, keys), device)
}

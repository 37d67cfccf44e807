use std::ops::Range;

use candle_core::{DType, Tensor};
use kernels::{best, softmax};

use super::batch::rows;
use super::linear::Linear;
use super::norm::Norm;
use super::rope::{Angles, RopeTable};
use crate::LoadError;
use crate::gguf::Weights;
use crate::kv_cache::Blocks;
use crate::spec::{BlockShape, Deepseek4Spec, IndexerSpec};

/// Makes one key of every block of tokens: for each of its values, an average over the tokens by a softmax of gates.
/// With two series, a key is made of the second series of its block's tokens and the first of those of the block before.
pub(super) struct Compressor {
    shape: BlockShape,
    proj: Linear,
    gate_proj: Linear,
    /// `(len, series · dim)`: added to the gates by place in the block.
    place_bias: Tensor,
    norm: Norm,
}

/// What each token leaves for its block's key and the next, `(tokens, series · dim)` each.
pub(super) struct Inputs {
    series: Tensor,
    gates: Tensor,
}

/// Chooses the blocks that a token attends to by a score of small keys: `Σ w · ReLU(q · k)` over its heads.
pub(super) struct Indexer {
    spec: IndexerSpec,
    q_proj: Linear,
    weights_proj: Linear,
}

/// What the indexer scores with: `(tokens, heads, dim)` and `(tokens, 1, heads)`.
pub(super) struct Scorer {
    queries: Tensor,
    weights: Tensor,
}

impl Compressor {
    /// Loads `blk.N.PREFIX_compressor_…`.
    pub(super) fn load(
        spec: &Deepseek4Spec,
        shape: BlockShape,
        prefix: &str,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{prefix}_compressor_{part}");
        let width = shape.series * shape.dim;
        Ok(Self {
            shape,
            proj: Linear::load(weights, &name("kv"), width, spec.hidden)?,
            gate_proj: Linear::load(weights, &name("gate"), width, spec.hidden)?,
            place_bias: weights.unpacked(&name("ape.weight"), &[shape.len, width])?,
            norm: Norm::load(weights, &name("norm"), shape.dim, spec.norm_epsilon)?,
        })
    }

    /// From `x` `(tokens, hidden)`.
    pub(super) fn inputs(&self, x: &Tensor) -> candle_core::Result<Inputs> {
        Ok(Inputs { series: self.proj.forward(x)?.unsqueeze(1)?, gates: self.gate_proj.forward(x)?.unsqueeze(1)? })
    }

    /// Takes in the next tokens of one sequence: the rows `span` of `inputs`. Makes the keys of blocks that are whole now.
    pub(super) fn append(
        &self,
        inputs: &Inputs,
        span: &Range<usize>,
        blocks: &mut Blocks,
        rope: &RopeTable,
    ) -> candle_core::Result<()> {
        blocks.inputs.append(&rows(&inputs.series, span)?, &rows(&inputs.gates, span)?)?;
        let whole = blocks.keys.len()..blocks.inputs.len() / self.shape.len;
        if whole.is_empty() {
            return Ok(());
        }
        let positions: Vec<usize> = whole.clone().map(|block| block * self.shape.len).collect();
        let angles = rope.angles(&positions, inputs.series.device())?;
        let keys = rope.turn_end(&self.norm.forward(&self.pool(blocks, whole)?)?.unsqueeze(1)?, &angles)?;
        blocks.keys.append(&keys, &keys)
    }

    /// The averages of blocks, `(blocks, dim)`.
    fn pool(&self, blocks: &Blocks, wanted: Range<usize>) -> candle_core::Result<Tensor> {
        let BlockShape { len, series, dim } = self.shape;
        let (stored, gates) = blocks.inputs.heads_first()?;
        let from = wanted.start.saturating_sub(series - 1);
        let by_block = |x: Tensor| {
            let x = x.narrow(1, from * len - blocks.inputs.start(), (wanted.end - from) * len)?;
            x.reshape((wanted.end - from, len, series * dim))
        };
        let (mut stored, mut gates) = (by_block(stored)?, by_block(gates)?.broadcast_add(&self.place_bias)?);
        if series == 2 {
            (stored, gates) =
                (self.overlapped(&stored, 0.0, &wanted)?, self.overlapped(&gates, f32::NEG_INFINITY, &wanted)?);
        }
        (stored * softmax(&gates, 1)?)?.sum(1)
    }

    /// `x` `(blocks, len, 2 · dim)`, from the block before the first that is wanted on, → `(wanted, 2 · len, dim)`. Before
    /// the very first block there is `nothing`.
    fn overlapped(&self, x: &Tensor, nothing: f32, wanted: &Range<usize>) -> candle_core::Result<Tensor> {
        let (len, dim) = (self.shape.len, self.shape.dim);
        let before = Tensor::full(nothing, (1, len, 2 * dim), x.device())?;
        let x = if wanted.start == 0 { &Tensor::cat(&[&before, x], 0)? } else { x };
        let of_before = x.narrow(0, 0, wanted.len())?.narrow(2, 0, dim)?;
        let own = x.narrow(0, 1, wanted.len())?.narrow(2, dim, dim)?;
        Tensor::cat(&[of_before, own], 1)
    }
}

impl Indexer {
    pub(super) fn load(spec: &Deepseek4Spec, weights: &mut Weights<'_>, layer: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.indexer.{part}");
        let IndexerSpec { heads, head_dim, .. } = spec.indexer;
        Ok(Self {
            spec: spec.indexer,
            q_proj: Linear::load(weights, &name("attn_q_b"), heads * head_dim, spec.q_rank)?,
            weights_proj: Linear::load(weights, &name("proj"), heads, spec.hidden)?,
        })
    }

    /// From `x` `(tokens, hidden)` and the compressed queries `(tokens, q_rank)`. Without the scale of the scores, which
    /// doesn't change which are the best.
    pub(super) fn scorer(
        &self,
        x: &Tensor,
        compressed: &Tensor,
        rope: &RopeTable,
        angles: &Angles,
    ) -> candle_core::Result<Scorer> {
        let queries = self.q_proj.forward(compressed)?.reshape(((), self.spec.heads, self.spec.head_dim))?;
        Ok(Scorer { queries: rope.turn_end(&queries, angles)?, weights: self.weights_proj.forward(x)?.unsqueeze(1)? })
    }

    pub(super) const fn heads(&self) -> usize {
        self.spec.heads
    }

    pub(super) const fn top_k(&self) -> usize {
        self.spec.top_k
    }

    /// The best blocks for each of the tokens `span` of `scorer`, of the first so many that it may see.
    pub(super) fn choose(
        &self,
        scorer: &Scorer,
        span: &Range<usize>,
        blocks: &Blocks,
        visible: &[usize],
    ) -> candle_core::Result<Vec<Vec<usize>>> {
        let (queries, weights) = (rows(&scorer.queries, span)?, rows(&scorer.weights, span)?);
        let (tokens, heads, dim) = queries.dims3()?;
        let keys = blocks.keys.heads_first()?.0.squeeze(0)?.to_dtype(DType::F32)?;
        let scores = queries.reshape((tokens * heads, dim))?.matmul(&keys.t()?)?.relu()?;
        let scores = weights.matmul(&scores.reshape((tokens, heads, keys.dim(0)?))?)?.squeeze(1)?.to_vec2::<f32>()?;
        Ok(scores.iter().zip(visible).map(|(scores, visible)| best(&scores[..*visible], self.spec.top_k)).collect())
    }
}

use kernels::{KvShape, Pairing, Span};

use super::keys::Keys;
use super::read::check_rope;
use super::{Activation, ExpertsSpec, Gating, RopeScaling, RopeSpec, Yarn};
use crate::LoadError;

/// DeepSeek V4: several residual streams, and layers that attend over compressed blocks of tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Deepseek4Spec {
    pub(crate) hidden: usize,
    pub(crate) context_len: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) heads: usize,
    /// Length of the one key of a token, which is its value too.
    pub(crate) head_dim: usize,
    /// Queries are made in two steps through so many values.
    pub(crate) q_rank: usize,
    /// The output is made in two steps: in groups of heads, through so many values each.
    pub(crate) output_groups: usize,
    pub(crate) output_rank: usize,
    /// The last tokens, which are attended to as they are.
    pub(crate) window: usize,
    pub(crate) indexer: IndexerSpec,
    /// That of layers that don't compress, and that of those that do.
    pub(crate) ropes: [RopeSpec; 2],
    pub(crate) streams: StreamsSpec,
    pub(crate) layers: Vec<Deepseek4Layer>,
}

/// What chooses the blocks that sparse attention looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexerSpec {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Blocks chosen for each token.
    pub(crate) top_k: usize,
}

/// Manifold-constrained hyper-connections, <https://arxiv.org/abs/2512.24880>.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StreamsSpec {
    pub(crate) count: usize,
    pub(crate) sinkhorn_iterations: usize,
    pub(crate) epsilon: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Deepseek4Layer {
    /// `None` attends within the window alone.
    pub(crate) compression: Option<Compression>,
    pub(crate) experts: ExpertsSpec,
}

/// How tokens before the window are attended to: one key stands for a block of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Short blocks that overlap, of which an indexer chooses some for each token.
    Sparse,
    /// Long blocks, all of them.
    Heavy,
}

/// What the keys of one kind of blocks are stored as, and what they are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockShape {
    /// Tokens of a block.
    pub(crate) len: usize,
    /// Blocks of tokens that one key is made from.
    pub(crate) series: usize,
    pub(crate) dim: usize,
}

impl Compression {
    pub(crate) const fn block_len(self) -> usize {
        match self {
            Self::Sparse => 4,
            Self::Heavy => 128,
        }
    }
}

impl BlockShape {
    /// What a token leaves for the keys of its own block and of the next.
    pub(crate) const fn inputs(&self) -> KvShape {
        let dim = self.series * self.dim;
        let span = Span::Window(self.series * self.len);
        KvShape { kv_heads: 1, key_dim: dim, value_dim: dim, values_in_keys: false, span }
    }

    /// The finished keys, one for each block.
    pub(crate) const fn keys(&self) -> KvShape {
        shared_key(self.dim, Span::All)
    }
}

const fn shared_key(dim: usize, span: Span) -> KvShape {
    KvShape { kv_heads: 1, key_dim: dim, value_dim: dim, values_in_keys: true, span }
}

impl Deepseek4Spec {
    /// The keys of the last tokens.
    pub(crate) const fn window_keys(&self) -> KvShape {
        shared_key(self.head_dim, Span::Window(self.window))
    }

    /// The blocks that a layer attends to, then those that its indexer chooses by.
    pub(crate) fn blocks(&self, compression: Option<Compression>) -> Vec<BlockShape> {
        let Some(compression) = compression else { return Vec::new() };
        let (len, dim) = (compression.block_len(), self.head_dim);
        match compression {
            Compression::Sparse => {
                vec![BlockShape { len, series: 2, dim }, BlockShape { len, series: 2, dim: self.indexer.head_dim }]
            }
            Compression::Heavy => vec![BlockShape { len, series: 1, dim }],
        }
    }

    pub(super) fn read(keys: &Keys<'_>) -> Result<Self, LoadError> {
        let (heads, head_dim) = (keys.number("attention.head_count")?, keys.number("attention.key_length")?);
        let value_dim = keys.optional("attention.value_length")?.unwrap_or(head_dim);
        if keys.optional("attention.head_count_kv")?.unwrap_or(1) != 1 || value_dim != head_dim {
            return Err(LoadError::UnsupportedFeature("a key that is not the value of all heads".to_owned()));
        }
        let output_groups = keys.number("attention.output_group_count")?;
        if !heads.is_multiple_of(output_groups) {
            return Err(LoadError::UnsupportedFeature(format!("{heads} heads in {output_groups} groups")));
        }
        let indexer = IndexerSpec {
            heads: keys.number("attention.indexer.head_count")?,
            head_dim: keys.number("attention.indexer.key_length")?,
            top_k: keys.number("attention.indexer.top_k")?,
        };
        Ok(Self {
            hidden: keys.number("embedding_length")?,
            context_len: keys.number("context_length")?,
            norm_epsilon: keys.needed_float("attention.layer_norm_rms_epsilon")?,
            heads,
            head_dim,
            q_rank: keys.number("attention.q_lora_rank")?,
            output_groups,
            output_rank: keys.number("attention.output_lora_rank")?,
            window: keys.number("attention.sliding_window")?,
            ropes: ropes(keys, head_dim.min(indexer.head_dim))?,
            indexer,
            streams: streams(keys)?,
            layers: (0..keys.layers()?).map(|layer| read_layer(keys, layer)).collect::<Result<_, _>>()?,
        })
    }
}

fn streams(keys: &Keys<'_>) -> Result<StreamsSpec, LoadError> {
    let (count, sinkhorn_iterations) =
        (keys.number("hyper_connection.count")?, keys.number("hyper_connection.sinkhorn_iterations")?);
    // The published models have 4 and 20; what is far from it would only keep the processor busy.
    if count > 16 || sinkhorn_iterations > 100 {
        let what = format!("{count} residual streams with {sinkhorn_iterations} iterations");
        return Err(LoadError::UnsupportedFeature(what));
    }
    Ok(StreamsSpec { count, sinkhorn_iterations, epsilon: keys.needed_float("hyper_connection.epsilon")? })
}

fn ropes(keys: &Keys<'_>, shortest_head: usize) -> Result<[RopeSpec; 2], LoadError> {
    let plain = RopeSpec {
        base: keys.float("rope.freq_base").unwrap_or(10_000.0),
        dims: keys.number("rope.dimension_count")?,
        pairing: Pairing::Interleaved,
        scaling: RopeScaling::Linear(1.0),
        uses_factors: false,
    };
    check_rope(&plain, shortest_head)?;
    let scaling = match keys.text("rope.scaling.type").as_deref() {
        None | Some("none") => RopeScaling::Linear(1.0),
        Some("yarn") => RopeScaling::Yarn(Yarn {
            factor: keys.needed_float("rope.scaling.factor")?,
            original_context: keys.number("rope.scaling.original_context_length")?,
            beta_fast: keys.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
            beta_slow: keys.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            truncate: true,
            // Trained without: values are turned too, and must keep their length.
            attention_factor: 1.0,
        }),
        Some(other) => return Err(LoadError::UnsupportedFeature(format!("rope scaling `{other}`"))),
    };
    let base = keys.needed_float("attention.compress_rope_freq_base")?;
    Ok([plain, RopeSpec { base, scaling, ..plain }])
}

fn read_layer(keys: &Keys<'_>, layer: usize) -> Result<Deepseek4Layer, LoadError> {
    const SQRT_SOFTPLUS: usize = 4;
    let unsupported = |what: String| Err(LoadError::UnsupportedFeature(what));
    let compression = match keys.of_layer("attention.compress_ratios", layer)? {
        Some(0) => None,
        Some(4) => Some(Compression::Sparse),
        Some(128) => Some(Compression::Heavy),
        Some(other) => return unsupported(format!("attention over blocks of {other} tokens")),
        None => return Err(LoadError::Missing(keys.key("attention.compress_ratios"))),
    };
    let gating = keys.number("expert_gating_func")?;
    if gating != SQRT_SOFTPLUS {
        return unsupported(format!("expert gating {gating}"));
    }
    let (experts, used) = (keys.number("expert_count")?, keys.number("expert_used_count")?);
    if used > experts {
        return unsupported(format!("{used} of {experts} experts"));
    }
    let limit = keys.float_of_layer("swiglu_clamp_exp", layer);
    if keys.float_of_layer("swiglu_clamp_shexp", layer).is_some_and(|shared| Some(shared) != limit) {
        return unsupported("a shared expert with a limit of its own".to_owned());
    }
    let width = keys.number_of_layer("expert_feed_forward_length", layer)?;
    Ok(Deepseek4Layer {
        compression,
        experts: ExpertsSpec {
            experts,
            used,
            width,
            shared_width: width * keys.optional("expert_shared_count")?.unwrap_or(0),
            activation: limit.map_or(Activation::Silu, |limit| Activation::ClampedSilu { limit }),
            gating: Gating::SqrtSoftplus,
            norms_weights: keys.flag("expert_weights_norm").unwrap_or(false),
            weight_scale: keys.float("expert_weights_scale").unwrap_or(1.0),
            groups: 1,
            groups_used: 1,
            weighs_input: false,
            is_by_token: layer < keys.optional("hash_layer_count")?.unwrap_or(0),
        },
    })
}

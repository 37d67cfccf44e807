//! The hyperparameters of a model. Families that differ only here share one graph.

mod deepseek4;
mod keys;
mod memory;
mod read;

use candle_core::DType;
pub(crate) use deepseek4::{BlockShape, Compression, Deepseek4Layer, Deepseek4Spec, IndexerSpec, StreamsSpec};
use kernels::{Activation, Gating, KvFormat, KvNumbers, KvShape, Pairing, Span};

use crate::LoadError;
use crate::device::KvType;
use crate::gguf::Gguf;
use keys::Keys;

/// The hyperparameters of a file, for the graph that runs its architecture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ModelSpec {
    Decoder(Spec),
    Deepseek4(Deepseek4Spec),
}

/// What the graph of a model is built from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) hidden: usize,
    pub(crate) context_len: usize,
    pub(crate) norm_epsilon: f32,
    /// Embeddings are multiplied by this.
    pub(crate) embedding_scale: f32,
    /// Logits are squeezed between plus and minus this: `c · tanh(x / c)`.
    pub(crate) logit_softcap: Option<f32>,
    /// Gemma 4 E-series: each layer has an embedding of the token of its own, so wide.
    pub(crate) per_layer_width: usize,
    /// Kinds of rotary positions; layers name theirs by index.
    pub(crate) ropes: Vec<RopeSpec>,
    pub(crate) layers: Vec<LayerSpec>,
}

/// Rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeSpec {
    pub(crate) base: f32,
    /// Values of a head that turn; the others stay as they are.
    pub(crate) dims: usize,
    pub(crate) pairing: Pairing,
    pub(crate) scaling: RopeScaling,
    /// The tensor `rope_freqs.weight` divides the frequencies.
    pub(crate) uses_factors: bool,
}

/// How a model's frequencies were stretched for a longer context than it was first trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    /// Positions are divided by this; 1 is no scaling.
    Linear(f32),
    Yarn(Yarn),
    /// Phi's LongRoPE: `rope_factors_short.weight` divides the frequencies of a sequence up to `original_context` tokens,
    /// `rope_factors_long.weight` those of a longer one; both are magnified by `attention_factor`.
    Long {
        original_context: usize,
        attention_factor: f32,
    },
}

/// YaRN, <https://arxiv.org/abs/2309.00071>.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Yarn {
    pub(crate) factor: f32,
    pub(crate) original_context: usize,
    pub(crate) beta_fast: f32,
    pub(crate) beta_slow: f32,
    /// The range of dimensions between is widened to whole ones.
    pub(crate) truncate: bool,
    /// Sine and cosine are multiplied by this.
    pub(crate) attention_factor: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerSpec {
    pub(crate) mixer: MixerSpec,
    pub(crate) feed_forward: FeedForwardSpec,
}

/// What mixes the tokens of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MixerSpec {
    Attention(AttentionSpec),
    Latent(LatentSpec),
    DeltaNet(DeltaNetSpec),
    ShortConv {
        /// Tokens that one output is made from.
        kernel: usize,
    },
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttentionSpec {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) span: Span,
    /// Index into [`Spec::ropes`]; `None` attends without positions.
    pub(crate) rope: Option<usize>,
    pub(crate) scale: f32,
    /// A bias is added to the keys.
    pub(crate) has_key_bias: bool,
    /// Queries and keys are normed without a weight after their rotation.
    pub(crate) plain_qk_norm: bool,
    /// Values are normed without a weight.
    pub(crate) plain_value_norm: bool,
    /// The query matrix makes a gate for each head too.
    pub(crate) is_gated: bool,
    /// Each head may attend to nothing.
    pub(crate) has_sinks: bool,
    pub(crate) temperature: Option<Temperature>,
    /// Keys and values are those of this earlier layer.
    pub(crate) kv_from: Option<usize>,
}

/// Queries are multiplied by `1 + scale · ln(1 + ⌊(position + offset) / floor⌋)`,
/// <https://arxiv.org/abs/2501.19399>.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Temperature {
    pub(crate) scale: f32,
    pub(crate) floor: usize,
    pub(crate) offset: usize,
}

/// Multi-head latent attention, <https://arxiv.org/abs/2405.04434>: one compressed head of keys and values for all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LatentSpec {
    pub(crate) heads: usize,
    /// Queries are made in two steps through so many values; `None` in one.
    pub(crate) q_rank: Option<usize>,
    pub(crate) kv_rank: usize,
    /// Length of a key before compression, the rotated part included.
    pub(crate) key_dim: usize,
    pub(crate) rope_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) rope: usize,
    pub(crate) scale: f32,
}

/// The gated delta rule, <https://arxiv.org/abs/2412.06464>: a matrix of state for each head instead of a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DeltaNetSpec {
    pub(crate) key_heads: usize,
    pub(crate) value_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// Tokens that the convolution before it sees.
    pub(crate) kernel: usize,
    pub(crate) head_order: HeadOrder,
}

/// What a recurrent layer keeps of all tokens before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateShape {
    /// The last inputs of the convolution: `(kernel − 1, width)`.
    pub(crate) conv: (usize, usize),
    /// The memory of the delta rule: `(value_heads, key_dim, value_dim)`.
    pub(crate) memory: Option<(usize, usize, usize)>,
}

/// Which key head a value head goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadOrder {
    /// The value heads of one key head follow each other.
    Grouped,
    /// Value head `v` goes with key head `v mod key_heads`.
    Tiled,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FeedForwardSpec {
    Dense {
        width: usize,
        activation: Activation,
    },
    Experts(ExpertsSpec),
    /// Gemma 4: both side by side, each with norms of its own.
    DenseAndExperts {
        width: usize,
        activation: Activation,
        experts: ExpertsSpec,
    },
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExpertsSpec {
    pub(crate) experts: usize,
    pub(crate) used: usize,
    pub(crate) width: usize,
    /// Width of the expert that every token uses; 0 where there is none.
    pub(crate) shared_width: usize,
    pub(crate) activation: Activation,
    pub(crate) gating: Gating,
    /// The weights of the chosen are made to sum to one.
    pub(crate) norms_weights: bool,
    /// The weights are multiplied by this.
    pub(crate) weight_scale: f32,
    /// Experts stand in so many groups, of which the best few are chosen from.
    pub(crate) groups: usize,
    pub(crate) groups_used: usize,
    /// The weight multiplies what goes into an expert, not what comes out.
    pub(crate) weighs_input: bool,
    /// A table says which experts a token of the vocabulary gets; its scores are their weights only.
    pub(crate) is_by_token: bool,
}

impl ModelSpec {
    /// Reads and checks the hyperparameters.
    ///
    /// # Errors
    /// Names the architecture or the property that is not supported, or the key that is missing or makes no sense.
    pub(crate) fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let key = "general.architecture";
        let architecture = gguf.metadata().text(key).ok_or_else(|| LoadError::Missing(key.to_owned()))?;
        let keys = Keys { gguf, architecture: &architecture };
        match architecture.as_str() {
            "deepseek4" => Deepseek4Spec::read(&keys).map(Self::Deepseek4),
            _ => Spec::read(keys).map(Self::Decoder),
        }
    }
}

impl MixerSpec {
    /// What the layer stores of each token; `None` where it stores no tokens, or another layer's are used.
    pub(crate) fn kv_shape(&self) -> Option<KvShape> {
        match self {
            Self::Attention(AttentionSpec { kv_from: Some(_), .. }) | Self::DeltaNet(_) | Self::ShortConv { .. } => {
                None
            }
            Self::Attention(attention) => Some(KvShape {
                kv_heads: attention.kv_heads,
                key_dim: attention.head_dim,
                value_dim: attention.head_dim,
                values_in_keys: false,
                span: attention.span,
            }),
            Self::Latent(latent) => Some(KvShape {
                kv_heads: 1,
                key_dim: latent.kv_rank + latent.rope_dim,
                value_dim: latent.kv_rank,
                values_in_keys: true,
                span: Span::All,
            }),
        }
    }

    /// How it stores that.
    pub(crate) const fn kv_format(&self, kv_type: KvType) -> KvFormat {
        match (kv_type, self) {
            // Biases make some values of a key a hundred times larger than the rest. In 8 bits the starter model, which
            // has such, names another best token for one in twenty; with keys in f16 it is none in 245.
            (KvType::Q8, Self::Attention(attention)) => KvFormat {
                keys: if attention.has_key_bias { KvNumbers::Float(DType::F16) } else { KvNumbers::Q8 },
                values: KvNumbers::Q8,
            },
            // A latent key has parts of different size, and an error in it would count twice.
            _ => KvFormat::float(kv_type.unpacked()),
        }
    }

    /// The state that the layer keeps however long the sequence is.
    pub(crate) const fn state_shape(&self, hidden: usize) -> Option<StateShape> {
        match self {
            Self::Attention(_) | Self::Latent(_) => None,
            Self::DeltaNet(spec) => Some(StateShape {
                conv: (spec.kernel - 1, spec.conv_width()),
                memory: Some((spec.value_heads, spec.key_dim, spec.value_dim)),
            }),
            Self::ShortConv { kernel } => Some(StateShape { conv: (*kernel - 1, hidden), memory: None }),
        }
    }
}

impl StateShape {
    /// Values of it.
    pub(crate) const fn values(&self) -> usize {
        let memory = match self.memory {
            Some((heads, key_dim, value_dim)) => heads * key_dim * value_dim,
            None => 0,
        };
        self.conv.0 * self.conv.1 + memory
    }
}

impl DeltaNetSpec {
    /// Width of queries, keys and values together, which pass the convolution.
    pub(crate) const fn conv_width(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }
}

use kernels::{Pairing, Span};

use super::keys::Keys;
use super::{
    Activation, AttentionSpec, DeltaNetSpec, ExpertsSpec, FeedForwardSpec, Gating, HeadOrder, LatentSpec, LayerSpec,
    MixerSpec, RopeScaling, RopeSpec, Spec, Temperature, Yarn,
};
use crate::LoadError;

/// llama.cpp fixes these, its files don't carry them.
const LLAMA4_CHUNK: usize = 8192;
const LLAMA4_TEMPERATURE: Temperature = Temperature { scale: 0.1, floor: 8192, offset: 1 };
const SMOLLM3_NO_ROPE_STEP: usize = 4;
const LLAMA4_NO_ROPE_STEP: usize = 4;
/// `swiglu_alpha` and `swiglu_limit` of gpt-oss.
const GPT_OSS_SWIGLU: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

/// Families in the spelling of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral3,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Qwen3Next,
    Qwen35,
    Gemma3,
    Gemma4,
    GptOss,
    Llama4,
    Glm4Moe,
    Deepseek2,
    Phi3,
    SmolLm3,
    Lfm2,
}

impl Family {
    fn parse(architecture: &str) -> Option<Self> {
        Some(match architecture {
            "llama" => Self::Llama,
            "mistral3" => Self::Mistral3,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "qwen3moe" => Self::Qwen3Moe,
            "qwen3next" => Self::Qwen3Next,
            "qwen35" | "qwen35moe" => Self::Qwen35,
            "gemma3" => Self::Gemma3,
            "gemma4" => Self::Gemma4,
            "gpt-oss" => Self::GptOss,
            "llama4" => Self::Llama4,
            "glm4moe" => Self::Glm4Moe,
            "deepseek2" => Self::Deepseek2,
            "phi3" => Self::Phi3,
            "smollm3" => Self::SmolLm3,
            "lfm2" => Self::Lfm2,
            _ => return None,
        })
    }

    /// As `llama_model_rope_type` in llama.cpp: the first four have their Q and K rows permuted for it, or were trained so.
    const fn pairing(self) -> Pairing {
        match self {
            Self::Llama | Self::Mistral3 | Self::SmolLm3 | Self::Llama4 | Self::Deepseek2 => Pairing::Interleaved,
            _ => Pairing::Halves,
        }
    }
}

impl Spec {
    pub(super) fn read(keys: Keys<'_>) -> Result<Self, LoadError> {
        let Some(family) = Family::parse(keys.architecture) else {
            return Err(LoadError::UnsupportedArchitecture(keys.architecture.to_owned()));
        };
        Reader::new(family, keys)?.read()
    }
}

struct Reader<'a> {
    family: Family,
    keys: Keys<'a>,
    hidden: usize,
    heads: usize,
}

impl<'a> Reader<'a> {
    fn new(family: Family, keys: Keys<'a>) -> Result<Self, LoadError> {
        let (hidden, heads) = (keys.number("embedding_length")?, keys.number("attention.head_count")?);
        Ok(Self { family, keys, hidden, heads })
    }

    fn read(&self) -> Result<Spec, LoadError> {
        let keys = &self.keys;
        let layers = keys.layers()?;
        let is_gemma = matches!(self.family, Family::Gemma3 | Family::Gemma4);
        Ok(Spec {
            hidden: self.hidden,
            context_len: keys.number("context_length")?,
            norm_epsilon: keys.needed_float("attention.layer_norm_rms_epsilon")?,
            embedding_scale: if is_gemma { (self.hidden as f32).sqrt() } else { 1.0 },
            logit_softcap: keys.float("final_logit_softcapping"),
            per_layer_width: keys.optional("embedding_length_per_layer_input")?.unwrap_or(0),
            ropes: self.ropes()?,
            layers: (0..layers)
                .map(|layer| {
                    Ok(LayerSpec { mixer: self.mixer(layer, layers)?, feed_forward: self.feed_forward(layer)? })
                })
                .collect::<Result<_, LoadError>>()?,
        })
    }

    /// The full layers' rope first, then that of the windowed layers where they have their own.
    fn ropes(&self) -> Result<Vec<RopeSpec>, LoadError> {
        let keys = &self.keys;
        let head_dim = match self.family {
            Family::Deepseek2 => keys.number("rope.dimension_count")?,
            _ => self.head_dim("key_length")?,
        };
        let base = keys.float("rope.freq_base").unwrap_or(10_000.0);
        let dims = keys.optional("rope.dimension_count")?.unwrap_or(head_dim);
        // A published folder has the rows of Q and K as they were trained.
        let is_unpermuted = keys.flag("rope.is_unpermuted").unwrap_or(false);
        let pairing = if is_unpermuted { Pairing::Halves } else { self.family.pairing() };
        let full = RopeSpec {
            base,
            dims,
            pairing,
            scaling: self.scaling()?,
            uses_factors: keys.has_tensor("rope_freqs.weight"),
        };
        check_rope(&full, head_dim)?;
        if !matches!(self.family, Family::Gemma3 | Family::Gemma4) {
            return Ok(vec![full]);
        }
        let window_dim = self.head_dim("key_length_swa").or_else(|_| self.head_dim("key_length"))?;
        let windowed = RopeSpec {
            base: keys.float("rope.freq_base_swa").unwrap_or(10_000.0),
            dims: keys.optional("rope.dimension_count_swa")?.unwrap_or(window_dim),
            pairing,
            scaling: RopeScaling::Linear(1.0),
            uses_factors: false,
        };
        check_rope(&windowed, window_dim)?;
        Ok(vec![full, windowed])
    }

    fn scaling(&self) -> Result<RopeScaling, LoadError> {
        let keys = &self.keys;
        let original_context = || keys.number("rope.scaling.original_context_length");
        if keys.has_tensor("rope_factors_long.weight") {
            let attention_factor = keys.float("rope.scaling.attn_factor").unwrap_or(1.0);
            return Ok(RopeScaling::Long { original_context: original_context()?, attention_factor });
        }
        match keys.text("rope.scaling.type").as_deref() {
            // Llama 3's scaling is told by the tensor `rope_freqs.weight`.
            None | Some("none" | "longrope") => Ok(RopeScaling::Linear(1.0)),
            Some("linear") => Ok(RopeScaling::Linear(keys.float("rope.scaling.factor").unwrap_or(1.0))),
            Some("yarn") => {
                let factor = keys.needed_float("rope.scaling.factor")?;
                let magnified = |by: f32| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
                Ok(RopeScaling::Yarn(Yarn {
                    factor,
                    original_context: original_context()?,
                    beta_fast: keys.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                    beta_slow: keys.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                    // Of all families gpt-oss alone was trained without rounding; no key of GGUF says so.
                    truncate: keys.flag("rope.scaling.yarn_truncate").unwrap_or(self.family != Family::GptOss),
                    attention_factor: match (self.family, keys.float("rope.scaling.yarn_log_multiplier")) {
                        // With the multiplier of the whole, DeepSeek scales the attention instead: see `latent`.
                        (Family::Deepseek2, Some(_)) => 1.0,
                        (_, Some(all)) => magnified(1.0) / magnified(all),
                        // A published folder says it outright, or has told all that it follows from.
                        (_, None) => keys.float("rope.scaling.yarn_magnitude").unwrap_or_else(|| magnified(1.0)),
                    },
                }))
            }
            Some(other) => Err(LoadError::UnsupportedFeature(format!("rope scaling `{other}`"))),
        }
    }

    fn head_dim(&self, key: &str) -> Result<usize, LoadError> {
        let head_dim = match self.keys.optional(&format!("attention.{key}"))? {
            Some(head_dim) => head_dim,
            None if key == "key_length" => self.hidden / self.heads,
            None => 0,
        };
        if head_dim == 0 {
            return Err(LoadError::Missing(self.keys.key(&format!("attention.{key}"))));
        }
        Ok(head_dim)
    }

    fn mixer(&self, layer: usize, layers: usize) -> Result<MixerSpec, LoadError> {
        match self.family {
            Family::Deepseek2 => self.latent().map(MixerSpec::Latent),
            Family::Qwen3Next | Family::Qwen35 if self.is_recurrent(layer)? => {
                self.delta_net().map(MixerSpec::DeltaNet)
            }
            Family::Lfm2 if self.keys.of_layer("attention.head_count_kv", layer)? == Some(0) => {
                let kernel = self.keys.number("shortconv.l_cache")?;
                check_kernel(kernel)?;
                Ok(MixerSpec::ShortConv { kernel })
            }
            _ => self.attention(layer, layers).map(MixerSpec::Attention),
        }
    }

    fn is_recurrent(&self, layer: usize) -> Result<bool, LoadError> {
        if let Some(flags) = self.keys.flags("attention.recurrent_layers") {
            return Ok(flags.get(layer).copied().unwrap_or(false));
        }
        let interval = self.keys.optional("full_attention_interval")?.unwrap_or(4).max(1);
        Ok(!(layer + 1).is_multiple_of(interval))
    }

    fn attention(&self, layer: usize, layers: usize) -> Result<AttentionSpec, LoadError> {
        let keys = &self.keys;
        let is_windowed = self.is_windowed(layer)?;
        let heads = keys.of_layer("attention.head_count", layer)?.unwrap_or(self.heads);
        let kv_heads = keys.of_layer("attention.head_count_kv", layer)?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(LoadError::UnsupportedFeature(format!("{heads} heads over {kv_heads} key-value heads")));
        }
        let own_dim = is_windowed && keys.optional("attention.key_length_swa")?.is_some();
        let (key, value) =
            if own_dim { ("key_length_swa", "value_length_swa") } else { ("key_length", "value_length") };
        let head_dim = self.head_dim(key)?;
        if keys.optional(&format!("attention.{value}"))?.unwrap_or(head_dim) != head_dim {
            return Err(LoadError::UnsupportedFeature("values of another length than keys".to_owned()));
        }
        let has_rope = match self.family {
            Family::SmolLm3 => !(layer + 1).is_multiple_of(SMOLLM3_NO_ROPE_STEP),
            Family::Llama4 => !(layer + 1).is_multiple_of(LLAMA4_NO_ROPE_STEP),
            _ => true,
        };
        let span = match self.family {
            Family::Llama4 if has_rope => Span::Chunk(keys.positive("attention.chunk_length")?.unwrap_or(LLAMA4_CHUNK)),
            _ if is_windowed => Span::Window(keys.number("attention.sliding_window")?),
            _ => Span::All,
        };
        let is_two_ropes = matches!(self.family, Family::Gemma3 | Family::Gemma4);
        Ok(AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            span,
            rope: has_rope.then_some(usize::from(is_two_ropes && is_windowed)),
            scale: match self.family {
                Family::Gemma4 => 1.0,
                // The 27B model was trained with the width of a head as if heads filled the residual stream.
                Family::Gemma3 if layers == 62 => 1.0 / ((self.hidden / heads) as f32).sqrt(),
                _ => keys.float("attention.scale").unwrap_or(1.0 / (head_dim as f32).sqrt()),
            },
            // Maverick, the one with 128 experts, was trained without.
            plain_qk_norm: self.family == Family::Llama4 && has_rope && keys.optional("expert_count")? != Some(128),
            plain_value_norm: self.family == Family::Gemma4,
            has_key_bias: ["attn_k", "attn_qkv"]
                .iter()
                .any(|part| keys.has_tensor(&format!("blk.{layer}.{part}.bias"))),
            is_gated: matches!(self.family, Family::Qwen3Next | Family::Qwen35),
            has_sinks: keys.has_tensor(&format!("blk.{layer}.attn_sinks.weight")),
            temperature: match self.family {
                Family::Llama4 if !has_rope => Some(Temperature {
                    scale: keys.float("attention.temperature_scale").unwrap_or(LLAMA4_TEMPERATURE.scale),
                    floor: keys.positive("attention.temperature_length")?.unwrap_or(LLAMA4_TEMPERATURE.floor),
                    ..LLAMA4_TEMPERATURE
                }),
                Family::Mistral3 => match keys.float("attention.temperature_scale") {
                    None => None,
                    Some(scale) => {
                        let floor = keys.number("rope.scaling.original_context_length")?;
                        Some(Temperature { scale, floor, offset: 0 })
                    }
                },
                _ => None,
            },
            kv_from: self.kv_from(layer, layers)?,
        })
    }

    /// Gemma 4 E-series: the last layers use the keys and values of the last layer before them of their own kind.
    fn kv_from(&self, layer: usize, layers: usize) -> Result<Option<usize>, LoadError> {
        let shared = self.keys.optional("attention.shared_kv_layers")?.unwrap_or(0);
        let own = layers.saturating_sub(shared);
        if layer < own {
            return Ok(None);
        }
        let kind = self.is_windowed(layer)?;
        for earlier in (0..own).rev() {
            if self.is_windowed(earlier)? == kind {
                return Ok(Some(earlier));
            }
        }
        Err(LoadError::UnsupportedFeature(format!("a layer {layer} without keys and values to share")))
    }

    fn is_windowed(&self, layer: usize) -> Result<bool, LoadError> {
        let has_window = self.keys.optional("attention.sliding_window")?.is_some_and(|window| window > 0);
        if !has_window {
            return Ok(false);
        }
        let pattern = self.keys.flags("attention.sliding_window_pattern");
        Ok(match (self.family, pattern) {
            (_, Some(pattern)) => pattern.get(layer).copied().unwrap_or(false),
            (Family::Gemma3, None) => {
                let step = self.keys.optional("attention.sliding_window_pattern")?.unwrap_or(6).max(1);
                !(layer + 1).is_multiple_of(step)
            }
            (Family::GptOss, None) => layer.is_multiple_of(2),
            (Family::Lfm2, None) => true,
            // Mistral 7B v0.1 was trained with a window; its successors carry the key and don't use it, nor does llama.cpp.
            (_, None) => false,
        })
    }

    fn latent(&self) -> Result<LatentSpec, LoadError> {
        let keys = &self.keys;
        let key_dim = keys.number("attention.key_length_mla")?;
        let rope_dim = keys.number("rope.dimension_count")?;
        if rope_dim >= key_dim {
            return Err(LoadError::UnsupportedFeature(format!("keys of {key_dim} of which {rope_dim} turn")));
        }
        // The converter writes 0.1 · mscale_all_dim; <https://arxiv.org/abs/2309.00071> scales queries and keys by it.
        let magnitude = match (keys.float("rope.scaling.yarn_log_multiplier"), keys.float("rope.scaling.factor")) {
            (Some(multiplier), Some(factor)) if factor > 1.0 => 1.0 + multiplier * factor.ln(),
            _ => 1.0,
        };
        Ok(LatentSpec {
            heads: self.heads,
            q_rank: keys.optional("attention.q_lora_rank")?.filter(|rank| *rank > 0),
            kv_rank: keys.number("attention.kv_lora_rank")?,
            key_dim,
            rope_dim,
            value_dim: keys.number("attention.value_length_mla")?,
            rope: 0,
            scale: magnitude * magnitude / (key_dim as f32).sqrt(),
        })
    }

    fn delta_net(&self) -> Result<DeltaNetSpec, LoadError> {
        let keys = &self.keys;
        let (key_heads, value_heads) = (keys.number("ssm.group_count")?, keys.number("ssm.time_step_rank")?);
        let inner = keys.number("ssm.inner_size")?;
        let kernel = keys.number("ssm.conv_kernel")?;
        check_kernel(kernel)?;
        if !value_heads.is_multiple_of(key_heads) || !inner.is_multiple_of(value_heads) {
            let what = format!("{value_heads} value heads of {inner} values over {key_heads} key heads");
            return Err(LoadError::UnsupportedFeature(what));
        }
        Ok(DeltaNetSpec {
            key_heads,
            value_heads,
            key_dim: keys.number("ssm.state_size")?,
            value_dim: inner / value_heads,
            kernel,
            // llama.cpp's converter reorders the value heads of Qwen3.5 and leaves those of Qwen3-Next.
            head_order: if self.family == Family::Qwen35 { HeadOrder::Tiled } else { HeadOrder::Grouped },
        })
    }

    fn feed_forward(&self, layer: usize) -> Result<FeedForwardSpec, LoadError> {
        let keys = &self.keys;
        let activation = match self.family {
            Family::Gemma3 | Family::Gemma4 => Activation::Gelu,
            Family::GptOss => GPT_OSS_SWIGLU,
            _ => Activation::Silu,
        };
        let width = || keys.number_of_layer("feed_forward_length", layer);
        if keys.has_tensor(&format!("blk.{layer}.ffn_gate_inp.weight")) {
            let experts = self.experts(layer, activation)?;
            return Ok(match self.family {
                Family::Gemma4 => FeedForwardSpec::DenseAndExperts { width: width()?, activation, experts },
                _ => FeedForwardSpec::Experts(experts),
            });
        }
        Ok(FeedForwardSpec::Dense { width: width()?, activation })
    }

    fn experts(&self, layer: usize, activation: Activation) -> Result<ExpertsSpec, LoadError> {
        let keys = &self.keys;
        let (experts, used) = (keys.number("expert_count")?, keys.number("expert_used_count")?);
        let width = keys.of_layer("expert_feed_forward_length", layer)?.filter(|width| *width > 0);
        let width = width.map_or_else(|| keys.number_of_layer("feed_forward_length", layer), Ok)?;
        let gating = match (self.family, keys.optional("expert_gating_func")?) {
            (Family::GptOss, _) => Gating::SoftmaxOfChosen,
            (Family::Llama4, _) | (_, Some(2)) => Gating::Sigmoid,
            (_, None | Some(0 | 1)) => Gating::Softmax,
            (_, Some(other)) => return Err(LoadError::UnsupportedFeature(format!("expert gating {other}"))),
        };
        let groups = keys.optional("expert_group_count")?.unwrap_or(1).max(1);
        let groups_used = keys.optional("expert_group_used_count")?.unwrap_or(groups).clamp(1, groups);
        if used > experts || !experts.is_multiple_of(groups) || used > experts / groups * groups_used {
            let what = format!("{used} of {experts} experts in {groups} groups");
            return Err(LoadError::UnsupportedFeature(what));
        }
        let shared = keys.has_tensor(&format!("blk.{layer}.ffn_up_shexp.weight"));
        let shared_width = match keys.optional("expert_shared_feed_forward_length")? {
            Some(width) if width > 0 => width,
            _ => width * keys.optional("expert_shared_count")?.unwrap_or(1).max(1),
        };
        Ok(ExpertsSpec {
            experts,
            used,
            width,
            shared_width: if shared { shared_width } else { 0 },
            activation,
            gating,
            norms_weights: match self.family {
                Family::Qwen3Moe | Family::Qwen3Next | Family::Qwen35 | Family::Gemma4 => true,
                Family::GptOss | Family::Llama4 => false,
                _ => keys.flag("expert_weights_norm").unwrap_or(false),
            },
            weight_scale: keys.float("expert_weights_scale").unwrap_or(1.0),
            groups,
            groups_used,
            weighs_input: self.family == Family::Llama4,
            is_by_token: false,
        })
    }
}

pub(super) fn check_rope(rope: &RopeSpec, head_dim: usize) -> Result<(), LoadError> {
    if rope.dims == 0 || rope.dims > head_dim || !rope.dims.is_multiple_of(2) {
        return Err(LoadError::UnsupportedFeature(format!("turning {} of {head_dim} values of a head", rope.dims)));
    }
    Ok(())
}

fn check_kernel(kernel: usize) -> Result<(), LoadError> {
    if (2..=64).contains(&kernel) {
        return Ok(());
    }
    Err(LoadError::UnsupportedFeature(format!("a convolution over {kernel} tokens")))
}

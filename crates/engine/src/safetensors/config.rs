//! `config.json`, told in GGUF's keys.

use std::path::Path;

use serde_json::{Map, Value};

use super::{CONFIG, json};
use crate::LoadError;
use crate::gguf::{MetadataWriter, shorten};

/// The families whose published form is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Ministral3,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma3,
    Phi3,
    SmolLm3,
    GptOss,
    Llama4,
}

/// The configuration of a model of text, which may stand inside that of one of text and images.
pub(super) struct Config {
    inner: Map<String, Value>,
    outer: Map<String, Value>,
}

/// A layer in so many of these two families has no positions.
const NO_ROPE_STEP: usize = 4;
/// The one size of Llama 4 without a norm of queries and keys.
const MAVERICKS_EXPERTS: u64 = 128;
/// No model has as many; keeps lists by layer small.
const MOST_LAYERS: u64 = 1 << 16;

impl Family {
    fn parse(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "ministral3" => Self::Ministral3,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "qwen3_moe" => Self::Qwen3Moe,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            "phi3" => Self::Phi3,
            "smollm3" => Self::SmolLm3,
            "gpt_oss" => Self::GptOss,
            "llama4" | "llama4_text" => Self::Llama4,
            _ => return None,
        })
    }

    /// GGUF's name of it.
    pub(super) const fn architecture(self) -> &'static str {
        match self {
            Self::Llama | Self::Mistral => "llama",
            Self::Ministral3 => "mistral3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::SmolLm3 => "smollm3",
            Self::GptOss => "gpt-oss",
            Self::Llama4 => "llama4",
        }
    }

    /// The converter reorders the rows of Q and K in these.
    const fn is_permuted_in_gguf(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral | Self::Ministral3 | Self::SmolLm3)
    }

    /// What `transformers` takes where the configuration leaves a number out, as Gemma's do.
    fn default_of(self, key: &str) -> Option<f64> {
        match (self, key) {
            (Self::Gemma3, "num_attention_heads") => Some(8.0),
            (Self::Gemma3, "num_key_value_heads") => Some(4.0),
            (Self::Gemma3, "head_dim") => Some(256.0),
            (Self::Gemma3, "max_position_embeddings") => Some(131_072.0),
            (_, "rms_norm_eps") => Some(1e-6),
            (Self::Gemma3, "rope_theta") => Some(1_000_000.0),
            (Self::Llama4, "rope_theta") => Some(500_000.0),
            (_, "rope_theta") => Some(10_000.0),
            _ => None,
        }
    }
}

impl Config {
    pub(super) fn read(folder: &Path) -> Result<Self, LoadError> {
        let outer: Option<Map<String, Value>> = json::read_optional(folder, CONFIG)?;
        outer.map(Self::new).ok_or_else(|| LoadError::NotModelFolder(format!("`{CONFIG}`")))
    }

    fn new(outer: Map<String, Value>) -> Self {
        let inner = outer.get("text_config").and_then(Value::as_object).cloned().unwrap_or_default();
        Self { inner, outer }
    }

    /// A value that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let found = |values: &'_ Map<String, Value>| values.get(key).is_some_and(|value| !value.is_null());
        let values = if found(&self.inner) { &self.inner } else { &self.outer };
        values.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    fn list(&self, key: &str) -> Option<&Vec<Value>> {
        self.get(key)?.as_array().filter(|list| !list.is_empty())
    }

    fn needed(&self, family: Family, key: &str) -> Result<u64, LoadError> {
        let default = || family.default_of(key).map(|default| default as u64);
        self.number(key).or_else(default).ok_or_else(|| json::lacks(CONFIG, key))
    }

    /// Values of a head.
    pub(super) fn head_dim(&self, family: Family) -> Result<u64, LoadError> {
        if let Some(head_dim) = self.number("head_dim").or_else(|| family.default_of("head_dim").map(|dim| dim as u64))
        {
            return Ok(head_dim);
        }
        let heads = self.needed(family, "num_attention_heads")?.max(1);
        Ok(self.needed(family, "hidden_size")? / heads)
    }

    pub(super) fn default_float(&self, family: Family, key: &str) -> Option<f64> {
        self.float(key).or_else(|| family.default_of(key))
    }

    pub(super) fn ties_embeddings(&self) -> bool {
        self.flag("tie_word_embeddings").unwrap_or(false)
    }

    /// Which family this is.
    ///
    /// # Errors
    /// When it isn't read as a folder, or doesn't write text, or its weights are quantized.
    pub(super) fn family(&self) -> Result<Family, LoadError> {
        if self.outer.contains_key("quantization") {
            return Err(LoadError::NeedsGguf("this model was quantized for MLX".to_owned()));
        }
        if let Some(quantization) = self.get("quantization_config") {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            let what = format!("the weights are quantized in the way `{}`, which is not read", shorten(method));
            return Err(LoadError::NeedsGguf(what));
        }
        let missing = || json::lacks(CONFIG, "model_type");
        let model_type = self.text("model_type").ok_or_else(missing)?;
        let unknown =
            || LoadError::NeedsGguf(format!("folders of the family `{}` are not read yet", shorten(model_type)));
        let family = Family::parse(model_type).ok_or_else(unknown)?;
        let class = self.outer.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        match class {
            Some(class) if !class.ends_with("ForCausalLM") && !class.ends_with("ForConditionalGeneration") => {
                Err(LoadError::UnsupportedFeature(format!("`{}`, which writes no text,", shorten(class))))
            }
            _ => Ok(family),
        }
    }

    /// Writes the hyperparameters, all but those of positions.
    ///
    /// # Errors
    /// Names what is missing, or what the graph of the family doesn't have.
    pub(super) fn describe(&self, family: Family, metadata: &mut MetadataWriter) -> Result<(), LoadError> {
        self.check_usual(family)?;
        let architecture = family.architecture();
        let key = |key: &str| format!("{architecture}.{key}");
        metadata.set("general.architecture", architecture);
        let layers = self.layers(family)?;
        metadata.set(&key("block_count"), layers);
        metadata.set(&key("context_length"), self.needed(family, "max_position_embeddings")?);
        metadata.set(&key("embedding_length"), self.needed(family, "hidden_size")?);
        let dense_width = if family == Family::Llama4 { "intermediate_size_mlp" } else { "intermediate_size" };
        metadata.set(&key("feed_forward_length"), self.needed(family, dense_width)?);
        let heads = self.needed(family, "num_attention_heads")?;
        metadata.set(&key("attention.head_count"), heads);
        let kv_heads = self.needed(family, "num_key_value_heads").unwrap_or(heads);
        metadata.set(&key("attention.head_count_kv"), kv_heads);
        metadata.set(&key("attention.key_length"), self.head_dim(family)?);
        metadata.set(&key("attention.value_length"), self.head_dim(family)?);
        if let Some(epsilon) = self.default_float(family, "rms_norm_eps") {
            metadata.set(&key("attention.layer_norm_rms_epsilon"), epsilon);
        }
        if let Some(scalar) = self.float("query_pre_attn_scalar") {
            metadata.set(&key("attention.scale"), scalar.sqrt().recip());
        }
        if let Some(cap) = self.float("final_logit_softcapping") {
            metadata.set(&key("final_logit_softcapping"), cap);
        }
        if family.is_permuted_in_gguf() {
            metadata.set(&key("rope.is_unpermuted"), true);
        }
        let windowed = self.windowed_layers(family, layers as usize)?;
        if windowed.contains(&true) {
            metadata.set(&key("attention.sliding_window"), self.needed(family, "sliding_window")?);
            metadata.bools(&key("attention.sliding_window_pattern"), windowed.into_iter());
        }
        let experts = self.number("num_local_experts").or_else(|| self.number("num_experts"));
        if let Some(experts) = experts.filter(|_| matches!(family, Family::Qwen3Moe | Family::GptOss | Family::Llama4))
        {
            let width = if family == Family::Qwen3Moe { "moe_intermediate_size" } else { "intermediate_size" };
            metadata.set(&key("expert_count"), experts);
            metadata.set(&key("expert_used_count"), self.needed(family, "num_experts_per_tok")?);
            metadata.set(&key("expert_feed_forward_length"), self.needed(family, width)?);
        }
        if family == Family::Llama4 {
            metadata.set(&key("attention.chunk_length"), self.needed(family, "attention_chunk_size")?);
            metadata.set(&key("attention.temperature_length"), self.number("floor_scale").unwrap_or(8192));
            metadata.set(&key("attention.temperature_scale"), self.float("attn_scale").unwrap_or(0.1));
        }
        Ok(())
    }

    fn layers(&self, family: Family) -> Result<u64, LoadError> {
        match self.needed(family, "num_hidden_layers")? {
            layers if layers > MOST_LAYERS => Err(LoadError::UnsupportedFeature(format!("{layers} layers"))),
            layers => Ok(layers),
        }
    }

    /// Refuses what a configuration can say and no published model of the family does: the graph is built without.
    fn check_usual(&self, family: Family) -> Result<(), LoadError> {
        let refuse = |what: String| Err(LoadError::UnsupportedFeature(what));
        let activation = self.text("hidden_activation").or_else(|| self.text("hidden_act"));
        let usual = if family == Family::Gemma3 { "gelu_pytorch_tanh" } else { "silu" };
        if let Some(other) = activation.filter(|activation| *activation != usual) {
            return refuse(format!("the activation `{}`", shorten(other)));
        }
        if self.get("attn_logit_softcapping").is_some() {
            return refuse("soft-capping of scores".to_owned());
        }
        if self.flag("use_bidirectional_attention") == Some(true) {
            return refuse("attention in both directions".to_owned());
        }
        if family == Family::Qwen3Moe && self.flag("norm_topk_prob") == Some(false) {
            return refuse("weights of experts that don't sum to one".to_owned());
        }
        if matches!(family, Family::SmolLm3 | Family::Llama4) {
            let has_rope = |layer: usize| !(layer + 1).is_multiple_of(NO_ROPE_STEP);
            let listed = self.list("no_rope_layers").into_iter().flatten().enumerate();
            let is_usual = listed.into_iter().all(|(layer, flag)| flag.as_u64() == Some(u64::from(has_rope(layer))));
            let step = self.number("no_rope_layer_interval").unwrap_or(NO_ROPE_STEP as u64);
            if !is_usual || (self.list("no_rope_layers").is_none() && step != NO_ROPE_STEP as u64) {
                return refuse(format!("other layers without positions than each {NO_ROPE_STEP}th"));
            }
        }
        if family == Family::Llama4 {
            if matches!(self.get("attn_temperature_tuning"), Some(Value::Bool(false))) {
                return refuse("Llama 4 without the tuning of its temperature".to_owned());
            }
            let is_maverick = self.number("num_local_experts") == Some(MAVERICKS_EXPERTS);
            if self.flag("use_qk_norm").unwrap_or(true) == is_maverick {
                return refuse("this combination of experts and norms".to_owned());
            }
        }
        Ok(())
    }

    /// Which layers attend within the window, as `transformers` has it.
    fn windowed_layers(&self, family: Family, layers: usize) -> Result<Vec<bool>, LoadError> {
        if let Some(types) = self.list("layer_types").filter(|_| family != Family::Llama4) {
            let is_windowed = |name: &Value| match name.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(LoadError::UnsupportedFeature(format!("a layer of the type {}", shorten(&name.to_string())))),
            };
            return types.iter().take(layers).map(is_windowed).collect();
        }
        let has_window = self.number("sliding_window").is_some();
        let is_used = self.flag("use_sliding_window").unwrap_or(false);
        let first = self.number("max_window_layers").unwrap_or(0);
        let pattern = self.number("sliding_window_pattern").or_else(|| self.number("_sliding_window_pattern"));
        let is_windowed = |layer: usize| match family {
            Family::Mistral | Family::Ministral3 | Family::Phi3 => has_window,
            Family::Qwen2 | Family::Qwen3 => has_window && is_used && layer as u64 >= first,
            Family::Qwen3Moe => has_window && is_used,
            Family::Gemma3 => !(layer as u64 + 1).is_multiple_of(pattern.unwrap_or(6)),
            Family::GptOss => layer.is_multiple_of(2),
            Family::Llama | Family::SmolLm3 | Family::Llama4 => false,
        };
        Ok((0..layers).map(is_windowed).collect())
    }
}

#[cfg(test)]
impl Config {
    pub(super) fn of(text: &str) -> Self {
        Self::new(serde_json::from_str(text).unwrap())
    }
}

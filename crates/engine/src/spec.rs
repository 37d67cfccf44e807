use crate::LoadError;
use crate::gguf::{Gguf, Metadata};

/// The hyperparameters of a model of the Llama and Qwen2 families. Families that differ only here share one graph.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) context_len: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) rope: Rope,
    /// Queries, keys and values have a bias.
    pub(crate) qkv_bias: bool,
    /// Every n-th layer attends without positions.
    pub(crate) no_rope_every: Option<usize>,
}

/// Rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) base: f32,
    /// Positions are divided by this.
    pub(crate) linear_factor: f32,
    pub(crate) pairing: RopePairing,
}

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopePairing {
    /// Neighbours: GGUF permutes the Q and K rows of the Llama family for it.
    Interleaved,
    /// A value of the first half with one of the second.
    Halves,
}

impl Spec {
    /// Reads and checks the hyperparameters.
    ///
    /// # Errors
    /// Names the architecture or the property that is not supported, or the key that is missing or makes no sense.
    pub(crate) fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let missing = |key: &str| LoadError::Missing(key.to_owned());
        let architecture = metadata.text("general.architecture").ok_or_else(|| missing("general.architecture"))?;
        let pairing = match architecture.as_str() {
            "llama" | "smollm3" => RopePairing::Interleaved,
            "qwen2" => RopePairing::Halves,
            _ => return Err(LoadError::UnsupportedArchitecture(architecture)),
        };
        let keys = Keys { metadata, architecture: &architecture };
        if keys.optional("expert_count")?.unwrap_or(0) > 0 {
            return Err(LoadError::UnsupportedFeature(format!(
                "a mixture of experts in architecture `{architecture}`"
            )));
        }
        let hidden = keys.number("embedding_length")?;
        let heads = keys.number("attention.head_count")?;
        let kv_heads = keys.optional("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = keys.optional("attention.key_length")?.unwrap_or(hidden / heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(LoadError::UnsupportedFeature(format!("{heads} heads over {kv_heads} key-value heads")));
        }
        if keys.optional("attention.value_length")?.unwrap_or(head_dim) != head_dim {
            return Err(LoadError::UnsupportedFeature("values of another length than keys".to_owned()));
        }
        if head_dim == 0
            || !head_dim.is_multiple_of(2)
            || keys.optional("rope.dimension_count")?.unwrap_or(head_dim) != head_dim
        {
            return Err(LoadError::UnsupportedFeature("rotating only a part of a head".to_owned()));
        }
        Ok(Self {
            layers: keys.number("block_count")?,
            hidden,
            feed_forward: keys.number("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            context_len: keys.number("context_length")?,
            norm_epsilon: keys
                .float("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| LoadError::Missing(format!("{architecture}.attention.layer_norm_rms_epsilon")))?,
            rope: Rope {
                base: keys.float("rope.freq_base").unwrap_or(10_000.0),
                linear_factor: keys.linear_rope_factor()?,
                pairing,
            },
            qkv_bias: gguf.header.tensors.contains_key("blk.0.attn_q.bias"),
            // llama.cpp fixes the same step, the file doesn't carry it.
            no_rope_every: (architecture == "smollm3").then_some(4),
        })
    }

    pub(crate) fn uses_rope(&self, layer: usize) -> bool {
        self.no_rope_every.is_none_or(|step| !(layer + 1).is_multiple_of(step))
    }
}

/// Values of one architecture, whose keys begin with its name.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

/// No hyperparameter of a model is this large; keeps every product of two of them in range.
const LARGEST: u64 = 1 << 28;

impl Keys<'_> {
    fn optional(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let key = format!("{}.{key}", self.architecture);
        if self.metadata.array(&key).is_some() {
            return Err(LoadError::UnsupportedFeature(format!("`{key}` that differs by layer")));
        }
        match self.metadata.unsigned(&key) {
            Some(n) if n > LARGEST => Err(LoadError::UnsupportedFeature(format!("`{key}` of {n}"))),
            n => Ok(n.map(|n| n as usize)),
        }
    }

    fn number(&self, key: &str) -> Result<usize, LoadError> {
        match self.optional(key)? {
            Some(0) | None => Err(LoadError::Missing(format!("{}.{key}", self.architecture))),
            Some(n) => Ok(n),
        }
    }

    fn float(&self, key: &str) -> Option<f32> {
        let value = self.metadata.float(&format!("{}.{key}", self.architecture))? as f32;
        (value.is_finite() && value > 0.0).then_some(value)
    }

    fn linear_rope_factor(&self) -> Result<f32, LoadError> {
        let kind = self.metadata.text(&format!("{}.rope.scaling.type", self.architecture));
        match kind.as_deref() {
            // Llama 3's scaling is told by the tensor `rope_freqs.weight`.
            None | Some("none") => Ok(1.0),
            Some("linear") => Ok(self.float("rope.scaling.factor").unwrap_or(1.0)),
            Some(other) => Err(LoadError::UnsupportedFeature(format!("rope scaling `{other}`"))),
        }
    }
}

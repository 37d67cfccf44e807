use std::path::{Path, PathBuf};

use chat::Bytes;

use crate::device;
use crate::gguf::Gguf;
use crate::spec::Spec;
use crate::{LoadError, tokenizer};

/// What a model file says about itself; read from its header alone, in milliseconds at any size.
#[derive(Clone, Debug)]
pub struct ModelHeader {
    /// The file.
    pub path: PathBuf,
    /// The family, as spelled in the file: `llama`, `qwen2`, …
    pub architecture: String,
    /// The name that its makers gave it.
    pub name: Option<String>,
    /// How the weights are packed, for example `Q4_K_M`.
    pub quantization: String,
    /// Size of the file.
    pub file_bytes: Bytes,
    /// Size of the weights in it.
    pub weight_bytes: Bytes,
    /// How many weights there are.
    pub parameters: u64,
    /// The context that the model was trained for, in tokens; 0 where the file doesn't say.
    pub context_len: usize,
    /// The licence, as its makers named it.
    pub license: Option<String>,
    /// Whether the file brings a chat template; without one, ChatML is used.
    pub has_chat_template: bool,
    geometry: Geometry,
    unsupported: Option<Unsupported>,
}

/// The numbers that memory and speed are predicted from.
#[derive(Clone, Copy, Debug, Default)]
struct Geometry {
    /// Keys and values of one token in all layers.
    kv_values_per_token: u64,
    /// Widest activation of one token.
    scratch_values_per_token: u64,
    vocabulary: u64,
    /// Weights that the device holds in a second, faster layout.
    repacked_bytes: u64,
    /// Weights read for each token of a decode.
    touched_bytes: u64,
}

/// Why a file with a sound header cannot be run. `LoadError` isn't `Clone`, so the parts are kept.
#[derive(Clone, Debug)]
enum Unsupported {
    Architecture(String),
    TensorType { tensor: String, tensor_type: String },
    Feature(String),
    Missing(String),
    Tokenizer(String),
}

/// The memory that a loaded model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The weights, in every layout in which the device keeps them.
    pub weights: Bytes,
    /// Keys and values of a full context.
    pub kv_cache: Bytes,
    /// The most that one step of a prefill computes with, and the tokenizer.
    pub scratch: Bytes,
}

impl Footprint {
    /// All of it.
    pub const fn total(&self) -> Bytes {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }
}

/// Reads the header of a GGUF file; no weights are touched, whatever the size of the file.
///
/// # Errors
/// When the file cannot be read, is not whole, or is damaged. A model that is merely not supported has a header:
/// see [`ModelHeader::check_supported`].
pub fn read_header(path: &Path) -> Result<ModelHeader, LoadError> {
    ModelHeader::from_gguf(&Gguf::open(path)?)
}

impl ModelHeader {
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let text = |key: &str| metadata.text(key).filter(|text| !text.trim().is_empty());
        let architecture =
            text("general.architecture").ok_or_else(|| LoadError::Missing("general.architecture".to_owned()))?;
        let tensors = gguf.header.tensors.values();
        let parameters = tensors.clone().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>());
        Ok(Self {
            path: gguf.path.clone(),
            name: text("general.name"),
            quantization: gguf.header.quantization(),
            file_bytes: Bytes(gguf.map.len() as u64),
            weight_bytes: Bytes(tensors.clone().map(|t| t.bytes as u64).sum()),
            parameters: parameters.fold(0, u64::saturating_add),
            context_len: metadata
                .unsigned(&format!("{architecture}.context_length"))
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0),
            license: text("general.license.name").or_else(|| text("general.license")),
            has_chat_template: metadata.get("tokenizer.chat_template").is_some(),
            geometry: Geometry::of(gguf, &architecture),
            unsupported: Unsupported::find(gguf),
            architecture,
        })
    }

    /// The memory that this model takes with a context of `context_len` tokens.
    pub fn footprint(&self, context_len: usize) -> Footprint {
        const GROWTH_STEP: u64 = crate::kv_cache::GROWTH_STEP as u64;
        let geometry = &self.geometry;
        let context_len = context_len as u64;
        let kv_cache = geometry
            .kv_values_per_token
            .saturating_mul(device::KV_VALUE_BYTES)
            .saturating_mul(context_len.div_ceil(GROWTH_STEP).saturating_mul(GROWTH_STEP));
        let chunk = crate::worker::PREFILL_CHUNK as u64;
        // Activations are f32. Of a prompt only the last position gets logits, which exist as candidates too.
        let activations = geometry.scratch_values_per_token.saturating_mul(chunk).saturating_mul(4);
        let logits = geometry.vocabulary.saturating_mul(16);
        // Measured on the starter model: 46 MB for 151,936 words, and a quarter of that for what differs in others.
        let tokenizer = geometry.vocabulary.saturating_mul(400);
        Footprint {
            weights: self.weight_bytes.saturating_add(Bytes(geometry.repacked_bytes)),
            kv_cache: Bytes(kv_cache),
            scratch: Bytes(activations.saturating_add(logits).saturating_add(tokenizer)),
        }
    }

    /// The weights that one token of a decode reads: all of them for a dense model, without the unused rows of the
    /// embedding.
    pub const fn bytes_per_token(&self) -> Bytes {
        Bytes(self.geometry.touched_bytes)
    }

    /// Keys and values of one token in all layers.
    pub const fn kv_bytes_per_token(&self) -> Bytes {
        Bytes(self.geometry.kv_values_per_token.saturating_mul(device::KV_VALUE_BYTES))
    }

    /// Whether this version can run the model.
    ///
    /// # Errors
    /// Names the architecture, the tensor or the property that it cannot run.
    pub fn check_supported(&self) -> Result<(), LoadError> {
        match self.unsupported.clone() {
            None => Ok(()),
            Some(Unsupported::Architecture(name)) => Err(LoadError::UnsupportedArchitecture(name)),
            Some(Unsupported::TensorType { tensor, tensor_type }) => {
                Err(LoadError::UnsupportedTensorType { tensor, tensor_type })
            }
            Some(Unsupported::Feature(what)) => Err(LoadError::UnsupportedFeature(what)),
            Some(Unsupported::Missing(what)) => Err(LoadError::Missing(what)),
            Some(Unsupported::Tokenizer(what)) => Err(LoadError::Tokenizer(what)),
        }
    }
}

impl Geometry {
    fn of(gguf: &Gguf, architecture: &str) -> Self {
        let metadata = gguf.metadata();
        let number = |key: &str| metadata.unsigned(&format!("{architecture}.{key}"));
        let layers = number("block_count").unwrap_or(0);
        let hidden = number("embedding_length").unwrap_or(0);
        let heads = number("attention.head_count").unwrap_or(1).max(1);
        let head_dim = hidden / heads;
        let key_len = number("attention.key_length").unwrap_or(head_dim);
        let value_len = number("attention.value_length").unwrap_or(head_dim);
        let kv_heads = kv_heads_of_all_layers(gguf, architecture, layers, heads);
        let feed_forward = number("feed_forward_length").unwrap_or(hidden.saturating_mul(4));
        let vocabulary = metadata.array("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len() as u64);
        let tensors = &gguf.header.tensors;
        let tied = !tensors.contains_key("output.weight");
        let (mut repacked_bytes, mut touched_bytes) = (0_u64, 0_u64);
        for (name, tensor) in tensors {
            let is_embedding = name == "token_embd.weight";
            if !is_embedding || tied {
                touched_bytes += tensor.bytes as u64;
                if let (Some(dtype), &[rows, columns]) = (tensor.tensor_type.candle(), tensor.shape.as_slice()) {
                    repacked_bytes += device::repacked_bytes(dtype, rows, columns);
                }
            }
        }
        Self {
            kv_values_per_token: kv_heads.saturating_mul(key_len.saturating_add(value_len)),
            // Gate, up and their product stand beside the residual stream, queries, keys and values.
            scratch_values_per_token: feed_forward.saturating_mul(3).saturating_add(hidden.saturating_mul(6)),
            vocabulary,
            repacked_bytes,
            touched_bytes,
        }
    }
}

fn kv_heads_of_all_layers(gguf: &Gguf, architecture: &str, layers: u64, heads: u64) -> u64 {
    let key = format!("{architecture}.attention.head_count_kv");
    if let Some(per_layer) = gguf.metadata().array(&key).and_then(|array| array.numbers(&gguf.map)) {
        return per_layer.into_iter().map(|n| n.max(0.0) as u64).fold(0, u64::saturating_add);
    }
    gguf.metadata().unsigned(&key).unwrap_or(heads).saturating_mul(layers)
}

impl Unsupported {
    fn find(gguf: &Gguf) -> Option<Self> {
        let checks = Spec::read(gguf).map(|_| ()).and_then(|()| check_tensor_types(gguf));
        let checks = checks.and_then(|()| tokenizer::check_supported(gguf.metadata()));
        Some(match checks.err()? {
            LoadError::UnsupportedArchitecture(name) => Self::Architecture(name),
            LoadError::UnsupportedTensorType { tensor, tensor_type } => Self::TensorType { tensor, tensor_type },
            LoadError::Missing(what) => Self::Missing(what),
            LoadError::Tokenizer(what) => Self::Tokenizer(what),
            LoadError::UnsupportedFeature(what) => Self::Feature(what),
            other => Self::Feature(other.to_string()),
        })
    }
}

fn check_tensor_types(gguf: &Gguf) -> Result<(), LoadError> {
    // The first by name, so that the same file is always refused with the same words.
    let first =
        gguf.header.tensors.iter().filter(|(_, t)| t.tensor_type.candle().is_none()).min_by_key(|(name, _)| *name);
    match first {
        None => Ok(()),
        Some((name, tensor)) => Err(LoadError::UnsupportedTensorType {
            tensor: name.clone(),
            tensor_type: tensor.tensor_type.name().to_owned(),
        }),
    }
}

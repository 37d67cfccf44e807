use std::path::{Path, PathBuf};

use chat::Bytes;
use kernels::packed::Packing;

use crate::device::{self, KvType};
use crate::gguf::{Gguf, vocabulary_name};
use crate::spec::ModelSpec;
use crate::{LoadError, tokenizer};

/// What a model file says about itself; read from its header alone, in milliseconds at any size.
#[derive(Clone, Debug)]
pub struct ModelHeader {
    /// The file, the first of them, or the folder.
    pub path: PathBuf,
    /// All files; most models have one.
    pub files: Vec<PathBuf>,
    /// The family, as spelled in the file: `llama`, `qwen2`, …
    pub architecture: String,
    /// The name that its makers gave it.
    pub name: Option<String>,
    /// How the weights are packed, for example `Q4_K_M`.
    pub quantization: String,
    /// Size of all files.
    pub file_bytes: Bytes,
    /// Size of the weights in them.
    pub weight_bytes: Bytes,
    /// How many weights there are.
    pub parameters: u64,
    /// The context that the model was trained for, in tokens; 0 where the file doesn't say.
    pub context_len: usize,
    /// The licence, as its makers named it.
    pub license: Option<String>,
    /// The chat template that the file brings; without one, ChatML is used.
    pub chat_template: Option<String>,
    /// Names the vocabulary: models with the same name mean the same by a token's id.
    pub tokenizer: String,
    vocabulary: u64,
    traffic: WeightTraffic,
    /// `None` where this version cannot run it.
    spec: Option<ModelSpec>,
    unsupported: Option<Unsupported>,
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

/// Code that is brought in, stacks, and what allocators keep. Measured with models of a megabyte: 6 to 7 MB.
const RUNNING: Bytes = Bytes::mib(6);

/// The memory that a loaded model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The weights, in every layout in which the device keeps them.
    pub weights: Bytes,
    /// Keys and values of a full context.
    pub kv_cache: Bytes,
    /// The most that one step of a prefill computes with, the tokenizer, and what runs whatever the model.
    pub scratch: Bytes,
}

impl Footprint {
    /// All of it.
    pub const fn total(&self) -> Bytes {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }

    /// This and another's.
    pub(crate) const fn with(self, other: Self) -> Self {
        Self {
            weights: self.weights.saturating_add(other.weights),
            kv_cache: self.kv_cache.saturating_add(other.kv_cache),
            scratch: self.scratch.saturating_add(other.scratch),
        }
    }
}

/// Reads the header of a GGUF file, or what stands for it in a folder as models are published in: `config.json`,
/// `*.safetensors` and the tokenizer. No weights are touched, whatever the size of the model.
///
/// # Errors
/// When the file or folder cannot be read, is not whole, or is damaged. A model that is merely not supported has a header:
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
        let spec = ModelSpec::read(gguf);
        let traffic = WeightTraffic::of(gguf, spec.as_ref().ok());
        Ok(Self {
            path: gguf.path.clone(),
            files: gguf.files.iter().map(|(path, _)| path.clone()).collect(),
            name: text("general.name"),
            quantization: gguf.header.quantization(),
            file_bytes: gguf.files.iter().fold(Bytes(0), |sum, (_, bytes)| sum.saturating_add(*bytes)),
            weight_bytes: Bytes(tensors.clone().map(|t| t.bytes as u64).sum()),
            parameters: parameters.fold(0, u64::saturating_add),
            context_len: metadata
                .unsigned(&format!("{architecture}.context_length"))
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0),
            license: text("general.license.name").or_else(|| text("general.license")),
            chat_template: metadata.text("tokenizer.chat_template"),
            tokenizer: vocabulary_name(gguf),
            vocabulary: metadata.array("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len() as u64),
            traffic,
            unsupported: Unsupported::find(gguf, spec.as_ref().err()),
            spec: spec.ok(),
            architecture,
        })
    }

    /// Whether the template shows the model the tools of a request.
    pub fn takes_tools(&self) -> bool {
        self.chat_template.as_ref().is_some_and(|template| template.contains("tools"))
    }

    /// Whether the template has a place for thinking, under one of the names that families give it.
    pub fn has_thinking(&self) -> bool {
        let names = ["<think>", "reasoning_content", "enable_thinking", "<|channel|>", "<|channel>"];
        self.chat_template.as_ref().is_some_and(|template| names.iter().any(|name| template.contains(name)))
    }

    /// The context that a wish for `context_len` tokens comes to: no more than the model was trained for.
    pub(crate) fn usable_context(&self, context_len: usize) -> usize {
        if self.context_len == 0 { context_len } else { context_len.min(self.context_len) }
    }

    /// The memory that this model takes with a context of `context_len` tokens, kept so.
    pub fn footprint(&self, context_len: usize, kv_type: KvType) -> Footprint {
        let kv_cache = self.spec.as_ref().map_or(0, |spec| spec.cache_bytes(context_len, kv_type));
        let activations = self.spec.as_ref().map_or(0, |spec| spec.activation_bytes(context_len));
        let unpacked = self.spec.as_ref().map_or(0, |spec| spec.unpacked_bytes(context_len, kv_type));
        // Of a prompt only the last position gets logits, which exist as candidates too.
        let logits = self.vocabulary.saturating_mul(16);
        // Measured on the starter model: 22 MB for 151,936 words, the part of the file that they stand in included.
        let tokenizer = self.vocabulary.saturating_mul(160);
        Footprint {
            weights: Bytes((self.weight_bytes.0 - self.traffic.left_in_file).saturating_add(self.traffic.repacked)),
            kv_cache: Bytes(kv_cache),
            scratch: Bytes(
                [activations, unpacked, logits, tokenizer, RUNNING.0].into_iter().fold(0, u64::saturating_add),
            ),
        }
    }

    /// What one token of a decode reads after `context_depth` tokens: the weights that it uses (of experts its share, of
    /// an embedding its row, unless that is the output too), and as much of the cache, kept so, as its layers look back
    /// over. A recurrent state is read and written.
    pub fn bytes_per_token(&self, context_depth: usize, kv_type: KvType) -> Bytes {
        let cache = self.spec.as_ref().map_or(0, |spec| spec.cache_traffic(context_depth, kv_type));
        Bytes(self.traffic.read_per_token.saturating_add(cache))
    }

    /// Floating-point operations of one token of a prefill: two for each weight that it is multiplied with. Attention,
    /// which grows with the context, isn't counted.
    pub fn flops_per_token(&self) -> f64 {
        2.0 * self.traffic.multiplied_per_token as f64
    }

    /// What one more token of a long sequence takes in the cache.
    pub fn kv_bytes_per_token(&self, kv_type: KvType) -> Bytes {
        Bytes(self.spec.as_ref().map_or(0, |spec| spec.kv_bytes_per_token(kv_type)))
    }

    /// What a sequence takes in the cache however long it is: attention windows and recurrent states.
    pub fn state_bytes(&self, kv_type: KvType) -> Bytes {
        Bytes(self.spec.as_ref().map_or(0, |spec| spec.state_bytes(kv_type)))
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

/// What becomes of the weights: in memory, and for each token.
#[derive(Clone, Copy, Debug, Default)]
struct WeightTraffic {
    /// Bytes of the layouts in which the device holds the weights beyond the file's.
    repacked: u64,
    /// Bytes of tables of which the CPU reads single rows: pages of the file, of which hardly any is in memory.
    left_in_file: u64,
    /// Bytes read for a token of a decode.
    read_per_token: u64,
    /// Weights that a token is multiplied with.
    multiplied_per_token: u64,
}

impl WeightTraffic {
    fn of(gguf: &Gguf, spec: Option<&ModelSpec>) -> Self {
        let mut all = Self::default();
        for (name, tensor) in &gguf.header.tensors {
            let copied = device::unpacked_copy_bytes(name, tensor);
            all.repacked += copied;
            let (matrices, rows, columns) = match *tensor.shape {
                [rows, columns] => (1, rows, columns),
                [experts, rows, columns] => (experts as u64, rows, columns),
                _ => (0, 0, 0),
            };
            let of_matrices = |bytes: fn(Packing, usize, usize) -> u64| {
                let packing = tensor.tensor_type.packing();
                packing.map_or(0, |packing| bytes(packing, rows, columns).saturating_mul(matrices))
            };
            let unpacked = of_matrices(device::unpacked_bytes);
            all.repacked += unpacked;
            if gguf.is_only_looked_up(name) {
                all.read_per_token += tensor.bytes as u64 / (rows as u64).max(1);
                if device::is_left_in_file(name) {
                    all.left_in_file += tensor.bytes as u64;
                }
                continue;
            }
            if copied == 0 {
                all.repacked += of_matrices(device::repacked_bytes);
            }
            if spec.is_some_and(|spec| !spec.has_layer_of(name)) {
                continue;
            }
            let (used, of) = spec.and_then(|spec| spec.experts_share(name)).unwrap_or((1, 1));
            let share = |whole: u64| (whole / of.max(1) as u64).saturating_mul(used as u64);
            all.read_per_token += share(tensor.bytes as u64 + unpacked);
            all.multiplied_per_token += share(matrices.saturating_mul(rows as u64).saturating_mul(columns as u64));
        }
        all
    }
}

impl Unsupported {
    fn find(gguf: &Gguf, spec_error: Option<&LoadError>) -> Option<Self> {
        if let Some(error) = spec_error {
            return Some(Self::from_error(error));
        }
        let checks = check_tensor_types(gguf).and_then(|()| tokenizer::check_supported(gguf.metadata()));
        checks.err().as_ref().map(Self::from_error)
    }

    fn from_error(error: &LoadError) -> Self {
        match error {
            LoadError::UnsupportedArchitecture(name) => Self::Architecture(name.clone()),
            LoadError::UnsupportedTensorType { tensor, tensor_type } => {
                Self::TensorType { tensor: tensor.clone(), tensor_type: tensor_type.clone() }
            }
            LoadError::Missing(what) => Self::Missing(what.clone()),
            LoadError::Tokenizer(what) => Self::Tokenizer(what.clone()),
            LoadError::UnsupportedFeature(what) => Self::Feature(what.clone()),
            other => Self::Feature(other.to_string()),
        }
    }
}

fn check_tensor_types(gguf: &Gguf) -> Result<(), LoadError> {
    // The first by name, so that the same file is always refused with the same words.
    let first = gguf.header.tensors.iter().filter(|(_, t)| !t.tensor_type.is_usable()).min_by_key(|(name, _)| *name);
    match first {
        None => Ok(()),
        Some((name, tensor)) => Err(LoadError::UnsupportedTensorType {
            tensor: name.clone(),
            tensor_type: tensor.tensor_type.name().to_owned(),
        }),
    }
}

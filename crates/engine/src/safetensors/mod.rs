//! Models as they are published: a folder of `config.json`, weights in `*.safetensors`, and a tokenizer. The folder is
//! presented as what it would be as GGUF, under the keys and names that llama.cpp's converter gives
//! (`conversion/*.py`), so that everything after it is the same. The weights stay where they are.
//!
//! GGUF has no key for four things that a folder tells: `rope.is_unpermuted` (the rows of Q and K stand as they were
//! trained, while the converter reorders those of some families), `rope.scaling.yarn_truncate` and
//! `rope.scaling.yarn_magnitude` (YaRN's rounding and the factor of sine and cosine), and `attention.chunk_length`
//! (Llama 4). They are written below the architecture's name as the others are.
//!
//! All of it is untrusted input: nothing is allocated that the files are not large enough to justify, and no file is
//! opened outside the folder.

mod change;
mod config;
mod header;
mod json;
mod names;
mod rope;
mod sentencepiece;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chat::Bytes;

use crate::LoadError;
use crate::gguf::{Content, Gguf, Header, MetadataWriter, Part, TensorInfo, TensorType};
pub(crate) use change::Change;
use config::{Config, Family};
use names::Mapped;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What a model consists of beside its weights. All but the first may be missing.
const SMALL_FILES: [&str; 8] = [
    CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Whether a folder has what a published model consists of. Looks at the names of its files only.
pub fn is_model_folder(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has(CONFIG) && (has(WEIGHTS) || has(INDEX))
}

/// The files in the folder that a model consists of.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let is_of_model = |path: &PathBuf| {
        let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
        is_weights || path.file_name().and_then(|name| name.to_str()).is_some_and(|name| SMALL_FILES.contains(&name))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_of_model).collect();
    files.sort();
    files
}

/// Maps the weights and reads everything else.
///
/// # Errors
/// When the folder isn't one of a model, a file is missing or damaged, or the model is published in a form that isn't
/// read.
pub(crate) fn open(folder: &Path) -> Result<Gguf, LoadError> {
    let config = Config::read(folder)?;
    let family = config.family()?;
    let shards = Shards::open(folder)?;
    let (mut metadata, mut made) = (MetadataWriter::default(), MadeTensors::default());
    config.describe(family, &mut metadata)?;
    rope::describe(&config, family, &mut metadata, &mut made)?;
    let mut tensors = shards.tensors(family, &config)?;
    let vocabulary = tensors.get("token_embd.weight").and_then(|embedding| embedding.shape.first()).copied();
    tokenizer::describe(folder, &config, family, vocabulary.unwrap_or(0), &mut metadata)?;
    if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
        metadata.set("general.name", name);
    }

    let small = SMALL_FILES.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
    let weights = shards.parts.iter().map(|part| part.path.clone());
    let size = |path: PathBuf| path.metadata().map(|file| (path, Bytes(file.len()))).ok();
    let files = small.chain(weights).filter_map(size).collect();
    let mut parts = shards.parts;
    tensors.extend(made.tensors.into_iter().map(|(name, tensor)| (name, TensorInfo { part: parts.len(), ..tensor })));
    parts.push(Part {
        path: folder.join(CONFIG),
        header_len: made.bytes.len(),
        map: Arc::new(Content::Made(made.bytes)),
    });
    let (metadata, arrays) = metadata.finish();
    let header = Header { metadata, tensors, len: 0 };
    Ok(Gguf { path: folder.to_owned(), map: Arc::new(Content::Made(arrays)), parts, files, header })
}

/// Tensors that a folder has as numbers of its configuration.
#[derive(Default)]
struct MadeTensors {
    tensors: Vec<(String, TensorInfo)>,
    bytes: Vec<u8>,
}

impl MadeTensors {
    fn add(&mut self, name: &str, values: &[f32]) {
        let start = self.bytes.len();
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let bytes = self.bytes.len() - start;
        let tensor =
            TensorInfo { shape: vec![values.len()], tensor_type: TensorType::F32, part: 0, start, bytes, change: None };
        self.tensors.push((name.to_owned(), tensor));
    }
}

/// The files of weights, with what they have under the names that they give.
struct Shards {
    parts: Vec<Part>,
    tensors: HashMap<String, header::Tensor>,
}

impl Shards {
    fn open(folder: &Path) -> Result<Self, LoadError> {
        let index = Index::read(folder)?;
        let (mut parts, mut tensors) = (Vec::new(), HashMap::new());
        for (no, file) in index.files.iter().enumerate() {
            let path = folder.join(file);
            let in_file = |cause| match cause {
                LoadError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    LoadError::MissingPart { file: file.clone(), part: no as u64 + 1, count: index.files.len() as u64 }
                }
                cause => LoadError::Part { file: file.clone(), cause: Box::new(cause) },
            };
            let content = Content::map(&path).map_err(in_file)?;
            for (name, tensor) in header::parse(&content).map_err(in_file)? {
                let what = || format!("it has a tensor `{}` that another part has", crate::gguf::shorten(&name));
                if tensors.contains_key(&name) {
                    return Err(LoadError::WrongPart { file: file.clone(), what: what() });
                }
                tensors.insert(name, header::Tensor { part: no, ..tensor });
            }
            // The parser made sure of it.
            let header_len = content.len().min(header::data_start(&content));
            parts.push(Part { path, map: Arc::new(content), header_len });
        }
        if let Some((name, file)) = index.tensors.iter().find(|(name, _)| !tensors.contains_key(*name)) {
            let what = format!("it lacks the tensor `{}`, which `{INDEX}` says is in it", crate::gguf::shorten(name));
            return Err(LoadError::WrongPart { file: file.clone(), what });
        }
        Ok(Self { parts, tensors })
    }

    /// The tensors that the family's graph uses, under GGUF's names.
    fn tensors(&self, family: Family, config: &Config) -> Result<HashMap<String, TensorInfo>, LoadError> {
        let mut mapped = HashMap::with_capacity(self.tensors.len());
        // In order, so that the same folder is always refused with the same words.
        let sorted: BTreeMap<&String, &header::Tensor> = self.tensors.iter().collect();
        for (name, tensor) in sorted {
            let shown = || crate::gguf::shorten(name);
            let (gguf_name, change) = match names::map(family, name) {
                Mapped::Ignored => continue,
                // The embedding is the output too, whatever else the file has.
                Mapped::Tensor(name, _) if name == "output.weight" && config.ties_embeddings() => continue,
                Mapped::Tensor(name, change) => (name, change),
                Mapped::Unknown => {
                    let what = format!("it has a tensor `{}`, which models of its family don't have", shown());
                    return Err(LoadError::NeedsGguf(what));
                }
            };
            let tensor = tensor.info(change).map_err(|dtype| {
                LoadError::NeedsGguf(format!("tensor `{}` has the type {dtype}, which is not read", shown()))
            })?;
            if mapped.insert(gguf_name, tensor).is_some() {
                let what = format!("the tensor `{}` a second time, under another name", shown());
                return Err(LoadError::Malformed { at: 0, what });
            }
        }
        Ok(mapped)
    }
}

/// Which files the weights are in.
struct Index {
    files: BTreeSet<String>,
    tensors: BTreeMap<String, String>,
}

impl Index {
    fn read(folder: &Path) -> Result<Self, LoadError> {
        #[derive(serde::Deserialize)]
        struct Published {
            weight_map: BTreeMap<String, String>,
        }
        let Some(index) = json::read_optional::<Published>(folder, INDEX)? else {
            if !folder.join(WEIGHTS).exists() {
                return Err(LoadError::NotModelFolder(format!("`{WEIGHTS}`")));
            }
            return Ok(Self { files: [WEIGHTS.to_owned()].into(), tensors: BTreeMap::new() });
        };
        let files: BTreeSet<String> = index.weight_map.values().cloned().collect();
        let is_name = |file: &String| Path::new(file).file_name().is_some_and(|name| name == file.as_str());
        if let Some(other) = files.iter().find(|file| !is_name(file)) {
            let what = format!("it names `{}`, which is not a file beside it", crate::gguf::shorten(other));
            return Err(LoadError::BadFile { file: INDEX.to_owned(), what });
        }
        if files.is_empty() {
            return Err(LoadError::BadFile { file: INDEX.to_owned(), what: "it names no file".to_owned() });
        }
        Ok(Self { files, tensors: index.weight_map })
    }
}

#[cfg(test)]
mod tests;

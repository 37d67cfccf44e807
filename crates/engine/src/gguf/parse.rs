use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chat::Bytes;

use super::content::Content;
use super::cursor::Cursor;
use super::metadata::{Metadata, read_value};
use super::split;
use super::tensor_type::{TensorType, file_type_name};
use crate::safetensors::Change;
use crate::{LoadError, safetensors};

/// A model in the terms of GGUF, with its header read and checked; the weights are mapped and untouched. It comes from
/// GGUF files, or from a folder as models are published in: see [`crate::safetensors`].
pub(crate) struct Gguf {
    /// The file, the first of them, or the folder.
    pub(crate) path: PathBuf,
    /// What the arrays of the metadata lie in: the first file of GGUF.
    pub(crate) map: Arc<Content>,
    /// What the tensors lie in: all files of GGUF, of which most models have one.
    pub(crate) parts: Vec<Part>,
    /// Every file that the model needs, with its size.
    pub(crate) files: Vec<(PathBuf, Bytes)>,
    /// The metadata of the first part, and the tensors of all.
    pub(crate) header: Header,
}

/// One file of a model.
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    pub(crate) map: Arc<Content>,
    /// Bytes before its weights.
    pub(crate) header_len: usize,
}

impl Part {
    pub(super) fn file(&self) -> (PathBuf, Bytes) {
        (self.path.clone(), Bytes(self.map.len() as u64))
    }
}

/// What a header says. Every tensor lies inside its file, aligned and whole.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: HashMap<String, TensorInfo>,
    /// Bytes of the header itself.
    pub(crate) len: usize,
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorInfo {
    /// Outermost dimension first, as candle has it; GGUF writes them the other way round.
    pub(crate) shape: Vec<usize>,
    pub(crate) tensor_type: TensorType,
    /// Which of the files it lies in.
    pub(crate) part: usize,
    /// Offset in that file.
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    /// What makes the tensor out of these bytes, where they aren't it yet; `shape` is the one it has then.
    pub(crate) change: Option<Change>,
}

const DEFAULT_ALIGNMENT: u64 = 32;
const MOST_DIMENSIONS: u32 = 8;

impl Gguf {
    /// Maps the file, or all files of the model that it is a part of, and reads the headers. Only their pages are
    /// touched. A folder is read as a published one.
    ///
    /// # Errors
    /// When a file can't be read, or isn't a whole GGUF of version 2 or 3, or isn't a part of the same model; as
    /// [`safetensors::open`] for a folder.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() {
            return safetensors::open(path);
        }
        let (part, header) = Self::map(path)?;
        split::join(part, header)
    }

    /// Whether of the tensor `name` only rows are looked up: an embedding that isn't the output too, or a table of experts.
    pub(crate) fn is_only_looked_up(&self, name: &str) -> bool {
        name.starts_with("per_layer_token_embd.")
            || name.ends_with(".ffn_gate_tid2eid.weight")
            || (name == "token_embd.weight" && self.header.tensors.contains_key("output.weight"))
    }

    /// A model of one file, so far.
    pub(super) fn whole(part: Part, header: Header) -> Self {
        Self { path: part.path.clone(), map: part.map.clone(), files: vec![part.file()], parts: vec![part], header }
    }

    pub(super) fn map(path: &Path) -> Result<(Part, Header), LoadError> {
        let map = Content::map(path)?;
        let header = Header::parse(&map)?;
        Ok((Part { path: path.to_owned(), map: Arc::new(map), header_len: header.len }, header))
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }
}

impl Header {
    /// Reads the header of a file with the content `file`.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, LoadError> {
        let mut cursor = Cursor::new(file, 0);
        read_version(&mut cursor, file)?;
        // A tensor's entry takes at least 24 bytes, a key with its value at least 13.
        let tensor_count = cursor.count("tensors", 24)?;
        let value_count = cursor.count("values", 13)?;
        let mut metadata = Metadata::default();
        for _ in 0..value_count {
            let at = cursor.position() as u64;
            let key = cursor.text()?.to_owned();
            let kind = cursor.u32()?;
            let value = read_value(&mut cursor, kind)?;
            if !metadata.insert(key.clone(), value) {
                return Err(LoadError::Malformed { at, what: format!("the key `{}` a second time", shorten(&key)) });
            }
        }
        let alignment = metadata.unsigned("general.alignment").unwrap_or(DEFAULT_ALIGNMENT);
        // The format asks for a multiple of 8; with it every block type lies as its values need.
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            return Err(cursor.malformed(format!("an alignment of {alignment}")));
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let at = cursor.position() as u64;
            let (name, raw) = read_tensor(&mut cursor, alignment)?;
            if tensors.contains_key(&name) {
                return Err(LoadError::Malformed {
                    at,
                    what: format!("the tensor `{}` a second time", shorten(&name)),
                });
            }
            tensors.insert(name, raw);
        }
        let len = cursor.position();
        let tensors = place(tensors, len as u64, alignment, file.len() as u64)?;
        Ok(Self { metadata, tensors, len })
    }

    /// The mix that the file was made as, else the type that most weights have.
    pub(crate) fn quantization(&self) -> String {
        if let Some(name) = self.metadata.unsigned("general.file_type").and_then(file_type_name) {
            return name.to_owned();
        }
        let mut weights: HashMap<&'static str, usize> = HashMap::new();
        for tensor in self.tensors.values() {
            *weights.entry(tensor.tensor_type.name()).or_default() += tensor.bytes;
        }
        weights.into_iter().max_by_key(|(name, bytes)| (*bytes, *name)).map_or("unknown", |(name, _)| name).to_owned()
    }
}

fn read_version(cursor: &mut Cursor<'_>, file: &[u8]) -> Result<(), LoadError> {
    let magic = &file[..file.len().min(4)];
    if magic != b"GGUF" {
        if b"GGUF".starts_with(magic) {
            return Err(LoadError::Truncated { at: Bytes(file.len() as u64), expected: None });
        }
        return Err(LoadError::NotGguf { found: format!("`{}`", magic.escape_ascii()) });
    }
    cursor.take(4)?;
    match cursor.u32()? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=16) => Err(LoadError::BigEndian),
        version => Err(LoadError::UnsupportedVersion(version)),
    }
}

/// A tensor's entry: `start` is still counted from the beginning of the data.
struct RawTensor {
    shape: Vec<usize>,
    tensor_type: TensorType,
    at: u64,
    start: u64,
    bytes: u64,
}

fn read_tensor(cursor: &mut Cursor<'_>, alignment: u64) -> Result<(String, RawTensor), LoadError> {
    let name = cursor.text()?.to_owned();
    let dimensions = cursor.u32()?;
    if dimensions > MOST_DIMENSIONS {
        return Err(cursor.malformed(format!("a tensor with {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    let mut elements: u64 = 1;
    for _ in 0..dimensions {
        let dimension = cursor.u64()?;
        let product = elements.checked_mul(dimension).filter(|_| dimension > 0);
        elements = product.ok_or_else(|| cursor.malformed(format!("a tensor with a dimension of {dimension}")))?;
        shape.push(usize::try_from(dimension).map_err(|_| cursor.malformed(format!("a dimension of {dimension}")))?);
    }
    let id = cursor.u32()?;
    let Some(tensor_type) = TensorType::from_id(id) else {
        return Err(LoadError::UnsupportedTensorType {
            tensor: shorten(&name),
            tensor_type: TensorType::describe_unknown(id),
        });
    };
    let row = shape.first().copied().unwrap_or(1) as u64;
    if !row.is_multiple_of(tensor_type.block_len()) {
        return Err(cursor.malformed(format!("rows of {row} weights, which {} cannot pack", tensor_type.name())));
    }
    let bytes = (elements / tensor_type.block_len()).checked_mul(tensor_type.block_bytes());
    let bytes = bytes.ok_or_else(|| cursor.malformed("a tensor larger than any file"))?;
    let at = cursor.position() as u64;
    let start = cursor.u64()?;
    if !start.is_multiple_of(alignment) {
        return Err(LoadError::Malformed { at, what: format!("a tensor at offset {start}, which is not aligned") });
    }
    shape.reverse();
    Ok((name, RawTensor { shape, tensor_type, at, start, bytes }))
}

/// Turns offsets into places in the file and makes sure that the file has them all.
fn place(
    raw: HashMap<String, RawTensor>,
    header_end: u64,
    alignment: u64,
    file_len: u64,
) -> Result<HashMap<String, TensorInfo>, LoadError> {
    let data_start = header_end.next_multiple_of(alignment);
    let mut expected = 0;
    let mut tensors = HashMap::new();
    for (name, RawTensor { shape, tensor_type, at, start, bytes }) in raw {
        let start = data_start.checked_add(start);
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(bytes)?))) else {
            return Err(LoadError::Malformed { at, what: "a tensor beyond the end of any file".to_owned() });
        };
        expected = expected.max(end);
        // Whatever doesn't fit in a usize lies beyond the file as well, which is refused below.
        let (start, bytes) =
            (usize::try_from(start).unwrap_or(usize::MAX), usize::try_from(bytes).unwrap_or(usize::MAX));
        tensors.insert(name, TensorInfo { shape, tensor_type, part: 0, start, bytes, change: None });
    }
    if expected > file_len {
        return Err(LoadError::Truncated { at: Bytes(file_len), expected: Some(Bytes(expected)) });
    }
    Ok(tensors)
}

/// Names come from the file and go into messages, which stay readable this way.
pub(crate) fn shorten(name: &str) -> String {
    const MOST_SHOWN: usize = 80;
    if name.chars().count() <= MOST_SHOWN {
        name.to_owned()
    } else {
        name.chars().take(MOST_SHOWN).chain(['…']).collect()
    }
}

//! The header of a safetensors file, <https://github.com/huggingface/safetensors#format>: its length in 8 bytes, then
//! JSON that tells where each tensor lies after it.

use std::collections::HashMap;
use std::fmt;

use chat::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::Change;
use crate::LoadError;
use crate::gguf::{TensorInfo, TensorType, shorten};

/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;
const MOST_DIMENSIONS: usize = 8;
const LENGTH_BYTES: usize = 8;

/// A tensor of a file. It lies inside it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    /// As the file spells it: `BF16`.
    pub(super) dtype: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Which of the files it lies in.
    pub(super) part: usize,
    /// Offset in that file.
    pub(super) start: usize,
    pub(super) bytes: usize,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// All entries in the file's order. serde's own maps would lose a name that comes twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// Where the weights begin in a file that [`parse`] accepted.
pub(super) fn data_start(file: &[u8]) -> usize {
    let length = file.first_chunk::<LENGTH_BYTES>().map_or(0, |length| u64::from_le_bytes(*length));
    // An accepted header is within the file.
    usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LENGTH_BYTES)
}

/// The tensors of a file with the content `file`. Those of a type that isn't known are told, not refused: a model may
/// not use them.
pub(super) fn parse(file: &[u8]) -> Result<HashMap<String, Tensor>, LoadError> {
    let malformed = |what: String| LoadError::Malformed { at: LENGTH_BYTES as u64, what };
    if file.starts_with(b"version https://git-lfs") {
        let what = "it is a Git LFS pointer, not the weights: run `git lfs pull` where it was cloned".to_owned();
        return Err(LoadError::Malformed { at: 0, what });
    }
    let file_len = file.len() as u64;
    let truncated = |expected| LoadError::Truncated { at: Bytes(file_len), expected };
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else { return Err(truncated(None)) };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER {
        return Err(LoadError::Malformed { at: 0, what: format!("a header of {length} bytes") });
    }
    // Below the limit, so it fits.
    let Some(json) = rest.get(..length as usize) else { return Err(truncated(None)) };
    let Entries(entries) =
        serde_json::from_slice(json).map_err(|error| malformed(format!("a header that cannot be read: {error}")))?;
    let data_start = LENGTH_BYTES as u64 + length;
    let mut tensors = HashMap::with_capacity(entries.len());
    let (mut expected, mut places) = (data_start, Vec::with_capacity(entries.len()));
    for (name, Entry { dtype, shape, data_offsets: (start, end) }) in entries {
        let refuse = |what: &str| malformed(format!("tensor `{}` {what}", shorten(&name)));
        if shape.len() > MOST_DIMENSIONS {
            return Err(refuse(&format!("has {} dimensions", shape.len())));
        }
        if shape.contains(&0) {
            return Err(refuse("has a dimension of 0"));
        }
        let elements = shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
        let elements = elements.ok_or_else(|| refuse("is larger than any file"))?;
        let Some(bytes) = end.checked_sub(start) else { return Err(refuse("ends before it begins")) };
        if let Some(tensor_type) = tensor_type(&dtype)
            && elements.checked_mul(tensor_type.block_bytes()) != Some(bytes)
        {
            return Err(refuse(&format!("of shape {shape:?} and type {} has {bytes} bytes", tensor_type.name())));
        }
        let end = data_start.checked_add(end).ok_or_else(|| refuse("lies beyond the end of any file"))?;
        expected = expected.max(end);
        places.push((end - bytes, end));
        // Whatever doesn't fit in a usize lies beyond the file as well, which is refused below.
        let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let shape = shape.into_iter().map(fit).collect();
        let tensor = Tensor { dtype, shape, part: 0, start: fit(end - bytes), bytes: fit(bytes) };
        if tensors.contains_key(&name) {
            return Err(refuse("is there a second time"));
        }
        tensors.insert(name, tensor);
    }
    if expected > file_len {
        return Err(truncated(Some(Bytes(expected))));
    }
    places.sort_unstable();
    match places.windows(2).any(|pair| pair[1].0 < pair[0].1) {
        true => Err(malformed("tensors that lie over each other".to_owned())),
        false => Ok(tensors),
    }
}

fn tensor_type(dtype: &str) -> Option<TensorType> {
    match dtype {
        "F32" => Some(TensorType::F32),
        "F16" => Some(TensorType::F16),
        "BF16" => Some(TensorType::BF16),
        _ => None,
    }
}

impl Tensor {
    /// The tensor as GGUF would have it after `change`; its type where that is none that models compute with.
    pub(super) fn info(&self, change: Option<Change>) -> Result<TensorInfo, &str> {
        let tensor_type = tensor_type(&self.dtype).ok_or(self.dtype.as_str())?;
        let mut shape = self.shape.clone();
        if let (Some(Change::Transposed { .. }), [.., rows, columns]) = (change, shape.as_mut_slice()) {
            std::mem::swap(rows, columns);
        }
        Ok(TensorInfo { shape, tensor_type, part: self.part, start: self.start, bytes: self.bytes, change })
    }
}

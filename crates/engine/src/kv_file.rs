//! The cache of one sequence as a file: what it takes minutes to compute is read back in less than a second.
//!
//! All numbers are little-endian: [`MAGIC`], [`VERSION`] (u32), the fingerprint of the model and of how its caches are
//! stored (32 bytes), the number of tokens (u64) and the tokens (u32 each), the layers, the number of checkpoints (u64)
//! and the checkpoints, and the SHA-256 of all that. Rows of keys and values are their first position, the position
//! after their last (u64 each) and their planes; of everything else only the values are there, since the model's empty
//! cache says what they are. A file is untrusted: whatever isn't as that cache has it is refused before room is made
//! for it.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use candle_core::{DType, Device, Shape, Tensor};
use half::f16;
use kernels::{KvLayer, KvRows};
use sha2::{Digest, Sha256};

use crate::kv_cache::{
    Checkpoint, Compressed, CompressedTail, KvCache, LayerState, MOST_CHECKPOINTS, Recurrent, State,
};
use crate::models::TokenId;

pub(crate) const MAGIC: [u8; 8] = *b"TIDEGKV\0";
pub(crate) const VERSION: u32 = 1;
const CHECKSUM_BYTES: u64 = 32;
/// Values that are turned into bytes at once.
const CHUNK: usize = 16 * 1024;

/// What tells the model and the way its caches are stored from any other.
pub(crate) type Fingerprint = [u8; 32];

/// Why a cache isn't written, or isn't taken from a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvFileError {
    #[error("the file system failed")]
    Io(#[from] io::Error),
    #[error("the device failed")]
    Device(#[from] candle_core::Error),
    /// Of a file: it is another kind of file, of another version or model, or damaged.
    #[error("{0}")]
    Refused(&'static str),
    #[error("it takes more than the {0} bytes that it may")]
    TooLarge(u64),
}

type Result<T> = std::result::Result<T, KvFileError>;

/// Writes the cache of `tokens` to a new file that only this user can read; gives its length, which is at most
/// `most_bytes`. After an error a part of the file may be there.
pub(crate) fn write(
    path: &Path,
    fingerprint: &Fingerprint,
    tokens: &[TokenId],
    cache: &KvCache,
    most_bytes: u64,
) -> Result<u64> {
    if !cache.is_whole() || cache.n_past() != tokens.len() {
        return Err(KvFileError::Refused("the cache is not that of its tokens"));
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let left = most_bytes.saturating_sub(CHECKSUM_BYTES);
    let mut out = Output { file: BufWriter::new(file), hash: Sha256::new(), left, most_bytes };
    out.bytes(&MAGIC)?;
    out.bytes(&VERSION.to_le_bytes())?;
    out.bytes(fingerprint)?;
    out.number(tokens.len())?;
    for chunk in tokens.chunks(CHUNK) {
        out.bytes(&chunk.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>())?;
    }
    for layer in &cache.layers {
        match layer {
            LayerState::Tokens(layer) => out.rows(&layer.rows()?)?,
            LayerState::Recurrent(state) => out.recurrent(state)?,
            LayerState::Compressed(layer) => {
                out.rows(&layer.window.rows()?)?;
                for blocks in &layer.blocks {
                    out.rows(&blocks.inputs.rows()?)?;
                    out.rows(&blocks.keys.rows()?)?;
                }
            }
            LayerState::Nothing => {}
        }
    }
    out.number(cache.checkpoints().len())?;
    for checkpoint in cache.checkpoints() {
        out.number(checkpoint.n_past)?;
        for state in &checkpoint.states {
            match state {
                State::Recurrent(state) => out.recurrent(state)?,
                State::Compressed(tail) => {
                    out.rows(&tail.window)?;
                    tail.inputs.iter().try_for_each(|inputs| out.rows(inputs))?;
                }
            }
        }
    }
    let written = most_bytes - out.left;
    out.file.write_all(&out.hash.finalize())?;
    // Not forced to the disk: what a power cut leaves of it fails its checksum.
    out.file.flush()?;
    Ok(written)
}

/// The tokens of the cache in a file, which may still turn out to be damaged.
pub(crate) fn read_tokens(path: &Path, fingerprint: &Fingerprint) -> Result<Vec<TokenId>> {
    Input::open(path)?.tokens(fingerprint)
}

/// The tokens of a file and their cache, which `empty` becomes: that of the model with this fingerprint.
pub(crate) fn read(path: &Path, fingerprint: &Fingerprint, empty: KvCache) -> Result<(Vec<TokenId>, KvCache)> {
    let mut input = Input::open(path)?;
    let tokens = input.tokens(fingerprint)?;
    let (n_past, mut layers) = (tokens.len(), empty.layers);
    for layer in &mut layers {
        match layer {
            LayerState::Tokens(layer) => input.fill(layer, n_past)?,
            LayerState::Recurrent(state) => *state = input.recurrent(state)?,
            LayerState::Compressed(layer) => {
                input.fill(&mut layer.window, n_past)?;
                for blocks in &mut layer.blocks {
                    input.fill(&mut blocks.inputs, n_past)?;
                    input.fill(&mut blocks.keys, n_past / blocks.shape.len)?;
                }
            }
            LayerState::Nothing => {}
        }
    }
    let checkpoints = input.checkpoints(&layers, n_past)?;
    input.end()?;
    Ok((tokens, KvCache::with_tokens(layers, n_past, checkpoints)))
}

struct Output<W> {
    file: W,
    hash: Sha256,
    /// Bytes that may still be written before the checksum.
    left: u64,
    most_bytes: u64,
}

impl<W: Write> Output<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(KvFileError::TooLarge(self.most_bytes))?;
        self.hash.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    fn number(&mut self, number: usize) -> Result<()> {
        self.bytes(&(number as u64).to_le_bytes())
    }

    fn rows(&mut self, rows: &KvRows) -> Result<()> {
        self.number(rows.start)?;
        self.number(rows.end)?;
        rows.planes.iter().try_for_each(|plane| self.tensor(plane))
    }

    fn recurrent(&mut self, state: &Recurrent) -> Result<()> {
        let is_whole = state.conv.is_some() && state.memory.is_some() == state.shape.memory.is_some();
        if !is_whole {
            return Err(KvFileError::Refused("a recurrent layer has no state yet"));
        }
        [&state.conv, &state.memory].into_iter().flatten().try_for_each(|tensor| self.tensor(tensor))
    }

    fn tensor(&mut self, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.flatten_all()?;
        match tensor.dtype() {
            DType::U8 => self.bytes(&tensor.to_vec1::<u8>()?),
            DType::F16 => self.values(&tensor.to_vec1::<f16>()?, |value| value.to_le_bytes()),
            DType::F32 => self.values(&tensor.to_vec1::<f32>()?, |value| value.to_le_bytes()),
            _ => Err(KvFileError::Refused("keys of a type that has no form in a file")),
        }
    }

    fn values<T: Copy, const N: usize>(&mut self, values: &[T], to_bytes: impl Fn(T) -> [u8; N]) -> Result<()> {
        values
            .chunks(CHUNK)
            .try_for_each(|chunk| self.bytes(&chunk.iter().flat_map(|value| to_bytes(*value)).collect::<Vec<_>>()))
    }
}

struct Input<R> {
    file: R,
    hash: Sha256,
    /// Bytes that are left before the checksum.
    left: u64,
}

impl Input<BufReader<File>> {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let left = file.metadata()?.len().checked_sub(CHECKSUM_BYTES).ok_or(ENDS_EARLY)?;
        Ok(Self { file: BufReader::new(file), hash: Sha256::new(), left })
    }
}

const ENDS_EARLY: KvFileError = KvFileError::Refused("it ends too early");

impl<R: Read> Input<R> {
    /// The next bytes, for which room is made only where the file has them.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        self.left = self.left.checked_sub(len).ok_or(ENDS_EARLY)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| ENDS_EARLY)?];
        self.file.read_exact(&mut bytes)?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes(N as u64)?);
        Ok(array)
    }

    fn number(&mut self) -> Result<usize> {
        let number = u64::from_le_bytes(self.array()?);
        usize::try_from(number).map_err(|_| KvFileError::Refused("a number in it is larger than any memory"))
    }

    fn tokens(&mut self, fingerprint: &Fingerprint) -> Result<Vec<TokenId>> {
        if self.array()? != MAGIC {
            return Err(KvFileError::Refused("it is another kind of file"));
        }
        if u32::from_le_bytes(self.array()?) != VERSION {
            return Err(KvFileError::Refused("it is of another version"));
        }
        if self.array()? != *fingerprint {
            return Err(KvFileError::Refused("it is of another model, or was made in another way"));
        }
        let count = self.number()? as u64;
        let bytes = self.bytes(count.checked_mul(size_of::<TokenId>() as u64).ok_or(ENDS_EARLY)?)?;
        Ok(values(&bytes, TokenId::from_le_bytes))
    }

    fn fill(&mut self, layer: &mut KvLayer, len: usize) -> Result<()> {
        let rows = self.rows(layer, len)?;
        Ok(layer.fill(&rows)?)
    }

    /// Rows of `layer` up to position `end`, with all that the token there sees.
    fn rows(&mut self, layer: &KvLayer, end: usize) -> Result<KvRows> {
        let (start, found_end) = (self.number()?, self.number()?);
        if found_end != end || start > layer.shape().span.first_seen(end).min(end) {
            return Err(KvFileError::Refused("a layer lacks tokens"));
        }
        let planes = if start == end { Vec::new() } else { layer.planes() };
        let tensor = |plane| self.tensor(layer.plane_dims(plane, end - start), plane.dtype, layer.device());
        Ok(KvRows { start, end, planes: planes.into_iter().map(tensor).collect::<Result<_>>()? })
    }

    fn recurrent(&mut self, like: &Recurrent) -> Result<Recurrent> {
        let shape = like.shape;
        let conv = Some(self.tensor(shape.conv, DType::F32, &like.device)?);
        let memory = shape.memory.map(|memory| self.tensor(memory, DType::F32, &like.device)).transpose()?;
        Ok(Recurrent { conv, memory, ..like.clone() })
    }

    fn compressed_tail(&mut self, layer: &Compressed, n_past: usize) -> Result<CompressedTail> {
        let window = self.rows(&layer.window, n_past)?;
        let inputs = layer.blocks.iter().map(|blocks| self.rows(&blocks.inputs, n_past));
        Ok(CompressedTail { window, inputs: inputs.collect::<Result<_>>()? })
    }

    fn checkpoints(&mut self, layers: &[LayerState], n_past: usize) -> Result<Vec<Checkpoint>> {
        let count = self.number()?;
        if count > MOST_CHECKPOINTS {
            return Err(KvFileError::Refused("it has more checkpoints than a cache keeps"));
        }
        let mut checkpoints: Vec<Checkpoint> = Vec::new();
        for _ in 0..count {
            let at = self.number()?;
            if at > n_past || checkpoints.last().is_some_and(|last| at <= last.n_past) {
                return Err(KvFileError::Refused("its checkpoints are out of order"));
            }
            let state = |layer: &LayerState| match layer {
                LayerState::Recurrent(state) => Some(self.recurrent(state).map(State::Recurrent)),
                LayerState::Compressed(layer) => Some(self.compressed_tail(layer, at).map(State::Compressed)),
                LayerState::Tokens(_) | LayerState::Nothing => None,
            };
            let states = layers.iter().filter_map(state).collect::<Result<_>>()?;
            checkpoints.push(Checkpoint { n_past: at, states });
        }
        Ok(checkpoints)
    }

    fn tensor(&mut self, dims: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let dims = dims.into();
        // The number of tokens is the file's, so the product may be anything.
        let bytes =
            dims.dims().iter().try_fold(dtype.size_in_bytes() as u64, |bytes, dim| bytes.checked_mul(*dim as u64));
        let bytes = self.bytes(bytes.ok_or(ENDS_EARLY)?)?;
        match dtype {
            DType::U8 => Ok(Tensor::from_vec(bytes, dims, device)?),
            DType::F16 => Ok(Tensor::from_vec(values(&bytes, f16::from_le_bytes), dims, device)?),
            DType::F32 => Ok(Tensor::from_vec(values(&bytes, f32::from_le_bytes), dims, device)?),
            _ => Err(KvFileError::Refused("keys of a type that has no form in a file")),
        }
    }

    /// Nothing may follow, and the checksum must be that of what was read.
    fn end(mut self) -> Result<()> {
        let mut checksum = [0; CHECKSUM_BYTES as usize];
        if self.left > 0 {
            return Err(KvFileError::Refused("it is longer than it should be"));
        }
        self.file.read_exact(&mut checksum)?;
        if checksum != *self.hash.finalize() {
            return Err(KvFileError::Refused("it is damaged: its checksum is another"));
        }
        Ok(())
    }
}

fn values<T, const N: usize>(bytes: &[u8], from_bytes: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().map(|value| from_bytes(*value)).collect()
}

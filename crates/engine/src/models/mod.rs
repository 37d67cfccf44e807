//! One file per graph. Families that differ only by [`Spec`] share one.

mod linear;
mod llama;

use candle_core::{Device, Tensor};
use chat::Bytes;

use crate::gguf::{Gguf, Weights};
use crate::kv_cache::KvCache;
use crate::spec::Spec;
use crate::{GenerateError, LoadError};

/// The number of a token in the vocabulary.
pub(crate) type TokenId = u32;

/// A model with its weights.
pub(crate) trait Model: Send {
    /// Runs `tokens` at the cache's current position and returns the last position's logits, `(vocabulary)`.
    fn forward(&self, tokens: &[TokenId], cache: &mut KvCache) -> Result<Tensor, GenerateError>;

    /// An empty cache of this model's shape.
    fn new_cache(&self) -> KvCache;
}

/// Loads the model in a file onto `device`.
pub(crate) fn load(
    gguf: &Gguf,
    device: &Device,
    on_progress: &mut dyn FnMut(Bytes, Bytes),
) -> Result<Box<dyn Model>, LoadError> {
    let spec = Spec::read(gguf)?;
    Ok(Box::new(llama::Llama::load(spec, &mut Weights::new(gguf, device, on_progress))?))
}

#[cfg(test)]
mod tests;

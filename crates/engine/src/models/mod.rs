//! The graphs: [`decoder`] for the families that differ by their spec alone, one file for each other architecture, built
//! from the mechanisms in the files beside them.

mod attention;
mod batch;
mod compressed_attention;
mod compressor;
mod decoder;
mod deepseek4;
mod delta_net;
mod experts;
mod feed_forward;
mod hyper_connection;
mod latent;
pub(crate) mod linear;
mod norm;
mod rope;
mod short_conv;

use candle_core::{Device, Tensor};
use chat::Bytes;

pub(crate) use batch::Part;
pub(crate) use compressed_attention::MOST_QUERIES;

use crate::device::KvType;
use crate::gguf::{Gguf, InUse, Weights};
use crate::kv_cache::KvCache;
use crate::spec::ModelSpec;
use crate::{GenerateError, LoadError};

/// The number of a token in the vocabulary.
pub(crate) type TokenId = u32;

/// A model with its weights.
pub(crate) trait Model: Send {
    /// Runs the tokens of each part at its cache's current position, all in one pass over the weights. Gives logits
    /// `(rows, vocabulary)`: of the tokens that get logits, part after part.
    fn forward(&self, parts: &mut [Part<'_>]) -> Result<Tensor, GenerateError>;

    /// An empty cache of this model's shape.
    fn new_cache(&self, kv_type: KvType) -> KvCache;
}

/// A model that was loaded.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn Model>,
    pub(crate) in_use: InUse,
}

/// Loads the model in a file onto `device`.
pub(crate) fn load(
    gguf: &Gguf,
    device: &Device,
    on_progress: &mut dyn FnMut(Bytes, Bytes),
) -> Result<Loaded, LoadError> {
    load_with(ModelSpec::read(gguf)?, gguf, device, on_progress)
}

/// Memory that one step frees is the next one's: by default the allocator gives every large piece back to the system, and
/// the next step would spend a fifth of its time on getting it again. Unloading gives it back.
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        /// The largest that glibc takes from its heap.
        const LARGEST: i32 = 32 << 20;
        #[expect(unsafe_code, reason = "glibc's only way to be told")]
        // SAFETY: `mallopt` takes no pointer, and these two options may be set at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Loads the model in a file with these hyperparameters.
pub(crate) fn load_with(
    spec: ModelSpec,
    gguf: &Gguf,
    device: &Device,
    on_progress: &mut dyn FnMut(Bytes, Bytes),
) -> Result<Loaded, LoadError> {
    keep_freed_memory();
    let mut weights = Weights::new(gguf, device, on_progress);
    let model: Box<dyn Model> = match spec {
        ModelSpec::Decoder(spec) => Box::new(decoder::Decoder::load(spec, &mut weights)?),
        ModelSpec::Deepseek4(spec) => Box::new(deepseek4::Deepseek4::load(spec, &mut weights)?),
    };
    Ok(Loaded { model, in_use: weights.into_in_use() })
}

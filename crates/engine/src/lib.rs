//! Inference: a GGUF file or a folder of safetensors in, a stream of text out.
//!
//! Knows tokens, tensors and files; never HTTP, SQLite, Tauri or settings. Prefill and decode are plain synchronous
//! code on one thread; [`EngineHandle`] is the only async-facing type. Start at [`read_header`] and
//! [`EngineHandle::chat`].

#![warn(missing_docs)]

mod answer;
mod answer_text;
mod bandwidth;
mod condition;
#[cfg(feature = "cuda")]
mod cuda_memory;
mod device;
mod device_fault;
mod draft;
mod error;
mod evaluator;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gain;
mod gguf;
mod handle;
mod header;
mod kv_cache;
mod kv_file;
mod lookup;
mod model_files;
mod model_text;
mod models;
mod relief;
mod rendered;
mod safetensors;
mod sampling;
mod saved_caches;
mod slot;
mod spec;
mod template;
mod tokenizer;
mod told;
mod wiring;
mod worker;

pub use bandwidth::measure_bandwidth;
pub use condition::{Condition, Occupancy};
pub use device::{KvType, computes_on_gpu, device_name, instruction_set};
pub use device_fault::DeviceFault;
pub use error::{GenerateError, LoadError};
pub use evaluator::{EvaluatedSequence, Evaluator, Perplexity, Unwritten};
pub use gguf::PartName;
pub use handle::{ChatStream, Draft, EngineConfig, EngineHandle, LoadSpec, LoadedModel, Unloaded};
pub use header::{Footprint, ModelHeader, read_header};
pub use model_files::model_files;
pub use relief::Guesses;
pub use rendered::{RenderedAnswer, RenderedReader};
pub use safetensors::is_model_folder;
pub use wiring::Wiring;

//! Inference: a GGUF file in, a stream of text out.
//!
//! Knows tokens, tensors and files; never HTTP, SQLite, Tauri or settings. Prefill and decode are plain synchronous
//! code on one thread; [`EngineHandle`] is the only async-facing type. Start at [`read_header`] and
//! [`EngineHandle::chat`].

#![warn(missing_docs)]

mod answer_text;
mod device;
mod error;
mod gguf;
mod handle;
mod header;
mod kv_cache;
mod model_text;
mod models;
mod sampling;
mod slot;
mod spec;
mod template;
mod tokenizer;
mod worker;

pub use device::{computes_on_gpu, device_name};
pub use error::{GenerateError, LoadError};
pub use handle::{ChatStream, EngineConfig, EngineHandle, LoadSpec, LoadedModel};
pub use header::{Footprint, ModelHeader, read_header};

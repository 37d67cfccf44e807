//! Our own reader of GGUF: a header that was downloaded from somewhere is untrusted input, so every read is
//! bounds-checked, every count is capped by what the file could hold, and nothing is allocated that the file is not
//! large enough to justify. Start at [`Gguf::open`].

mod cursor;
mod metadata;
mod parse;
mod tensor_type;
mod weights;

pub(crate) use metadata::Metadata;
pub(crate) use parse::{Gguf, TensorInfo};
pub(crate) use weights::Weights;

#[cfg(test)]
mod tests;

//! Our own reader of GGUF: a header that was downloaded from somewhere is untrusted input, so every read is
//! bounds-checked, every count is capped by what the file could hold, and nothing is allocated that the file is not
//! large enough to justify. Start at [`Gguf::open`].

mod content;
mod cursor;
mod fingerprint;
mod locked;
mod mapped;
mod matrix;
mod metadata;
mod parse;
mod split;
mod tensor_type;
mod weights;

pub(crate) use content::Content;
pub(crate) use fingerprint::{same_vocabulary, vocabulary_name};
pub(crate) use locked::LockedPieces;
pub(crate) use mapped::MappedBytes;
pub(crate) use matrix::Matrix;
pub(crate) use metadata::{Metadata, MetadataWriter};
pub(crate) use parse::{Gguf, Header, Part, TensorInfo, shorten};
pub use split::PartName;
pub(crate) use tensor_type::TensorType;
pub(crate) use weights::{InUse, Weights, expert_name};

#[cfg(test)]
mod quant_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod tests;

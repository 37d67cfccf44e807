//! OpenAI's chat completions and completions, as the engines in the field really speak them.
//!
//! A program's request comes in through [`decode_request`] and is answered with [`ChunkEncoder`] or
//! [`encode_response`]; a node is asked with [`encode_request`], or with
//! [`encode_completion`] to go on with plain text, and understood with [`decode_chunk`] or [`decode_response`]. A program's
//! own request for such comes in through [`decode_text_request`].
//! Programs may also ask in the younger dialect of [`responses`].

mod completion;
mod error;
pub(crate) mod logprobs;
mod models;
mod reply;
pub(crate) mod request;
pub mod responses;
mod text;
pub(crate) mod tools;

pub use completion::{CompletionCall, encode_completion};
pub use error::{ErrorBody, decode_error, encode_error};
pub use models::{ModelEntry, decode_models, encode_models};
pub use reply::{Choices, ChunkEncoder, Piece, ReplyHead, Shape, decode_chunk, decode_response, encode_response};
pub use request::{ChatCall, decode_request, encode_request};
pub use text::{TextCall, decode_text_request};
pub use tools::ToolCallPart;

pub use crate::request_error::RequestError;
pub use crate::whole_answer::WholeAnswer;

/// What came from a node is not what the dialect says it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON at all; the place is where reading stopped.
    #[error("not JSON at line {line}, column {column}")]
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// JSON, but without what belongs there.
    #[error("no {0} in the JSON")]
    Missing(&'static str),
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        Self::NotJson { line: error.line(), column: error.column() }
    }
}

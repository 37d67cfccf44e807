//! Anthropic's Messages, as its own SDKs and Claude Code speak them.
//!
//! A program's request comes in through [`decode_request`] and is answered with [`EventEncoder`] or [`encode_response`];
//! [`decode_count`] and [`encode_count`] are the same for counting its tokens. Shapes are those of the types that
//! Anthropic's SDKs publish (Python 2.12, TypeScript 1.12) and of <https://platform.claude.com/docs/en/api/messages>.

mod block;
mod error;
mod reply;
mod request;
mod stream;
mod tools;

pub use error::{encode_error, error_type};
pub use reply::{MessageHead, encode_count, encode_response};
pub use request::{MessagesCall, decode_count, decode_request};
pub use stream::EventEncoder;

pub use crate::request_error::RequestError;
pub use crate::whole_answer::WholeAnswer;

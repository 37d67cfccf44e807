//! OpenAI's Responses, as its own SDKs and agents speak them, without what lives on OpenAI's servers: no response and no
//! conversation is kept, and every tool is the program's own.
//!
//! A program's request comes in through [`decode_request`] and is answered with [`EventEncoder`] or, whole, with
//! [`Response`]. Shapes are those of the types that OpenAI's SDK publishes (Python 3.54) and of
//! <https://platform.openai.com/docs/api-reference/responses>.

mod item;
mod request;
mod response;
mod stream;

pub use request::{Repeated, ResponsesCall, decode_request};
pub use response::{Response, ResponseHead};
pub use stream::EventEncoder;

//! Ollama's own dialect, as its documentation (`docs/api.md`), its server's types (`api/types.go`) and its official
//! clients for Python (`ollama` 0.6.3, `_types.py`) and JavaScript (`ollama` 0.6.4, `interfaces`) have it.
//!
//! A program's request comes in through [`decode_chat`], [`decode_generate`] or [`decode_show`]; [`ReplyEncoder`] writes
//! the answer to the first two, streamed as lines of JSON or whole. The Python client reads every line as JSON, so a stream never has an empty line, and nothing keeps it alive before the
//! first token. Members that a client leaves empty (`"suffix": ""`) are as if they were not there.

mod models;
mod reply;
mod request;
mod time;

pub use models::{
    Capability, InfoValue, ListedModel, ModelDetails, RunningModel, ShownModel, decode_show, encode_ps, encode_show,
    encode_tags, encode_version,
};
pub use reply::{Endpoint, ReplyEncoder, ReplyHead, encode_load_change};
pub use request::{ChatCall, LoadChange, decode_chat, decode_generate};

use serde_json::json;

/// The body of an error reply, and the line that ends a stream which can't go on: `{"error":"…"}` and a line feed.
pub fn encode_error(message: &str) -> String {
    format!("{}\n", json!({ "error": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(encode_error("model 'x'\nnot found"), "{\"error\":\"model 'x'\\nnot found\"}\n");
    }
}

//! Probabilities of tokens, as chat completions tell them in `choices[].logprobs.content`.

use chat::{ScoredToken, TokenLogprob};
use serde_json::{Value, json};

pub(super) fn encode_logprobs(tokens: &[TokenLogprob]) -> Value {
    json!({ "content": encode_tokens(tokens), "refusal": null })
}

/// One entry for each token.
pub(crate) fn encode_tokens(tokens: &[TokenLogprob]) -> Vec<Value> {
    let scored = |token: &ScoredToken| json!({ "token": String::from_utf8_lossy(&token.bytes), "logprob": token.logprob, "bytes": token.bytes });
    tokens
        .iter()
        .map(|token| {
            let mut entry = scored(&token.drawn);
            entry["top_logprobs"] = token.top.iter().map(scored).collect();
            entry
        })
        .collect()
}

/// Entries that aren't a token with its probability are passed over: mlx_lm has ids instead of texts.
pub(super) fn decode_logprobs(logprobs: &Value) -> Vec<TokenLogprob> {
    let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let entries = list(logprobs, "content");
    let tokens = entries.iter().filter_map(|entry| {
        let top = list(entry, "top_logprobs").iter().filter_map(decode_scored).collect();
        Some(TokenLogprob { drawn: decode_scored(entry)?, top })
    });
    tokens.collect()
}

fn decode_scored(value: &Value) -> Option<ScoredToken> {
    let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
    let bytes = value.get("bytes").and_then(Value::as_array);
    let bytes = bytes.and_then(|bytes| bytes.iter().map(byte).collect::<Option<Vec<u8>>>());
    let text = || value.get("token").and_then(Value::as_str).map(|text| text.as_bytes().to_vec());
    Some(ScoredToken { bytes: bytes.or_else(text)?, logprob: value.get("logprob")?.as_f64()? as f32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_come_back() {
        let scored = |bytes: &[u8], logprob| ScoredToken { bytes: bytes.to_vec(), logprob };
        let tokens = vec![
            TokenLogprob { drawn: scored(b"a", -0.5), top: vec![scored(b"b", -0.25), scored(b"a", -0.5)] },
            TokenLogprob { drawn: scored(&[0xc3], -1.0), top: vec![] },
        ];
        let encoded = encode_logprobs(&tokens);
        assert_eq!(encoded["content"][1]["bytes"], json!([0xc3]));
        assert_eq!(decode_logprobs(&encoded), tokens);
        let without_bytes = json!({ "content": [{ "token": "x", "logprob": -2.0, "bytes": null }, { "id": 7 }, 3] });
        assert_eq!(decode_logprobs(&without_bytes), [TokenLogprob { drawn: scored(b"x", -2.0), top: vec![] }]);
        assert_eq!(decode_logprobs(&Value::Null), []);
    }
}

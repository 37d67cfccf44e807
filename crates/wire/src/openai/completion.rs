use chat::{Redacted, SamplingParams};
use serde_json::{Map, Value, json};

use super::request::insert_sampling;

/// One call of `/v1/completions`: text to go on with, which the server renders into nothing. Its reply is read as a chat's
/// is, by [`decode_chunk`](super::decode_chunk) and [`decode_response`](super::decode_response).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompletionCall {
    /// The model that goes on.
    pub model: String,
    /// The text.
    pub prompt: Redacted<String>,
    /// Names of control tokens that the text must show.
    pub marks: Vec<String>,
    /// How tokens are drawn. Without `max_tokens` many servers stop after 16.
    pub sampling: SamplingParams,
    /// Tell the ids of the tokens, too, as mlx_lm does with their probabilities.
    pub tells_tokens: bool,
    /// The rest is wanted as a stream of events, with token counts at its end.
    pub stream: bool,
}

/// The body of a call. Control tokens are asked for under the words of vLLM and SGLang, which then show all of them, and
/// of llama.cpp, which wants their names.
pub fn encode_completion(call: &CompletionCall) -> Vec<u8> {
    let mut body = Map::new();
    body.insert("model".into(), json!(call.model));
    body.insert("prompt".into(), json!(call.prompt.expose()));
    if !call.marks.is_empty() {
        body.insert("skip_special_tokens".into(), json!(false));
        body.insert("spaces_between_special_tokens".into(), json!(false));
        body.insert("preserved_tokens".into(), json!(call.marks));
    }
    body.insert("stream".into(), json!(call.stream));
    if call.stream {
        body.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    if call.tells_tokens {
        body.insert("logprobs".into(), json!(true));
    }
    insert_sampling(&mut body, &call.sampling);
    Value::Object(body).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_says_what_is_set_and_no_more() {
        let sampling = SamplingParams {
            temperature: Some(0.7),
            max_tokens: Some(5),
            seed: Some(3),
            logit_bias: vec![(151_667, 100.0)],
            ..SamplingParams::default()
        };
        let prompt = Redacted("<|im_start|>user\nHi".to_owned());
        let marks = vec!["</think>".into()];
        let call =
            CompletionCall { model: "m".into(), prompt, marks, sampling, stream: true, ..CompletionCall::default() };
        assert!(!format!("{call:?}").contains("Hi"));
        let expected = json!({
            "model": "m", "prompt": "<|im_start|>user\nHi", "stream": true, "stream_options": { "include_usage": true },
            "skip_special_tokens": false, "spaces_between_special_tokens": false, "preserved_tokens": ["</think>"],
            "temperature": 0.7, "max_tokens": 5, "seed": 3, "logit_bias": { "151667": 100.0 },
        });
        assert_eq!(serde_json::from_slice::<Value>(&encode_completion(&call)).unwrap(), expected);
        let plain = CompletionCall { model: "m".into(), ..CompletionCall::default() };
        let expected = json!({ "model": "m", "prompt": "", "stream": false });
        assert_eq!(serde_json::from_slice::<Value>(&encode_completion(&plain)).unwrap(), expected);
    }
}

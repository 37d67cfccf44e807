//! `/v1/completions` as a program asks: text that is gone on with as it stands.

use chat::{ChatRequest, RawText, Redacted, SamplingParams, TokenLogprob};
use serde_json::{Map, Value, json};

use super::request::{choices, model, sampling, stream_options};
use crate::json::{Object, body_object, flag, integer, member, string, wrong_type};
use crate::request_error::RequestError;

/// What the dialect's own specification says where a call doesn't.
const MOST_TOKENS: usize = 16;
/// Choices of one call, over all its prompts.
const MOST_CHOICES: usize = 64;
/// The most tokens that are told beside each.
const MOST_LOGPROBS: i128 = 5;

/// One call of `/v1/completions`, decoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextCall {
    /// What is asked, once for each prompt.
    pub requests: Vec<ChatRequest>,
    /// So many answers to each.
    pub n: usize,
    /// Each answer begins with its prompt.
    pub echo: bool,
    /// The answers are wanted as a stream of events.
    pub stream: bool,
    /// A stream ends with a chunk that counts tokens.
    pub include_usage: bool,
}

/// Reads the body of a call. Unknown members are ignored; what would change the answer and can't be served (a prompt of
/// token ids, a `best_of` above `n`, probabilities of the prompt) is an error.
pub fn decode_text_request(body: &[u8]) -> Result<TextCall, RequestError> {
    let object = body_object(body)?;
    let n = choices(&object)?;
    if member(&object, "best_of").is_some_and(|best| integer(best) != Some(n as i128)) {
        return Err(RequestError::at("best_of", "answers aren't chosen among: `best_of` must be absent, or as `n`"));
    }
    let echo = flag(&object, "echo", "echo")?;
    let top_logprobs = logprobs(&object)?;
    if echo && top_logprobs.is_some() {
        return Err(RequestError::at(
            "echo",
            "probabilities of the prompt aren't told: leave out `echo` or `logprobs`",
        ));
    }
    let (stream, include_usage) = stream_options(&object)?;
    // Read as in a chat, but for `logprobs`, which is a number here.
    let mut shared = object.clone();
    shared.remove("logprobs");
    let sampling = sampling(&shared)?;
    let sampling = SamplingParams { top_logprobs, max_tokens: most_tokens(&object, sampling.max_tokens), ..sampling };
    let suffix = member(&object, "suffix").map(|suffix| string(suffix, "suffix")).transpose()?;
    let suffix = suffix.filter(|suffix| !suffix.is_empty()).map(Redacted);
    let request = |prefix: String| ChatRequest {
        model: None,
        raw: Some(RawText { prefix: Redacted(prefix), suffix: suffix.clone() }),
        sampling: sampling.clone(),
        ..ChatRequest::default()
    };
    let model = model(&object)?;
    let requests: Vec<ChatRequest> =
        prompts(&object)?.into_iter().map(|prefix| ChatRequest { model: model.clone(), ..request(prefix) }).collect();
    if requests.len().saturating_mul(n) > MOST_CHOICES {
        return Err(RequestError::at("prompt", format!("at most {MOST_CHOICES} answers can be asked for at once")));
    }
    Ok(TextCall { requests, n, echo, stream, include_usage })
}

/// A negative number is how llama.cpp says "no limit".
fn most_tokens(object: &Object, read: Option<usize>) -> Option<usize> {
    let is_said = ["max_tokens", "max_completion_tokens"].iter().any(|name| member(object, name).is_some());
    if is_said { read } else { Some(MOST_TOKENS) }
}

fn prompts(object: &Object) -> Result<Vec<String>, RequestError> {
    let refused =
        || RequestError::at("prompt", "`prompt` must be a string or an array of strings: token ids can't be read");
    match member(object, "prompt") {
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(texts)) if !texts.is_empty() => {
            texts.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(refused)).collect()
        }
        Some(_) => Err(refused()),
        None => Err(RequestError::at("prompt", "`prompt` is missing")),
    }
}

/// How many tokens are to be told beside each; mlx_lm and llama.cpp take a chat's `true`, too.
fn logprobs(object: &Object) -> Result<Option<usize>, RequestError> {
    match member(object, "logprobs") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(0)),
        Some(value) => match integer(value) {
            Some(top @ 0..=MOST_LOGPROBS) => Ok(Some(top as usize)),
            Some(_) => Err(RequestError::at("logprobs", format!("`logprobs` must be between 0 and {MOST_LOGPROBS}"))),
            None => Err(wrong_type("logprobs", "a whole number", value)),
        },
    }
}

/// Probabilities as completions tell them: lists side by side. `offset` is where the first token begins, in characters of
/// the answer, and is moved behind the last.
pub(super) fn encode_text_logprobs(tokens: &[TokenLogprob], offset: &mut usize) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(*offset);
        *offset += text(&token.drawn.bytes).chars().count();
    }
    let top = |token: &TokenLogprob| -> Value {
        let top = token.top.iter().map(|scored| (text(&scored.bytes), json!(scored.logprob)));
        Value::Object(top.collect::<Map<_, _>>())
    };
    json!({
        "tokens": tokens.iter().map(|token| text(&token.drawn.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.drawn.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

#[cfg(test)]
mod tests {
    use chat::ScoredToken;

    use super::*;

    fn read(body: &Value) -> Result<TextCall, RequestError> {
        decode_text_request(body.to_string().as_bytes())
    }

    #[test]
    fn everything_that_is_said_is_read() {
        let call = read(&json!({
            "model": "m", "prompt": ["a", "b"], "suffix": "z", "n": 2, "best_of": 2, "max_tokens": 5, "temperature": 0,
            "logprobs": 3, "stop": ["\n"], "seed": 7, "stream": true, "stream_options": { "include_usage": true },
            "user": "ignored",
        }))
        .unwrap();
        let texts: Vec<_> = call.requests.iter().map(|request| request.raw.clone().unwrap()).collect();
        let text = |prefix: &str| RawText { prefix: prefix.to_owned().into(), suffix: Some("z".to_owned().into()) };
        assert_eq!(texts, [text("a"), text("b")]);
        assert_eq!((call.n, call.echo, call.stream, call.include_usage), (2, false, true, true));
        let expected = SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(5),
            seed: Some(7),
            stop: vec!["\n".into()],
            top_logprobs: Some(3),
            ..SamplingParams::default()
        };
        for request in &call.requests {
            assert_eq!((request.model.as_deref(), &request.sampling), (Some("m"), &expected));
            assert!(request.messages.is_empty());
        }
    }

    #[test]
    fn what_is_not_said_is_what_the_dialect_says() {
        let call = read(&json!({ "prompt": "a", "suffix": null, "logprobs": null })).unwrap();
        assert_eq!(call.requests[0].sampling, SamplingParams { max_tokens: Some(16), ..SamplingParams::default() });
        assert_eq!((call.n, call.requests[0].raw.as_ref().unwrap().suffix.as_ref()), (1, None));
        let call = read(&json!({ "prompt": "a", "max_tokens": -1 })).unwrap();
        assert_eq!(call.requests[0].sampling.max_tokens, None);
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (body, param) in [
            (json!({}), "prompt"),
            (json!({ "prompt": [] }), "prompt"),
            (json!({ "prompt": [1, 2] }), "prompt"),
            (json!({ "prompt": [[1, 2]] }), "prompt"),
            (json!({ "prompt": vec!["a"; 65] }), "prompt"),
            (json!({ "prompt": vec!["a"; 9], "n": 8 }), "prompt"),
            (json!({ "prompt": "a", "best_of": 2 }), "best_of"),
            (json!({ "prompt": "a", "logprobs": 6 }), "logprobs"),
            (json!({ "prompt": "a", "logprobs": "x" }), "logprobs"),
            (json!({ "prompt": "a", "logprobs": 1, "echo": true }), "echo"),
            (json!({ "prompt": "a", "suffix": 3 }), "suffix"),
            (json!({ "prompt": "a", "n": 0 }), "n"),
        ] {
            assert_eq!(read(&body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn probabilities_stand_beside_their_tokens() {
        let scored = |text: &str, logprob| ScoredToken { bytes: text.as_bytes().to_vec(), logprob };
        let token = |text, top: &[&str]| TokenLogprob {
            drawn: scored(text, -0.5),
            top: top.iter().map(|text| scored(text, -0.25)).collect(),
        };
        let mut offset = 3;
        let told = encode_text_logprobs(&[token("ü ", &["x"]), token("y", &[])], &mut offset);
        let expected = json!({
            "tokens": ["ü ", "y"], "token_logprobs": [-0.5, -0.5], "top_logprobs": [{ "x": -0.25 }, {}],
            "text_offset": [3, 5],
        });
        assert_eq!((told, offset), (expected, 6));
    }
}

use std::time::Duration;

use chat::Redacted;
use serde_json::{Value, json};

use super::reply::nanos;
use super::request::{flag, model, optional};
use crate::json::{body_object, count, member, string, wrong_type};
use crate::request_error::RequestError;

/// One call of `/api/embed` or `/api/embeddings`, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedCall {
    /// The model that embeds.
    pub model: Option<String>,
    /// The texts. Where there are none, the model is to be loaded and the answer has no embedding.
    pub input: Vec<Redacted<String>>,
    /// A text that is too long is cut off; else it is an error.
    pub truncate: bool,
    /// The first so many numbers of each embedding are wanted; `None` is all of them.
    pub dimensions: Option<usize>,
}

/// The answer to a call of `/api/embed`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmbedReply {
    /// The model, under the name that the call gave it.
    pub model: String,
    /// One for each text, in the same order.
    pub embeddings: Vec<Vec<f32>>,
    /// From the call to the answer.
    pub total: Duration,
    /// Of that, until the model was in memory.
    pub load: Duration,
    /// Tokens of all texts.
    pub prompt_tokens: usize,
}

/// Reads the body of a call of `/api/embed`: `input` is a text or a list of texts.
pub fn decode_embed(body: &[u8]) -> Result<EmbedCall, RequestError> {
    let object = body_object(body)?;
    let input = match member(&object, "input") {
        None => Vec::new(),
        Some(Value::String(text)) => one(text.clone()),
        Some(Value::Array(list)) => {
            let text = |(index, value)| string(value, &format!("input[{index}]")).map(Redacted);
            list.iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type("input", "a string or an array of strings", other)),
    };
    let dimensions = member(&object, "dimensions").map(|value| {
        let refused = || RequestError::at("dimensions", "`dimensions` must be a whole number, at least 0");
        count(Some(value)).ok_or_else(refused)
    });
    Ok(EmbedCall {
        model: model(&object)?,
        input,
        truncate: flag(&object, "truncate")?.unwrap_or(true),
        // 0 is how a Go program leaves it out.
        dimensions: dimensions.transpose()?.filter(|&count| count > 0),
    })
}

/// Reads the body of a call of `/api/embeddings`, the older form for one text: `prompt`.
pub fn decode_embeddings(body: &[u8]) -> Result<EmbedCall, RequestError> {
    let object = body_object(body)?;
    let input = one(optional(&object, "prompt")?);
    Ok(EmbedCall { model: model(&object)?, input, truncate: true, dimensions: None })
}

/// The body of the answer to a call of `/api/embed`.
pub fn encode_embed(reply: &EmbedReply) -> Vec<u8> {
    let embeddings: Vec<Value> = reply.embeddings.iter().map(|embedding| numbers(embedding)).collect();
    json!({
        "model": reply.model,
        "embeddings": embeddings,
        "total_duration": nanos(reply.total),
        "load_duration": nanos(reply.load),
        "prompt_eval_count": reply.prompt_tokens,
    })
    .to_string()
    .into_bytes()
}

/// The body of the answer to a call of `/api/embeddings`; without a text, of no numbers.
pub fn encode_embeddings(embedding: &[f32]) -> Vec<u8> {
    json!({ "embedding": numbers(embedding) }).to_string().into_bytes()
}

fn one(text: String) -> Vec<Redacted<String>> {
    if text.is_empty() { Vec::new() } else { vec![Redacted(text)] }
}

/// An `f32` widens to an `f64` exactly, so a program that reads an `f32` has the same number.
fn numbers(embedding: &[f32]) -> Value {
    embedding.iter().map(|&number| Value::from(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read() {
        let inputs = |body: &str| decode_embed(body.as_bytes()).unwrap().input;
        assert_eq!(inputs(r#"{"model":"m","input":"a"}"#), [Redacted("a".to_owned())]);
        assert_eq!(inputs(r#"{"model":"m","input":["a",""]}"#), [Redacted("a".to_owned()), Redacted(String::new())]);
        for nothing in ["{}", r#"{"input":""}"#, r#"{"input":[]}"#, r#"{"input":null}"#] {
            assert!(inputs(nothing).is_empty(), "{nothing}");
        }
        let call = decode_embed(br#"{"model":"m","input":"a","truncate":false,"dimensions":64,"keep_alive":"5m"}"#);
        let call = call.unwrap();
        assert_eq!((call.model.as_deref(), call.truncate, call.dimensions), (Some("m"), false, Some(64)));
        let call = decode_embed(br#"{"dimensions":0}"#).unwrap();
        assert_eq!((call.model, call.truncate, call.dimensions), (None, true, None));
        let older = decode_embeddings(br#"{"model":"m","prompt":"a"}"#).unwrap();
        assert_eq!(older.input, [Redacted("a".to_owned())]);
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for (body, param) in [
            (r#"{"input":3}"#, "input"),
            (r#"{"input":["a",[1]]}"#, "input[1]"),
            (r#"{"input":"a","truncate":1}"#, "truncate"),
            (r#"{"input":"a","dimensions":-1}"#, "dimensions"),
        ] {
            assert_eq!(decode_embed(body.as_bytes()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        assert_eq!(decode_embeddings(br#"{"prompt":[]}"#).unwrap_err().param.as_deref(), Some("prompt"));
    }

    #[test]
    fn answers_are_word_for_word() {
        let reply = EmbedReply {
            model: "m".into(),
            embeddings: vec![vec![0.5, -2.0], vec![f32::NAN, 0.25]],
            total: Duration::from_millis(3),
            load: Duration::from_micros(1),
            prompt_tokens: 8,
        };
        assert_eq!(
            String::from_utf8(encode_embed(&reply)).unwrap(),
            r#"{"model":"m","embeddings":[[0.5,-2.0],[null,0.25]],"total_duration":3000000,"load_duration":1000,"prompt_eval_count":8}"#
        );
        assert_eq!(encode_embeddings(&[0.5]), br#"{"embedding":[0.5]}"#);
        assert_eq!(encode_embeddings(&[]), br#"{"embedding":[]}"#);
    }
}

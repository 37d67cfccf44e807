use std::time::Duration;

use chat::{ChatEvent, Finish, FinishReason, Progress, Timings, TokenLogprob, Usage};
use serde_json::{Map, Value, json};

use super::DecodeError;
use super::error::{ErrorBody, error_in, error_json};
use super::logprobs::{decode_logprobs, encode_logprobs};
use super::tools::{ToolCallPart, encode_tool_call, parts_of};
use crate::json::{count, member};
use crate::sse;
use crate::whole_answer::WholeAnswer;

/// What every chunk of one answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    /// Names this answer: `chatcmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: String,
}

/// Writes one answer as a stream of events, ready to be sent.
#[derive(Clone, Debug)]
pub struct ChunkEncoder {
    head: ReplyHead,
    include_usage: bool,
    has_started: bool,
    has_calls: bool,
    /// Tokens that go with the next text: how many came before them, and their ids.
    tokens: Option<(usize, Vec<u32>)>,
    /// Of the tokens that the next text is made of.
    logprobs: Vec<TokenLogprob>,
}

impl ChunkEncoder {
    /// An encoder for one answer; `include_usage` as the request's `stream_options` say.
    pub fn new(head: ReplyHead, include_usage: bool) -> Self {
        Self { head, include_usage, has_started: false, has_calls: false, tokens: None, logprobs: Vec::new() }
    }

    /// The bytes for one event. Progress becomes a comment, which keeps the connection alive and which every client
    /// passes over. `Finished` also writes the usage, where it is wanted, and the end mark.
    pub fn encode(&mut self, event: &ChatEvent) -> String {
        match event {
            ChatEvent::Progress(progress) => sse::encode_comment(&progress_words(*progress)),
            ChatEvent::Text(text) => self.delta("content", json!(text)),
            ChatEvent::Thinking(text) => self.delta("reasoning_content", json!(text)),
            ChatEvent::ToolCall { index, call } => {
                self.has_calls = true;
                let mut call = encode_tool_call(call);
                call["index"] = json!(index);
                self.delta("tool_calls", json!([call]))
            }
            ChatEvent::Logprobs(tokens) => {
                self.logprobs.extend_from_slice(tokens);
                String::new()
            }
            ChatEvent::Tokens { from, ids } => {
                let (first, known) = self.tokens.get_or_insert((*from, Vec::new()));
                known.truncate(from.saturating_sub(*first));
                known.extend(ids);
                *first = (*first).min(*from);
                String::new()
            }
            ChatEvent::Finished(finish) => self.end(finish),
        }
    }

    /// The bytes that end a stream which can't go on; no end mark follows, so that nobody takes the answer for whole.
    pub fn encode_error(&self, error: &ErrorBody) -> String {
        sse::encode_data(&error_json(error).to_string())
    }

    fn delta(&mut self, name: &str, value: Value) -> String {
        let mut delta = Map::new();
        if !self.has_started {
            self.has_started = true;
            delta.insert("role".into(), json!("assistant"));
        }
        delta.insert(name.into(), value);
        let mut chunk = self.chunk(&delta, None);
        self.add_told(&mut chunk);
        sse::encode_data(&chunk.to_string())
    }

    fn end(&mut self, finish: &Finish) -> String {
        let mut out = String::new();
        if !self.has_started {
            out.push_str(&self.delta("content", json!("")));
        }
        let mut last = self.chunk(&Map::new(), Some(finish.reason));
        self.add_told(&mut last);
        if let Some(timings) = timings_json(finish) {
            last["timings"] = timings;
        }
        out.push_str(&sse::encode_data(&last.to_string()));
        if let (true, Some(usage)) = (self.include_usage, finish.usage) {
            let mut chunk = self.head_json("chat.completion.chunk");
            chunk["choices"] = json!([]);
            chunk["usage"] = usage_json(usage);
            out.push_str(&sse::encode_data(&chunk.to_string()));
        }
        out.push_str(&sse::encode_data(sse::DONE));
        out
    }

    /// What was told of the tokens since the last chunk.
    fn add_told(&mut self, chunk: &mut Value) {
        if let Some((from, ids)) = self.tokens.take() {
            chunk["choices"][0]["token_ids"] = json!(ids);
            chunk["choices"][0]["token_offset"] = json!(from);
        }
        if !self.logprobs.is_empty() {
            chunk["choices"][0]["logprobs"] = encode_logprobs(&std::mem::take(&mut self.logprobs));
        }
    }

    fn chunk(&self, delta: &Map<String, Value>, reason: Option<FinishReason>) -> Value {
        let mut chunk = self.head_json("chat.completion.chunk");
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": reason.map(|reason| reason_word(reason, self.has_calls)) }]);
        chunk
    }

    fn head_json(&self, object: &str) -> Value {
        head_json(&self.head, object)
    }
}

/// The body of an answer that was not wanted as a stream.
pub fn encode_response(head: &ReplyHead, answer: &WholeAnswer, finish: &Finish) -> Vec<u8> {
    let WholeAnswer { text, thinking, calls, logprobs } = answer;
    let mut message = json!({ "role": "assistant", "content": text });
    if !calls.is_empty() {
        message["tool_calls"] = calls.iter().map(encode_tool_call).collect();
    }
    if !thinking.is_empty() {
        message["reasoning_content"] = json!(thinking);
    }
    let mut body = head_json(head, "chat.completion");
    body["choices"] =
        json!([{ "index": 0, "message": message, "finish_reason": reason_word(finish.reason, !calls.is_empty()) }]);
    if !logprobs.is_empty() {
        body["choices"][0]["logprobs"] = encode_logprobs(logprobs);
    }
    if let Some(usage) = finish.usage {
        body["usage"] = usage_json(usage);
    }
    if let Some(timings) = timings_json(finish) {
        body["timings"] = timings;
    }
    body.to_string().into_bytes()
}

/// What one chunk of a stream, or one whole response, says. Everything may be absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text of the answer, to be appended; not empty.
    pub text: Option<String>,
    /// Text of the model's thinking, to be appended; not empty.
    pub thinking: Option<String>,
    /// Parts of the calls that the model asks for.
    pub tool_calls: Vec<ToolCallPart>,
    /// Ids of the tokens that the text is made of, where the request asks for them.
    pub tokens: Vec<u32>,
    /// How many tokens of the answer come before them. Only Tidegate tells; with others they follow those before.
    pub token_offset: Option<usize>,
    /// How probable these were, where the request asks for it.
    pub logprobs: Vec<TokenLogprob>,
    /// Why the answer ended, in the last chunk that has a choice.
    pub finish: Option<FinishReason>,
    /// Tokens, often in a chunk of their own after the end.
    pub usage: Option<Usage>,
    /// How fast the server says it was. Only Tidegate tells the `ttft`.
    pub timings: Option<Timings>,
    /// The server failed in mid-stream.
    pub error: Option<ErrorBody>,
}

/// Reads the data of one event of a stream; [`sse::DONE`] is the caller's to look for.
pub fn decode_chunk(data: &str) -> Result<Piece, DecodeError> {
    piece(&serde_json::from_str(data)?)
}

/// Reads a whole response. An error that a server sent with status 200 is in [`Piece::error`].
pub fn decode_response(body: &[u8]) -> Result<Piece, DecodeError> {
    let piece = piece(&serde_json::from_slice(body)?)?;
    let is_empty = piece.text.is_none() && piece.thinking.is_none() && piece.tool_calls.is_empty();
    if piece.finish.is_none() && piece.error.is_none() && is_empty {
        return Err(DecodeError::Missing("choice"));
    }
    Ok(piece)
}

fn piece(value: &Value) -> Result<Piece, DecodeError> {
    let object = value.as_object().ok_or(DecodeError::Missing("object"))?;
    if let Some(error) = error_in(value) {
        return Ok(Piece { error: Some(error), ..Piece::default() });
    }
    let mut piece = Piece {
        usage: member(object, "usage").and_then(decode_usage),
        timings: member(object, "timings").and_then(decode_timings),
        ..Piece::default()
    };
    let choices = member(object, "choices").and_then(Value::as_array);
    if choices.is_none() && piece.usage.is_none() && piece.timings.is_none() {
        return Err(DecodeError::Missing("choices"));
    }
    // Only one answer is ever asked for; a server that sends more is read as far as the first.
    let is_first = |choice: &&Value| choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0;
    let Some(choice) = choices.and_then(|list| list.iter().find(is_first)) else { return Ok(piece) };
    let part = choice.get("delta").or_else(|| choice.get("message"));
    let text = |name: &str| {
        let text = part.and_then(|part| part.get(name)).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    // The rest of a text, where that was asked for, stands in the choice itself.
    let rest = || member_of(choice, "text").and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    piece.text = text("content").or_else(rest);
    // llama.cpp, SGLang and DeepSeek say `reasoning_content`; vLLM, mlx_lm, Ollama and LM Studio `reasoning`; some both.
    piece.thinking = text("reasoning_content").or_else(|| text("reasoning"));
    piece.tool_calls = part.map(parts_of).unwrap_or_default();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = member_of(choice, "token_ids").and_then(Value::as_array);
    let ids = ids.map(|ids| ids.iter().map(id).collect::<Option<Vec<u32>>>());
    // mlx_lm tells them with their probabilities.
    let scored = choice.pointer("/logprobs/content").and_then(Value::as_array);
    let scored = || scored.map(|tokens| tokens.iter().map(|token| id(token.get("id")?)).collect());
    // One that is no token makes the others useless.
    piece.tokens = ids.or_else(scored).flatten().unwrap_or_default();
    piece.token_offset =
        member_of(choice, "token_offset").and_then(Value::as_u64).and_then(|from| usize::try_from(from).ok());
    piece.logprobs = choice.get("logprobs").map(decode_logprobs).unwrap_or_default();
    piece.finish = choice.get("finish_reason").and_then(Value::as_str).and_then(reason_of);
    Ok(piece)
}

fn member_of<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.as_object().and_then(|object| member(object, name))
}

fn reason_word(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_calls => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        // The dialect has no word for it; a node that is read by us tells that its answer is not whole.
        FinishReason::Cancelled => "cancelled",
    }
}

/// `None` for the empty word that some servers put into every chunk. Words we don't know end an answer like any other.
fn reason_of(word: &str) -> Option<FinishReason> {
    match word {
        "" => None,
        "length" | "max_tokens" => Some(FinishReason::Length),
        "cancelled" | "abort" | "aborted" => Some(FinishReason::Cancelled),
        _ => Some(FinishReason::Stop),
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

fn decode_usage(value: &Value) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: count(value.get("prompt_tokens"))?,
        cached_tokens: count(value.pointer("/prompt_tokens_details/cached_tokens")).unwrap_or(0),
        completion_tokens: count(value.get("completion_tokens"))?,
    })
}

/// Timings in llama.cpp's words, and `ttft_ms` for which it has none.
fn timings_json(finish: &Finish) -> Option<Value> {
    let mut timings = Map::new();
    let mut set = |name: &str, value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            timings.insert(name.into(), json!(value));
        }
    };
    set("ttft_ms", finish.timings.ttft.map(|ttft| ttft.as_secs_f64() * 1000.0));
    set("prompt_per_second", finish.timings.prefill_tokens_per_sec);
    set("predicted_per_second", finish.timings.decode_tokens_per_sec);
    set("draft_n_accepted", (finish.timings.guessed_tokens > 0).then_some(finish.timings.guessed_tokens as f64));
    (!timings.is_empty()).then_some(Value::Object(timings))
}

fn decode_timings(value: &Value) -> Option<Timings> {
    let number = |name: &str| value.get(name).and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0);
    let timings = Timings {
        ttft: number("ttft_ms").and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()),
        prefill_tokens_per_sec: number("prompt_per_second"),
        decode_tokens_per_sec: number("predicted_per_second"),
        guessed_tokens: number("draft_n_accepted").map_or(0, |count| count as usize),
    };
    (timings != Timings::default()).then_some(timings)
}

pub(super) fn progress_words(progress: Progress) -> String {
    match progress {
        Progress::Loading { done, total } => format!("loading {}/{}", done.0, total.0),
        Progress::Waiting { ahead } => format!("waiting {ahead}"),
        Progress::Prefill { done, total } => format!("prefill {done}/{total}"),
    }
}

fn head_json(head: &ReplyHead, object: &str) -> Value {
    json!({ "id": head.id, "object": object, "created": head.created, "model": head.model })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(data: &str, expected: &Piece) {
        assert_eq!(&decode_chunk(data).unwrap(), expected, "{data}");
    }

    #[test]
    fn chunks_of_many_servers_are_read() {
        let text = |text: &str| Piece { text: Some(text.into()), ..Piece::default() };
        check(r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#, &text("a"));
        check(r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":""}],"usage":null}"#, &Piece::default());
        check(
            r#"{"choices":[{"index":1,"delta":{"content":"other"}},{"index":0,"delta":{"content":"x"}}]}"#,
            &text("x"),
        );
        check(r#"{"choices":[]}"#, &Piece::default());
        check(r#"{"object":"text_completion","choices":[{"text":" x","index":0,"finish_reason":null}]}"#, &text(" x"));
        let last = Piece { finish: Some(FinishReason::Length), ..Piece::default() };
        check(r#"{"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}"#, &last);
        let thinking = Piece { thinking: Some("hm".into()), ..Piece::default() };
        check(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, &thinking);
        check(r#"{"choices":[{"delta":{"reasoning":"hm","content":null}}]}"#, &thinking);
        check(r#"{"choices":[{"delta":{"reasoning":"hm","reasoning_content":"hm"}}]}"#, &thinking);
        for (word, reason) in [
            ("stop", FinishReason::Stop),
            ("length", FinishReason::Length),
            ("eos", FinishReason::Stop),
            ("abort", FinishReason::Cancelled),
        ] {
            let data = format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"{word}"}}]}}"#);
            check(&data, &Piece { finish: Some(reason), ..Piece::default() });
        }
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 2 };
        let data = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        check(data, &Piece { usage: Some(usage), ..Piece::default() });
        let data = r#"{"choices":[],"timings":{"prompt_n":1,"prompt_per_second":100.5,"predicted_per_second":20.0}}"#;
        let timings =
            Timings { prefill_tokens_per_sec: Some(100.5), decode_tokens_per_sec: Some(20.0), ..Timings::default() };
        check(data, &Piece { timings: Some(timings), ..Piece::default() });
        let failed = decode_chunk(r#"{"error":{"message":"out of memory","code":500}}"#).unwrap();
        assert_eq!(failed.error.unwrap().message, "out of memory");
    }

    #[test]
    fn tokens_go_with_the_text_that_they_make() {
        let mut encoder = ChunkEncoder::new(ReplyHead { id: "a".into(), created: 1, model: "m".into() }, false);
        let tokens = |from, ids: &[u32]| ChatEvent::Tokens { from, ids: ids.to_vec() };
        let read = |data: &str| decode_chunk(data.trim().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(encoder.encode(&tokens(0, &[1, 2])), "");
        assert_eq!(encoder.encode(&tokens(2, &[3])), "");
        let piece = read(&encoder.encode(&ChatEvent::Text("ü".into())));
        assert_eq!(
            piece,
            Piece { text: Some("ü".into()), tokens: vec![1, 2, 3], token_offset: Some(0), ..Piece::default() }
        );
        let piece = read(&encoder.encode(&ChatEvent::Text("!".into())));
        assert_eq!((piece.tokens, piece.token_offset), (vec![], None));
        encoder.encode(&tokens(3, &[4, 5]));
        encoder.encode(&tokens(4, &[6]));
        let end = encoder.encode(&ChatEvent::Finished(Finish {
            reason: FinishReason::Stop,
            usage: None,
            timings: Timings::default(),
        }));
        let piece = read(end.lines().next().unwrap());
        assert_eq!((piece.tokens, piece.token_offset), (vec![4, 6], Some(3)));
        // vLLM's, and what is none.
        let ids = |list: &str| {
            decode_chunk(&format!(r#"{{"choices":[{{"delta":{{}},"token_ids":{list}}}]}}"#)).unwrap().tokens
        };
        let scored =
            r#"{"choices":[{"text":"a","logprobs":{"content":[{"id":7,"logprob":-0.5},{"id":9,"logprob":-1}]}}]}"#;
        assert_eq!(decode_chunk(scored).unwrap().tokens, [7, 9]);
        assert_eq!([ids("[7,8]"), ids("[7,-8]"), ids("null"), ids("7")], [vec![7, 8], vec![], vec![], vec![]]);
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        assert_eq!(decode_chunk("{}"), Err(DecodeError::Missing("choices")));
        assert_eq!(decode_chunk("[1]"), Err(DecodeError::Missing("object")));
        assert!(matches!(decode_chunk("[DONE]"), Err(DecodeError::NotJson { .. })));
        assert_eq!(decode_response(br#"{"choices":[]}"#), Err(DecodeError::Missing("choice")));
    }
}

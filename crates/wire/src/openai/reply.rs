use std::time::Duration;

use chat::{ChatEvent, Finish, FinishReason, Progress, Timings, TokenLogprob, Usage};
use serde_json::{Map, Value, json};

use super::DecodeError;
use super::error::{ErrorBody, error_in, error_json};
use super::logprobs::{decode_logprobs, encode_logprobs};
use super::text::encode_text_logprobs;
use super::tools::{ToolCallPart, encode_tool_call, parts_of};
use crate::json::{count, member};
use crate::sse;
use crate::whole_answer::WholeAnswer;

/// What every chunk of one answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    /// Names this answer: `chatcmpl-…`, or `cmpl-…` for text.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: String,
}

/// Which call a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `/v1/chat/completions`: messages.
    Chat,
    /// `/v1/completions`: text.
    Text,
}

/// What a call asks for: so many answers to each of its prompts. They are counted prompt by prompt, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// In which shape they are told.
    pub shape: Shape,
    /// Prompts of the call.
    pub prompts: usize,
    /// Answers to each.
    pub n: usize,
}

impl Choices {
    /// One answer to a chat, which is what most ask for.
    pub const CHAT: Self = Self { shape: Shape::Chat, prompts: 1, n: 1 };

    /// Tokens of all answers; a prompt is counted once, however many answers it has. `None` where one isn't told.
    fn usage(self, finishes: &[Option<Finish>]) -> Option<Usage> {
        let mut sum = Usage::default();
        for (index, finish) in finishes.iter().enumerate() {
            let usage = finish.as_ref()?.usage?;
            sum.completion_tokens += usage.completion_tokens;
            if index % self.n == 0 {
                sum.prompt_tokens += usage.prompt_tokens;
                sum.cached_tokens += usage.cached_tokens;
            }
        }
        Some(sum)
    }
}

/// Writes the answers of one call as a stream of events, ready to be sent.
#[derive(Clone, Debug)]
pub struct ChunkEncoder {
    head: ReplyHead,
    include_usage: bool,
    choices: Choices,
    states: Vec<ChoiceState>,
    finishes: Vec<Option<Finish>>,
}

/// How far one answer is told.
#[derive(Clone, Debug, Default)]
struct ChoiceState {
    has_started: bool,
    has_calls: bool,
    /// Tokens that go with the next text: how many came before them, and their ids.
    tokens: Option<(usize, Vec<u32>)>,
    /// Of the tokens that the next text is made of.
    logprobs: Vec<TokenLogprob>,
    /// Characters of the tokens whose probabilities were told.
    offset: usize,
}

impl ChunkEncoder {
    /// An encoder for one answer to a chat; `include_usage` as the request's `stream_options` say.
    pub fn new(head: ReplyHead, include_usage: bool) -> Self {
        Self::with_choices(head, include_usage, Choices::CHAT)
    }

    /// An encoder for several, or for another call.
    pub fn with_choices(head: ReplyHead, include_usage: bool, choices: Choices) -> Self {
        let count = choices.prompts * choices.n;
        let (states, finishes) = (vec![ChoiceState::default(); count], vec![None; count]);
        Self { head, include_usage, choices, states, finishes }
    }

    /// [`Self::encode_choice`] of the only answer.
    pub fn encode(&mut self, event: &ChatEvent) -> String {
        self.encode_choice(0, event)
    }

    /// The bytes for one event of that answer. Progress becomes a comment, which keeps the connection alive and which every
    /// client passes over. The last `Finished` also writes the usage, where it is wanted, and the end mark.
    pub fn encode_choice(&mut self, choice: usize, event: &ChatEvent) -> String {
        let state = &mut self.states[choice];
        match event {
            ChatEvent::Progress(progress) => sse::encode_comment(&progress_words(*progress)),
            ChatEvent::Text(text) => self.delta(choice, "content", json!(text)),
            ChatEvent::Thinking(text) => self.delta(choice, "reasoning_content", json!(text)),
            ChatEvent::ToolCall { index, call } => {
                state.has_calls = true;
                let mut call = encode_tool_call(call);
                call["index"] = json!(index);
                self.delta(choice, "tool_calls", json!([call]))
            }
            ChatEvent::Logprobs(tokens) => {
                state.logprobs.extend_from_slice(tokens);
                String::new()
            }
            ChatEvent::Tokens { from, ids } => {
                let (first, known) = state.tokens.get_or_insert((*from, Vec::new()));
                known.truncate(from.saturating_sub(*first));
                known.extend(ids);
                *first = (*first).min(*from);
                String::new()
            }
            ChatEvent::Finished(finish) => self.end(choice, finish),
        }
    }

    /// The bytes that end a stream which can't go on; no end mark follows, so that nobody takes the answer for whole.
    pub fn encode_error(&self, error: &ErrorBody) -> String {
        sse::encode_data(&error_json(error).to_string())
    }

    fn delta(&mut self, choice: usize, name: &str, value: Value) -> String {
        let mut delta = Map::new();
        if !std::mem::replace(&mut self.states[choice].has_started, true) {
            delta.insert("role".into(), json!("assistant"));
        }
        delta.insert(name.into(), value);
        sse::encode_data(&self.chunk(choice, delta, None).to_string())
    }

    fn end(&mut self, choice: usize, finish: &Finish) -> String {
        let mut out = String::new();
        if !self.states[choice].has_started {
            out.push_str(&self.delta(choice, "content", json!("")));
        }
        let mut last = self.chunk(choice, Map::new(), Some(finish.reason));
        if let Some(timings) = timings_json(finish) {
            last["timings"] = timings;
        }
        out.push_str(&sse::encode_data(&last.to_string()));
        self.finishes[choice] = Some(*finish);
        if self.finishes.contains(&None) {
            return out;
        }
        if let (true, Some(usage)) = (self.include_usage, self.choices.usage(&self.finishes)) {
            let mut chunk = head_json(&self.head, self.object());
            chunk["choices"] = json!([]);
            chunk["usage"] = usage_json(usage);
            out.push_str(&sse::encode_data(&chunk.to_string()));
        }
        out.push_str(&sse::encode_data(sse::DONE));
        out
    }

    fn object(&self) -> &'static str {
        match self.choices.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Text => "text_completion",
        }
    }

    /// A chunk of that answer, with what was told of its tokens since the last one.
    fn chunk(&mut self, choice: usize, mut delta: Map<String, Value>, reason: Option<FinishReason>) -> Value {
        let mut body = head_json(&self.head, self.object());
        let (state, shape) = (&mut self.states[choice], self.choices.shape);
        let reason = reason.map(|reason| reason_word(reason, state.has_calls));
        let mut told = match shape {
            Shape::Chat => json!({ "index": choice, "delta": delta, "finish_reason": reason }),
            Shape::Text => {
                let text = delta.remove("content").unwrap_or_else(|| json!(""));
                json!({ "index": choice, "text": text, "logprobs": null, "finish_reason": reason })
            }
        };
        if let Some((from, ids)) = state.tokens.take() {
            told["token_ids"] = json!(ids);
            told["token_offset"] = json!(from);
        }
        if !state.logprobs.is_empty() {
            let tokens = std::mem::take(&mut state.logprobs);
            told["logprobs"] = logprobs_json(shape, &tokens, &mut state.offset);
        }
        body["choices"] = json!([told]);
        body
    }
}

fn logprobs_json(shape: Shape, tokens: &[TokenLogprob], offset: &mut usize) -> Value {
    match shape {
        Shape::Chat => encode_logprobs(tokens),
        Shape::Text => encode_text_logprobs(tokens, offset),
    }
}

/// The body of answers that were not wanted as a stream, one or more.
pub fn encode_response(head: &ReplyHead, choices: Choices, answers: &[(WholeAnswer, Finish)]) -> Vec<u8> {
    let told = |(index, (answer, finish)): (usize, &(WholeAnswer, Finish))| {
        let WholeAnswer { text, thinking, calls, logprobs } = answer;
        let reason = reason_word(finish.reason, !calls.is_empty());
        let mut told = match choices.shape {
            Shape::Text => json!({ "index": index, "text": text, "logprobs": null, "finish_reason": reason }),
            Shape::Chat => {
                let mut message = json!({ "role": "assistant", "content": text });
                if !calls.is_empty() {
                    message["tool_calls"] = calls.iter().map(encode_tool_call).collect();
                }
                if !thinking.is_empty() {
                    message["reasoning_content"] = json!(thinking);
                }
                json!({ "index": index, "message": message, "finish_reason": reason })
            }
        };
        if !logprobs.is_empty() {
            told["logprobs"] = logprobs_json(choices.shape, logprobs, &mut 0);
        }
        told
    };
    let object = if choices.shape == Shape::Chat { "chat.completion" } else { "text_completion" };
    let mut body = head_json(head, object);
    body["choices"] = answers.iter().enumerate().map(told).collect();
    let finishes: Vec<Option<Finish>> = answers.iter().map(|(_, finish)| Some(*finish)).collect();
    if let Some(usage) = choices.usage(&finishes) {
        body["usage"] = usage_json(usage);
    }
    // How fast several were at once says nothing of one.
    if let [(_, finish)] = answers
        && let Some(timings) = timings_json(finish)
    {
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
    fn several_answers_are_told_side_by_side() {
        let head = ReplyHead { id: "a".into(), created: 1, model: "m".into() };
        let choices = Choices { shape: Shape::Text, prompts: 2, n: 2 };
        let finish = |prompt_tokens, completion_tokens| Finish {
            reason: FinishReason::Stop,
            usage: Some(Usage { prompt_tokens, cached_tokens: 0, completion_tokens }),
            timings: Timings::default(),
        };
        let finishes = [finish(3, 1), finish(3, 2), finish(5, 4), finish(5, 8)];
        let mut encoder = ChunkEncoder::with_choices(head.clone(), true, choices);
        let logprobs = |text: &str| {
            let drawn = chat::ScoredToken { bytes: text.into(), logprob: -0.5 };
            ChatEvent::Logprobs(vec![TokenLogprob { drawn, top: Vec::new() }])
        };
        let mut stream = String::new();
        for (choice, event) in [
            (2, logprobs("c")),
            (2, ChatEvent::Text("c".into())),
            (0, ChatEvent::Text("a".into())),
            (2, logprobs("d")),
            (2, ChatEvent::Text("d".into())),
            (2, ChatEvent::Finished(finishes[2])),
            (0, ChatEvent::Finished(finishes[0])),
            (1, ChatEvent::Finished(finishes[1])),
        ] {
            stream += &encoder.encode_choice(choice, &event);
        }
        assert!(!stream.contains(sse::DONE), "one of them is still being written");
        stream += &encoder.encode_choice(3, &ChatEvent::Finished(finishes[3]));
        let data: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (done, chunks) = data.split_last().unwrap();
        assert_eq!(*done, sse::DONE);
        let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
        let mut texts = [const { String::new() }; 4];
        let mut offsets = Vec::new();
        for chunk in &chunks {
            assert_eq!(chunk["object"], "text_completion");
            for choice in chunk["choices"].as_array().unwrap() {
                texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
                offsets.extend(choice["logprobs"]["text_offset"][0].as_u64());
            }
        }
        assert_eq!((texts, offsets), (["a", "", "cd", ""].map(str::to_owned), vec![0, 1]));
        let usage = json!({ "prompt_tokens": 8, "completion_tokens": 15, "total_tokens": 23,
            "prompt_tokens_details": { "cached_tokens": 0 } });
        assert_eq!(chunks.last().unwrap()["usage"], usage, "a prompt is counted once");

        let answers = finishes.map(|finish| (WholeAnswer { text: "x".into(), ..WholeAnswer::default() }, finish));
        let whole: Value = serde_json::from_slice(&encode_response(&head, choices, &answers)).unwrap();
        assert_eq!((whole["choices"].as_array().unwrap().len(), &whole["usage"]), (4, &usage));
        assert_eq!(whole["choices"][3], json!({ "index": 3, "text": "x", "logprobs": null, "finish_reason": "stop" }));
        let chat = Choices { shape: Shape::Chat, prompts: 1, n: 2 };
        let whole: Value = serde_json::from_slice(&encode_response(&head, chat, &answers[..2])).unwrap();
        assert_eq!(
            (&whole["choices"][1]["message"]["content"], &whole["usage"]["prompt_tokens"]),
            (&json!("x"), &json!(3))
        );
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        assert_eq!(decode_chunk("{}"), Err(DecodeError::Missing("choices")));
        assert_eq!(decode_chunk("[1]"), Err(DecodeError::Missing("object")));
        assert!(matches!(decode_chunk("[DONE]"), Err(DecodeError::NotJson { .. })));
        assert_eq!(decode_response(br#"{"choices":[]}"#), Err(DecodeError::Missing("choice")));
    }
}

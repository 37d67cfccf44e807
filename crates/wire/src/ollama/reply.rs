use std::time::Duration;

use chat::{ChatEvent, Finish, FinishReason, Progress, TokenLogprob, ToolCall};
use serde_json::{Map, Value, json};

use super::request::LoadChange;
use super::time::rfc3339;
use crate::openai::logprobs::encode_tokens;

/// Which call is answered; the answers differ in where the text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/api/chat`: into a message.
    Chat,
    /// `/api/generate`: into `response`.
    Generate,
}

/// What every line of one answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    /// The call that is answered.
    pub endpoint: Endpoint,
    /// The model, under the name that the call gave it.
    pub model: String,
    /// When the call was accepted, in seconds since 1970.
    pub created: u64,
}

/// Writes one answer as a stream of lines or as one line, each a JSON object and a line feed.
#[derive(Clone, Debug)]
pub struct ReplyEncoder {
    head: ReplyHead,
    stream: bool,
    /// What was not written yet; a stream has nothing left after any event.
    part: Part,
    /// When loading was last heard of, and when the first part of the answer came.
    loaded: Duration,
    began: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
struct Part {
    text: String,
    thinking: String,
    calls: Vec<Value>,
    /// Of the tokens that the text is made of.
    logprobs: Vec<TokenLogprob>,
}

impl ReplyEncoder {
    /// An encoder for one answer; `stream` as the call says.
    pub fn new(head: ReplyHead, stream: bool) -> Self {
        Self { head, stream, part: Part::default(), loaded: Duration::ZERO, began: None }
    }

    /// What is to be sent for one event that came `elapsed` after the call was accepted: nothing, or a line. An answer
    /// that is not streamed is the line of its `Finished`.
    pub fn encode(&mut self, event: &ChatEvent, elapsed: Duration) -> String {
        match event {
            ChatEvent::Text(text) => self.part.text.push_str(text),
            ChatEvent::Thinking(text) => self.part.thinking.push_str(text),
            ChatEvent::ToolCall { index, call } => self.part.calls.push(call_json(*index, call)),
            ChatEvent::Finished(finish) => {
                let mut line = self.line(elapsed, true);
                if let Some(word) = reason_word(finish.reason) {
                    line.insert("done_reason".into(), json!(word));
                }
                self.insert_durations(&mut line, finish, elapsed);
                return written(line);
            }
            ChatEvent::Progress(Progress::Loading { .. }) => {
                self.loaded = elapsed;
                return String::new();
            }
            // They go with the text that follows.
            ChatEvent::Logprobs(tokens) => {
                self.part.logprobs.extend_from_slice(tokens);
                return String::new();
            }
            // The dialect has no word for the rest.
            ChatEvent::Progress(_) | ChatEvent::Tokens { .. } => return String::new(),
        }
        self.began.get_or_insert(elapsed);
        if self.stream { written(self.line(elapsed, false)) } else { String::new() }
    }

    fn line(&mut self, elapsed: Duration, done: bool) -> Map<String, Value> {
        line(&self.head, elapsed, std::mem::take(&mut self.part), done)
    }

    /// As the backend tells its speed, else as the events came.
    fn insert_durations(&self, line: &mut Map<String, Value>, finish: &Finish, total: Duration) {
        let began = self.began.unwrap_or(total);
        let (mut prefill, mut decode) = (began.saturating_sub(self.loaded), total.saturating_sub(began));
        let mut set = |name: &str, value: Value| line.insert(name.into(), value);
        set("total_duration", nanos(total));
        set("load_duration", nanos(self.loaded));
        if let Some(usage) = finish.usage {
            set("prompt_eval_count", json!(usage.prompt_tokens));
            set("eval_count", json!(usage.completion_tokens));
            let fresh = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
            prefill = at_rate(fresh, finish.timings.prefill_tokens_per_sec).unwrap_or(prefill);
            decode = at_rate(usage.completion_tokens, finish.timings.decode_tokens_per_sec).unwrap_or(decode);
        }
        set("prompt_eval_duration", nanos(prefill));
        set("eval_duration", nanos(decode));
    }
}

/// The whole reply to a call that has no message. Clients read it as the end of a stream, too.
pub fn encode_load_change(head: &ReplyHead, change: LoadChange) -> String {
    let mut line = line(head, Duration::ZERO, Part::default(), true);
    let word = match change {
        LoadChange::Load => "load",
        LoadChange::Unload => "unload",
    };
    line.insert("done_reason".into(), json!(word));
    written(line)
}

fn line(head: &ReplyHead, elapsed: Duration, part: Part, done: bool) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("model".into(), json!(head.model));
    line.insert("created_at".into(), json!(rfc3339(head.created.saturating_add(elapsed.as_secs()))));
    if !part.logprobs.is_empty() {
        line.insert("logprobs".into(), Value::Array(encode_tokens(&part.logprobs)));
    }
    match head.endpoint {
        Endpoint::Chat => {
            let mut message = Map::new();
            message.insert("role".into(), json!("assistant"));
            part.insert(&mut message, "content");
            line.insert("message".into(), Value::Object(message));
        }
        Endpoint::Generate => part.insert(&mut line, "response"),
    }
    line.insert("done".into(), json!(done));
    line
}

impl Part {
    fn insert(self, object: &mut Map<String, Value>, text: &str) {
        object.insert(text.into(), json!(self.text));
        if !self.thinking.is_empty() {
            object.insert("thinking".into(), json!(self.thinking));
        }
        if !self.calls.is_empty() {
            object.insert("tool_calls".into(), Value::Array(self.calls));
        }
    }
}

/// Clients need an object of arguments; what a model wrote that is none, goes as an empty one.
fn call_json(index: usize, call: &ToolCall) -> Value {
    let arguments = serde_json::from_str::<Map<String, Value>>(call.arguments.expose()).unwrap_or_default();
    let function = json!({ "index": index, "name": call.name, "arguments": arguments });
    if call.id.is_empty() { json!({ "function": function }) } else { json!({ "id": call.id, "function": function }) }
}

/// `None` where the dialect has no word.
fn reason_word(reason: FinishReason) -> Option<&'static str> {
    match reason {
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        FinishReason::Cancelled => None,
    }
}

fn at_rate(tokens: usize, per_sec: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(tokens as f64 / per_sec?).ok()
}

/// Longer than 584 years is that long.
pub(super) fn nanos(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

fn written(line: Map<String, Value>) -> String {
    format!("{}\n", Value::Object(line))
}

#[cfg(test)]
mod tests {
    use chat::{Bytes, Redacted, Timings, Usage};

    use super::*;

    fn head(endpoint: Endpoint) -> ReplyHead {
        ReplyHead { endpoint, model: "qwen".into(), created: 1_709_210_096 }
    }

    fn events() -> Vec<(u64, ChatEvent)> {
        let call = ToolCall {
            id: "call00001".into(),
            name: "search".into(),
            arguments: Redacted(r#"{"q": "🌊", "n": 2}"#.into()),
        };
        let usage = Some(Usage { prompt_tokens: 12, cached_tokens: 4, completion_tokens: 3 });
        vec![
            (100, ChatEvent::Progress(Progress::Loading { done: Bytes(1), total: Bytes(1) })),
            (150, ChatEvent::Progress(Progress::Prefill { done: 4, total: 12 })),
            (200, ChatEvent::Thinking("hm\n".into())),
            (300, ChatEvent::Text("gr".into())),
            (350, ChatEvent::Text("ün".into())),
            (400, ChatEvent::ToolCall { index: 0, call }),
            (1000, ChatEvent::Finished(Finish { reason: FinishReason::Stop, usage, timings: Timings::default() })),
        ]
    }

    #[test]
    fn probabilities_go_with_their_text() {
        let scored = |text: &str| chat::ScoredToken { bytes: text.into(), logprob: -0.5 };
        let told = |text: &str| ChatEvent::Logprobs(vec![TokenLogprob { drawn: scored(text), top: vec![scored("z")] }]);
        let mut streamed = ReplyEncoder::new(head(Endpoint::Chat), true);
        let mut whole = ReplyEncoder::new(head(Endpoint::Generate), false);
        let events =
            [told("a"), ChatEvent::Text("a".into()), told("b"), ChatEvent::Text("b".into()), events().remove(6).1];
        let lines = |encoder: &mut ReplyEncoder| -> Vec<Value> {
            let lines: String = events.iter().map(|event| encoder.encode(event, Duration::ZERO)).collect();
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let entry = |text: &str| {
            let scored = |text: &str| json!({ "token": text, "logprob": -0.5, "bytes": text.as_bytes() });
            let mut entry = scored(text);
            entry["top_logprobs"] = json!([scored("z")]);
            entry
        };
        let told: Vec<Value> = lines(&mut streamed).iter().map(|line| line["logprobs"].clone()).collect();
        assert_eq!(told, [json!([entry("a")]), json!([entry("b")]), Value::Null]);
        assert_eq!(lines(&mut whole)[0]["logprobs"], json!([entry("a"), entry("b")]));
    }

    fn check(endpoint: Endpoint, stream: bool, expected: &[&str]) {
        let mut encoder = ReplyEncoder::new(head(endpoint), stream);
        let encode = |(ms, event): &(u64, ChatEvent)| encoder.encode(event, Duration::from_millis(*ms));
        let lines: String = events().iter().map(encode).collect();
        assert!(lines.ends_with('\n') && !lines.contains("\n\n"));
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_chat_is_streamed_word_for_word() {
        check(
            Endpoint::Chat,
            true,
            &[
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:56Z","message":{"role":"assistant","content":"","thinking":"hm\n"},"done":false}"#,
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:56Z","message":{"role":"assistant","content":"gr"},"done":false}"#,
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:56Z","message":{"role":"assistant","content":"ün"},"done":false}"#,
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:56Z","message":{"role":"assistant","content":"","tool_calls":[{"id":"call00001","function":{"index":0,"name":"search","arguments":{"q":"🌊","n":2}}}]},"done":false}"#,
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:57Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":1000000000,"load_duration":100000000,"prompt_eval_count":12,"eval_count":3,"prompt_eval_duration":100000000,"eval_duration":800000000}"#,
            ],
        );
    }

    #[test]
    fn a_chat_is_answered_whole() {
        check(
            Endpoint::Chat,
            false,
            &[
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:57Z","message":{"role":"assistant","content":"grün","thinking":"hm\n","tool_calls":[{"id":"call00001","function":{"index":0,"name":"search","arguments":{"q":"🌊","n":2}}}]},"done":true,"done_reason":"stop","total_duration":1000000000,"load_duration":100000000,"prompt_eval_count":12,"eval_count":3,"prompt_eval_duration":100000000,"eval_duration":800000000}"#,
            ],
        );
    }

    #[test]
    fn a_prompt_is_answered_in_its_own_words() {
        check(
            Endpoint::Generate,
            false,
            &[
                r#"{"model":"qwen","created_at":"2024-02-29T12:34:57Z","response":"grün","thinking":"hm\n","tool_calls":[{"id":"call00001","function":{"index":0,"name":"search","arguments":{"q":"🌊","n":2}}}],"done":true,"done_reason":"stop","total_duration":1000000000,"load_duration":100000000,"prompt_eval_count":12,"eval_count":3,"prompt_eval_duration":100000000,"eval_duration":800000000}"#,
            ],
        );
        let mut encoder = ReplyEncoder::new(head(Endpoint::Generate), true);
        assert_eq!(
            encoder.encode(&ChatEvent::Text("a".into()), Duration::ZERO),
            "{\"model\":\"qwen\",\"created_at\":\"2024-02-29T12:34:56Z\",\"response\":\"a\",\"done\":false}\n"
        );
    }

    #[test]
    fn the_backend_knows_its_speed_best() {
        let timings = |rate| Timings {
            prefill_tokens_per_sec: Some(rate * 4.0),
            decode_tokens_per_sec: Some(rate),
            ..Timings::default()
        };
        let end = |rate, reason| {
            let usage = Some(Usage { prompt_tokens: 12, cached_tokens: 4, completion_tokens: 3 });
            let finish = ChatEvent::Finished(Finish { reason, usage, timings: timings(rate) });
            let line = ReplyEncoder::new(head(Endpoint::Chat), true).encode(&finish, Duration::from_secs(9));
            serde_json::from_str::<Value>(&line).unwrap()
        };
        let told = end(2.0, FinishReason::Length);
        assert_eq!(told["done_reason"], "length");
        assert_eq!([&told["prompt_eval_duration"], &told["eval_duration"]], [1_000_000_000, 1_500_000_000]);
        for nothing in [0.0, -1.0, f64::NAN] {
            let measured = end(nothing, FinishReason::Cancelled);
            assert!(measured.get("done_reason").is_none());
            assert_eq!([&measured["prompt_eval_duration"], &measured["eval_duration"]], [9_000_000_000u64, 0]);
        }
    }

    #[test]
    fn arguments_are_always_an_object() {
        for text in ["", "[1]", "{\"q\":", "\"x\""] {
            let call = ToolCall { name: "f".into(), arguments: Redacted(text.into()), ..ToolCall::default() };
            let expected = json!({ "function": { "index": 2, "name": "f", "arguments": {} } });
            assert_eq!(call_json(2, &call), expected, "{text}");
        }
    }

    #[test]
    fn a_load_is_answered_with_its_word() {
        assert_eq!(
            encode_load_change(&head(Endpoint::Chat), LoadChange::Load),
            "{\"model\":\"qwen\",\"created_at\":\"2024-02-29T12:34:56Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"load\"}\n"
        );
        assert_eq!(
            encode_load_change(&head(Endpoint::Generate), LoadChange::Unload),
            "{\"model\":\"qwen\",\"created_at\":\"2024-02-29T12:34:56Z\",\"response\":\"\",\"done\":true,\"done_reason\":\"unload\"}\n"
        );
    }
}

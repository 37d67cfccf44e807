use chat::{ChatEvent, Finish, FinishReason, TokenLogprob, ToolCall, Usage};
use serde_json::{Value, json};

use super::request::Repeated;
use crate::openai::ErrorBody;
use crate::openai::logprobs::encode_tokens;

/// What names an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseHead {
    /// Names this answer: `resp_…`.
    pub id: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The model that answers.
    pub model: String,
    /// What the request said.
    pub repeated: Repeated,
}

/// One answer, as far as it came.
#[derive(Clone)]
pub struct Response {
    head: ResponseHead,
    items: Vec<Item>,
    /// Of the tokens that the next text is made of.
    logprobs: Vec<TokenLogprob>,
}

/// Only the last one grows, and a call never does.
#[derive(Clone)]
pub(super) enum Item {
    Reasoning { text: String },
    Message { text: String, logprobs: Vec<TokenLogprob> },
    Call(ToolCall),
}

/// What an event brought for the last item.
pub(super) struct Growth {
    /// The item is new.
    pub(super) begins: bool,
    pub(super) delta: String,
    pub(super) logprobs: Vec<TokenLogprob>,
}

/// How far an answer is.
#[derive(Clone, Copy)]
pub(super) enum Status<'a> {
    InProgress,
    Ended(Finish),
    Failed(&'a ErrorBody),
}

impl Response {
    /// An answer of which nothing came yet.
    pub fn new(head: ResponseHead) -> Self {
        Self { head, items: Vec::new(), logprobs: Vec::new() }
    }

    /// Takes what an event says.
    pub fn push(&mut self, event: &ChatEvent) {
        self.grow(event);
    }

    /// The body of an answer that was not wanted as a stream. The dialect has no word for one that was cancelled, and
    /// whoever asked is gone: it is incomplete for no reason.
    pub fn encode(&self, finish: &Finish) -> Vec<u8> {
        self.json(Status::Ended(*finish)).to_string().into_bytes()
    }

    pub(super) fn grow(&mut self, event: &ChatEvent) -> Option<Growth> {
        match event {
            ChatEvent::Text(delta) if !delta.is_empty() => {
                let added = std::mem::take(&mut self.logprobs);
                let begins = !matches!(self.items.last(), Some(Item::Message { .. }));
                if begins {
                    self.items.push(Item::Message { text: String::new(), logprobs: Vec::new() });
                }
                if let Some(Item::Message { text, logprobs }) = self.items.last_mut() {
                    text.push_str(delta);
                    logprobs.extend_from_slice(&added);
                }
                Some(Growth { begins, delta: delta.clone(), logprobs: added })
            }
            ChatEvent::Thinking(delta) if !delta.is_empty() => {
                // Reasoning has no place for them.
                self.logprobs.clear();
                let begins = !matches!(self.items.last(), Some(Item::Reasoning { .. }));
                if begins {
                    self.items.push(Item::Reasoning { text: String::new() });
                }
                if let Some(Item::Reasoning { text }) = self.items.last_mut() {
                    text.push_str(delta);
                }
                Some(Growth { begins, delta: delta.clone(), logprobs: Vec::new() })
            }
            ChatEvent::ToolCall { call, .. } => {
                self.logprobs.clear();
                self.items.push(Item::Call(call.clone()));
                Some(Growth { begins: true, delta: call.arguments.0.clone(), logprobs: Vec::new() })
            }
            ChatEvent::Logprobs(tokens) => {
                self.logprobs.extend_from_slice(tokens);
                None
            }
            ChatEvent::Text(_)
            | ChatEvent::Thinking(_)
            | ChatEvent::Progress(_)
            | ChatEvent::Tokens { .. }
            | ChatEvent::Finished(_) => None,
        }
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// A name that no other item has.
    pub(super) fn item_id(&self, index: usize) -> String {
        let prefix = match self.items[index] {
            Item::Reasoning { .. } => "rs",
            Item::Message { .. } => "msg",
            Item::Call(_) => "fc",
        };
        let answer = self.head.id.strip_prefix("resp_").unwrap_or(&self.head.id);
        format!("{prefix}_{answer}-{index}")
    }

    /// The item when it begins.
    pub(super) fn begun_json(&self, index: usize) -> Value {
        let mut item = self.item_json(index, "in_progress");
        match self.items[index] {
            Item::Reasoning { .. } | Item::Message { .. } => item["content"] = json!([]),
            Item::Call(_) => item["arguments"] = json!(""),
        }
        item
    }

    pub(super) fn item_json(&self, index: usize, status: &str) -> Value {
        let id = self.item_id(index);
        let content = self.items[index].part_json();
        match &self.items[index] {
            Item::Reasoning { .. } => {
                json!({ "id": id, "type": "reasoning", "summary": [], "content": [content], "status": status })
            }
            Item::Message { .. } => {
                json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": [content] })
            }
            Item::Call(call) => json!({
                "id": id,
                "type": "function_call",
                "status": status,
                "arguments": call.arguments.expose(),
                "call_id": call.id,
                "name": call.name,
            }),
        }
    }

    /// How the last item ends; every other one is whole.
    pub(super) fn last_item_status(&self, status: Status<'_>) -> &'static str {
        match (status, self.items.last()) {
            (Status::Ended(finish), _) if finish.reason == FinishReason::Stop => "completed",
            (_, Some(Item::Call(_))) => "completed",
            _ => "incomplete",
        }
    }

    /// The whole object. While it is in progress it has no items: events bring them.
    pub(super) fn json(&self, status: Status<'_>) -> Value {
        let (word, error, incomplete, usage) = match status {
            Status::InProgress => ("in_progress", Value::Null, Value::Null, None),
            Status::Failed(error) => ("failed", failure_json(error), Value::Null, None),
            Status::Ended(finish) => match finish.reason {
                FinishReason::Stop => ("completed", Value::Null, Value::Null, finish.usage),
                FinishReason::Length => {
                    ("incomplete", Value::Null, json!({ "reason": "max_output_tokens" }), finish.usage)
                }
                FinishReason::Cancelled => ("incomplete", Value::Null, json!({}), finish.usage),
            },
        };
        let output: Vec<Value> = match status {
            Status::InProgress => Vec::new(),
            _ => (0..self.items.len())
                .map(|index| {
                    let is_last = index + 1 == self.items.len();
                    self.item_json(index, if is_last { self.last_item_status(status) } else { "completed" })
                })
                .collect(),
        };
        let Repeated(request) = &self.head.repeated;
        let said = |name: &str, or: Value| request.get(name).cloned().unwrap_or(or);
        let inner = |name: &str, member: &str| request.get(name).and_then(|inner| inner.get(member)).cloned();
        json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created_at,
            "status": word,
            "background": false,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": said("instructions", Value::Null),
            "max_output_tokens": said("max_output_tokens", Value::Null),
            "metadata": said("metadata", json!({})),
            "model": self.head.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": { "effort": inner("reasoning", "effort"), "summary": null },
            "store": false,
            "temperature": said("temperature", Value::Null),
            "text": { "format": inner("text", "format").unwrap_or_else(|| json!({ "type": "text" })) },
            "tool_choice": said("tool_choice", json!("auto")),
            "tools": said("tools", json!([])),
            "top_p": said("top_p", Value::Null),
            "truncation": "disabled",
            "usage": usage.map(usage_json),
        })
    }
}

impl Item {
    /// What its content is made of; null for a call.
    pub(super) fn part_json(&self) -> Value {
        match self {
            Self::Reasoning { text } => json!({ "type": "reasoning_text", "text": text }),
            Self::Message { text, logprobs } => json!({
                "type": "output_text",
                "text": text,
                "annotations": [],
                "logprobs": encode_tokens(logprobs),
            }),
            Self::Call(_) => Value::Null,
        }
    }
}

/// The dialect's list of codes is closed.
fn failure_json(error: &ErrorBody) -> Value {
    let code = match error.kind.as_deref() {
        Some("invalid_request_error") => "invalid_prompt",
        _ => "server_error",
    };
    json!({ "code": code, "message": error.message })
}

/// Nothing is charged for what goes into a cache, so that isn't told apart. Nobody counts the tokens of reasoning apart,
/// but the dialect demands a number.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.cached_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

#[cfg(test)]
mod tests {
    use chat::{Redacted, ScoredToken, Timings};

    use super::super::decode_request;
    use super::*;

    fn response(request: &Value) -> Response {
        let repeated = decode_request(request.to_string().as_bytes()).unwrap().repeated;
        Response::new(ResponseHead { id: "resp_1".into(), created_at: 1_700_000_000, model: "m".into(), repeated })
    }

    fn finish(reason: FinishReason) -> Finish {
        let usage = Some(Usage { prompt_tokens: 12, cached_tokens: 3, completion_tokens: 4 });
        Finish { reason, usage, timings: Timings::default() }
    }

    fn encoded(response: &Response, finish: &Finish) -> Value {
        serde_json::from_slice(&response.encode(finish)).unwrap()
    }

    #[test]
    fn a_whole_response_word_for_word() {
        let mut response = response(&json!({ "input": "hi" }));
        let call = ToolCall { id: "call_1".into(), name: "ls".into(), arguments: Redacted(r#"{"p": "/"}"#.into()) };
        for event in [
            ChatEvent::Thinking("h".into()),
            ChatEvent::Thinking("m".into()),
            ChatEvent::Text("so".into()),
            ChatEvent::ToolCall { index: 0, call },
        ] {
            response.push(&event);
        }
        let expected = concat!(
            r#"{"id":"resp_1","object":"response","created_at":1700000000,"status":"completed","background":false,"#,
            r#""error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"#,
            r#""model":"m","output":["#,
            r#"{"id":"rs_1-0","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],"#,
            r#""status":"completed"},"#,
            r#"{"id":"msg_1-1","type":"message","status":"completed","role":"assistant","content":["#,
            r#"{"type":"output_text","text":"so","annotations":[],"logprobs":[]}]},"#,
            r#"{"id":"fc_1-2","type":"function_call","status":"completed","arguments":"{\"p\": \"/\"}","#,
            r#""call_id":"call_1","name":"ls"}],"#,
            r#""parallel_tool_calls":true,"previous_response_id":null,"reasoning":{"effort":null,"summary":null},"#,
            r#""store":false,"temperature":null,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"#,
            r#""top_p":null,"truncation":"disabled","usage":{"input_tokens":12,"#,
            r#""input_tokens_details":{"cached_tokens":3,"cache_write_tokens":0},"output_tokens":4,"#,
            r#""output_tokens_details":{"reasoning_tokens":0},"total_tokens":16}}"#
        );
        assert_eq!(String::from_utf8(response.encode(&finish(FinishReason::Stop))).unwrap(), expected);
    }

    #[test]
    fn what_was_cut_off_is_incomplete() {
        let mut response = response(&json!({ "input": "hi" }));
        response.push(&ChatEvent::Thinking("hm".into()));
        response.push(&ChatEvent::Text("so".into()));
        let cut = encoded(&response, &finish(FinishReason::Length));
        assert_eq!(
            (&cut["status"], &cut["incomplete_details"]["reason"]),
            (&json!("incomplete"), &json!("max_output_tokens"))
        );
        assert_eq!(
            (&cut["output"][0]["status"], &cut["output"][1]["status"]),
            (&json!("completed"), &json!("incomplete"))
        );
        let cancelled = encoded(&response, &Finish { usage: None, ..finish(FinishReason::Cancelled) });
        assert_eq!((&cancelled["status"], &cancelled["incomplete_details"]), (&json!("incomplete"), &json!({})));
        assert_eq!(cancelled["usage"], Value::Null);
    }

    #[test]
    fn the_request_is_repeated() {
        let request = json!({
            "input": "hi", "instructions": "be brief", "max_output_tokens": 9, "metadata": { "a": "b" }, "temperature": 0.2,
            "reasoning": { "effort": "low", "summary": "auto" }, "store": true, "top_p": 0.9, "tool_choice": "none",
            "tools": [{ "type": "function", "name": "ls", "parameters": {}, "strict": true }],
            "text": { "format": { "type": "json_object" }, "verbosity": "low" },
        });
        let read = encoded(&response(&request), &finish(FinishReason::Stop));
        for name in ["instructions", "max_output_tokens", "metadata", "temperature", "top_p", "tool_choice", "tools"] {
            assert_eq!(read[name], request[name], "{name}");
        }
        assert_eq!(read["reasoning"], json!({ "effort": "low", "summary": null }));
        assert_eq!(read["text"], json!({ "format": { "type": "json_object" } }));
        assert_eq!((&read["store"], &read["output"]), (&json!(false), &json!([])));
    }

    #[test]
    fn probabilities_stand_with_the_text_alone() {
        let token = |text: &str| {
            let drawn = ScoredToken { bytes: text.as_bytes().to_vec(), logprob: -0.5 };
            ChatEvent::Logprobs(vec![TokenLogprob { top: vec![drawn.clone()], drawn }])
        };
        let mut response = response(&json!({ "input": "hi" }));
        for event in [token("hm"), ChatEvent::Thinking("hm".into()), token("so"), ChatEvent::Text("so".into())] {
            response.push(&event);
        }
        let read = encoded(&response, &finish(FinishReason::Stop));
        let scored = json!({ "token": "so", "logprob": -0.5, "bytes": [115, 111] });
        let mut expected = scored.clone();
        expected["top_logprobs"] = json!([scored]);
        assert_eq!(read["output"][1]["content"][0]["logprobs"], json!([expected]));
    }
}

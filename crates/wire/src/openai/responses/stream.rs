use chat::{ChatEvent, Finish, FinishReason};
use serde_json::{Value, json};

use super::response::{Growth, Item, Response, ResponseHead, Status};
use crate::json::Object;
use crate::openai::ErrorBody;
use crate::openai::logprobs::encode_tokens;
use crate::openai::reply::progress_words;
use crate::sse;

/// Writes one answer as a stream of events, ready to be sent: `response.created` and `response.in_progress`, then items one
/// after the other, each added, brought in deltas and done, then the whole response
/// (<https://platform.openai.com/docs/api-reference/responses-streaming>). No end mark follows.
#[derive(Clone)]
pub struct EventEncoder {
    response: Response,
    has_started: bool,
    /// How many events were written.
    events: usize,
}

impl EventEncoder {
    /// An encoder for one answer.
    pub fn new(head: ResponseHead) -> Self {
        Self { response: Response::new(head), has_started: false, events: 0 }
    }

    /// The bytes for one event. Progress becomes a comment, which keeps the connection alive and which every client passes
    /// over.
    pub fn encode(&mut self, event: &ChatEvent) -> String {
        let mut out = String::new();
        self.start(&mut out);
        match event {
            ChatEvent::Progress(progress) => out.push_str(&sse::encode_comment(&progress_words(*progress))),
            ChatEvent::Finished(finish) => self.end(&mut out, finish),
            _ => {
                if let Some(growth) = self.response.grow(event) {
                    self.write_growth(&mut out, &growth);
                }
            }
        }
        out
    }

    /// The bytes that end a stream which can't go on: the error, and the response as far as it came.
    pub fn encode_error(&mut self, error: &ErrorBody) -> String {
        let mut out = String::new();
        self.start(&mut out);
        let ErrorBody { message, param, code, .. } = error;
        self.push(&mut out, "error", json!({ "code": code, "message": message, "param": param }));
        self.push_response(&mut out, "response.failed", Status::Failed(error));
        out
    }

    fn start(&mut self, out: &mut String) {
        if !self.has_started {
            self.has_started = true;
            self.push_response(out, "response.created", Status::InProgress);
            self.push_response(out, "response.in_progress", Status::InProgress);
        }
    }

    fn write_growth(&mut self, out: &mut String, growth: &Growth) {
        let last = self.response.items().len() - 1;
        if growth.begins {
            if last > 0 && !matches!(self.response.items()[last - 1], Item::Call(_)) {
                self.close(out, last - 1, "completed");
            }
            self.open(out, last);
        }
        let mut delta = json!({ "delta": growth.delta });
        if let Item::Message { .. } = self.response.items()[last] {
            delta["logprobs"] = json!(encode_tokens(&growth.logprobs));
        }
        let name = format!("response.{}.delta", self.kind(last));
        self.push_item(out, &name, last, delta);
        // It came whole.
        if let Item::Call(_) = self.response.items()[last] {
            self.close(out, last, "completed");
        }
    }

    fn end(&mut self, out: &mut String, finish: &Finish) {
        let status = Status::Ended(*finish);
        let last = self.response.items().len().checked_sub(1);
        if let Some(last) = last.filter(|last| !matches!(self.response.items()[*last], Item::Call(_))) {
            self.close(out, last, self.response.last_item_status(status));
        }
        let name = match finish.reason {
            FinishReason::Stop => "response.completed",
            FinishReason::Length | FinishReason::Cancelled => "response.incomplete",
        };
        self.push_response(out, name, status);
    }

    fn open(&mut self, out: &mut String, index: usize) {
        let item = self.response.begun_json(index);
        self.push(out, "response.output_item.added", json!({ "output_index": index, "item": item }));
        let part = match self.response.items()[index] {
            Item::Reasoning { .. } => Item::Reasoning { text: String::new() },
            Item::Message { .. } => Item::Message { text: String::new(), logprobs: Vec::new() },
            Item::Call(_) => return,
        };
        self.push_item(out, "response.content_part.added", index, json!({ "part": part.part_json() }));
    }

    fn close(&mut self, out: &mut String, index: usize, status: &str) {
        let done = match &self.response.items()[index] {
            Item::Reasoning { text } => json!({ "text": text }),
            Item::Message { text, logprobs } => json!({ "text": text, "logprobs": encode_tokens(logprobs) }),
            Item::Call(call) => json!({ "arguments": call.arguments.expose(), "name": call.name }),
        };
        let part = self.response.items()[index].part_json();
        let name = format!("response.{}.done", self.kind(index));
        self.push_item(out, &name, index, done);
        if !part.is_null() {
            self.push_item(out, "response.content_part.done", index, json!({ "part": part }));
        }
        let item = self.response.item_json(index, status);
        self.push(out, "response.output_item.done", json!({ "output_index": index, "item": item }));
    }

    /// What events call the content of an item.
    fn kind(&self, index: usize) -> &'static str {
        match self.response.items()[index] {
            Item::Reasoning { .. } => "reasoning_text",
            Item::Message { .. } => "output_text",
            Item::Call(_) => "function_call_arguments",
        }
    }

    /// An event on what is in an item; what isn't a call has one part.
    fn push_item(&mut self, out: &mut String, name: &str, index: usize, more: Value) {
        let mut members = json!({ "item_id": self.response.item_id(index), "output_index": index });
        if !matches!(self.response.items()[index], Item::Call(_)) {
            members["content_index"] = json!(0);
        }
        self.push(out, name, extended(members, more));
    }

    fn push_response(&mut self, out: &mut String, name: &str, status: Status<'_>) {
        let response = self.response.json(status);
        self.push(out, name, json!({ "response": response }));
    }

    fn push(&mut self, out: &mut String, name: &str, members: Value) {
        let data = extended(json!({ "type": name, "sequence_number": self.events }), members);
        self.events += 1;
        out.push_str(&sse::encode_event(name, &data.to_string()));
    }
}

fn extended(object: Value, more: Value) -> Value {
    let members = [object, more].into_iter().filter_map(|value| match value {
        Value::Object(members) => Some(members),
        _ => None,
    });
    Value::Object(members.flatten().collect::<Object>())
}

#[cfg(test)]
mod tests {
    use chat::{Progress, Redacted, Timings, ToolCall, Usage};

    use super::super::Repeated;
    use super::*;

    fn encoder() -> EventEncoder {
        let (id, model, repeated) = ("resp_1".into(), "m".into(), Repeated::default());
        EventEncoder::new(ResponseHead { id, created_at: 7, model, repeated })
    }

    fn finished(reason: FinishReason) -> ChatEvent {
        let usage = Some(Usage { prompt_tokens: 12, cached_tokens: 3, completion_tokens: 4 });
        ChatEvent::Finished(Finish { reason, usage, timings: Timings::default() })
    }

    /// The stream, with the members of each response that say how far it is alone.
    fn told(stream: &str) -> Vec<String> {
        let mut lines = stream.lines();
        let mut told = Vec::new();
        while let Some(line) = lines.next() {
            let Some(name) = line.strip_prefix("event: ") else {
                told.push(line.to_owned());
                assert_eq!(lines.next(), Some(""));
                continue;
            };
            let mut data: Value = serde_json::from_str(lines.next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(data["type"], name);
            assert_eq!(lines.next(), Some(""));
            if let Some(response) = data.get_mut("response") {
                assert_eq!(response["id"], "resp_1");
                response.as_object_mut().unwrap().retain(|name, _| ["status", "error"].contains(&name.as_str()));
            }
            told.push(data.to_string());
        }
        told
    }

    const START: [&str; 2] = [
        r#"{"type":"response.created","sequence_number":0,"response":{"status":"in_progress","error":null}}"#,
        r#"{"type":"response.in_progress","sequence_number":1,"response":{"status":"in_progress","error":null}}"#,
    ];

    #[test]
    fn a_whole_stream_word_for_word() {
        let call = ToolCall { id: "call_1".into(), name: "ls".into(), arguments: Redacted("{}".into()) };
        let mut encoder = encoder();
        let events = [
            ChatEvent::Progress(Progress::Prefill { done: 4, total: 12 }),
            ChatEvent::Thinking("hm".into()),
            ChatEvent::Tokens { from: 0, ids: vec![1] },
            ChatEvent::Text("größe".into()),
            ChatEvent::Text(String::new()),
            ChatEvent::Text(" 🌊".into()),
            ChatEvent::ToolCall { index: 0, call },
            finished(FinishReason::Stop),
        ];
        let stream: String = events.iter().map(|event| encoder.encode(event)).collect();
        assert!(stream.starts_with("event: response.created\ndata: {\"type\":\"response.created\","), "{stream}");
        let expected = [
            START[0],
            START[1],
            ": prefill 4/12",
            r#"{"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_1-0","type":"reasoning","summary":[],"content":[],"status":"in_progress"}}"#,
            r#"{"type":"response.content_part.added","sequence_number":3,"item_id":"rs_1-0","output_index":0,"content_index":0,"part":{"type":"reasoning_text","text":""}}"#,
            r#"{"type":"response.reasoning_text.delta","sequence_number":4,"item_id":"rs_1-0","output_index":0,"content_index":0,"delta":"hm"}"#,
            r#"{"type":"response.reasoning_text.done","sequence_number":5,"item_id":"rs_1-0","output_index":0,"content_index":0,"text":"hm"}"#,
            r#"{"type":"response.content_part.done","sequence_number":6,"item_id":"rs_1-0","output_index":0,"content_index":0,"part":{"type":"reasoning_text","text":"hm"}}"#,
            r#"{"type":"response.output_item.done","sequence_number":7,"output_index":0,"item":{"id":"rs_1-0","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],"status":"completed"}}"#,
            r#"{"type":"response.output_item.added","sequence_number":8,"output_index":1,"item":{"id":"msg_1-1","type":"message","status":"in_progress","role":"assistant","content":[]}}"#,
            r#"{"type":"response.content_part.added","sequence_number":9,"item_id":"msg_1-1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}"#,
            r#"{"type":"response.output_text.delta","sequence_number":10,"item_id":"msg_1-1","output_index":1,"content_index":0,"delta":"größe","logprobs":[]}"#,
            r#"{"type":"response.output_text.delta","sequence_number":11,"item_id":"msg_1-1","output_index":1,"content_index":0,"delta":" 🌊","logprobs":[]}"#,
            r#"{"type":"response.output_text.done","sequence_number":12,"item_id":"msg_1-1","output_index":1,"content_index":0,"text":"größe 🌊","logprobs":[]}"#,
            r#"{"type":"response.content_part.done","sequence_number":13,"item_id":"msg_1-1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"größe 🌊","annotations":[],"logprobs":[]}}"#,
            r#"{"type":"response.output_item.done","sequence_number":14,"output_index":1,"item":{"id":"msg_1-1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"größe 🌊","annotations":[],"logprobs":[]}]}}"#,
            r#"{"type":"response.output_item.added","sequence_number":15,"output_index":2,"item":{"id":"fc_1-2","type":"function_call","status":"in_progress","arguments":"","call_id":"call_1","name":"ls"}}"#,
            r#"{"type":"response.function_call_arguments.delta","sequence_number":16,"item_id":"fc_1-2","output_index":2,"delta":"{}"}"#,
            r#"{"type":"response.function_call_arguments.done","sequence_number":17,"item_id":"fc_1-2","output_index":2,"arguments":"{}","name":"ls"}"#,
            r#"{"type":"response.output_item.done","sequence_number":18,"output_index":2,"item":{"id":"fc_1-2","type":"function_call","status":"completed","arguments":"{}","call_id":"call_1","name":"ls"}}"#,
            r#"{"type":"response.completed","sequence_number":19,"response":{"status":"completed","error":null}}"#,
        ];
        assert_eq!(told(&stream), expected);
    }

    #[test]
    fn an_answer_that_was_cut_off_is_incomplete() {
        let mut encoder = encoder();
        let mut stream = encoder.encode(&ChatEvent::Text("a".into()));
        stream += &encoder.encode(&finished(FinishReason::Length));
        let told = told(&stream);
        assert!(told[told.len() - 2].contains(r#""status":"incomplete""#), "{told:?}");
        let expected =
            r#"{"type":"response.incomplete","sequence_number":8,"response":{"status":"incomplete","error":null}}"#;
        assert_eq!(told.last().unwrap(), expected);
    }

    #[test]
    fn an_empty_answer_is_started_and_ended() {
        let stream = encoder().encode(&finished(FinishReason::Stop));
        let end = r#"{"type":"response.completed","sequence_number":2,"response":{"status":"completed","error":null}}"#;
        assert_eq!(told(&stream), [START[0], START[1], end]);
    }

    #[test]
    fn an_error_is_told_and_the_response_has_failed() {
        let error = ErrorBody {
            message: "no room".into(),
            kind: Some("server_error".into()),
            param: None,
            code: Some("does_not_fit".into()),
        };
        let expected = [
            START[0],
            START[1],
            r#"{"type":"error","sequence_number":2,"code":"does_not_fit","message":"no room","param":null}"#,
            r#"{"type":"response.failed","sequence_number":3,"response":{"status":"failed","error":{"code":"server_error","message":"no room"}}}"#,
        ];
        assert_eq!(told(&encoder().encode_error(&error)), expected);
        let wrong = ErrorBody { kind: Some("invalid_request_error".into()), ..error };
        assert!(encoder().encode_error(&wrong).contains(r#""code":"invalid_prompt""#));
    }
}

use chat::{ChatEvent, Finish, ToolCall};
use serde_json::{Value, json};

use super::error::error_json;
use super::reply::{MessageHead, SIGNATURE, message_json, reason_word, usage_json};
use super::tools::{input_of, is_object, tool_use};
use crate::sse;

/// Writes one answer as a stream of events, ready to be sent: `message_start`, then blocks one after the other, each
/// started, brought in deltas and stopped, then `message_delta` and `message_stop`
/// (<https://platform.claude.com/docs/en/build-with-claude/streaming>).
#[derive(Clone, Debug)]
pub struct EventEncoder {
    head: MessageHead,
    has_started: bool,
    has_calls: bool,
    /// The block that is being written.
    open: Option<Block>,
    /// How many blocks were started.
    blocks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
}

impl EventEncoder {
    /// An encoder for one answer.
    pub fn new(head: MessageHead) -> Self {
        Self { head, has_started: false, has_calls: false, open: None, blocks: 0 }
    }

    /// The bytes for one event. Progress becomes a `ping`, which keeps the connection alive and which every client passes
    /// over. `Finished` also writes the usage, which nobody knows when the message starts, and the end.
    pub fn encode(&mut self, event: &ChatEvent) -> String {
        match event {
            ChatEvent::Progress(_) => {
                let mut out = String::new();
                self.start(&mut out);
                push(&mut out, &json!({ "type": "ping" }));
                out
            }
            ChatEvent::Text(text) => self.append(Block::Text, text),
            ChatEvent::Thinking(text) => self.append(Block::Thinking, text),
            ChatEvent::ToolCall { call, .. } => self.call(call),
            // The dialect has no place for them.
            ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } => String::new(),
            ChatEvent::Finished(finish) => self.end(finish),
        }
    }

    /// The bytes that end a stream which can't go on, for an error that would have had that HTTP status; no
    /// `message_stop` follows, so that nobody takes the answer for whole.
    pub fn encode_error(&self, status: u16, message: &str) -> String {
        let mut out = String::new();
        push(&mut out, &error_json(status, message));
        out
    }

    fn start(&mut self, out: &mut String) {
        if !self.has_started {
            self.has_started = true;
            let message = message_json(&self.head, Vec::new(), None, None);
            push(out, &json!({ "type": "message_start", "message": message }));
        }
    }

    fn append(&mut self, block: Block, text: &str) -> String {
        let mut out = String::new();
        if text.is_empty() {
            return out;
        }
        let (empty, delta) = match block {
            Block::Text => (json!({ "type": "text", "text": "" }), json!({ "type": "text_delta", "text": text })),
            Block::Thinking => (
                json!({ "type": "thinking", "thinking": "", "signature": SIGNATURE }),
                json!({ "type": "thinking_delta", "thinking": text }),
            ),
        };
        if self.open != Some(block) {
            self.start_block(&mut out, &empty);
            self.open = Some(block);
        }
        self.push_delta(&mut out, &delta);
        out
    }

    fn call(&mut self, call: &ToolCall) -> String {
        let mut out = String::new();
        self.has_calls = true;
        self.start_block(&mut out, &tool_use(call, json!({})));
        // As it was written, with every digit of its numbers.
        let text = call.arguments.expose();
        let input = if is_object(text) { text.to_owned() } else { input_of(call).to_string() };
        self.push_delta(&mut out, &json!({ "type": "input_json_delta", "partial_json": input }));
        self.push_stop(&mut out);
        out
    }

    fn end(&mut self, finish: &Finish) -> String {
        let mut out = String::new();
        self.start(&mut out);
        self.close(&mut out);
        let reason = reason_word(finish.reason, self.has_calls);
        push(
            &mut out,
            &json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": null },
                "usage": usage_json(finish.usage),
            }),
        );
        push(&mut out, &json!({ "type": "message_stop" }));
        out
    }

    fn start_block(&mut self, out: &mut String, block: &Value) {
        self.start(out);
        self.close(out);
        push(out, &json!({ "type": "content_block_start", "index": self.blocks, "content_block": block }));
        self.blocks += 1;
    }

    fn close(&mut self, out: &mut String) {
        let Some(block) = self.open.take() else { return };
        if block == Block::Thinking {
            self.push_delta(out, &json!({ "type": "signature_delta", "signature": SIGNATURE }));
        }
        self.push_stop(out);
    }

    fn push_delta(&self, out: &mut String, delta: &Value) {
        push(out, &json!({ "type": "content_block_delta", "index": self.blocks - 1, "delta": delta }));
    }

    fn push_stop(&self, out: &mut String) {
        push(out, &json!({ "type": "content_block_stop", "index": self.blocks - 1 }));
    }
}

/// An event is named by its data's type.
fn push(out: &mut String, data: &Value) {
    out.push_str(&sse::encode_event(data["type"].as_str().unwrap_or_default(), &data.to_string()));
}

#[cfg(test)]
mod tests {
    use chat::{FinishReason, Progress, Redacted, Timings, Usage};

    use super::*;

    fn encoder() -> EventEncoder {
        EventEncoder::new(MessageHead { id: "msg_1".into(), model: "m".into() })
    }

    fn stream(events: &[ChatEvent]) -> String {
        let mut encoder = encoder();
        events.iter().map(|event| encoder.encode(event)).collect()
    }

    fn call(arguments: &str) -> ChatEvent {
        let call = ToolCall { id: "c1".into(), name: "ls".into(), arguments: Redacted(arguments.into()) };
        ChatEvent::ToolCall { index: 0, call }
    }

    fn finished(reason: FinishReason) -> ChatEvent {
        let usage = Some(Usage { prompt_tokens: 12, cached_tokens: 3, completion_tokens: 4 });
        ChatEvent::Finished(Finish { reason, usage, timings: Timings::default() })
    }

    const START: &str = concat!(
        "event: message_start\n",
        r#"data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","#,
        r#""content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"#,
        r#""cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}"#,
        "\n\n",
    );

    #[test]
    fn a_whole_stream_word_for_word() {
        let written = stream(&[
            ChatEvent::Progress(Progress::Prefill { done: 4, total: 12 }),
            ChatEvent::Thinking("hm".into()),
            ChatEvent::Tokens { from: 0, ids: vec![1] },
            ChatEvent::Thinking("\n".into()),
            ChatEvent::Text("größe".into()),
            ChatEvent::Text(String::new()),
            ChatEvent::Text(" 🌊".into()),
            call(r#"{"n": 12345678901234567890123}"#),
            call("no object"),
            finished(FinishReason::Stop),
        ]);
        let expected = [
            START,
            "event: ping\ndata: {\"type\":\"ping\"}\n\n",
            "event: content_block_start\n",
            r#"data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"\n"}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":""}}"#,
            "\n\nevent: content_block_stop\n",
            r#"data: {"type":"content_block_stop","index":0}"#,
            "\n\nevent: content_block_start\n",
            r#"data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"größe"}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":" 🌊"}}"#,
            "\n\nevent: content_block_stop\n",
            r#"data: {"type":"content_block_stop","index":1}"#,
            "\n\nevent: content_block_start\n",
            r#"data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"c1","name":"ls","input":{}}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"n\": 12345678901234567890123}"}}"#,
            "\n\nevent: content_block_stop\n",
            r#"data: {"type":"content_block_stop","index":2}"#,
            "\n\nevent: content_block_start\n",
            r#"data: {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"c1","name":"ls","input":{}}}"#,
            "\n\nevent: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{\"arguments\":\"no object\"}"}}"#,
            "\n\nevent: content_block_stop\n",
            r#"data: {"type":"content_block_stop","index":3}"#,
            "\n\nevent: message_delta\n",
            r#"data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":9,"#,
            r#""cache_creation_input_tokens":0,"cache_read_input_tokens":3,"output_tokens":4}}"#,
            "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ];
        assert_eq!(written, expected.concat());
    }

    #[test]
    fn an_empty_answer_is_started_and_ended() {
        let written = stream(&[finished(FinishReason::Length)]);
        let end = written.strip_prefix(START).unwrap();
        assert!(end.starts_with("event: message_delta\n") && end.contains(r#""stop_reason":"max_tokens""#), "{end}");
        assert!(!end.contains("content_block"), "{end}");
    }

    #[test]
    fn an_error_in_the_middle_is_told_and_no_end_follows() {
        let mut encoder = encoder();
        encoder.encode(&ChatEvent::Text("a".into()));
        let expected = concat!(
            "event: error\n",
            r#"data: {"type":"error","error":{"type":"overloaded_error","message":"no room"}}"#,
            "\n\n"
        );
        assert_eq!(encoder.encode_error(529, "no room"), expected);
    }
}

use chat::{Finish, FinishReason, Usage};
use serde_json::{Value, json};

use super::tools::{input_of, tool_use};
use crate::whole_answer::WholeAnswer;

/// What names an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageHead {
    /// Names this answer: `msg_…`.
    pub id: String,
    /// The model that answers.
    pub model: String,
}

/// The body of an answer that was not wanted as a stream: its thinking, its text and its calls, each where there is any.
/// The dialect has no place for probabilities.
pub fn encode_response(head: &MessageHead, answer: &WholeAnswer, finish: &Finish) -> Vec<u8> {
    let WholeAnswer { text, thinking, calls, logprobs: _ } = answer;
    let mut content = Vec::new();
    if !thinking.is_empty() {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": SIGNATURE }));
    }
    if !text.is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    content.extend(calls.iter().map(|call| tool_use(call, input_of(call))));
    let reason = reason_word(finish.reason, !calls.is_empty());
    message_json(head, content, reason, finish.usage).to_string().into_bytes()
}

/// The body of the answer to a count.
pub fn encode_count(input_tokens: usize) -> Vec<u8> {
    json!({ "input_tokens": input_tokens }).to_string().into_bytes()
}

/// The signature of thinking, by which Anthropic knows its own; the dialect wants one, and nobody reads it here.
pub(super) const SIGNATURE: &str = "";

pub(super) fn message_json(
    head: &MessageHead,
    content: Vec<Value>,
    reason: Option<&str>,
    usage: Option<Usage>,
) -> Value {
    json!({
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": null,
        "usage": usage_json(usage),
    })
}

/// Which stop string ended an answer isn't told, so that it ended its turn is all there is to say. The dialect has no
/// word for an answer that was cancelled, and whoever asked is gone.
pub(super) fn reason_word(reason: FinishReason, has_calls: bool) -> Option<&'static str> {
    match reason {
        FinishReason::Stop if has_calls => Some("tool_use"),
        FinishReason::Stop => Some("end_turn"),
        FinishReason::Length => Some("max_tokens"),
        FinishReason::Cancelled => None,
    }
}

/// The prompt is the sum of the three inputs. Nothing is charged for what goes into a cache, so that isn't told apart. The
/// dialect demands numbers, so tokens that nobody counted are 0.
pub(super) fn usage_json(usage: Option<Usage>) -> Value {
    let usage = usage.unwrap_or_default();
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    use chat::{Redacted, Timings, ToolCall};

    use super::*;

    #[test]
    fn an_answer_has_its_blocks_in_order() {
        let head = MessageHead { id: "msg_1".into(), model: "m".into() };
        let usage = Usage { prompt_tokens: 12, cached_tokens: 3, completion_tokens: 4 };
        let finish = Finish { reason: FinishReason::Stop, usage: Some(usage), timings: Timings::default() };
        let call = ToolCall { id: "1".into(), name: "ls".into(), arguments: Redacted(r#"{"p": "/"}"#.into()) };
        let answer =
            WholeAnswer { text: "so".into(), thinking: "hm".into(), calls: vec![call], ..WholeAnswer::default() };
        let body = encode_response(&head, &answer, &finish);
        let expected = concat!(
            r#"{"id":"msg_1","type":"message","role":"assistant","model":"m","content":["#,
            r#"{"type":"thinking","thinking":"hm","signature":""},{"type":"text","text":"so"},"#,
            r#"{"type":"tool_use","id":"1","name":"ls","input":{"p":"/"}}],"#,
            r#""stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":9,"#,
            r#""cache_creation_input_tokens":0,"cache_read_input_tokens":3,"output_tokens":4}}"#
        );
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        for (reason, word) in [
            (FinishReason::Stop, json!("end_turn")),
            (FinishReason::Length, json!("max_tokens")),
            (FinishReason::Cancelled, json!(null)),
        ] {
            let body = encode_response(&head, &WholeAnswer::default(), &Finish { reason, usage: None, ..finish });
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["stop_reason"], &body["content"]), (&word, &json!([])));
            assert_eq!(body["usage"]["input_tokens"], 0);
        }
        assert_eq!(encode_count(12), br#"{"input_tokens":12}"#);
    }
}

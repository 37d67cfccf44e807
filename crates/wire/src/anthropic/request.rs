use chat::{ChatRequest, Message, OutputConstraint, ReasoningEffort, Role, SamplingParams};
use serde_json::{Value, json};

use super::block::{decode_texts, decode_turn};
use super::tools::decode_tools;
use crate::json::{Object, body_object, flag, member, number, required, string, whole, wrong_type};
use crate::request_error::RequestError;

/// One call of `/v1/messages`, decoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessagesCall {
    /// What is asked.
    pub request: ChatRequest,
    /// The answer is wanted as a stream of events.
    pub stream: bool,
}

/// Begins a line of Claude Code's system prompt that is other in every request: no prefix of the prompt would be found in
/// a cache (<https://github.com/anthropics/claude-code/issues/68900>).
const BILLING: &str = "x-anthropic-billing-header:";

/// Reads the body of a call of `/v1/messages`. Unknown members are ignored, and so are those that say how Anthropic
/// serves: `metadata`, `cache_control`, `service_tier`, signatures of thinking. Members that would change the answer and
/// can't be served (images, documents, Anthropic's own tools, a forced call) are errors.
pub fn decode_request(body: &[u8]) -> Result<MessagesCall, RequestError> {
    let object = body_object(body)?;
    let stream = flag(&object, "stream", "stream")?;
    let mut request = decode_prompt(&object)?;
    request.sampling = decode_sampling(&object)?;
    Ok(MessagesCall { request, stream })
}

/// Reads the body of a call of `/v1/messages/count_tokens`: what makes a prompt, and no word on the answer.
pub fn decode_count(body: &[u8]) -> Result<ChatRequest, RequestError> {
    decode_prompt(&body_object(body)?)
}

fn decode_prompt(object: &Object) -> Result<ChatRequest, RequestError> {
    if member(object, "mcp_servers").is_some_and(|servers| *servers != json!([])) {
        return Err(RequestError::at("mcp_servers", "tools that a server calls are not supported"));
    }
    let model = member(object, "model").map(|value| string(value, "model")).transpose()?;
    Ok(ChatRequest {
        model: model.filter(|name| !name.is_empty()),
        messages: decode_messages(object)?,
        tools: decode_tools(object)?,
        reasoning_effort: decode_effort(object)?,
        ..ChatRequest::default()
    })
}

fn decode_messages(object: &Object) -> Result<Vec<Message>, RequestError> {
    let turns = match member(object, "messages") {
        Some(Value::Array(turns)) if !turns.is_empty() => turns,
        Some(Value::Array(_)) => return Err(RequestError::at("messages", "`messages` is empty")),
        Some(other) => return Err(wrong_type("messages", "an array", other)),
        None => return Err(RequestError::at("messages", "`messages` is missing")),
    };
    let mut messages: Vec<Message> = system(object)?.map(|text| Message::new(Role::System, text)).into_iter().collect();
    for (index, turn) in turns.iter().enumerate() {
        let at = format!("messages[{index}]");
        let Value::Object(turn) = turn else { return Err(wrong_type(&at, "an object", turn)) };
        let role_at = format!("{at}.role");
        let role = match required(turn, "role", &at)? {
            Value::String(name) => Role::parse(name).filter(|role| *role != Role::Tool),
            other => return Err(wrong_type(&role_at, "a string", other)),
        };
        let role =
            role.ok_or_else(|| RequestError::at(&role_at, format!("`{role_at}` must be user, assistant or system")))?;
        decode_turn(&mut messages, role, required(turn, "content", &at)?, &format!("{at}.content"))?;
    }
    Ok(messages)
}

fn system(object: &Object) -> Result<Option<String>, RequestError> {
    let Some(content) = member(object, "system") else { return Ok(None) };
    let texts = decode_texts(content, "system")?;
    let without_billing = |text: &String| match text.strip_prefix(BILLING) {
        Some(rest) => rest.split_once('\n').map_or("", |(_, rest)| rest).to_owned(),
        None => text.clone(),
    };
    let texts: Vec<String> = texts.iter().map(without_billing).filter(|text| !text.is_empty()).collect();
    Ok((!texts.is_empty()).then(|| texts.join("\n")))
}

/// A budget of tokens for thinking is no effort and says nothing here; `max_tokens` holds for thinking and text together.
fn decode_effort(object: &Object) -> Result<Option<ReasoningEffort>, RequestError> {
    let effort = match member(object, "output_config").and_then(|config| config.get("effort")) {
        None | Some(Value::Null) => None,
        Some(value) => {
            let name = string(value, "output_config.effort")?;
            let effort = ReasoningEffort::parse(&name).filter(|effort| *effort != ReasoningEffort::Off);
            let message = "`output_config.effort` must be low, medium, high, xhigh or max";
            Some(effort.ok_or_else(|| RequestError::at("output_config.effort", message))?)
        }
    };
    let Some(thinking) = member(object, "thinking") else { return Ok(effort) };
    match thinking.get("type").and_then(Value::as_str) {
        Some("disabled") => Ok(Some(ReasoningEffort::Off)),
        Some("enabled") => Ok(effort.or(Some(ReasoningEffort::Medium))),
        // The model decides whether it thinks.
        Some("adaptive" | "between_tools") => Ok(effort),
        _ => Err(RequestError::at("thinking.type", "`thinking.type` must be enabled, disabled or adaptive")),
    }
}

/// `temperature`, `top_p` and `top_k` are no longer in the SDKs' types; older programs send them, and so may every other.
fn decode_sampling(object: &Object) -> Result<SamplingParams, RequestError> {
    let wrong = || RequestError::at("max_tokens", "`max_tokens` must be at least 1");
    let most = whole(object, "max_tokens")?;
    let most = most.ok_or_else(|| RequestError::at("max_tokens", "`max_tokens` is missing"))?;
    Ok(SamplingParams {
        temperature: number(object, "temperature", 0.0, 100.0)?,
        top_k: whole(object, "top_k")?.map(|n| usize::try_from(n.max(0)).unwrap_or(usize::MAX)),
        top_p: number(object, "top_p", 0.0, 1.0)?,
        max_tokens: Some(usize::try_from(most).ok().filter(|most| *most > 0).ok_or_else(wrong)?),
        stop: stop(object)?,
        constraint: decode_format(object)?,
        ..SamplingParams::default()
    })
}

fn decode_format(object: &Object) -> Result<Option<OutputConstraint>, RequestError> {
    let config = member(object, "output_config").and_then(Value::as_object);
    let Some(format) = config.and_then(|config| member(config, "format")) else { return Ok(None) };
    if format.get("type").and_then(Value::as_str) != Some("json_schema") {
        let at = "output_config.format.type";
        return Err(RequestError::at(at, format!("`{at}` must be json_schema")));
    }
    let at = "output_config.format.schema";
    match format.get("schema") {
        Some(schema @ Value::Object(_)) => Ok(Some(OutputConstraint::JsonSchema(schema.to_string()))),
        Some(other) => Err(wrong_type(at, "an object", other)),
        None => Err(RequestError::at(at, format!("`{at}` is missing"))),
    }
}

fn stop(object: &Object) -> Result<Vec<String>, RequestError> {
    let list = match member(object, "stop_sequences") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("stop_sequences", "an array", other)),
    };
    let texts = list.iter().enumerate().map(|(index, value)| string(value, &format!("stop_sequences[{index}]")));
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use chat::{Redacted, Tool, ToolCall};

    use super::*;

    fn decode(body: &Value) -> MessagesCall {
        decode_request(body.to_string().as_bytes()).unwrap()
    }

    fn messages(list: Value) -> Vec<Message> {
        decode(&json!({ "max_tokens": 1, "messages": list })).request.messages
    }

    fn refused(body: &Value, param: &str) -> String {
        let error = decode_request(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{body}");
        error.message
    }

    fn user(extra: Value) -> Value {
        let mut body = json!({ "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "ls".into(), arguments: Redacted(arguments.into()) }
    }

    fn result(id: &str, text: &str) -> Message {
        Message { tool_call_id: Some(id.into()), ..Message::new(Role::Tool, text) }
    }

    #[test]
    fn everything_that_is_said_is_read() {
        let body = json!({
            "model": "qwen", "max_tokens": 16, "stream": true, "metadata": { "user_id": "x" }, "service_tier": "auto",
            "system": [
                { "type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1;" },
                { "type": "text", "text": "be brief", "cache_control": { "type": "ephemeral" } },
                { "type": "text", "text": "be kind" },
            ],
            "messages": [{ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }],
            "tools": [
                { "name": "ls", "description": "lists", "input_schema": { "type": "object" }, "cache_control": null },
                { "type": "custom", "name": "pwd", "input_schema": {} },
            ],
            "tool_choice": { "type": "auto", "disable_parallel_tool_use": false },
            "temperature": 0.2, "top_k": 20, "top_p": 0.9, "stop_sequences": ["END", ""],
            "thinking": { "type": "enabled", "budget_tokens": 1024 },
            "output_config": { "format": { "type": "json_schema", "schema": { "type": "object" } } },
        });
        let expected = ChatRequest {
            model: Some("qwen".into()),
            messages: vec![Message::new(Role::System, "be brief\nbe kind"), Message::new(Role::User, "a\nb")],
            tools: vec![
                Tool { name: "ls".into(), description: "lists".into(), parameters: r#"{"type":"object"}"#.into() },
                Tool { name: "pwd".into(), description: String::new(), parameters: "{}".into() },
            ],
            reasoning_effort: Some(ReasoningEffort::Medium),
            sampling: SamplingParams {
                temperature: Some(0.2),
                top_k: Some(20),
                top_p: Some(0.9),
                max_tokens: Some(16),
                stop: vec!["END".into()],
                constraint: Some(OutputConstraint::JsonSchema(r#"{"type":"object"}"#.into())),
                ..SamplingParams::default()
            },
            ..ChatRequest::default()
        };
        assert_eq!(decode(&body), MessagesCall { request: expected.clone(), stream: true });
        let counted = decode_count(body.to_string().as_bytes()).unwrap();
        assert_eq!(counted, ChatRequest { sampling: SamplingParams::default(), ..expected });
    }

    #[test]
    fn a_count_needs_no_limit() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        assert_eq!(decode_count(body).unwrap().messages, [Message::new(Role::User, "hi")]);
        assert!(decode_request(body).unwrap_err().message.contains("`max_tokens` is missing"));
    }

    #[test]
    fn calls_and_their_results_are_messages_in_order() {
        let read = messages(json!([
            { "role": "user", "content": "look" },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "hm", "signature": "" },
                { "type": "redacted_thinking", "data": "xyz" },
                { "type": "thinking", "thinking": "so", "signature": "s" },
                { "type": "text", "text": "I look" },
                { "type": "tool_use", "id": "1", "name": "ls", "input": { "b": 1, "a": [] } },
                { "type": "tool_use", "id": "2", "name": "ls", "input": {} },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "1", "content": "x" },
                { "type": "tool_result", "tool_use_id": "2", "is_error": true,
                    "content": [{ "type": "text", "text": "no" }, { "type": "text", "text": "such" }] },
                { "type": "tool_result", "tool_use_id": "3" },
                { "type": "text", "text": "go on" },
            ] },
            { "role": "user", "content": "please" },
        ]));
        let asked = Message {
            reasoning: Some(Redacted("hm\nso".into())),
            tool_calls: vec![call("1", r#"{"b":1,"a":[]}"#), call("2", "{}")],
            ..Message::new(Role::Assistant, "I look")
        };
        let expected = [
            Message::new(Role::User, "look"),
            asked,
            result("1", "x"),
            result("2", "Error: no\nsuch"),
            result("3", ""),
            Message::new(Role::User, "go on\nplease"),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn a_last_message_of_the_assistant_is_to_be_gone_on_with() {
        let read = messages(json!([
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": [{ "type": "text", "text": "The answer is (" }] },
        ]));
        assert_eq!(read.last(), Some(&Message::new(Role::Assistant, "The answer is (")));
        let silent = messages(json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": [] }]));
        assert_eq!(silent.last(), Some(&Message::new(Role::Assistant, "")));
    }

    #[test]
    fn instructions_may_stand_between_turns() {
        let body = json!({ "max_tokens": 1, "system": "x-anthropic-billing-header: cch=1;\na", "messages": [
            { "role": "system", "content": "b" }, { "role": "user", "content": "hi" },
            { "role": "system", "content": [{ "type": "text", "text": "c" }] } ] });
        let expected =
            [Message::new(Role::System, "a\nb"), Message::new(Role::User, "hi"), Message::new(Role::System, "c")];
        assert_eq!(decode(&body).request.messages, expected);
        assert_eq!(decode(&user(json!({ "system": "" }))).request.messages, [Message::new(Role::User, "hi")]);
    }

    #[test]
    fn thinking_is_an_effort() {
        let effort = |extra| decode(&user(extra)).request.reasoning_effort;
        let high = json!({ "effort": "xhigh" });
        assert_eq!(effort(json!({})), None);
        assert_eq!(effort(json!({ "output_config": high })), Some(ReasoningEffort::High));
        for (word, alone, told) in [
            ("enabled", Some(ReasoningEffort::Medium), Some(ReasoningEffort::High)),
            ("adaptive", None, Some(ReasoningEffort::High)),
            ("disabled", Some(ReasoningEffort::Off), Some(ReasoningEffort::Off)),
        ] {
            assert_eq!(effort(json!({ "thinking": { "type": word } })), alone, "{word}");
            assert_eq!(effort(json!({ "thinking": { "type": word }, "output_config": high })), told, "{word}");
        }
        refused(&user(json!({ "thinking": { "type": "some" } })), "thinking.type");
        refused(&user(json!({ "output_config": { "effort": "none" } })), "output_config.effort");
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let tools = json!([{ "name": "f", "input_schema": {} }]);
        for choice in ["any", "tool"] {
            let body = user(json!({ "tools": tools, "tool_choice": { "type": choice, "name": "f" } }));
            assert!(refused(&body, "tool_choice.type").contains("auto or none"));
        }
        let none = user(json!({ "tools": tools, "tool_choice": { "type": "none" } }));
        assert_eq!(decode(&none).request.tools, []);
        refused(&user(json!({ "tools": [{ "type": "web_search_20260318", "name": "web_search" }] })), "tools[0].type");
        refused(&user(json!({ "tools": [{ "name": "f" }] })), "tools[0].input_schema");
        refused(&user(json!({ "tools": [{ "input_schema": {} }] })), "tools[0].name");
        refused(&user(json!({ "mcp_servers": [{ "url": "x" }] })), "mcp_servers");
        let format = |format| user(json!({ "output_config": { "format": format } }));
        refused(&format(json!({ "type": "json_object" })), "output_config.format.type");
        refused(&format(json!({ "type": "json_schema" })), "output_config.format.schema");
        for most in [json!(0), json!(-1), json!(1.5), json!("9"), json!(null)] {
            refused(&user(json!({ "max_tokens": most })), "max_tokens");
        }
        refused(&user(json!({ "temperature": "hot" })), "temperature");
        refused(&user(json!({ "top_p": 1.5 })), "top_p");
        refused(&user(json!({ "stop_sequences": ["a", 3] })), "stop_sequences[1]");
        refused(&user(json!({ "stream": "yes" })), "stream");
        refused(&user(json!({ "system": [{ "type": "image" }] })), "system[0].type");
        refused(&user(json!({ "messages": [] })), "messages");
        refused(&json!({ "max_tokens": 1 }), "messages");
    }

    #[test]
    fn a_block_is_refused_by_its_place() {
        let turn = |role: &str, content: Value| user(json!({ "messages": [{ "role": role, "content": content }] }));
        let image = json!({ "type": "image", "source": { "type": "base64", "data": "secret" } });
        let text = json!({ "type": "text", "text": "what is this" });
        let message = refused(&turn("user", json!([text, image])), "messages[0].content[1].type");
        assert_eq!(message, "images are not supported: only text can be read");
        let result = json!([{ "type": "tool_result", "tool_use_id": "1", "content": [text, image] }]);
        refused(&turn("user", result), "messages[0].content[0].content[1].type");
        let document = refused(&turn("user", json!([{ "type": "document" }])), "messages[0].content[0].type");
        assert!(document.contains("documents"));
        for (role, kind) in
            [("user", "tool_use"), ("user", "thinking"), ("assistant", "tool_result"), ("assistant", "server_tool_use")]
        {
            refused(&turn(role, json!([{ "type": kind }])), "messages[0].content[0].type");
        }
        refused(&turn("user", json!([{ "type": "tool_result" }])), "messages[0].content[0].tool_use_id");
        refused(&turn("assistant", json!([{ "type": "tool_use", "input": [] }])), "messages[0].content[0].input");
        refused(&turn("user", json!([])), "messages[0].content");
        refused(&turn("user", json!(null)), "messages[0].content");
        refused(&turn("tool", json!("x")), "messages[0].role");
    }

    #[test]
    fn an_error_never_repeats_a_message() {
        let body =
            user(json!({ "messages": [{ "role": "user", "content": [{ "type": "secret", "text": "secret" }] }] }));
        assert!(!refused(&body, "messages[0].content[0].type").contains("secret"));
        let body = user(json!({ "messages": [{ "role": "secret", "content": { "secret": "text" } }] }));
        assert!(!refused(&body, "messages[0].role").contains("secret"));
        let broken = br#"{"max_tokens":1,"messages":[{"role":"user","content":"secret"#;
        assert!(!decode_request(broken).unwrap_err().message.contains("secret"));
    }
}

use std::fmt;

use chat::{ChatRequest, Message, OutputConstraint, ReasoningEffort, Role, SamplingParams, Tool};
use serde_json::Value;

use super::item::decode_input;
use crate::json::{Object, body_object, flag, member, number, required_string, string, whole, wrong_type};
use crate::openai::request::top_logprobs;
use crate::openai::tools::{decode_function, offered_tools};
use crate::request_error::RequestError;

/// One call of `/v1/responses`, decoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponsesCall {
    /// What is asked.
    pub request: ChatRequest,
    /// The answer is wanted as a stream of events.
    pub stream: bool,
    /// What the response repeats of the request.
    pub repeated: Repeated,
}

/// Members of a request that its response repeats. `Debug` shows none of them: `instructions` is text of a message.
#[derive(Clone, Default, PartialEq)]
pub struct Repeated(pub(super) Object);

impl fmt::Debug for Repeated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} members>", self.0.len())
    }
}

const REPEATED: [&str; 9] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
];

/// What can't be served, and the sentence that says so.
const REFUSED: [(&str, &str); 3] = [
    (
        "previous_response_id",
        "no response is kept here, so `previous_response_id` is not supported: send the conversation in `input`",
    ),
    ("conversation", "no conversation is kept here, so `conversation` is not supported: send it in `input`"),
    ("prompt", "no prompt is kept here, so `prompt` is not supported: send its text in `instructions` or `input`"),
];

/// Reads the body of a call. Unknown members are ignored, and so are those that say how OpenAI serves: `store`, `metadata`,
/// `service_tier`, `truncation`, `prompt_cache_key`, encrypted reasoning. Members that would change the answer and can't be
/// served (what is kept on a server, images, OpenAI's own tools, a forced call) are errors.
pub fn decode_request(body: &[u8]) -> Result<ResponsesCall, RequestError> {
    let mut object = body_object(body)?;
    for (name, message) in REFUSED {
        if member(&object, name).is_some() {
            return Err(RequestError::at(name, message));
        }
    }
    if flag(&object, "background", "background")? {
        let message = "an answer can't be fetched later: `background` must be false";
        return Err(RequestError::at("background", message));
    }
    let model = member(&object, "model").map(|value| string(value, "model")).transpose()?;
    let request = ChatRequest {
        model: model.filter(|name| !name.is_empty()),
        messages: decode_messages(&object)?,
        tools: decode_tools(&object)?,
        reasoning_effort: decode_effort(&object)?,
        sampling: decode_sampling(&object)?,
        ..ChatRequest::default()
    };
    let stream = flag(&object, "stream", "stream")?;
    object.retain(|name, value| REPEATED.contains(&name.as_str()) && !value.is_null());
    Ok(ResponsesCall { request, stream, repeated: Repeated(object) })
}

fn decode_messages(object: &Object) -> Result<Vec<Message>, RequestError> {
    let mut messages = Vec::new();
    if let Some(text) = member(object, "instructions") {
        let text = string(text, "instructions")?;
        if !text.is_empty() {
            messages.push(Message::new(Role::System, text));
        }
    }
    let input = member(object, "input").ok_or_else(|| RequestError::at("input", "`input` is missing"))?;
    decode_input(&mut messages, input)?;
    Ok(messages)
}

fn decode_tools(object: &Object) -> Result<Vec<Tool>, RequestError> {
    let tool = |(index, value): (usize, &Value)| {
        let at = format!("tools[{index}]");
        let Value::Object(tool) = value else { return Err(wrong_type(&at, "an object", value)) };
        if required_string(tool, "type", &at)? != "function" {
            let message = "only tools of type `function` are supported: no tool runs on this server";
            return Err(RequestError::at(format!("{at}.type"), message));
        }
        decode_function(tool, &at)
    };
    offered_tools(object)?.iter().enumerate().map(tool).collect()
}

fn decode_effort(object: &Object) -> Result<Option<ReasoningEffort>, RequestError> {
    let Some(effort) = inner(object, "reasoning")?.and_then(|reasoning| member(reasoning, "effort")) else {
        return Ok(None);
    };
    let at = "reasoning.effort";
    let refused = || RequestError::at(at, format!("`{at}` must be none, minimal, low, medium, high, xhigh or max"));
    ReasoningEffort::parse(&string(effort, at)?).map(Some).ok_or_else(refused)
}

fn decode_sampling(object: &Object) -> Result<SamplingParams, RequestError> {
    let most = whole(object, "max_output_tokens")?.map(|most| {
        let most = usize::try_from(most).ok().filter(|most| *most > 0);
        most.ok_or_else(|| RequestError::at("max_output_tokens", "`max_output_tokens` must be at least 1"))
    });
    let top_logprobs = top_logprobs(object)?;
    let tells_logprobs = match member(object, "include") {
        None => false,
        Some(Value::Array(names)) => names.iter().any(|name| name == "message.output_text.logprobs"),
        Some(other) => return Err(wrong_type("include", "an array", other)),
    };
    Ok(SamplingParams {
        temperature: number(object, "temperature", 0.0, 100.0)?,
        top_p: number(object, "top_p", 0.0, 1.0)?,
        max_tokens: most.transpose()?,
        top_logprobs: tells_logprobs.then_some(top_logprobs),
        constraint: decode_format(object)?,
        ..SamplingParams::default()
    })
}

fn decode_format(object: &Object) -> Result<Option<OutputConstraint>, RequestError> {
    let Some(format) = inner(object, "text")?.and_then(|text| member(text, "format")) else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(OutputConstraint::Json)),
        Some("json_schema") => {
            let at = "text.format.schema";
            match format.get("schema") {
                Some(schema @ Value::Object(_)) => Ok(Some(OutputConstraint::JsonSchema(schema.to_string()))),
                Some(other) => Err(wrong_type(at, "an object", other)),
                None => Err(RequestError::at(at, format!("`{at}` is missing"))),
            }
        }
        _ => {
            let at = "text.format.type";
            Err(RequestError::at(at, format!("`{at}` must be text, json_object or json_schema")))
        }
    }
}

fn inner<'a>(object: &'a Object, name: &str) -> Result<Option<&'a Object>, RequestError> {
    match member(object, name) {
        None => Ok(None),
        Some(Value::Object(inner)) => Ok(Some(inner)),
        Some(other) => Err(wrong_type(name, "an object", other)),
    }
}

#[cfg(test)]
mod tests {
    use chat::{Redacted, ToolCall};
    use serde_json::json;

    use super::*;

    fn decode(body: &Value) -> ResponsesCall {
        decode_request(body.to_string().as_bytes()).unwrap()
    }

    fn messages(input: Value) -> Vec<Message> {
        decode(&json!({ "input": input })).request.messages
    }

    fn refused(body: &Value, param: &str) -> String {
        let error = decode_request(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{body}");
        error.message
    }

    fn user(extra: Value) -> Value {
        let mut body = json!({ "input": "hi" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    #[test]
    fn everything_that_is_said_is_read() {
        let tools = json!([
            { "type": "function", "name": "ls", "description": "lists", "parameters": { "type": "object" }, "strict": true },
            { "type": "function", "name": "pwd", "parameters": null, "strict": null },
        ]);
        let schema = json!({ "type": "json_schema", "name": "x", "schema": { "type": "object" }, "strict": true });
        let body = json!({
            "model": "qwen", "stream": true, "instructions": "be brief", "store": true, "metadata": { "a": "b" },
            "input": "hi", "tools": tools, "tool_choice": "auto", "parallel_tool_calls": true,
            "temperature": 0.2, "top_p": 0.9, "max_output_tokens": 16, "text": { "format": schema, "verbosity": "low" },
            "reasoning": { "effort": "minimal", "summary": "auto" }, "truncation": "auto", "background": false,
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "top_logprobs": 2,
            "prompt_cache_key": "x", "service_tier": "auto", "previous_response_id": null,
        });
        let call = decode(&body);
        let expected = ChatRequest {
            model: Some("qwen".into()),
            messages: vec![Message::new(Role::System, "be brief"), Message::new(Role::User, "hi")],
            tools: vec![
                Tool { name: "ls".into(), description: "lists".into(), parameters: r#"{"type":"object"}"#.into() },
                Tool { name: "pwd".into(), ..Tool::default() },
            ],
            reasoning_effort: Some(ReasoningEffort::Low),
            sampling: SamplingParams {
                temperature: Some(0.2),
                top_p: Some(0.9),
                max_tokens: Some(16),
                top_logprobs: Some(2),
                constraint: Some(OutputConstraint::JsonSchema(r#"{"type":"object"}"#.into())),
                ..SamplingParams::default()
            },
            ..ChatRequest::default()
        };
        assert_eq!((&call.request, call.stream), (&expected, true));
        assert_eq!(call.repeated.0.len(), REPEATED.len());
        assert!(!format!("{call:?}").contains("brief"));
        let plain = decode(&user(json!({ "top_logprobs": 3, "text": { "format": { "type": "json_object" } } })));
        assert_eq!(plain.request.sampling.top_logprobs, None);
        assert_eq!(plain.request.sampling.constraint, Some(OutputConstraint::Json));
    }

    #[test]
    fn items_are_turns_in_order() {
        let read = messages(json!([
            { "role": "developer", "content": "be kind" },
            { "type": "message", "role": "user", "content": [
                { "type": "input_text", "text": "a" }, { "type": "input_text", "text": "b" } ] },
            { "role": "user", "content": "c" },
            { "type": "reasoning", "id": "rs_1", "summary": [{ "type": "summary_text", "text": "unread" }],
                "content": [{ "type": "reasoning_text", "text": "hm" }], "encrypted_content": null },
            { "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                { "type": "output_text", "text": "I look", "annotations": [] }, { "type": "refusal", "refusal": "no" } ] },
            { "type": "function_call", "id": "fc_1", "call_id": "1", "name": "ls", "arguments": "{\"p\": \"/\"}" },
            { "type": "function_call", "call_id": "2", "name": "ls", "arguments": "" },
            { "type": "function_call_output", "call_id": "1", "output": "x" },
            { "type": "function_call_output", "call_id": "2", "output": [{ "type": "input_text", "text": "y" }] },
            { "type": "reasoning", "summary": [], "encrypted_content": "gAAA" },
            { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "so" }] },
            { "role": "assistant", "content": "done" },
            { "role": "user", "content": "thanks" },
        ]));
        let call = |id: &str, arguments: &str| ToolCall {
            id: id.into(),
            name: "ls".into(),
            arguments: Redacted(arguments.into()),
        };
        let result = |id: &str, text: &str| Message { tool_call_id: Some(id.into()), ..Message::new(Role::Tool, text) };
        let expected = [
            Message::new(Role::System, "be kind"),
            Message::new(Role::User, "a\nb\nc"),
            Message {
                reasoning: Some(Redacted("hm".into())),
                tool_calls: vec![call("1", r#"{"p": "/"}"#), call("2", "")],
                ..Message::new(Role::Assistant, "I look\nno")
            },
            result("1", "x"),
            result("2", "y"),
            Message { reasoning: Some(Redacted("so".into())), ..Message::new(Role::Assistant, "done") },
            Message::new(Role::User, "thanks"),
        ];
        assert_eq!(read, expected);
        let body = json!({ "instructions": "a", "input": [{ "role": "system", "content": "b" }] });
        assert_eq!(decode(&body).request.messages, [Message::new(Role::System, "a\nb")]);
    }

    #[test]
    fn what_is_kept_elsewhere_is_refused_by_name() {
        for (name, value) in [
            ("previous_response_id", json!("resp_1")),
            ("conversation", json!({ "id": "conv_1" })),
            ("prompt", json!({ "id": "pmpt_1" })),
            ("background", json!(true)),
        ] {
            assert!(refused(&user(json!({ name: value })), name).contains(&format!("`{name}`")));
        }
        let reference = json!({ "input": [{ "type": "item_reference", "id": "msg_1" }] });
        assert!(refused(&reference, "input[0].type").contains("nothing is kept"));
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let tools = json!([{ "type": "function", "name": "f" }]);
        for choice in [json!("required"), json!({ "type": "function", "name": "f" })] {
            refused(&user(json!({ "tools": tools, "tool_choice": choice })), "tool_choice");
        }
        assert_eq!(decode(&user(json!({ "tools": tools, "tool_choice": "none" }))).request.tools, []);
        for kind in ["web_search", "file_search", "code_interpreter", "mcp", "custom"] {
            let message = refused(&user(json!({ "tools": [{ "type": kind }] })), "tools[0].type");
            assert!(message.contains("`function`"), "{message}");
        }
        refused(&user(json!({ "tools": [{ "type": "function", "function": { "name": "f" } }] })), "tools[0].name");
        refused(
            &user(json!({ "tools": [{ "type": "function", "name": "f", "parameters": 3 }] })),
            "tools[0].parameters",
        );
        refused(&user(json!({ "tools": [3] })), "tools[0]");
        let format = |format| user(json!({ "text": { "format": format } }));
        refused(&format(json!({ "type": "yaml" })), "text.format.type");
        refused(&format(json!({ "type": "json_schema", "name": "x" })), "text.format.schema");
        refused(&user(json!({ "text": "json" })), "text");
        refused(&user(json!({ "reasoning": { "effort": "some" } })), "reasoning.effort");
        refused(&user(json!({ "max_output_tokens": 0 })), "max_output_tokens");
        refused(&user(json!({ "max_output_tokens": -1 })), "max_output_tokens");
        refused(&user(json!({ "top_logprobs": 21 })), "top_logprobs");
        refused(&user(json!({ "include": "x" })), "include");
        refused(&user(json!({ "temperature": "hot" })), "temperature");
        refused(&user(json!({ "stream": "yes" })), "stream");
        refused(&user(json!({ "instructions": [] })), "instructions");
        refused(&json!({ "instructions": "x" }), "input");
        refused(&json!({ "input": [] }), "input");
        refused(&json!({ "input": 3 }), "input");
    }

    #[test]
    fn an_item_is_refused_by_its_place() {
        let item = |item: Value| json!({ "input": [{ "role": "user", "content": "hi" }, item] });
        let part = |kind: &str| item(json!({ "role": "user", "content": [{ "type": kind, "text": "secret" }] }));
        for (kind, word) in [("input_image", "images"), ("input_audio", "audio"), ("input_file", "files")] {
            assert!(refused(&part(kind), "input[1].content[0].type").starts_with(word));
        }
        assert!(!refused(&part("secret"), "input[1].content[0].type").contains("secret"));
        assert!(!refused(&item(json!({ "role": "secret", "content": "x" })), "input[1].role").contains("secret"));
        refused(&item(json!({ "role": "tool", "content": "x" })), "input[1].role");
        refused(&item(json!({ "role": "user" })), "input[1].content");
        refused(&item(json!({ "content": "x" })), "input[1].role");
        refused(&item(json!({ "type": "web_search_call" })), "input[1].type");
        refused(&item(json!({ "type": 3 })), "input[1].type");
        refused(&item(json!({ "type": "function_call", "call_id": "1", "name": "f" })), "input[1].arguments");
        refused(&item(json!({ "type": "function_call_output", "output": "x" })), "input[1].call_id");
        refused(&item(json!({ "type": "reasoning", "summary": [3] })), "input[1].summary[0]");
        refused(&item(json!("hi")), "input[1]");
    }
}

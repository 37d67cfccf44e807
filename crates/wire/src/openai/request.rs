use chat::{ChatRequest, Message, OutputConstraint, ReasoningEffort, Redacted, Role, SamplingParams, Written};
use serde_json::{Value, json};

use super::tools::{decode_tool_calls, decode_tools, encode_tool, encode_tool_call};
use crate::json::{Object, body_object, flag, integer, member, number, string, whole, wrong_type};
use crate::request_error::RequestError;

/// One call of `/v1/chat/completions`, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatCall {
    /// What is asked.
    pub request: ChatRequest,
    /// So many answers to it.
    pub n: usize,
    /// The answer is wanted as a stream of events.
    pub stream: bool,
    /// A stream ends with a chunk that counts tokens.
    pub include_usage: bool,
}

impl Default for ChatCall {
    fn default() -> Self {
        Self { request: ChatRequest::default(), n: 1, stream: false, include_usage: false }
    }
}

/// The most answers to one request: each takes a place in the queue.
const MOST_CHOICES: i128 = 16;
/// vLLM's name for it.
const TELLS_TOKENS: &str = "return_token_ids";
/// What another Tidegate wrote of the answer; no other server knows this member.
const WRITTEN: &str = "tidegate_written";

/// Reads the body of a call. Unknown members are ignored; members that would change the answer and can't be served
/// (images, a forced call) are errors.
pub fn decode_request(body: &[u8]) -> Result<ChatCall, RequestError> {
    let object = body_object(body)?;
    refuse_unsupported(&object)?;
    let (stream, include_usage) = stream_options(&object)?;
    let request = ChatRequest {
        model: model(&object)?,
        messages: messages(&object)?,
        raw: None,
        tools: decode_tools(&object)?,
        reasoning_effort: reasoning_effort(&object)?,
        sampling: sampling(&object)?,
        written: member(&object, WRITTEN).map(decode_written).transpose()?,
        tells_tokens: flag(&object, TELLS_TOKENS, TELLS_TOKENS)?,
    };
    Ok(ChatCall { request, n: choices(&object)?, stream, include_usage })
}

/// The model that a call names.
pub(super) fn model(object: &Object) -> Result<Option<String>, RequestError> {
    let model = member(object, "model").map(|value| string(value, "model")).transpose()?;
    Ok(model.filter(|name| !name.is_empty()))
}

/// How many answers are wanted.
pub(super) fn choices(object: &Object) -> Result<usize, RequestError> {
    match member(object, "n").map(integer) {
        None => Ok(1),
        Some(Some(n @ 1..=MOST_CHOICES)) => Ok(n as usize),
        Some(_) => Err(RequestError::at("n", format!("`n` must be between 1 and {MOST_CHOICES}"))),
    }
}

/// Whether a stream is wanted, and whether it ends with the count of tokens.
pub(super) fn stream_options(object: &Object) -> Result<(bool, bool), RequestError> {
    let include_usage = match member(object, "stream_options") {
        Some(Value::Object(options)) => flag(options, "include_usage", "stream_options.include_usage")?,
        Some(other) => return Err(wrong_type("stream_options", "an object", other)),
        None => false,
    };
    Ok((flag(object, "stream", "stream")?, include_usage))
}

/// The body that asks a node for `model`'s answer. Parameters that were not set are left to the node; those that
/// OpenAI doesn't know (`top_k`, `min_p`, repetition) go under the names that llama.cpp, vLLM and mlx_lm read.
pub fn encode_request(call: &ChatCall) -> Vec<u8> {
    let ChatRequest { model, messages, raw: _, tools, reasoning_effort, sampling, written, tells_tokens } =
        &call.request;
    let mut body = Object::new();
    if let Some(model) = model {
        body.insert("model".into(), json!(model));
    }
    body.insert("messages".into(), messages.iter().map(encode_message).collect());
    if !tools.is_empty() {
        body.insert("tools".into(), tools.iter().map(encode_tool).collect());
    }
    if let Some(effort) = reasoning_effort {
        // llama.cpp, vLLM and SGLang give these to the template; not every server has a word for "not at all".
        body.insert("chat_template_kwargs".into(), json!({ "enable_thinking": *effort != ReasoningEffort::Off }));
        if *effort != ReasoningEffort::Off {
            body.insert("reasoning_effort".into(), json!(effort.as_str()));
        }
    }
    body.insert("stream".into(), json!(call.stream));
    if call.stream && call.include_usage {
        body.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.into(), value);
        }
    };
    // vLLM, SGLang and llama.cpp want to be told; others go on with a last message of the assistant by themselves.
    let is_continued = messages.last().is_some_and(|last| last.role == Role::Assistant && last.tool_calls.is_empty());
    set("continue_final_message", is_continued.then_some(Value::Bool(true)));
    set("add_generation_prompt", is_continued.then_some(Value::Bool(false)));
    set("n", (call.n > 1).then(|| call.n.into()));
    set("logprobs", sampling.top_logprobs.map(|_| Value::Bool(true)));
    set("top_logprobs", sampling.top_logprobs.map(Value::from));
    set("response_format", sampling.constraint.as_ref().and_then(encode_format));
    set(WRITTEN, written.as_ref().map(encode_written));
    set(TELLS_TOKENS, tells_tokens.then_some(Value::Bool(true)));
    insert_sampling(&mut body, sampling);
    Value::Object(body).to_string().into_bytes()
}

/// The parameters that are set, under every name that servers read them by.
pub(super) fn insert_sampling(body: &mut Object, sampling: &SamplingParams) {
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.into(), value);
        }
    };
    set("temperature", sampling.temperature.map(short));
    set("top_k", sampling.top_k.map(Value::from));
    set("top_p", sampling.top_p.map(short));
    set("min_p", sampling.min_p.map(short));
    set("repetition_penalty", sampling.repetition_penalty.map(short));
    set("repeat_penalty", sampling.repetition_penalty.map(short));
    set("presence_penalty", sampling.presence_penalty.map(short));
    set("frequency_penalty", sampling.frequency_penalty.map(short));
    set("seed", sampling.seed.map(Value::from));
    set("max_tokens", sampling.max_tokens.map(Value::from));
    set("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop)));
    let bias = sampling.logit_bias.iter().map(|(token, bias)| (token.to_string(), json!(bias)));
    set("logit_bias", (!sampling.logit_bias.is_empty()).then(|| Value::Object(bias.collect())));
}

fn encode_format(constraint: &OutputConstraint) -> Option<Value> {
    match constraint {
        OutputConstraint::Json => Some(json!({ "type": "json_object" })),
        OutputConstraint::JsonSchema(schema) => {
            let schema: Value = serde_json::from_str(schema).ok()?;
            let named = json!({ "name": "answer", "schema": schema, "strict": true });
            Some(json!({ "type": "json_schema", "json_schema": named }))
        }
        // The dialect has no word for it.
        OutputConstraint::Grammar(_) => None,
    }
}

fn encode_written(written: &Written) -> Value {
    json!({
        "token_ids": written.tokens,
        "content": written.text.expose(),
        "reasoning_content": written.thinking.expose(),
        "tool_calls": written.calls,
    })
}

fn decode_written(value: &Value) -> Result<Written, RequestError> {
    let Value::Object(object) = value else { return Err(wrong_type(WRITTEN, "an object", value)) };
    let at = |name: &str| format!("{WRITTEN}.{name}");
    let text = |name: &str| member(object, name).map(|text| string(text, &at(name))).transpose();
    let count = |value: &Value, at: &str| {
        let count = integer(value).and_then(|count| u32::try_from(count).ok());
        count.ok_or_else(|| RequestError::at(at, format!("`{at}` must be a whole number")))
    };
    let tokens = match member(object, "token_ids") {
        None => Vec::new(),
        Some(Value::Array(ids)) => {
            let id = |(index, id)| count(id, &format!("{}[{index}]", at("token_ids")));
            ids.iter().enumerate().map(id).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type(&at("token_ids"), "an array", other)),
    };
    let calls = member(object, "tool_calls").map(|calls| count(calls, &at("tool_calls"))).transpose()?;
    Ok(Written {
        tokens,
        text: Redacted(text("content")?.unwrap_or_default()),
        thinking: Redacted(text("reasoning_content")?.unwrap_or_default()),
        calls: calls.unwrap_or_default() as usize,
    })
}

fn encode_message(message: &Message) -> Value {
    let mut object = Object::new();
    object.insert("role".into(), json!(message.role.as_str()));
    object.insert("content".into(), json!(message.text.expose()));
    let mut set = |name: &str, text: Option<&str>| {
        if let Some(text) = text {
            object.insert(name.into(), json!(text));
        }
    };
    set("reasoning_content", message.reasoning.as_ref().map(Redacted::expose));
    set("tool_call_id", message.tool_call_id.as_deref());
    set("name", message.name.as_deref());
    if !message.tool_calls.is_empty() {
        object.insert("tool_calls".into(), message.tool_calls.iter().map(encode_tool_call).collect());
    }
    Value::Object(object)
}

/// A parameter with the digits a person wrote: 0.7 rather than the 0.699999988079071 that the `f32` widens to.
fn short(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn refuse_unsupported(object: &Object) -> Result<(), RequestError> {
    let wants_no_tool = member(object, "tool_choice").and_then(Value::as_str) == Some("none");
    let has_functions = member(object, "functions").is_some_and(|functions| functions != &json!([]));
    if has_functions && !wants_no_tool {
        return Err(RequestError::at("functions", "`functions` is not supported: use `tools` instead"));
    }
    let is_text = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(|kind| *kind == "text"));
    if member(object, "modalities").is_some_and(|value| !is_text(value)) {
        return Err(RequestError::at("modalities", "only text can be answered"));
    }
    Ok(())
}

fn messages(object: &Object) -> Result<Vec<Message>, RequestError> {
    let list = match member(object, "messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(RequestError::at("messages", "`messages` is empty")),
        Some(other) => return Err(wrong_type("messages", "an array", other)),
        None => return Err(RequestError::at("messages", "`messages` is missing")),
    };
    list.iter().enumerate().map(|(index, value)| message(value, &format!("messages[{index}]"))).collect()
}

fn message(value: &Value, at: &str) -> Result<Message, RequestError> {
    let Value::Object(object) = value else { return Err(wrong_type(at, "an object", value)) };
    let role_at = format!("{at}.role");
    let role = match member(object, "role") {
        Some(Value::String(name)) => Role::parse(name).ok_or_else(|| {
            RequestError::at(&role_at, format!("`{role_at}` must be system, developer, user, assistant or tool"))
        })?,
        Some(other) => return Err(wrong_type(&role_at, "a string", other)),
        None => return Err(RequestError::at(&role_at, format!("`{role_at}` is missing"))),
    };
    let optional = |name: &str| member(object, name).map(|value| string(value, &format!("{at}.{name}"))).transpose();
    let content_at = format!("{at}.content");
    let text = match member(object, "content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Result<Vec<&str>, RequestError> = parts
                .iter()
                .enumerate()
                .map(|(index, part)| part_text(part, &format!("{content_at}[{index}]")))
                .collect();
            texts?.join("\n")
        }
        Some(other) => return Err(wrong_type(&content_at, "a string or an array of parts", other)),
        // An assistant's turn may have had nothing to say; anybody else's must say something.
        None if role == Role::Assistant => String::new(),
        None => return Err(RequestError::at(&content_at, format!("`{content_at}` is missing"))),
    };
    let reasoning = optional("reasoning_content")?.or(optional("reasoning")?);
    Ok(Message {
        reasoning: reasoning.map(Redacted),
        tool_calls: decode_tool_calls(object, at)?,
        tool_call_id: optional("tool_call_id")?,
        name: optional("name")?,
        ..Message::new(role, text)
    })
}

fn reasoning_effort(object: &Object) -> Result<Option<ReasoningEffort>, RequestError> {
    if let Some(value) = member(object, "reasoning_effort") {
        let effort = ReasoningEffort::parse(&string(value, "reasoning_effort")?);
        let refused = || RequestError::at("reasoning_effort", "`reasoning_effort` must be none, low, medium or high");
        return effort.map(Some).ok_or_else(refused);
    }
    let options = member(object, "chat_template_kwargs").and_then(Value::as_object);
    let thinks = options.and_then(|options| member(options, "enable_thinking")).and_then(Value::as_bool);
    Ok(thinks.map(|thinks| if thinks { ReasoningEffort::Medium } else { ReasoningEffort::Off }))
}

fn part_text<'a>(part: &'a Value, at: &str) -> Result<&'a str, RequestError> {
    let Value::Object(object) = part else { return Err(wrong_type(at, "an object", part)) };
    let type_at = format!("{at}.type");
    let name = match member(object, "type").and_then(Value::as_str) {
        Some("text") => "text",
        Some("refusal") => "refusal",
        Some("image_url" | "input_image" | "image") => {
            return Err(RequestError::at(type_at, "images are not supported: only text parts can be read"));
        }
        Some("input_audio" | "audio") => {
            return Err(RequestError::at(type_at, "audio is not supported: only text parts can be read"));
        }
        Some(_) => return Err(RequestError::at(type_at, "only parts of type `text` are supported")),
        None => return Err(RequestError::at(&type_at, format!("`{type_at}` is missing"))),
    };
    let text_at = format!("{at}.{name}");
    match object.get(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong_type(&text_at, "a string", other)),
        None => Err(RequestError::at(&text_at, format!("`{text_at}` is missing"))),
    }
}

pub(super) fn sampling(object: &Object) -> Result<SamplingParams, RequestError> {
    let repetition =
        if member(object, "repetition_penalty").is_some() { "repetition_penalty" } else { "repeat_penalty" };
    let top_logprobs = top_logprobs(object)?;
    let most = if member(object, "max_completion_tokens").is_some() { "max_completion_tokens" } else { "max_tokens" };
    Ok(SamplingParams {
        temperature: number(object, "temperature", 0.0, 100.0)?,
        // A negative `top_k` is how vLLM says "all of them".
        top_k: whole(object, "top_k")?.map(|n| usize::try_from(n.max(0)).unwrap_or(usize::MAX)),
        top_p: number(object, "top_p", 0.0, 1.0)?,
        min_p: number(object, "min_p", 0.0, 1.0)?,
        repetition_penalty: number(object, repetition, 0.01, 100.0)?,
        presence_penalty: number(object, "presence_penalty", -100.0, 100.0)?,
        frequency_penalty: number(object, "frequency_penalty", -100.0, 100.0)?,
        // A negative seed is how llama.cpp says "draw one".
        seed: whole(object, "seed")?.and_then(|n| u64::try_from(n).ok()),
        // A negative limit is how llama.cpp and LM Studio say "no limit".
        max_tokens: match whole(object, most)? {
            Some(0) => return Err(RequestError::at(most, format!("`{most}` must be at least 1"))),
            n => n.and_then(|n| usize::try_from(n).ok()),
        },
        stop: stop(object)?,
        logit_bias: logit_bias(object)?,
        top_logprobs: flag(object, "logprobs", "logprobs")?.then_some(top_logprobs),
        constraint: constraint(object)?,
    })
}

fn logit_bias(object: &Object) -> Result<Vec<(u32, f32)>, RequestError> {
    let Some(value) = member(object, "logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(all) = value else { return Err(wrong_type("logit_bias", "an object", value)) };
    let one = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let wrong =
            || RequestError::at("logit_bias", "`logit_bias` must map token ids to numbers between -100 and 100");
        Ok((token.parse().map_err(|_| wrong())?, bias.ok_or_else(wrong)? as f32))
    };
    all.iter().map(one).collect()
}

/// How many tokens are to be told beside each.
pub(crate) fn top_logprobs(object: &Object) -> Result<usize, RequestError> {
    const MOST: usize = 20;
    match whole(object, "top_logprobs")? {
        None => Ok(0),
        Some(top) => usize::try_from(top)
            .ok()
            .filter(|top| *top <= MOST)
            .ok_or_else(|| RequestError::at("top_logprobs", format!("`top_logprobs` must be between 0 and {MOST}"))),
    }
}

fn constraint(object: &Object) -> Result<Option<OutputConstraint>, RequestError> {
    let Some(value) = member(object, "response_format") else { return Ok(None) };
    let Value::Object(format) = value else { return Err(wrong_type("response_format", "an object", value)) };
    match member(format, "type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(OutputConstraint::Json)),
        Some("json_schema") => {
            let at = "response_format.json_schema.schema";
            match value.pointer("/json_schema/schema") {
                Some(schema @ Value::Object(_)) => Ok(Some(OutputConstraint::JsonSchema(schema.to_string()))),
                Some(other) => Err(wrong_type(at, "an object", other)),
                None => Err(RequestError::at(at, format!("`{at}` is missing"))),
            }
        }
        _ => {
            let at = "response_format.type";
            Err(RequestError::at(at, format!("`{at}` must be text, json_object or json_schema")))
        }
    }
}

pub(crate) fn stop(object: &Object) -> Result<Vec<String>, RequestError> {
    let stops = match member(object, "stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let texts = list.iter().enumerate().map(|(index, value)| string(value, &format!("stop[{index}]")));
            texts.collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", other)),
    };
    Ok(stops.into_iter().filter(|text| !text.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &Value, param: &str) -> String {
        let error = decode_request(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{body}");
        error.message
    }

    fn user(extra: Value) -> Value {
        let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    #[test]
    fn everything_that_is_said_is_read() {
        let body = json!({
            "model": "qwen", "stream": true, "stream_options": { "include_usage": true }, "user": "ignored",
            "messages": [
                { "role": "developer", "content": "be brief" },
                { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
                { "role": "assistant", "content": null },
                { "role": "tool", "content": "42", "tool_call_id": "x" },
            ],
            "temperature": 0.2, "top_k": -1, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1,
            "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 7, "max_tokens": 9, "max_completion_tokens": 16.0,
            "stop": "END", "n": 3, "tools": [], "response_format": { "type": "text" }, "logprobs": false,
        });
        let call = decode_request(body.to_string().as_bytes()).unwrap();
        let messages = [
            Message::new(Role::System, "be brief"),
            Message::new(Role::User, "a\nb"),
            Message::new(Role::Assistant, ""),
            Message { tool_call_id: Some("x".into()), ..Message::new(Role::Tool, "42") },
        ];
        assert_eq!(call.request.messages, messages);
        assert_eq!(call.request.model.as_deref(), Some("qwen"));
        assert!(call.stream && call.include_usage && call.n == 3);
        let expected = SamplingParams {
            temperature: Some(0.2),
            top_k: Some(0),
            top_p: Some(0.9),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(-0.5),
            seed: Some(7),
            max_tokens: Some(16),
            stop: vec!["END".into()],
            ..SamplingParams::default()
        };
        assert_eq!(call.request.sampling, expected);
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        assert!(refused(&user(json!({ "n": 17 })), "n").contains("between 1 and 16"));
        refused(&user(json!({ "n": 0 })), "n");
        refused(&user(json!({ "n": "2" })), "n");
        refused(&user(json!({ "tools": [{ "type": "function" }] })), "tools[0].function");
        refused(&user(json!({ "tools": [{ "type": "web_search" }] })), "tools[0].type");
        let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
        refused(&user(json!({ "tools": tools, "tool_choice": "required" })), "tool_choice");
        refused(&user(json!({ "functions": [{ "name": "f" }] })), "functions");
        refused(&user(json!({ "reasoning_effort": "some" })), "reasoning_effort");
        refused(&user(json!({ "response_format": { "type": "yaml" } })), "response_format.type");
        let no_schema = json!({ "type": "json_schema", "json_schema": { "name": "x" } });
        refused(&user(json!({ "response_format": no_schema })), "response_format.json_schema.schema");
        refused(&user(json!({ "logprobs": true, "top_logprobs": 21 })), "top_logprobs");
        refused(&user(json!({ "logprobs": 3 })), "logprobs");
        refused(&user(json!({ "logit_bias": { "x": 1 } })), "logit_bias");
        refused(&user(json!({ "logit_bias": { "5": 1000 } })), "logit_bias");
        refused(&user(json!({ "modalities": ["text", "audio"] })), "modalities");
        refused(&user(json!({ "temperature": "hot" })), "temperature");
        refused(&user(json!({ "temperature": -1 })), "temperature");
        refused(&user(json!({ "top_p": 1.5 })), "top_p");
        refused(&user(json!({ "max_tokens": 0 })), "max_tokens");
        refused(&user(json!({ "max_tokens": 1.5 })), "max_tokens");
        refused(&user(json!({ "stop": ["a", 3] })), "stop[1]");
        refused(&user(json!({ "stream": "yes" })), "stream");
        refused(&json!({ "messages": [] }), "messages");
        refused(&json!({}), "messages");
        let image = json!({ "messages": [{ "role": "user", "content": [
            { "type": "text", "text": "what is this" }, { "type": "image_url", "image_url": { "url": "data:" } } ] }] });
        assert!(refused(&image, "messages[0].content[1].type").contains("images"));
        refused(&json!({ "messages": [{ "role": "bot", "content": "x" }] }), "messages[0].role");
        refused(&json!({ "messages": [{ "role": "user" }] }), "messages[0].content");
        let called = json!({ "messages": [{ "role": "assistant", "content": null, "tool_calls": [{}] }] });
        refused(&called, "messages[0].tool_calls[0]");
    }

    #[test]
    fn what_was_written_elsewhere_comes_back() {
        let written = Written {
            tokens: vec![1, 99_999],
            text: "Grü".to_owned().into(),
            thinking: "h".to_owned().into(),
            calls: 2,
        };
        let request = ChatRequest {
            messages: vec![Message::new(Role::User, "hi")],
            written: Some(written),
            tells_tokens: true,
            ..ChatRequest::default()
        };
        let call = ChatCall { request, n: 1, stream: true, include_usage: true };
        assert_eq!(decode_request(&encode_request(&call)), Ok(call));
        refused(&user(json!({ "tidegate_written": 3 })), "tidegate_written");
        refused(&user(json!({ "tidegate_written": { "token_ids": [1, -1] } })), "tidegate_written.token_ids[1]");
        refused(&user(json!({ "tidegate_written": { "token_ids": 7 } })), "tidegate_written.token_ids");
        refused(&user(json!({ "tidegate_written": { "content": 7 } })), "tidegate_written.content");
        let decoded = decode_request(user(json!({ "tidegate_written": {} })).to_string().as_bytes()).unwrap();
        assert_eq!(decoded.request.written, Some(Written::default()));
    }

    #[test]
    fn bias_probabilities_and_form_come_back() {
        for constraint in [None, Some(OutputConstraint::Json), Some(OutputConstraint::JsonSchema("{\"a\":1}".into()))] {
            let sampling = SamplingParams {
                logit_bias: vec![(5, -100.0), (7, 1.5)],
                top_logprobs: Some(3),
                constraint,
                ..SamplingParams::default()
            };
            let messages = vec![Message::new(Role::User, "hi")];
            let request = ChatRequest { messages, sampling, ..ChatRequest::default() };
            let call = ChatCall { request, ..ChatCall::default() };
            assert_eq!(decode_request(&encode_request(&call)), Ok(call));
        }
    }

    #[test]
    fn a_last_message_of_the_assistant_is_to_be_gone_on_with() {
        let ask =
            |messages| ChatCall { request: ChatRequest { messages, ..ChatRequest::default() }, ..ChatCall::default() };
        let body = |call: &ChatCall| serde_json::from_slice::<Value>(&encode_request(call)).unwrap();
        let open = body(&ask(vec![Message::new(Role::User, "hi"), Message::new(Role::Assistant, "He")]));
        assert_eq!((&open["continue_final_message"], &open["add_generation_prompt"]), (&json!(true), &json!(false)));
        let closed = body(&ask(vec![Message::new(Role::User, "hi")]));
        assert!(closed.get("continue_final_message").is_none() && closed.get("add_generation_prompt").is_none());
    }

    #[test]
    fn an_error_never_repeats_a_message() {
        let body = json!({ "messages": [{ "role": "secret role", "content": { "secret": "text" } }] });
        assert!(!refused(&body, "messages[0].role").contains("secret"));
        let broken = br#"{"messages":[{"role":"user","content":"secret"#;
        assert!(!decode_request(broken).unwrap_err().message.contains("secret"));
    }

    #[test]
    fn negative_means_no_limit_and_no_seed() {
        let call = decode_request(user(json!({ "max_tokens": -1, "seed": -1 })).to_string().as_bytes()).unwrap();
        assert_eq!(call.request.sampling, SamplingParams::default());
    }
}

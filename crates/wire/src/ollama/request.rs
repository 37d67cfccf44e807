use std::collections::VecDeque;

use chat::{ChatRequest, Message, OutputConstraint, RawText, ReasoningEffort, Redacted, Role, SamplingParams};
use serde_json::Value;

use crate::json::{Object, body_object, integer, member, number, string, whole, wrong_type};
use crate::openai::request::{stop, top_logprobs};
use crate::openai::tools::{decode_tool_calls, decode_tools};
use crate::request_error::RequestError;

/// One call of `/api/chat` or `/api/generate`, decoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatCall {
    /// What is asked.
    pub request: ChatRequest,
    /// The answer is wanted as a stream of lines, which is what a call means that doesn't say.
    pub stream: bool,
    /// Set where nothing is asked: the request has no message and is about the model alone.
    pub load_change: Option<LoadChange>,
}

/// What a call without a message or a prompt wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadChange {
    /// The model is to be in memory.
    Load,
    /// The model is to leave memory: the call has a `keep_alive` of 0. `ollama stop` says it this way.
    Unload,
}

/// Reads the body of a call of `/api/chat`. Unknown members and what says how a model is loaded (`keep_alive`,
/// `options.num_ctx`) are ignored; members that would change the answer and can't be served (images)
/// are errors.
///
/// Calls and results that have no ids, as Ollama's clients send them, get some: a result belongs to the oldest call of
/// its `tool_name` that has none yet.
pub fn decode_chat(body: &[u8]) -> Result<ChatCall, RequestError> {
    let object = body_object(body)?;
    let mut messages = match member(&object, "messages") {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            let message = |(index, value)| message(value, &format!("messages[{index}]"));
            list.iter().enumerate().map(message).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type("messages", "an array", other)),
    };
    tie_results_to_calls(&mut messages);
    call(&object, messages, None)
}

/// Reads the body of a call of `/api/generate`: a chat of one message of the user, after one of the system where the
/// call has it; or text that is gone on with as it stands, where the prompt is `raw` or has a `suffix`. The `context` of an
/// earlier answer is ignored, as no answer of ours has one. A `template` is an error, and all that [`decode_chat`] refuses.
pub fn decode_generate(body: &[u8]) -> Result<ChatCall, RequestError> {
    let object = body_object(body)?;
    refuse_images(&object, "images")?;
    if !optional(&object, "template")?.is_empty() {
        let reason = "the model's own template is always used: `template` is not supported";
        return Err(RequestError::at("template", reason));
    }
    let (prompt, system) = (optional(&object, "prompt")?, optional(&object, "system")?);
    let suffix = Some(optional(&object, "suffix")?).filter(|suffix| !suffix.is_empty());
    if suffix.is_some() || (flag(&object, "raw")?.unwrap_or(false) && !prompt.is_empty()) {
        let raw = RawText { prefix: Redacted(prompt), suffix: suffix.map(Redacted) };
        return call(&object, Vec::new(), Some(raw));
    }
    let mut messages = Vec::new();
    if !prompt.is_empty() {
        messages.extend((!system.is_empty()).then(|| Message::new(Role::System, system)));
        messages.push(Message::new(Role::User, prompt));
    }
    call(&object, messages, None)
}

/// A text, empty where it is absent.
pub(super) fn optional(object: &Object, name: &str) -> Result<String, RequestError> {
    member(object, name).map_or_else(|| Ok(String::new()), |value| string(value, name))
}

/// The model that a call names.
pub(super) fn model(object: &Object) -> Result<Option<String>, RequestError> {
    Ok(Some(optional(object, "model")?).filter(|name| !name.is_empty()))
}

pub(super) fn flag(object: &Object, name: &str) -> Result<Option<bool>, RequestError> {
    let flag = |value: &Value| value.as_bool().ok_or_else(|| wrong_type(name, "a boolean", value));
    member(object, name).map(flag).transpose()
}

fn call(object: &Object, messages: Vec<Message>, raw: Option<RawText>) -> Result<ChatCall, RequestError> {
    let top_logprobs = flag(object, "logprobs")?.unwrap_or(false).then(|| top_logprobs(object)).transpose()?;
    let load_change = (messages.is_empty() && raw.is_none()).then(|| {
        let is_zero = member(object, "keep_alive").is_some_and(is_no_time);
        if is_zero { LoadChange::Unload } else { LoadChange::Load }
    });
    let constraint = constraint(object)?;
    let request = ChatRequest {
        model: model(object)?,
        messages,
        raw,
        tools: decode_tools(object)?,
        reasoning_effort: reasoning_effort(object)?,
        sampling: SamplingParams { constraint, top_logprobs, ..sampling(object)? },
        ..ChatRequest::default()
    };
    Ok(ChatCall { request, stream: flag(object, "stream")?.unwrap_or(true), load_change })
}

fn message(value: &Value, at: &str) -> Result<Message, RequestError> {
    let Value::Object(object) = value else { return Err(wrong_type(at, "an object", value)) };
    refuse_images(object, &format!("{at}.images"))?;
    let role_at = format!("{at}.role");
    let role = match member(object, "role") {
        Some(value) => Role::parse(&string(value, &role_at)?.to_ascii_lowercase()).ok_or_else(|| {
            RequestError::at(&role_at, format!("`{role_at}` must be system, user, assistant or tool"))
        })?,
        None => return Err(RequestError::at(&role_at, format!("`{role_at}` is missing"))),
    };
    let text = |name: &str| {
        let text = member(object, name).map(|value| string(value, &format!("{at}.{name}"))).transpose();
        text.map(|text| text.filter(|text| !text.is_empty()))
    };
    Ok(Message {
        reasoning: text("thinking")?.map(Redacted),
        tool_calls: decode_tool_calls(object, at)?,
        tool_call_id: text("tool_call_id")?,
        name: text("tool_name")?,
        ..Message::new(role, text("content")?.unwrap_or_default())
    })
}

/// Gives ids where there are none. Other dialects and many templates tell calls and results apart by nothing else, and
/// Mistral's templates want exactly nine letters and digits.
fn tie_results_to_calls(messages: &mut [Message]) {
    let mut count = 0;
    let mut open: VecDeque<(String, String)> = VecDeque::new();
    for message in messages {
        for call in &mut message.tool_calls {
            count += 1;
            if call.id.is_empty() {
                call.id = format!("call{count:05}");
            }
            open.push_back((call.id.clone(), call.name.clone()));
        }
        if message.role != Role::Tool {
            continue;
        }
        let of_result = open.iter().position(|(id, name)| match (&message.tool_call_id, &message.name) {
            (Some(result_id), _) => id == result_id,
            (None, Some(result_name)) => name == result_name,
            (None, None) => true,
        });
        if let Some((id, _)) = of_result.and_then(|index| open.remove(index)) {
            message.tool_call_id = Some(id);
        }
    }
}

fn refuse_images(object: &Object, at: &str) -> Result<(), RequestError> {
    match member(object, "images") {
        None => Ok(()),
        Some(Value::Array(images)) if images.is_empty() => Ok(()),
        Some(_) => Err(RequestError::at(at, "images are not supported: only text can be read")),
    }
}

fn constraint(object: &Object) -> Result<Option<OutputConstraint>, RequestError> {
    match member(object, "format") {
        None => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) if name == "json" => Ok(Some(OutputConstraint::Json)),
        Some(schema @ Value::Object(_)) => Ok(Some(OutputConstraint::JsonSchema(schema.to_string()))),
        Some(_) => Err(RequestError::at("format", "`format` must be \"json\" or an object: a JSON schema")),
    }
}

fn reasoning_effort(object: &Object) -> Result<Option<ReasoningEffort>, RequestError> {
    match member(object, "think") {
        None => Ok(None),
        Some(Value::Bool(false)) => Ok(Some(ReasoningEffort::Off)),
        Some(Value::Bool(true)) => Ok(Some(ReasoningEffort::Medium)),
        Some(Value::String(name)) if matches!(name.as_str(), "low" | "medium" | "high" | "max") => {
            Ok(ReasoningEffort::parse(name))
        }
        Some(_) => Err(RequestError::at("think", "`think` must be a boolean, low, medium, high or max")),
    }
}

fn sampling(object: &Object) -> Result<SamplingParams, RequestError> {
    let options = match member(object, "options") {
        None => return Ok(SamplingParams::default()),
        Some(Value::Object(options)) => options,
        Some(other) => return Err(wrong_type("options", "an object", other)),
    };
    Ok(SamplingParams {
        temperature: number(options, "temperature", 0.0, 100.0)?,
        top_k: whole(options, "top_k")?.map(|n| usize::try_from(n.max(0)).unwrap_or(usize::MAX)),
        top_p: number(options, "top_p", 0.0, 1.0)?,
        min_p: number(options, "min_p", 0.0, 1.0)?,
        repetition_penalty: number(options, "repeat_penalty", 0.01, 100.0)?,
        presence_penalty: number(options, "presence_penalty", -100.0, 100.0)?,
        frequency_penalty: number(options, "frequency_penalty", -100.0, 100.0)?,
        // -1 is "draw one".
        seed: whole(options, "seed")?.and_then(|n| u64::try_from(n).ok()),
        // -1 is "no limit" and -2 "what the context has room for", which is the limit there always is.
        max_tokens: match whole(options, "num_predict")? {
            Some(0) => return Err(RequestError::at("options.num_predict", "`num_predict` must not be 0")),
            n => n.and_then(|n| usize::try_from(n).ok()),
        },
        stop: stop(options)?,
        ..SamplingParams::default()
    })
}

/// Whether a `keep_alive` is 0: as a number of seconds or as a duration in Go's writing, as `0s` or `0h0m`.
fn is_no_time(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('0') && !text.contains(|c: char| matches!(c, '1'..='9')),
        _ => integer(value) == Some(0),
    }
}

#[cfg(test)]
mod tests {
    use chat::{Tool, ToolCall};
    use serde_json::json;

    use super::*;

    fn chat(body: &Value) -> ChatCall {
        decode_chat(body.to_string().as_bytes()).unwrap()
    }

    fn user(extra: Value) -> Value {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    fn refused(body: &Value, param: &str) -> String {
        let error = decode_chat(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{body}");
        error.message
    }

    #[test]
    fn everything_that_is_said_is_read() {
        let call = chat(&json!({
            "model": "qwen", "keep_alive": "5m", "think": "low", "logprobs": false, "format": "json", "truncate": true,
            "messages": [
                { "role": "System", "content": "be brief" },
                { "role": "user", "content": "weather?", "images": [] },
                { "role": "assistant", "thinking": "hm", "tool_calls": [
                    { "function": { "name": "weather", "arguments": { "city": "Kiel", "days": 2 } } } ] },
                { "role": "tool", "content": "rain", "tool_name": "weather" },
            ],
            "tools": [{ "type": "function", "function": { "name": "weather", "description": "tells it",
                "parameters": { "type": "object" } } }],
            "options": { "num_ctx": 8192, "temperature": 0.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05,
                "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 7,
                "num_predict": 16, "stop": ["END"], "mirostat": null },
        }));
        let weather = ToolCall {
            id: "call00001".into(),
            name: "weather".into(),
            arguments: Redacted(r#"{"city":"Kiel","days":2}"#.into()),
        };
        let messages = [
            Message::new(Role::System, "be brief"),
            Message::new(Role::User, "weather?"),
            Message {
                reasoning: Some(Redacted("hm".into())),
                tool_calls: vec![weather],
                ..Message::new(Role::Assistant, "")
            },
            Message {
                tool_call_id: Some("call00001".into()),
                name: Some("weather".into()),
                ..Message::new(Role::Tool, "rain")
            },
        ];
        assert_eq!(call.request.messages, messages);
        assert!(call.stream && call.load_change.is_none(), "a stream is what is meant where nothing is said");
        assert_eq!(call.request.model.as_deref(), Some("qwen"));
        assert_eq!(call.request.reasoning_effort, Some(ReasoningEffort::Low));
        let tool =
            Tool { name: "weather".into(), description: "tells it".into(), parameters: r#"{"type":"object"}"#.into() };
        assert_eq!(call.request.tools, [tool]);
        let expected = SamplingParams {
            temperature: Some(0.2),
            top_k: Some(20),
            top_p: Some(0.9),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(-0.5),
            seed: Some(7),
            max_tokens: Some(16),
            stop: vec!["END".into()],
            constraint: Some(OutputConstraint::Json),
            ..SamplingParams::default()
        };
        assert_eq!(call.request.sampling, expected);
    }

    #[test]
    fn options_have_words_for_none() {
        for none in [-1, -2] {
            let call = chat(&user(json!({ "options": { "num_predict": none, "seed": -1 }, "format": "" })));
            assert_eq!(call.request.sampling, SamplingParams::default());
        }
        let schema = chat(&user(json!({ "format": { "type": "object" } }))).request.sampling.constraint;
        assert_eq!(schema, Some(OutputConstraint::JsonSchema(r#"{"type":"object"}"#.into())));
        let effort = |think: Value| chat(&user(json!({ "think": think }))).request.reasoning_effort;
        assert_eq!(effort(json!(null)), None);
        assert_eq!(effort(json!(false)), Some(ReasoningEffort::Off));
        assert_eq!(effort(json!(true)), Some(ReasoningEffort::Medium));
        assert_eq!(effort(json!("max")), Some(ReasoningEffort::High));
        assert!(!chat(&user(json!({ "stream": false }))).stream);
    }

    #[test]
    fn a_result_belongs_to_the_oldest_open_call_of_its_name() {
        let called =
            |name: &str, id: &str| json!({ "id": id, "function": { "index": 0, "name": name, "arguments": {} } });
        let result = |extra: Value| {
            let mut result = json!({ "role": "tool", "content": "x" });
            result.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            result
        };
        let call = chat(&json!({ "messages": [
            { "role": "assistant", "tool_calls": [called("a", ""), called("b", "own"), called("a", "")] },
            result(json!({ "tool_name": "a" })),
            result(json!({ "tool_call_id": "call00003" })),
            result(json!({})),
            result(json!({ "tool_name": "a" })),
            result(json!({ "tool_call_id": "elsewhere" })),
        ] }));
        let ids: Vec<_> = call.request.messages[1..].iter().map(|message| message.tool_call_id.as_deref()).collect();
        assert_eq!(ids, [Some("call00001"), Some("call00003"), Some("own"), None, Some("elsewhere")]);
    }

    #[test]
    fn nothing_to_answer_is_about_the_model() {
        let change = |body: Value| {
            let (chat, generate) = (chat(&body), decode_generate(body.to_string().as_bytes()).unwrap());
            assert_eq!(chat.load_change, generate.load_change);
            assert_eq!(chat.request, ChatRequest { model: Some("m".into()), ..ChatRequest::default() });
            chat.load_change
        };
        for load in [json!(null), json!("5m"), json!(-1), json!("10s"), json!(30), json!("")] {
            let body = json!({ "model": "m", "messages": [], "prompt": "", "keep_alive": load });
            assert_eq!(change(body), Some(LoadChange::Load), "{load}");
        }
        for unload in [json!(0), json!("0"), json!("0s"), json!("0h0m"), json!(0.0)] {
            let body = json!({ "model": "m", "keep_alive": unload });
            assert_eq!(change(body), Some(LoadChange::Unload), "{unload}");
        }
        assert_eq!(chat(&user(json!({ "keep_alive": 0 }))).load_change, None);
    }

    #[test]
    fn a_prompt_is_a_chat_of_one_message() {
        // As the Python client writes it, with its empty texts.
        let body = json!({ "model": "m", "prompt": "hi", "suffix": "", "system": "be brief", "template": "",
            "context": [1, 2], "stream": false, "raw": false, "options": { "num_predict": 5 } });
        let call = decode_generate(body.to_string().as_bytes()).unwrap();
        let messages = [Message::new(Role::System, "be brief"), Message::new(Role::User, "hi")];
        assert_eq!(call.request.messages, messages);
        assert_eq!((call.stream, call.request.sampling.max_tokens), (false, Some(5)));
        for (name, value) in [
            ("template", json!("{{ .Prompt }}")),
            ("images", json!(["aGk="])),
            ("logprobs", json!(2)),
            ("prompt", json!(["a"])),
        ] {
            let error = decode_generate(json!({ "prompt": "hi", name: value }).to_string().as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
        }
    }

    #[test]
    fn probabilities_are_asked_for() {
        let top = |body: Value| chat(&user(body)).request.sampling.top_logprobs;
        assert_eq!(top(json!({ "logprobs": true, "top_logprobs": 3 })), Some(3));
        assert_eq!([top(json!({ "logprobs": true })), top(json!({ "top_logprobs": 3 }))], [Some(0), None]);
    }

    #[test]
    fn raw_prompts_and_gaps_are_text() {
        let call = |body: Value| decode_generate(body.to_string().as_bytes()).unwrap();
        let raw = |body| call(body).request.raw.map(|raw| (raw.prefix.0, raw.suffix.map(|suffix| suffix.0)));
        assert_eq!(raw(json!({ "prompt": "a", "raw": true, "system": "unused" })), Some(("a".into(), None)));
        assert_eq!(raw(json!({ "prompt": "a", "suffix": "z" })), Some(("a".into(), Some("z".into()))));
        assert_eq!(raw(json!({ "prompt": "", "suffix": "z", "raw": true })), Some((String::new(), Some("z".into()))));
        let filled = call(json!({ "prompt": "a", "suffix": "z" }));
        assert!(filled.load_change.is_none() && filled.request.messages.is_empty());
        let nothing = call(json!({ "prompt": "", "raw": true }));
        assert_eq!((nothing.load_change, nothing.request.raw), (Some(LoadChange::Load), None));
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let image = json!({ "messages": [{ "role": "user", "content": "what", "images": ["aGk="] }] });
        assert!(refused(&image, "messages[0].images").contains("images are not supported"));
        refused(&json!({ "messages": [{ "role": "bot", "content": "x" }] }), "messages[0].role");
        refused(&json!({ "messages": [{ "content": "x" }] }), "messages[0].role");
        refused(&json!({ "messages": [{ "role": "user", "content": [] }] }), "messages[0].content");
        refused(&json!({ "messages": [{ "role": "assistant", "tool_calls": [{}] }] }), "messages[0].tool_calls[0]");
        refused(&json!({ "messages": "hi" }), "messages");
        refused(&user(json!({ "format": "yaml" })), "format");
        refused(&user(json!({ "think": "some" })), "think");
        refused(&user(json!({ "stream": "yes" })), "stream");
        refused(&user(json!({ "logprobs": true, "top_logprobs": 21 })), "top_logprobs");
        refused(&user(json!({ "options": [] })), "options");
        refused(&user(json!({ "options": { "temperature": "hot" } })), "temperature");
        refused(&user(json!({ "options": { "num_predict": 0 } })), "options.num_predict");
        refused(&user(json!({ "tools": [{ "type": "function" }] })), "tools[0].function");
        let broken = decode_chat(br#"{"messages":[{"role":"user","content":"secret"#).unwrap_err();
        assert!(broken.param.is_none() && !broken.message.contains("secret"));
        assert_eq!(decode_chat(b"[]").unwrap_err().message, "the body is an array, not an object");
    }
}

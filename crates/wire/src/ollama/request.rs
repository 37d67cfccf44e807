use std::collections::VecDeque;

use chat::{ChatRequest, Message, OutputConstraint, ReasoningEffort, Redacted, Role, SamplingParams};
use serde_json::{Map, Value};

use crate::openai::RequestError;
use crate::openai::json::{integer, kind, member};
use crate::openai::request::{number, stop, string, whole, wrong_type};
use crate::openai::tools::{decode_tool_calls, decode_tools};

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

type Object = Map<String, Value>;

/// Reads the body of a call of `/api/chat`. Unknown members and what says how a model is loaded (`keep_alive`,
/// `options.num_ctx`) are ignored; members that would change the answer and can't be served (images, log
/// probabilities) are errors.
///
/// Calls and results that have no ids, as Ollama's clients send them, get some: a result belongs to the oldest call of
/// its `tool_name` that has none yet.
pub fn decode_chat(body: &[u8]) -> Result<ChatCall, RequestError> {
    let object = decode_object(body)?;
    let mut messages = match member(&object, "messages") {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            let message = |(index, value)| message(value, &format!("messages[{index}]"));
            list.iter().enumerate().map(message).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type("messages", "an array", other)),
    };
    tie_results_to_calls(&mut messages);
    call(&object, messages)
}

/// Reads the body of a call of `/api/generate`: a chat of one message of the user, after one of the system where the
/// call has it. The `context` of an earlier answer is ignored, as no answer of ours has one. What a chat has no means
/// for is an error: a `suffix`, a `template`, a `raw` prompt, and all that [`decode_chat`] refuses.
pub fn decode_generate(body: &[u8]) -> Result<ChatCall, RequestError> {
    let object = decode_object(body)?;
    refuse_images(&object, "images")?;
    for (name, reason) in [
        ("suffix", "text can't be filled in: `suffix` is not supported"),
        ("template", "the model's own template is always used: `template` is not supported"),
    ] {
        if !optional(&object, name)?.is_empty() {
            return Err(RequestError::at(name, reason));
        }
    }
    if flag(&object, "raw")?.unwrap_or(false) {
        return Err(RequestError::at(
            "raw",
            "a prompt is always put into the model's template: `raw` is not supported",
        ));
    }
    let (prompt, system) = (optional(&object, "prompt")?, optional(&object, "system")?);
    let mut messages = Vec::new();
    if !prompt.is_empty() {
        messages.extend((!system.is_empty()).then(|| Message::new(Role::System, system)));
        messages.push(Message::new(Role::User, prompt));
    }
    call(&object, messages)
}

/// The object that every call of the dialect is.
pub(super) fn decode_object(body: &[u8]) -> Result<Object, RequestError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| RequestError {
        message: format!("the body is not JSON: line {}, column {}", error.line(), error.column()),
        param: None,
    })?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(RequestError { message: format!("the body is {}, not an object", kind(&other)), param: None }),
    }
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

fn call(object: &Object, messages: Vec<Message>) -> Result<ChatCall, RequestError> {
    if flag(object, "logprobs")?.unwrap_or(false) {
        return Err(RequestError::at("logprobs", "log probabilities are not supported"));
    }
    let load_change = messages.is_empty().then(|| {
        let is_zero = member(object, "keep_alive").is_some_and(is_no_time);
        if is_zero { LoadChange::Unload } else { LoadChange::Load }
    });
    let constraint = constraint(object)?;
    let request = ChatRequest {
        model: model(object)?,
        messages,
        tools: decode_tools(object)?,
        reasoning_effort: reasoning_effort(object)?,
        sampling: SamplingParams { constraint, ..sampling(object)? },
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

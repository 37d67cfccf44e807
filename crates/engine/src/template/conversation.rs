//! A request in the words of the templates: the variables that `transformers` would give them.

use chat::{ChatRequest, Message, ReasoningEffort, Role, Tool};
use serde_json::{Map, Value, json};

use crate::LoadError;

/// Ends a message that is to be continued; what a template writes after it is cut off.
const END: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Every text in `request` that somebody wrote.
pub(super) fn texts(request: &ChatRequest) -> Vec<&str> {
    let mut texts = Vec::new();
    for message in &request.messages {
        texts.push(message.text.expose());
        texts.extend(message.reasoning.iter().map(|reasoning| reasoning.expose()));
        texts.extend(message.tool_call_id.as_deref());
        texts.extend(message.name.as_deref());
        for call in &message.tool_calls {
            texts.extend([call.id.as_str(), call.name.as_str(), call.arguments.expose()]);
        }
    }
    for tool in &request.tools {
        texts.extend([tool.name.as_str(), tool.description.as_str(), tool.parameters.as_str()]);
    }
    texts
}

/// The variables, every text in them gone through `seal`. `source` is the template.
pub(super) fn variables(request: &ChatRequest, source: &str, seal: &dyn Fn(&str) -> String) -> Map<String, Value> {
    let mut messages: Vec<Value> = Vec::with_capacity(request.messages.len());
    for (index, turn) in request.messages.iter().enumerate() {
        messages.push(message(turn, &request.messages[..index], source, seal));
    }
    let is_continued = is_continued(request);
    if is_continued && let Some(Value::String(text)) = messages.last_mut().and_then(|last| last.get_mut("content")) {
        text.push_str(END);
    }
    let tools: Vec<Value> = request.tools.iter().map(|of| tool(of, seal)).collect();
    let mut variables = Map::new();
    variables.insert("messages".into(), messages.into());
    variables.insert("tools".into(), if tools.is_empty() { Value::Null } else { tools.into() });
    variables.insert("documents".into(), Value::Null);
    variables.insert("add_generation_prompt".into(), (!is_continued).into());
    if let Some(effort) = request.reasoning_effort {
        let thinks = effort != ReasoningEffort::Off;
        // Each family has its own name for the switch. What can't be switched off thinks as little as it can.
        variables.insert("enable_thinking".into(), thinks.into());
        variables.insert("thinking".into(), thinks.into());
        variables.insert("reasoning_effort".into(), if thinks { effort.as_str() } else { "low" }.into());
    }
    variables
}

/// Whether the answer is the rest of the last message.
pub(super) fn is_continued(request: &ChatRequest) -> bool {
    request.messages.last().is_some_and(|last| last.role == Role::Assistant && last.tool_calls.is_empty())
}

/// Ends a rendered prompt where the last message does.
pub(super) fn cut_at_end(text: &mut String) -> Result<(), LoadError> {
    let at = text.rfind(END.trim_end());
    let at = at.ok_or_else(|| LoadError::Template("it leaves the message out that is to be continued".to_owned()))?;
    let keeps_spaces = text[at..].starts_with(END);
    text.truncate(at);
    if !keeps_spaces {
        text.truncate(text.trim_end().len());
    }
    Ok(())
}

fn message(of: &Message, before: &[Message], source: &str, seal: &dyn Fn(&str) -> String) -> Value {
    let mut object = Map::new();
    let (reasoning, text) = reasoning_and_text(of, source);
    object.insert("role".into(), of.role.as_str().into());
    object.insert("content".into(), seal(text).into());
    if let Some(reasoning) = reasoning {
        let reasoning = seal(reasoning);
        object.insert("reasoning_content".into(), reasoning.as_str().into());
        // gpt-oss's name for it.
        object.insert("thinking".into(), reasoning.into());
    }
    if !of.tool_calls.is_empty() {
        let calls = of.tool_calls.iter().map(|call| {
            let arguments = match serde_json::from_str(call.arguments.expose()) {
                Ok(Value::Object(arguments)) => sealed(Value::Object(arguments), seal),
                _ => Value::String(seal(call.arguments.expose())),
            };
            let function = json!({ "name": seal(&call.name), "arguments": arguments });
            json!({ "id": seal(&call.id), "type": "function", "function": function })
        });
        object.insert("tool_calls".into(), calls.collect());
    }
    if let Some(id) = &of.tool_call_id {
        object.insert("tool_call_id".into(), seal(id).into());
    }
    if let Some(name) = of.name.as_deref().or_else(|| called_tool(of, before)) {
        object.insert("name".into(), seal(name).into());
    }
    Value::Object(object)
}

/// The tool whose result this is: most programs name only the call.
fn called_tool<'a>(result: &Message, before: &'a [Message]) -> Option<&'a str> {
    let id = result.tool_call_id.as_deref()?;
    let calls = before.iter().rev().flat_map(|message| &message.tool_calls);
    calls.into_iter().find(|call| call.id == id).map(|call| call.name.as_str())
}

/// Some programs leave the thinking in the text of the answer. Templates that know about it would look for its tags
/// themselves, but names of tokens are sealed there.
fn reasoning_and_text<'a>(of: &'a Message, source: &str) -> (Option<&'a str>, &'a str) {
    let text = of.text.expose();
    if let Some(reasoning) = &of.reasoning {
        return (Some(reasoning.expose()), text);
    }
    let split = text.trim_start().strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"));
    match split {
        Some((reasoning, rest)) if of.role == Role::Assistant && source.contains("</think>") => {
            (Some(reasoning.trim_matches('\n')), rest.trim_start_matches('\n'))
        }
        _ => (None, text),
    }
}

fn tool(of: &Tool, seal: &dyn Fn(&str) -> String) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), seal(&of.name).into());
    function.insert("description".into(), seal(&of.description).into());
    let parameters = serde_json::from_str(&of.parameters).ok().filter(Value::is_object);
    let parameters = parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    function.insert("parameters".into(), sealed(parameters, seal));
    json!({ "type": "function", "function": function })
}

fn sealed(value: Value, seal: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => seal(&text).into(),
        Value::Array(items) => items.into_iter().map(|item| sealed(item, seal)).collect(),
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(key, value)| (seal(&key), sealed(value, seal))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

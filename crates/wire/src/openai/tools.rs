use chat::{Redacted, Tool, ToolCall};
use serde_json::{Map, Value, json};

use crate::json::{count, member, string, wrong_type};
use crate::request_error::RequestError;

/// A part of a call, as a stream brings it; the first part of a call has its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCallPart {
    /// Counts the calls of one answer, from 0.
    pub index: usize,
    /// Ties the result to the call.
    pub id: Option<String>,
    /// The tool.
    pub name: Option<String>,
    /// Text of the arguments, to be appended.
    pub arguments: Redacted<String>,
}

pub(crate) fn decode_tools(object: &Map<String, Value>) -> Result<Vec<Tool>, RequestError> {
    let offered = offered_tools(object)?.iter().enumerate();
    offered.map(|(index, value)| decode_tool(value, &format!("tools[{index}]"))).collect()
}

/// What stands in `tools`, where the model may call it.
pub(super) fn offered_tools(object: &Map<String, Value>) -> Result<&[Value], RequestError> {
    let list = match member(object, "tools") {
        None => return Ok(&[]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("tools", "an array", other)),
    };
    match member(object, "tool_choice") {
        Some(Value::String(choice)) if choice == "none" => return Ok(&[]),
        Some(Value::String(choice)) if choice == "auto" => {}
        None => {}
        Some(_) if list.is_empty() => {}
        Some(_) => {
            return Err(RequestError::at("tool_choice", "a call can't be forced: `tool_choice` must be auto or none"));
        }
    }
    Ok(list)
}

fn decode_tool(value: &Value, at: &str) -> Result<Tool, RequestError> {
    let Value::Object(object) = value else { return Err(wrong_type(at, "an object", value)) };
    if member(object, "type").is_some_and(|kind| kind != "function") {
        return Err(RequestError::at(format!("{at}.type"), "only tools of type `function` are supported"));
    }
    let function_at = format!("{at}.function");
    let function = match member(object, "function") {
        Some(Value::Object(function)) => function,
        Some(other) => return Err(wrong_type(&function_at, "an object", other)),
        None => return Err(RequestError::at(&function_at, format!("`{function_at}` is missing"))),
    };
    decode_function(function, &function_at)
}

pub(super) fn decode_function(function: &Map<String, Value>, at: &str) -> Result<Tool, RequestError> {
    let name_at = format!("{at}.name");
    let name = member(function, "name").ok_or_else(|| RequestError::at(&name_at, format!("`{name_at}` is missing")))?;
    let description = member(function, "description");
    let description = description.map(|text| string(text, &format!("{at}.description"))).transpose()?;
    let parameters = match member(function, "parameters") {
        None => String::new(),
        Some(schema @ Value::Object(_)) => schema.to_string(),
        Some(other) => return Err(wrong_type(&format!("{at}.parameters"), "an object", other)),
    };
    Ok(Tool { name: string(name, &name_at)?, description: description.unwrap_or_default(), parameters })
}

pub(super) fn encode_tool(tool: &Tool) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), json!(tool.name));
    if !tool.description.is_empty() {
        function.insert("description".into(), json!(tool.description));
    }
    if let Ok(parameters) = serde_json::from_str::<Value>(&tool.parameters) {
        function.insert("parameters".into(), parameters);
    }
    json!({ "type": "function", "function": function })
}

pub(crate) fn decode_tool_calls(object: &Map<String, Value>, at: &str) -> Result<Vec<ToolCall>, RequestError> {
    let at = format!("{at}.tool_calls");
    let list = match member(object, "tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(&at, "an array", other)),
    };
    let call = |(index, value): (usize, &Value)| {
        let at = format!("{at}[{index}]");
        let part = part_of(value, index).filter(|part| part.name.is_some());
        let part = part.ok_or_else(|| RequestError::at(&at, format!("`{at}` is no call of a function")))?;
        Ok(ToolCall { id: part.id.unwrap_or_default(), name: part.name.unwrap_or_default(), arguments: part.arguments })
    };
    list.iter().enumerate().map(call).collect()
}

pub(super) fn encode_tool_call(call: &ToolCall) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments.expose() });
    json!({ "id": call.id, "type": "function", "function": function })
}

/// The calls in a part of an answer; what is no call is passed over.
pub(super) fn parts_of(answer: &Value) -> Vec<ToolCallPart> {
    let list = answer.get("tool_calls").and_then(Value::as_array);
    list.into_iter().flatten().enumerate().filter_map(|(index, value)| part_of(value, index)).collect()
}

fn part_of(value: &Value, index: usize) -> Option<ToolCallPart> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let function = value.get("function")?.as_object()?;
    let arguments = match member(function, "arguments") {
        Some(Value::String(text)) => text.clone(),
        // Ollama and some others send the object itself.
        Some(value @ Value::Object(_)) => value.to_string(),
        _ => String::new(),
    };
    Some(ToolCallPart {
        index: count(value.get("index")).unwrap_or(index),
        id: text(value.get("id")),
        name: text(function.get("name")),
        arguments: Redacted(arguments),
    })
}

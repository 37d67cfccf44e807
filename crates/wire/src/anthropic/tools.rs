use chat::{Redacted, Tool, ToolCall};
use serde_json::{Value, json};

use crate::json::{Object, member, required, required_string, string, wrong_type};
use crate::request_error::RequestError;

/// The name of the only member of an `input` that holds arguments which are no JSON object.
const ARGUMENTS: &str = "arguments";

pub(super) fn decode_tools(object: &Object) -> Result<Vec<Tool>, RequestError> {
    let list = match member(object, "tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("tools", "an array", other)),
    };
    if let Some(choice) = member(object, "tool_choice") {
        let Value::Object(fields) = choice else { return Err(wrong_type("tool_choice", "an object", choice)) };
        match member(fields, "type").and_then(Value::as_str) {
            Some("none") => return Ok(Vec::new()),
            Some("auto") => {}
            _ => {
                let message = "a call can't be forced: `tool_choice.type` must be auto or none";
                return Err(RequestError::at("tool_choice.type", message));
            }
        }
    }
    list.iter().enumerate().map(|(index, value)| decode_tool(value, &format!("tools[{index}]"))).collect()
}

fn decode_tool(value: &Value, at: &str) -> Result<Tool, RequestError> {
    let Value::Object(object) = value else { return Err(wrong_type(at, "an object", value)) };
    // Every other type stands for a schema that only Anthropic's models know, or for a tool that runs on its servers.
    if member(object, "type").is_some_and(|kind| kind != "custom") {
        let message = "only tools with an `input_schema` of their own are supported, not Anthropic's";
        return Err(RequestError::at(format!("{at}.type"), message));
    }
    let description = member(object, "description");
    let schema_at = format!("{at}.input_schema");
    let parameters = match required(object, "input_schema", at)? {
        schema @ Value::Object(_) => schema.to_string(),
        other => return Err(wrong_type(&schema_at, "an object", other)),
    };
    Ok(Tool {
        name: required_string(object, "name", at)?,
        description: description
            .map(|text| string(text, &format!("{at}.description")))
            .transpose()?
            .unwrap_or_default(),
        parameters,
    })
}

/// A `tool_use` block of an assistant's turn.
pub(super) fn decode_tool_use(object: &Object, at: &str) -> Result<ToolCall, RequestError> {
    let input_at = format!("{at}.input");
    let arguments = match required(object, "input", at)? {
        input @ Value::Object(_) => input.to_string(),
        other => return Err(wrong_type(&input_at, "an object", other)),
    };
    Ok(ToolCall {
        id: required_string(object, "id", at)?,
        name: required_string(object, "name", at)?,
        arguments: Redacted(arguments),
    })
}

/// The `tool_use` block of a call. A stream begins it with an empty `input` and brings the rest in deltas.
pub(super) fn tool_use(call: &ToolCall, input: Value) -> Value {
    json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input })
}

/// The arguments as the object that the dialect demands. Text that is none is wrapped, so that whoever runs the tool sees
/// what the model wrote; no text at all is an empty object.
pub(super) fn input_of(call: &ToolCall) -> Value {
    let text = call.arguments.expose();
    match serde_json::from_str(text) {
        Ok(input @ Value::Object(_)) => input,
        _ if text.trim().is_empty() => json!({}),
        _ => json!({ ARGUMENTS: text }),
    }
}

/// Whether the text is a JSON object, which [`input_of`] gives as it is.
pub(super) fn is_object(text: &str) -> bool {
    matches!(serde_json::from_str(text), Ok(Value::Object(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_arguments_is_lost() {
        let input = |text: &str| input_of(&ToolCall { arguments: Redacted(text.into()), ..ToolCall::default() });
        assert_eq!(input(r#"{"b": 1, "a": [2.5]}"#).to_string(), r#"{"b":1,"a":[2.5]}"#);
        assert_eq!(input(" "), json!({}));
        for text in ["[1]", "\"ls\"", "null", r#"{"q": "cut"#, &"[".repeat(100_000)] {
            assert_eq!(input(text), json!({ "arguments": text }));
        }
    }
}

use chat::{Message, Redacted, Role, ToolCall};
use serde_json::Value;

use crate::json::{Object, member, required, required_string, wrong_type};
use crate::request_error::RequestError;
use crate::turn::{append_line, turn_of};

/// The conversation that `input` is: a string, or a list of items. Items of the same role that follow each other are one
/// turn, as several templates want it; an assistant's reasoning, text and calls always are. The result of a call is a
/// message of its own.
pub(super) fn decode_input(messages: &mut Vec<Message>, input: &Value) -> Result<(), RequestError> {
    let items = match input {
        Value::String(text) => {
            append_line(&mut turn_of(messages, Role::User).text, text);
            return Ok(());
        }
        Value::Array(items) if !items.is_empty() => items,
        Value::Array(_) => return Err(RequestError::at("input", "`input` is empty")),
        other => return Err(wrong_type("input", "a string or an array of items", other)),
    };
    for (index, item) in items.iter().enumerate() {
        decode_item(messages, item, &format!("input[{index}]"))?;
    }
    Ok(())
}

fn decode_item(messages: &mut Vec<Message>, item: &Value, at: &str) -> Result<(), RequestError> {
    let Value::Object(object) = item else { return Err(wrong_type(at, "an object", item)) };
    let refused = |message: &str| Err(RequestError::at(format!("{at}.type"), message));
    // A message needs no type.
    match member(object, "type").map_or(Some("message"), Value::as_str) {
        Some("message") => {
            let role_at = format!("{at}.role");
            let role = Role::parse(&required_string(object, "role", at)?).filter(|role| *role != Role::Tool);
            let wrong =
                || RequestError::at(&role_at, format!("`{role_at}` must be user, assistant, system or developer"));
            let text = decode_text(required(object, "content", at)?, &format!("{at}.content"))?;
            append_line(&mut turn_of(messages, role.ok_or_else(wrong)?).text, &text);
        }
        Some("reasoning") => {
            // What only OpenAI can read leaves both empty.
            let texts = |name: &str| -> Result<Option<String>, RequestError> {
                let texts =
                    member(object, name).map(|parts| decode_text(parts, &format!("{at}.{name}"))).transpose()?;
                Ok(texts.filter(|text| !text.is_empty()))
            };
            let turn = turn_of(messages, Role::Assistant);
            if let Some(text) = texts("content")?.or(texts("summary")?) {
                append_line(turn.reasoning.get_or_insert_default(), &text);
            }
        }
        Some("function_call") => {
            let call = ToolCall {
                id: required_string(object, "call_id", at)?,
                name: required_string(object, "name", at)?,
                arguments: Redacted(required_string(object, "arguments", at)?),
            };
            turn_of(messages, Role::Assistant).tool_calls.push(call);
        }
        Some("function_call_output") => {
            let text = decode_text(required(object, "output", at)?, &format!("{at}.output"))?;
            let id = required_string(object, "call_id", at)?;
            messages.push(Message { tool_call_id: Some(id), ..Message::new(Role::Tool, text) });
        }
        Some("item_reference") => {
            return refused("nothing is kept here that an item could refer to: send the item itself");
        }
        _ => {
            return refused(
                "only items of type message, reasoning, function_call and function_call_output are supported",
            );
        }
    }
    Ok(())
}

/// Text that stands in a string or in parts, one line break between two of them.
fn decode_text(content: &Value, at: &str) -> Result<String, RequestError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(at, "a string or an array of parts", other)),
    };
    let text = |(index, part): (usize, &Value)| {
        let at = format!("{at}[{index}]");
        match part {
            Value::Object(part) => part_text(part, &at),
            other => Err(wrong_type(&at, "an object", other)),
        }
    };
    let texts: Vec<String> = parts.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

fn part_text(part: &Object, at: &str) -> Result<String, RequestError> {
    let message = match required(part, "type", at)?.as_str() {
        Some("input_text" | "output_text" | "reasoning_text" | "summary_text" | "text") => {
            return required_string(part, "text", at);
        }
        Some("refusal") => return required_string(part, "refusal", at),
        Some("input_image" | "computer_screenshot") => "images are not supported: only text parts can be read",
        Some("input_audio") => "audio is not supported: only text parts can be read",
        Some("input_file") => "files are not supported: only text parts can be read",
        _ => "only parts of type input_text and output_text are supported",
    };
    Err(RequestError::at(format!("{at}.type"), message))
}

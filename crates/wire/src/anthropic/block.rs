use chat::{Message, Role};
use serde_json::Value;

use super::tools::decode_tool_use;
use crate::json::{Object, flag, member, required, required_string, wrong_type};
use crate::request_error::RequestError;
use crate::turn::{append_line, turn_of};

/// Appends what a turn says. Turns of the same role that follow each other are one, as the dialect says; the result of a
/// call is a message of its own, in its place.
pub(super) fn decode_turn(
    messages: &mut Vec<Message>,
    role: Role,
    content: &Value,
    at: &str,
) -> Result<(), RequestError> {
    let blocks = match content {
        Value::String(text) => {
            append_line(&mut turn_of(messages, role).text, text);
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(at, "a string or an array of blocks", other)),
    };
    if role == Role::Assistant {
        // It may have had nothing to say, or nothing that can be read.
        turn_of(messages, role);
    } else if blocks.is_empty() {
        return Err(RequestError::at(at, format!("`{at}` is empty")));
    }
    for (index, block) in blocks.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let (kind, object) = kind_of(block, &at)?;
        match (kind, role) {
            ("text", _) => append_line(&mut turn_of(messages, role).text, &required_string(object, "text", &at)?),
            ("thinking", Role::Assistant) => {
                let thinking = required_string(object, "thinking", &at)?;
                append_line(turn_of(messages, role).reasoning.get_or_insert_default(), &thinking);
            }
            // Nobody but Anthropic can read it.
            ("redacted_thinking", Role::Assistant) => {}
            ("tool_use", Role::Assistant) => turn_of(messages, role).tool_calls.push(decode_tool_use(object, &at)?),
            ("tool_result", Role::User) => messages.push(decode_tool_result(object, &at)?),
            _ => return Err(refused(kind, &at)),
        }
    }
    Ok(())
}

/// Text that stands in a string or in `text` blocks, one line break between two of them.
pub(super) fn decode_text(content: &Value, at: &str) -> Result<String, RequestError> {
    Ok(decode_texts(content, at)?.join("\n"))
}

/// The texts of a string or of `text` blocks.
pub(super) fn decode_texts(content: &Value, at: &str) -> Result<Vec<String>, RequestError> {
    let blocks = match content {
        Value::String(text) => return Ok(vec![text.clone()]),
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(at, "a string or an array of blocks", other)),
    };
    let text = |(index, block): (usize, &Value)| {
        let at = format!("{at}[{index}]");
        match kind_of(block, &at)? {
            ("text", object) => required_string(object, "text", &at),
            (kind, _) => Err(refused(kind, &at)),
        }
    };
    blocks.iter().enumerate().map(text).collect()
}

/// The templates have no word for a call that failed, so the text begins with one.
fn decode_tool_result(object: &Object, at: &str) -> Result<Message, RequestError> {
    let content = member(object, "content").map(|content| decode_text(content, &format!("{at}.content")));
    let mut text = content.transpose()?.unwrap_or_default();
    if flag(object, "is_error", &format!("{at}.is_error"))? {
        text.insert_str(0, "Error: ");
    }
    let id = required_string(object, "tool_use_id", at)?;
    Ok(Message { tool_call_id: Some(id), ..Message::new(Role::Tool, text) })
}

fn kind_of<'a>(block: &'a Value, at: &str) -> Result<(&'a str, &'a Object), RequestError> {
    let Value::Object(object) = block else { return Err(wrong_type(at, "an object", block)) };
    match required(object, "type", at)? {
        Value::String(kind) => Ok((kind, object)),
        other => Err(wrong_type(&format!("{at}.type"), "a string", other)),
    }
}

fn refused(kind: &str, at: &str) -> RequestError {
    let message = match kind {
        "image" => "images are not supported: only text can be read",
        "document" | "search_result" | "container_upload" => "documents are not supported: only text can be read",
        "thinking" | "redacted_thinking" | "tool_use" => "a block of this type belongs into an assistant's turn",
        "tool_result" => "a block of type `tool_result` belongs into a user's turn",
        _ => "only text, thinking, tool_use and tool_result blocks are supported",
    };
    RequestError::at(format!("{at}.type"), message)
}

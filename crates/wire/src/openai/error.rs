use serde_json::{Value, json};

use crate::json::member;

/// The longest message that is taken from a server, in characters.
const LONGEST_MESSAGE: usize = 400;

/// An error as the dialect writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// A sentence for whoever asked.
    pub message: String,
    /// The class of the error: `invalid_request_error`, `server_error`, ….
    pub kind: Option<String>,
    /// The member of the request that is wrong.
    pub param: Option<String>,
    /// A word for programs: `model_not_found`, ….
    pub code: Option<String>,
}

/// The body of an error reply.
pub fn encode_error(error: &ErrorBody) -> Vec<u8> {
    error_json(error).to_string().into_bytes()
}

pub(super) fn error_json(error: &ErrorBody) -> Value {
    json!({ "error": {
        "message": error.message,
        "type": error.kind.as_deref().unwrap_or("server_error"),
        "param": error.param,
        "code": error.code,
    } })
}

/// Reads the error out of what a server sent, whichever way it writes errors: OpenAI's object, a bare string as Ollama
/// and mlx_lm do, vLLM's older flat object, FastAPI's `detail`, or plain text. `None` where there is no error to be read:
/// an empty body, an HTML page, or JSON that says nothing. The message is one line of at most 400 characters.
pub fn decode_error(body: &[u8]) -> Option<ErrorBody> {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => error_in(&value),
        Err(_) => plain_text(body),
    }
}

/// The error in a JSON value, where it is one.
pub(super) fn error_in(value: &Value) -> Option<ErrorBody> {
    let object = value.as_object()?;
    if let Some(error) = member(object, "error") {
        return from_value(error);
    }
    if let Some(detail) = member(object, "detail") {
        return from_value(detail);
    }
    if object.get("object").and_then(Value::as_str) == Some("error") {
        return from_value(value);
    }
    None
}

fn from_value(value: &Value) -> Option<ErrorBody> {
    match value {
        Value::String(text) => line(text).map(|message| ErrorBody { message, ..ErrorBody::default() }),
        Value::Object(object) => {
            let text = |name: &str| member(object, name).and_then(word);
            let message =
                text("message").or_else(|| text("msg")).or_else(|| text("type")).and_then(|text| line(&text))?;
            Some(ErrorBody { message, kind: text("type"), param: text("param"), code: text("code") })
        }
        // FastAPI's validation errors: the first one is enough for a sentence.
        Value::Array(list) => {
            let first = list.first()?;
            let mut error = from_value(first)?;
            let place = first.get("loc").and_then(Value::as_array);
            error.param = place.map(|parts| parts.iter().filter_map(word).collect::<Vec<_>>().join("."));
            Some(error)
        }
        _ => None,
    }
}

/// A string or a number as a word: `code` is either, depending on the server.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn plain_text(body: &[u8]) -> Option<ErrorBody> {
    let text = std::str::from_utf8(body).ok()?.trim();
    // A page, or JSON that was cut off: neither is a sentence.
    if text.starts_with(['<', '{', '[']) {
        return None;
    }
    line(text).map(|message| ErrorBody { message, ..ErrorBody::default() })
}

/// The text as one bounded line without control characters.
fn line(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = String::new();
    let mut length = 0;
    for word in words {
        for c in (length > 0).then_some(' ').into_iter().chain(word.chars()) {
            if length == LONGEST_MESSAGE {
                line.push('…');
                return Some(line);
            }
            line.push(c);
            length += 1;
        }
    }
    (length > 0).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, message: &str) -> ErrorBody {
        let error = decode_error(body.as_bytes()).unwrap();
        assert_eq!(error.message, message);
        error
    }

    #[test]
    fn errors_of_many_servers_are_read() {
        let openai = r#"{"error":{"message":"The model `x` does not exist","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#;
        assert_eq!(check(openai, "The model `x` does not exist").code.as_deref(), Some("model_not_found"));
        let llama = r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
        assert_eq!(check(llama, "Loading model").code.as_deref(), Some("503"));
        let vllm =
            r#"{"object":"error","message":"max tokens too large","type":"BadRequestError","param":null,"code":400}"#;
        check(vllm, "max tokens too large");
        check(r#"{"error":"model 'x' not found"}"#, "model 'x' not found");
        check(r#"{"detail":"Not Found"}"#, "Not Found");
        let fastapi = r#"{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required","input":{}}]}"#;
        assert_eq!(check(fastapi, "Field required").param.as_deref(), Some("body.messages"));
        check("404 page not found\n", "404 page not found");
        check("one\u{7}\ntwo", "one two");
    }

    #[test]
    fn what_is_not_an_error_is_none() {
        for body in [
            "",
            "  ",
            "<html><body>hello</body></html>",
            "{\"error\":",
            "{}",
            "[]",
            "{\"error\":{}}",
            "{\"error\":null}",
        ] {
            assert_eq!(decode_error(body.as_bytes()), None, "{body}");
        }
        assert_eq!(decode_error(&[0xff, 0xfe]), None);
    }

    #[test]
    fn a_message_is_bounded() {
        let long = decode_error("x".repeat(100_000).as_bytes()).unwrap();
        assert_eq!(long.message.chars().count(), LONGEST_MESSAGE + 1);
    }

    #[test]
    fn our_own_errors_come_back() {
        let error = ErrorBody {
            message: "does not fit".into(),
            kind: Some("server_error".into()),
            param: Some("model".into()),
            code: Some("does_not_fit".into()),
        };
        assert_eq!(decode_error(&encode_error(&error)), Some(error));
    }
}

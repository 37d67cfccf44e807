use serde_json::{Value, json};

/// The dialect's word for an HTTP status, as <https://platform.claude.com/docs/en/api/errors> pairs them. Client errors
/// that have no word are invalid requests, as it says; everything else is `api_error`. A server that is shut for a while
/// is told as overloaded: programs try again on both.
pub const fn error_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

/// The body of an error reply with that HTTP status.
pub fn encode_error(status: u16, message: &str) -> Vec<u8> {
    error_json(status, message).to_string().into_bytes()
}

pub(super) fn error_json(status: u16, message: &str) -> Value {
    json!({ "type": "error", "error": { "type": error_type(status), "message": message } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_its_class_and_a_sentence() {
        let expected = r#"{"type":"error","error":{"type":"not_found_error","message":"no such \"model\""}}"#;
        assert_eq!(encode_error(404, "no such \"model\""), expected.as_bytes());
        for (status, word) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (405, "invalid_request_error"),
            (413, "request_too_large"),
            (429, "rate_limit_error"),
            (500, "api_error"),
            (502, "api_error"),
            (503, "overloaded_error"),
            (504, "timeout_error"),
            (507, "api_error"),
            (529, "overloaded_error"),
        ] {
            assert_eq!(error_type(status), word, "{status}");
        }
    }
}

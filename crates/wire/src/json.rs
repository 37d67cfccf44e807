//! Reading members of a JSON object, with errors that name places and types and never a value.

use serde_json::{Map, Value};

use crate::request_error::RequestError;

pub(crate) type Object = Map<String, Value>;

/// The object that a request's body is.
pub(crate) fn body_object(body: &[u8]) -> Result<Object, RequestError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| RequestError {
        message: format!("the body is not JSON: line {}, column {}", error.line(), error.column()),
        param: None,
    })?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(RequestError { message: format!("the body is {}, not an object", kind(&other)), param: None }),
    }
}

/// The member of that name, where it is there and not null.
pub(crate) fn member<'a>(object: &'a Object, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// The member of that name; `at` is where the object stands.
pub(crate) fn required<'a>(object: &'a Object, name: &str, at: &str) -> Result<&'a Value, RequestError> {
    let at = format!("{at}.{name}");
    member(object, name).ok_or_else(|| RequestError::at(&at, format!("`{at}` is missing")))
}

pub(crate) fn required_string(object: &Object, name: &str, at: &str) -> Result<String, RequestError> {
    string(required(object, name, at)?, &format!("{at}.{name}"))
}

/// A whole number, also where a program wrote it as `16.0`.
pub(crate) fn integer(value: &Value) -> Option<i128> {
    if let Some(n) = value.as_i64() {
        return Some(n.into());
    }
    if let Some(n) = value.as_u64() {
        return Some(n.into());
    }
    let float = value.as_f64()?;
    (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i128)
}

/// A count that fits in memory.
pub(crate) fn count(value: Option<&Value>) -> Option<usize> {
    integer(value?).and_then(|n| usize::try_from(n).ok())
}

/// What kind of thing a value is, for errors that must not repeat the value.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(crate) fn number(object: &Object, name: &str, least: f64, most: f64) -> Result<Option<f32>, RequestError> {
    let Some(value) = member(object, name) else { return Ok(None) };
    let n = value.as_f64().ok_or_else(|| wrong_type(name, "a number", value))?;
    if (least..=most).contains(&n) {
        Ok(Some(n as f32))
    } else {
        Err(RequestError::at(name, format!("`{name}` must be between {least} and {most}")))
    }
}

pub(crate) fn whole(object: &Object, name: &str) -> Result<Option<i128>, RequestError> {
    let Some(value) = member(object, name) else { return Ok(None) };
    integer(value).map(Some).ok_or_else(|| wrong_type(name, "a whole number", value))
}

pub(crate) fn flag(object: &Object, name: &str, at: &str) -> Result<bool, RequestError> {
    match member(object, name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(wrong_type(at, "a boolean", other)),
    }
}

pub(crate) fn string(value: &Value, at: &str) -> Result<String, RequestError> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong_type(at, "a string", value))
}

pub(crate) fn wrong_type(at: &str, wanted: &str, found: &Value) -> RequestError {
    RequestError::at(at, format!("`{at}` must be {wanted}, not {}", kind(found)))
}

use serde_json::{Map, Value};

/// The member of that name, where it is there and not null.
pub(crate) fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
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

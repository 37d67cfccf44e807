//! What stands between the marks of a call, in the words of each family.

use std::collections::HashMap;

use chat::Tool;
use serde_json::{Map, Value};

use super::Call;
use super::literal::Reader;

/// The tools that were offered, as far as reading a call needs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// By the name of the tool, the parameters that are texts: families without quotes don't tell `"5"` from `5`.
    texts: HashMap<String, Vec<String>>,
}

/// How the inside of a call is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// One of three ways that share their marks; the beginning tells which.
    ToolCall,
    Json,
    Llama,
    Mistral,
    DeepSeek,
    Dsml,
    Python,
    Gemma,
}

/// Why an inside is no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It may become one.
    Incomplete,
    /// It never will.
    Malformed,
}

type Calls = Result<Vec<Call>, Unread>;

impl Tools {
    pub(crate) fn new(tools: &[Tool]) -> Self {
        let texts = tools.iter().map(|tool| {
            let schema: Value = serde_json::from_str(&tool.parameters).unwrap_or_default();
            let properties = schema.get("properties").and_then(Value::as_object);
            let is_text = |property: &Value| property.get("type").is_some_and(|kind| kind == "string");
            let names = properties.into_iter().flatten().filter(|(_, property)| is_text(property));
            (tool.name.clone(), names.map(|(name, _)| name.clone()).collect())
        });
        Self { texts: texts.collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.texts.contains_key(name)
    }

    /// The value of a parameter that was written without quotes.
    fn value(&self, tool: &str, parameter: &str, text: &str) -> Value {
        let is_text = self.texts.get(tool).is_some_and(|texts| texts.iter().any(|text| text == parameter));
        if is_text {
            return text.into();
        }
        match text.trim() {
            "None" => Value::Null,
            "True" => true.into(),
            "False" => false.into(),
            json => serde_json::from_str(json).unwrap_or_else(|_| text.into()),
        }
    }
}

impl Body {
    /// The calls in `text`, of which there is at least one.
    pub(super) fn read(self, text: &str, tools: &Tools) -> Calls {
        let calls = match self {
            Self::ToolCall => match text.trim_start() {
                start if start.starts_with(['{', '[']) => json_calls(text)?,
                start if start.starts_with("<function=") => functions(text, tools)?,
                _ => keys_and_values(text, tools).ok_or(Unread::Malformed)?,
            },
            Self::Json => json_calls(text)?,
            Self::Llama => llama(text)?,
            Self::Mistral => mistral(text)?,
            Self::DeepSeek => deepseek(text)?,
            Self::Dsml => dsml(text).ok_or(Unread::Malformed)?,
            Self::Python => python(text).ok_or(Unread::Malformed)?,
            Self::Gemma => gemma(text).ok_or(Unread::Malformed)?,
        };
        if calls.is_empty() { Err(Unread::Malformed) } else { Ok(calls) }
    }
}

fn call(name: &str, arguments: Map<String, Value>) -> Call {
    Call { id: None, name: name.to_owned(), arguments: Value::Object(arguments).to_string() }
}

fn json(text: &str) -> Result<Value, Unread> {
    serde_json::from_str(text).map_err(|error| if error.is_eof() { Unread::Incomplete } else { Unread::Malformed })
}

fn json_object(text: &str) -> Result<Map<String, Value>, Unread> {
    match json(text)? {
        Value::Object(object) => Ok(object),
        _ => Err(Unread::Malformed),
    }
}

/// `{"name": …, "arguments": {…}}`, or several in a list.
fn json_calls(text: &str) -> Calls {
    match json(text)? {
        Value::Array(calls) => calls.into_iter().map(json_call).collect(),
        value => Ok(vec![json_call(value)?]),
    }
}

fn json_call(value: Value) -> Result<Call, Unread> {
    let Value::Object(mut object) = value else { return Err(Unread::Malformed) };
    let name = object.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned);
    let id = object.get("id").and_then(Value::as_str).map(str::to_owned);
    let arguments = ["arguments", "parameters"].iter().find_map(|key| object.remove(*key));
    let arguments = match arguments {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        // Some models write the object as a text once more.
        Some(Value::String(text)) => serde_json::from_str(&text).map_err(|_| Unread::Malformed)?,
        Some(_) => return Err(Unread::Malformed),
    };
    Ok(Call { id, ..call(&name.ok_or(Unread::Malformed)?, arguments) })
}

/// Llama 3: one or more JSON objects, parted by semicolons, or `tool.call(query="…")` for its built-in tools.
fn llama(text: &str) -> Calls {
    let text = text.trim().trim_start_matches("<|python_start|>").trim_end_matches("<|python_end|>").trim();
    if !text.starts_with('{') {
        let mut reader = Reader::new(text);
        let found = python_call(&mut reader).filter(|_| reader.is_at_end()).ok_or(Unread::Malformed)?;
        let name = found.name.strip_suffix(".call").ok_or(Unread::Malformed)?.to_owned();
        return Ok(vec![Call { name, ..found }]);
    }
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next().and_then(Result::ok).ok_or(Unread::Malformed)?;
        rest = rest[values.byte_offset()..].trim_start().trim_start_matches([';', ',']).trim_start();
        // Without this key it is an answer in JSON.
        if value.get("parameters").is_none() && value.get("arguments").is_none() {
            return Err(Unread::Malformed);
        }
        calls.push(json_call(value)?);
    }
    Ok(calls)
}

/// `[{"name": …}]`, or `name[CALL_ID]id[ARGS]{…}` as often as the mark comes.
fn mistral(text: &str) -> Calls {
    if text.trim_start().starts_with(['[', '{']) {
        return json_calls(text);
    }
    let one = |text: &str| {
        let (head, arguments) = match text.split_once("[ARGS]") {
            Some(parts) => parts,
            // Some versions leave the mark out.
            None => text.split_at(text.find('{').ok_or(Unread::Malformed)?),
        };
        let (name, id) = head.split_once("[CALL_ID]").map_or((head, None), |(name, id)| (name, Some(id.trim())));
        if name.trim().is_empty() {
            return Err(Unread::Malformed);
        }
        Ok(Call { id: id.map(str::to_owned), ..call(name.trim(), json_object(arguments)?) })
    };
    text.split("[TOOL_CALLS]").map(one).collect()
}

/// `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`; before V3.1 with a kind and a block of code.
fn deepseek(text: &str) -> Calls {
    let one = |text: &str| {
        let (head, rest) = text.split_once("<｜tool▁sep｜>").ok_or(Unread::Malformed)?;
        let (name, arguments) = match rest.split_once("```json") {
            Some((name, block)) => (name, block.trim_end().trim_end_matches("```")),
            None => (head, rest),
        };
        Ok(call(name.trim(), json_object(arguments)?))
    };
    let calls = text.split("<｜tool▁call▁begin｜>").skip(1);
    calls.map(|text| one(text.split_once("<｜tool▁call▁end｜>").map_or(text, |(call, _)| call))).collect()
}

/// Qwen3-Coder: `<function=name>`, and `<parameter=key>` lines of text `</parameter>` for each argument.
fn functions(text: &str, tools: &Tools) -> Calls {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while let Some(after) = rest.strip_prefix("<function=") {
        let (name, mut body) = after.split_once('>').ok_or(Unread::Malformed)?;
        let mut arguments = Map::new();
        loop {
            body = body.trim_start();
            if let Some(after) = body.strip_prefix("</function>") {
                rest = after.trim_start();
                break;
            }
            let (key, after) =
                body.strip_prefix("<parameter=").and_then(|after| after.split_once('>')).ok_or(Unread::Malformed)?;
            let (value, after) = after.split_once("</parameter>").ok_or(Unread::Incomplete)?;
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(key.trim().to_owned(), tools.value(name.trim(), key.trim(), value));
            body = after;
        }
        calls.push(call(name.trim(), arguments));
    }
    if rest.is_empty() { Ok(calls) } else { Err(Unread::Malformed) }
}

/// GLM: the name, then a key and a value in tags for each argument.
fn keys_and_values(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    let text = text.trim();
    let (name, mut rest) = text.split_at(text.find("<arg_key>").unwrap_or(text.len()));
    let name = name.trim();
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | '{')) {
        return None;
    }
    let mut arguments = Map::new();
    while !rest.trim().is_empty() {
        let (key, after) = rest.trim_start().strip_prefix("<arg_key>")?.split_once("</arg_key>")?;
        let (value, after) = after.trim_start().strip_prefix("<arg_value>")?.split_once("</arg_value>")?;
        arguments.insert(key.trim().to_owned(), tools.value(name, key.trim(), value));
        rest = after;
    }
    Some(vec![call(name, arguments)])
}

/// DeepSeek V3.2 and V4: elements that say whether a value is a text.
fn dsml(text: &str) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.strip_prefix("<｜DSML｜invoke name=\"")?.split_once("\">")?;
        let (mut body, after) = after.split_once("</｜DSML｜invoke>")?;
        let mut arguments = Map::new();
        while !body.trim().is_empty() {
            let (key, after) = body.trim_start().strip_prefix("<｜DSML｜parameter name=\"")?.split_once('"')?;
            let (kind, after) = after.split_once('>')?;
            let (value, after) = after.split_once("</｜DSML｜parameter>")?;
            let value = match kind.trim() {
                "string=\"true\"" => value.into(),
                _ => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
            };
            arguments.insert(key.to_owned(), value);
            body = after;
        }
        calls.push(call(name, arguments));
        rest = after.trim_start();
    }
    Some(calls)
}

/// LFM2: a list of calls as Python writes them.
fn python(text: &str) -> Option<Vec<Call>> {
    let mut reader = Reader::new(text);
    let mut calls = Vec::new();
    reader.list("[", "]", &mut |reader| {
        calls.push(python_call(reader)?);
        Some(())
    })?;
    reader.is_at_end().then_some(calls)
}

fn python_call(reader: &mut Reader<'_>) -> Option<Call> {
    let name = reader.name()?;
    let mut arguments = Map::new();
    reader.list("(", ")", &mut |reader| {
        let key = reader.name()?.to_owned();
        reader.take("=")?;
        arguments.insert(key, reader.value(0)?);
        Some(())
    })?;
    Some(call(name, arguments))
}

/// Gemma 4: `call:name{key:value}`.
fn gemma(text: &str) -> Option<Vec<Call>> {
    let mut reader = Reader::new(text);
    reader.take("call:")?;
    let name = reader.name()?;
    let arguments = reader.object(0)?;
    reader.is_at_end().then(|| vec![call(name, arguments)])
}

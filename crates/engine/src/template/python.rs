//! What `transformers` gives to templates beyond Jinja, and where Jinja in Python differs from minijinja.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", tojson);
    // Python's Jinja lacks these or lays values out otherwise, so no template needs them; and what they do costs more than
    // the fuel that is asked for: the items of a list that was doubled forty times, the square of the depth of another.
    ["chain", "pprint", "zip"].iter().for_each(|filter| environment.remove_filter(filter));
    environment.remove_global("debug");
    // A text and a mapping are sequences in Python, and an undefined value is an empty one.
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined
        )
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined
        )
    });
}

/// How `json.dumps` lays a value out.
struct Layout {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// Deeper than any schema, and shallow enough for a thread's stack.
const DEEPEST: usize = 100;

/// `json.dumps`, with the defaults of `transformers`: no character is escaped that JSON doesn't want escaped.
fn tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if indent.kind() == ValueKind::String => indent.as_str().map(str::to_owned),
        Some(indent) if !indent.is_none() => Some(" ".repeat(u8::try_from(indent)?.into())),
        _ => None,
    };
    let separators = options.get::<Option<Value>>("separators")?.filter(|separators| !separators.is_none());
    let separator = |index: usize, default: &str| -> Result<String, Error> {
        match &separators {
            Some(separators) => Ok(separators.get_item_by_index(index)?.to_string()),
            None => Ok(default.to_owned()),
        }
    };
    let layout = Layout {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        item_separator: separator(0, if indent.is_some() { "," } else { ", " })?,
        key_separator: separator(1, ": ")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
    };
    options.assert_all_used()?;
    let mut json = String::new();
    write_json(state, value, &layout, 0, &mut json)?;
    Ok(Value::from(json))
}

fn write_json(
    state: &State<'_, '_>,
    value: &Value,
    layout: &Layout,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    let no_json = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("{what} has no JSON")));
    if depth > DEEPEST {
        return no_json("a value nested so deeply");
    }
    state.consume_fuel(1)?;
    let start = out.len();
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => write_text(value.as_str().unwrap_or_default(), layout.ascii, out),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys {
                keys.sort();
            }
            write_items(layout, depth, ['{', '}'], keys, out, &mut |key, out| {
                match key.kind() {
                    ValueKind::String => write_text(key.as_str().unwrap_or_default(), layout.ascii, out),
                    ValueKind::Bool => write_text(if key.is_true() { "true" } else { "false" }, false, out),
                    ValueKind::None => write_text("null", false, out),
                    _ => write_text(&key.to_string(), layout.ascii, out),
                }
                out.push_str(&layout.key_separator);
                write_json(state, &value.get_item(&key)?, layout, depth + 1, out)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect();
            write_items(layout, depth, ['[', ']'], items, out, &mut |item, out| {
                write_json(state, &item, layout, depth + 1, out)
            })?;
        }
        ValueKind::Undefined => return no_json("an undefined value"),
        _ => return no_json("such a value"),
    }
    // What is inside was paid for already, but only once for each level, of which there are few.
    state.consume_fuel((out.len() - start) as u64 / 64)
}

fn write_items(
    layout: &Layout,
    depth: usize,
    [open, close]: [char; 2],
    items: Vec<Value>,
    out: &mut String,
    write: &mut dyn FnMut(Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let break_line = |depth: usize, out: &mut String| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    let is_empty = items.is_empty();
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push_str(&layout.item_separator);
        }
        break_line(depth + 1, out);
        write(item, out)?;
    }
    if !is_empty {
        break_line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn write_text(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ if u32::from(character) < 0x20 || (ascii && !character.is_ascii()) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a text cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// A number as Python's `repr` writes it: the shortest digits that mean it, with an exponent where it is far from 1.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let mut environment = Environment::new();
        install(&mut environment);
        environment.render_str(source, ()).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            render("{{ {'a': [1, 2.5, none, true], 'b': {}} | tojson }}"),
            r#"{"a": [1, 2.5, null, true], "b": {}}"#
        );
        assert_eq!(render("{{ [1, {'é': '<\"&\\n'}] | tojson }}"), r#"[1, {"é": "<\"&\n"}]"#);
        assert_eq!(render("{{ ['é🌸'] | tojson(ensure_ascii=true) }}"), r#"["\u00e9\ud83c\udf38"]"#);
        assert_eq!(
            render("{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}"),
            "{\n  \"a\": [],\n  \"b\": 1\n}"
        );
        assert_eq!(render("{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}"), r#"{"a":[1,2]}"#);
    }

    #[test]
    fn numbers_are_pythons() {
        for (number, text) in [(0.25, "0.25"), (1e16, "1e+16"), (1.5e-7, "1.5e-07"), (1e15, "1000000000000000.0")] {
            assert_eq!(float(number), text);
        }
        assert_eq!((float(0.0), float(-0.0001)), ("0.0".to_owned(), "-0.0001".to_owned()));
    }
}

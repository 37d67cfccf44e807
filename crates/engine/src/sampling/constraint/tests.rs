use chat::SamplingParams;

use super::*;
use crate::sampling::{Sampler, SamplingDefaults};

/// Every byte, some longer tokens that cut through JSON and through characters, a control token and two ends.
fn pieces() -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
    let longer = [
        "{\"", "\":", "\",", "\"}", "\":\"", "\", \"", "}}", "]}", "[]", "{}", "true", "fal", "se", "null", " \n",
        "12", "0.5", "e+", "\\n", "\\u00", "größe", "日本", "🌊", "name", "na", "red", "re", "d\"", "  ", "-1",
        "items", "</think>",
    ];
    pieces.extend(longer.iter().map(|piece| piece.as_bytes().to_vec()));
    pieces.push("日".as_bytes()[..2].to_vec());
    pieces.push(["é".as_bytes(), b"\""].concat()[1..].to_vec());
    // Spelled like another.
    pieces.push(b"true".to_vec());
    pieces.extend([vec![], vec![], vec![]]);
    pieces
}

fn ends() -> [TokenId; 2] {
    let count = pieces().len() as TokenId;
    [count - 2, count - 1]
}

fn vocabulary() -> ConstraintVocabulary {
    ConstraintVocabulary::new(pieces(), &ends()).unwrap()
}

fn schema(schema: &Value) -> OutputConstraint {
    OutputConstraint::JsonSchema(schema.to_string())
}

/// What random logits write within `constraint`, and whether it came to its end.
fn write(vocabulary: &ConstraintVocabulary, output: &OutputConstraint, seed: u64) -> (String, bool) {
    let mut constraint = Constraint::new(vocabulary, output).unwrap();
    let params = SamplingParams {
        temperature: Some(1.0),
        top_k: Some(0),
        top_p: Some(1.0),
        seed: Some(seed),
        // Or strings and lists would go on for ever.
        logit_bias: [b'"', b'}', b']'].map(|byte| (u32::from(byte), 3.5)).to_vec(),
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(&params, &SamplingDefaults::default(), 0, &[]).unwrap();
    let pieces = pieces();
    let mut written = Vec::new();
    for step in 0..600_u64 {
        // More logits than tokens, as models with a padded vocabulary have; and different ones at each step.
        let noise = |i: u64| ((i ^ seed).wrapping_mul(step + 0x9e37_79b9) >> 7) % 1000;
        let mut logits: Vec<f32> = (0..pieces.len() as u64 + 40).map(|i| noise(i) as f32 / 500.0).collect();
        let token = sampler.sample(&mut logits, Some(&mut constraint)).unwrap().token;
        if ends().contains(&token) {
            return (String::from_utf8(written).unwrap(), true);
        }
        written.extend_from_slice(&pieces[token as usize]);
        sampler.accept(token);
        constraint.accept(token).unwrap();
        if constraint.is_complete() {
            return (String::from_utf8(written).unwrap(), true);
        }
    }
    (String::from_utf8_lossy(&written).into_owned(), false)
}

/// Whether `schema` allows `value`: the keywords that the tests use, in a reading of their own.
fn allows(root: &Value, schema: &Value, value: &Value) -> bool {
    let Some(keywords) = schema.as_object() else { return schema == &Value::Bool(true) };
    keywords.iter().all(|(keyword, wanted)| {
        let number = |wanted: &Value| wanted.as_f64().unwrap();
        let count = |wanted: &Value| wanted.as_u64().unwrap() as usize;
        match keyword.as_str() {
            "type" => match wanted.as_str().unwrap() {
                "null" => value.is_null(),
                "boolean" => value.is_boolean(),
                "string" => value.is_string(),
                "number" => value.is_number(),
                "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("{other}"),
            },
            "enum" => wanted.as_array().unwrap().contains(value),
            "const" => wanted == value,
            "anyOf" => wanted.as_array().unwrap().iter().any(|schema| allows(root, schema, value)),
            "$ref" => allows(root, root.pointer(wanted.as_str().unwrap().strip_prefix('#').unwrap()).unwrap(), value),
            "minimum" => value.as_f64().is_none_or(|x| x >= number(wanted)),
            "maximum" => value.as_f64().is_none_or(|x| x <= number(wanted)),
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() >= count(wanted)),
            "maxLength" => value.as_str().is_none_or(|text| text.chars().count() <= count(wanted)),
            "minItems" => value.as_array().is_none_or(|items| items.len() >= count(wanted)),
            "maxItems" => value.as_array().is_none_or(|items| items.len() <= count(wanted)),
            "items" => value.as_array().is_none_or(|items| items.iter().all(|item| allows(root, wanted, item))),
            "required" => {
                let names = wanted.as_array().unwrap();
                value
                    .as_object()
                    .is_none_or(|found| names.iter().all(|name| found.contains_key(name.as_str().unwrap())))
            }
            "properties" => {
                let known = wanted.as_object().unwrap();
                let others = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
                value.as_object().is_none_or(|found| {
                    found.iter().all(|(name, value)| allows(root, known.get(name).unwrap_or(others), value))
                })
            }
            "additionalProperties" | "$defs" => true,
            other => panic!("{other}"),
        }
    })
}

#[test]
fn whatever_is_drawn_fits_the_schema() {
    let schemas = [
        json!({ "type": "string" }),
        json!({ "type": "string", "minLength": 3, "maxLength": 5 }),
        json!({ "enum": ["red", "größe", "日本 🌊", 12, null, { "a": [1] }] }),
        json!({ "const": "re\"d\\" }),
        json!({ "type": "integer", "minimum": -5, "maximum": 17 }),
        json!({ "type": "number", "minimum": 0.25, "maximum": 3.5 }),
        json!({ "type": "boolean" }),
        json!({ "anyOf": [{ "type": "null" }, { "type": "integer" }, { "type": "array", "items": { "type": "boolean" } }] }),
        json!({ "type": "array", "items": { "enum": ["a", "b"] }, "minItems": 2, "maxItems": 4 }),
        json!({ "type": "array", "items": { "type": "array", "items": { "type": "number" }, "maxItems": 3 }, "maxItems": 3 }),
        json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "maxLength": 20 },
                "größe": { "type": "integer", "minimum": 0, "maximum": 300 },
                "colour": { "enum": ["red", "green"] },
                "tags": { "type": "array", "items": { "type": "string", "maxLength": 4 }, "maxItems": 3 },
            },
            "required": ["name", "colour"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": { "n": { "type": "integer", "maximum": 9, "minimum": 0 } },
            "additionalProperties": { "type": "boolean" },
        }),
        json!({
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "value": { "type": "integer", "minimum": 0, "maximum": 99 },
                        "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/node" }] },
                    },
                    "required": ["value", "next"],
                    "additionalProperties": false,
                },
            },
            "$ref": "#/$defs/node",
        }),
    ];
    let vocabulary = vocabulary();
    for allowed in schemas {
        let mut whole = 0;
        let mut texts = std::collections::HashSet::new();
        for seed in 0..40 {
            let (text, is_whole) = write(&vocabulary, &schema(&allowed), seed);
            if is_whole {
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert!(allows(&allowed, &allowed, &value), "{allowed}: {text}");
                whole += 1;
                texts.insert(text);
            }
        }
        assert!(whole >= 30, "{whole} of 40 came to an end with {allowed}");
        assert!(texts.len() >= 2 || allowed.get("const").is_some(), "{texts:?}");
    }
}

#[test]
fn the_check_of_these_tests_can_fail() {
    let object =
        json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "additionalProperties": false });
    assert!(allows(&object, &object, &json!({ "a": 1 })));
    assert!(!allows(&object, &object, &json!({ "a": 1.5 })));
    assert!(!allows(&object, &object, &json!({ "b": 1 })));
}

#[test]
fn json_mode_writes_an_object_and_a_grammar_its_text() {
    let vocabulary = vocabulary();
    for seed in 0..20 {
        let (text, is_whole) = write(&vocabulary, &OutputConstraint::Json, seed);
        assert!(text.starts_with('{'));
        assert!(!is_whole || serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()), "{text}");
        let grammar = OutputConstraint::Grammar("start: \"re\" /[0-9]{2,4}/ (\"日\" | \"🌊\")+".to_owned());
        let (text, is_whole) = write(&vocabulary, &grammar, seed);
        let rest = text.strip_prefix("re").unwrap().trim_start_matches(|c: char| c.is_ascii_digit());
        assert!((2 + 2..=2 + 4).contains(&(text.len() - rest.len())), "{text}");
        assert!(is_whole && !rest.is_empty() && rest.chars().all(|c| "日🌊".contains(c)), "{text}");
    }
}

#[test]
fn an_end_is_allowed_where_the_text_is_whole_and_nowhere_else() {
    let vocabulary = vocabulary();
    let mut constraint =
        Constraint::new(&vocabulary, &OutputConstraint::Grammar("start: /a{2,3}/".to_owned())).unwrap();
    for may_end in [false, false, true] {
        let mut logits = vec![0.0; pieces().len() + 7];
        constraint.mask(&mut logits).unwrap();
        assert!(ends().iter().all(|end| (logits[*end as usize] == 0.0) == may_end));
        let others = logits.iter().enumerate().filter(|(_, logit)| **logit == 0.0).map(|(token, _)| token as TokenId);
        assert!(others.filter(|token| !ends().contains(token)).eq([u32::from(b'a')]));
        assert!(!constraint.is_complete());
        constraint.accept(u32::from(b'a')).unwrap();
    }
    assert!(constraint.is_complete());
    assert!(constraint.accept(u32::from(b'a')).is_err());
}

#[test]
fn a_suspended_constraint_forbids_only_the_ends() {
    let mut constraint = Constraint::new(&vocabulary(), &OutputConstraint::Json).unwrap();
    constraint.suspend();
    let mut logits = vec![0.0; pieces().len()];
    constraint.mask(&mut logits).unwrap();
    let forbidden = logits.iter().enumerate().filter(|(_, logit)| **logit != 0.0).map(|(token, _)| token as TokenId);
    assert!(forbidden.eq(ends()));
    constraint.accept(u32::from(b'x')).unwrap();
    constraint.resume();
    constraint.accept(u32::from(b'{')).unwrap();
    assert!(constraint.accept(u32::from(b'x')).is_err());
}

#[test]
fn what_cannot_be_a_constraint_is_refused() {
    let nested = |times: usize| format!("{}{{}}{}", r#"{"type":"array","items":"#.repeat(times), "}".repeat(times));
    let doubling: String = (0..60).map(|i| format!("A{i}: A{} A{}\n", i + 1, i + 1)).collect();
    let cases = [
        (r#"{"type":"#.to_owned(), "EOF"),
        ("[]".to_owned(), "must be an object"),
        ("false".to_owned(), "allows nothing"),
        (r#"{"type":"integer","minimum":5,"maximum":1}"#.to_owned(), "minimum"),
        (r##"{"$ref":"#"}"##.to_owned(), "nothing satisfies it"),
        (r#"{"not":{"type":"string"}}"#.to_owned(), "not"),
        // Would be passed over in silence if llguidance's own settings were read.
        (r#"{"not":{"type":"string"},"x-guidance":{"lenient":true}}"#.to_owned(), "not"),
        (r#"{"type":"string","pattern":"("}"#.to_owned(), "regex"),
        (nested(5000), "recursion limit"),
        (" ".repeat(LONGEST_SCHEMA + 1), "bytes"),
        (r#"{"type":"integer","multipleOf":4294967291}"#.to_owned(), ""),
    ];
    let cases = cases.map(|(source, why)| (OutputConstraint::JsonSchema(source), why));
    let grammars = [
        ("start: nowhere".to_owned(), "nowhere"),
        (format!("start: {}", "(".repeat(16_000)), "nested"),
        (format!("start: /{}a{}/", "(".repeat(8_000), ")".repeat(8_000)), "regex"),
        (format!("start: \"a\" //{}", " ".repeat(LONGEST_GRAMMAR)), "bytes"),
        ("start: a\na: start".to_owned(), "nothing satisfies it"),
        (format!("start: A0\n{doubling}A60: \"x\""), "too big"),
    ];
    let grammars = grammars.map(|(source, why)| (OutputConstraint::Grammar(source), why));
    let vocabulary = vocabulary();
    for (output, why) in cases.into_iter().chain(grammars) {
        match Constraint::new(&vocabulary, &output) {
            Err(GenerateError::InvalidRequest(what)) => {
                assert!(what.contains(why), "{what}");
                assert!(what.contains("cannot be used: ") && what.len() < 2000, "{what}");
            }
            other => panic!("{why}: {:?}", other.map(|_| ())),
        }
    }
}

#[test]
fn a_costly_one_is_refused_or_stays_within_its_bounds() {
    let properties = (0..1500).map(|i| format!(r#""p{i}":{{"type":"string"}}"#)).collect::<Vec<_>>().join(",");
    let links: String = (0..3000).map(|i| format!(r##""d{i}":{{"$ref":"#/$defs/d{}"}},"##, i + 1)).collect();
    let all_of: String =
        (0..2000).map(|i| format!(r##""d{i}":{{"allOf":[{{"$ref":"#/d{}"}},{{"minLength":1}}]}},"##, i + 1)).collect();
    let sources = [
        format!(r##"{{{all_of}"d2000":{{"type":"string"}},"$ref":"#/d0"}}"##),
        r#"{"type":"string","minLength":1000000000}"#.to_owned(),
        r#"{"type":"array","items":{"type":"integer"},"minItems":1000000000}"#.to_owned(),
        r#"{"type":"string","pattern":"(.{1,500}){1,500}x"}"#.to_owned(),
        r#"{"type":"string","pattern":".*a.{12}.*b.{12}.*c.{14}"}"#.to_owned(),
        format!(r#"{{"type":"object","properties":{{{properties}}}}}"#),
        format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{links}"d3000":{{"type":"string"}}}}}}"##),
    ];
    let vocabulary = vocabulary();
    for source in sources {
        let Ok(mut constraint) = Constraint::new(&vocabulary, &OutputConstraint::JsonSchema(source)) else {
            continue;
        };
        for step in 0..300_usize {
            let mut logits = vec![0.0; pieces().len()];
            if constraint.mask(&mut logits).is_err() {
                break;
            }
            let allowed: Vec<_> = (0..logits.len()).filter(|token| logits[*token] == 0.0).collect();
            let token = allowed[step * 7919 % allowed.len()] as TokenId;
            if ends().contains(&token) || constraint.accept(token).is_err() {
                break;
            }
        }
    }
}

#[test]
fn odd_vocabularies_are_refused_or_used_without_a_panic() {
    let error =
        |pieces: Vec<Vec<u8>>, ends: &[TokenId]| ConstraintVocabulary::new(pieces, ends).map(|_| ()).unwrap_err();
    assert!(error(pieces(), &[]).to_string().contains("ends an answer"));
    assert!(error(vec![b"a".to_vec()], &[7]).to_string().contains("ends an answer"));
    assert!(error(vec![vec![b'a'; 200]; 30_000], &[0]).to_string().contains("too large"));
    // Tokens that are too long, that are not UTF-8, or that nothing else can be written with.
    let odd = vec![vec![b'a'; 3000], vec![0xff; 3], vec![0xff], vec![], b"<|end|>".to_vec()];
    let vocabulary = ConstraintVocabulary::new(odd, &[4, 99]).unwrap();
    let refused = Constraint::new(&vocabulary, &OutputConstraint::Json).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("nothing satisfies it"), "{refused}");
}

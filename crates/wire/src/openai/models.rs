use serde_json::{Value, json};

use super::DecodeError;
use super::error::error_in;

/// One line of a models list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEntry {
    /// The name that a request gives.
    pub id: String,
    /// Who serves it, in the server's own word: engines are recognized by it.
    pub owned_by: Option<String>,
    /// Tells whether token ids mean the same to another Tidegate's model; no other server has it.
    pub tokenizer: Option<String>,
}

/// The body of `/v1/models`. `created` is in seconds since 1970.
pub fn encode_models(models: &[ModelEntry], created: u64) -> Vec<u8> {
    let entries: Vec<Value> = models
        .iter()
        .map(|model| {
            let owner = model.owned_by.as_deref().unwrap_or("tidegate");
            let mut entry = json!({ "id": model.id, "object": "model", "created": created, "owned_by": owner });
            if let Some(tokenizer) = &model.tokenizer {
                entry["tokenizer"] = json!(tokenizer);
            }
            entry
        })
        .collect();
    json!({ "object": "list", "data": entries }).to_string().into_bytes()
}

/// Reads a models list. Entries without a name are passed over; a body without a list is an error.
pub fn decode_models(body: &[u8]) -> Result<Vec<ModelEntry>, DecodeError> {
    let value: Value = serde_json::from_slice(body)?;
    if error_in(&value).is_some() {
        return Err(DecodeError::Missing("list of models"));
    }
    // Some servers write a null where they have no model yet.
    let list = match value.get("data") {
        Some(Value::Array(list)) => list.as_slice(),
        Some(Value::Null) if value.get("object").and_then(Value::as_str) == Some("list") => &[],
        _ => return Err(DecodeError::Missing("list of models")),
    };
    let text = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(list
        .iter()
        .filter_map(|entry| {
            Some(ModelEntry {
                id: text(entry, "id")?,
                owned_by: text(entry, "owned_by"),
                tokenizer: text(entry, "tokenizer"),
            })
        })
        .filter(|entry| !entry.id.is_empty())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back() {
        let models = vec![
            ModelEntry { id: "qwen2.5".into(), owned_by: Some("tidegate".into()), tokenizer: Some("ab12".into()) },
            ModelEntry { id: "llama".into(), owned_by: Some("me".into()), tokenizer: None },
        ];
        assert_eq!(decode_models(&encode_models(&models, 7)).unwrap(), models);
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for body in
            ["{}", "[]", "null", "{\"data\":3}", "{\"error\":\"no\"}", "{\"detail\":\"Not Found\"}", "{\"data\":null}"]
        {
            assert_eq!(decode_models(body.as_bytes()), Err(DecodeError::Missing("list of models")), "{body}");
        }
        assert!(matches!(decode_models(b"<html>"), Err(DecodeError::NotJson { line: 1, .. })));
        assert_eq!(decode_models(b"{\"object\":\"list\",\"data\":null}"), Ok(vec![]), "Ollama without a model");
        assert_eq!(decode_models(b"{\"data\":[{\"id\":\"\"},{},3]}"), Ok(vec![]));
    }
}

use chat::Bytes;
use serde_json::{Map, Value, json};

use super::request::{model, optional};
use super::time::rfc3339;
use crate::json::body_object;
use crate::request_error::RequestError;

/// What a model is made of, in the words of its file. Every text is empty where it isn't known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelDetails {
    /// `gguf` or `safetensors`.
    pub format: String,
    /// Its architecture: `qwen3`.
    pub family: String,
    /// How many parameters it has, in words: `7.6B`.
    pub parameter_size: String,
    /// `Q4_K_M`.
    pub quantization_level: String,
}

/// One model of `/api/tags`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedModel {
    /// The name that a call gives.
    pub name: String,
    /// When its file was last written, in seconds since 1970.
    pub modified_at: u64,
    /// Of its file.
    pub size: Bytes,
    /// SHA-256 in hexadecimal digits, or whatever else tells it from other models.
    pub digest: String,
    /// What it is made of.
    pub details: ModelDetails,
}

/// One model of `/api/ps`, which is in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunningModel {
    /// The name that a call gives.
    pub name: String,
    /// All memory it takes.
    pub size: Bytes,
    /// The part of it that the GPU has.
    pub size_vram: Bytes,
    /// As in the list.
    pub digest: String,
    /// What it is made of.
    pub details: ModelDetails,
    /// When it leaves memory if nobody asks it, in seconds since 1970.
    pub expires_at: u64,
    /// Tokens that its context has room for.
    pub context_length: usize,
}

/// The reply of `/api/show`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShownModel {
    /// When its file was last written, in seconds since 1970.
    pub modified_at: u64,
    /// What it is made of.
    pub details: ModelDetails,
    /// What its file says, under GGUF's names. Editors read `general.architecture` and that architecture's
    /// `….context_length`.
    pub model_info: Vec<(String, InfoValue)>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// The text of its chat template.
    pub template: String,
    /// One parameter a line: its name, spaces, its value.
    pub parameters: String,
}

/// One thing that a model's file says.
#[derive(Clone, Debug, PartialEq)]
pub enum InfoValue {
    /// A count.
    Count(u64),
    /// A text.
    Text(String),
}

/// What a model can do. (`types/model/capability.go` has more words, for what is not served here.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// It answers.
    Completion,
    /// It asks for calls of tools.
    Tools,
    /// It thinks before it answers.
    Thinking,
}

impl Capability {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Tools => "tools",
            Self::Thinking => "thinking",
        }
    }
}

/// The body of `/api/tags`.
pub fn encode_tags(models: &[ListedModel]) -> Vec<u8> {
    let entry = |entry: &ListedModel| {
        json!({
            "name": entry.name,
            "model": entry.name,
            "modified_at": rfc3339(entry.modified_at),
            "size": entry.size.0,
            "digest": entry.digest,
            "details": details_json(&entry.details),
        })
    };
    json!({ "models": models.iter().map(entry).collect::<Vec<_>>() }).to_string().into_bytes()
}

/// The body of `/api/ps`.
pub fn encode_ps(models: &[RunningModel]) -> Vec<u8> {
    let entry = |entry: &RunningModel| {
        json!({
            "name": entry.name,
            "model": entry.name,
            "size": entry.size.0,
            "digest": entry.digest,
            "details": details_json(&entry.details),
            "expires_at": rfc3339(entry.expires_at),
            "size_vram": entry.size_vram.0,
            "context_length": entry.context_length,
        })
    };
    json!({ "models": models.iter().map(entry).collect::<Vec<_>>() }).to_string().into_bytes()
}

/// The model that a call of `/api/show` is about, under its name of today or its older one.
pub fn decode_show(body: &[u8]) -> Result<String, RequestError> {
    let object = body_object(body)?;
    let name = model(&object)?.map_or_else(|| optional(&object, "name"), Ok)?;
    if name.is_empty() { Err(RequestError::at("model", "`model` is missing")) } else { Ok(name) }
}

/// The body of `/api/show`.
pub fn encode_show(model: &ShownModel) -> Vec<u8> {
    let info = model.model_info.iter().map(|(name, value)| {
        let value = match value {
            InfoValue::Count(count) => json!(count),
            InfoValue::Text(text) => json!(text),
        };
        (name.clone(), value)
    });
    json!({
        "parameters": model.parameters,
        "template": model.template,
        "details": details_json(&model.details),
        "model_info": info.collect::<Map<_, _>>(),
        "capabilities": model.capabilities.iter().map(|word| word.as_str()).collect::<Vec<_>>(),
        "modified_at": rfc3339(model.modified_at),
    })
    .to_string()
    .into_bytes()
}

/// The body of `/api/version`. Clients compare it with the versions of Ollama that brought what they need.
pub fn encode_version(version: &str) -> Vec<u8> {
    json!({ "version": version }).to_string().into_bytes()
}

fn details_json(details: &ModelDetails) -> Value {
    let families: &[&str] = if details.family.is_empty() { &[] } else { &[&details.family] };
    json!({
        "parent_model": "",
        "format": details.format,
        "family": details.family,
        "families": families,
        "parameter_size": details.parameter_size,
        "quantization_level": details.quantization_level,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DETAILS: &str = r#""details":{"parent_model":"","format":"gguf","family":"qwen2","families":["qwen2"],"parameter_size":"7.6B","quantization_level":"Q4_K_M"}"#;

    fn details() -> ModelDetails {
        ModelDetails {
            format: "gguf".into(),
            family: "qwen2".into(),
            parameter_size: "7.6B".into(),
            quantization_level: "Q4_K_M".into(),
        }
    }

    fn check(body: Vec<u8>, expected: &str) {
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }

    #[test]
    fn lists_are_as_the_documentation_has_them() {
        let listed = ListedModel {
            name: "qwen2.5:7b".into(),
            modified_at: 1_709_210_096,
            size: Bytes(4_683_075_271),
            digest: "0a8c".into(),
            details: details(),
        };
        check(
            encode_tags(&[listed]),
            &format!(
                r#"{{"models":[{{"name":"qwen2.5:7b","model":"qwen2.5:7b","modified_at":"2024-02-29T12:34:56Z","size":4683075271,"digest":"0a8c",{DETAILS}}}]}}"#
            ),
        );
        let running = RunningModel {
            name: "qwen2.5:7b".into(),
            size: Bytes(7),
            size_vram: Bytes(5),
            digest: "0a8c".into(),
            details: details(),
            expires_at: 1_709_210_096,
            context_length: 4096,
        };
        check(
            encode_ps(&[running]),
            &format!(
                r#"{{"models":[{{"name":"qwen2.5:7b","model":"qwen2.5:7b","size":7,"digest":"0a8c",{DETAILS},"expires_at":"2024-02-29T12:34:56Z","size_vram":5,"context_length":4096}}]}}"#
            ),
        );
        check(encode_tags(&[]), r#"{"models":[]}"#);
        check(encode_ps(&[]), r#"{"models":[]}"#);
        check(encode_version("0.12.0"), r#"{"version":"0.12.0"}"#);
    }

    #[test]
    fn a_model_is_shown() {
        let model = ShownModel {
            modified_at: 1_709_210_096,
            details: details(),
            model_info: vec![
                ("general.architecture".into(), InfoValue::Text("qwen2".into())),
                ("qwen2.context_length".into(), InfoValue::Count(32_768)),
            ],
            capabilities: vec![Capability::Completion, Capability::Tools, Capability::Thinking],
            template: "{{ x }}".into(),
            parameters: "top_k 20".into(),
        };
        check(
            encode_show(&model),
            &format!(
                r#"{{"parameters":"top_k 20","template":"{{{{ x }}}}",{DETAILS},"model_info":{{"general.architecture":"qwen2","qwen2.context_length":32768}},"capabilities":["completion","tools","thinking"],"modified_at":"2024-02-29T12:34:56Z"}}"#
            ),
        );
    }

    #[test]
    fn the_model_to_show_has_two_names() {
        assert_eq!(decode_show(br#"{"model":"a","name":"b"}"#), Ok("a".into()));
        assert_eq!(decode_show(br#"{"model":"","name":"b","verbose":true}"#), Ok("b".into()));
        for body in ["{}", r#"{"model":3}"#] {
            assert_eq!(decode_show(body.as_bytes()).unwrap_err().param.as_deref(), Some("model"));
        }
    }
}

//! The tokenizer of a folder, told in GGUF's keys: `tokenizer.json` where it merges bytes, else `tokenizer.model`.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Config, Family};
use super::json;
use super::sentencepiece::SentencePieces;
use crate::LoadError;
use crate::gguf::MetadataWriter;
use crate::tokenizer::{GPT4O, LLAMA3, QWEN2, TEKKEN};

/// No vocabulary has more words.
const MOST_WORDS: usize = 1 << 20;
// What `tokenizer.ggml.token_type` calls them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";
/// Worse than that of any word that merges lead to.
const WORST_SCORE: f32 = -1e9;

#[derive(Deserialize)]
struct Published {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    #[serde(default)]
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<PublishedMerge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PublishedMerge {
    Pair(String, String),
    Text(String),
}

impl PublishedMerge {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Text(text) => text.split_once(' '),
        }
    }
}

/// The words of a vocabulary by their numbers.
struct Words {
    texts: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
}

impl Words {
    /// `count` words that nothing is known of, which the weights have rows for.
    fn unused(count: usize) -> Self {
        let texts = (0..count).map(|id| format!("[PAD{id}]")).collect();
        Self { texts, types: vec![UNUSED; count], scores: vec![WORST_SCORE; count] }
    }

    /// Numbers that the weights have no row for are left out.
    fn set(&mut self, id: usize, text: &str, kind: i32, score: f32) {
        if id < self.texts.len() {
            text.clone_into(&mut self.texts[id]);
            (self.types[id], self.scores[id]) = (kind, score);
        }
    }

    fn add(&mut self, id: usize, text: &str, is_special: bool) {
        if is_special || looks_special(text) {
            self.set(id, text, CONTROL, WORST_SCORE);
        } else {
            self.set(id, &text.replace(SPACE, " "), USER_DEFINED, WORST_SCORE);
        }
    }

    fn id_of(&self, text: &str) -> Option<usize> {
        self.texts.iter().zip(&self.types).position(|(word, kind)| word == text && *kind != UNUSED)
    }
}

/// Tokens that steer a model though some folders call them ordinary, as the converter sees it.
fn looks_special(text: &str) -> bool {
    let is_between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || is_between("<|", "|>")
        || is_between("<｜", "｜>")
        || is_between("<unused", ">")
}

/// Writes the vocabulary, of which the weights have `vocabulary` rows, and the chat template.
///
/// # Errors
/// When there is no tokenizer, or one of a kind that isn't known.
pub(super) fn describe(
    folder: &Path,
    config: &Config,
    family: Family,
    vocabulary: usize,
    metadata: &mut MetadataWriter,
) -> Result<(), LoadError> {
    if vocabulary > MOST_WORDS {
        return Err(LoadError::UnsupportedFeature(format!("a vocabulary of {vocabulary} words")));
    }
    let published: Option<Published> = json::read_optional(folder, "tokenizer.json")?;
    let settings: Map<String, Value> = json::read_optional(folder, "tokenizer_config.json")?.unwrap_or_default();
    let mut words = Words::unused(vocabulary);
    let bytes = published.as_ref().filter(|json| json.steps().contains(&"ByteLevel"));
    let is_by_score = bytes.is_none();
    if let Some(json) = bytes {
        json.describe_bytes(&mut words, metadata)?;
    } else if let Some(model) = json::read_bytes(folder, "tokenizer.model")? {
        describe_pieces(&SentencePieces::parse(&model)?, &mut words, metadata);
    } else if let Some(json) = &published {
        json.describe_characters(&mut words, metadata)?;
    } else {
        let what = "there is neither `tokenizer.json` nor `tokenizer.model`";
        return Err(LoadError::Tokenizer(what.to_owned()));
    }
    for token in published.iter().flat_map(|json| &json.added_tokens) {
        words.add(token.id as usize, &token.content, token.special);
    }
    for (id, token) in settings.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        if let (Ok(id), Ok(token)) = (id.parse(), AddedToken::deserialize(token)) {
            words.add(id, &token.content, token.special);
        }
    }
    if let Some(adds_space) =
        settings.get("add_prefix_space").and_then(Value::as_bool).filter(|_| family != Family::Gemma3)
    {
        metadata.set("tokenizer.ggml.add_space_prefix", adds_space);
    }
    describe_specials(folder, config, &settings, published.as_ref(), &words, metadata)?;
    if let Some(template) = chat_template(folder, &settings)? {
        metadata.set("tokenizer.chat_template", template.as_str());
    }
    metadata.texts("tokenizer.ggml.tokens", words.texts.iter().map(String::as_str));
    metadata.i32s("tokenizer.ggml.token_type", words.types.iter().copied());
    if is_by_score {
        metadata.f32s("tokenizer.ggml.scores", words.scores.iter().copied());
    }
    Ok(())
}

impl Published {
    /// The kinds of the steps by which text is cut.
    fn steps(&self) -> Vec<&str> {
        flat(&self.pre_tokenizer, "pretokenizers").into_iter().filter_map(|step| step.get("type")?.as_str()).collect()
    }

    fn normalizers(&self) -> Vec<&Value> {
        flat(&self.normalizer, "normalizers")
    }

    /// Byte-level merging, GGUF's `gpt2`.
    fn describe_bytes(&self, words: &mut Words, metadata: &mut MetadataWriter) -> Result<(), LoadError> {
        for (text, id) in &self.model.vocab {
            words.set(*id as usize, text, NORMAL, 0.0);
        }
        metadata.set("tokenizer.ggml.model", "gpt2");
        metadata.set("tokenizer.ggml.pre", self.pre_tokenizer_name()?);
        let merges: Vec<String> =
            self.model.merges.iter().filter_map(PublishedMerge::parts).map(|(l, r)| format!("{l} {r}")).collect();
        metadata.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
        Ok(())
    }

    /// Merging of characters with bytes as the last resort: SentencePiece's way in other words. The earlier a merge, the
    /// better the word that it makes.
    fn describe_characters(&self, words: &mut Words, metadata: &mut MetadataWriter) -> Result<(), LoadError> {
        if !self.model.byte_fallback {
            return Err(LoadError::NeedsGguf("`tokenizer.json` is of a kind that is not read from folders".to_owned()));
        }
        for (text, id) in &self.model.vocab {
            let is_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            let kind = match self.model.unk_token.as_deref() {
                _ if is_byte => BYTE,
                Some(unknown) if unknown == text => UNKNOWN,
                _ => NORMAL,
            };
            words.set(*id as usize, text, kind, WORST_SCORE);
        }
        for (rank, (left, right)) in self.model.merges.iter().filter_map(PublishedMerge::parts).enumerate() {
            let merged = self.model.vocab.get(&format!("{left}{right}")).map(|id| *id as usize);
            if let Some(score) = merged.and_then(|id| words.scores.get_mut(id))
                && *score == WORST_SCORE
            {
                *score = -(rank as f32);
            }
        }
        let prepends = |step: &&Value| {
            let is = |key: &str, value: &str| step.get(key).is_some_and(|found| found == value);
            is("type", "Prepend") || is("prepend_scheme", "first") || is("prepend_scheme", "always")
        };
        let adds_space =
            self.normalizers().iter().any(prepends) || flat(&self.pre_tokenizer, "pretokenizers").iter().any(prepends);
        describe_merging_by_score(adds_space, words, metadata);
        Ok(())
    }

    /// GGUF's name for the way this cuts text.
    fn pre_tokenizer_name(&self) -> Result<&'static str, LoadError> {
        // What these two steps do by themselves.
        const GPT2: &str = "ByteLevel";
        const DIGIT: &str = "Digits";
        let mut expressions = Vec::new();
        for step in flat(&self.pre_tokenizer, "pretokenizers") {
            let is = |key: &str| step.get(key).and_then(Value::as_bool).unwrap_or(true);
            match step.get("type").and_then(Value::as_str) {
                Some("ByteLevel") if !is("use_regex") => {}
                Some("Split") => {
                    let expression = step.get("pattern").and_then(|pattern| pattern.get("Regex"));
                    expressions.push(expression.and_then(Value::as_str).unwrap_or_default());
                }
                Some("Digits") if !is("individual_digits") => expressions.push(""),
                other => expressions.push(other.unwrap_or_default()),
            }
        }
        let is_composed = self.normalizers().iter().any(|step| step.get("type").is_some_and(|kind| kind == "NFC"));
        Ok(match (expressions.as_slice(), self.model.ignore_merges, is_composed) {
            ([QWEN2], _, true) => "qwen2",
            ([QWEN2], _, false) => "stablelm2",
            ([LLAMA3], true, _) => "llama-bpe",
            ([LLAMA3], false, _) => "smaug-bpe",
            ([GPT4O], ..) => "gpt-4o",
            ([TEKKEN], ..) => "tekken",
            ([GPT2], ..) => "gpt-2",
            ([DIGIT, GPT2], ..) => "smollm",
            _ => return Err(LoadError::NeedsGguf("`tokenizer.json` cuts text in a way that is not known".to_owned())),
        })
    }

    /// The token that every text begins with, as the step after merging says.
    fn first_token(&self) -> Option<&str> {
        let steps = flat(&self.post_processor, "processors");
        steps.into_iter().find_map(|step| step.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str())
    }
}

fn describe_pieces(model: &SentencePieces, words: &mut Words, metadata: &mut MetadataWriter) {
    for (id, piece) in model.pieces.iter().enumerate() {
        words.set(id, &piece.text, i32::try_from(piece.kind).unwrap_or(UNUSED), piece.score);
    }
    describe_merging_by_score(model.adds_space, words, metadata);
}

/// GGUF's `llama`.
fn describe_merging_by_score(adds_space: bool, words: &Words, metadata: &mut MetadataWriter) {
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.add_space_prefix", adds_space);
    if let Some(id) = words.types.iter().position(|kind| *kind == UNKNOWN) {
        metadata.set("tokenizer.ggml.unknown_token_id", id as u64);
    }
}

/// The steps of a sequence, or the one step that there is.
fn flat<'a>(step: &'a Value, list: &str) -> Vec<&'a Value> {
    match step.get(list).and_then(Value::as_array) {
        Some(steps) => steps.iter().flat_map(|step| flat(step, list)).collect(),
        None if step.is_null() => Vec::new(),
        None => vec![step],
    }
}

/// The tokens that texts and answers begin and end with, and how the makers draw tokens.
fn describe_specials(
    folder: &Path,
    config: &Config,
    settings: &Map<String, Value>,
    published: Option<&Published>,
    words: &Words,
    metadata: &mut MetadataWriter,
) -> Result<(), LoadError> {
    let generation: Map<String, Value> = json::read_optional(folder, "generation_config.json")?.unwrap_or_default();
    let name_of = |token: &Value| token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned);
    let named = |kind: &str| settings.get(&format!("{kind}_token")).and_then(name_of);
    let numbered = |kind: &str| {
        let key = format!("{kind}_token_id");
        let lists = generation.get(&key).into_iter().chain(config.get(&key));
        let numbers = lists.flat_map(|ids| ids.as_array().map_or_else(|| vec![ids], |ids| ids.iter().collect()));
        numbers.filter_map(Value::as_u64).filter(|id| *id < words.texts.len() as u64).collect::<Vec<u64>>()
    };
    let ids = |kind: &str| {
        let own = named(kind).and_then(|name| words.id_of(&name)).map(|id| id as u64);
        let mut ids: Vec<u64> = own.into_iter().collect();
        for id in numbered(kind) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    };
    if let Some(id) = ids("bos").first() {
        metadata.set("tokenizer.ggml.bos_token_id", *id);
    }
    // GGUF has three keys for what some models have a list of.
    for (id, key) in ids("eos").into_iter().zip(["eos_token_id", "eot_token_id", "eom_token_id"]) {
        metadata.set(&format!("tokenizer.ggml.{key}"), id);
    }
    // As the converter: the step after merging counts for more. Byte-level tokenizers add nothing by themselves.
    let setting = settings.get("add_bos_token").and_then(Value::as_bool);
    let adds_bos = match published.and_then(Published::first_token) {
        Some(first) => Some(named("bos").is_none_or(|bos| bos == first)),
        None if published.is_some_and(|json| json.steps().contains(&"ByteLevel")) => Some(setting.unwrap_or(false)),
        None => setting,
    };
    if let Some(adds_bos) = adds_bos {
        metadata.set("tokenizer.ggml.add_bos_token", adds_bos);
    }
    if generation.get("do_sample") != Some(&Value::Bool(false)) {
        let keys =
            [("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p"), ("repetition_penalty", "penalty_repeat")];
        for (key, gguf_key) in keys {
            if let Some(value) = generation.get(key).and_then(Value::as_f64) {
                metadata.set(&format!("general.sampling.{gguf_key}"), value);
            }
        }
        if let Some(top_k) = generation.get("top_k").and_then(Value::as_u64) {
            metadata.set("general.sampling.top_k", top_k);
        }
    }
    Ok(())
}

/// The template in a file of its own, which is the newer way, or in the settings: there alone, or one of several by name.
fn chat_template(folder: &Path, settings: &Map<String, Value>) -> Result<Option<String>, LoadError> {
    if let Some(template) = json::read_bytes(folder, "chat_template.jinja")? {
        return Ok(Some(String::from_utf8_lossy(&template).into_owned()));
    }
    let beside: Option<Map<String, Value>> = json::read_optional(folder, "chat_template.json")?;
    let beside = beside.as_ref().and_then(|beside| beside.get("chat_template"));
    let Some(template) = beside.or_else(|| settings.get("chat_template")) else { return Ok(None) };
    let by_name = template.as_array().into_iter().flatten();
    let default = by_name
        .filter(|entry| entry.get("name").is_some_and(|name| name == "default"))
        .find_map(|entry| entry.get("template").and_then(Value::as_str));
    Ok(template.as_str().or(default).map(str::to_owned))
}

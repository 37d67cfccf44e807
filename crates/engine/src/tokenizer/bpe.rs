use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::Vocabulary;
use crate::LoadError;
use crate::gguf::Gguf;
use crate::models::TokenId;

/// Byte-level byte-pair encoding, with the pre-tokenizer that the file names.
pub(super) struct Bpe {
    tokenizer: Tokenizer,
}

// The expressions are those of llama.cpp's `llama-vocab.cpp`, which takes them from each model's `tokenizer.json`.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const DEFAULT_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const DEFAULT_DIGITS: [&str; 2] = [r"\p{N}+", r"[0-9][0-9][0-9]"];

/// How text is cut before pairs are merged.
#[derive(Clone, Copy)]
enum PreTokenizer {
    Qwen2,
    Llama3,
    Gpt2,
    Smollm,
    Default,
}

impl PreTokenizer {
    fn named(name: Option<&str>) -> Result<Self, LoadError> {
        Ok(match name {
            None | Some("default") => Self::Default,
            Some("qwen2") => Self::Qwen2,
            Some("llama-bpe" | "llama3" | "llama-v3") => Self::Llama3,
            Some("gpt-2") => Self::Gpt2,
            Some("smollm") => Self::Smollm,
            Some(other) => {
                return Err(LoadError::Tokenizer(format!("its pre-tokenizer `{other}` is not supported yet")));
            }
        })
    }

    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let split = |expression: &str| -> tokenizers::Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex(expression.to_owned());
            Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
        };
        let bytes = || -> PreTokenizerWrapper { ByteLevel::new(false, false, false).into() };
        let bytes_after_gpt2 = || -> PreTokenizerWrapper { ByteLevel::new(false, false, true).into() };
        Ok(Sequence::new(match self {
            Self::Qwen2 => vec![split(QWEN2)?, bytes()],
            Self::Llama3 => vec![split(LLAMA3)?, bytes()],
            Self::Gpt2 => vec![bytes_after_gpt2()],
            Self::Smollm => vec![Digits::new(true).into(), bytes_after_gpt2()],
            Self::Default => vec![
                split(DEFAULT_PUNCTUATION)?,
                split(GPT2)?,
                split(DEFAULT_DIGITS[0])?,
                split(DEFAULT_DIGITS[1])?,
                bytes(),
            ],
        })
        .into())
    }
}

/// # Errors
/// Names a pre-tokenizer that isn't known.
pub(super) fn check_supported(pre: Option<&str>) -> Result<(), LoadError> {
    PreTokenizer::named(pre).map(|_| ())
}

impl Bpe {
    pub(super) fn new(gguf: &Gguf, vocabulary: &Vocabulary, pre: Option<&str>) -> Result<Self, LoadError> {
        let refused = |error: tokenizers::Error| LoadError::Tokenizer(error.to_string());
        let merges = gguf.metadata().array("tokenizer.ggml.merges").and_then(|array| array.texts(&gguf.map));
        let merges = merges.ok_or_else(|| LoadError::Missing("tokenizer.ggml.merges".to_owned()))?;
        let merges = merges.into_iter().filter_map(|merge| {
            let (left, right) = std::str::from_utf8(merge).ok()?.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        });
        let words = vocabulary.words.iter().enumerate().map(|(id, word)| (word.clone(), id as TokenId));
        let pre = PreTokenizer::named(pre)?;
        let model = BPE::builder()
            .vocab_and_merges(words.collect::<ahash::AHashMap<_, _>>(), merges.collect())
            // Llama 3 has words in its vocabulary that no merge leads to.
            .ignore_merges(matches!(pre, PreTokenizer::Llama3))
            .build()
            .map_err(refused)?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(pre.build().map_err(refused)?));
        Ok(Self { tokenizer })
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) -> Result<(), LoadError> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        tokens.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

/// The bytes of a word, which GPT-2's alphabet spells with one visible character for each.
pub(super) fn bytes_of(word: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    for character in word.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The bytes that are visible in Latin-1 stand for themselves; the other 68 follow from U+0100 on, in order.
fn byte_of(character: char) -> Option<u8> {
    const fn is_visible(byte: u8) -> bool {
        matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
    }
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_visible(byte).then_some(byte),
        Err(_) => (0..=255).filter(|byte| !is_visible(*byte)).nth((code - 0x100) as usize),
    }
}

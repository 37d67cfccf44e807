use std::collections::HashSet;

use super::{Kind, bpe, spm};
use crate::LoadError;
use crate::gguf::{Gguf, Metadata};
use crate::models::TokenId;

/// What `tokenizer.ggml.token_type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal,
    Control,
    UserDefined,
    Byte,
}

/// The words of a vocabulary as the file spells them.
pub(super) struct Vocabulary {
    pub(super) words: Vec<String>,
    pub(super) types: Vec<TokenType>,
}

/// The bytes that each token stands for in an answer, end to end: one allocation for the whole vocabulary.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Pieces {
    pub(super) fn new(pieces: impl Iterator<Item = Vec<u8>>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for piece in pieces {
            bytes.extend_from_slice(&piece);
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends }
    }

    pub(super) const fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        let Some(end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..*end as usize]
    }
}

impl Vocabulary {
    pub(super) fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let missing = || LoadError::Missing("tokenizer.ggml.tokens".to_owned());
        let words =
            metadata.array("tokenizer.ggml.tokens").and_then(|array| array.texts(&gguf.map)).ok_or_else(missing)?;
        let words: Vec<String> = words.into_iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let types = metadata.array("tokenizer.ggml.token_type").and_then(|array| array.numbers(&gguf.map));
        let mut types: Vec<TokenType> = types.unwrap_or_default().into_iter().map(TokenType::from_number).collect();
        types.resize(words.len(), TokenType::Normal);
        let mut vocabulary = Self { words, types };
        vocabulary.correct_types();
        Ok(vocabulary)
    }

    /// Some files call an end an added or an ordinary word. As a word anybody could write it, and it would be shown.
    fn correct_types(&mut self) {
        for (word, kind) in self.words.iter().zip(&mut self.types) {
            if ENDS.contains(&word.as_str()) && (*kind == TokenType::UserDefined || word.starts_with("<|")) {
                *kind = TokenType::Control;
            }
        }
    }

    /// The token that the file names under `key`.
    pub(super) fn token(&self, metadata: &Metadata, key: &str) -> Option<TokenId> {
        let id = metadata.unsigned(&format!("tokenizer.ggml.{key}"))?;
        TokenId::try_from(id).ok().filter(|id| (*id as usize) < self.words.len())
    }

    /// One score for each word.
    pub(super) fn scores(&self, gguf: &Gguf) -> Result<Vec<f32>, LoadError> {
        let scores = gguf.metadata().array("tokenizer.ggml.scores").and_then(|array| array.numbers(&gguf.map));
        let scores = scores.filter(|scores| scores.len() == self.words.len());
        let scores = scores.ok_or_else(|| LoadError::Missing("tokenizer.ggml.scores".to_owned()))?;
        Ok(scores.into_iter().map(|score| score as f32).collect())
    }

    pub(super) fn piece(&self, index: usize, kind: Kind) -> Vec<u8> {
        let word = &self.words[index];
        match self.types[index] {
            TokenType::Control => Vec::new(),
            TokenType::Byte => spm::byte_of(word).map_or_else(Vec::new, |byte| vec![byte]),
            TokenType::Normal if kind == Kind::ByteLevel => bpe::bytes_of(word),
            TokenType::UserDefined if kind == Kind::ByteLevel => word.clone().into_bytes(),
            TokenType::Normal | TokenType::UserDefined => word.replace(spm::SPACE, " ").into_bytes(),
        }
    }

    /// The named tokens, and those that are spelled like an end in some family: files often name only one of several.
    pub(super) fn end_of_generation(&self, named: [Option<TokenId>; 3]) -> HashSet<TokenId> {
        let id_of = |name: &str| self.words.iter().position(|word| word == name).map(|id| id as TokenId);
        let is_end = |i: &usize| self.types[*i] == TokenType::Control && ENDS.contains(&self.words[*i].as_str());
        let spelled = (0..self.words.len()).filter(is_end).map(|i| i as TokenId);
        let mut ends: HashSet<TokenId> = named.into_iter().flatten().chain(spelled).collect();
        // In gpt-oss's format this ends a part of an answer, not the answer.
        if let (Some(_), Some(_), Some(end)) = (id_of("<|return|>"), id_of("<|call|>"), id_of("<|end|>")) {
            ends.remove(&end);
        }
        ends
    }
}

const ENDS: [&str; 16] = [
    "</s>",
    "<|eot_id|>",
    "<|eot|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<|eom_id|>",
    "<|eom|>",
    "<|return|>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",
    // Gemma 4 asks for the result of a tool with it.
    "<|tool_response>",
];

impl TokenType {
    fn from_number(number: f64) -> Self {
        match number as i64 {
            // 2 is "unknown", which stands for no text either.
            2 | 3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

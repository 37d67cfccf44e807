use std::collections::HashSet;

use ahash::RandomState;

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
    pub(super) words: Words,
    pub(super) types: Vec<TokenType>,
}

/// Texts end to end: one allocation for a whole vocabulary, whereas each by itself would take several times its length.
#[derive(Clone)]
pub(super) struct Words {
    text: String,
    ends: Vec<usize>,
}

impl Words {
    fn new<'a>(words: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(words.len()));
        for word in words {
            text.push_str(&String::from_utf8_lossy(word));
            ends.push(text.len());
        }
        Self { text, ends }
    }

    pub(super) const fn len(&self) -> usize {
        self.ends.len()
    }

    /// # Panics
    /// When there are no more than `index`.
    pub(super) fn get(&self, index: usize) -> &str {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// Finds words by their text. It has only their numbers, so that it takes a few bytes for each.
pub(super) struct WordIndex {
    /// Numbers of words, each at its hash or the next free place after it; at most half of them are taken.
    places: Vec<u32>,
    hashes: RandomState,
}

const FREE: u32 = u32::MAX;

impl WordIndex {
    /// Of those words whose numbers are in `ids`; of equal words the first one.
    pub(super) fn new(words: &Words, ids: impl Iterator<Item = TokenId>) -> Self {
        let places = vec![FREE; (2 * words.len()).next_power_of_two()];
        let mut index = Self { places, hashes: RandomState::new() };
        for id in ids {
            if let Err(place) = index.find(words, words.get(id as usize)) {
                index.places[place] = id;
            }
        }
        index
    }

    pub(super) fn get(&self, words: &Words, word: &str) -> Option<TokenId> {
        self.find(words, word).ok()
    }

    /// The number of `word`, or the place where it would be.
    fn find(&self, words: &Words, word: &str) -> Result<TokenId, usize> {
        let last = self.places.len() - 1;
        let mut place = self.hashes.hash_one(word) as usize & last;
        loop {
            match self.places[place] {
                FREE => return Err(place),
                id if words.get(id as usize) == word => return Ok(id),
                _ => place = (place + 1) & last,
            }
        }
    }
}

/// The bytes that each token stands for in an answer, end to end.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    pub(super) fn new(vocabulary: &Vocabulary, kind: Kind) -> Self {
        let count = vocabulary.words.len();
        let (mut bytes, mut ends) = (Vec::with_capacity(vocabulary.words.text.len()), Vec::with_capacity(count));
        for index in 0..count {
            vocabulary.add_piece(index, kind, &mut bytes);
            ends.push(bytes.len());
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
        &self.bytes[start..*end]
    }
}

impl Vocabulary {
    pub(super) fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let missing = || LoadError::Missing("tokenizer.ggml.tokens".to_owned());
        let words =
            metadata.array("tokenizer.ggml.tokens").and_then(|array| array.texts(&gguf.map)).ok_or_else(missing)?;
        let words = Words::new(words.into_iter());
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
            if ENDS.contains(&word) && (*kind == TokenType::UserDefined || word.starts_with("<|")) {
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

    /// The numbers of the words of which `is_wanted` is true.
    pub(super) fn ids(&self, is_wanted: impl Fn(TokenType) -> bool) -> impl DoubleEndedIterator<Item = TokenId> {
        let kinds = self.types.iter().enumerate();
        kinds.filter(move |(_, kind)| is_wanted(**kind)).map(|(id, _)| id as TokenId)
    }

    /// Adds what a token stands for in an answer to `bytes`.
    fn add_piece(&self, index: usize, kind: Kind, bytes: &mut Vec<u8>) {
        let word = self.words.get(index);
        match self.types[index] {
            TokenType::Control => {}
            TokenType::Byte => bytes.extend(spm::byte_of(word)),
            TokenType::Normal if kind == Kind::ByteLevel => bpe::add_bytes_of(word, bytes),
            TokenType::UserDefined if kind == Kind::ByteLevel => bytes.extend_from_slice(word.as_bytes()),
            TokenType::Normal | TokenType::UserDefined => {
                for (i, part) in word.split(spm::SPACE).enumerate() {
                    bytes.extend((i > 0).then_some(b' '));
                    bytes.extend_from_slice(part.as_bytes());
                }
            }
        }
    }

    /// The named tokens, and those that are spelled like an end in some family: files often name only one of several.
    /// What stands before a prefix, before a suffix, and where the text between the two begins: as the file says, in the
    /// words of today or of older files, or as the names say.
    pub(super) fn fill_in(&self, metadata: &Metadata) -> Option<[TokenId; 3]> {
        let said = [
            ["fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"],
            ["prefix_token_id", "suffix_token_id", "middle_token_id"],
        ];
        let id_of = |name: &str| self.words.iter().position(|word| word == name).map(|id| id as TokenId);
        let said = said.iter().find_map(|keys| all_of(keys, &|key| self.token(metadata, key)));
        said.or_else(|| FILL_INS.iter().find_map(|names| all_of(names, &id_of)))
    }

    pub(super) fn end_of_generation(&self, named: [Option<TokenId>; 3]) -> HashSet<TokenId> {
        let id_of = |name: &str| self.words.iter().position(|word| word == name).map(|id| id as TokenId);
        let controls = self.ids(|kind| kind == TokenType::Control);
        let spelled = controls.filter(|id| ENDS.contains(&self.words.get(*id as usize)));
        let mut ends: HashSet<TokenId> = named.into_iter().flatten().chain(spelled).collect();
        // In gpt-oss's format this ends a part of an answer, not the answer.
        if let (Some(_), Some(_), Some(end)) = (id_of("<|return|>"), id_of("<|call|>"), id_of("<|end|>")) {
            ends.remove(&end);
        }
        ends
    }
}

/// Looks no further than the first that isn't there.
fn all_of(keys: &[&str; 3], id: &dyn Fn(&str) -> Option<TokenId>) -> Option<[TokenId; 3]> {
    Some([id(keys[0])?, id(keys[1])?, id(keys[2])?])
}

/// Names of the tokens before a prefix, before a suffix and before what is between them, as llama.cpp's `llama-vocab.cpp`
/// knows them: Qwen's, Granite's and StarCoder's, DeepSeek's, Code Llama's twice, GLM's.
const FILL_INS: [[&str; 3]; 7] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<PRE>", "<SUF>", "<MID>"],
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_by_their_text() {
        let texts = ["a", "", "ab", "a", "b\u{2581}", "bc"];
        let words = Words::new(texts.iter().map(|text| text.as_bytes()));
        assert!(words.iter().eq(texts) && words.len() == texts.len());
        let index = WordIndex::new(&words, 0..5);
        let found = ["a", "", "ab", "b\u{2581}", "bc", "abc"].map(|word| index.get(&words, word));
        assert_eq!(found, [Some(0), Some(1), Some(2), Some(4), None, None]);
        let last = WordIndex::new(&words, (0..5).rev());
        assert_eq!(last.get(&words, "a"), Some(3));
        let none = Words::new([].into_iter());
        assert_eq!(WordIndex::new(&none, 0..0).get(&none, "a"), None);
    }
}

use std::cmp::Reverse;

use super::merge::{Merge, Symbol, merge_all};
use super::vocabulary::{WordIndex, Words};
use super::{TokenType, Vocabulary};
use crate::LoadError;
use crate::gguf::Gguf;
use crate::models::TokenId;

/// How SentencePiece writes a space.
pub(super) const SPACE: char = '\u{2581}';

/// SentencePiece's merging by score, with a token for each byte as the last resort.
pub(super) struct Spm {
    words: Words,
    ids: WordIndex,
    scores: Vec<f32>,
    bytes: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    add_space_prefix: bool,
}

/// Orders scores; the better one is the greater.
#[derive(Clone, Copy)]
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte_of(word: &str) -> Option<u8> {
    u8::from_str_radix(word.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

impl Spm {
    pub(super) fn new(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let mut bytes = [None; 256];
        let byte = |id: TokenId| byte_of(vocabulary.words.get(id as usize));
        for (id, byte) in vocabulary.ids(|kind| kind == TokenType::Byte).filter_map(|id| Some((id, byte(id)?))) {
            bytes[usize::from(byte)] = Some(id);
        }
        let is_word = |id: &TokenId| vocabulary.types[*id as usize] != TokenType::Byte || byte(*id).is_none();
        // Of equal words the last one counts.
        let ids = vocabulary.ids(|kind| kind != TokenType::Control).rev().filter(is_word);
        Ok(Self {
            ids: WordIndex::new(&vocabulary.words, ids),
            scores: vocabulary.scores(gguf)?,
            bytes,
            unknown: vocabulary.token(gguf.metadata(), "unknown_token_id"),
            words: vocabulary.words.clone(),
            add_space_prefix: gguf.metadata().bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
        })
    }

    /// `is_first`: `text` begins the prompt; only then it gets a space, as in SentencePiece and in `transformers`.
    pub(super) fn encode(&self, text: &str, is_first: bool, tokens: &mut Vec<TokenId>) {
        let mut escaped = String::with_capacity(text.len() + SPACE.len_utf8());
        if is_first && self.add_space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut symbols: Vec<Symbol> =
            escaped.char_indices().map(|(start, c)| Symbol { start, len: c.len_utf8(), token: None }).collect();
        merge_all(&mut symbols, |left, right| {
            let token = self.ids.get(&self.words, &escaped[left.start..right.start + right.len])?;
            Some(Merge { rank: Reverse(Score(self.scores[token as usize])), token })
        });
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &escaped[symbol.start..symbol.start + symbol.len];
            match symbol.token.or_else(|| self.ids.get(&self.words, piece)) {
                Some(id) => tokens.push(id),
                None => tokens.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
            }
        }
    }
}

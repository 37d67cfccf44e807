use super::{TokenType, Vocabulary, spm};
use crate::LoadError;
use crate::gguf::Gguf;
use crate::models::TokenId;

use ahash::AHashMap;

/// SentencePiece's unigram model, as T5 uses it: of all ways to cut a text into words, the most probable one.
pub(super) struct Unigram {
    ids: AHashMap<String, TokenId>,
    scores: Vec<f32>,
    unknown: Option<TokenId>,
    unknown_score: f32,
    /// Bytes of the longest word.
    longest: usize,
    normalizer: Normalizer,
}

/// How text is brought into the form that the vocabulary was made from.
struct Normalizer {
    /// Replaces what its keys spell, the longest first.
    replacements: Option<Replacements>,
    add_space_prefix: bool,
    remove_extra_spaces: bool,
}

/// SentencePiece's compiled character map: a double-array trie from UTF-8 prefixes to offsets of texts that end with a
/// zero byte. <https://github.com/google/sentencepiece/blob/master/src/normalizer.cc>,
/// <https://github.com/s-yata/darts-clone>
struct Replacements {
    units: Vec<u32>,
    texts: Vec<u8>,
}

/// Longer words and replacements don't occur; bounds the work that a file can ask for.
const LONGEST: usize = 256;
/// What a character without a word costs beside the least probable word; SentencePiece's constant.
const UNKNOWN_PENALTY: f32 = 10.0;

impl Unigram {
    pub(super) fn new(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let mut scores = vocabulary.scores(gguf)?;
        let mut ids = AHashMap::new();
        let (mut least, mut longest) = (f32::MAX, 1);
        for (id, (word, kind)) in vocabulary.words.iter().zip(&vocabulary.types).enumerate() {
            match kind {
                TokenType::Normal => least = least.min(scores[id]),
                TokenType::UserDefined => scores[id] = 0.0,
                TokenType::Control | TokenType::Byte => continue,
            }
            longest = longest.max(word.len()).min(LONGEST);
            ids.insert(word.to_owned(), id as TokenId);
        }
        Ok(Self {
            ids,
            scores,
            unknown: vocabulary.token(gguf.metadata(), "unknown_token_id"),
            unknown_score: least.min(0.0) - UNKNOWN_PENALTY,
            longest,
            normalizer: Normalizer::read(gguf)?,
        })
    }

    /// Viterbi's search over the characters of `text`; characters in a row without a word are one unknown token.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        #[derive(Clone, Copy)]
        struct Best {
            score: f32,
            from: usize,
            token: Option<TokenId>,
        }
        let text = self.normalizer.normalize(text);
        let mut best = vec![Best { score: f32::NEG_INFINITY, from: 0, token: None }; text.len() + 1];
        best[0].score = 0.0;
        for (start, character) in text.char_indices() {
            let here = best[start].score;
            let mut reach = |end: usize, score: f32, token: Option<TokenId>| {
                if here + score > best[end].score {
                    best[end] = Best { score: here + score, from: start, token };
                }
            };
            let mut is_known = false;
            for end in (start + 1..=text.len().min(start + self.longest)).filter(|end| text.is_char_boundary(*end)) {
                if let Some(id) = self.ids.get(&text[start..end]) {
                    is_known |= end == start + character.len_utf8();
                    reach(end, self.scores[*id as usize], Some(*id));
                }
            }
            if !is_known {
                reach(start + character.len_utf8(), self.unknown_score, None);
            }
        }
        let first = tokens.len();
        let (mut end, mut was_unknown) = (text.len(), false);
        while end > 0 {
            let Best { from, token, .. } = best[end];
            if token.is_some() || !was_unknown {
                tokens.extend(token.or(self.unknown));
            }
            was_unknown = token.is_none();
            end = from;
        }
        tokens[first..].reverse();
    }
}

impl Normalizer {
    fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let flag = |key: &str| metadata.bool(&format!("tokenizer.ggml.{key}")).unwrap_or(false);
        let compiled = metadata.array("tokenizer.ggml.precompiled_charsmap").and_then(|array| array.numbers(&gguf.map));
        let compiled = compiled.map(|bytes| bytes.into_iter().map(|byte| byte as i64 as u8).collect::<Vec<u8>>());
        Ok(Self {
            replacements: compiled
                .filter(|bytes| !bytes.is_empty())
                .map(|bytes| Replacements::read(&bytes))
                .transpose()?,
            add_space_prefix: flag("add_space_prefix"),
            remove_extra_spaces: flag("remove_extra_whitespaces"),
        })
    }

    fn normalize(&self, text: &str) -> String {
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let found = self.replacements.as_ref().and_then(|replacements| replacements.longest(rest));
            let (len, replacement) = found.unwrap_or((character.len_utf8(), &rest[..character.len_utf8()]));
            replaced.push_str(replacement);
            rest = &rest[len..];
        }
        let mut normalized = String::with_capacity(replaced.len() + spm::SPACE.len_utf8());
        let words: &mut dyn Iterator<Item = &str> = if self.remove_extra_spaces {
            &mut replaced.split(' ').filter(|word| !word.is_empty())
        } else {
            &mut replaced.split(' ')
        };
        for (index, word) in words.enumerate() {
            if index > 0 || self.add_space_prefix {
                normalized.push(spm::SPACE);
            }
            normalized.push_str(word);
        }
        if self.remove_extra_spaces {
            // A space's stand-in that somebody wrote is a space, too.
            normalized.truncate(normalized.trim_end_matches(spm::SPACE).len());
        }
        normalized
    }
}

impl Replacements {
    fn read(bytes: &[u8]) -> Result<Self, LoadError> {
        let damaged = || LoadError::Tokenizer("its map of characters is damaged".to_owned());
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
        let (units, texts) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(damaged)?;
        let units = units.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
        Ok(Self { units: units.collect(), texts: texts.to_vec() })
    }

    /// The longest beginning of `text` that is replaced, in bytes and as a whole character, and by what.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let unit = |index: u32| self.units.get(index as usize).copied();
        // Where the children of a node begin, relative to it.
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = offset(unit(0)?);
        let mut found = None;
        for (at, byte) in text.bytes().enumerate() {
            node ^= u32::from(byte);
            let Some(child) = unit(node).filter(|child| child & (1 << 31 | 0xff) == u32::from(byte) && byte != 0)
            else {
                break;
            };
            node ^= offset(child);
            let has_value = child & (1 << 8) != 0;
            if has_value && text.is_char_boundary(at + 1) {
                let start = (unit(node)? & !(1 << 31)) as usize;
                let text = self.texts.get(start..)?;
                let end = text.iter().take(LONGEST).position(|byte| *byte == 0)?;
                found = Some((at + 1, std::str::from_utf8(&text[..end]).ok()?));
            }
        }
        found
    }
}

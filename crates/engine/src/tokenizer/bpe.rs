use std::cell::RefCell;

use ahash::AHashMap;
use icu_normalizer::ComposingNormalizerBorrowed;

use super::merge::{Merge, Symbol, merge_all};
use super::split::{PreTokenizer, Splitter};
use super::vocabulary::WordIndex;
use super::{TokenType, Vocabulary, spm};
use crate::LoadError;
use crate::gguf::Gguf;
use crate::models::TokenId;

/// Byte-level byte-pair encoding, with the pre-tokenizer that the file names.
pub(super) struct Bpe {
    splitter: Splitter,
    is_composed: bool,
    bytes: Bytes,
    merges: Merges,
    /// Pieces that are words, where these come before merges.
    words: AHashMap<Box<[u8]>, TokenId>,
}

/// Gemma 4's: pairs of characters, over the whole text, with a token for each byte of a character it doesn't know.
pub(super) struct CharacterBpe {
    characters: AHashMap<char, TokenId>,
    bytes: Bytes,
    unknown: Option<TokenId>,
    merges: Merges,
}

/// The token of each byte.
type Bytes = [Option<TokenId>; 256];

/// What a pair of tokens becomes, and how early.
struct Merges(AHashMap<(TokenId, TokenId), (u32, TokenId)>);

impl Merges {
    fn read(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let merges = gguf.metadata().array("tokenizer.ggml.merges").and_then(|array| array.texts(&gguf.map));
        let merges = merges.ok_or_else(|| LoadError::Missing("tokenizer.ggml.merges".to_owned()))?;
        // Text never merges into a control token, whatever a file says.
        let words = &vocabulary.words;
        let ids = WordIndex::new(words, vocabulary.ids(|kind| kind != TokenType::Control));
        let mut pairs = AHashMap::with_capacity(merges.len());
        let mut merged = String::new();
        for (rank, merge) in merges.into_iter().enumerate() {
            // The first word may itself begin with a space.
            let Some((left, right)) = std::str::from_utf8(merge).ok().and_then(split_merge) else { continue };
            merged.clear();
            merged.extend([left, right]);
            let [left, right, merged] = [left, right, &merged].map(|word| ids.get(words, word));
            if let (Some(left), Some(right), Some(merged)) = (left, right, merged) {
                pairs.entry((left, right)).or_insert((rank as u32, merged));
            }
        }
        Ok(Self(pairs))
    }

    fn run(&self, symbols: &mut [Symbol]) {
        merge_all(symbols, |left, right| {
            let (rank, token) = *self.0.get(&(left.token?, right.token?))?;
            Some(Merge { rank, token })
        });
    }
}

fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge.get(first..)?.find(' ')?;
    Some((&merge[..space], &merge[space + 1..]))
}

impl Bpe {
    pub(super) fn new(gguf: &Gguf, vocabulary: &Vocabulary, pre: PreTokenizer) -> Result<Self, LoadError> {
        let mut bytes = [None; 256];
        let mut words = AHashMap::new();
        let mut spelled = Vec::new();
        for id in vocabulary.ids(|kind| kind == TokenType::Normal) {
            spelled.clear();
            add_bytes_of(vocabulary.words.get(id as usize), &mut spelled);
            if let [byte] = spelled[..] {
                bytes[usize::from(byte)].get_or_insert(id);
            }
            if pre.ignores_merges {
                words.entry(spelled.as_slice().into()).or_insert(id);
            }
        }
        let merges = Merges::read(gguf, vocabulary)?;
        Ok(Self { splitter: Splitter::new(pre), is_composed: pre.is_composed, bytes, merges, words })
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        let composed = self.is_composed.then(|| ComposingNormalizerBorrowed::new_nfc().normalize(text));
        let symbols = RefCell::new(Vec::new());
        self.splitter.split(composed.as_deref().unwrap_or(text), &mut |piece| {
            if let Some(id) = self.words.get(piece.as_bytes()) {
                tokens.push(*id);
                return;
            }
            let mut symbols = symbols.borrow_mut();
            symbols.clear();
            symbols.extend(piece.bytes().enumerate().map(|(start, byte)| Symbol {
                start,
                len: 1,
                token: self.bytes[usize::from(byte)],
            }));
            self.merges.run(&mut symbols);
            tokens.extend(symbols.iter().filter(|symbol| symbol.len > 0).filter_map(|symbol| symbol.token));
        });
    }
}

impl CharacterBpe {
    pub(super) fn new(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let mut characters = AHashMap::new();
        let mut bytes = [None; 256];
        for (id, (word, kind)) in vocabulary.words.iter().zip(&vocabulary.types).enumerate() {
            let mut spelled = word.chars();
            match (kind, spelled.next(), spelled.next()) {
                (TokenType::Byte, ..) => {
                    if let Some(byte) = spm::byte_of(word) {
                        bytes[usize::from(byte)].get_or_insert(id as TokenId);
                    }
                }
                (TokenType::Normal, Some(character), None) => {
                    characters.entry(character).or_insert(id as TokenId);
                }
                _ => {}
            }
        }
        let unknown = vocabulary.token(gguf.metadata(), "unknown_token_id");
        Ok(Self { characters, bytes, unknown, merges: Merges::read(gguf, vocabulary)? })
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<TokenId>) {
        let mut symbols = Vec::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            let character = if character == ' ' { spm::SPACE } else { character };
            match self.characters.get(&character) {
                Some(id) => symbols.push(Symbol { start, len: 1, token: Some(*id) }),
                None => symbols.extend(character.encode_utf8(&mut [0; 4]).bytes().map(|byte| Symbol {
                    start,
                    len: 1,
                    token: self.bytes[usize::from(byte)].or(self.unknown),
                })),
            }
        }
        self.merges.run(&mut symbols);
        tokens.extend(symbols.iter().filter(|symbol| symbol.len > 0).filter_map(|symbol| symbol.token));
    }
}

/// Adds the bytes of a word, which GPT-2's alphabet spells with one visible character for each.
pub(super) fn add_bytes_of(word: &str, bytes: &mut Vec<u8>) {
    for character in word.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The bytes that are visible in Latin-1 stand for themselves; the other 68 follow from U+0100 on, in order.
const fn byte_of(character: char) -> Option<u8> {
    Some(match character as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code as u8,
        code @ 0x100..=0x120 => (code - 0x100) as u8,
        code @ 0x121..=0x142 => (0x7f + code - 0x121) as u8,
        0x143 => 0xad,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPT-2's own rule: bytes that aren't visible are numbered from U+0100 on.
    #[test]
    fn every_byte_has_its_character() {
        let is_visible = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let (visible, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(is_visible);
        assert!(visible.iter().all(|byte| byte_of(char::from(*byte)) == Some(*byte)));
        let spelled = (0x100..0x100 + others.len() as u32).map(|code| byte_of(char::from_u32(code).unwrap()));
        assert!(spelled.eq(others.into_iter().map(Some)));
        assert_eq!([' ', '\u{144}', '\u{ad}', '中'].map(byte_of), [None; 4]);
    }
}

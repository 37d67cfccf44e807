use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::{TokenType, Vocabulary};
use crate::LoadError;
use crate::gguf::Gguf;
use crate::models::TokenId;

/// How SentencePiece writes a space.
pub(super) const SPACE: char = '\u{2581}';

/// SentencePiece's merging by score, with a token for each byte as the last resort. The `tokenizers` crate has no model
/// of this kind: its Unigram finds other pieces.
pub(super) struct Spm {
    ids: HashMap<String, TokenId>,
    scores: Vec<f32>,
    bytes: Vec<Option<TokenId>>,
    unknown: Option<TokenId>,
    add_space_prefix: bool,
}

/// A piece of the text, linked to its neighbours; empty once it was merged into the left one.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        // The best score first; of equal ones the leftmost.
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Merge {}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte_of(word: &str) -> Option<u8> {
    u8::from_str_radix(word.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

impl Spm {
    pub(super) fn new(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let scores = metadata.array("tokenizer.ggml.scores").and_then(|array| array.numbers(&gguf.map));
        let scores = scores.filter(|scores| scores.len() == vocabulary.words.len());
        let scores = scores.ok_or_else(|| LoadError::Missing("tokenizer.ggml.scores".to_owned()))?;
        let mut bytes = vec![None; 256];
        let mut ids = HashMap::new();
        for (id, (word, kind)) in vocabulary.words.iter().zip(&vocabulary.types).enumerate() {
            match (kind, byte_of(word)) {
                (TokenType::Byte, Some(byte)) => bytes[usize::from(byte)] = Some(id as TokenId),
                (TokenType::Control, _) => {}
                _ => {
                    ids.insert(word.clone(), id as TokenId);
                }
            }
        }
        let unknown = metadata.unsigned("tokenizer.ggml.unknown_token_id").and_then(|id| TokenId::try_from(id).ok());
        Ok(Self {
            ids,
            scores: scores.into_iter().map(|score| score as f32).collect(),
            bytes,
            unknown: unknown.filter(|id| (*id as usize) < vocabulary.words.len()),
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
        })
    }

    pub(super) fn encode(&self, text: &str, is_first: bool, tokens: &mut Vec<TokenId>) {
        let mut escaped = String::with_capacity(text.len() + SPACE.len_utf8());
        if is_first && self.add_space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut symbols: Vec<Symbol> = escaped
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), previous: i.checked_sub(1), next: Some(i + 1) })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut merges = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.propose(&escaped, &symbols, right - 1, right, &mut merges);
        }
        while let Some(Merge { left, right, len, .. }) = merges.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            // One of the two was merged with another one since this was proposed.
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            symbols[left].len = len;
            symbols[left].next = b.next;
            symbols[right].len = 0;
            if let Some(next) = b.next {
                symbols[next].previous = Some(left);
                self.propose(&escaped, &symbols, left, next, &mut merges);
            }
            if let Some(previous) = a.previous {
                self.propose(&escaped, &symbols, previous, left, &mut merges);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &escaped[symbol.start..symbol.start + symbol.len];
            match self.ids.get(piece) {
                Some(id) => tokens.push(*id),
                None => tokens.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
            }
        }
    }

    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, merges: &mut BinaryHeap<Merge>) {
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        if let Some(id) = self.ids.get(&text[start..start + len]) {
            merges.push(Merge { score: self.scores[*id as usize], left, right, len });
        }
    }
}

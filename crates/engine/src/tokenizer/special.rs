use std::collections::HashMap;

use super::{TokenType, Vocabulary};
use crate::LoadError;
use crate::models::TokenId;

/// The tokens that are written as they are named: `<|im_start|>`.
pub(super) struct Specials {
    /// By first byte, the longest first.
    by_first_byte: HashMap<u8, Vec<(String, TokenId)>>,
    texts: HashMap<TokenId, String>,
}

pub(super) enum Part<'a> {
    Special(TokenId),
    Text(&'a str),
}

impl Specials {
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        let mut by_first_byte: HashMap<u8, Vec<(String, TokenId)>> = HashMap::new();
        let mut texts = HashMap::new();
        for (id, (word, kind)) in vocabulary.words.iter().zip(&vocabulary.types).enumerate() {
            let (TokenType::Control | TokenType::UserDefined, Some(first)) = (kind, word.bytes().next()) else {
                continue;
            };
            by_first_byte.entry(first).or_default().push((word.clone(), id as TokenId));
            texts.insert(id as TokenId, word.clone());
        }
        for words in by_first_byte.values_mut() {
            words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
        }
        Self { by_first_byte, texts }
    }

    pub(super) fn text(&self, token: TokenId) -> Option<&str> {
        self.texts.get(&token).map(String::as_str)
    }

    /// Calls `each` for every special token in `text` and for the text between them, in order.
    pub(super) fn split<'a>(
        &self,
        text: &'a str,
        each: &mut dyn FnMut(Part<'a>) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let (mut from, mut at) = (0, 0);
        while at < text.len() {
            let rest = &text.as_bytes()[at..];
            let found = self
                .by_first_byte
                .get(&rest[0])
                .and_then(|words| words.iter().find(|(word, _)| rest.starts_with(word.as_bytes())));
            let Some((word, id)) = found else {
                at += 1;
                continue;
            };
            // A special token is valid UTF-8, so it begins and ends between characters.
            if from < at {
                each(Part::Text(&text[from..at]))?;
            }
            each(Part::Special(*id))?;
            at += word.len();
            from = at;
        }
        if from < text.len() { each(Part::Text(&text[from..])) } else { Ok(()) }
    }
}

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};

use super::{TokenType, Vocabulary, spm};
use crate::LoadError;
use crate::models::TokenId;

/// The tokens that are found by their names before anything else happens to a text.
pub(super) struct Specials {
    /// Tokens that steer the model: `<|im_start|>`. Only a template may write these.
    marks: Names,
    /// Words that were added to a finished vocabulary; anybody may write these.
    words: Names,
    texts: HashMap<TokenId, String>,
}

struct Names {
    finder: AhoCorasick,
    /// In the order of their ids.
    tokens: Vec<TokenId>,
    /// White space after one of these is not part of the text.
    strip_after: bool,
}

pub(super) enum Part<'a> {
    Special(TokenId),
    Text(&'a str),
}

impl Specials {
    /// `template`: an added word that it writes, and that looks like a tag, steers the model too: `<think>`.
    /// `strip_after`: white space after a mark belongs to the mark, as in Phi 3.
    pub(super) fn new(vocabulary: &Vocabulary, template: &str, strip_after: bool) -> Result<Self, LoadError> {
        let (mut marks, mut words, mut texts) = (Vec::new(), Vec::new(), HashMap::new());
        for (id, (word, kind)) in vocabulary.words.iter().zip(&vocabulary.types).enumerate() {
            let id = id as TokenId;
            if word.is_empty() {
                continue;
            }
            match kind {
                // What cannot be broken cannot be sealed: a name of one character is never looked for.
                TokenType::Control if word.chars().nth(1).is_none() => {}
                TokenType::Control => marks.push((word.to_owned(), id)),
                TokenType::UserDefined if is_tag(word) && template.contains(word) => {
                    marks.push((word.to_owned(), id));
                }
                // Files of SentencePiece spell these with either kind of space.
                TokenType::UserDefined => words.push((word.replace(spm::SPACE, " "), id)),
                TokenType::Normal | TokenType::Byte => continue,
            }
            texts.insert(id, word.to_owned());
        }
        Ok(Self { marks: Names::new(marks, strip_after)?, words: Names::new(words, false)?, texts })
    }

    pub(super) fn text(&self, token: TokenId) -> Option<&str> {
        self.texts.get(&token).map(String::as_str)
    }

    pub(super) fn marks(&self) -> impl Iterator<Item = &str> {
        self.marks.tokens.iter().filter_map(|token| self.text(*token))
    }

    /// Whether that token steers the model.
    pub(super) fn is_mark(&self, token: TokenId) -> bool {
        self.marks.tokens.binary_search(&token).is_ok()
    }

    /// Calls `each` for every mark in `text` and for the text between them, in order.
    pub(super) fn split_marks<'a>(&self, text: &'a str, each: &mut dyn FnMut(Part<'a>)) {
        self.marks.split(text, each);
    }

    /// Calls `each` for every added word in `text` and for the text between them, in order.
    pub(super) fn split_words<'a>(&self, text: &'a str, each: &mut dyn FnMut(Part<'a>)) {
        self.words.split(text, each);
    }
}

fn is_tag(word: &str) -> bool {
    (word.starts_with('<') && word.ends_with('>')) || (word.starts_with('[') && word.ends_with(']'))
}

impl Names {
    fn new(names: Vec<(String, TokenId)>, strip_after: bool) -> Result<Self, LoadError> {
        let (words, tokens): (Vec<String>, Vec<TokenId>) = names.into_iter().unzip();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&words);
        let finder = finder.map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        Ok(Self { finder, tokens, strip_after })
    }

    fn split<'a>(&self, text: &'a str, each: &mut dyn FnMut(Part<'a>)) {
        let mut from = 0;
        for found in self.finder.find_iter(text) {
            // What was stripped after the last one may hold the beginning of this one, if a name begins with a space.
            let start = found.start().max(from);
            if from < start {
                each(Part::Text(&text[from..start]));
            }
            each(Part::Special(self.tokens[found.pattern().as_usize()]));
            from = found.end().max(from);
            if self.strip_after {
                from = text.len() - text[from..].trim_start().len();
            }
        }
        if from < text.len() {
            each(Part::Text(&text[from..]));
        }
    }
}

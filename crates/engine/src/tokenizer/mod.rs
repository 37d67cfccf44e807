//! The tokenizer that a GGUF file carries: byte-level BPE (`gpt2`), Gemma 4's BPE (`gemma4`), SentencePiece's merging
//! (`llama`) or its unigram model (`t5`). Text becomes tokens here, special tokens included, and tokens become bytes.

mod bpe;
mod detokenizer;
mod merge;
mod special;
mod split;
mod spm;
mod unigram;
mod vocabulary;

use std::collections::HashSet;

use crate::LoadError;
use crate::gguf::{Gguf, Metadata};
use crate::models::TokenId;
pub(crate) use detokenizer::Detokenizer;
use special::{Part, Specials};
use split::PreTokenizer;
pub(crate) use split::{GPT4O, LLAMA3, QWEN2, TEKKEN};
use vocabulary::{Pieces, TokenType, Vocabulary};

/// Turns text into tokens and tokens into bytes.
pub(crate) struct Tokenizer {
    algorithm: Algorithm,
    specials: Specials,
    pieces: Pieces,
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Option<TokenId>,
    end_of_generation: HashSet<TokenId>,
    /// What stands before a prefix, before a suffix, and where the text between the two begins.
    fill_in: Option<[TokenId; 3]>,
    add_bos: bool,
    add_eos: bool,
    /// The first word of an answer begins with a space that nobody wrote.
    drops_first_space: bool,
}

enum Algorithm {
    Bpe(Box<bpe::Bpe>),
    CharacterBpe(Box<bpe::CharacterBpe>),
    Spm(Box<spm::Spm>),
    Unigram(Box<unigram::Unigram>),
}

/// What `tokenizer.ggml.model` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteLevel,
    Characters,
    Spm,
    Unigram,
}

impl Kind {
    fn read(metadata: &Metadata) -> Result<Self, LoadError> {
        match metadata.text("tokenizer.ggml.model").as_deref() {
            // Files of Gemma 4 made at first called it so.
            Some("gpt2") if pre_tokenizer(metadata).as_deref() == Some("gemma4") => Ok(Self::Characters),
            Some("gpt2") => Ok(Self::ByteLevel),
            Some("gemma4") => Ok(Self::Characters),
            Some("llama") => Ok(Self::Spm),
            Some("t5") => Ok(Self::Unigram),
            Some(other) => Err(LoadError::Tokenizer(format!("its kind `{other}` is not supported yet"))),
            None => Err(LoadError::Missing("tokenizer.ggml.model".to_owned())),
        }
    }
}

/// Whether the tokenizer that a header names is one of ours.
///
/// # Errors
/// Names what is missing or unknown.
pub(crate) fn check_supported(metadata: &Metadata) -> Result<(), LoadError> {
    if metadata.array("tokenizer.ggml.tokens").is_none() {
        return Err(LoadError::Missing("tokenizer.ggml.tokens".to_owned()));
    }
    match Kind::read(metadata)? {
        Kind::ByteLevel => PreTokenizer::named(pre_tokenizer(metadata).as_deref()).map(|_| ()),
        Kind::Characters | Kind::Spm | Kind::Unigram => Ok(()),
    }
}

fn pre_tokenizer(metadata: &Metadata) -> Option<String> {
    metadata.text("tokenizer.ggml.pre")
}

impl Tokenizer {
    /// Builds the tokenizer of a file.
    ///
    /// # Errors
    /// When the file has none, or one of a kind that isn't supported.
    pub(crate) fn load(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        check_supported(metadata)?;
        let kind = Kind::read(metadata)?;
        let vocabulary = Vocabulary::read(gguf)?;
        let mut adds_bos = matches!(kind, Kind::Spm | Kind::Characters);
        let algorithm = match kind {
            Kind::ByteLevel => {
                let pre = PreTokenizer::named(pre_tokenizer(metadata).as_deref())?;
                adds_bos = pre.adds_bos;
                Algorithm::Bpe(Box::new(bpe::Bpe::new(gguf, &vocabulary, pre)?))
            }
            Kind::Characters => Algorithm::CharacterBpe(Box::new(bpe::CharacterBpe::new(gguf, &vocabulary)?)),
            Kind::Spm => Algorithm::Spm(Box::new(spm::Spm::new(gguf, &vocabulary)?)),
            Kind::Unigram => Algorithm::Unigram(Box::new(unigram::Unigram::new(gguf, &vocabulary)?)),
        };
        let token = |key: &str| vocabulary.token(metadata, key);
        let eos = token("eos_token_id");
        let flag = |key: &str, default| metadata.bool(&format!("tokenizer.ggml.{key}")).unwrap_or(default);
        let template = metadata.text("tokenizer.chat_template").unwrap_or_default();
        let name = metadata.text("general.name").unwrap_or_default().to_lowercase();
        // GGUF doesn't carry this property of a token; llama.cpp goes by the name too.
        let strips_after = kind == Kind::Spm && ["phi-3", "phi3"].iter().any(|phi| name.contains(phi));
        Ok(Self {
            specials: Specials::new(&vocabulary, &template, strips_after)?,
            pieces: Pieces::new(&vocabulary, kind),
            bos: token("bos_token_id"),
            eos,
            fill_in: vocabulary.fill_in(metadata),
            end_of_generation: vocabulary.end_of_generation([eos, token("eot_token_id"), token("eom_token_id")]),
            // Gemma 4 wants a beginning even where a file says otherwise.
            add_bos: kind == Kind::Characters || flag("add_bos_token", adds_bos),
            add_eos: flag("add_eos_token", kind == Kind::Unigram),
            drops_first_space: kind == Kind::Spm && flag("add_space_prefix", true),
            algorithm,
        })
    }

    /// The tokens of a rendered prompt: marks by their names, a beginning where the model wants one and the template
    /// hasn't written it. No mark is found across `seal`, a character that is not part of the text: see
    /// [`crate::template`].
    pub(crate) fn encode_prompt(&self, text: &str, seal: Option<char>) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        let mut is_first = true;
        self.specials.split_marks(text, &mut |part| {
            match part {
                Part::Special(id) => tokens.push(id),
                Part::Text(text) => match seal {
                    Some(seal) if text.contains(seal) => {
                        self.encode_text(&text.replace(seal, ""), is_first, &mut tokens);
                    }
                    _ => self.encode_text(text, is_first, &mut tokens),
                },
            }
            is_first = false;
        });
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        if let Some(eos) = self.eos.filter(|eos| self.add_eos && tokens.last() != Some(eos)) {
            tokens.push(eos);
        }
        tokens
    }

    /// The tokens that ask for the text between `prefix` and `suffix`, which are nothing but text; `None` where the model
    /// didn't learn to fill in. The order is prefix, suffix, middle: the one that every family in the field reads.
    pub(crate) fn encode_fill_in(&self, prefix: &str, suffix: &str) -> Option<Vec<TokenId>> {
        let [before_prefix, before_suffix, middle] = self.fill_in?;
        let mut tokens: Vec<TokenId> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        tokens.push(before_prefix);
        self.encode_text(prefix, false, &mut tokens);
        tokens.push(before_suffix);
        self.encode_text(suffix, false, &mut tokens);
        tokens.push(middle);
        Some(tokens)
    }

    /// The tokens of marks as a model writes them.
    pub(crate) fn encode_marks(&self, text: &str, tokens: &mut Vec<TokenId>) {
        self.specials.split_marks(text, &mut |part| match part {
            Part::Special(id) => tokens.push(id),
            Part::Text(text) => self.encode_text(text, false, tokens),
        });
    }

    /// The marks that a tokenizer finds in `text` by their names.
    pub(crate) fn marks_in(&self, text: &str) -> Vec<TokenId> {
        let mut marks = Vec::new();
        self.specials.split_marks(text, &mut |part| {
            if let Part::Special(mark) = part {
                marks.push(mark);
            }
        });
        marks
    }

    /// Whether that token steers the model.
    pub(crate) fn is_mark(&self, token: TokenId) -> bool {
        self.specials.is_mark(token)
    }

    /// The name of the beginning that this tokenizer puts before a prompt, where it does.
    pub(crate) fn added_bos(&self) -> Option<&str> {
        self.bos.filter(|_| self.add_bos).map(|bos| self.special_text(Some(bos))).filter(|name| !name.is_empty())
    }

    /// The names of the marks that end an answer.
    pub(crate) fn ends(&self) -> impl Iterator<Item = &str> {
        let ends = self.end_of_generation.iter().filter(|token| self.is_mark(**token));
        ends.map(|token| self.special_text(Some(*token)))
    }

    /// How many tokens there are.
    pub(crate) const fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The tokens of a text that is nothing but text, whatever it spells. `is_first`: it begins the prompt, or an answer.
    pub(crate) fn encode_text(&self, text: &str, mut is_first: bool, tokens: &mut Vec<TokenId>) {
        self.specials.split_words(text, &mut |part| {
            match (part, &self.algorithm) {
                (Part::Special(id), _) => tokens.push(id),
                (Part::Text(text), Algorithm::Bpe(bpe)) => bpe.encode(text, tokens),
                (Part::Text(text), Algorithm::CharacterBpe(bpe)) => bpe.encode(text, tokens),
                (Part::Text(text), Algorithm::Spm(spm)) => spm.encode(text, is_first, tokens),
                (Part::Text(text), Algorithm::Unigram(unigram)) => unigram.encode(text, tokens),
            }
            is_first = false;
        });
    }

    /// The bytes that a token stands for in an answer; none for a control token.
    pub(crate) fn piece(&self, token: TokenId) -> &[u8] {
        self.pieces.get(token)
    }

    /// The same, and the name of a control token.
    pub(crate) fn name_or_piece(&self, token: TokenId) -> &[u8] {
        let piece = self.piece(token);
        if piece.is_empty() { self.special_text(Some(token)).as_bytes() } else { piece }
    }

    /// The name of a special token, as templates write it.
    pub(crate) fn special_text(&self, token: Option<TokenId>) -> &str {
        token.and_then(|token| self.specials.text(token)).unwrap_or("")
    }

    /// The names of the tokens that steer the model.
    pub(crate) fn marks(&self) -> impl Iterator<Item = &str> {
        self.specials.marks()
    }

    /// Whether the model says with this token that its answer is over.
    pub(crate) fn ends_generation(&self, token: TokenId) -> bool {
        self.end_of_generation.contains(&token)
    }

    /// All of which [`Self::ends_generation`] is true.
    pub(crate) fn end_tokens(&self) -> impl Iterator<Item = TokenId> {
        self.end_of_generation.iter().copied()
    }

    /// A fresh detokenizer for one answer.
    pub(crate) fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.drops_first_space)
    }
}

#[cfg(test)]
mod tests;

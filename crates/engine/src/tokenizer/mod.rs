//! The tokenizer that a GGUF file carries: byte-level BPE (`gpt2`) or SentencePiece (`llama`). Text becomes tokens
//! here, special tokens included, and tokens become bytes.

mod bpe;
mod special;
mod spm;

use std::collections::HashSet;

use crate::LoadError;
use crate::gguf::{Gguf, Metadata};
use crate::models::TokenId;
use special::Specials;

/// Turns text into tokens and tokens into bytes.
pub(crate) struct Tokenizer {
    algorithm: Algorithm,
    specials: Specials,
    pieces: Pieces,
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Option<TokenId>,
    end_of_generation: HashSet<TokenId>,
    add_bos: bool,
    add_eos: bool,
    /// The first word of an answer begins with a space that nobody wrote.
    drops_first_space: bool,
}

enum Algorithm {
    Bpe(Box<bpe::Bpe>),
    Spm(spm::Spm),
}

/// What `tokenizer.ggml.token_type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    Normal,
    Control,
    UserDefined,
    Byte,
}

/// The words of a vocabulary as the file spells them, end to end.
struct Vocabulary {
    words: Vec<String>,
    types: Vec<TokenType>,
}

/// The bytes that each token stands for in an answer, end to end: one allocation for the whole vocabulary.
struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Pieces {
    fn new(pieces: impl Iterator<Item = Vec<u8>>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for piece in pieces {
            bytes.extend_from_slice(&piece);
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends }
    }

    fn get(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        let Some(end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..*end as usize]
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
    match metadata.text("tokenizer.ggml.model").as_deref() {
        Some("gpt2") => bpe::check_supported(pre_tokenizer(metadata).as_deref()),
        Some("llama") => Ok(()),
        Some(other) => Err(LoadError::Tokenizer(format!("its kind `{other}` is not supported yet"))),
        None => Err(LoadError::Missing("tokenizer.ggml.model".to_owned())),
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
        let vocabulary = Vocabulary::read(gguf)?;
        let is_spm = metadata.text("tokenizer.ggml.model").as_deref() == Some("llama");
        let pre = pre_tokenizer(metadata);
        let algorithm = if is_spm {
            Algorithm::Spm(spm::Spm::new(gguf, &vocabulary)?)
        } else {
            Algorithm::Bpe(Box::new(bpe::Bpe::new(gguf, &vocabulary, pre.as_deref())?))
        };
        let token = |key: &str| {
            let id = metadata.unsigned(&format!("tokenizer.ggml.{key}"))?;
            TokenId::try_from(id).ok().filter(|id| (*id as usize) < vocabulary.words.len())
        };
        let eos = token("eos_token_id");
        let flag = |key: &str, default| metadata.bool(&format!("tokenizer.ggml.{key}")).unwrap_or(default);
        Ok(Self {
            specials: Specials::new(&vocabulary),
            pieces: Pieces::new((0..vocabulary.words.len()).map(|i| vocabulary.piece(i, is_spm))),
            bos: token("bos_token_id"),
            eos,
            end_of_generation: vocabulary.end_of_generation([eos, token("eot_token_id"), token("eom_token_id")]),
            // llama.cpp's defaults where the file doesn't say.
            add_bos: flag(
                "add_bos_token",
                is_spm || matches!(pre.as_deref(), Some("llama-bpe" | "llama3" | "llama-v3")),
            ),
            add_eos: flag("add_eos_token", false),
            drops_first_space: is_spm && flag("add_space_prefix", true),
            algorithm,
        })
    }

    /// The tokens of a rendered prompt: special tokens by their names, a beginning where the model wants one and the
    /// template hasn't written it.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub(crate) fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, LoadError> {
        let mut tokens = Vec::new();
        let mut is_first = true;
        self.specials.split(text, &mut |part| {
            match part {
                special::Part::Special(id) => tokens.push(id),
                special::Part::Text(text) => match &self.algorithm {
                    Algorithm::Bpe(bpe) => bpe.encode(text, &mut tokens)?,
                    // Only the beginning gets a space; after a special token the text stands as it is.
                    Algorithm::Spm(spm) => spm.encode(text, is_first, &mut tokens),
                },
            }
            is_first = false;
            Ok(())
        })?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        if let Some(eos) = self.eos.filter(|eos| self.add_eos && tokens.last() != Some(eos)) {
            tokens.push(eos);
        }
        Ok(tokens)
    }

    /// The bytes that a token stands for in an answer; none for a control token.
    pub(crate) fn piece(&self, token: TokenId) -> &[u8] {
        self.pieces.get(token)
    }

    /// The name of a special token, as templates write it.
    pub(crate) fn special_text(&self, token: Option<TokenId>) -> &str {
        token.and_then(|token| self.specials.text(token)).unwrap_or("")
    }

    /// Whether the model says with this token that its answer is over.
    pub(crate) fn ends_generation(&self, token: TokenId) -> bool {
        self.end_of_generation.contains(&token)
    }

    /// A fresh detokenizer for one answer.
    pub(crate) fn detokenizer(&self) -> Detokenizer {
        Detokenizer { pending: Vec::new(), drop_space: self.drops_first_space }
    }
}

impl Vocabulary {
    fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let missing = || LoadError::Missing("tokenizer.ggml.tokens".to_owned());
        let words =
            metadata.array("tokenizer.ggml.tokens").and_then(|array| array.texts(&gguf.map)).ok_or_else(missing)?;
        let words: Vec<String> = words.into_iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let types = metadata.array("tokenizer.ggml.token_type").and_then(|array| array.numbers(&gguf.map));
        let mut types: Vec<TokenType> = types.unwrap_or_default().into_iter().map(TokenType::from_number).collect();
        types.resize(words.len(), TokenType::Normal);
        Ok(Self { words, types })
    }

    fn piece(&self, index: usize, is_spm: bool) -> Vec<u8> {
        let word = &self.words[index];
        match self.types[index] {
            TokenType::Control => Vec::new(),
            TokenType::UserDefined if !is_spm => word.clone().into_bytes(),
            TokenType::Byte => spm::byte_of(word).map_or_else(Vec::new, |byte| vec![byte]),
            TokenType::Normal | TokenType::UserDefined if is_spm => word.replace(spm::SPACE, " ").into_bytes(),
            TokenType::Normal | TokenType::UserDefined => bpe::bytes_of(word),
        }
    }

    /// The named tokens, and those that are spelled like an end in some family: files often name only one of several.
    fn end_of_generation(&self, named: [Option<TokenId>; 3]) -> HashSet<TokenId> {
        const ENDS: [&str; 9] = [
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "<|eom_id|>",
            "<|return|>",
        ];
        let spelled = (0..self.words.len())
            .filter(|i| self.types[*i] == TokenType::Control && ENDS.contains(&self.words[*i].as_str()));
        named.into_iter().flatten().chain(spelled.map(|i| i as TokenId)).collect()
    }
}

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

/// Puts the bytes of tokens together and gives them out as soon as they are whole characters.
pub(crate) struct Detokenizer {
    pending: Vec<u8>,
    drop_space: bool,
}

impl Detokenizer {
    /// The text that is whole after `piece`.
    pub(crate) fn push(&mut self, piece: &[u8]) -> String {
        let piece = if self.drop_space && !piece.is_empty() {
            self.drop_space = false;
            piece.strip_prefix(b" ").unwrap_or(piece)
        } else {
            piece
        };
        self.pending.extend_from_slice(piece);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (whole, rest) = self.pending.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    let Some(broken) = error.error_len() else {
                        // The beginning of a character whose other bytes are in the next token.
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending = rest[broken..].to_vec();
                }
            }
        }
    }

    /// What is left at the end of an answer: half a character at most.
    pub(crate) fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

#[cfg(test)]
mod tests;

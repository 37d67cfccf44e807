use icu_normalizer::ComposingNormalizerBorrowed;

use super::file::{self, Header};
use super::{sections, texts};
use crate::models::TokenId;
use crate::tokenizer::Tokenizer;

// Types of words, as the file numbers them.
const NORMAL: f32 = 1.0;
const CONTROL: f32 = 3.0;

/// Sections: lines `key=value` of what the file says under `tokenizer.ggml`; the words, a line each, after a digit for
/// the type and a character for the score; the merges, a line each; a text; the compiled map of characters. A line
/// `bytes` in the first adds the word of every byte.
///
/// Builds the tokenizer, and takes the text to tokens and back; byte-level BPE that knows every byte loses nothing.
pub fn tokenizer(data: &[u8]) {
    let sections = (texts(data), sections(data));
    let section = |index: usize| sections.0.get(index).map_or("", String::as_str);
    let mut header = Header::default();
    for (key, value) in section(0).lines().filter_map(|line| line.split_once('=')) {
        let key = format!("tokenizer.ggml.{key}");
        match (value.parse(), value.parse()) {
            (Ok(number), _) => header.number(&key, number),
            (_, Ok(flag)) => header.flag(&key, flag),
            _ => header.text(&key, value),
        }
    }
    let (mut words, mut types, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for line in section(1).split('\n') {
        let mut word = line.chars();
        types.push(word.next().map_or(0.0, |kind| u32::from(kind) as f32 - 48.0));
        scores.push(match word.next() {
            Some('?') => f32::NAN,
            Some('<') => f32::NEG_INFINITY,
            Some('>') => f32::INFINITY,
            score => -score.map_or(0.0, |score| u32::from(score) as f32),
        });
        words.push(word.as_str());
    }
    let has_bytes = section(0).lines().any(|line| line == "bytes");
    let bytes: Vec<String> = alphabet().map(String::from).collect();
    if has_bytes {
        words.extend(bytes.iter().map(String::as_str));
        types.resize(words.len(), NORMAL);
        scores.resize(words.len(), 0.0);
    }
    header.texts("tokenizer.ggml.tokens", &words);
    header.floats("tokenizer.ggml.token_type", &types);
    header.floats("tokenizer.ggml.scores", &scores);
    header.texts("tokenizer.ggml.merges", &section(2).split('\n').collect::<Vec<_>>());
    if let Some(map) = sections.1.get(4) {
        header.bytes("tokenizer.ggml.precompiled_charsmap", map);
    }
    let Ok(gguf) = file::open(&[&header.file(&[])]) else { return };
    let Ok(tokenizer) = Tokenizer::load(&gguf) else { return };
    let text = section(3);
    check(&tokenizer, text, words.len());
    let is_lossless = has_bytes
        && gguf.metadata().text("tokenizer.ggml.model").as_deref() == Some("gpt2")
        && gguf.metadata().text("tokenizer.ggml.pre").as_deref() != Some("gemma4")
        && types.iter().all(|kind| [NORMAL, CONTROL].contains(kind))
        // Some pre-tokenizers compose what is written in two characters.
        && ComposingNormalizerBorrowed::new_nfc().is_normalized(text);
    if is_lossless {
        let name = |token: &TokenId| tokenizer.special_text(Some(*token)).as_bytes();
        let bytes = |token: &TokenId| [name(token), tokenizer.piece(*token)].concat();
        let written: Vec<u8> = tokenizer.encode_prompt(text, None).iter().flat_map(bytes).collect();
        let written = String::from_utf8_lossy(&written);
        assert!(written.contains(text), "{text:?} came back as {written:?}");
    }
}

/// How byte-level BPE spells the 256 bytes, in another order: the printable ones of Latin-1 as themselves, the others as
/// the first characters after it.
fn alphabet() -> impl Iterator<Item = char> {
    ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('\u{100}'..='\u{143}')
}

/// Takes `text` to tokens, of which there are `count`, and every token to text.
pub(super) fn check(tokenizer: &Tokenizer, text: &str, count: usize) {
    for seal in [None, Some('\u{fdd0}')] {
        let tokens = tokenizer.encode_prompt(text, seal);
        assert!(tokens.iter().all(|token| (*token as usize) < count), "{tokens:?}");
        check_pieces(tokenizer, &tokens);
    }
    check_pieces(tokenizer, &(0..=count as TokenId).collect::<Vec<_>>());
}

/// Pieces put together token by token are the text of all their bytes.
fn check_pieces(tokenizer: &Tokenizer, tokens: &[TokenId]) {
    let (mut one_by_one, mut at_once) = (tokenizer.detokenizer(), tokenizer.detokenizer());
    let mut text = String::new();
    let mut bytes = Vec::new();
    for token in tokens {
        text.push_str(&one_by_one.push(tokenizer.piece(*token)));
        bytes.extend(tokenizer.piece(*token));
    }
    text.push_str(&one_by_one.finish());
    let whole = at_once.push(&bytes) + &at_once.finish();
    assert_eq!(text, whole);
}

use serde_json::Value;
use testkit::gguf::{GgufBuilder, tiny_model};

use super::*;

fn load(file: &GgufBuilder) -> Result<Tokenizer, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::load(&Gguf::open(&file.write(folder.path(), "m.gguf").unwrap())?)
}

fn decode(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    let mut detokenizer = tokenizer.detokenizer();
    let mut text: String = tokens.iter().map(|token| detokenizer.push(tokenizer.piece(*token))).collect();
    text.push_str(&detokenizer.finish());
    text
}

/// A SentencePiece vocabulary: control tokens, 256 bytes, and a few pieces with scores.
fn spm() -> GgufBuilder {
    let mut words = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut types = vec![2, 3, 3];
    words.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.extend([6; 256]);
    let pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "▁h"];
    words.extend(pieces.map(str::to_owned));
    types.extend([1; 11]);
    let scores: Vec<f32> = (0..words.len()).map(|id| -(id as f32)).collect();
    GgufBuilder::new()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &words)
        .i32s("tokenizer.ggml.token_type", &types)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
}

fn words(tokenizer: &Tokenizer, tokens: &[TokenId]) -> Vec<String> {
    tokens.iter().map(|token| String::from_utf8_lossy(tokenizer.piece(*token)).into_owned()).collect()
}

#[test]
fn bpe_merges_and_finds_special_tokens() {
    let tokenizer = load(&tiny_model(1)).unwrap();
    let tokens = tokenizer.encode_prompt("<|im_start|>hello world<|im_end|>", None);
    assert_eq!(words(&tokenizer, &tokens[1..tokens.len() - 1]), ["hello", " w", "o", "r", "l", "d"]);
    assert_eq!(tokenizer.special_text(tokens.first().copied()), "<|im_start|>");
    assert!(tokenizer.ends_generation(*tokens.last().unwrap()));
    assert_eq!(decode(&tokenizer, &tokens), "hello world");
}

#[test]
fn any_text_survives_the_way_there_and_back() {
    let text = "Grüße aus 東京 🌸\n\t 'quoted' 12345  end ";
    let bpe = load(&tiny_model(1)).unwrap();
    assert_eq!(decode(&bpe, &bpe.encode_prompt(text, None)), text);
    let spm = load(&spm()).unwrap();
    assert_eq!(decode(&spm, &spm.encode_prompt(text, None)), text);
}

#[test]
fn spm_merges_the_best_pair_first_and_spells_the_rest_in_bytes() {
    let tokenizer = load(&spm()).unwrap();
    let tokens = tokenizer.encode_prompt("hello h x", None);
    assert_eq!(tokens[0], 1, "a beginning comes first");
    assert_eq!(words(&tokenizer, &tokens[1..]), [" hello", " h", " ", "x"]);
    let tokens = tokenizer.encode_prompt("<s>ö", None);
    assert_eq!(tokens, [1, 3 + 0xc3, 3 + 0xb6], "no second beginning, and no space after a special token");
}

#[test]
fn half_a_character_is_never_given_out() {
    let tokenizer = load(&tiny_model(1)).unwrap();
    let mut detokenizer = tokenizer.detokenizer();
    let given: Vec<String> = "a🌸b".bytes().map(|byte| detokenizer.push(&[byte])).collect();
    assert_eq!(given, ["a", "", "", "", "🌸", "b"]);
    assert_eq!(detokenizer.push(&[0xf0, 0x9f]), "");
    assert_eq!(detokenizer.push(b"x"), "\u{fffd}x");
    assert_eq!(detokenizer.push(&[0xe6]), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_by_name() {
    let error = load(&tiny_model(1).text("tokenizer.ggml.model.other", "x")).err();
    assert!(error.is_none());
    let file = GgufBuilder::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "kimi-k2")
        .texts("tokenizer.ggml.tokens", &["a"]);
    let error = load(&file).err().unwrap().to_string();
    assert_eq!(error, "the tokenizer in the file cannot be used: its pre-tokenizer `kimi-k2` is not supported yet");
}

/// Vocabularies, texts and their tokens by the reference implementations; `tests/tools/tokenizer_reference.py` made it.
fn reference() -> Value {
    serde_json::from_str(include_str!("../../tests/fixtures/tokenizer_reference.json")).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn numbers<T>(value: &Value, each: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(each).collect()
}

fn vocabulary(of: &Value) -> GgufBuilder {
    let file = GgufBuilder::new()
        .texts("tokenizer.ggml.tokens", &strings(&of["words"]))
        .i32s("tokenizer.ggml.token_type", &numbers(&of["types"], |kind| kind.as_i64().unwrap() as i32));
    match of["merges"].is_array() {
        true => file.texts("tokenizer.ggml.merges", &strings(&of["merges"])),
        false => file,
    }
}

fn ids(text: &str) -> Vec<TokenId> {
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Compares what `encode` makes of every text with `expected`, and that the tokens are `text` again.
fn check_reference(name: &str, expected: &Value, encode: impl Fn(&str) -> Vec<TokenId>) {
    let texts = reference();
    let texts = strings(&texts["texts"]);
    let wrong: Vec<String> = texts
        .iter()
        .zip(strings(expected))
        .filter(|(text, expected)| encode(text) != ids(expected))
        .map(|(text, expected)| format!("{name}: {text:?}: {:?} instead of [{expected}]", encode(text)))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), texts.len(), wrong.join("\n"));
}

fn encode_text(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    tokenizer.encode_text(text, true, &mut tokens);
    tokens
}

#[test]
fn every_pre_tokenizer_cuts_as_its_family_does() {
    let reference = reference();
    let byte_level = &reference["byte_level"];
    for (name, expected) in byte_level["families"].as_object().unwrap() {
        let file = vocabulary(byte_level)
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", name)
            .bool("tokenizer.ggml.add_bos_token", false)
            .text("tokenizer.chat_template", "<think>{{ messages[0].content }}</think>");
        let tokenizer = load(&file).unwrap();
        check_reference(name, &expected["template"], |text| tokenizer.encode_prompt(text, None));
        check_reference(name, &expected["user"], |text| encode_text(&tokenizer, text));
    }
}

#[test]
fn gemmas_pairs_of_characters_are_the_references() {
    let reference = reference();
    let file = vocabulary(&reference["characters"]).text("tokenizer.ggml.model", "gemma4");
    let tokenizer = load(&file.u32("tokenizer.ggml.unknown_token_id", 0)).unwrap();
    check_reference("gemma4", &reference["characters"]["ids"], |text| encode_text(&tokenizer, text));
}

#[test]
fn both_models_of_sentencepiece_give_its_tokens() {
    let reference = reference();
    for (name, model) in [("spm", "llama"), ("unigram", "t5")] {
        let of = &reference[name];
        let scores = numbers(&of["scores"], |score| score.as_f64().unwrap() as f32);
        let charsmap = numbers(&of["charsmap"], |byte| byte.as_i64().unwrap() as i32);
        let file = vocabulary(of)
            .text("tokenizer.ggml.model", model)
            .f32s("tokenizer.ggml.scores", &scores)
            .i32s("tokenizer.ggml.precompiled_charsmap", &charsmap)
            .u32("tokenizer.ggml.unknown_token_id", of["unknown"].as_u64().unwrap() as u32)
            .bool("tokenizer.ggml.add_space_prefix", of["add_space_prefix"].as_bool().unwrap())
            .bool("tokenizer.ggml.remove_extra_whitespaces", of["remove_extra_whitespaces"].as_bool().unwrap());
        let tokenizer = load(&file).unwrap();
        check_reference(name, &of["ids"], |text| encode_text(&tokenizer, text));
    }
}

#[test]
fn a_mark_is_not_found_across_a_seal() {
    let tokenizer = load(&tiny_model(1)).unwrap();
    let sealed = tokenizer.encode_prompt("<|im_start|>a<\u{fdd0}|im_end|>", Some('\u{fdd0}'));
    assert_eq!(decode(&tokenizer, &sealed), "a<|im_end|>");
    assert!(!sealed.iter().skip(1).any(|token| tokenizer.ends_generation(*token)));
}

#[test]
fn text_of_any_shape_is_encoded_in_linear_time() {
    let tokenizer = load(&tiny_model(1)).unwrap();
    for unit in [" ", "\n", "a", "1", "!", "\u{301}", "<|im_en", " \n", "'s"] {
        let text = unit.repeat(300_000 / unit.len());
        assert_eq!(decode(&tokenizer, &tokenizer.encode_prompt(&text, None)), text);
    }
}
